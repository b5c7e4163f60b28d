"""A training step of the embedding table beside dense rows, its bytes, and its growth.

    python -m benchmarks.embedding_table [--rows 1000000] [--width 64] [--call 65536] [--grown 20000000] [--no-record]

Step: look-up, backward, update by row-wise Adagrad of `--call` known ids by Zipf's law with exponent 1.05.
Beside it, in turn: gather and update of dense rows by numba (benchmarks/support/dense_rows.py, told row numbers, and
without a backward pass), nn.Embedding(sparse=True) with torch's Adagrad, fbgemm's CPU table. Each after a rest, and
each right after an op of torch, whose threads then wait by spinning for some milliseconds.
Bytes: of the table after `--rows` ids came, over those of vectors and optimizer states alone.
Growth: look-ups in training of `--call` ids, from half of `--grown` rows on: all ids new, or 1 in 8, the others known.
Median, worst call and a histogram; beside it, in the same run, as many calls of known ids alone, and what the machine
takes to give 2 MB that are first written, which no table that grows can do without. Calls in which another machine had
the cores of this one are counted, and the worst of the others is told, too. All of it in a process of its own, where no
threads of the rivals wait by spinning.
One line a run is appended to benchmarks/results/embedding_table.jsonl.
"""

import argparse
import gc
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.hash_table import zipf_places
from benchmarks.support.dense_rows import DenseRows
from benchmarks.support.in_turn import in_turn
from benchmarks.support.number_arguments import MOST_REPEATS, MOST_WIDTH, refuse_beyond_memory, whole
from benchmarks.support.record import append
from recsys.kernels.cpu.owed_memory import LARGE_PAGE_BYTES, owed_memory
from recsys.kernels.row_pages.optimizers import NAMES
from recsys.models.embedding_table import CollisionlessEmbedding, EmbeddingTable, RowOptimizer, TableConfig

LR = 0.05
SMALL_PAGE_BYTES = 4096
STEPS = 16  # different calls


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print, append to benchmarks/results/embedding_table.jsonl."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=whole(), default=1_000_000)
    parser.add_argument("--width", type=whole(1, MOST_WIDTH), default=64)
    parser.add_argument("--call", type=whole(8), default=65_536, help="ids a call")
    parser.add_argument("--grown", type=whole(0), default=20_000_000, help="rows at the end of the growth; 0: none")
    parser.add_argument("--grown-width", type=whole(1, MOST_WIDTH), default=64)
    parser.add_argument("--repeats", type=whole(1, MOST_REPEATS), default=40)
    parser.add_argument("--no-record", action="store_true", help="write no line of results")
    options = parser.parse_args(arguments)
    if options.width % 4:
        parser.error(f"argument --width: {options.width}; wanted a multiple of 4, as fbgemm does")
    if options.grown == 1:
        parser.error("argument --grown: 1; wanted 0, or at least 2: growth begins at half of them")
    # Rows with states of four tables; of a call the draws of all steps, vectors and gradients.
    of_rows, of_call = options.rows * (28 * options.width + 100), options.call * (32 * STEPS + 16 * options.width)
    refuse_beyond_memory(parser, of_rows + of_call, "--rows, --width and --call")
    refuse_beyond_memory(parser, options.grown * (4 * options.grown_width + 50), "--grown and --grown-width")
    generator = np.random.default_rng(0)
    found: dict[str, Any] = {"threads": torch.get_num_threads(), "call": options.call, "rows": options.rows}
    found["step_ms"] = steps(options.rows, options.width, options.call, options.repeats, generator)
    for before, of_all in found["step_ms"].items():
        for name, times in of_all.items():
            ratio = of_all["table"]["median"] / times["median"]
            print(f"step after {before:<6} {name:<28} {times['median']:>9.2f} ms   table / it {ratio:.2f}", flush=True)
    found["bytes"] = {name: bytes_of(options.rows, options.width, name, generator) for name in NAMES}
    for name, of_table in found["bytes"].items():
        print(
            f"bytes a row: {name:<21} {of_table['table']:>9.1f}      over bare {of_table['over_bare']:.3f}", flush=True
        )
    if options.grown:
        found["growth"] = []
        for new in (options.call, options.call // 8):
            found["growth"].append(growth(options.grown, options.grown_width, options.call, new, generator))
            print("growth:", {name: value for name, value in found["growth"][-1].items() if name != "histogram"})
    if not options.no_record:
        print(f"written to {append('embedding_table', found)}")


def steps(rows: int, width: int, call: int, repeats: int, generator: np.random.Generator) -> dict[str, Any]:
    """Milliseconds of one step of each, after a rest and right after an op of torch on all threads."""
    ids = torch.from_numpy(generator.integers(-(2**63), 2**63 - 1, rows))
    places = [torch.from_numpy(part) for part in np.split(zipf_places(generator, rows, STEPS * call), STEPS)]
    gradients = torch.randn(call, width)
    runs = {
        "table": table_step(ids, width),
        "numba, dense rows": dense_step(rows, width),
        "nn.Embedding(sparse), Adagrad": torch_step(rows, width),
        "fbgemm, CPU table": fbgemm_step(rows, width),
    }
    number = [0]

    def with_next(run: Callable[[Tensor, Tensor, Tensor], object]) -> Callable[[], object]:
        def stepped() -> object:
            number[0] += 1
            wanted = places[number[0] // len(runs) % STEPS]
            return run(wanted, ids[wanted], gradients)

        return stepped

    numbers = torch.zeros(1 << 20)
    befores: dict[str, Callable[[], object]] = {"rest": lambda: time.sleep(0.01), "torch": lambda: numbers.add_(1)}
    found = {}
    for before, what in befores.items():
        in_order: dict[str, Callable[[], object]] = {}
        for name, run in runs.items():
            in_order |= {f"before {name}": what, name: with_next(run)}
        times = in_turn(in_order, repeats)
        found[before] = {name: times[name] for name in runs}
    return found


def table_step(ids: Tensor, width: int) -> Callable[[Tensor, Tensor, Tensor], object]:
    embedding = CollisionlessEmbedding(TableConfig(width=width, expected=len(ids)))
    for part in torch.split(ids, 65_536):
        embedding(part)
    embedding.step(LR)

    def step(_: Tensor, wanted: Tensor, gradients: Tensor) -> None:
        embedding(wanted).backward(gradients)
        embedding.step(LR)

    return step


def dense_step(rows: int, width: int) -> Callable[[Tensor, Tensor, Tensor], object]:
    dense = DenseRows(rows, width)
    return lambda places, _, gradients: dense.step(places.numpy(), gradients.numpy())


def torch_step(rows: int, width: int) -> Callable[[Tensor, Tensor, Tensor], object]:
    embedding = torch.nn.Embedding(rows, width, sparse=True)
    optimizer = torch.optim.Adagrad(embedding.parameters(), lr=LR)

    def step(places: Tensor, _: Tensor, gradients: Tensor) -> None:
        embedding(places).backward(gradients)
        optimizer.step()
        optimizer.zero_grad()

    return step


def fbgemm_step(rows: int, width: int) -> Callable[[Tensor, Tensor, Tensor], object]:
    from fbgemm_gpu.split_embedding_configs import EmbOptimType
    from fbgemm_gpu.split_table_batched_embeddings_ops_common import EmbeddingLocation, PoolingMode
    from fbgemm_gpu.split_table_batched_embeddings_ops_training import (
        ComputeDevice,
        SplitTableBatchedEmbeddingBagsCodegen,
    )

    embedding = SplitTableBatchedEmbeddingBagsCodegen(
        [(rows, width, EmbeddingLocation.HOST, ComputeDevice.CPU)],
        optimizer=EmbOptimType.EXACT_ROWWISE_ADAGRAD,
        learning_rate=LR,
        pooling_mode=PoolingMode.SUM,  # of one id a bag: its path without pooling takes twice as long
    )

    def step(places: Tensor, _: Tensor, gradients: Tensor) -> None:
        embedding(places, torch.arange(len(places) + 1)).backward(gradients)

    return step


def bytes_of(rows: int, width: int, name: Any, generator: np.random.Generator) -> dict[str, float]:
    """Bytes a row of a table that grew to so many ids, and of vectors and states alone."""
    table = EmbeddingTable(TableConfig(width=width, optimizer=RowOptimizer(name)))
    for part in torch.split(torch.from_numpy(generator.integers(-(2**63), 2**63 - 1, rows)), 65_536):
        table.look_up(part)
    bare = 4 * (width + table.pages.state_width)
    return {
        "table": round(table.num_bytes / rows, 1),
        "index": round(table.index.num_bytes / rows, 1),
        "bare": bare,
        "over_bare": round(table.num_bytes / rows / bare, 4),
    }


def growth(rows: int, width: int, call: int, new: int, generator: np.random.Generator) -> dict[str, Any]:
    """Milliseconds of calls of which `new` ids are new, while the table grows from half of `rows` to all."""
    table = EmbeddingTable(TableConfig(width=width, optimizer=RowOptimizer("row_wise_adagrad")))
    times, stolen, last_line = [], [], time.perf_counter()
    gc.collect()
    gc.disable()
    known = torch.from_numpy(generator.integers(-(2**63), 2**63 - 1, rows // 2))
    for part in torch.split(known, call):
        table.look_up(part)
    for start in range(rows // 2, rows, new):
        ids = torch.from_numpy(generator.integers(-(2**63), 2**63 - 1, call))
        ids[new:] = known[torch.from_numpy(generator.integers(0, len(known), call - new))]
        stolen_before, began = stolen_ticks(), time.perf_counter()
        table.look_up(ids)
        times.append((time.perf_counter() - began) * 1e3)
        stolen.append(stolen_ticks() - stolen_before)
        if time.perf_counter() - last_line > 10:
            last_line = time.perf_counter()
            print(f"growth: {start:,} of {rows:,} rows", file=sys.stderr)
    known_times = []
    for _ in times:
        ids = known[torch.from_numpy(generator.integers(0, len(known), call))]
        began = time.perf_counter()
        table.look_up(ids)
        known_times.append((time.perf_counter() - began) * 1e3)
    gc.enable()
    counts, edges = np.histogram(times, bins=np.arange(0, max(times) + 1, 0.5))
    return {
        "rows": rows,
        "width": width,
        "new_ids": new,
        "calls": len(times),
        "median_ms": round(float(np.median(times)), 2),
        "p99_ms": round(float(np.percentile(times, 99)), 2),
        "worst_ms": round(max(times), 2),
        "bytes_over_bare": round(table.num_bytes / len(table) / (4 * (width + table.pages.state_width)), 4),
        "worst_over_median_ms": round(max(times) - float(np.median(times)), 2),
        "calls_stolen_from": int(sum(ticks > 0 for ticks in stolen)),
        "worst_over_median_else_ms": round(
            max(took for took, ticks in zip(times, stolen, strict=True) if not ticks) - float(np.median(times)), 2
        ),
        "over_5_ms": int(sum(found > np.median(times) + 5 for found in times)),
        "known_only": _middle_and_worst(known_times),
        "first_written_2_mb": _middle_and_worst(first_writes(LARGE_PAGE_BYTES, len(times))),
        "histogram": {f"{edge:.1f}": int(count) for edge, count in zip(edges[:-1], counts, strict=True) if count},
    }


def stolen_ticks() -> int:
    """Hundredths of a second in which this machine was ready, and another one had its cores; 0 where nobody counts."""
    try:
        with open("/proc/stat", encoding="ascii") as file:
            return int(file.readline().split()[8])
    except (OSError, IndexError):
        return 0


def first_writes(num_bytes: int, times: int) -> list[float]:
    """Milliseconds until so many bytes of memory are there that nobody wrote to before."""
    memory, found = owed_memory(num_bytes * times), []
    for start in range(0, len(memory), num_bytes):
        began = time.perf_counter()
        memory[start : start + num_bytes : SMALL_PAGE_BYTES] = 0
        found.append((time.perf_counter() - began) * 1e3)
        time.sleep(1e-3)
    return found


def _middle_and_worst(times: list[float]) -> dict[str, float]:
    return {"median_ms": round(float(np.median(times)), 2), "worst_ms": round(max(times), 2)}


if __name__ == "__main__":
    main()
