"""What a log of deltas holds in memory beside the table: at a base, a cut of all rows, a restore and a compaction.

    python -m benchmarks.table_memory [--rows 2000000] [--width 32] [--hot 20000] [--no-record]

Adam; once with all rows in memory, once with `--hot` rows there and the others in a cold file. Each figure is the
highest memory of a process during the work less what it had before, in MB: `peak` is all resident memory, `own` what is
backed by no file (looked at every 5 ms). Linux alone.
Appends a line to benchmarks/results/table_memory.jsonl.
"""

import argparse
import ctypes
import json
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.support.number_arguments import MOST_WIDTH, refuse_beyond_memory, whole
from benchmarks.support.record import append
from recsys.models.delta import DeltaLog
from recsys.models.embedding_table import EmbeddingTable, RowOptimizer, TableConfig

BATCH = 1 << 15
ROWS_A_COPY = 50_000
LOOK_S = 0.005
WARM_ROWS = 3_000
HOT_ROWS = 20_000


def table_of(width: int, hot_rows: int, folder: Path) -> EmbeddingTable:
    """A table by Adam; `hot_rows` 0: all in memory."""
    cold = {"hot_rows": hot_rows, "cold_file": str(folder / "rows.cold")} if hot_rows else {}
    return EmbeddingTable(TableConfig(width=width, optimizer=RowOptimizer("adam"), **cold))  # type: ignore[arg-type]  # of two types


def train(table: EmbeddingTable, num_rows: int) -> None:
    """One step for each of so many ids."""
    draw = torch.Generator().manual_seed(table.tick)
    for ids in torch.split(torch.arange(num_rows), BATCH):
        table.update(table.look_up(ids), torch.randn(len(ids), table.config.width, generator=draw), 0.1)
        table.advance()


def written(num_rows: int, width: int, hot_rows: int, folder: Path) -> dict[str, dict[str, float]]:
    """Of a base, and of a cut of all rows that are copied between steps."""
    table, log = table_of(width, hot_rows, folder), DeltaLog(folder / "log", "b")
    train(table, num_rows)
    found = {"base": measured(table, lambda: log.start({"t": table}, {}, {}))}
    train(table, num_rows)

    def cut() -> None:
        taken = log.cut({}, {})
        while not taken.copy(ROWS_A_COPY):
            pass
        log.write(taken.delta())

    found["cut"] = measured(table, cut)
    _end(table)
    return found


def read(num_rows: int, width: int, hot_rows: int, folder: Path) -> dict[str, dict[str, float]]:
    """Of a restore, into a table that holds nothing before, and of the compaction of a base and a cut of all rows."""
    table, log = table_of(width, hot_rows, folder), DeltaLog(folder / "log", "b")
    found = {"restore": measured(table, lambda: log.restore({"t": table}))}
    assert len(table) == num_rows
    found["compaction"] = measured(table, log.compact)
    _end(table)
    return found


def measured(table: EmbeddingTable, work: Callable[[], Any]) -> dict[str, float]:
    """MB above what the process had before."""
    ctypes.CDLL(None).malloc_trim(0)
    if table.config.cold_file:
        table.pages.let_go()  # type: ignore[attr-defined]  # ColdRows has it
    Path("/proc/self/clear_refs").write_text("5")  # the highest memory so far is forgotten
    before, own, is_over = _status(), [0.0], threading.Event()

    def look() -> None:
        while not is_over.wait(LOOK_S):
            own.append(_status()["RssAnon"])

    watch = threading.Thread(target=look)
    watch.start()
    began = time.perf_counter()
    work()
    seconds = time.perf_counter() - began
    is_over.set()
    watch.join()
    return {
        "peak_mb": round(_status()["VmHWM"] - before["VmRSS"], 1),
        "own_mb": round(max(own) - before["RssAnon"], 1),
        "s": round(seconds, 1),
    }


def measured_apart(num_rows: int, width: int, hot_rows: int, folder: Path) -> dict[str, dict[str, float]]:
    """All four; the process that reads is another than the one that wrote."""
    found: dict[str, dict[str, float]] = {}
    for part in ("written", "read"):
        sizes = {"--rows": num_rows, "--width": width} | ({"--hot": hot_rows} if hot_rows else {})
        line = [sys.executable, "-m", "benchmarks.table_memory", "--part", part, "--folder", str(folder)]
        line += [str(word) for pair in sizes.items() for word in pair]
        found |= json.loads(subprocess.run(line, check=True, stdout=subprocess.PIPE).stdout)
    return found


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=whole(), default=2_000_000)
    parser.add_argument("--width", type=whole(1, MOST_WIDTH), default=32)
    parser.add_argument("--hot", type=whole(), help=f"rows in memory where the others are in a file; {HOT_ROWS:,}")
    parser.add_argument("--no-record", action="store_true", help="write no line of results")
    parser.add_argument("--part", choices=["written", "read"], help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args(arguments)
    if given.part:
        hot_rows = given.hot or 0
        _warm(given.width, hot_rows)
        part = {"written": written, "read": read}[given.part]
        print(json.dumps(part(given.rows, given.width, hot_rows, given.folder)))
        return
    given.hot = HOT_ROWS if given.hot is None else given.hot
    if given.hot >= given.rows:
        parser.error(f"argument --hot: {given.hot}; wanted fewer than --rows {given.rows}")
    refuse_beyond_memory(parser, given.rows * (12 * given.width + 150), "--rows and --width")
    figures: dict[str, Any] = {name: getattr(given, name) for name in ("rows", "width", "hot")}
    figures["state_mb"] = round(given.rows * 4 * (3 * given.width + 1) / 1e6, 1)
    for name, hot_rows in (("in_memory", 0), ("in_file", given.hot)):
        with tempfile.TemporaryDirectory() as folder:
            figures[name] = measured_apart(given.rows, given.width, hot_rows, Path(folder))
    if not given.no_record:
        append("table_memory", figures)
    for name, value in figures.items():
        print(f"{name:12} {value}")


def _warm(width: int, hot_rows: int) -> None:
    """The whole of it once with few rows, so that what is loaded and compiled is there before."""
    with tempfile.TemporaryDirectory() as folder:
        written(WARM_ROWS, width, min(hot_rows, WARM_ROWS // 3), Path(folder))
        read(WARM_ROWS, width, min(hot_rows, WARM_ROWS // 3), Path(folder))


def _end(table: EmbeddingTable) -> None:
    if table.config.cold_file:
        table.close()


def _status() -> dict[str, float]:
    """MB by name."""
    lines = (line.split() for line in Path("/proc/self/status").read_text().splitlines() if line.endswith(" kB"))
    return {words[0].rstrip(":"): int(words[1]) * 1024 / 1e6 for words in lines}


if __name__ == "__main__":
    main()
