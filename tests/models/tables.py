"""What tests of tables and of their logs ask: whether two tables are the same."""

import torch

from recsys.models.embedding_table import CollisionlessEmbedding, EmbeddingTable


def assert_same(one: EmbeddingTable | CollisionlessEmbedding, other: EmbeddingTable | CollisionlessEmbedding) -> None:
    """Every tensor of their states, bit for bit, and what they counted."""
    one, other = (module.table if isinstance(module, CollisionlessEmbedding) else module for module in (one, other))
    ours, theirs = one.state(), other.state()
    assert ours.keys() == theirs.keys()
    assert [name for name in ours if not torch.equal(ours[name], theirs[name])] == []
    assert one.counts == other.counts
