# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-calls, allow-untyped-decorators
"""Rows in pages, by Triton: gathered, written, and updated by an optimizer from the sum of their gradients.

Pages are allocations of their own. A table holds where each begins, in numbers counted from the first page on, so that
loads are as wide as those from one tensor. A row that stands several times in a call is summed in the order of the call
by one program, without atomics: every run gives the same bits. Rows that stand there very often are cut into pieces
first, whose sums take the place of the gradients.
"""

import triton
import triton.language as tl

SGD, ROW_WISE_ADAGRAD, ADAGRAD = tl.constexpr(0), tl.constexpr(1), tl.constexpr(2)  # 3: Adam
ALIGNED = tl.constexpr(4)  # numbers: pages begin at multiples of 16 bytes


@triton.jit(do_not_specialize=["count", "log_page"])
def gather_kernel(
    rows_ptr,
    out_ptr,
    count,
    base,
    begins_ptr,
    log_page,
    width_parts,
    PART: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Copy rows to `out`, zeros where one is below 0."""
    width = width_parts * PART
    n, d, at, here = _block_of_rows(rows_ptr, count, base, begins_ptr, log_page, width, BLOCK_N, BLOCK_D)
    x = tl.load(at, mask=here, other=0)
    tl.store(out_ptr + n[:, None] * width + d[None, :], x, mask=(n < count)[:, None] & (d < width)[None, :])


@triton.jit(do_not_specialize=["value", "count", "log_page"])
def scatter_kernel(
    rows_ptr,
    values_ptr,
    value,
    count,
    base,
    begins_ptr,
    log_page,
    width_parts,
    IS_ONE: tl.constexpr,
    PART: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Write values to rows, each once in the call; with IS_ONE the same value everywhere."""
    width = width_parts * PART
    n, d, at, here = _block_of_rows(rows_ptr, count, base, begins_ptr, log_page, width, BLOCK_N, BLOCK_D)
    if IS_ONE:
        tl.store(at, tl.zeros([BLOCK_N, BLOCK_D], base.dtype.element_ty) + value, mask=here)
    else:
        tl.store(at, tl.load(values_ptr + n[:, None] * width + d[None, :], mask=here), mask=here)


@triton.jit(do_not_specialize=["count"])
def piece_sums_kernel(
    gradients_ptr,
    pairs_ptr,
    starts_ptr,
    stops_ptr,
    out_ptr,
    count,
    width_parts,
    PART: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """out[s]: the sum of gradients[pairs[p]] for p from starts[s] to stops[s], in their order."""
    width = width_parts * PART
    s = tl.program_id(0).to(tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)
    d = tl.arange(0, BLOCK_D)
    total = _sums(gradients_ptr, pairs_ptr, starts_ptr, stops_ptr, s, s < count, d, width, BLOCK_N, BLOCK_D)
    tl.store(out_ptr + s[:, None] * width + d[None, :], total, mask=(s < count)[:, None] & (d < width)[None, :])


@triton.jit(do_not_specialize=["count", "log_page", "tick"])
def update_kernel(
    rows_ptr,
    gradients_ptr,
    pairs_ptr,
    starts_ptr,
    stops_ptr,
    count,
    vectors,
    vector_begins_ptr,
    states,
    state_begins_ptr,
    ticks,
    tick_begins_ptr,
    log_page,
    width_parts,
    state_width,
    tick,
    lr,
    kept,
    eps,
    beta1,
    rest1,
    log_beta1,
    beta2,
    rest2,
    log_beta2,
    KIND: tl.constexpr,
    PART: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Update rows (count,), each there once, by the sums of their gradients; BLOCK_D holds a whole row."""
    width = width_parts * PART
    s = tl.program_id(0).to(tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)
    d = tl.arange(0, BLOCK_D)
    here = (s < count)[:, None] & (d < width)[None, :]
    total = _sums(gradients_ptr, pairs_ptr, starts_ptr, stops_ptr, s, s < count, d, width, BLOCK_N, BLOCK_D)
    row = tl.load(rows_ptr + s, mask=s < count, other=-1)
    tl.store(ticks + _place_of(row, tick_begins_ptr, log_page, 1), tl.zeros([BLOCK_N], tl.int32) + tick, mask=s < count)
    at = vectors + _place_of(row, vector_begins_ptr, log_page, width)[:, None] + d[None, :]
    vector = tl.load(at, mask=here, other=0.0) * kept
    if KIND == SGD:
        tl.store(at, vector - lr * total, mask=here)
    else:
        state = states + _place_of(row, state_begins_ptr, log_page, state_width)
        if KIND == ROW_WISE_ADAGRAD:
            squares = tl.load(state, mask=s < count, other=0.0) + tl.sum(total * total, axis=1) / width
            tl.store(state, squares, mask=s < count)
            tl.store(at, vector - (lr / (tl.sqrt(squares) + eps))[:, None] * total, mask=here)
        elif KIND == ADAGRAD:
            squares_at = state[:, None] + d[None, :]
            squares = tl.load(squares_at, mask=here, other=0.0) + total * total
            tl.store(squares_at, squares, mask=here)
            tl.store(at, vector - lr * total / (tl.sqrt(squares) + eps), mask=here)
        else:
            updates = tl.load(state + 2 * width, mask=s < count, other=0.0) + 1.0
            tl.store(state + 2 * width, updates, mask=s < count)
            # 1 - beta^n in float64: in float32 hardly a digit of it would be right for beta2 near 1.
            of_mean = (1.0 - tl.exp(updates.to(tl.float64) * log_beta1)).to(tl.float32)[:, None]
            of_square = (1.0 - tl.exp(updates.to(tl.float64) * log_beta2)).to(tl.float32)[:, None]
            mean_at = state[:, None] + d[None, :]
            mean = beta1 * tl.load(mean_at, mask=here, other=0.0) + rest1 * total
            tl.store(mean_at, mean, mask=here)
            square = beta2 * tl.load(mean_at + width, mask=here, other=0.0) + rest2 * total * total
            tl.store(mean_at + width, square, mask=here)
            tl.store(at, vector - lr * (mean / of_mean) / (tl.sqrt(square / of_square) + eps), mask=here)


@triton.jit
def _sums(
    gradients_ptr,
    pairs_ptr,
    starts_ptr,
    stops_ptr,
    s,
    in_call,
    d,
    width,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """[BLOCK_N, BLOCK_D]: the sums of the gradients of each segment, one after the other."""
    start, stop = tl.load(starts_ptr + s, mask=in_call, other=0), tl.load(stops_ptr + s, mask=in_call, other=0)
    total = tl.zeros([BLOCK_N, BLOCK_D], tl.float32)
    for step in range(0, tl.max(stop - start, axis=0)):
        is_one = start + step < stop
        pair = tl.load(pairs_ptr + start + step, mask=is_one, other=0)
        at = gradients_ptr + pair[:, None] * width + d[None, :]
        total += tl.load(at, mask=is_one[:, None] & (d < width)[None, :], other=0.0)
    return total


@triton.jit
def _block_of_rows(rows_ptr, count, base, begins_ptr, log_page, width, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr):
    """The program's part of the call, n and d; [BLOCK_N, BLOCK_D] where its rows lie, and whether there is one."""
    n = tl.program_id(0).to(tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)
    d = tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)
    row = tl.load(rows_ptr + n, mask=n < count, other=-1)
    here = (row >= 0)[:, None] & (d < width)[None, :]
    place = _place_of(row, begins_ptr, log_page, width)
    return n, d, base + place[:, None] + d[None, :], here


@triton.jit
def _place_of(row, begins_ptr, log_page, width):
    """Where each row begins, in numbers from the first page on."""
    begin = tl.multiple_of(tl.load(begins_ptr + (row >> log_page), mask=row >= 0, other=0), ALIGNED)
    return begin + (row & ((1 << log_page) - 1)) * width
