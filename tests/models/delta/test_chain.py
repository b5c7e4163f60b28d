"""What is in a folder, and what of it a follower is to apply."""

from pathlib import Path
from typing import Any

import pytest
import torch

from recsys.errors import DeltaError, GapError
from recsys.models.delta import DeltaLog, ServingModel, Version, deltas_since, read_log
from recsys.models.delta.chain import sequences
from recsys.models.delta.delta import file_name
from recsys.models.delta.files import OsFiles
from recsys.models.embedding_table import CollisionlessEmbedding, TableConfig


def train(module: CollisionlessEmbedding, count: int) -> None:
    module(torch.arange(count)).square().sum().backward()
    module.step(0.1)


def build(folder: Path, later: int) -> tuple[CollisionlessEmbedding, DeltaLog]:
    """A base, a delta, a cut that is abandoned, a base, and so many deltas."""
    module = CollisionlessEmbedding(TableConfig(width=4))
    log = DeltaLog(folder / "log", "b", published=folder / "out")
    log.start({"t": module}, {}, {})
    train(module, 5)
    log.append({}, {})
    train(module, 6)
    log.cut({}, {})
    log.abandon()
    for number in range(1 + later):
        train(module, 7 + number)
        log.append({}, {})
    return module, log


def given(folder: Path, version: Version | None) -> list[tuple[int, bool]]:
    return [(delta.sequence, delta.since is None) for delta in deltas_since(folder / "out", version)]


@pytest.mark.parametrize("later", [0, 1, 2])
@pytest.mark.parametrize("at", [0, 1])
def test_a_follower_goes_over_a_base_in_the_middle(at: int, later: int, tmp_path: Path) -> None:
    module, _ = build(tmp_path, later)
    wanted = [(number, number == 3) for number in (1, *range(3, 4 + later)) if number > at]
    assert given(tmp_path, Version(1, at)) == wanted
    served = ServingModel("b")
    for delta in deltas_since(tmp_path / "out", None):
        served.apply(delta)
        if delta.sequence == at:
            break
    for delta in deltas_since(tmp_path / "out", Version(1, at)):
        served.apply(delta)
    ids, vectors = module.table.live()
    assert served.at == Version(1, 3 + later)
    assert torch.equal(served.version().tables["t"].vectors(ids), vectors)
    assert given(tmp_path, served.at) == []


def test_a_missing_file_without_a_base_after_it_is_a_gap(tmp_path: Path) -> None:
    build(tmp_path, 3)
    (tmp_path / "out" / file_name(5, is_base=False)).unlink()
    deltas = deltas_since(tmp_path / "out", Version(1, 3))
    assert next(deltas).sequence == 4
    with pytest.raises(GapError, match=r"follows \(epoch 1, sequence 5\), but the last before it is"):
        next(deltas)


STRAY = ["{}-abc.delta", "{}-old.delta", "{}-.delta", "{}-1.delta", "{}-00000000000١.delta", "{}-+00000000001.delta"]
STRAY += ["000000000003.delta", "{}-000000000003"]


@pytest.mark.parametrize("kind", ["base", "delta"])
@pytest.mark.parametrize("name", STRAY)
def test_files_that_are_none_of_the_logs_are_passed_over(name: str, kind: str, tmp_path: Path) -> None:
    assert DeltaLog(tmp_path / "log", "b").is_empty
    module, log = build(tmp_path, 1)
    before = {kind: sequences(tmp_path / "log", OsFiles(), kind) for kind in ("base", "delta")}
    for folder in ("log", "out"):
        (tmp_path / folder / name.format(kind)).write_bytes(b"x")
    assert {kind: sequences(tmp_path / "log", OsFiles(), kind) for kind in ("base", "delta")} == before
    assert given(tmp_path, None) == [(3, True), (4, False)]
    assert read_log(tmp_path / "log").version == log.version
    assert log.compact() == log.version
    other = CollisionlessEmbedding(TableConfig(width=4))
    DeltaLog(tmp_path / "log", "b", published=tmp_path / "out").restore({"t": other})
    assert torch.equal(module.table.state()["vectors"], other.table.state()["vectors"])
    assert (tmp_path / "log" / name.format(kind)).read_bytes() == b"x"


@pytest.mark.parametrize("version", [(1, 0), 5, "1"])
def test_what_is_no_version_is_refused_by_name(version: Any, tmp_path: Path) -> None:
    build(tmp_path, 0)
    with pytest.raises(DeltaError, match=r"version=.* wanted a Version\(epoch, sequence\), or None"):
        list(deltas_since(tmp_path / "out", version))
