# mypy: allow-untyped-decorators
"""The kernels of the index on a CPU: look-up, claim, erasure, and the growth of a region.

A bucket is one cache line: five keys, five row fields, and how many keys went past it because it was full. A region is
a run of buckets for all ids whose hash begins with the same bits; a directory finds it by them. A search ends at a
bucket that nobody went past, so nothing marks where an id was erased, and every int64 may be an id.

    bucket (64 bytes)     id 0 .. id 4 (int64) | field 0 .. field 4 (int32) | passed (int32)
    field                 0: empty    row + 1: taken    -(i + 1): claimed by the i-th id of the call that is running
    directory entry       address of the region | its buckets / 128

In a claim a thread owns all regions whose hashes begin with its own number, and takes their ids in the order of the
call. Which region grows when differs from an insertion by one thread, and so does the slot of an id; its row does not.
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
UNIT = 128  # buckets: regions have a multiple
SMALL, LARGE = 2, 3  # units of a region
LEAST_FILL, MOST_FILL = 0.70, 0.88
DONE, NO_MEMORY, NO_DEPTH = 0, 1, 2
CODE_BITS = 63  # of a directory entry: addresses are multiples of 64
WINDOW = 32  # ids whose buckets are asked for before the first is read
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
def prefix_of(h: Any, depth: Any) -> Any:
    """The first `depth` bits."""
    return np.int64((h >> np.uint64(1)) >> np.uint64(63 - depth))


@njit(inline="always", **_options)
def home_of(h: Any, entry: Any) -> Any:
    """Address of the region, how many buckets it has, and the id's own bucket."""
    num_buckets = (entry & CODE_BITS) * UNIT
    own = np.int64(((h & np.uint64(0xFFFFFFFF)) * np.uint64(num_buckets)) >> np.uint64(32))
    return entry & ~CODE_BITS, num_buckets, own


@njit(inline="always", **_options)
def field_of(key: Any, base: Any, num_buckets: Any, own: Any) -> Any:
    """Address of the id's field, 0 if it is not there."""
    at = own
    for _ in range(num_buckets):
        bucket = base + at * BUCKET_BYTES
        for s in range(SLOTS):
            if load_i64(bucket + 8 * s) == key and load_i32(bucket + FIELDS_AT + 4 * s) != 0:
                return bucket + FIELDS_AT + 4 * s
        if load_i32(bucket + PASSED_AT) == 0:
            return 0
        at += 1
        if at == num_buckets:
            at = 0
    return 0


@njit(inline="always", **_options)
def placed(key: Any, field: Any, base: Any, num_buckets: Any, own: Any) -> Any:
    """Address of the first empty field for an id that is not there, after it was written."""
    at = own
    while True:
        bucket = base + at * BUCKET_BYTES
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
def field_at(key: Any, base: Any, num_buckets: Any, own: Any) -> Any:
    """The id's field, 0 if it is not there."""
    at = own
    for _ in range(num_buckets):
        bucket = base + at * BUCKET_BYTES
        same = matches(bucket, key) & KEYS
        while same != 0:  # more than once only where the key of an id that was erased was left
            field = load_i32(bucket + FIELDS_AT + 4 * lowest_bit(same))
            if field != 0:
                return field
            same &= same - 1
        if load_i32(bucket + PASSED_AT) == 0:
            return np.int32(0)
        at += 1
        if at == num_buckets:
            at = 0
    return np.int32(0)


@njit(**_options)
def find(keys: Ids, start: int, stop: int, entries: Ids, depth: int, rows: Ids) -> None:
    """Write the row of each id of a part of the call, or -1."""
    base = np.empty(WINDOW, np.int64)
    own = np.empty(WINDOW, np.int64)
    buckets = np.empty(WINDOW, np.int64)
    for first in range(start, stop, WINDOW):
        size = min(WINDOW, stop - first)
        for j in range(size):
            h = mixed(keys[first + j])
            base[j], buckets[j], own[j] = home_of(h, entries[prefix_of(h, depth)])
            prefetch(base[j] + own[j] * BUCKET_BYTES)
        for j in range(size):
            rows[first + j] = field_at(keys[first + j], base[j], buckets[j], own[j]) - 1


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
def claim(
    keys: Ids,
    todo: Ids,
    part: int,
    log_parts: int,
    entries: Ids,
    regions: Counts,
    depth: int,
    loads: Counts,
    claimed: Ids,
) -> tuple[int, int]:
    """Find or claim those of the ids keys[todo] that are of this part of the hashes: how many, and how many pend.

    Writes claimed[0]: where the id stands in `todo`. claimed[1]: a row, -(j + 2) for an id that stands first at place j
    of the call and was not there, or PENDING where its region is full. claimed[2]: the address of a claimed id's field.
    """
    window = np.empty(WINDOW, np.int64)
    prefixes = np.empty(WINDOW, np.int64)
    base = np.empty(WINDOW, np.int64)
    buckets = np.empty(WINDOW, np.int64)
    own = np.empty(WINDOW, np.int64)
    fill, pending, count = 0, 0, 0
    for number in range(todo.size + 1):
        if number < todo.size:
            h = mixed(keys[todo[number]])
            if prefix_of(h, log_parts) != part:
                continue
            window[fill], prefixes[fill] = number, prefix_of(h, depth)
            base[fill], buckets[fill], own[fill] = home_of(h, entries[prefixes[fill]])
            prefetch_to_write(base[fill] + own[fill] * BUCKET_BYTES)
            fill += 1
            if fill < WINDOW:
                continue
        for j in range(fill):
            i = todo[window[j]]
            key, bucket = keys[i], base[j] + own[j] * BUCKET_BYTES
            tail = zeros(bucket + TAIL_AT)
            empty = (tail >> FIRST_FIELD) & KEYS
            same = matches(bucket, key) & KEYS & ~empty
            field = np.int32(0)
            if same != 0:
                field = load_i32(bucket + FIELDS_AT + 4 * lowest_bit(same))
            elif tail >> LAST == 0:
                field = field_at(key, base[j], buckets[j], own[j])
            claimed[0, count] = window[j]
            claimed[1, count] = field - 1
            count += 1
            if field != 0:
                continue
            region = regions[prefixes[j]]
            if loads[region, 0] >= loads[region, 1]:
                claimed[1, count - 1] = PENDING
                loads[region, 2] += 1
                pending += 1
                continue
            loads[region, 0] += 1
            claimed[1, count - 1] = -(i + 2)
            if empty == 0:
                claimed[2, count - 1] = placed(key, np.int32(-(i + 1)), base[j], buckets[j], own[j])
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
def erase(keys: Ids, entries: Ids, regions: Counts, depth: int, loads: Counts, rows: Ids) -> None:
    """Write the row that each id had, or -1, and forget the ids."""
    for i in range(keys.size):
        h = mixed(keys[i])
        prefix = prefix_of(h, depth)
        base, num_buckets, own = home_of(h, entries[prefix])
        address = field_of(keys[i], base, num_buckets, own)
        rows[i] = -1
        if address == 0:
            continue
        rows[i] = load_i32(address) - 1
        store_i32(address, np.int32(0))
        loads[regions[prefix], 0] -= 1
        at = own
        while base + at * BUCKET_BYTES != address & ~CODE_BITS:
            passed = base + at * BUCKET_BYTES + PASSED_AT
            store_i32(passed, load_i32(passed) - np.int32(1))
            at += 1
            if at == num_buckets:
                at = 0


@njit(**_options)
def moved(old: Any, new_0: Any, new_1: Any, local_depth: Any, places: Ids) -> Any:
    """Move a region's ids to one (new_1 is 0) or two others that are empty; how many to the second.

    The bit behind `local_depth` says where an id goes. The old region is left empty, to be used again. Claimed ids have
    new places. How full the new buckets are is counted aside: to look at a line that was just written is to wait.
    """
    base, num_buckets, count = old & ~CODE_BITS, (old & CODE_BITS) * UNIT, 0
    fills = np.zeros((2, LARGE * UNIT), np.int8)
    for b in range(num_buckets):
        bucket = base + b * BUCKET_BYTES
        taken = ~(zeros(bucket + TAIL_AT) >> FIRST_FIELD) & KEYS
        while taken != 0:
            slot = lowest_bit(taken)
            taken &= taken - 1
            field, key = load_i32(bucket + FIELDS_AT + 4 * slot), load_i64(bucket + 8 * slot)
            h = mixed(key)
            side = np.int64(new_1 != 0) & prefix_of(h, local_depth + 1)
            count += side
            address, buckets, at = home_of(h, new_1 if side else new_0)
            while fills[side, at] == SLOTS:
                passed = address + at * BUCKET_BYTES + PASSED_AT
                store_i32(passed, load_i32(passed) + np.int32(1))
                at += 1
                if at == buckets:
                    at = 0
            to = address + at * BUCKET_BYTES
            store_i64(to + 8 * fills[side, at], key)
            store_i32(to + FIELDS_AT + 4 * fills[side, at], field)
            if field < 0:
                places[-field - 1] = to + FIELDS_AT + 4 * fills[side, at]
            fills[side, at] += 1
        for at in range(bucket + FIELDS_AT, bucket + BUCKET_BYTES, 8):
            store_i64(at, 0)
    return count


@njit(inline="always", **_options)
def limit_of(region: Any, units: Any) -> Any:
    """How many ids a region may hold."""
    share = np.float64(mixed(region) >> np.uint64(11)) / 2.0**53
    return np.int32(units * UNIT * SLOTS * (LEAST_FILL + (MOST_FILL - LEAST_FILL) * share))


@njit(**_options)
def grow_region(
    prefix: int,
    wanted: int,
    entries: Ids,
    regions: Counts,
    depth: int,
    local_depth: Counts,
    loads: Counts,
    free: Ids,
    sizes: Ids,
    places: Ids,
) -> int:
    """Make room for `wanted` ids in the region of a directory entry; why it could not.

    A region of SMALL size becomes LARGE, if that is enough; else it becomes two. Each takes its memory from the stacks
    free[units - SMALL] of sizes[units - SMALL] regions, and leaves its old memory there. sizes[2] is the number of
    regions.
    """
    region = regions[prefix]
    old, shared_depth = entries[prefix], local_depth[region]
    width = 1 << (depth - shared_depth)
    first = prefix // width * width
    if old & CODE_BITS == SMALL and wanted <= limit_of(region, LARGE):
        if sizes[LARGE - SMALL] == 0:
            return NO_MEMORY
        sizes[LARGE - SMALL] -= 1
        new = free[LARGE - SMALL, sizes[LARGE - SMALL]]
        moved(old, new, 0, 0, places)
        entries[first : first + width] = new
        loads[region, 1] = limit_of(region, LARGE)
    else:
        other = sizes[2]
        if sizes[0] < 2 or other == local_depth.size:
            return NO_MEMORY
        if width == 1:
            return NO_DEPTH
        sizes[0] -= 2
        new, new_1 = free[0, sizes[0] + 1], free[0, sizes[0]]
        count = moved(old, new, new_1, shared_depth, places)
        half = first + width // 2
        entries[first:half] = new
        entries[half : first + width] = new_1
        regions[half : first + width] = other
        sizes[2] += 1
        loads[region, 0] -= count
        loads[region, 1] = limit_of(region, SMALL)
        loads[other, 0], loads[other, 1], loads[other, 2] = count, limit_of(other, SMALL), 0
        local_depth[region] = local_depth[other] = shared_depth + 1
    loads[region, 2] = 0
    kind = (old & CODE_BITS) - SMALL
    free[kind, sizes[kind]] = old
    sizes[kind] += 1
    return DONE


@njit(**_options)
def grow(
    keys: Ids,
    todo: Ids,
    start: int,
    entries: Ids,
    regions: Counts,
    depth: int,
    local_depth: Counts,
    loads: Counts,
    free: Ids,
    sizes: Ids,
    places: Ids,
) -> tuple[int, int]:
    """Make room in the regions of the ids keys[todo[start:]]; the place where it stopped, and why."""
    for n in range(start, todo.size):
        prefix = prefix_of(mixed(keys[todo[n]]), depth)
        region = regions[prefix]
        wanted = loads[region, 0] + loads[region, 2]
        if wanted <= loads[region, 1]:
            continue
        why = grow_region(prefix, wanted, entries, regions, depth, local_depth, loads, free, sizes, places)
        if why != DONE:
            return n, why
    return todo.size, DONE


@njit(**_options)
def insert(
    keys: Ids,
    todo: Ids,
    start: int,
    entries: Ids,
    regions: Counts,
    depth: int,
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
    prefixes = np.empty(WINDOW, np.int64)
    base = np.empty(WINDOW, np.int64)
    buckets = np.empty(WINDOW, np.int64)
    own = np.empty(WINDOW, np.int64)
    no_places = np.empty(0, np.int64)
    count = progress[0]
    at = start
    while at < todo.size:
        size = min(WINDOW, todo.size - at)
        for j in range(size):
            h = mixed(keys[todo[at + j]])
            prefixes[j] = prefix_of(h, depth)
            base[j], buckets[j], own[j] = home_of(h, entries[prefixes[j]])
            prefetch_to_write(base[j] + own[j] * BUCKET_BYTES)
        for j in range(size):
            i = todo[at + j]
            key, bucket = keys[i], base[j] + own[j] * BUCKET_BYTES
            tail = zeros(bucket + TAIL_AT)
            empty = (tail >> FIRST_FIELD) & KEYS
            same = matches(bucket, key) & KEYS & ~empty
            field = np.int32(0)
            if same != 0:
                field = load_i32(bucket + FIELDS_AT + 4 * lowest_bit(same))
            elif tail >> LAST == 0:
                field = field_at(key, base[j], buckets[j], own[j])
            if field != 0:
                found[i] = field - 1
                continue
            if count >= room:
                found[i] = -1
                progress[1] += 1
                continue
            region = regions[prefixes[j]]
            if loads[region, 0] >= loads[region, 1]:
                why = grow_region(
                    prefixes[j],
                    loads[region, 0] + 1,
                    entries,
                    regions,
                    depth,
                    local_depth,
                    loads,
                    free,
                    sizes,
                    no_places,
                )
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
                placed(key, np.int32(row + 1), base[j], buckets[j], own[j])
                continue
            slot = lowest_bit(empty)
            store_i64(bucket + 8 * slot, key)
            store_i32(bucket + FIELDS_AT + 4 * slot, np.int32(row + 1))
        at += size
    progress[0] = count
    return at, DONE


@njit(**_options)
def exported(entry: int, keys: Ids, rows: Ids, at: int) -> int:
    """Write ids and rows of a region from place `at` on; the place behind the last."""
    base, num_buckets = entry & ~CODE_BITS, (entry & CODE_BITS) * UNIT
    for b in range(num_buckets):
        for s in range(SLOTS):
            field = load_i32(base + b * BUCKET_BYTES + FIELDS_AT + 4 * s)
            if field != 0:
                keys[at], rows[at] = load_i64(base + b * BUCKET_BYTES + 8 * s), field - 1
                at += 1
    return at


@njit(**_options)
def probed(entry: int) -> tuple[int, int, int]:
    """Buckets that are read to find all ids of a region, one by one; how many ids there are; the most for one."""
    base, num_buckets = entry & ~CODE_BITS, (entry & CODE_BITS) * UNIT
    total, count, most = 0, 0, 0
    for b in range(num_buckets):
        for s in range(SLOTS):
            if load_i32(base + b * BUCKET_BYTES + FIELDS_AT + 4 * s) != 0:
                own = home_of(mixed(load_i64(base + b * BUCKET_BYTES + 8 * s)), entry)[2]
                steps = (b - own + num_buckets) % num_buckets + 1
                total, count, most = total + steps, count + 1, max(most, steps)
    return total, count, most
