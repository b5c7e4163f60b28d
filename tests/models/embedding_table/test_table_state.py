"""States that do not fit: refused by name, and the table, its file and its followers are as they were."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from recsys.errors import CheckpointError
from recsys.models.delta.row_copy import RowCopy
from recsys.models.embedding_table import AdmissionConfig, EmbeddingTable, RowOptimizer, TableConfig
from recsys.models.embedding_table.prior import CategoryPrior, Prior

WIDTH = 4
THRESHOLD = AdmissionConfig(mode="threshold", threshold=2, capacity=100)
CHANCE = AdmissionConfig(mode="probability", threshold=2)

State = dict[str, Tensor]


def table_of(**settings: Any) -> EmbeddingTable:
    return EmbeddingTable(TableConfig(**{"width": WIDTH, "optimizer": RowOptimizer("adam"), **settings}), page_rows=64)


def train(table: EmbeddingTable, ids: Tensor) -> None:
    rows = table.look_up(ids)
    table.update(rows, torch.ones(len(rows), WIDTH), lr=0.5)
    table.advance()


def copied(state: State) -> State:
    return {name: value.clone() for name, value in state.items()}


def is_same(one: State, other: State) -> bool:
    """Bit for bit, NaN too."""
    return one.keys() == other.keys() and all(
        one[name].dtype == other[name].dtype and one[name].numpy().tobytes() == other[name].numpy().tobytes()
        for name in one
    )


def full(admission: AdmissionConfig, first: int, steps: int) -> EmbeddingTable:
    """A table with something in every part of its state."""
    table = table_of(capacity=300, eviction="lfu", ttl_s=50.0, admission=admission)
    table.prior = CategoryPrior(lambda ids: ids % 3, 3)
    table.clock.set(100)
    table.follow()
    generator = torch.Generator().manual_seed(first)
    for step in range(steps):
        table.clock.set(100 + step)
        train(table, first + torch.randint(0, 500, (60,), generator=generator))
        if step % 6 == 2:
            table.erase(first + torch.randint(0, 500, (40,), generator=generator))
    for new in range(1_000, 1_100 if steps else 1_000):  # one by one, until a queue of rows that are to go is left
        table.look_up(torch.tensor([first + new] * 2))
        if len(table.state()["eviction.rows"]) > 1:
            break
    table.erase(first + torch.arange(9))
    return table


def changed(values: Tensor, to: float) -> Tensor:
    out = values.clone()
    out.view(-1)[:1] = to
    return out


CHANGES: dict[str, Callable[[Tensor], Tensor]] = {
    "longer": lambda values: torch.cat([values, values[-1:]]),
    "shorter": lambda values: values[:-1],
    "empty": lambda values: values[:0],
    "of another type": lambda values: values.float() if values.dtype == torch.int64 else values.long(),
    "of 32 bits": lambda values: values.int() if values.dtype != torch.int32 else values.short(),
    "of another shape": lambda values: values[None],
    "without a dim": lambda values: values.reshape(-1)[0].clone(),
    "negative": lambda values: changed(values, -1) if values.is_signed() else 255 - values,
    "more negative": lambda values: changed(values, -7) if values.is_signed() else changed(values, 9),
    "huge": lambda values: changed(
        values, 1e300 if values.dtype == torch.float64 else 1e38 if values.is_floating_point() else _most(values)
    ),
    "nan": lambda values: (
        changed(values, float("nan"))
        if values.is_floating_point()
        else changed(values, 2**31 - 2)
        if values.dtype in (torch.int32, torch.int64)
        else changed(values, 0)
    ),
    "twice": lambda values: torch.cat([values[:1], values[:1], values[2:]]) if len(values) > 1 else values,
}


def _most(values: Tensor) -> int:
    return 2**62 if values.dtype == torch.int64 else torch.iinfo(values.dtype).max


@pytest.mark.parametrize("admission", [THRESHOLD, CHANCE])
def test_whatever_a_state_says_the_table_goes_on_or_is_as_it_was(admission: AdmissionConfig) -> None:
    state = copied(full(admission, 0, 40).state())
    assert [name for name, value in state.items() if value.numel() == 0] == []
    held = copied(full(admission, 10_000, 9).state())
    config = full(admission, 0, 0).config
    num_refused = 0
    table = None
    for name, change in [(name, change) for name in state for change in (*CHANGES, "missing")]:
        given = copied(state)
        if change == "missing":
            del given[name]
        else:
            given[name] = CHANGES[change](given[name])
        if table is None:
            table = EmbeddingTable(config, page_rows=64)
            table.prior = CategoryPrior(lambda ids: ids % 3, 3)
            table.load_state(held)
        try:
            table.load_state(given)
        except ValueError:
            num_refused += 1
            assert is_same(table.state(), held), f"{name} {change}"
            continue
        for _ in range(3):
            train(table, torch.arange(10_000, 10_090))
        table.expire()
        table.erase(torch.arange(20))
        assert len(table.live()[0]) == len(table)
        again = EmbeddingTable(config, page_rows=64)
        again.load_state(copied({key: value for key, value in table.state().items() if not key.startswith("prior.")}))
        table = None
    assert num_refused > 150


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("ticks", -1, "ticks of rows with an id holds -1 to"),
        ("ticks", 41, r"ticks of rows with an id holds .* to 41; wanted 0 to 40"),
        ("counts", -1, "counts holds -1 to"),
        ("clock.tick", 2**40, f"clock.tick holds {2**40} to {2**40}; wanted 0 to {2**31 - 2}"),
        ("clock.tick", 39, "clock.starts holds 0 to 39; wanted 0 to 38"),
        ("clock.now", float("nan"), r"clock.now is \[nan\]; wanted one number of seconds"),
        ("clock.now", float("inf"), r"clock.now is \[inf\]; wanted one number of seconds"),
        ("clock.now", 7.0, "clock.now is 7.0, but steps ended in second 139"),
        ("eviction.rows", 10_000, r"eviction.rows holds .* to 10000; wanted 0 to"),
        ("eviction.ticks", -1, "eviction.ticks holds -1 to"),
        ("admission.counts", 0, "admission.counts holds 0 to"),
        ("deleted.since", 99, "deleted.since holds 99 to 99; wanted -1 to 40"),
        ("deleted.ticks", 99, r"deleted.ticks holds .* to 99; wanted 0 to 40"),
        ("counts_so_far", -1, "counts_so_far holds -1 to"),
        ("optimizer", 7, "optimizer holds 7 to 7; wanted 0 to 3"),
    ],
)
def test_a_number_that_cannot_be_is_refused_by_name(name: str, value: float, message: str) -> None:
    state, table = copied(full(THRESHOLD, 0, 40).state()), full(THRESHOLD, 10_000, 3)
    held = copied(table.state())
    if name in ("ticks", "counts"):
        state[name][state["rows"][0]] = value
    else:
        state[name].view(-1)[0] = value
    with pytest.raises(ValueError, match=message):
        table.load_state(state)
    assert is_same(table.state(), held)


def test_a_free_row_with_a_touch_is_refused() -> None:
    state, table = copied(full(THRESHOLD, 0, 40).state()), full(THRESHOLD, 10_000, 3)
    state["ticks"][state["free"][0]] = 3
    with pytest.raises(ValueError, match="ticks of free rows holds -1 to 3; wanted -1 to -1"):
        table.load_state(state)


class Unchecked:
    """A prior of the caller's, that finds out what it lacks while it loads."""

    def __init__(self) -> None:
        self.numbers = torch.zeros(2)

    def starts(self, ids: Tensor, rows: object) -> None:
        """Nothing is known of any."""

    def state(self) -> dict[str, Tensor]:
        return {"fitted_at": self.numbers.clone()}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        self.numbers = torch.ones(2)
        self.numbers = state["fitted_at"]


@pytest.mark.parametrize(
    ("prior", "message"),
    [
        (CategoryPrior(lambda ids: ids % 3, 3), r"prior\.fitted_at is missing; wanted"),
        (Unchecked(), r"the prior does not take what the state says of it: KeyError\('fitted_at'\)"),
    ],
)
def test_a_prior_that_does_not_take_its_state_keeps_what_it_had(prior: Prior, message: str) -> None:
    state, table = copied(full(THRESHOLD, 0, 40).state()), full(THRESHOLD, 10_000, 9)
    table.prior = prior
    held = copied(table.state())
    del state["prior.fitted_at"]
    with pytest.raises(ValueError, match=message):
        table.load_state(state)
    assert is_same(table.state(), held)


def test_a_loaded_table_shares_no_memory_with_the_state() -> None:
    state, table = full(THRESHOLD, 0, 40).state(), full(THRESHOLD, 10_000, 3)
    table.load_state(state)
    held = copied(table.state())
    for value in state.values():
        value.zero_()
    assert is_same(table.state(), held)


@pytest.mark.parametrize("is_cold", [False, True])
def test_nothing_is_loaded_while_rows_are_being_copied(tmp_path: Path, is_cold: bool) -> None:
    cold: dict[str, Any] = {"hot_rows": 10, "cold_file": str(tmp_path / "rows")} if is_cold else {}
    other, table = table_of(), table_of(**cold)
    train(other, torch.arange(1_000, 1_100))
    train(table, torch.arange(100))
    held = copied(table.state())
    copy = RowCopy(table.pages, table.live_rows())
    copy.begin()
    with pytest.raises(ValueError, match="the rows are being copied for a delta; finish, or cancel, that copy first"):
        table.load_state(other.state())
    assert is_same(table.state(), held)
    copy.cancel()
    table.load_state(other.state())
    assert is_same(table.state(), other.state())


def test_nothing_is_resumed_while_rows_are_being_copied(tmp_path: Path) -> None:
    cold: dict[str, Any] = {"hot_rows": 10, "cold_file": str(tmp_path / "rows")}
    table = table_of(**cold)
    train(table, torch.arange(100))
    held = copied(table.state())
    rest = table.close("v1")
    table = table_of(**cold)
    train(table, torch.arange(5))
    copy = RowCopy(table.pages, table.live_rows())
    copy.begin()
    with pytest.raises(ValueError, match="the rows are being copied for a delta"):
        table.resume(rest, "v1")
    assert len(table) == 5
    copy.cancel()
    table.resume(rest, "v1")
    assert is_same(table.state(), held)


def test_a_refused_state_leaves_a_closed_file_as_it_was(tmp_path: Path) -> None:
    config: dict[str, Any] = {"capacity": 50, "hot_rows": 5, "cold_file": str(tmp_path / "rows")}
    table, larger = table_of(**config), table_of()
    train(table, torch.arange(40))
    train(larger, torch.arange(60))
    held = copied(table.state())
    rest = table.close("v1")
    table = table_of(**config)
    with pytest.raises(ValueError, match="there are 60 ids; wanted at most max_rows=50"):
        table.load_state(larger.state())
    with pytest.raises(ValueError, match="ticks of rows with an id holds"):
        table.load_state({**held, "ticks": held["ticks"] + 7})
    with pytest.raises(ValueError, match="clock.starts has 0 elements, seconds has 1"):
        table.resume({**rest, "clock.starts": rest["clock.starts"][:0]}, "v1")
    with pytest.raises(CheckpointError, match="is of version 'v1', wanted 'v2'"):
        table.resume(rest, "v2")
    table.resume(rest, "v1")
    assert is_same(table.state(), held)
