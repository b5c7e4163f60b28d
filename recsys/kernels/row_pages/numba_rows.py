# mypy: allow-untyped-decorators
"""Rows in pages, by kernels that numba compiles: gathered, and updated by an optimizer from the sum of their gradients.

A page's address stands in a table, so that no row ever moves. Rows that stand several times in a call are summed in the
order of the call; each row is one thread's, so nothing depends on the number of threads.
"""

from typing import Any

import numpy as np
from numba import carray, njit

from recsys.kernels.cpu.memory import pointer, prefetch
from recsys.kernels.row_pages.initial_rows import MEAN
from recsys.kernels.row_pages.marks import MOST_COUNT

Ids = np.ndarray[Any, np.dtype[np.int64]]
Floats = np.ndarray[Any, np.dtype[np.float32]]
Words = np.ndarray[Any, np.dtype[np.int32]]

SGD, ROW_WISE_ADAGRAD, ADAGRAD, ADAM = 0, 1, 2, 3
LINE_BYTES = 64
AHEAD = 6  # rows whose lines are asked for before they are read
DIGIT_BITS = 11

_options = {"nogil": True, "cache": True, "boundscheck": False, "error_model": "numpy"}


@njit(inline="always", **_options)
def address_of(row: Any, pages: Any, log_page: Any, row_bytes: Any) -> Any:
    """Address of a row."""
    return pages[row >> log_page] + (row & ((1 << log_page) - 1)) * row_bytes


@njit(inline="always", **_options)
def asked_for(row: Any, pages: Any, log_page: Any, row_bytes: Any) -> Any:
    """Ask for the lines of a row, if it is one."""
    if row >= 0:
        address = address_of(row, pages, log_page, row_bytes)
        for at in range(0, row_bytes, LINE_BYTES):
            prefetch(address + at)


@njit(**_options)
def gather(rows: Ids, start: int, stop: int, pages: Ids, log_page: int, out: Words) -> None:
    """Copy rows to out[start:stop]; row -1 is zero."""
    width = out.shape[1]
    for n in range(start, min(stop, start + AHEAD)):
        asked_for(rows[n], pages, log_page, 4 * width)
    for n in range(start, stop):
        if n + AHEAD < stop:
            asked_for(rows[n + AHEAD], pages, log_page, 4 * width)
        if rows[n] < 0:
            out[n] = np.int32(0)
            continue
        row = carray(pointer(address_of(rows[n], pages, log_page, 4 * width)), (width,), np.int32)
        for d in range(width):
            out[n, d] = row[d]


@njit(**_options)
def put(rows: Ids, start: int, stop: int, pages: Ids, log_page: int, values: Words) -> None:
    """Copy values[start:stop] to their rows; row -1 is none."""
    width = values.shape[1]
    for n in range(start, stop):
        if rows[n] >= 0:
            row = carray(pointer(address_of(rows[n], pages, log_page, 4 * width)), (width,), np.int32)
            for d in range(width):
                row[d] = values[n, d]


@njit(inline="always", **_options)
def mixed(value: Any) -> Any:
    """The finaliser of splitmix64."""
    h = value + np.uint64(0x9E3779B97F4A7C15)
    h = (h ^ (h >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    h = (h ^ (h >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return h ^ (h >> np.uint64(31))


@njit(**_options)
def put_initial(
    rows: Ids, ids: Ids, start: int, stop: int, pages: Ids, log_page: int, width: int, seed: Any, factor: Any
) -> None:
    """Write the vectors of new ids, as `initial_rows` defines them; `seed` is mixed."""
    low = np.uint64(0xFFFF)
    for n in range(start, stop):
        row = carray(pointer(address_of(rows[n], pages, log_page, 4 * width)), (width,), np.float32)
        key = mixed(np.uint64(ids[n] ^ seed))
        for d in range(width):
            h = mixed(key + np.uint64(d))
            total = (h & low) + ((h >> np.uint64(16)) & low) + ((h >> np.uint64(32)) & low) + (h >> np.uint64(48))
            row[d] = (np.float32(total) - np.float32(MEAN)) * factor


@njit(**_options)
def ordered(rows: Ids, num_rows: int) -> Any:
    """The places of the call by row, those of a row in the order of the call, without rows below 0."""
    count = 0
    order, other = np.empty(rows.size, np.int64), np.empty(rows.size, np.int64)
    for n in range(rows.size):
        if rows[n] >= 0:
            order[count] = n
            count += 1
    order, other = order[:count], other[:count]
    shift = 0
    while num_rows >> shift > 0:
        starts = np.zeros((1 << DIGIT_BITS) + 1, np.int64)
        for place in order:
            starts[((rows[place] >> shift) & ((1 << DIGIT_BITS) - 1)) + 1] += 1
        starts = np.cumsum(starts)
        for place in order:
            digit = (rows[place] >> shift) & ((1 << DIGIT_BITS) - 1)
            other[starts[digit]] = place
            starts[digit] += 1
        order, other = other, order
        shift += DIGIT_BITS
    return order


@njit(**_options)
def segments(rows: Ids, order: Ids) -> Any:
    """Where each row begins in `order`, and behind the last its end."""
    starts = np.empty(order.size + 1, np.int64)
    count = 0
    for n in range(order.size):
        if n == 0 or rows[order[n]] != rows[order[n - 1]]:
            starts[count] = n
            count += 1
    starts[count] = order.size
    return starts[: count + 1]


@njit(inline="always", **_options)
def mean_of_squares(values: Any) -> Any:
    """In eight sums, so that it is done by vectors."""
    s0 = s1 = s2 = s3 = s4 = s5 = s6 = s7 = np.float32(0)
    whole = values.size // 8 * 8
    for d in range(0, whole, 8):
        s0 += values[d] * values[d]
        s1 += values[d + 1] * values[d + 1]
        s2 += values[d + 2] * values[d + 2]
        s3 += values[d + 3] * values[d + 3]
        s4 += values[d + 4] * values[d + 4]
        s5 += values[d + 5] * values[d + 5]
        s6 += values[d + 6] * values[d + 6]
        s7 += values[d + 7] * values[d + 7]
    for d in range(whole, values.size):
        s0 += values[d] * values[d]
    return ((s0 + s1) + (s2 + s3) + ((s4 + s5) + (s6 + s7))) / np.float32(values.size)


@njit(**_options)
def update(
    rows: Ids,
    gradients: Floats,
    order: Ids,
    starts: Ids,
    start: int,
    stop: int,
    pages: Ids,
    states: Ids,
    ticks: Ids,
    counts: Ids,
    log_page: int,
    state_width: int,
    kind: int,
    numbers: Any,
    tick: int,
) -> None:
    """Update the rows of the segments from `start` to `stop`. numbers (float64): lr, weight decay, eps, both betas."""
    width = gradients.shape[1]
    lr, kept, eps = np.float32(numbers[0]), np.float32(1 - numbers[0] * numbers[1]), np.float32(numbers[2])
    beta1, beta2 = np.float32(numbers[3]), np.float32(numbers[4])
    rest1, rest2 = np.float32(1 - numbers[3]), np.float32(1 - numbers[4])
    total = np.empty(width, np.float32)
    base = gradients.ctypes.data
    for s in range(start, stop):
        first, last = starts[s], starts[s + 1]
        if s + AHEAD < stop:
            ahead = rows[order[starts[s + AHEAD]]]
            asked_for(ahead, pages, log_page, 4 * width)
            asked_for(ahead, states, log_page, 4 * state_width)
            asked_for(ahead, ticks, log_page, 4)
        for n in range(first, last):
            if n + AHEAD < order.size:
                ahead = base + 4 * width * order[n + AHEAD]
                for at in range(0, 4 * width, LINE_BYTES):
                    prefetch(ahead + at)
            given = carray(pointer(base + 4 * width * order[n]), (width,), np.float32)
            if n == first:
                for d in range(width):
                    total[d] = given[d]
            else:
                for d in range(width):
                    total[d] += given[d]
        row = rows[order[first]]
        vector = carray(pointer(address_of(row, pages, log_page, 4 * width)), (width,), np.float32)
        state = carray(pointer(address_of(row, states, log_page, 4 * state_width)), (state_width,), np.float32)
        touched = carray(pointer(address_of(row, ticks, log_page, 4)), (1,), np.int32)
        if touched[0] < 0:
            continue
        touched[0] = tick
        if counts.size > 0:
            count = carray(pointer(address_of(row, counts, log_page, 4)), (1,), np.int32)
            count[0] += count[0] < MOST_COUNT
        if kept != 1:
            for d in range(width):
                vector[d] *= kept
        if kind == SGD:
            for d in range(width):
                vector[d] -= lr * total[d]
        elif kind == ROW_WISE_ADAGRAD:
            state[0] += mean_of_squares(total)
            rate = lr / (np.sqrt(state[0]) + eps)
            for d in range(width):
                vector[d] -= rate * total[d]
        elif kind == ADAGRAD:
            for d in range(width):
                state[d] += total[d] * total[d]
                vector[d] -= lr * total[d] / (np.sqrt(state[d]) + eps)
        else:
            state[2 * width] += np.float32(1)
            step = np.float64(state[2 * width])
            of_mean, of_square = np.float32(1 - numbers[3] ** step), np.float32(1 - numbers[4] ** step)
            for d in range(width):
                state[d] = beta1 * state[d] + rest1 * total[d]
                state[width + d] = beta2 * state[width + d] + rest2 * total[d] * total[d]
                vector[d] -= lr * (state[d] / of_mean) / (np.sqrt(state[width + d] / of_square) + eps)
