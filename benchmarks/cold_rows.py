"""A table of which most rows lie in a file against the one that is wholly in memory.

    python -m benchmarks.cold_rows [--rows 1000000] [--share 4] [--width 64] [--call 8192] [--file PATH] [--no-record]

First the rows alone: so many a second are read from the file, written to it, and gathered from memory and put there, a
call of `--call` rows chosen at random. Then training steps of both tables in turn, on the same ids by Zipf's law with
exponent 1.05: look-up, gather, update by row-wise Adagrad; `--share` times as many rows as fit in memory. A hit is a
look-up whose row lay in memory. Before the first step that is timed, both have trained on a million look-ups. Both must
hold the same numbers in the end. The file is as warm as the machine's free memory makes it: beside the times stands how
much of it lies in the page cache. One line a run is appended to benchmarks/results/cold_rows.jsonl.
"""

import argparse
import itertools
import os
import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.support.in_turn import in_turn
from benchmarks.support.number_arguments import MOST_REPEATS, MOST_THREADS, MOST_WIDTH, refuse_beyond_memory, whole
from benchmarks.support.record import append
from recsys.errors import CheckpointError, StorageError
from recsys.models.embedding_table import EmbeddingTable, TableConfig
from recsys.models.embedding_table.cold_rows import ColdRows

WARM = 1_000_000  # look-ups before the first step that is timed
STREAM = 4_000_000
LEAST_CALL = 64  # by fewer the warm-up alone takes an hour
CPU_STEPS = 30


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print, append to benchmarks/results/cold_rows.jsonl."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=whole(2), default=1_000_000)
    parser.add_argument("--share", type=whole(2), default=4, help="rows for each that fits in memory")
    parser.add_argument("--width", type=whole(1, MOST_WIDTH), default=64)
    parser.add_argument("--call", type=whole(LEAST_CALL, STREAM), default=8192, help="ids a step")
    parser.add_argument("--file", type=Path, help="of the cold rows; by default a temporary one")
    parser.add_argument("--threads", type=whole(1, MOST_THREADS), default=torch.get_num_threads())
    parser.add_argument("--repeats", type=whole(1, MOST_REPEATS), default=50)
    parser.add_argument("--no-record", action="store_true", help="write no line of results")
    options = parser.parse_args(arguments)
    most = options.rows - options.rows // options.share
    if options.share > options.rows or options.call > most:
        parser.error(
            f"--rows {options.rows} --share {options.share} --call {options.call}: wanted a row in memory, and a call "
            f"of at most the {most} rows that are in the file"
        )
    refuse_beyond_memory(parser, options.rows * (8 * options.width + 100), "--rows and --width")
    torch.set_num_threads(options.threads)
    with tempfile.TemporaryDirectory() as folder:
        path = options.file or Path(folder) / "rows"
        try:
            found = measure(options.rows, options.share, options.width, options.call, path, options.repeats)
        except (CheckpointError, StorageError) as error:
            parser.error(f"argument --file: {error}")
    for name, value in found["millions_of_rows_per_s"].items():
        print(f"  {name:<34} {value:>8,.2f} M rows/s")
    for name, value in found["ms"].items():
        print(f"  {name:<34} {value['median']:>8,.2f} ms (10th {value['p10']}, 99th {value['p99']})")
    for name, ms in found["cpu_ms"].items():
        print(f"  {name:<34} {ms:>8,.2f} ms of processors")
    print(f"  hit rate {found['hit_rate']}, of distinct ids {found['hit_rate_distinct']}")
    print(f"  {found['mb_in_memory']} MB in memory for {found['mb_all_in_memory']}, {found['file_mb']} MB file, ")
    print(f"  {found['file_share_in_page_cache']} of it in the page cache, load {found['load_average']}")
    if not options.no_record:
        print(f"written to {append('cold_rows', {'threads': options.threads, **found})}")


def measure(rows: int, share: int, width: int, call: int, path: Path, repeats: int) -> dict[str, Any]:
    """Times, hits and bytes of both tables."""
    generator = np.random.default_rng(0)
    ids = torch.from_numpy(generator.permutation(rows).astype(np.int64) * 7919)
    config: dict[str, Any] = {"width": width, "capacity": rows}
    cold = EmbeddingTable(TableConfig(**config, hot_rows=rows // share, cold_file=str(path)))
    hot = EmbeddingTable(TableConfig(**config, expected=rows))
    for table in (hot, cold):
        for some in torch.split(ids, 65_536):
            table.look_up(some)
            table.advance()
    steps = itertools.cycle(torch.split(ids[torch.from_numpy(_zipf(generator, rows, STREAM))], call))
    for some in itertools.islice(steps, WARM // call):
        for table in (hot, cold):
            _step(table, some)

    waiting: dict[int, list[Tensor]] = {0: [], 1: []}

    def step(which: int, table: EmbeddingTable) -> Callable[[], object]:
        def run() -> None:
            if not waiting[which]:  # both get the same ids in turn
                following = next(steps)
                waiting[0].append(following)
                waiting[1].append(following)
            _step(table, waiting[which].pop(0))

        return run

    assert isinstance(cold.pages, ColdRows)
    times = in_turn({"step, all in memory": step(0, hot), "step, cold rows in a file": step(1, cold)}, repeats)
    some_steps = list(itertools.islice(steps, CPU_STEPS))
    cpu = {"step, all in memory": _cpu_ms(hot, some_steps), "step, cold rows in a file": _cpu_ms(cold, some_steps)}
    hits = [_hits(cold, next(steps), hot) for _ in range(20)]
    rates = _rates(cold.pages, hot, generator, call, repeats)
    for some in torch.split(torch.arange(rows), 65_536):
        for ours, theirs in zip(hot.pages.read(some), cold.pages.read(some), strict=True):
            assert torch.equal(ours, theirs)
    gauges = cold.gauges()
    found = {
        "rows": rows,
        "hot_rows": rows // share,
        "width": width,
        "call": call,
        "ms": times,
        "cpu_ms": cpu,
        "hit_rate": round(float(np.mean([hit[0] for hit in hits])), 4),
        "hit_rate_distinct": round(float(np.mean([hit[1] for hit in hits])), 4),
        "millions_of_rows_per_s": rates,
        "mb_in_memory": round(cold.num_bytes / 2**20, 1),
        "mb_all_in_memory": round(hot.num_bytes / 2**20, 1),
        "file_mb": round(gauges["file_bytes"] / 2**20, 1),
        "file_share_in_page_cache": _cached(path),
        "load_average": round(os.getloadavg()[0], 2),
    }
    cold.close()
    return found


def _step(table: EmbeddingTable, ids: Tensor) -> None:
    rows = table.look_up(ids)
    table.update(rows, table.pages.gather(rows), 0.01)
    table.advance()


def _cpu_ms(table: EmbeddingTable, steps: list[Tensor]) -> float:
    """Milliseconds of processors a step, which other work on the machine makes less worse than those of the clock."""
    began = time.process_time()
    for ids in steps:
        _step(table, ids)
    return round((time.process_time() - began) * 1e3 / len(steps), 2)


def _hits(cold: EmbeddingTable, ids: Tensor, hot: EmbeddingTable) -> tuple[float, float]:
    """Shares of the look-ups, and of the different ids, of one more step whose rows lay in memory."""
    assert isinstance(cold.pages, ColdRows)
    rows = cold.index.find(ids)
    lay = cold.pages.places.gather(rows).squeeze(1) >= 0
    lay_once = cold.pages.places.gather(torch.unique(rows)).squeeze(1) >= 0
    for table in (hot, cold):
        _step(table, ids)
    return float(lay.double().mean()), float(lay_once.double().mean())


def _rates(
    pages: ColdRows, hot: EmbeddingTable, generator: np.random.Generator, call: int, repeats: int
) -> dict[str, float]:
    """Millions of rows a second, each row once a call; rows are read in ascending order, as the table does."""
    places = pages.places.gather(torch.arange(len(hot))).squeeze(1)
    cold = (places < 0).nonzero().squeeze(1)
    parts = []
    for _ in range(8):
        rows = cold[torch.from_numpy(generator.choice(len(cold), call, replace=False))].sort().values
        ids = pages.ids.gather(rows).squeeze(1)
        parts.append((rows, ids, pages.file.read(rows, ids), hot.pages.ticks.gather(rows).squeeze(1)))
    turns = itertools.cycle(parts)

    def memory_read() -> None:
        hot.pages.read(next(turns)[0])

    def memory_write() -> None:
        rows, _, held, ticks = next(turns)
        hot.pages.write(rows, held.vectors, held.states, ticks)

    def file_read() -> None:
        rows, ids, _, _ = next(turns)
        pages.file.read(rows, ids)

    def file_write() -> None:
        rows, ids, held, _ = next(turns)
        pages.file.write(rows, ids, held.vectors, held.states, held.sums)

    runs = {"memory: read": memory_read, "file: read": file_read, "memory: write": memory_write}
    times = in_turn({**runs, "file: write": file_write}, repeats)
    return {name: round(call / value["median"] / 1e3, 2) for name, value in times.items()}


def _zipf(generator: np.random.Generator, num_ids: int, size: int) -> "np.ndarray[Any, np.dtype[np.int64]]":
    """Places by Zipf's law, exponent 1.05."""
    kept = np.empty(0, dtype=np.int64)
    while len(kept) < size:
        drawn = generator.zipf(1.05, 3 * size) - 1
        kept = np.concatenate([kept, drawn[drawn < num_ids]])
    return kept[:size].astype(np.int64)


def _cached(path: Path) -> float | None:
    """Share of the file that lies in the page cache, where the tool that tells is there."""
    try:
        answer = subprocess.run(["fincore", "-bn", "-o", "RES,SIZE", path], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    resident, size = map(int, answer.stdout.split())
    return round(resident / size, 3)


if __name__ == "__main__":
    main()
