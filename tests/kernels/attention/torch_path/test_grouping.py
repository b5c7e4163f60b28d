import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recsys.kernels.attention.torch_path import grouping
from recsys.kernels.attention.torch_path.grouping import cheapest_groups

sizes = st.lists(st.tuples(st.integers(1, 300), st.integers(1, 300)), min_size=1, max_size=40)


def _cost(groups: list[np.ndarray], len_q: np.ndarray, len_k: np.ndarray) -> float:
    cells = (1 + grouping.CELL_COST * len_k[group].max() for group in groups)
    return sum(
        grouping.TILE_COST + len(group) * len_q[group].max() * cell for group, cell in zip(groups, cells, strict=True)
    )


@settings(max_examples=50, deadline=None)
@given(sizes)
def test_every_run_is_in_exactly_one_group(pairs: list[tuple[int, int]]) -> None:
    len_q, len_k = np.array(pairs).T
    groups = cheapest_groups(len_q, len_k)
    assert sorted(np.concatenate(groups).tolist()) == list(range(len(pairs)))


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(1, 300), min_size=1, max_size=9))
def test_no_partition_of_the_sorted_lengths_is_cheaper(lengths: list[int]) -> None:
    length = np.array(lengths)
    order = np.argsort(length, kind="stable")
    cheapest = min(
        _cost(np.split(order, [i for i in range(1, len(order)) if bits >> (i - 1) & 1]), length, length)
        for bits in range(1 << (len(order) - 1))
    )
    assert _cost(cheapest_groups(length, length), length, length) == pytest.approx(cheapest)


def test_tiny_sequences_merge_and_far_lengths_stay_apart() -> None:
    length = np.array([3, 4] * 5 + [200] * 20)
    groups = cheapest_groups(length, length)
    assert [sorted(group.tolist()) for group in groups] == [list(range(10)), list(range(10, 30))]


def test_a_batch_of_many_lengths_wastes_little() -> None:
    generator = np.random.default_rng(0)
    length = np.exp(generator.normal(4.5, 0.8, size=128)).clip(5, 200).astype(np.int64)
    groups = cheapest_groups(length, length)
    padded = sum(len(group) * length[group].max() for group in groups)
    assert padded < 1.125 * length.sum()
    assert len(groups) < 20


def test_nothing_is_in_no_group() -> None:
    assert cheapest_groups(np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int64)) == []
