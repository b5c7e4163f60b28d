# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-calls, allow-untyped-decorators
"""Where a sequence lies, which keys a block of its queries meets, and which queries a block of its keys.

A span is cut into blocks. In *inner* blocks every query sees every key, so nothing is masked; the others, *edges*, ask
`sees` for each pair. Places, keys and masks are those of `visibility.py`. Spans are eight numbers:

    [first, global_end) | [low, high), of it inner [inner, inner_end) | [own, own_end)
    global tokens         what causality and window leave              the targets' own groups
"""

import triton
import triton.language as tl


@triton.jit
def chunk_at(number, chunks_ptr, num_heads, BLOCK: tl.constexpr):
    """Of the program of this number: the sequence of its chunk, the chunk's first row there, and the head (int64)."""
    chunk = number // num_heads
    start = tl.load(chunks_ptr + 2 * chunk + 1) * BLOCK
    return tl.load(chunks_ptr + 2 * chunk), start, (number % num_heads).to(tl.int64)


@triton.jit
def sequence_at(sequence, sequences, FLAGS: tl.constexpr):
    """First row of its queries and of its keys (int64), how many it has of each, and the place of its first target."""
    start_q, start_k = tl.load(sequences.offsets_q + sequence), tl.load(sequences.offsets_k + sequence)
    num_queries = (tl.load(sequences.offsets_q + sequence + 1) - start_q).to(tl.int32)
    num_keys = (tl.load(sequences.offsets_k + sequence + 1) - start_k).to(tl.int32)
    first_target = num_keys
    if FLAGS.HAS_TARGETS:
        first_target -= tl.load(sequences.num_targets + sequence)
    return start_q, start_k, num_queries, num_keys, first_target


@triton.jit
def sees(place, key, first_target, masks, FLAGS: tl.constexpr):
    """True where the query at `place` sees `key`; two tensors that broadcast to a tile, either way round."""
    p = place
    if FLAGS.HAS_TARGETS:
        p = tl.minimum(place, first_target)  # all targets stand right behind the history
    seen = (key >= 0) & (p == p)
    if FLAGS.HAS_LEFT:
        seen = seen & (key >= p - masks.left)
    if FLAGS.HAS_RIGHT:
        seen = seen & (key <= p + masks.right)
    if FLAGS.HAS_GLOBAL:
        seen = seen | (key < masks.num_global) | ((p >= 0) & (p < masks.num_global))
    if FLAGS.CAUSAL:
        seen = seen & (key <= p)
    if FLAGS.HAS_TARGETS:
        group_of_query = (place - first_target) // masks.target_group
        group_of_key = (key - first_target) // masks.target_group
        both = (place >= first_target) & (key >= first_target)
        seen = (seen & (key < first_target)) | (both & (group_of_query == group_of_key))
    return seen


@triton.jit
def key_spans(first_place, last_place, num_keys, first_target, masks, BLOCK: tl.constexpr, FLAGS: tl.constexpr):
    """Spans of the keys that queries at these places see."""
    a = tl.minimum(first_place, first_target)
    b = tl.minimum(last_place, first_target)
    low, high, all_low, all_high = 0, first_target, 0, first_target
    if FLAGS.HAS_LEFT:
        low = tl.maximum(0, a - masks.left)
        all_low = tl.maximum(0, b - masks.left)
    if FLAGS.HAS_RIGHT:
        high = tl.minimum(high, b + masks.right + 1)
        all_high = tl.minimum(all_high, a + masks.right + 1)
    reachable = first_target
    if FLAGS.CAUSAL:
        high = tl.minimum(high, b + 1)
        all_high = tl.minimum(all_high, a + 1)
        reachable = tl.minimum(first_target, b + 1)
    reachable = tl.maximum(reachable, 0)
    global_end = 0
    if FLAGS.HAS_GLOBAL:
        global_end = tl.minimum(masks.num_global, reachable)
        has_global_query = (a < masks.num_global) & (b >= 0)
        low = tl.where(has_global_query, 0, low)
        high = tl.where(has_global_query, reachable, high)
    low = tl.maximum(low, global_end)
    high = tl.maximum(high, low)
    inner = low + tl.cdiv(tl.maximum(all_low - low, 0), BLOCK) * BLOCK
    num_inner = tl.maximum(tl.minimum(all_high, high) - inner, 0) // BLOCK
    inner = tl.where(num_inner > 0, inner, low)
    inner_end = inner + num_inner * BLOCK
    own, own_end = 0, 0
    if FLAGS.HAS_TARGETS:
        own, own_end = _groups(first_place, last_place, first_target, masks.target_group)
        own_end = tl.where(last_place >= first_target, tl.minimum(own_end, num_keys), own)
    return 0, global_end, low, inner, inner_end, high, own, own_end


@triton.jit
def query_spans(
    first_key, last_key, num_queries, num_keys, first_target, masks, BLOCK: tl.constexpr, FLAGS: tl.constexpr
):
    """Spans of the queries, by their numbers, that see these keys."""
    shift = num_keys - num_queries
    is_history = first_key < first_target
    low, high, all_low, all_high = shift, num_keys, shift, num_keys  # places
    if FLAGS.HAS_RIGHT:
        low = tl.maximum(low, first_key - masks.right)
        all_low = tl.maximum(all_low, last_key - masks.right)
    if FLAGS.CAUSAL:
        low = tl.maximum(low, first_key)
        all_low = tl.maximum(all_low, last_key)
    if FLAGS.HAS_LEFT:
        last_end, first_end = last_key + masks.left + 1, first_key + masks.left + 1
        high = tl.where(last_end <= first_target, tl.minimum(high, last_end), high)
        all_high = tl.where(first_end <= first_target, tl.minimum(all_high, first_end), all_high)
    first, global_end = shift, shift
    if FLAGS.HAS_GLOBAL:
        first = tl.maximum(shift, 0)
        if FLAGS.CAUSAL:
            first = tl.maximum(first, first_key)
        has_global_key = first_key < masks.num_global
        high = tl.where(has_global_key, num_keys, high)
        low = tl.where(has_global_key, first if FLAGS.CAUSAL else shift, low)
        global_end = tl.where(has_global_key, first, tl.maximum(first, tl.minimum(masks.num_global, num_keys)))
        low = tl.maximum(low, tl.where(has_global_key, low, global_end))
    high = tl.maximum(high, low)
    if FLAGS.HAS_TARGETS:  # keys with a target among them have no inner part, those of history alone no own queries
        all_high = tl.where(last_key < first_target, all_high, low)
        high = tl.where(is_history, high, low)
        global_end = tl.where(is_history, global_end, first)
    inner = low + tl.cdiv(tl.maximum(all_low - low, 0), BLOCK) * BLOCK
    num_inner = tl.maximum(tl.minimum(all_high, high) - inner, 0) // BLOCK
    inner = tl.where(num_inner > 0, inner, low)
    inner_end = inner + num_inner * BLOCK
    own, own_end = shift, shift
    if FLAGS.HAS_TARGETS:
        own, own_end = _groups(first_key, last_key, first_target, masks.target_group)
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
def _groups(first, last, first_target, target_group):
    """Begin and end of the groups from that of the target at `first` to that of the one at `last`."""
    from_first = tl.maximum(first - first_target, 0)
    from_last = tl.maximum(last - first_target, 0)
    begin = first_target + from_first - from_first % target_group
    return begin, first_target + from_last - from_last % target_group + target_group


@triton.jit
def num_edges(spans, BLOCK: tl.constexpr):
    """Blocks outside the inner part."""
    first, global_end, low, inner, inner_end, high, own, own_end = spans
    num_global, num_own = tl.cdiv(global_end - first, BLOCK), tl.cdiv(own_end - own, BLOCK)
    return num_global + (inner - low) // BLOCK + tl.cdiv(high - inner_end, BLOCK) + num_own


@triton.jit
def edge(t, spans, BLOCK: tl.constexpr):
    """Start and end of the t-th edge; the end may lie before start + BLOCK."""
    first, global_end, low, inner, inner_end, high, own, own_end = spans
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


@triton.jit
def num_inner(spans, BLOCK: tl.constexpr):
    """Blocks of the inner part."""
    return (spans[4] - spans[3]) // BLOCK
