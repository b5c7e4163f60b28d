# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-calls, allow-untyped-decorators
"""Which keys a block of queries meets, and which queries a block of keys: spans of one sequence, on the device.

A span is cut into blocks. In *inner* blocks every query sees every key, so nothing is masked; the others, *edges*, ask
`sees` for each pair. Places, keys and masks are those of `visibility.py`.

    keys of a block of queries      [0, global_end) | [low, high), of it inner [inner, inner_end) | [own, own_end)
    queries of a block of keys      [0, global_end) | [low, high), of it inner [inner, inner_end) | [own, own_end)
"""

import triton
import triton.language as tl


@triton.jit
def sees(
    place,
    key,
    first_target,
    left,
    right,
    num_global,
    target_group,
    CAUSAL: tl.constexpr,
    HAS_LEFT: tl.constexpr,
    HAS_RIGHT: tl.constexpr,
    HAS_GLOBAL: tl.constexpr,
    HAS_TARGETS: tl.constexpr,
):
    """True where the query at `place` sees `key`; two tensors that broadcast to a tile, either way round."""
    p = place
    if HAS_TARGETS:
        p = tl.minimum(place, first_target)  # all targets stand right behind the history
    seen = (key >= 0) & (p == p)
    if HAS_LEFT:
        seen = seen & (key >= p - left)
    if HAS_RIGHT:
        seen = seen & (key <= p + right)
    if HAS_GLOBAL:
        seen = seen | (key < num_global) | ((p >= 0) & (p < num_global))
    if CAUSAL:
        seen = seen & (key <= p)
    if HAS_TARGETS:
        group_of_query = (place - first_target) // target_group
        group_of_key = (key - first_target) // target_group
        both = (place >= first_target) & (key >= first_target)
        seen = (seen & (key < first_target)) | (both & (group_of_query == group_of_key))
    return seen


@triton.jit
def key_spans(
    first_place,
    last_place,
    num_keys,
    first_target,
    left,
    right,
    num_global,
    target_group,
    BLOCK: tl.constexpr,
    CAUSAL: tl.constexpr,
    HAS_LEFT: tl.constexpr,
    HAS_RIGHT: tl.constexpr,
    HAS_GLOBAL: tl.constexpr,
    HAS_TARGETS: tl.constexpr,
):
    """global_end, low, inner, inner_end, high, own, own_end of the keys that queries at these places see."""
    a = tl.minimum(first_place, first_target)
    b = tl.minimum(last_place, first_target)
    low, high, all_low, all_high = 0, first_target, 0, first_target
    if HAS_LEFT:
        low = tl.maximum(0, a - left)
        all_low = tl.maximum(0, b - left)
    if HAS_RIGHT:
        high = tl.minimum(high, b + right + 1)
        all_high = tl.minimum(all_high, a + right + 1)
    reachable = first_target
    if CAUSAL:
        high = tl.minimum(high, b + 1)
        all_high = tl.minimum(all_high, a + 1)
        reachable = tl.minimum(first_target, b + 1)
    reachable = tl.maximum(reachable, 0)
    global_end = 0
    if HAS_GLOBAL:
        global_end = tl.minimum(num_global, reachable)
        has_global_query = (a < num_global) & (b >= 0)
        low = tl.where(has_global_query, 0, low)
        high = tl.where(has_global_query, reachable, high)
    low = tl.maximum(low, global_end)
    high = tl.maximum(high, low)
    inner = low + tl.cdiv(tl.maximum(all_low - low, 0), BLOCK) * BLOCK
    num_inner = tl.maximum(tl.minimum(all_high, high) - inner, 0) // BLOCK
    inner = tl.where(num_inner > 0, inner, low)
    inner_end = inner + num_inner * BLOCK
    own, own_end = 0, 0
    if HAS_TARGETS:
        own = first_target + (tl.maximum(first_place - first_target, 0) // target_group) * target_group
        own_end = first_target + ((last_place - first_target) // target_group + 1) * target_group
        own_end = tl.where(last_place >= first_target, tl.minimum(own_end, num_keys), own)
    return global_end, low, inner, inner_end, high, own, own_end


@triton.jit
def query_spans(
    first_key,
    last_key,
    num_queries,
    num_keys,
    first_target,
    left,
    right,
    num_global,
    target_group,
    BLOCK: tl.constexpr,
    CAUSAL: tl.constexpr,
    HAS_LEFT: tl.constexpr,
    HAS_RIGHT: tl.constexpr,
    HAS_GLOBAL: tl.constexpr,
    HAS_TARGETS: tl.constexpr,
):
    """first, global_end, low, inner, inner_end, high, own, own_end: numbers of the queries that see these keys.

    Here the first span is [first, global_end).
    """
    shift = num_keys - num_queries
    is_history = first_key < first_target
    low, high, all_low, all_high = shift, num_keys, shift, num_keys  # places
    if HAS_RIGHT:
        low = tl.maximum(low, first_key - right)
        all_low = tl.maximum(all_low, last_key - right)
    if CAUSAL:
        low = tl.maximum(low, first_key)
        all_low = tl.maximum(all_low, last_key)
    if HAS_LEFT:
        high = tl.where(last_key + left < first_target, tl.minimum(high, last_key + left + 1), high)
        all_high = tl.where(first_key + left < first_target, tl.minimum(all_high, first_key + left + 1), all_high)
    first, global_end = shift, shift
    if HAS_GLOBAL:
        first = tl.maximum(shift, 0)
        if CAUSAL:
            first = tl.maximum(first, first_key)
        has_global_key = first_key < num_global
        high = tl.where(has_global_key, num_keys, high)
        low = tl.where(has_global_key, first if CAUSAL else shift, low)
        global_end = tl.where(has_global_key, first, tl.maximum(first, tl.minimum(num_global, num_keys)))
        low = tl.maximum(low, tl.where(has_global_key, low, global_end))
    high = tl.maximum(high, low)
    if HAS_TARGETS:  # a tile with a target among its keys has no inner part, and none of history alone has own queries
        all_high = tl.where(last_key < first_target, all_high, low)
        high = tl.where(is_history, high, low)
        global_end = tl.where(is_history, global_end, first)
    inner = low + tl.cdiv(tl.maximum(all_low - low, 0), BLOCK) * BLOCK
    num_inner = tl.maximum(tl.minimum(all_high, high) - inner, 0) // BLOCK
    inner = tl.where(num_inner > 0, inner, low)
    inner_end = inner + num_inner * BLOCK
    own, own_end = shift, shift
    if HAS_TARGETS:
        own = first_target + (tl.maximum(first_key - first_target, 0) // target_group) * target_group
        own_end = first_target + ((last_key - first_target) // target_group + 1) * target_group
        own_end = tl.minimum(own_end, num_keys)
        own = tl.maximum(own, tl.where(is_history, high, shift))
        own_end = tl.where(last_key >= first_target, tl.maximum(own_end, own), own)
    return (
        first - shift,
        global_end - shift,
        low - shift,
        inner - shift,
        inner_end - shift,
        high - shift,
        own - shift,
        own_end - shift,
    )


@triton.jit
def num_edges(first, global_end, low, inner, inner_end, high, own, own_end, BLOCK: tl.constexpr):
    """Blocks outside the inner part."""
    return (
        tl.cdiv(global_end - first, BLOCK)
        + (inner - low) // BLOCK
        + tl.cdiv(high - inner_end, BLOCK)
        + tl.cdiv(own_end - own, BLOCK)
    )


@triton.jit
def edge(t, first, global_end, low, inner, inner_end, high, own, own_end, BLOCK: tl.constexpr):
    """Start and end of the t-th edge; the end may lie before start + BLOCK."""
    num_global = tl.cdiv(global_end - first, BLOCK)
    num_left = (inner - low) // BLOCK
    num_right = tl.cdiv(high - inner_end, BLOCK)
    start, end = own + (t - num_global - num_left - num_right) * BLOCK, own_end
    is_right = t < num_global + num_left + num_right
    start = tl.where(is_right, inner_end + (t - num_global - num_left) * BLOCK, start)
    end = tl.where(is_right, high, end)
    is_left = t < num_global + num_left
    start = tl.where(is_left, low + (t - num_global) * BLOCK, start)
    end = tl.where(is_left, inner, end)
    start = tl.where(t < num_global, first + t * BLOCK, start)
    end = tl.where(t < num_global, global_end, end)
    return start, end
