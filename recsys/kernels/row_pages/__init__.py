"""Rows in pages that never move: gathered, and updated by an optimizer whose state stands beside them."""

from recsys.kernels.row_pages.optimizers import RowOptimizer
from recsys.kernels.row_pages.pages import RowPages

__all__ = ["RowOptimizer", "RowPages"]
