"""Attention over jagged sequences: one op, its definition and its fast path for the CPU."""

from recsys.kernels.attention.bias import PosBias, TimeBias
from recsys.kernels.attention.op import jagged_attention

__all__ = ["PosBias", "TimeBias", "jagged_attention"]
