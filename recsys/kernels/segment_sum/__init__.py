"""Rows summed by number, always in the same order: the gradient of a gather."""

from recsys.kernels.segment_sum.op import segment_sum
from recsys.kernels.segment_sum.order import SegmentOrder
from recsys.kernels.segment_sum.reference import segment_sum_reference

__all__ = ["SegmentOrder", "segment_sum", "segment_sum_reference"]
