"""Vectors of tokens: rows of a table, scaled, with positions and dropout."""

from recsys.kernels.jagged_embedding.op import jagged_embedding
from recsys.kernels.jagged_embedding.reference import jagged_embedding_reference

__all__ = ["jagged_embedding", "jagged_embedding_reference"]
