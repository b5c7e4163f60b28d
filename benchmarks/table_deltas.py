"""What deltas cost: the trainer's pause, bytes and seconds of a file, and a reader's wait while one is applied.

    python -m benchmarks.table_deltas [--rows 1000000] [--width 64] [--changed 100000] [--seconds 10] [--no-record]

Times are by the wall, or by the thread's own clock (cpu): on a machine that is shared the first tell of the neighbours.
Appends a line to benchmarks/results/table_deltas.jsonl.
"""

import argparse
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch

from benchmarks.support.number_arguments import MOST_WIDTH, real, refuse_beyond_memory, whole
from benchmarks.support.record import append
from recsys.models.delta import Delta, DeltaLog, ServingModel, TableDelta, Version
from recsys.models.embedding_table import EmbeddingTable, TableConfig

CHUNK = 20_000  # rows of a cut that are copied between two steps
IDS_A_READ = 200
BATCH = 4096

T = TypeVar("T")


def pauses(num_rows: int, width: int, folder: Path) -> dict[str, Any]:
    """Of a trainer whose every row was touched since the last delta; Adagrad by row."""
    table, log = EmbeddingTable(TableConfig(width=width, expected=num_rows)), DeltaLog(folder, "b")
    log.start({"t": table}, {}, {})
    draw = torch.Generator().manual_seed(0)
    for ids in torch.split(torch.randperm(num_rows, generator=draw), BATCH * 16):
        table.update(table.look_up(ids), torch.randn(len(ids), width, generator=draw), 0.1)
    table.advance()
    began = time.thread_time()
    cut, cut_s = _timed(lambda: log.cut({}, {}))
    cut_cpu_s = time.thread_time() - began
    chunks, cpu, steps, is_done = list[float](), list[float](), list[float](), False
    while not is_done:
        ids = torch.randint(0, num_rows, (BATCH,), generator=draw)
        gradients = torch.randn(BATCH, width, generator=draw)
        rows = table.look_up(ids)
        steps.append(_timed(lambda: table.update(rows, gradients, 0.1))[1])  # noqa: B023  # called at once
        table.advance()
        began = time.thread_time()
        is_done, seconds = _timed(lambda: cut.copy(CHUNK))
        chunks.append(seconds)
        cpu.append(time.thread_time() - began)
    free = [_timed(lambda: table.update(rows, gradients, 0.1))[1] for _ in range(20)]
    delta = cut.delta()
    _, write_s = _timed(lambda: log.write(delta))
    _, base_s = _timed(log.compact)
    _, restore_s = _timed(lambda: DeltaLog(folder, "b").restore({"t": EmbeddingTable(TableConfig(width=width))}))
    return {
        "cut_ms": _ms(cut_s),
        "cut_cpu_ms": _ms(cut_cpu_s),
        "copy_cpu_ms_median": _ms(float(np.median(cpu))),
        "copy_cpu_ms_all": _ms(sum(cpu)),
        "copy_ms_median": _ms(float(np.median(chunks))),
        "copy_ms_most": _ms(max(chunks)),
        "copy_ms_all": _ms(sum(chunks)),
        "chunks": len(chunks),
        "update_ms_while_copied": _ms(float(np.median(steps))),
        "update_ms_most_while_copied": _ms(max(steps)),
        "update_ms_after": _ms(float(np.median(free))),
        "delta_mb": round(delta.num_bytes / 1e6, 1),
        "served_mb": round(delta.without_state().num_bytes / 1e6, 1),
        "write_ms": _ms(write_s),
        "compact_ms": _ms(base_s),
        "restore_ms": _ms(restore_s),
    }


def waits(num_rows: int, width: int, changed: int, seconds: float) -> dict[str, Any]:
    """Of a reader: find and gather of 200 ids, while nothing happens, and while deltas are applied without a break."""
    model, draw = ServingModel("b"), np.random.default_rng(0)

    def delta(sequence: int, ids: "np.ndarray[Any, np.dtype[np.int64]]") -> Delta:
        vectors = torch.from_numpy(draw.standard_normal((len(ids), width), dtype=np.float32))
        table = TableDelta(torch.from_numpy(ids), vectors, torch.empty(0, dtype=torch.int64))
        return Delta("b", 1, sequence, Version(1, sequence - 1) if sequence else None, {"t": table})

    model.apply(delta(0, np.arange(num_rows)))
    wanted = [torch.from_numpy(draw.integers(0, num_rows, IDS_A_READ)) for _ in range(512)]
    is_over, applied = threading.Event(), list[float]()

    def read(until: float) -> list[float]:
        taken = list[float]()
        while not taken or time.perf_counter() < until:
            ids = wanted[len(taken) % len(wanted)]
            taken.append(_timed(lambda: model.version().tables["t"].vectors(ids))[1])  # noqa: B023  # called at once
        return taken

    def follow() -> None:
        sequence, top = 0, num_rows
        while not applied or not is_over.is_set():
            sequence += 1
            ids = np.unique(
                np.append(draw.integers(0, num_rows, changed * 9 // 10), np.arange(top, top + changed // 10))
            )
            top += changed // 10
            made = delta(sequence, ids)
            applied.append(_timed(lambda: model.apply(made))[1])  # noqa: B023  # called at once

    read(time.perf_counter() + 0.2)
    alone = read(time.perf_counter() + seconds)
    thread = threading.Thread(target=follow)
    thread.start()
    beside = read(time.perf_counter() + seconds)
    is_over.set()
    thread.join()
    figures: dict[str, Any] = {"apply_ms": _ms(float(np.median(applied))), "applied": len(applied)}
    for name, taken in (("alone", alone), ("beside", beside)):
        for label, share in (("p50", 50), ("p99", 99), ("p999", 99.9), ("most", 100)):
            figures[f"read_us_{label}_{name}"] = round(float(np.percentile(taken, share)) * 1e6)
    return figures


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=whole(), default=1_000_000)
    parser.add_argument("--width", type=whole(1, MOST_WIDTH), default=64)
    parser.add_argument("--changed", type=whole(), default=100_000, help="rows of a delta that is applied")
    parser.add_argument("--seconds", type=real(0.001, 86_400), default=10.0, help="for which is read, twice")
    parser.add_argument("--no-record", action="store_true", help="write no line of results")
    given = parser.parse_args(arguments)
    if given.changed > given.rows:
        parser.error(f"argument --changed: {given.changed}; wanted at most --rows {given.rows}")
    refuse_beyond_memory(parser, given.rows * (16 * given.width + 100), "--rows and --width")
    figures: dict[str, Any] = {
        **{name: value for name, value in vars(given).items() if name != "no_record"},
        "threads": torch.get_num_threads(),
    }
    with tempfile.TemporaryDirectory() as folder:
        figures |= pauses(given.rows, given.width, Path(folder))
    figures |= waits(given.rows, given.width, given.changed, given.seconds)
    if not given.no_record:
        append("table_deltas", figures)
    for name, value in figures.items():
        print(f"{name:24} {value}")


def _timed(work: Callable[[], T]) -> tuple[T, float]:
    began = time.perf_counter()
    result = work()
    return result, time.perf_counter() - began


def _ms(seconds: float) -> float:
    return round(seconds * 1e3, 2)


if __name__ == "__main__":
    main()
