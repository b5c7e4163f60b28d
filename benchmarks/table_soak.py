"""A table of fixed capacity that never stops: does memory grow?

    python -m benchmarks.table_soak [--minutes 70] [--warm-up 10] [--no-record]

Ever new ids come in; rows are admitted, trained, evicted and expire; deltas are cut, written, compacted and followed by
a server. Prints the resident memory over time, and its slope after the warm-up by least squares, with its standard
error. Exit code 1 where the slope lies above 1 MB/h by more than two errors, or is told so well that two errors are
below 1 MB/h and it is above. A short run tells little: its error says how little. Appends a line to
benchmarks/results/table_soak.jsonl.
"""

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.support.number_arguments import real
from benchmarks.support.record import append
from recsys.models.delta import DeltaLog, ServingModel, deltas_since
from recsys.models.embedding_table import AdmissionConfig, EmbeddingTable, RowOptimizer, TableConfig

CAPACITY, WIDTH, BATCH = 20_000, 32, 1024
CUT_S, COMPACT_CUTS = 1.0, 30
SAMPLE_S, TELL_S = 0.5, 10.0
LEAST_SAMPLES = 3  # a slope with its error is of so many
MOST_MB_AN_HOUR = 1.0

Floats = np.ndarray[Any, np.dtype[np.float64]]


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=real(0.001, 100_000), default=70.0)
    parser.add_argument("--warm-up", type=real(0, 100_000), default=10.0, help="minutes")
    parser.add_argument("--no-record", action="store_true", help="write no line of results")
    given = parser.parse_args(arguments)
    if 60 * (given.minutes - given.warm_up) <= LEAST_SAMPLES * SAMPLE_S:
        parser.error(
            f"--minutes {given.minutes:g} --warm-up {given.warm_up:g}: wanted more than {LEAST_SAMPLES * SAMPLE_S:g} s "
            "after the warm-up"
        )
    with tempfile.TemporaryDirectory() as folder:
        times, sizes, steps = soaked(60 * given.minutes, Path(folder))
    is_late = times > 60 * given.warm_up
    if is_late.sum() < LEAST_SAMPLES:
        parser.error(
            f"--minutes {given.minutes:g}: memory was read {is_late.sum()} times after the warm-up, on a busy machine; "
            f"wanted {LEAST_SAMPLES}, run longer"
        )
    slope, error = slope_of(times[is_late] / 3600, sizes[is_late] / 1e6)
    figures = {
        "minutes": given.minutes,
        "warm_up_minutes": given.warm_up,
        "steps": steps,
        "mb_first": round(float(sizes[is_late][0]) / 1e6, 1),
        "mb_last": round(float(sizes[-1]) / 1e6, 1),
        "mb_an_hour": round(slope, 2),
        "standard_error": round(error, 2),
    }
    if not given.no_record:
        append("table_soak", figures)
    print(figures)
    is_certain = 2 * error < MOST_MB_AN_HOUR
    if not is_certain:
        print(f"two standard errors are {2 * error:.1f} MB/h: too short to tell of {MOST_MB_AN_HOUR} MB/h")
    least = slope if is_certain else slope - 2 * error
    sys.exit(1 if least > MOST_MB_AN_HOUR else 0)


def soaked(seconds: float, folder: Path) -> tuple[Floats, Floats, int]:
    """When (s) and how much memory (bytes) was resident, and the steps that were trained."""
    admission = AdmissionConfig(mode="threshold", threshold=2, capacity=4 * CAPACITY)
    config = TableConfig(
        width=WIDTH,
        optimizer=RowOptimizer("adagrad"),
        capacity=CAPACITY,
        eviction="lru",
        ttl_s=2,
        admission=admission,
    )
    table, log, served = (
        EmbeddingTable(config),
        DeltaLog(folder / "log", "b", published=folder / "out"),
        ServingModel("b"),
    )
    log.start({"t": table}, {}, {})
    draw, began = np.random.default_rng(0), time.monotonic()
    times, sizes = list[float](), list[int]()
    steps = cuts = 0
    now = sampled = told = cut_at = 0.0
    while now < seconds:
        newest = steps * BATCH // 8  # a stream whose ids drift: an eighth of a batch was never seen
        ids = torch.from_numpy(newest - (draw.pareto(1.0, BATCH) * BATCH).astype(np.int64))
        rows = table.look_up(ids)
        table.update(rows, torch.from_numpy(draw.standard_normal((BATCH, WIDTH), dtype=np.float32)), 0.1)
        table.advance()
        steps += 1
        now = time.monotonic() - began
        if now - cut_at >= CUT_S:
            cut_at, cuts = now, cuts + 1
            table.expire()
            log.append({}, {"step": steps})
            if cuts % COMPACT_CUTS == 0:
                log.compact()
            for delta in deltas_since(folder / "out", served.at):
                served.apply(delta)
        if now - sampled >= SAMPLE_S:
            sampled = now
            times.append(now)
            sizes.append(resident_bytes())
        if now - told >= TELL_S:
            told = now
            counts = table.counts
            print(
                f"{now:7.0f} s  {sizes[-1] / 1e6:8.1f} MB  {len(table):7} ids  {steps} steps  {cuts} deltas  "
                f"{counts.evicted} evicted  {counts.expired} expired  {counts.not_admitted} not admitted",
                flush=True,
            )
    return np.array(times), np.array(sizes), steps


def resident_bytes() -> int:
    """Of this process."""
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def slope_of(x: Floats, y: Floats) -> tuple[float, float]:
    """By least squares, and its standard error; of means of blocks, since neighbours in time are alike."""
    blocks = max(3, min(20, len(x) // 5))
    x, y = (np.array([part.mean() for part in np.array_split(values, blocks)]) for values in (x, y))
    x = x - x.mean()
    slope = float((x * y).sum() / (x * x).sum())
    rest = y - y.mean() - slope * x
    return slope, float(np.sqrt((rest * rest).sum() / (blocks - 2) / (x * x).sum()))


if __name__ == "__main__":
    main()
