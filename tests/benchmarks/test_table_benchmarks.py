"""The table's benchmarks run, small, with --no-record write no line of results, and refuse what makes no sense."""

from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import polars
import pytest
import torch

from benchmarks import (
    cold_rows,
    collision_quality,
    embedding_table,
    hash_table,
    id_stream,
    new_rows,
    table_deltas,
    table_faults,
    table_memory,
    table_soak,
    table_step,
    torchrec_modules,
)
from benchmarks.support.record import RESULTS


def written() -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in RESULTS.glob("table_*.jsonl")}


Run = Callable[[Sequence[str]], None]

RUNS: list[Any] = [  # main, its words, what it prints
    (table_deltas.main, "--rows 3000 --width 4 --changed 200 --seconds 0.2", "apply_ms"),
    pytest.param(table_memory.main, "--rows 3000 --width 4 --hot 100", "in_file", marks=pytest.mark.slow),
    (table_soak.main, "--minutes 0.1 --warm-up 0.01 --compact-cuts 1", "'mb_an_hour'"),
]


@pytest.mark.parametrize(("run", "words", "told"), RUNS)
def test_a_run_without_a_record_prints_its_figures_and_writes_none(
    run: Run, words: str, told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    before = written()
    with suppress(SystemExit):  # of the soak: 1 where memory grows
        run([*words.split(), "--no-record"])
    assert told in capsys.readouterr().out
    assert written() == before


@pytest.mark.slow
def test_kills_without_a_record(capsys: pytest.CaptureFixture[str]) -> None:
    before = written()
    with pytest.raises(SystemExit) as end:
        table_faults.main(["--kills", "1", "--no-record"])
    output = capsys.readouterr().out
    assert end.value.code == 0, output
    assert "'different': 0" in output
    assert written() == before


@pytest.fixture
def ml_1m(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A small log in its place."""
    draw = np.random.default_rng(0)
    rows = [(user, int(item), place) for user in range(550) for place, item in enumerate(draw.permutation(80)[:40])]
    frame = polars.DataFrame(rows, schema=["user_id", "item_id", "position"], orient="row")
    (tmp_path / "ml-1m").mkdir()
    frame.write_parquet(tmp_path / "ml-1m" / "sequences.parquet")
    monkeypatch.setenv("RECSYS_DATA", str(tmp_path))


STEP = ["--models", "sasrec", "--threads", str(torch.get_num_threads())]


@pytest.mark.usefixtures("ml_1m")
def test_a_step_is_timed_without_a_record(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = written()
    table_step.main([*STEP, "--rounds", "3", "--out", str(tmp_path / "out"), "--no-record"])
    assert "sasrec    dense 0." in capsys.readouterr().out
    assert written() == before


def refused(run: Run, words: str, capsys: pytest.CaptureFixture[str]) -> str:
    """The one line."""
    before = written()
    with pytest.raises(SystemExit) as end:
        run(words.split())
    output = capsys.readouterr()
    assert (end.value.code, output.out) == (2, "")
    assert written() == before
    return output.err.splitlines()[-1]


@pytest.mark.usefixtures("ml_1m")
def test_more_rounds_than_an_epoch_has_batches_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    line = refused(table_step.main, " ".join([*STEP, "--rounds", "4", "--out", str(tmp_path / "out")]), capsys)
    assert line.endswith("error: argument --rounds: 4; an epoch of sasrec has batches for 3")


def test_users_beside_whom_nothing_can_be_drawn_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [(user, item, item) for user in range(3) for item in range(10 + 10 * (user == 2))]
    frame = polars.DataFrame(rows, schema=["user_id", "item_id", "position"], orient="row")
    (tmp_path / "ml-1m").mkdir()
    frame.write_parquet(tmp_path / "ml-1m" / "sequences.parquet")
    monkeypatch.setenv("RECSYS_DATA", str(tmp_path))
    line = refused(collision_quality.main, "--users 2", capsys)
    assert "error: argument --users: of 2 users one took all 10 items; wanted one he never took" in line


def test_a_file_that_is_no_table_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "rows").write_text("not a table")
    line = refused(cold_rows.main, f"--rows 1000 --call 64 --file {tmp_path / 'rows'}", capsys)
    assert f"error: argument --file: {tmp_path / 'rows'}" in line


REFUSED: list[tuple[Run, str, str]] = [
    *[
        (run, f"--{name} {value}", f"argument --{name}: {value}; wanted a whole number from ")
        for run, names in (
            (hash_table.main, ("rows", "call", "threads", "repeats")),
            (embedding_table.main, ("rows", "width", "call", "grown-width", "repeats")),
            (cold_rows.main, ("rows", "share", "width", "call", "threads", "repeats")),
            (table_deltas.main, ("rows", "width", "changed")),
            (table_memory.main, ("rows", "width", "hot")),
            (table_faults.main, ("kills",)),
            (table_step.main, ("rounds", "threads")),
            (torchrec_modules.main, ("rows", "ids", "batch", "threads", "repeats")),
            (new_rows.main, ("passes", "users", "items")),
            (table_soak.main, ("compact-cuts",)),
            (collision_quality.main, ("seeds", "threads", "users", "epochs", "batch")),
            (id_stream.main, ("seeds", "days", "events-an-hour", "threads", "threshold")),
        )
        for name in names
        for value in ("0", "-1", "1e3", "10000000000000")
    ],
    *[
        (run, f"--{name} {value}", f"argument --{name}: {value}; wanted a number from ")
        for run, names in (
            (table_deltas.main, ("seconds",)),
            (table_soak.main, ("minutes", "warm-up")),
            (new_rows.main, ("births",)),
            (collision_quality.main, ("doses", "table-lr", "dense-lr")),
            (id_stream.main, ("table-lr", "dense-lr", "ttl-days")),
        )
        for name in names
        for value in ("-1", "nan", "inf", "1e30")
    ],
    (embedding_table.main, "--grown -1", "argument --grown: -1; wanted a whole number from 0"),
    (embedding_table.main, "--grown 1", "argument --grown: 1; wanted 0, or at least 2"),
    (embedding_table.main, "--width 6", "argument --width: 6; wanted a multiple of 4"),
    (embedding_table.main, "--rows 2000000000 --width 65536", "--rows, --width and --call: about 3,"),
    (embedding_table.main, "--call 2000000000 --width 65536", "--rows, --width and --call: about 2,"),
    (embedding_table.main, "--grown 2000000000 --grown-width 65536", "--grown and --grown-width: about 524,"),
    (hash_table.main, "--rows 1000 0", "argument --rows: 0; wanted"),
    (hash_table.main, "--call 4000001", "argument --call: 4000001; wanted a whole number from 1 to 4000000"),
    (
        cold_rows.main,
        "--rows 1000 --share 1001 --call 64",
        "--rows 1000 --share 1001 --call 64: wanted a row in memory",
    ),
    (
        cold_rows.main,
        "--rows 1000 --share 2 --call 501",
        "--rows 1000 --share 2 --call 501: wanted a row in memory, and a call of at most the 500 ",
    ),
    (cold_rows.main, "--rows 2000000000 --width 65536", "--rows and --width: about 1,048,"),
    (table_deltas.main, "--rows 10 --changed 11", "argument --changed: 11; wanted at most --rows 10"),
    (table_deltas.main, "--rows 2000000000 --width 65536", "--rows and --width: about 2,097,"),
    (table_memory.main, "--rows 100 --hot 100", "argument --hot: 100; wanted fewer than --rows 100"),
    (table_memory.main, "--rows 2000000000 --width 65536", "--rows and --width: about 1,573,"),
    (table_faults.main, "--seed -1", "argument --seed: -1; wanted a whole number from 0"),
    (table_soak.main, "--minutes 1 --warm-up 1", "--minutes 1 --warm-up 1: wanted more than 90 s after the warm-up"),
    (table_step.main, "--models deepfm", "argument --models: invalid choice: 'deepfm'"),
    (torchrec_modules.main, "--rows 1001", "argument --rows: 1001; wanted a multiple of 8, and at least 16"),
    (torchrec_modules.main, "--rows 8", "argument --rows: 8; wanted a multiple of 8, and at least 16"),
    (torchrec_modules.main, "--batch 100", "argument --batch: 100; wanted a multiple of 64"),
    (torchrec_modules.main, "--rows 2000000000 --ids 2000000000", "--rows, --ids and --batch: about 2,048 GB"),
    (new_rows.main, "--seeds 0 -1", "argument --seeds: -1; wanted a whole number from 0"),
    (new_rows.main, "--births 0.71", "argument --births: 0.71; wanted a number from 0 to 0.7"),
    (new_rows.main, "--items 167", "argument --items: 167; wanted a whole number from 168"),
    (new_rows.main, "--world-seed -1", "argument --world-seed: -1; wanted a whole number from 0"),
    (collision_quality.main, "--doses 0", "argument --doses: 0; wanted a number from 0.001"),
    (id_stream.main, "--days 3", "argument --days: 3; wanted a whole number from 4"),
    (id_stream.main, "--days 1000 --events-an-hour 2000000000", "--days and --events-an-hour: about 19,200,000 GB"),
]


@pytest.mark.parametrize(
    ("run", "words", "told"), [pytest.param(*case, id=f"{case[0].__module__} {case[1]}") for case in REFUSED]
)
def test_what_makes_no_sense_is_refused_in_one_line(
    run: Run, words: str, told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert f"error: {told}" in refused(run, words, capsys)
