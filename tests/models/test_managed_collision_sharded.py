"""The collisionless table of torchrec over two processes on a CPU, against one process."""

import json
import logging
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("torchrec", reason="torchrec is not installed: pip install -e '.[torchrec]'")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore:torch.distributed is disabled"),
]

from tests.models.managed_collision_ranks import Phase, train  # noqa: E402  # where torchrec is installed

ROOT = Path(__file__).parents[2]
TOLERANCE = 1e-6

Steps = list[dict[str, Any]]


def start(meet: Path, ranks: int, phases: list[Phase]) -> None:
    """Run the phases in so many processes."""
    options = [str(ranks), str(meet), json.dumps([asdict(phase) for phase in phases])]
    running = [
        subprocess.Popen(
            [sys.executable, "-m", "tests.models.managed_collision_ranks", str(rank), *options],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(ranks)
    ]
    try:
        for process in running:
            said, _ = process.communicate(timeout=120)
            assert process.returncode == 0, said
    finally:
        for process in running:
            process.kill()


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Trainings of six steps: by one process, by two, and cut after three by a change from one to the other."""
    path = tmp_path_factory.mktemp("runs")

    def phase(name: str, optimizer: str = "sgd", first: int = 0, steps: int = 6, after: str = "") -> Phase:
        load = str(path / after / "checkpoint") if after else None
        return Phase(str(path / name), optimizer, first, steps, load)

    logging.disable(logging.WARNING)
    train(phase("whole"), 0, 0)
    train(phase("begun by one", steps=3), 0, 0)
    start(path / "meet-1", 1, [phase("adagrad", "adagrad"), phase("adagrad by one", "adagrad", steps=3)])
    start(
        path / "meet-2",
        2,
        [
            phase("two"),
            phase("begun by two", steps=3),
            phase("ended by two", first=3, steps=3, after="begun by one"),
            phase("adagrad by two", "adagrad", first=3, steps=3, after="adagrad by one"),
        ],
    )
    train(phase("ended by one", first=3, steps=3, after="begun by two"), 0, 0)
    yield path
    logging.disable(logging.NOTSET)


def read(folder: Path) -> tuple[Steps, list[dict[str, Any]]]:
    """Each step's rows, lengths and embeddings by feature, in the order of the sequences; and each process's gauges."""
    found = [torch.load(file, weights_only=True) for file in sorted(folder.glob("out-*.pt"))]
    steps = [
        {name: [torch.cat(parts) for parts in zip(*(one[name] for one in step), strict=True)] for name in step[0]}
        for step in zip(*(one["steps"] for one in found), strict=True)
    ]
    return steps, [one["gauges"] for one in found]


def assert_same(found: Steps, wanted: Steps) -> None:
    assert len(found) == len(wanted) > 0
    for mine, theirs in zip(found, wanted, strict=True):
        for name, (rows, lengths, vectors) in theirs.items():
            assert torch.equal(mine[name][0], rows), name
            assert torch.equal(mine[name][1], lengths), name
            assert (mine[name][2] - vectors).abs().max() <= TOLERANCE, name


def test_two_processes_give_the_rows_and_embeddings_of_one(runs: Path) -> None:
    (whole, (gauges,)), (two, parts) = read(runs / "whole"), read(runs / "two")
    assert_same(two, whole)
    assert len({float(vectors.std()) for step in whole for _, _, vectors in step.values()}) > 10  # it was trained
    assert gauges["item_table"]["evicted"] > 10
    for name, of_table in gauges.items():
        for gauge in ("size", "rows", "inserted", "refused", "evicted"):
            assert sum(part[name][gauge] for part in parts) == of_table[gauge], (name, gauge)


@pytest.mark.parametrize("order", [("begun by one", "ended by two"), ("begun by two", "ended by one")])
def test_a_checkpoint_of_one_goes_on_in_two_and_back(runs: Path, order: tuple[str, str]) -> None:
    (begun, _), (ended, _) = read(runs / order[0]), read(runs / order[1])
    assert_same(begun + ended, read(runs / "whole")[0])


def test_the_optimizers_state_follows_its_rows_from_one_process_to_two(runs: Path) -> None:
    (begun, _), (ended, _) = read(runs / "adagrad by one"), read(runs / "adagrad by two")
    assert_same(begun + ended, read(runs / "adagrad")[0])
