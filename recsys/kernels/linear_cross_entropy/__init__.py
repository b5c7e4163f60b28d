"""Cross entropy of a linear layer over the whole catalogue, without ever holding all of its logits."""

from recsys.kernels.cross_entropy_rows import Reduction
from recsys.kernels.linear_cross_entropy.op import linear_cross_entropy
from recsys.kernels.linear_cross_entropy.reference import linear_cross_entropy_reference

__all__ = ["Reduction", "linear_cross_entropy", "linear_cross_entropy_reference"]
