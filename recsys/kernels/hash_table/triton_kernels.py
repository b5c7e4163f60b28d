# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-calls, allow-untyped-decorators
"""The kernels of the index on a GPU: look-up, placement, erasure, and what a region holds.

A bucket is 64 bytes: five ids, their row fields, and how many ids went past it because it was full. Regions, and the
directory that finds them, are those of the index on a CPU; so is where a search ends.

    bucket (16 words of int32)   low halves 0 .. 4 | high halves 0 .. 4 | field 0 .. field 4 | passed
    field                        0: empty    row + 1: taken
    directory entry              8 times the bucket where the region begins, counted from `base`, + its units

Regions lie in memory of several allocations, so that one may begin before `base`. No kernel uses an atomic: a region is
filled by one program, and ids that are erased are told apart before. Idle lanes read and write nothing.
"""

import triton
import triton.language as tl

WORDS, SLOTS, ALL_SLOTS = tl.constexpr(16), tl.constexpr(5), tl.constexpr(31)
FIELD_AT, PASSED_AT = tl.constexpr(10), tl.constexpr(15)
TAIL_AT, FIRST = tl.constexpr(8), tl.constexpr(2)  # the half of a bucket that has all fields; the first of them in it
CODE_BITS, CODE_MASK = tl.constexpr(3), tl.constexpr(7)  # of a directory entry: units of the region


@triton.jit(do_not_specialize=["count", "depth"])
def find_kernel(ids_ptr, rows_ptr, count, base, entries_ptr, depth, UNIT: tl.constexpr, BLOCK_N: tl.constexpr):
    """The row of each id, -1 for one that is not there."""
    n = tl.program_id(0).to(tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)
    ids = tl.load(ids_ptr + n, mask=n < count, other=0)
    field, _, _, _ = _found(ids, n < count, base, entries_ptr, depth, UNIT)
    tl.store(rows_ptr + n, field.to(tl.int64) - 1, mask=n < count)


@triton.jit(do_not_specialize=["count", "depth"])
def erase_kernel(
    ids_ptr, rows_ptr, steps_ptr, count, base, entries_ptr, depth, UNIT: tl.constexpr, BLOCK_N: tl.constexpr
):
    """Forget ids, each once in the call: the row that each had, or -1, and how many buckets it had gone past."""
    n = tl.program_id(0).to(tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)
    ids = tl.load(ids_ptr + n, mask=n < count, other=0)
    field, place, hit, steps = _found(ids, n < count, base, entries_ptr, depth, UNIT)
    is_known = field != 0
    tl.store(rows_ptr + n, field.to(tl.int64) - 1, mask=n < count)
    tl.store(steps_ptr + n, tl.where(is_known, steps, 0).to(tl.int64), mask=n < count)
    slot = ((hit >> 1) & 1) + 2 * ((hit >> 2) & 1) + 3 * ((hit >> 3) & 1) + 4 * ((hit >> 4) & 1)
    tl.store(base + place + FIELD_AT + slot, tl.zeros([BLOCK_N], tl.int32), mask=is_known)


@triton.jit(do_not_specialize=["count"])
def lessen_kernel(buckets_ptr, less_ptr, count, base, BLOCK_N: tl.constexpr):
    """Lessen the number of ids that went past a bucket; each bucket stands there once."""
    n = tl.program_id(0).to(tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)
    passed = base + tl.load(buckets_ptr + n, mask=n < count, other=0) * WORDS + PASSED_AT
    less = tl.load(less_ptr + n, mask=n < count, other=0).to(tl.int32)
    tl.store(passed, tl.load(passed, mask=n < count, other=0) - less, mask=n < count)


@triton.jit
def place_kernel(
    ids_ptr,
    rows_ptr,
    keys_ptr,
    starts_ptr,
    entries_ptr,
    base,
    UNIT: tl.constexpr,
    LOG_MOST: tl.constexpr,
    BLOCK_B: tl.constexpr,
):
    """Put ids that are not there into a region that has room for them: a program each region.

    keys: ascending; the lower 32 bits say which bucket is the id's own. The ids [starts[r], starts[r + 1]) are those of
    region r. Each goes to the first slot behind its own bucket's begin that is empty once those before it were placed:
    as if they stood in a queue that goes round once, and each bucket took from it what it has room for. How long the
    queue is behind a bucket is a running sum less its running minimum, so that all buckets know it at once.
    """
    region = tl.program_id(0)
    start, stop = tl.load(starts_ptr + region), tl.load(starts_ptr + region + 1)
    entry = tl.load(entries_ptr + region)
    num_buckets = _units(entry) * UNIT
    b = tl.arange(0, BLOCK_B)
    here = b < num_buckets
    before = _first_at(keys_ptr + start, stop - start, b, num_buckets, LOG_MOST)
    new = _first_at(keys_ptr + start, stop - start, b + 1, num_buckets, LOG_MOST) - before
    w = tl.arange(0, 8)
    tail = tl.multiple_of(_words(entry) + b * WORDS, 16)[:, None] + TAIL_AT + w[None, :]
    words = tl.load(base + tail, mask=here[:, None], other=1)
    is_slot = (w >= FIRST) & (w < FIRST + SLOTS)
    is_empty = (is_slot[None, :] & (words == 0)).to(tl.int32)
    empty = tl.sum(is_empty, axis=1)
    excess = before - (tl.cumsum(empty, axis=0) - empty)
    ahead = excess - tl.associative_scan(excess, 0, _least)  # the queue before each bucket, were it empty at the first
    behind = tl.maximum(ahead + new - empty, 0)
    carried = tl.sum(tl.where(b == num_buckets - 1, behind, 0), axis=0)  # it goes on at the first bucket
    ahead = tl.maximum(carried + excess, ahead)
    behind = tl.maximum(ahead + new - empty, 0)
    taken = ahead + new - behind
    nth = tl.cumsum(is_empty, axis=1) - is_empty
    takes = (is_empty == 1) & (nth < taken[:, None])
    place = (before - ahead)[:, None] + nth
    place = start + tl.where(place < 0, place + (stop - start).to(tl.int32), place)
    ids = tl.load(ids_ptr + place, mask=takes, other=0)
    rows = tl.load(rows_ptr + place, mask=takes, other=0)
    low = base + tail - (TAIL_AT + FIRST)
    tl.store(low, ids.to(tl.int32), mask=takes)
    tl.store(low + SLOTS, (ids >> 32).to(tl.int32), mask=takes)
    tl.store(low + 2 * SLOTS, (rows + 1).to(tl.int32), mask=takes)
    passed = tl.sum(tl.where(w[None, :] == PASSED_AT - TAIL_AT, words, 0), axis=1)
    tl.store(base + _words(entry) + b * WORDS + PASSED_AT, passed + behind, mask=here & (behind > 0))


@triton.jit
def contents_kernel(
    entries_ptr, starts_ptr, ids_ptr, rows_ptr, base, UNIT: tl.constexpr, BLOCK_B: tl.constexpr, CLEAR: tl.constexpr
):
    """Write a region's ids and rows from place starts[r] on, bucket by bucket; with CLEAR it is left empty."""
    region = tl.program_id(0)
    entry, start = tl.load(entries_ptr + region), tl.load(starts_ptr + region)
    b, w = tl.arange(0, BLOCK_B), tl.arange(0, 8)
    here = (b < _units(entry) * UNIT)[:, None]
    tail = tl.multiple_of(_words(entry) + b * WORDS, 16)[:, None] + TAIL_AT + w[None, :]
    words = tl.load(base + tail, mask=here, other=0)
    is_taken = (((w >= FIRST) & (w < FIRST + SLOTS))[None, :] & (words != 0)).to(tl.int32)
    count = tl.sum(is_taken, axis=1)
    place = start + (tl.cumsum(count, axis=0) - count)[:, None] + tl.cumsum(is_taken, axis=1) - is_taken
    low = base + tail - (TAIL_AT + FIRST)
    halves = tl.load(low, mask=is_taken == 1, other=0), tl.load(low + SLOTS, mask=is_taken == 1, other=0)
    ids = (halves[1].to(tl.int64) << 32) | (halves[0].to(tl.int64) & 0xFFFFFFFF)
    tl.store(ids_ptr + place, ids, mask=is_taken == 1)
    tl.store(rows_ptr + place, words.to(tl.int64) - 1, mask=is_taken == 1)
    if CLEAR:
        tl.debug_barrier()  # what one thread clears another may have to read
        tl.store(base + tail, tl.zeros_like(words), mask=here & (w >= FIRST)[None, :])


@triton.jit
def _found(ids, in_call, base, entries_ptr, depth, UNIT: tl.constexpr):
    """Of each id: its field, 0 if it is not there; where its bucket begins; a bit for its slot; buckets gone past."""
    h = _mixed(ids)
    entry = tl.load(entries_ptr + ((h >> 1) >> (63 - depth)).to(tl.int64), mask=in_call, other=0)
    num_buckets = _units(entry) * UNIT
    own = (((h & 0xFFFFFFFF) * num_buckets.to(tl.uint64)) >> 32).to(tl.int32)
    w = tl.arange(0, WORDS)[None, :]
    wanted = tl.where(w < SLOTS, ids.to(tl.int32)[:, None], (ids >> 32).to(tl.int32)[:, None])
    looking = in_call
    bucket = own
    field, hit, steps = tl.zeros_like(own), tl.zeros_like(own), tl.zeros_like(own)
    while tl.max(looking.to(tl.int32), axis=0) > 0:
        place = tl.multiple_of(_words(entry) + bucket.to(tl.int64) * WORDS, 16)
        words = tl.load(base + place[:, None] + w, mask=looking[:, None], other=0)
        # Bits 0-4: low halves that fit, 5-9: high ones, 10-14: slots that are taken, 15: whether an id went past.
        bits = tl.sum(tl.where(w < FIELD_AT, words == wanted, words != 0).to(tl.int32) << w, axis=1)
        # At most one: an id lies in one taken slot. What an id left that was erased has an empty field.
        fits = bits & (bits >> SLOTS) & (bits >> (2 * SLOTS)) & ALL_SLOTS
        fields = tl.sum(tl.where(((fits[:, None] << FIELD_AT) >> w) & 1 == 1, words, 0), axis=1)
        field, hit = tl.where(looking, fields, field), tl.where(looking, fits, hit)
        looking = looking & (fits == 0) & ((bits >> PASSED_AT) & 1 == 1) & (steps + 1 < num_buckets)
        steps += looking.to(tl.int32)
        onward = tl.where(bucket + 1 == num_buckets, 0, bucket + 1)
        bucket = tl.where(looking, onward, bucket)
    return field, _words(entry) + bucket.to(tl.int64) * WORDS, hit, steps


@triton.jit
def _first_at(keys_ptr, count, bound, num_buckets, LOG_MOST: tl.constexpr):
    """How many of the ids of a region have their own bucket before each bound."""
    low, high = tl.zeros_like(bound), tl.zeros_like(bound) + count.to(tl.int32)
    for _ in range(LOG_MOST):
        middle = (low + high) // 2
        open_ = low < high
        key = tl.load(keys_ptr + middle, mask=open_, other=0)
        own = (((key & 0xFFFFFFFF) * num_buckets.to(tl.int64)) >> 32).to(tl.int32)
        is_before = own < bound
        low = tl.where(open_ & is_before, middle + 1, low)
        high = tl.where(open_ & ~is_before, middle, high)
    return low


@triton.jit
def _mixed(ids):
    """64 bits in which those of the id are mixed: the finaliser of splitmix64. Unsigned, so that shifts fill with 0."""
    h = ids.to(tl.uint64, bitcast=True) + 0x9E3779B97F4A7C15
    h = (h ^ (h >> 30)) * 0xBF58476D1CE4E5B9
    h = (h ^ (h >> 27)) * 0x94D049BB133111EB
    return h ^ (h >> 31)


@triton.jit
def _units(entry):
    return (entry & CODE_MASK).to(tl.int32)


@triton.jit
def _words(entry):
    """Where the region begins."""
    return (entry >> CODE_BITS) * WORDS


@triton.jit
def _least(a, b):
    return tl.minimum(a, b)
