"""A replay as one HTML page: the trainer's previews beside ours, each with its numbers, its verdict and its causes."""

from .page import write_page
from .report import Cell, Files, Metrics, Report, Verdict

__all__ = ["Cell", "Files", "Metrics", "Report", "Verdict", "write_page"]
