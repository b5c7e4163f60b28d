"""The table's benchmarks run, small, and with --no-record write no line of results."""

from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import polars
import pytest
import torch

from benchmarks import table_deltas, table_faults, table_memory, table_soak, table_step
from benchmarks.support.record import RESULTS


def written() -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in RESULTS.glob("table_*.jsonl")}


RUNS: list[Any] = [  # main, its words, what it prints
    (table_deltas.main, "--rows 3000 --width 4 --changed 200 --seconds 0.2", "apply_ms"),
    pytest.param(table_memory.main, "--rows 3000 --width 4 --hot 100", "in_file", marks=pytest.mark.slow),
    (table_soak.main, "--minutes 0.05 --warm-up 0.01", "'mb_an_hour'"),
]


@pytest.mark.parametrize(("run", "words", "told"), RUNS)
def test_a_run_without_a_record_prints_its_figures_and_writes_none(
    run: Callable[[Sequence[str]], None], words: str, told: str, capsys: pytest.CaptureFixture[str]
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


def test_a_step_is_timed_without_a_record(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    draw = np.random.default_rng(0)
    rows = [(user, int(item), place) for user in range(550) for place, item in enumerate(draw.permutation(80)[:40])]
    frame = polars.DataFrame(rows, schema=["user_id", "item_id", "position"], orient="row")
    (tmp_path / "ml-1m").mkdir()
    frame.write_parquet(tmp_path / "ml-1m" / "sequences.parquet")
    monkeypatch.setenv("RECSYS_DATA", str(tmp_path))
    before = written()
    words = ["--models", "sasrec", "--rounds", "1", "--threads", str(torch.get_num_threads())]
    table_step.main([*words, "--out", str(tmp_path / "out"), "--no-record"])
    assert "sasrec    dense 0." in capsys.readouterr().out
    assert written() == before
