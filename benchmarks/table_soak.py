"""A table of fixed capacity that never stops: does memory grow?

    python -m benchmarks.table_soak [--minutes 70] [--warm-up 10] [--compact-cuts 30] [--no-record]

Ever new ids come in; rows are admitted, trained, evicted and expire; deltas are cut, written, compacted and followed by
a server. Resident memory is read twice a second, and every half minute once more after the allocator gave back what is
free: what it keeps for later goes up and down by tens of megabytes, and hides what grows. Prints both slopes after the
warm-up by least squares, with its standard error, and the medians of each tenth of that time, which tell a step from a
slope. Exit code 1 where the slope of what is held lies above 1 MB/h by more than two errors, or is told so well that
two errors are below 1 MB/h and it is above. A short run tells little: its error says how little. Appends a line to
benchmarks/results/table_soak.jsonl.
"""

import argparse
import ctypes
import os
import sys
import tempfile
import time
from array import array
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.support.number_arguments import real, whole
from benchmarks.support.record import append
from recsys.models.delta import DeltaLog, ServingModel, deltas_since
from recsys.models.embedding_table import AdmissionConfig, EmbeddingTable, RowOptimizer, TableConfig

CAPACITY, WIDTH, BATCH = 20_000, 32, 1024
CUT_S = 1.0
SAMPLE_S, TELL_S = 0.5, 10.0
LEAST_SAMPLES = 3  # a slope with its error is of so many
MOST_MB_AN_HOUR = 1.0
C_LIBRARY = ctypes.CDLL(None)

Floats = np.ndarray[Any, np.dtype[np.float64]]


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=real(0.001, 100_000), default=70.0)
    parser.add_argument("--warm-up", type=real(0, 100_000), default=10.0, help="minutes")
    parser.add_argument("--compact-cuts", type=whole(1, 100_000), default=30, help="a compaction for so many cuts")
    parser.add_argument("--no-record", action="store_true", help="write no line of results")
    given = parser.parse_args(arguments)
    least = LEAST_SAMPLES * given.compact_cuts * CUT_S
    if 60 * (given.minutes - given.warm_up) <= least:
        parser.error(
            f"--minutes {given.minutes:g} --warm-up {given.warm_up:g}: wanted more than {least:g} s after the warm-up"
        )
    with tempfile.TemporaryDirectory() as folder:
        resident, held, steps = soaked(60 * given.minutes, given.compact_cuts, Path(folder))
    figures: dict[str, Any] = {"minutes": given.minutes, "warm_up_minutes": given.warm_up, "steps": steps}
    for name, samples in (("resident", resident), ("held", held)):
        late = samples.after(60 * given.warm_up)
        if len(late.times) < LEAST_SAMPLES:
            parser.error(
                f"--minutes {given.minutes:g}: memory was read {len(late.times)} times after the warm-up; "
                f"wanted {LEAST_SAMPLES}, run longer"
            )
        slope, error = slope_of(np.array(late.times) / 3600, np.array(late.sizes) / 1e6)
        figures[name] = {
            "mb_first": round(late.sizes[0] / 1e6, 1),
            "mb_last": round(late.sizes[-1] / 1e6, 1),
            "mb_an_hour": round(slope, 2),
            "standard_error": round(error, 2),
            "mb_by_tenths": [round(size / 1e6, 1) for size in medians(late.sizes)],
        }
    if not given.no_record:
        append("table_soak", figures)
    print(figures)
    is_certain = 2 * error < MOST_MB_AN_HOUR
    if not is_certain:
        print(f"two standard errors are {2 * error:.1f} MB/h: too short to tell of {MOST_MB_AN_HOUR} MB/h")
    least = slope if is_certain else slope - 2 * error
    sys.exit(1 if least > MOST_MB_AN_HOUR else 0)


@dataclass(frozen=True)
class Samples:
    """Bytes over time (s), in as little memory as they can be: what is measured is this process."""

    times: "array[float]" = field(default_factory=lambda: array("d"))
    sizes: "array[float]" = field(default_factory=lambda: array("d"))

    def add(self, time_s: float, size: int) -> None:
        """One more."""
        self.times.append(time_s)
        self.sizes.append(size)

    def after(self, time_s: float) -> "Samples":
        """Those that came later."""
        first = bisect_right(self.times, time_s)
        return Samples(self.times[first:], self.sizes[first:])


def soaked(seconds: float, compact_cuts: int, folder: Path) -> tuple[Samples, Samples, int]:
    """What was resident, what was after all that is free was given back, and the steps that were trained."""
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
    resident, held = Samples(), Samples()
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
            is_compacted = cuts % compact_cuts == 0
            if is_compacted:
                log.compact()
            for delta in deltas_since(folder / "out", served.at):
                served.apply(delta)
            if is_compacted:
                give_back()
                held.add(now, resident_bytes())
        if now - sampled >= SAMPLE_S:
            sampled = now
            resident.add(now, resident_bytes())
        if now - told >= TELL_S:
            told = now
            counts = table.counts
            print(
                f"{now:7.0f} s  {resident.sizes[-1] / 1e6:8.1f} MB  {len(table):7} ids  {steps} steps  {cuts} deltas  "
                f"{counts.evicted} evicted  {counts.expired} expired  {counts.not_admitted} not admitted",
                flush=True,
            )
    return resident, held, steps


def give_back() -> None:
    """Have the C library give the machine what it holds free."""
    if hasattr(C_LIBRARY, "malloc_trim"):  # of glibc
        C_LIBRARY.malloc_trim(0)


def resident_bytes() -> int:
    """Of this process."""
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def medians(sizes: Sequence[float], parts: int = 10) -> list[float]:
    """Of so many parts, or fewer, in their order: a step is told from a slope by them."""
    return [float(np.median(part)) for part in np.array_split(np.array(sizes), min(parts, len(sizes)))]


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
