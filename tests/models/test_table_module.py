"""What a module and its table have in common when a state is loaded: both, or neither."""

import pytest
import torch

from recsys.models.embedding_table import CollisionlessEmbedding, TableConfig


def trained(first: int) -> CollisionlessEmbedding:
    embedding = CollisionlessEmbedding(TableConfig(width=4, unknown="learned"))
    embedding(torch.arange(first, first + 10)).square().sum().backward()
    embedding.step(0.1)
    return embedding


def ids_of(embedding: CollisionlessEmbedding) -> list[int]:
    return sorted(embedding.table.live()[0].tolist())


@pytest.mark.parametrize("strict", [True, False])
def test_a_table_stays_where_a_parameter_does_not_fit(strict: bool) -> None:
    embedding = trained(0)
    state = trained(100).state_dict()
    state["unknown"] = torch.ones(5)
    with pytest.raises(RuntimeError, match="size mismatch for unknown"):
        embedding.load_state_dict(state, strict=strict)
    assert ids_of(embedding) == list(range(10))


@pytest.mark.parametrize("strict", [True, False])
def test_parameters_stay_where_the_table_does_not_fit(strict: bool) -> None:
    embedding = trained(0)
    before = embedding.state_dict()["unknown"].clone()
    state = trained(100).state_dict() | {"unknown": torch.ones(4)}
    state["table.ids"] = state["table.ids"][:-1]
    with pytest.raises(RuntimeError, match="table"):
        embedding.load_state_dict(state, strict=strict)
    assert ids_of(embedding) == list(range(10))
    assert torch.equal(embedding.state_dict()["unknown"], before)


@pytest.mark.parametrize("numbers", [torch.zeros(3, dtype=torch.uint8), torch.zeros(5056), torch.zeros(0)])
def test_random_numbers_that_are_none_change_nothing(numbers: torch.Tensor) -> None:
    embedding = trained(0)
    with pytest.raises(RuntimeError, match="'generator' is no state of torch's random numbers"):
        embedding.load_state_dict(trained(100).state_dict() | {"table.generator": numbers})
    assert ids_of(embedding) == list(range(10))


def test_parameters_alone_are_loaded_where_that_is_asked_for() -> None:
    embedding = trained(0)
    found = embedding.load_state_dict({"unknown": torch.ones(4)}, strict=False)
    assert "table.ids" in found.missing_keys
    assert torch.equal(embedding.state_dict()["unknown"], torch.ones(4))
    assert ids_of(embedding) == list(range(10))
