"""Losses over a few sampled negatives."""

from recsys.kernels.sampled_loss.op import sampled_loss
from recsys.kernels.sampled_loss.reference import sampled_loss_reference
from recsys.kernels.sampled_loss.settings import Kind

__all__ = ["Kind", "sampled_loss", "sampled_loss_reference"]
