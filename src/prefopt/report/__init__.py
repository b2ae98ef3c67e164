"""The report of a run: one HTML file that needs nothing else, and one small picture."""

from prefopt.report.page import build

__all__ = ["build"]
