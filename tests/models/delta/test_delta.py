"""A delta's file: what comes back, and what is refused."""

import json
import random
from hashlib import sha256
from pathlib import Path

import pytest
import torch
from safetensors.torch import load

from recsys.errors import DeltaError
from recsys.models.delta import Delta, TableDelta, Version
from recsys.models.delta.delta import Part, RowState


def example() -> Delta:
    state = RowState(
        9,
        torch.tensor([1, 8]),
        {"states": torch.rand(2, 5), "ticks": torch.tensor([[3], [4]], dtype=torch.int32)},
        {"free": Part(2, torch.tensor([4, 0])), "eviction.rows": Part(0, torch.empty(0, dtype=torch.int64))},
    )
    ids = torch.tensor([-(2**63), 2**63 - 1])
    tables = {
        "items/of all": TableDelta(ids, torch.randn(2, 3), torch.tensor([5]), {2**63 - 1: "Käse"}, state),
        "empty": TableDelta(ids[:0], torch.empty(0, 2), ids[:0], unknown=torch.tensor([0.5, -1.5])),
    }
    dense = {"net.weight": torch.randn(2, 2).bfloat16(), "scale": torch.tensor(2.0), "mask": torch.tensor([True])}
    extra = {"random": torch.get_rng_state(), "journal": {"a1": 17}, "clock": 12.5, "moments": torch.randn(3).double()}
    return Delta("f00d", 2, 7, Version(1, 6), tables, dense, extra)


def assert_equal(one: Delta, other: Delta) -> None:
    assert (one.bundle, one.version, one.since) == (other.bundle, other.version, other.since)
    assert list(one.tables) == list(other.tables)
    for name, table in one.tables.items():
        theirs = other.tables[name]
        for field in ("ids", "vectors", "deleted"):
            assert torch.equal(getattr(table, field), getattr(theirs, field))
        assert table.raw_ids == theirs.raw_ids
        assert (table.unknown is None) == (theirs.unknown is None)
        if table.unknown is not None and theirs.unknown is not None:
            assert torch.equal(table.unknown, theirs.unknown)
        assert (table.state is None) == (theirs.state is None)
        if table.state is not None and theirs.state is not None:
            assert table.state.num_rows == theirs.state.num_rows
            assert torch.equal(table.state.rows, theirs.state.rows)
            for key, value in table.state.columns.items():
                assert torch.equal(value, theirs.state.columns[key])
            for key, part in table.state.parts.items():
                assert part.kept == theirs.state.parts[key].kept
                assert torch.equal(part.tail, theirs.state.parts[key].tail)
    for ours, given in ((one.dense, other.dense), (one.extra, other.extra)):
        assert ours.keys() == given.keys()
        for key, value in ours.items():
            same = torch.equal(value, given[key]) if isinstance(value, torch.Tensor) else value == given[key]
            assert same, key


def test_what_is_written_is_read(tmp_path: Path) -> None:
    delta = example()
    delta.write(tmp_path / "d")
    assert_equal(Delta.read(tmp_path / "d"), delta)
    assert [path.name for path in tmp_path.iterdir()] == ["d"]


def test_behind_its_first_line_it_is_a_safetensors_file(tmp_path: Path) -> None:
    example().write(tmp_path / "d")
    line, _, rest = (tmp_path / "d").read_bytes().partition(b"\n")
    assert json.loads(line)["format"] == 1
    assert len(load(rest)) == 17


def test_the_bytes_of_a_file_are_those_of_earlier_versions(tmp_path: Path) -> None:
    state = RowState(
        9,
        torch.tensor([1, 8]),
        {"states": torch.arange(10).view(2, 5) / 8, "ticks": torch.tensor([[3], [4]], dtype=torch.int32)},
        {"free": Part(2, torch.tensor([4, 0])), "eviction.rows": Part(0, torch.empty(0, dtype=torch.int64))},
    )
    ids = torch.tensor([-(2**63), 2**63 - 1])
    vectors = torch.arange(6).view(2, 3) / 4
    tables = {
        "items/of all": TableDelta(ids, vectors, torch.tensor([5]), {2**63 - 1: "Käse"}, state),
        "empty": TableDelta(ids[:0], torch.empty(0, 2), ids[:0], unknown=torch.tensor([0.5, -1.5])),
    }
    dense = {"net.weight": torch.ones(2, 2).bfloat16(), "scale": torch.tensor(2.0), "mask": torch.tensor([True])}
    extra = {"journal": {"a1": 17}, "moments": torch.arange(3).double()}
    Delta("f00d", 2, 7, Version(1, 6), tables, dense, extra).write(tmp_path / "d")
    content = (tmp_path / "d").read_bytes()
    assert len(content) == 1944
    assert sha256(content).hexdigest() == "3b17efe5a00a7305b869e49173ca152c4354e580b26c64738af6482afc9472d6"


def test_servers_get_nothing_that_is_the_trainers_alone(tmp_path: Path) -> None:
    delta = example()
    delta.without_state().write(tmp_path / "d")
    served = Delta.read(tmp_path / "d")
    assert served.extra == {}
    assert [table.state for table in served.tables.values()] == [None, None]
    assert torch.equal(served.tables["items/of all"].vectors, delta.tables["items/of all"].vectors)
    assert served.tables["items/of all"].raw_ids == {2**63 - 1: "Käse"}
    assert served.dense.keys() == delta.dense.keys()


def test_any_byte_that_is_flipped_is_refused(tmp_path: Path) -> None:
    path, draw = tmp_path / "d", random.Random(0)
    example().write(path)
    content = path.read_bytes()
    header = content.index(b"\n") + 1
    for at in [*range(header + 40), *draw.sample(range(header, len(content)), 300)]:
        for bit in (1, 1 << draw.randrange(1, 8)):
            damaged = bytearray(content)
            damaged[at] ^= bit
            path.write_bytes(damaged)
            with pytest.raises(DeltaError, match=str(path)):
                Delta.read(path)


def test_a_first_line_that_says_the_same_otherwise_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "d"
    example().write(path)
    path.write_bytes(path.read_bytes().replace(b" ", b"\t", 1))
    with pytest.raises(DeltaError, match="damaged"):
        Delta.read(path)


def test_a_torn_file_is_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "d"
    example().write(path)
    content = path.read_bytes()
    for size in [*range(0, 130, 3), *range(130, len(content), 257), len(content) - 1]:
        path.write_bytes(content[:size])
        with pytest.raises(DeltaError, match=r"d: (torn|format)"):
            Delta.read(path)
    path.write_bytes(content + b"x")
    with pytest.raises(DeltaError, match="torn"):
        Delta.read(path)


def test_another_format_version_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "d"
    example().write(path)
    path.write_bytes(path.read_bytes().replace(b'"format": 1', b'"format": 9', 1))
    with pytest.raises(DeltaError, match="format version 9, wanted 1"):
        Delta.read(path)


def test_a_tensor_that_no_file_holds_is_refused(tmp_path: Path) -> None:
    delta = Delta("b", 1, 1, None, {}, {"z": torch.zeros(1, dtype=torch.complex64)})
    with pytest.raises(DeltaError, match="'dense/z' is torch.complex64; wanted one of torch.float64"):
        delta.write(tmp_path / "d")
    with pytest.raises(DeltaError, match=r"extra\['x'\]: .*wanted a tensor or a JSON value"):
        Delta("b", 1, 1, None, {}, {}, {"x": object()}).write(tmp_path / "d")
    assert not list(tmp_path.iterdir())
