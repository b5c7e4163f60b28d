"""Rows of a table found by their last touch, where they lie."""

from recsys.kernels.row_scan.op import Place, lowest, scan_rows

__all__ = ["Place", "lowest", "scan_rows"]
