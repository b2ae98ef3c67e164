"""The report of a run: one HTML file that needs nothing else, and one small picture."""

from prefopt.report.page import build
from prefopt.report.picture import draw

__all__ = ["build", "draw"]
