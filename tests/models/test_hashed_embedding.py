import io
import itertools
import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load, save
from torch import nn

from recsys.kernels.row_pages import RowOptimizer
from recsys.models.hashed_embedding import HashedEmbedding, lost_share, mixed_with, rows_of

MASK = 2**64 - 1
SGD = RowOptimizer("sgd")


def splitmix(value: int) -> int:
    x = (value + 0x9E3779B97F4A7C15) & MASK
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & MASK
    return x ^ (x >> 31)


@settings(deadline=None)
@given(st.integers(-(2**63), 2**63 - 1), st.integers(0, 2**32))
def test_the_hash_is_splitmix64(value: int, seed: int) -> None:
    assert splitmix(0) == 0xE220A8397B1DCDAF  # the first number of SplitMix64 of seed 0
    wanted = splitmix((value & MASK) ^ splitmix(seed))
    assert int(mixed_with(seed, torch.tensor([value]))) & MASK == wanted
    assert int(rows_of(torch.tensor([value]), 1000, seed)) == (wanted >> 1) % 1000


@pytest.mark.parametrize("ids_per_row", [0.06, 0.76, 2, 10])
def test_as_many_ids_are_lost_as_the_formula_says(ids_per_row: float) -> None:
    num_ids = 40_000
    rows = rows_of(torch.arange(num_ids), round(num_ids / ids_per_row), seed=3)
    assert 1 - len(torch.unique(rows)) / num_ids == pytest.approx(lost_share(ids_per_row), abs=0.006)


def test_an_id_is_updated_by_the_sum_of_its_gradients_and_strangers_of_a_row_with_it() -> None:
    table = HashedEmbedding(3, 5, SGD, seed=1)
    ids = torch.arange(40).view(4, 10)
    rows = rows_of(ids, 5, 1)
    before, factors = table(ids), torch.randn(4, 10, 3, generator=torch.Generator().manual_seed(0))
    (before * factors).sum().backward()
    table.step(0.1)
    table.eval()
    sums = torch.zeros(5, 3).index_add_(0, rows.flatten(), factors.view(-1, 3))
    torch.testing.assert_close(table(ids), before.detach() - 0.1 * sums[rows])


def test_nothing_is_kept_for_a_step_in_eval_mode_or_without_gradients() -> None:
    table = HashedEmbedding(2, 4, SGD)
    start = table(torch.arange(4)).detach().clone()
    table._looked_up.clear()
    with torch.no_grad():
        table(torch.arange(4))
    table.eval()
    assert not table(torch.arange(4)).requires_grad
    table.step(1.0)
    torch.testing.assert_close(table(torch.arange(4)), start)


def test_a_saved_table_goes_on_as_if_it_had_not_stopped() -> None:
    def trained(table: HashedEmbedding, steps: int) -> HashedEmbedding:
        for _ in range(steps):
            table(torch.arange(30)).square().sum().backward()
            table.step(0.1)
        return table

    whole = trained(HashedEmbedding(4, 11, RowOptimizer("adam"), seed=2), 5)
    half = trained(HashedEmbedding(4, 11, RowOptimizer("adam"), seed=2), 2)
    file = io.BytesIO()
    torch.save(half.state_dict(), file)
    file.seek(0)
    other = HashedEmbedding(4, 11, RowOptimizer("adam"), seed=9)
    other.load_state_dict(torch.load(file))
    assert torch.equal(trained(other, 3).eval()(torch.arange(30)), whole.eval()(torch.arange(30)))


@pytest.mark.parametrize("lr", [-0.1, math.nan, math.inf, "0.1"])
def test_a_learning_rate_that_is_none_is_refused_and_the_gradients_wait(lr: Any) -> None:
    table = HashedEmbedding(2, 5, SGD).train()
    before = table(torch.tensor([1])).detach().clone()
    table(torch.tensor([1])).sum().backward()
    with pytest.raises(ValueError, match="wanted a number of at least 0"):
        table.step(lr)
    table.step(0.5)
    torch.testing.assert_close(table(torch.tensor([1])), before - 0.5)


def test_a_learning_rate_of_zero_moves_nothing_and_is_a_step() -> None:
    table = HashedEmbedding(2, 5, SGD).train()
    before = table(torch.tensor([1])).detach().clone()
    table(torch.tensor([1])).sum().backward()
    table.step(0)
    table.step(0.5)
    assert torch.equal(table(torch.tensor([1])), before)


def test_a_state_of_another_size_is_refused() -> None:
    with pytest.raises(RuntimeError, match=r"wanted \(5, 2\)"):
        HashedEmbedding(2, 5, SGD).load_state_dict(HashedEmbedding(2, 6, SGD).state_dict())


@pytest.mark.parametrize(
    ("was", "is_now"), list(itertools.permutations(["sgd", "row_wise_adagrad", "adagrad", "adam"], 2))
)
def test_the_state_of_another_optimizer_is_refused_and_nothing_is_taken_of_it(was: Any, is_now: Any) -> None:
    table, other = HashedEmbedding(2, 5, RowOptimizer(is_now)), HashedEmbedding(2, 5, RowOptimizer(was), seed=1)
    before = table.state_dict()
    with pytest.raises(RuntimeError, match=f"{is_now} keeps .* load it into a table of the optimizer it was trained"):
        table.load_state_dict(other.state_dict())
    assert all(torch.equal(value, before[key]) for key, value in table.state_dict().items())


def test_a_part_that_is_missing_is_named() -> None:
    state = HashedEmbedding(2, 5, SGD).state_dict()
    del state["table.states"]
    with pytest.raises(RuntimeError, match=r"Missing key.*table\.states"):
        HashedEmbedding(2, 5, SGD).load_state_dict(state)


def test_a_part_that_is_not_known_is_named_and_nothing_is_taken() -> None:
    table, before = HashedEmbedding(2, 5, SGD), HashedEmbedding(2, 5, SGD).state_dict()
    state = HashedEmbedding(2, 5, SGD, seed=1).state_dict() | {"table.ticks": torch.zeros(5)}
    with pytest.raises(RuntimeError, match="the state has 'ticks', which a hashed table has not"):
        table.load_state_dict(state)
    assert all(torch.equal(value, before[key]) for key, value in table.state_dict().items())


@pytest.mark.parametrize("name", ["sgd", "row_wise_adagrad", "adagrad", "adam"])
def test_a_state_goes_through_safetensors(name: Any) -> None:
    table = HashedEmbedding(3, 7, RowOptimizer(name), seed=3)
    table(torch.arange(20)).square().sum().backward()
    table.step(0.1)
    model, other = nn.ModuleDict({"ids": table}), HashedEmbedding(3, 7, RowOptimizer(name), seed=4)
    nn.ModuleDict({"ids": other}).load_state_dict(load(save(model.state_dict())))
    for one in (table, other):
        one(torch.arange(20)).square().sum().backward()
        one.step(0.1)
    assert torch.equal(table.eval()(torch.arange(20)), other.eval()(torch.arange(20)))


def test_bytes_are_those_of_vectors_and_states() -> None:
    assert HashedEmbedding(16, 1000, RowOptimizer("adagrad")).gauges() == {"size": 1000, "bytes": 1000 * 32 * 4}
