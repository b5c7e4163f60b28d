"""The hash table of ids on a CPU against a dict, a search in sorted ids and torchrec's modules.

    python -m benchmarks.hash_table [--rows 1000000 50000000] [--call 65536] [--threads 2] [--no-record]

Each table holds random 64-bit ids; wanted are known ones, all alike often or by Zipf's law with exponent 1.05. All look
up in turn, 16 calls of `--call` ids. A slot is room for one id, the load is how many of them are taken. A table's place
in a row of growing ones is chosen so that the load is the wanted one; no region is fuller than .88. "Random reads" is
the first eight bytes of so many lines of 64 bytes in memory as large as the table. "After torch" is a single call:
torch's threads spin for some milliseconds after an op, on the cores that the table then asks for. One line a run is
appended to benchmarks/results/hash_table.jsonl.
"""

import argparse
import itertools
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.support.id_tables import (
    DictTable,
    SortedTable,
    new_torchrec_sorted,
    remapped,
    torchrec_hashed,
    torchrec_sorted,
)
from benchmarks.support.in_turn import in_turn
from benchmarks.support.number_arguments import MOST_REPEATS, MOST_THREADS, refuse_beyond_memory, whole
from benchmarks.support.random_reads import RandomReads
from benchmarks.support.record import append
from recsys.kernels.hash_table import HashTable
from recsys.kernels.hash_table.numba_index import NumbaIndex

LOADS = (0.5, 0.75, 0.9)
MOST_OF_DICT = 5_000_000  # ids, each some 100 bytes in a dict
QUERIES = 4_000_000
CALLS = 16  # in a row, timed together
ROW_BYTES = 100  # of ids, indexes, and copies that are sorted, at most
AFTER_TORCH = "Zipf: find, one call after torch"


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print a table a size, append to benchmarks/results/hash_table.jsonl."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=whole(), nargs="+", default=[1_000_000, 50_000_000])
    parser.add_argument("--call", type=whole(1, QUERIES), default=65_536, help="ids a call")
    parser.add_argument("--threads", type=whole(1, MOST_THREADS), default=torch.get_num_threads())
    parser.add_argument("--repeats", type=whole(1, MOST_REPEATS), default=10)
    parser.add_argument("--no-record", action="store_true", help="write no line of results")
    options = parser.parse_args(arguments)
    refuse_beyond_memory(parser, ROW_BYTES * max(options.rows), "--rows")
    torch.set_num_threads(options.threads)
    cases = []
    for rows, load in itertools.product(options.rows, LOADS):
        cases.append(measure(rows, load, options.call, options.repeats))
        case = cases[-1]
        print(f"{case['rows']:,} ids, load {case['load']}, {case['bytes_per_id']} bytes an id of index", flush=True)
        for name, figure in case["millions_per_s"].items():
            print(f"  {name:<34} {figure:>8,.1f} M keys/s", flush=True)
    if not options.no_record:
        found = {"threads": options.threads, "call": options.call, "cases": cases}
        print(f"written to {append('hash_table', found)}")


def measure(rows: int, load: float, call: int, repeats: int) -> dict[str, Any]:
    """Millions of keys per second of each table."""
    generator = np.random.default_rng(0)
    slots = NumbaIndex(rows).num_slots
    num_ids = int(slots * load)
    ids = torch.from_numpy(generator.integers(-(2**63), 2**63 - 1, num_ids))
    table, inserting = HashTable(expected=rows), 0.0
    _insert(HashTable(), ids[: 3 * call], call)  # the kernels are compiled, the threads awake
    inserting = _insert(table, ids, call)
    found = {"insert into an empty table": num_ids / inserting}
    if load == LOADS[0]:
        found["insert into a table that grows"] = num_ids / _insert(HashTable(), ids, call)
        found["insert: torchrec sorted"] = num_ids / _insert_torchrec(ids, call)
    runs: dict[str, Callable[[], object]] = {}
    for kind, places in (
        ("uniform", generator.integers(0, num_ids, QUERIES)),
        ("Zipf", zipf_places(generator, num_ids, QUERIES)),
    ):
        wanted = ids[torch.from_numpy(places)]
        runs |= {
            f"{kind}: find": _each(wanted, call, table.find),
            f"{kind}: find_or_insert": _each(wanted, call, table.find_or_insert),
        }
        if load != LOADS[1]:
            continue
        runs |= {
            f"{kind}: sort and searchsorted": _each(wanted, call, SortedTable(ids).find),
            f"{kind}: torchrec sorted": _each(wanted, call, torchrec_sorted(ids)),
            f"{kind}: torchrec hashed, empty": _each(wanted, call, torchrec_hashed(slots)),
        }
        if num_ids <= MOST_OF_DICT:
            runs[f"{kind}: dict"] = _each(wanted, call, DictTable(ids).find)
    assert isinstance(table._index, NumbaIndex)
    reads = RandomReads(table._index.num_bytes, call)
    runs["random reads"] = partial(_times, reads)
    times = in_turn(runs, repeats)
    numbers = torch.zeros(1 << 20)
    after = {"torch": lambda: numbers.add_(1), "find": _each(wanted, call, table.find, calls=1)}
    times[AFTER_TORCH] = in_turn(after, CALLS * repeats)["find"]
    for name, value in times.items():
        found[name] = (1 if name == AFTER_TORCH else CALLS) * call / (value["median"] / 1e3)
    return {
        "rows": num_ids,
        "load_wanted": load,
        "load": round(num_ids / table._index.num_slots, 3),
        "bytes_per_id": round(table._index.num_bytes / num_ids, 1),
        "ms": times,
        "millions_per_s": {name: round(value / 1e6, 2) for name, value in found.items()},
    }


def _insert(table: HashTable, ids: Tensor, call: int) -> float:
    began = time.perf_counter()
    for start in range(0, len(ids), call):
        table.find_or_insert(ids[start : start + call])
    return time.perf_counter() - began


def _insert_torchrec(ids: Tensor, call: int) -> float:
    module = new_torchrec_sorted(len(ids), interval=1)
    most = call * (20 if len(ids) <= MOST_OF_DICT else 4)  # each call sorts the whole table
    began = time.perf_counter()
    for start in range(0, min(len(ids), most), call):
        remapped(module, ids[start : start + call])
    return (time.perf_counter() - began) * len(ids) / min(len(ids), most)


def zipf_places(generator: np.random.Generator, num_ids: int, size: int) -> "np.ndarray[Any, np.dtype[np.int64]]":
    """Places by Zipf's law, exponent 1.05; which id is frequent is left to chance, as the ids are random."""
    drawn = generator.zipf(1.05, 3 * size) - 1
    kept = drawn[drawn < num_ids]
    while len(kept) < size:
        drawn = generator.zipf(1.05, 3 * size) - 1
        kept = np.concatenate([kept, drawn[drawn < num_ids]])
    return kept[:size].astype(np.int64)


def _times(run: Callable[[], None]) -> None:
    for _ in range(CALLS):
        run()


def _each(ids: Tensor, call: int, run: Callable[[Tensor], object], calls: int = CALLS) -> Callable[[], object]:
    """So many calls, each with the next `call` ids."""
    starts = range(0, len(ids) - call + 1, call)
    parts: Iterator[Tensor] = itertools.cycle(ids[start : start + call] for start in starts)
    return lambda: [run(next(parts)) for _ in range(calls)]


if __name__ == "__main__":
    main()
