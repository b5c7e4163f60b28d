from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recsys.errors import DataError
from recsys.features.preparation.filters import FilterConfig, Kept, keep_frequent
from recsys.features.preparation.policies import EventConfig
from recsys.features.preparation.steps.arrange import arrange
from recsys.features.preparation.steps.merge import item_numbers

Pairs = list[tuple[int, int]]
PAIRS = st.lists(st.tuples(st.integers(1, 8), st.integers(1, 8)), min_size=1, max_size=80)


def _arranged(folder: Path, pairs: Pairs, num_parts: int) -> Kept:
    """The pairs, users spread over parts."""
    parts = []
    for number in range(num_parts):
        mine = [pair for pair in pairs if pair[0] % num_parts == number]
        frame = pl.DataFrame(mine, {"user_id": pl.Int64, "item_id": pl.Int64}, orient="row")
        rows = frame.with_columns(row=pl.int_range(pl.len(), dtype=pl.Int64))
        parts.append(arrange(rows, EventConfig(), folder / str(number)))
    return Kept.all_of(parts, *item_numbers([part.items for part in parts]))


def _left(kept: Kept) -> Pairs:
    found: Pairs = []
    for number, part in enumerate(kept.parts):
        users = np.repeat(part.users.to_numpy(), np.diff(part.offsets))
        items = part.items.to_numpy()[part.item]
        events = kept.events(number)
        found += zip(users[events].tolist(), items[events].tolist(), strict=True)
    return sorted(found)


def _kept(folder: Path, pairs: Pairs, config: FilterConfig, num_parts: int) -> Pairs:
    kept = _arranged(folder, pairs, num_parts)
    keep_frequent(kept, config)
    assert kept.num_events() == len(_left(kept))
    return _left(kept)


def _core_by_definition(pairs: Pairs, k: int) -> Pairs:
    while True:
        users, items = [u for u, _ in pairs], [i for _, i in pairs]
        kept = [(u, i) for u, i in pairs if users.count(u) >= k and items.count(i) >= k]
        if len(kept) == len(pairs):
            return sorted(kept)
        pairs = kept


@settings(max_examples=60, deadline=None)
@given(pairs=PAIRS, k=st.integers(1, 5), num_parts=st.sampled_from([1, 3]))
def test_a_core_is_the_largest_part_where_all_have_k_events(
    pairs: Pairs, k: int, num_parts: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    wanted, folder = _core_by_definition(pairs, k), tmp_path_factory.mktemp("core")
    if not wanted:
        with pytest.raises(DataError, match=rf"filters\.k_core={k}; lower them"):
            _kept(folder, pairs, FilterConfig(k_core=k), num_parts)
        return
    assert _kept(folder, pairs, FilterConfig(k_core=k), num_parts) == wanted


@settings(max_examples=60, deadline=None)
@given(pairs=PAIRS, items=st.integers(1, 4), users=st.integers(1, 4), num_parts=st.sampled_from([1, 3]))
def test_items_are_filtered_once_before_users(
    pairs: Pairs, items: int, users: int, num_parts: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    config = FilterConfig(min_item_events=items, min_user_events=users)
    all_items = [i for _, i in pairs]
    offered = [(u, i) for u, i in pairs if all_items.count(i) >= items]
    all_users = [u for u, _ in offered]
    wanted = sorted((u, i) for u, i in offered if all_users.count(u) >= users)
    folder = tmp_path_factory.mktemp("filters")
    if wanted:
        assert _kept(folder, pairs, config, num_parts) == wanted
    else:
        with pytest.raises(DataError, match=rf"no event of {len(pairs)} is left by "):
            _kept(folder, pairs, config, num_parts)


@pytest.mark.parametrize("name", ["min_item_events", "min_user_events", "k_core"])
def test_a_threshold_below_one_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match=f"{name}=0: wanted at least 1"):
        FilterConfig(**{name: 0})
