"""A cut is made whole or not at all, of tables that one log follows."""

import gc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from recsys.errors import DeltaError
from recsys.models.delta import Delta, DeltaLog, ServingModel, deltas_since, read_log
from recsys.models.delta import cut as cuts
from recsys.models.delta.cut import difference, have_same_bits
from recsys.models.delta.delta import file_name
from recsys.models.delta.log import load
from recsys.models.delta.row_copy import RowCopy
from recsys.models.embedding_table import CollisionlessEmbedding, EmbeddingTable, TableConfig
from tests.models.tables import assert_same

IDS = torch.arange(12)


def module_of() -> CollisionlessEmbedding:
    module = CollisionlessEmbedding(TableConfig(width=4, unknown="learned"), page_rows=8)
    module.clock(0)
    return module


def train(module: CollisionlessEmbedding, ids: torch.Tensor) -> None:
    module(ids).square().sum().backward()
    module.step(0.1)


def assert_followed(modules: dict[str, CollisionlessEmbedding], folder: Path) -> None:
    """What the log holds is the trainer's, and what is served has its ids and vectors."""
    restored, held = {name: module_of() for name in modules}, read_log(folder / "log")
    for name, module in restored.items():
        load(held, name, module)
    served = ServingModel("b")
    for delta in deltas_since(folder / "out", None):
        served.apply(delta)
    for name, module in modules.items():
        assert_same(module, restored[name])
        ids, vectors = module.table.live()
        table = served.version().tables[name]
        assert table.ids().sort().values.tolist() == ids.sort().values.tolist()
        assert torch.equal(table.vectors(ids), vectors)


def fails_at(nth: int, do: Callable[..., Any], error: type[BaseException]) -> Callable[..., Any]:
    calls = []

    def failing(*args: Any, **kwargs: Any) -> Any:
        calls.append(args)
        if len(calls) == nth:
            raise error("amid a cut")
        return do(*args, **kwargs)

    return failing


FAULTS: list[tuple[Any, str, int, bool]] = [
    (cuts, "unknown_of", 2, False),
    (cuts, "difference", 1, False),
    (cuts, "difference", 20, False),
    (cuts, "RowCopy", 1, False),
    (cuts, "RowCopy", 2, False),
    (cuts, "Cut", 1, False),
    (RowCopy, "begin", 1, True),
    (RowCopy, "begin", 2, True),
    (EmbeddingTable, "follow", 1, True),
    (EmbeddingTable, "follow", 2, True),
]


@pytest.mark.parametrize("error", [MemoryError, KeyboardInterrupt])
@pytest.mark.parametrize(("place", "name", "nth", "is_base"), FAULTS)
def test_a_cut_that_fails_anywhere_loses_nothing_and_lets_the_tables_go(
    place: Any,
    name: str,
    nth: int,
    is_base: bool,
    error: type[BaseException],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    modules = {"a": module_of(), "b": module_of()}
    log = DeltaLog(tmp_path / "log", "b", published=tmp_path / "out")
    log.start(modules, {"w": torch.zeros(1)}, {})
    for module in modules.values():
        train(module, IDS)
    log.append({"w": torch.zeros(1)}, {})
    for module in modules.values():
        module.erase(IDS[:5])
        module.table.advance()
        train(module, IDS[8:])
    with monkeypatch.context() as broken:
        broken.setattr(place, name, fails_at(nth, getattr(place, name), error))
        with pytest.raises(error, match="amid a cut"):
            log.append({"w": torch.ones(1)}, {})
    assert [module.table.pages.before_write for module in modules.values()] == [None, None]
    log.append({"w": torch.ones(1)}, {})
    delta = Delta.read(tmp_path / "log" / file_name(2, is_base=is_base))
    assert delta.dense["w"].tolist() == [1]
    if not is_base:
        assert [table.deleted.tolist() for table in delta.tables.values()] == [IDS[:5].tolist()] * 2
    assert_followed(modules, tmp_path)


def test_a_parameter_without_numbers_is_refused_and_changes_stay_for_the_next_delta(tmp_path: Path) -> None:
    module, log = module_of(), DeltaLog(tmp_path / "log", "b", published=tmp_path / "out")
    log.start({"t": module}, {}, {})
    train(module, IDS)
    log.append({}, {})
    module.erase(IDS[:5])
    module.table.advance()
    nowhere = {"w": torch.zeros(1, device="meta")}
    for dense, extra in ((nowhere, {}), ({}, nowhere)):
        with pytest.raises(DeltaError, match="/w' is on the device meta, and has no numbers; wanted it on cpu or cuda"):
            log.append(dense, extra)
    log.append({}, {})
    assert_followed({"t": module}, tmp_path)


@pytest.mark.parametrize(
    ("tables", "message"),
    [
        ({"t": torch.nn.Linear(3, 3)}, r"tables\['t'\] is Linear; wanted a CollisionlessEmbedding"),
        ({"t": None}, r"tables\['t'\] is NoneType; wanted"),
        ({1: module_of()}, r"tables\[1\]: wanted a name that is a text"),
        ([], "tables is list; wanted tables by name"),
    ],
)
def test_what_is_no_table_is_refused_by_name(tables: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(DeltaError, match=message):
        DeltaLog(tmp_path, "b").start(tables, {}, {})
    assert not list(tmp_path.iterdir())
    DeltaLog(tmp_path, "b").start({}, {}, {})
    with pytest.raises(DeltaError, match=message):
        DeltaLog(tmp_path, "b").restore(tables)


def test_a_table_that_stands_twice_is_refused_and_may_be_followed_after(tmp_path: Path) -> None:
    module = module_of()
    train(module, IDS)
    with pytest.raises(DeltaError, match=r"tables\['b'\] is the same table as tables\['a'\]; name it once"):
        DeltaLog(tmp_path / "twice", "b").start({"a": module, "b": module.table}, {}, {})
    log = DeltaLog(tmp_path / "log", "b", published=tmp_path / "out")
    log.start({"a": module}, {}, {})
    assert_followed({"a": module}, tmp_path)


def test_a_second_log_of_a_table_is_refused_until_the_first_lets_it_go(tmp_path: Path) -> None:
    module = module_of()
    one, two = (DeltaLog(tmp_path / name / "log", "b", published=tmp_path / name / "out") for name in ("one", "two"))
    one.start({"t": module}, {}, {})
    train(module, IDS)
    with pytest.raises(DeltaError, match="'t' is followed by the log .*one.*, and a table tells one log what changed"):
        two.start({"t": module}, {}, {})
    assert two.is_empty
    one.append({}, {})
    assert_followed({"t": module}, tmp_path / "one")
    one.abandon()
    two.start({"t": module}, {}, {})
    module.erase(IDS[:3])
    train(module, IDS[5:])
    two.append({}, {})
    assert_followed({"t": module}, tmp_path / "two")
    with pytest.raises(DeltaError, match="'t' is followed by the log .*two"):
        one.append({}, {})
    del two
    gc.collect()
    one.append({}, {})
    assert_followed({"t": module}, tmp_path / "one")


def test_a_log_that_is_let_go_amid_a_cut_lets_its_table_go(tmp_path: Path) -> None:
    module = module_of()
    log = DeltaLog(tmp_path / "lost", "b")
    log.start({"t": module}, {}, {})
    train(module, IDS)
    cut = log.cut({}, {})
    del log
    gc.collect()
    DeltaLog(tmp_path / "log", "b", published=tmp_path / "out").start({"t": module}, {}, {})
    assert_followed({"t": module}, tmp_path)
    with pytest.raises(DeltaError, match="this cut was abandoned before all its rows were copied; cut again"):
        cut.delta()


def test_an_abandoned_cut_gives_no_delta_of_later_rows(tmp_path: Path) -> None:
    module, log = module_of(), DeltaLog(tmp_path, "b")
    log.start({"t": module}, {}, {})
    train(module, IDS)
    cut = log.cut({}, {})
    log.abandon()
    train(module, IDS)
    for refused in (cut.delta, cut.in_place, lambda: cut.copy(1)):
        with pytest.raises(DeltaError, match="this cut was abandoned"):
            refused()


def test_a_table_restored_elsewhere_is_followed_by_that_log(tmp_path: Path) -> None:
    module, one = module_of(), DeltaLog(tmp_path / "log", "b", published=tmp_path / "out")
    one.start({"t": module}, {}, {})
    two = DeltaLog(tmp_path / "log", "b", published=tmp_path / "out")
    two.restore({"t": module})
    train(module, IDS)
    with pytest.raises(DeltaError, match="'t' is followed by the log"):
        one.append({}, {})
    two.append({}, {})
    assert_followed({"t": module}, tmp_path)


NAN = torch.tensor([float("nan")])
OTHER_NAN = (NAN.view(torch.int32) + 1).view(torch.float32)


@pytest.mark.parametrize(
    ("one", "other", "are_same"),
    [
        (torch.tensor([0.0]), torch.tensor([-0.0]), False),
        (NAN, NAN.clone(), True),
        (NAN, OTHER_NAN, False),
        (torch.zeros(1), torch.zeros(1, dtype=torch.float64), False),
        (torch.zeros(2, 2), torch.zeros(4), False),
        (torch.tensor(1.0), torch.tensor(1.0), True),
        (torch.arange(6).view(2, 3).t(), torch.arange(6).view(2, 3).t().contiguous(), True),
        (torch.tensor([True]), torch.tensor([False]), False),
        (torch.empty(0, 3), torch.empty(0, 3), True),
    ],
)
def test_parameters_move_by_their_bits(one: torch.Tensor, other: torch.Tensor, are_same: bool, tmp_path: Path) -> None:
    assert have_same_bits(one, other) == are_same
    log = DeltaLog(tmp_path, "b")
    log.start({}, {"w": one}, {})
    log.append({"w": other}, {})
    assert Delta.read(tmp_path / file_name(1, is_base=False)).dense.keys() == (set() if are_same else {"w"})
    assert have_same_bits(DeltaLog(tmp_path, "b").restore({}).dense["w"], other)


def test_a_part_of_a_state_differs_by_its_bits() -> None:
    before = torch.cat([torch.ones(1), NAN, torch.zeros(1)])
    part = difference(before, torch.cat([before[:2], torch.tensor([-0.0, 5.0])]))
    assert part.kept == 2
    assert torch.signbit(part.tail).tolist() == [True, False]
