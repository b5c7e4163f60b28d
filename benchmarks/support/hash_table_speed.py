"""The hash table of ids and its rows on a GPU: billions of keys a second, beside what the GPU's memory gives.

A table of so many slots is filled with random 64-bit ids to a load, and does not grow; then each call has 2^20 ids that
differ, or all that there are. Known ids are spread over all rows. `insert` and `erase` take turns with the same new
ids, a 64th of the slots at most, so that the load stays what it is. Times are the GPU's, the host's waits within a call
included; rates are of the median.

`random lines` reads 64 bytes at random for each key, from memory as large as the index: no look-up in memory that the
cache does not hold can be faster. `sorted ids` is torch.searchsorted and one gather. HKV's figures are those it
publishes for an A100 with 80 GB at loads of .5, .75 and 1: those of another GPU, of half the bandwidth.
"""

import time
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from typing import Any

import torch
from torch import Tensor

from benchmarks.support.device_time import times_in_turn
from benchmarks.support.id_tables import SortedTable
from recsys.kernels.hash_table import HashTable
from recsys.kernels.row_pages import RowOptimizer, RowPages

WIDTHS = (8, 32, 64)
LINE_WORDS = 16  # int32, 64 bytes
MOST_A_CALL = 1 << 20
FULL = 0.99  # a region of the filled table grows from here on: hardly one does at a load of .9
GROWN = 0.75  # at this load the insertion into a table that grows is measured, too
HKV_A100 = {  # README of NVIDIA-Merlin/HierarchicalKV, billions of keys a second at loads of .5, .75 and 1
    "8, 128 M slots": {
        "find, values": (2.470, 2.452, 2.481),
        "find, places": (3.726, 3.374, 1.865),
        "insert_or_assign": (1.093, 1.045, 0.655),
        "find_or_insert": (1.478, 1.335, 0.612),
    },
    "32, 128 M slots": {
        "find, values": (2.272, 2.238, 2.321),
        "find, places": (3.718, 3.369, 1.873),
        "insert_or_assign": (0.961, 0.930, 0.646),
        "find_or_insert": (1.278, 1.177, 0.572),
    },
    "64, 64 M slots": {
        "find, values": (1.982, 1.951, 2.021),
        "find, places": (3.950, 3.545, 1.965),
        "insert_or_assign": (0.834, 0.801, 0.621),
        "find_or_insert": (1.113, 1.033, 0.608),
    },
}


def hash_table_speed(device: torch.device, slots: int, load: float, repeats: int) -> dict[str, Any]:
    """Figures of a table with about so many slots, taken to `load`; `skipped` says why where memory lacks."""
    wanted = _gigabytes(slots, load)
    if device.type == "cuda" and torch.cuda.mem_get_info(device)[0] / 1e9 < wanted:
        return {"skipped": f"needs {wanted:.0f} GB, {torch.cuda.mem_get_info(device)[0] / 1e9:.0f} are free"}
    table = _table(slots, device)
    ids = _random_ids(int(load * _slots_of(table, slots)), device, seed=0)
    call, few = min(MOST_A_CALL, len(ids)), min(MOST_A_CALL, max(1, slots // 64))
    filling = _filled(table, ids, call)
    known = ids[_spread(len(ids), call, device)]
    others = _random_ids(call, device, seed=1)
    new = others[:few]
    lines = _random_lines(table._index.num_bytes, call, device)
    runs: dict[str, Callable[[], object]] = {
        "find": partial(table.find, known),
        "find, unknown": partial(table.find, others),
        "find_or_insert, none new": partial(table.find_or_insert, known),
        "insert": partial(table.find_or_insert, new),
        "erase": partial(table.erase, new),
        "sorted ids": partial(SortedTable(ids).find, known),
        "random lines": lines,
    }
    times = times_in_turn(runs, device, repeats)
    for width in WIDTHS:
        times |= _with_rows(table, known, width, device, repeats)
    found: dict[str, Any] = {
        "ids": len(table),
        "load": round(len(table) / _slots_of(table, slots), 3),
        "bytes_per_id": round(table._index.num_bytes / len(table), 1),
        "call": call,
        "new_a_call": few,
        "fill": filling,
        "g_keys_s": {
            name: round((few if name in ("insert", "erase") else call) / value.median / 1e6, 6)
            for name, value in times.items()
        },
        "ms": {name: asdict(value) for name, value in times.items()},
        "hkv_a100_g_keys_s": HKV_A100,
    }
    if load == GROWN:
        del table, runs
        found["grown"] = _filled(HashTable(device=device), ids, call)
    return found


def _with_rows(table: HashTable, known: Tensor, width: int, device: torch.device, repeats: int) -> dict[str, Any]:
    """The look-up with its rows, and one step of row-wise Adagrad for them."""
    pages = RowPages(width, RowOptimizer("row_wise_adagrad"), device=device)
    pages.grow(table.num_rows)
    gradients = torch.randn(len(known), width, device=device)

    def update() -> None:
        pages.update(table.find(known), gradients, lr=0.01, tick=1)

    return times_in_turn(
        {
            f"find, rows of {width}": lambda: pages.gather(table.find(known)),
            f"find, update rows of {width}": update,
        },
        device,
        repeats,
    )


def _table(slots: int, device: torch.device) -> HashTable:
    """With no more slots than that; on a CPU the index is the CPU's, and its slots are its own."""
    table = HashTable(device=device, expected=0 if device.type == "cuda" else slots)
    if device.type == "cuda":
        from recsys.kernels.hash_table.triton_index import LARGE, SLOTS, UNIT, TritonIndex

        region = LARGE * UNIT * SLOTS
        regions = 1 << max(0, (slots // region).bit_length() - 1)
        table._index = TritonIndex(int(region * FULL) * regions, device, full=(FULL, FULL))
    return table


def _slots_of(table: HashTable, slots: int) -> int:
    return int(getattr(table._index, "num_slots", slots))


def _gigabytes(slots: int, load: float) -> float:
    """The index, the ids thrice and what sorts them, the widest rows with their states and ticks; a tenth for more."""
    ids = load * slots
    return (13 * slots + 8 * 8 * ids + (4 * max(WIDTHS) + 8) * ids) * 1.1 / 1e9


def _filled(table: HashTable, ids: Tensor, call: int) -> dict[str, float]:
    """Put the ids into the table, call by call: how fast, and the longest call."""
    taken = []
    for part in torch.split(ids, call):
        _wait(ids.device)
        began = time.perf_counter()
        table.find_or_insert(part)
        _wait(ids.device)
        taken.append(time.perf_counter() - began)
    return {
        "ids": len(table),
        "g_keys_s": round(len(ids) / sum(taken) / 1e9, 6),
        "median_call_ms": round(sorted(taken)[len(taken) // 2] * 1e3, 3),
        "longest_call_ms": round(max(taken[1:], default=taken[0]) * 1e3, 3),  # the first one compiles
    }


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _random_ids(count: int, device: torch.device, seed: int) -> Tensor:
    generator = torch.Generator(device).manual_seed(seed)
    return torch.randint(-(2**63), 2**63 - 1, (count,), generator=generator, device=device)


def _spread(size: int, count: int, device: torch.device) -> Tensor:
    """So many places that differ, all over the table, in no order."""
    generator = torch.Generator(device).manual_seed(2)
    return torch.randperm(count, generator=generator, device=device) * (size // count)


def _random_lines(num_bytes: int, count: int, device: torch.device) -> Callable[[], Tensor]:
    """Reads so many lines at random of so many bytes."""
    memory = torch.ones(num_bytes // (4 * LINE_WORDS), LINE_WORDS, dtype=torch.int32, device=device)
    generator = torch.Generator(device).manual_seed(3)
    lines = torch.randint(0, len(memory), (count,), generator=generator, device=device)
    if device.type != "cuda":
        return lambda: memory[lines].sum(1)
    from benchmarks.support.triton_lines import sums_of_lines

    return partial(sums_of_lines, memory, lines)
