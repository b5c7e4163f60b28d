# mypy: allow-untyped-decorators
"""The kernels of the index on a CPU: look-up, insertion, claim, erasure, and the growth of a region.

A bucket is one cache line: five keys, five row fields, and how many keys went past it because it was full. A region is
two or three chunks of 128 buckets for all ids whose hash begins alike; a directory finds it. A search ends at a bucket
that nobody went past, so nothing marks where an id was erased, and every int64 may be an id.

    bucket (64 bytes)     id 0 .. id 4 (int64) | field 0 .. field 4 (int32) | passed (int32)
    field                 0: empty    row + 1: taken    -(i + 1): claimed by the i-th id of the call that is running
    directory entry       addresses of the region's chunks, 3 | its number * 4 + how many chunks it has
    cell                  where the directory of an id's part begins | how many bits of its hash lead through it

The first bits of a hash say which cell; some cells are one part with a directory of its own. Parts differ in width, so
that their regions, which all fill alike, do not all grow at once. The lowest bits say which bucket of the region.

All kernels stand in this file: numba looks at it alone to see whether what it compiled is of this source.
"""

from typing import Any

import numpy as np
from numba import njit

from recsys.kernels.cpu.memory import (
    load_i32,
    load_i64,
    lowest_bit,
    matches,
    prefetch,
    prefetch_to_write,
    store_i32,
    store_i64,
    zeros,
)

Ids = np.ndarray[Any, np.dtype[np.int64]]
Counts = np.ndarray[Any, np.dtype[np.int32]]

SLOTS, BUCKET_BYTES, FIELDS_AT, PASSED_AT = 5, 64, 40, 60
KEYS = (1 << SLOTS) - 1  # of the eight int64 of a bucket, those that are keys
TAIL_AT, FIRST_FIELD, LAST = 32, 2, 7  # of the eight int32 from byte 32 on: where the fields begin, and `passed`
LOG_CELLS = 7
LOG_CHUNK, CHUNK = 7, 128  # buckets
SMALL, LARGE, META = 2, 3, 3  # chunks of a region; where an entry says how many
ENTRY_BYTES = 8 * (META + 1)
LEAST_FILL, MOST_FILL = 0.84, 0.94
DONE, NO_MEMORY, NO_DEPTH = 0, 1, 2
WINDOW = 32  # ids whose buckets are asked for before the first is read
FIND_WINDOW, MOST_ROUNDS = 128, 8  # the same of a look-up, and buckets that are looked at together
PENDING = -(2**62)  # an id's region is as full as it may be

_options = {"nogil": True, "cache": True, "boundscheck": False}


@njit(inline="always", **_options)
def mixed(key: Any) -> Any:
    """64 bits in which those of the id are mixed: the finaliser of splitmix64."""
    h = np.uint64(key) + np.uint64(0x9E3779B97F4A7C15)
    h = (h ^ (h >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    h = (h ^ (h >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return h ^ (h >> np.uint64(31))


@njit(inline="always", **_options)
def entry_of(h: Any, cells: Any) -> Any:
    """Number of the directory entry of a hash."""
    cell = np.int64(h >> np.uint64(64 - LOG_CELLS))
    rest = (h << np.uint64(LOG_CELLS)) >> np.uint64(1)
    return load_i64(cells + 16 * cell) + np.int64(rest >> np.uint64(63 - load_i64(cells + 16 * cell + 8)))


@njit(inline="always", **_options)
def cell_of(key: Any) -> Any:
    """Number of an id's cell."""
    return np.int64(mixed(key) >> np.uint64(64 - LOG_CELLS))


@njit(inline="always", **_options)
def own_of(h: Any, num_buckets: Any) -> Any:
    """The bucket of its region where an id is looked for first."""
    return np.int64(((h & np.uint64(0xFFFFFFFF)) * np.uint64(num_buckets)) >> np.uint64(32))


@njit(inline="always", **_options)
def meta_of(entries: Any, e: Any) -> Any:
    """Number of a region * 4 + its chunks."""
    return load_i64(entries + ENTRY_BYTES * e + 8 * META)


@njit(inline="always", **_options)
def buckets_of(entries: Any, e: Any) -> Any:
    """Buckets of a region."""
    return (meta_of(entries, e) & 3) << LOG_CHUNK


@njit(inline="always", **_options)
def bucket_at(entries: Any, e: Any, at: Any) -> Any:
    """Address of a bucket of a region."""
    return load_i64(entries + ENTRY_BYTES * e + 8 * (at >> LOG_CHUNK)) + (at & (CHUNK - 1)) * BUCKET_BYTES


@njit(inline="always", **_options)
def address_from(key: Any, entries: Any, e: Any, at: Any) -> Any:
    """Address of the id's field, 0 if it is not there, looked for from a bucket of its region on."""
    num_buckets = buckets_of(entries, e)
    if at == num_buckets:
        at = 0
    for _ in range(num_buckets):
        bucket = bucket_at(entries, e, at)
        same = matches(bucket, key) & KEYS
        while same != 0:  # more than once only where the key of an id that was erased was left
            field = bucket + FIELDS_AT + 4 * lowest_bit(same)
            if load_i32(field) != 0:
                return field
            same &= same - 1
        if load_i32(bucket + PASSED_AT) == 0:
            return 0
        at += 1
        if at == num_buckets:
            at = 0
    return 0


@njit(inline="always", **_options)
def field_from(key: Any, entries: Any, e: Any, at: Any) -> Any:
    """The id's field, 0 if it is not there, looked for from a bucket of its region on."""
    address = address_from(key, entries, e, at)
    return np.int32(0) if address == 0 else load_i32(address)


@njit(inline="always", **_options)
def placed(key: Any, field: Any, entries: Any, e: Any, own: Any) -> Any:
    """Address of the first empty field for an id that is not there, after it was written."""
    num_buckets = buckets_of(entries, e)
    at = own
    while True:
        bucket = bucket_at(entries, e, at)
        empty = (zeros(bucket + TAIL_AT) >> FIRST_FIELD) & KEYS
        if empty != 0:
            slot = lowest_bit(empty)
            store_i64(bucket + 8 * slot, key)
            store_i32(bucket + FIELDS_AT + 4 * slot, field)
            return bucket + FIELDS_AT + 4 * slot
        store_i32(bucket + PASSED_AT, load_i32(bucket + PASSED_AT) + np.int32(1))
        at += 1
        if at == num_buckets:
            at = 0


@njit(inline="always", **_options)
def looked_at(bucket: Any, key: Any) -> Any:
    """The id's field in a bucket, 0 if it is not seen there, and whether (0 or 1) it may stand there or further on.

    Without branches: the processor would guess them, and wait.
    """
    same = matches(bucket, key) & KEYS
    field = load_i32(bucket + FIELDS_AT + 4 * lowest_bit(same | 1 << SLOTS)) * np.int32(same != 0)
    may_be = (load_i32(bucket + PASSED_AT) != 0) | (same & (same - 1) != 0)
    return field, np.int64(field == 0) & np.int64(may_be)


@njit(**_options)
def find(keys: Ids, start: int, stop: int, cells: int, entries: int, rows: Ids) -> None:
    """Write the row of each id of a part of the call, or -1.

    Ids that are not in their own bucket are left for a further round, for which the next buckets are asked for.
    """
    places = np.empty(FIND_WINDOW, np.int64)
    at = np.empty(FIND_WINDOW, np.int64)
    buckets = np.empty(FIND_WINDOW, np.int64)
    left = np.empty(FIND_WINDOW + 1, np.int64)
    for first in range(start, stop, FIND_WINDOW):
        size = min(FIND_WINDOW, stop - first)
        for j in range(size):
            h = mixed(keys[first + j])
            e = entry_of(h, cells)
            places[j], at[j] = e, own_of(h, buckets_of(entries, e))
            buckets[j] = bucket_at(entries, e, at[j])
            prefetch(buckets[j])
        count = 0
        for j in range(size):
            field, is_left = looked_at(buckets[j], keys[first + j])
            rows[first + j] = field - 1
            left[count] = j
            count += is_left
            prefetch(buckets[j] + is_left * BUCKET_BYTES)
        for _ in range(MOST_ROUNDS):
            more = 0
            for n in range(count):
                j = left[n]
                key, e = keys[first + j], places[j]
                same = matches(buckets[j], key) & KEYS
                if same & (same - 1) != 0:  # the key of an id that was erased is there, too
                    rows[first + j] = field_from(key, entries, e, at[j]) - 1
                    continue
                at[j] = (at[j] + 1) * np.int64(at[j] + 1 != buckets_of(entries, e))
                buckets[j] = bucket_at(entries, e, at[j])
                field, is_left = looked_at(buckets[j], key)
                rows[first + j] = field - 1
                left[more] = j
                more += is_left
                prefetch(buckets[j] + is_left * BUCKET_BYTES)
            count = more
        for n in range(count):
            j = left[n]
            rows[first + j] = field_from(keys[first + j], entries, places[j], at[j]) - 1


@njit(**_options)
def unknown_of(found: Ids, unknown: Ids) -> int:
    """Write the places of ids that were not found; how many there are."""
    count = 0
    for i in range(found.size):
        if found[i] < 0:
            unknown[count] = i
            count += 1
    return count


@njit(**_options)
def count_up(todo: Ids) -> None:
    """Write 0, 1, 2, …"""
    for n in range(todo.size):
        todo[n] = n


@njit(**_options)
def claim(
    keys: Ids,
    todo: Ids,
    part: int,
    parts: int,
    cells: int,
    entries: int,
    loads: Counts,
    claimed: Ids,
) -> tuple[int, int]:
    """Find or claim those of the ids keys[todo] whose regions are this part's: how many, and how many pend.

    A thread owns every parts-th region and takes its ids in the order of the call.

    Writes claimed[0]: where the id stands in `todo`. claimed[1]: a row, -(j + 2) for an id that stands first at place j
    of the call and was not there, or PENDING where its region is full. claimed[2]: the address of a claimed id's field.
    """
    window = np.empty(WINDOW, np.int64)
    places = np.empty(WINDOW, np.int64)
    own = np.empty(WINDOW, np.int64)
    fill, pending, count = 0, 0, 0
    for number in range(todo.size + 1):
        if number < todo.size:
            h = mixed(keys[todo[number]])
            e = entry_of(h, cells)
            if (meta_of(entries, e) >> 2) % parts != part:
                continue
            window[fill], places[fill], own[fill] = number, e, own_of(h, buckets_of(entries, e))
            prefetch_to_write(bucket_at(entries, e, own[fill]))
            fill += 1
            if fill < WINDOW:
                continue
        for j in range(fill):
            i, e = todo[window[j]], places[j]
            key, bucket = keys[i], bucket_at(entries, e, own[j])
            tail = zeros(bucket + TAIL_AT)
            empty = (tail >> FIRST_FIELD) & KEYS
            same = matches(bucket, key) & KEYS & ~empty
            field = np.int32(0)
            if same != 0:
                field = load_i32(bucket + FIELDS_AT + 4 * lowest_bit(same))
            elif tail >> LAST == 0:
                field = field_from(key, entries, e, own[j] + np.int64(same == 0))
            claimed[0, count] = window[j]
            claimed[1, count] = field - 1
            count += 1
            if field != 0:
                continue
            region = meta_of(entries, e) >> 2
            if loads[region, 0] >= loads[region, 1]:
                claimed[1, count - 1] = PENDING
                loads[region, 2] += 1
                pending += 1
                continue
            loads[region, 0] += 1
            claimed[1, count - 1] = -(i + 2)
            if empty == 0:
                claimed[2, count - 1] = placed(key, np.int32(-(i + 1)), entries, e, own[j])
                continue
            slot = lowest_bit(empty)
            claimed[2, count - 1] = bucket + FIELDS_AT + 4 * slot
            store_i64(bucket + 8 * slot, key)
            store_i32(bucket + FIELDS_AT + 4 * slot, np.int32(-(i + 1)))
        fill = 0
    return count, pending


@njit(**_options)
def merged(claimed: Ids, count: int, todo: Ids, start: int, stop: int, found: Ids, places: Ids) -> None:
    """Put what a thread claimed of todo[start:stop] at its places in the call."""
    numbers = claimed[0, :count]
    for n in range(np.searchsorted(numbers, start), np.searchsorted(numbers, stop)):
        i = todo[numbers[n]]
        found[i] = claimed[1, n]
        places[i] = claimed[2, n]


@njit(**_options)
def firsts_of(found: Ids, firsts: Ids) -> int:
    """Write the places where a claimed id stands first; how many there are."""
    count = 0
    for i in range(found.size):
        if found[i] == -(i + 2):
            firsts[count] = i
            count += 1
    return count


@njit(**_options)
def settle(firsts: Ids, new_rows: Ids, places: Ids, found: Ids) -> None:
    """Write the rows of claimed ids to the table and to the places where they stand first; row -1 there alone."""
    for n in range(firsts.size):
        i = firsts[n]
        found[i] = new_rows[n]
        if new_rows[n] >= 0:
            store_i32(places[i], np.int32(new_rows[n] + 1))


@njit(**_options)
def resolved(found: Ids) -> None:
    """Put the rows of claimed ids in the places where they stand again."""
    for i in range(found.size):
        if found[i] < -1:
            found[i] = found[-found[i] - 2]


@njit(**_options)
def erase(keys: Ids, cells: int, entries: int, loads: Counts, rows: Ids) -> None:
    """Write the row that each id had, or -1, and forget the ids."""
    for i in range(keys.size):
        h = mixed(keys[i])
        e = entry_of(h, cells)
        num_buckets = buckets_of(entries, e)
        at = own_of(h, num_buckets)
        address = address_from(keys[i], entries, e, at)
        rows[i] = -1
        if address == 0:
            continue
        rows[i] = load_i32(address) - 1
        store_i32(address, np.int32(0))
        loads[meta_of(entries, e) >> 2, 0] -= 1
        while bucket_at(entries, e, at) != address & ~np.int64(BUCKET_BYTES - 1):
            passed = bucket_at(entries, e, at) + PASSED_AT
            store_i32(passed, load_i32(passed) - np.int32(1))
            at += 1
            if at == num_buckets:
                at = 0


@njit(**_options)
def moved(old: Any, e: int, new: Any, bit: int, places: Ids) -> None:
    """Move the ids of the region old[e] to new[0], or to new[0] and new[1], which are empty and have room.

    The bit of the hash says where an id goes, counted from 1 behind those of the cell; 0 is none. The old chunks are
    left empty, to be used again. Claimed ids have new places. How full the new buckets are is counted aside.
    """
    fills = np.zeros((2, LARGE << LOG_CHUNK), np.int8)
    for b in range(buckets_of(old, e)):
        bucket = bucket_at(old, e, b)
        taken = ~(zeros(bucket + TAIL_AT) >> FIRST_FIELD) & KEYS
        while taken != 0:
            slot = lowest_bit(taken)
            taken &= taken - 1
            field, key = load_i32(bucket + FIELDS_AT + 4 * slot), load_i64(bucket + 8 * slot)
            h = mixed(key)
            side = np.int64(h >> np.uint64(64 - LOG_CELLS - bit)) & np.int64(bit != 0)
            num_buckets = buckets_of(new, side)
            at = own_of(h, num_buckets)
            while fills[side, at] == SLOTS:
                passed = bucket_at(new, side, at) + PASSED_AT
                store_i32(passed, load_i32(passed) + np.int32(1))
                at += 1
                if at == num_buckets:
                    at = 0
            to = bucket_at(new, side, at)
            store_i64(to + 8 * fills[side, at], key)
            store_i32(to + FIELDS_AT + 4 * fills[side, at], field)
            if field < 0:
                places[-field - 1] = to + FIELDS_AT + 4 * fills[side, at]
            fills[side, at] += 1
        for at in range(bucket + FIELDS_AT, bucket + BUCKET_BYTES, 8):
            store_i64(at, 0)


@njit(inline="always", **_options)
def limit_of(region: Any, chunks: Any) -> Any:
    """How many ids a region may hold: a share of its slots that differs a little from region to region."""
    share = np.float64(mixed(region) >> np.uint64(11)) / 2.0**53
    return np.int32(chunks * CHUNK * SLOTS * (LEAST_FILL + (MOST_FILL - LEAST_FILL) * share))


@njit(**_options)
def seconds_of(entries: int, e: int, bit: int) -> int:
    """How many ids of a region have a 1 at this bit of their hash, counted from 1 behind those of the cell."""
    count = 0
    for b in range(buckets_of(entries, e)):
        bucket = bucket_at(entries, e, b)
        taken = ~(zeros(bucket + TAIL_AT) >> FIRST_FIELD) & KEYS
        while taken != 0:
            h = mixed(load_i64(bucket + 8 * lowest_bit(taken)))
            taken &= taken - 1
            count += int(h >> np.uint64(64 - LOG_CELLS - bit)) & 1
    return count


@njit(**_options)
def grow_region(
    e: int,
    cell: int,
    wanted: int,
    cells: int,
    entries: int,
    local_depth: Counts,
    loads: Counts,
    free: Ids,
    sizes: Ids,
    places: Ids,
) -> int:
    """Make room for `wanted` ids in the region of a directory entry; why it could not.

    A region of SMALL size becomes LARGE, if that is enough; else it becomes two, SMALL where their ids have room. New
    chunks come from the stack free[:sizes[0]], and the old ones go there. sizes[1] is the number of regions.
    """
    region, chunks = meta_of(entries, e) >> 2, meta_of(entries, e) & 3
    base, depth, shared = load_i64(cells + 16 * cell), load_i64(cells + 16 * cell + 8), local_depth[region]
    width = 1 << (depth - shared)
    first = base + (e - base) // width * width
    is_split = chunks == LARGE or wanted > limit_of(region, LARGE)
    if sizes[0] < 2 * LARGE or sizes[1] == local_depth.size:
        return NO_MEMORY
    if is_split and width == 1:
        return NO_DEPTH
    other, bit = sizes[1], shared + 1 if is_split else 0
    new = np.zeros((2, META + 1), np.int64)
    of_side = np.zeros(2, np.int64)
    of_side[1] = seconds_of(entries, e, bit) if is_split else 0
    of_side[0] = loads[region, 0] - of_side[1]
    for side in range(1 + is_split):
        number = other if side else region
        size = LARGE if not is_split or of_side[side] > limit_of(number, SMALL) else SMALL
        for n in range(size):
            sizes[0] -= 1
            new[side, n] = free[sizes[0]]
        new[side, META] = number << 2 | size
        loads[number, 0], loads[number, 1], loads[number, 2] = of_side[side], limit_of(number, size), 0
    moved(entries, e, new.ctypes.data, bit, places)
    for n in range(chunks):
        free[sizes[0] + n] = load_i64(entries + ENTRY_BYTES * e + 8 * n)
    sizes[0] += chunks
    for n in range(width):
        for part in range(META + 1):
            store_i64(entries + ENTRY_BYTES * (first + n) + 8 * part, new[np.int64(is_split and n >= width // 2), part])
    if is_split:
        sizes[1] += 1
        local_depth[region] = local_depth[other] = shared + 1
    return DONE


@njit(**_options)
def grow(
    keys: Ids,
    todo: Ids,
    start: int,
    cells: int,
    entries: int,
    local_depth: Counts,
    loads: Counts,
    free: Ids,
    sizes: Ids,
    places: Ids,
) -> tuple[int, int]:
    """Make room in the regions of the ids keys[todo[start:]]; the place where it stopped, and why."""
    for n in range(start, todo.size):
        h = mixed(keys[todo[n]])
        e, cell = entry_of(h, cells), cell_of(keys[todo[n]])
        region = meta_of(entries, e) >> 2
        wanted = loads[region, 0] + loads[region, 2]
        if wanted <= loads[region, 1]:
            continue
        why = grow_region(e, cell, wanted, cells, entries, local_depth, loads, free, sizes, places)
        if why != DONE:
            return n, why
    return todo.size, DONE


@njit(**_options)
def insert(
    keys: Ids,
    todo: Ids,
    start: int,
    cells: int,
    entries: int,
    local_depth: Counts,
    loads: Counts,
    free: Ids,
    sizes: Ids,
    free_rows: Ids,
    next_row: int,
    room: int,
    found: Ids,
    new: Ids,
    progress: Ids,
) -> tuple[int, int]:
    """Find keys[todo[start:]] or give them rows at once, in the order of the call; the place where it stopped, and why.

    The k-th new id gets the k-th last of the free rows, after these the rows from `next_row` on; from the room-th on
    they get -1. new[:progress[0]] are the places of new ids, progress[1] counts those that were refused.
    """
    places = np.empty(WINDOW, np.int64)
    buckets = np.empty(WINDOW, np.int64)
    own = np.empty(WINDOW, np.int64)
    no_places = np.empty(0, np.int64)
    count = progress[0]
    at = start
    while at < todo.size:
        size = min(WINDOW, todo.size - at)
        for j in range(size):
            h = mixed(keys[todo[at + j]])
            e = entry_of(h, cells)
            places[j], own[j] = e, own_of(h, buckets_of(entries, e))
            buckets[j] = bucket_at(entries, e, own[j])
            prefetch_to_write(buckets[j])
        for j in range(size):
            i, e, bucket = todo[at + j], places[j], buckets[j]
            key = keys[i]
            tail = zeros(bucket + TAIL_AT)
            empty = (tail >> FIRST_FIELD) & KEYS
            same = matches(bucket, key) & KEYS & ~empty
            field = np.int32(0)
            if same != 0:
                field = load_i32(bucket + FIELDS_AT + 4 * lowest_bit(same))
            elif tail >> LAST == 0:
                field = field_from(key, entries, e, own[j] + np.int64(same == 0))
            if field != 0:
                found[i] = field - 1
                continue
            if count >= room:
                found[i] = -1
                progress[1] += 1
                continue
            region = meta_of(entries, e) >> 2
            if loads[region, 0] >= loads[region, 1]:
                wanted = loads[region, 0] + 1
                why = grow_region(e, cell_of(key), wanted, cells, entries, local_depth, loads, free, sizes, no_places)
                if why != DONE:
                    progress[0] = count
                    return at + j, why
                size = j  # addresses are others from here on
                break
            loads[region, 0] += 1
            row = free_rows[free_rows.size - 1 - count] if count < free_rows.size else next_row + count - free_rows.size
            found[i] = row
            new[count] = i
            count += 1
            if empty == 0:
                placed(key, np.int32(row + 1), entries, e, own[j])
                continue
            slot = lowest_bit(empty)
            store_i64(bucket + 8 * slot, key)
            store_i32(bucket + FIELDS_AT + 4 * slot, np.int32(row + 1))
        at += size
    progress[0] = count
    return at, DONE


@njit(**_options)
def exported(entries: int, e: int, keys: Ids, rows: Ids, at: int) -> int:
    """Write ids and rows of a region from place `at` on; the place behind the last."""
    for b in range(buckets_of(entries, e)):
        bucket = bucket_at(entries, e, b)
        for s in range(SLOTS):
            field = load_i32(bucket + FIELDS_AT + 4 * s)
            if field != 0:
                keys[at], rows[at] = load_i64(bucket + 8 * s), field - 1
                at += 1
    return at


@njit(**_options)
def probed(entries: int, e: int) -> tuple[int, int, int]:
    """Buckets that are read to find all ids of a region, one by one; how many ids there are; the most for one."""
    num_buckets = buckets_of(entries, e)
    total, count, most = 0, 0, 0
    for b in range(num_buckets):
        bucket = bucket_at(entries, e, b)
        for s in range(SLOTS):
            if load_i32(bucket + FIELDS_AT + 4 * s) != 0:
                own = own_of(mixed(load_i64(bucket + 8 * s)), num_buckets)
                steps = (b - own + num_buckets) % num_buckets + 1
                total, count, most = total + steps, count + 1, max(most, steps)
    return total, count, most
