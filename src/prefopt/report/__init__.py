"""The report of a run: one HTML file that needs nothing else, and pictures."""

from prefopt.report.page import build
from prefopt.report.picture import draw, draw_frontier

__all__ = ["build", "draw", "draw_frontier"]
