"""Ways to break each Triton kernel that a test of its op must notice: text of its file, and what takes its place."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Mutation:
    """One change.

    Attributes:
        file: below recsys/kernels.
        what: in a few words, for the table.
        old: text that stands in the file exactly once.
        new: what takes its place.
        tests: files or folders below tests/kernels/interp that must fail, space between.
        chosen: of those tests, only the ones whose name fits (pytest's -k).
    """

    file: str
    what: str
    old: str
    new: str
    tests: str
    chosen: str = ""


CE_FORWARD, CE_BACKWARD = (f"linear_cross_entropy/triton_{part}.py" for part in ("forward", "backward"))
CE_TESTS = "test_linear_cross_entropy.py"
SEARCH, ATTEND, SEARCH_TESTS = "search/triton_search.py", "search/triton_attend.py", "test_search.py"

FORWARD, QUERIES, KEYS, SHORT, GRADIENTS, POSITIONS, SCORES, SPANS = (
    f"attention/triton_path/triton_{part}.py"
    for part in (
        *("forward", "backward_queries", "backward_keys", "backward_short"),
        *("gradients", "positions", "scores", "spans"),
    )
)
ATTENTION_TESTS = "test_attention.py"

_ATTENTION = (
    (SPANS, "causal hides the query's own key", "seen = seen & (key <= p)", "seen = seen & (key < p)"),
    (SPANS, "the window is one wider", "seen & (key >= p - masks.left)", "seen & (key >= p - masks.left - 1)"),
    (SPANS, "targets see each other", "both & (group_of_query == group_of_key)", "both"),
    (
        SPANS,
        "inner blocks reach past what all see",
        "all_high = tl.minimum(all_high, a + 1)",
        "all_high = all_high + 0",
    ),
    (SPANS, "keys stop a block early", "high = tl.minimum(high, b + 1)", "high = tl.minimum(high, b)"),
    (SPANS, "queries begin too late", "low = tl.maximum(low, first_key)", "low = tl.maximum(low, first_key + 1)"),
    (SCORES, "a doubling's half begins late", "(fraction >= 3037000500)", "(fraction >= 3137000500)"),
    (SCORES, "float32's rounding stands", "== 0, exponent - 1, exponent)", "== 0, exponent, exponent)"),
    (SCORES, "an unseen row has weights", 'tl.where(lse == float("-inf"), float("inf"), lse)', "lse"),
    (
        SCORES,
        "distances are not clipped",
        "tl.minimum(tl.maximum(distance, -reach), reach)",
        "tl.maximum(distance, -reach)",
    ),
    (SCORES, "silu's slope is its gate", "return s * (1.0 + x * (1.0 - s))", "return s"),
    (
        FORWARD,
        "the sum keeps an old maximum",
        "total = total * shrink + tl.sum(weights, 1)",
        "total += tl.sum(weights, 1)",
    ),
    (FORWARD, "scores without their scale", "out_dtype=FLAGS.ACC) * scale", "out_dtype=FLAGS.ACC)"),
    (FORWARD, "kept weights are not made up for", "acc = acc / dropout.kept_share", "acc = acc * 1.0"),
    (
        "attention/triton_path/passes.py",
        "targets do not look ahead",
        "looks_ahead = not causal or arguments.num_targets is not None",
        "looks_ahead = not causal",
    ),
    (QUERIES, "delta is left out", "(grad_weights - delta[:, None])", "grad_weights"),
    (QUERIES, "dq without its scale", "dq * scale, m", "dq, m"),
    (QUERIES, "no gradient by the lse", "delta -= grad_lse", "delta -= 0.0 * grad_lse"),
    (KEYS, "dk without its scale", "dk * scale, n", "dk, n"),
    (SHORT, "dq without its scale", "(dq * scale).to(", "dq.to("),
    (
        SHORT,
        "queries past the end count",
        "seen = in_n[:, None] & in_m[None, :]",
        "seen = in_n[:, None] | in_m[None, :]",
    ),
    (
        GRADIENTS,
        "dropped weights have a gradient",
        "grad_weights = tl.where(kept, grad_weights / dropout.kept_share, 0.0)",
        "grad_weights = grad_weights / dropout.kept_share",
    ),
    (GRADIENTS, "the last bucket of a tile is left out", "range(least, most + 1)", "range(least, most)"),
    (POSITIONS, "the diagonals are swapped", "is_same = r[:, None] >= r[None, :]", "is_same = r[:, None] > r[None, :]"),
)
_JOINED = (
    (
        FORWARD,
        "parts are joined unshrunk",
        "acc = acc * shrink[:, None] + part * weight[:, None]",
        "acc = acc + part * weight[:, None]",
    ),
    (FORWARD, "the parts' sum keeps an old maximum", "total = total * shrink + weight", "total = total + weight"),
    (FORWARD, "of SiLU's parts the last alone", "acc += part", "acc = part"),
    (FORWARD, "all parts have the first's lse", "part_lse_ptr += part_lse_s", "part_lse_ptr += 0 * part_lse_s"),
)
_CROSS_ENTROPY = (
    (CE_FORWARD, "an item past the catalogue counts", "in_items = items < V", "in_items = items <= V"),
    (
        CE_FORWARD,
        "columns of padding count",
        'offset = tl.where(in_items, offset, float("-inf"))',
        "offset = tl.where(in_items, offset, 0.0)",
    ),
    (
        CE_FORWARD,
        "the target counts twice",
        's = tl.where(items[None, :] == target[:, None], float("-inf"), s)',
        "s = s + 0.0",
    ),
    (CE_FORWARD, "logits without their scale", "s = s * (scale * LOG2_E) + offset", "s = s * LOG2_E + offset"),
    (
        CE_FORWARD,
        "the sum keeps an old maximum",
        "total = total * shrink + tl.sum(e, 1)",
        "total = total + tl.sum(e, 1)",
    ),
    (CE_FORWARD, "the slope keeps an old maximum", "w, acc * shrink[:, None], input", "w, acc, input"),
    (CE_FORWARD, "ranges are added unshrunk", "rest = rest * shrink +", "rest = rest +"),
    (CE_FORWARD, "a target V passes", "(target >= 0) & (target < V)", "(target >= 0) & (target <= V)"),
    (CE_FORWARD, "the slope without its scale", "slope * scale, 0.0)", "slope, 0.0)"),
    (CE_FORWARD, "no smoothing in the slope", "slope -= smoothing * mean_w[None, :]", "slope -= 0.0 * mean_w[None, :]"),
    (CE_BACKWARD, "logits without their scale", "tl.exp2(s * (scale * LOG2_E)", "tl.exp2(s * LOG2_E"),
    (CE_BACKWARD, "no smoothing in the gradient", "grad -= spread", "grad -= 0.0"),
    (CE_BACKWARD, "the target's gradient is like another's", "hit[None, :], p)", "p, p)"),
    (
        CE_BACKWARD,
        "a row past the end counts",
        "rate = tl.load(rate_ptr + rows, mask=in_rows, other=0.0)",
        "rate = tl.load(rate_ptr + rows, mask=in_rows, other=1.0)",
    ),
)
_SEARCH = (
    (SEARCH, "a behaviour past the history counts", "in_k = column < num_k", "in_k = column <= num_k"),
    (
        SEARCH,
        "columns of padding count",
        "tl.where(in_c[:, None] & in_k[None, :], keys, empty)",
        "tl.where(in_c[:, None], keys, empty)",
    ),
    (SEARCH, "scores without their scale", "scores = scale * _products(", "scores = _products("),
    (SEARCH, "-0.0 is less than 0.0", "scores = tl.where(scores == 0.0, 0.0, scores)", "scores = scores"),
    (
        SEARCH,
        "a NaN is the best",
        "tl.where(is_nan, -(2**31) + 1, bits ^",
        "tl.where(is_nan, 2**31 - 1, bits ^",
    ),
    (SEARCH, "tiles are skipped by the best kept", "worst = tl.min(best, axis=1)", "worst = tl.max(best, axis=1)"),
    (SEARCH, "spans are merged in the wrong direction", "+ (KEPT - 1 - j))[None, :]", "+ j)[None, :]"),
    (
        SEARCH,
        "of equal scores the later",
        "& (i[None, None, :] < i[None, :, None])",
        "& (i[None, None, :] > i[None, :, None])",
    ),
    (SEARCH, "what is not there has a place", "column = tl.where(is_out, -1, column)", "column = column + 0"),
    (
        ATTEND,
        "what is not kept counts",
        'scores = tl.where(is_kept, scores, float("-inf"))',
        "scores = tl.where(is_kept, scores, 0.0)",
    ),
    (ATTEND, "the sum keeps an old maximum", "total = total * shrink +", "total = total +"),
    (
        ATTEND,
        "what is not kept has a gradient",
        'weights = tl.exp(tl.where(is_kept, scores, float("-inf")) - lse)',
        "weights = tl.exp(scores - lse)",
    ),
    (ATTEND, "no mean is taken off the rates", "grad[None, :], axis=1) - mean_rate)", "grad[None, :], axis=1))"),
    (ATTEND, "dq without its scale", "dq * scale, mask", "dq, mask"),
    (ATTEND, "dk without its scale", "dk * scale, mask", "dk, mask"),
    (ATTEND, "each pair writes its run", "if row != before:", "if row >= 0:"),
)

TERMS, ROWS, TILES, SUMS, EMBEDDING = (
    "sampled_loss/triton_terms.py",
    "sampled_loss/triton_rows.py",
    "sampled_loss/triton_tiles.py",
    "segment_sum/triton_segment_sum.py",
    "jagged_embedding/triton_embedding.py",
)
SAMPLED_TESTS, SUM_TESTS, EMBEDDING_TESTS = "test_sampled_loss.py", "test_segment_sum.py", "test_jagged_embedding.py"

_SAMPLED = (
    (TERMS, "no logarithm of the count", "sigmoid(gap - tl.log(count))", "sigmoid(gap)"),
    (TERMS, "no 1 - q of the target", "log1p(-tl.exp(log_q)) - s", "0.0 * log_q - s"),
    (TERMS, "beta is left out", "BETA * softplus(-s)) * scale, -BETA", "softplus(-s)) * scale, -1.0"),
    (TERMS, "the sum keeps an old maximum", "z = z * tl.exp(m - pivot) +", "z = z +"),
    (TERMS, "what does not count has a slope", "tl.where(counts, sigmoid(a), 0.0)", "sigmoid(a)"),
    (ROWS, "the target is a negative too", "(ids[None, :] != target[:, None])", "(ids[None, :] != -2)"),
    (ROWS, "coefficients without their factor", "e * factor, mask=k < K", "e, mask=k < K"),
    (
        TILES,
        "forward: a slot of -1 counts",
        "counts = (ids != -1)[None, :] & (ids[None, :] != target[:, None])",
        "counts = ids[None, :] != target[:, None]",
    ),
    (
        TILES,
        "forward: the target is a negative too",
        "counts = (ids != -1)[None, :] & (ids[None, :] != target[:, None])",
        "counts = (ids != -1)[None, :] & is_row[:, None]",
    ),
    (
        TILES,
        "dx: the target is a negative too",
        "counts = is_row[:, None] & (ids != -1)[None, :] & (ids[None, :] != target[:, None])",
        "counts = is_row[:, None] & (ids != -1)[None, :]",
    ),
    (TILES, "dx: nothing of the target", "dx += of_item * (weight", "dx += 0.0 * of_item * (weight"),
    (TILES, "dx: no weight of the row", "dx *= (weight * tl.load(", "dx *= (1.0 * tl.load("),
    (
        TILES,
        "dw: the target is a negative too",
        "(ids != -1)[:, None] & (ids[:, None] != target[None, :])",
        "(ids != -1)[:, None]",
    ),
    (
        TILES,
        "dw: no scale of the row",
        "factor *= tl.load(states.scale + row, mask=is_row, other=0.0)",
        "factor *= 1.0",
    ),
    (TILES, "dw: the bias has the last rows alone", "dbias += tl.sum(e, axis=1)", "dbias = tl.sum(e, axis=1)"),
    (TILES, "slots past the list count", "mask=k < K, other=-1)", "mask=k < K, other=0)"),
    (TILES, "a product has its last columns alone", "tl.dot(rows, columns, a, input", "tl.dot(rows, columns, input"),
)
_SUMS = (
    (
        SUMS,
        "the first pair behind the chunks stays out",
        "tail_begin = tl.maximum(last_chunk * CHUNK, head_end)",
        "tail_begin = tl.maximum(last_chunk * CHUNK + 1, head_end)",
    ),
    (SUMS, "a chunk too many", "here = (chunk < last_chunk)", "here = (chunk <= last_chunk)"),
    (SUMS, "chunks are never summed beforehand", "if (first == last) & (first >= 0):", "if first < -5:"),
)
_EMBEDDING = (
    (EMBEDDING, "the gradient without its scale", "scale=scale * factor)", "scale=factor)"),
    (EMBEDDING, "the padding row has a gradient", "grad_w[padding_idx] = 0.0", "pass"),
    (EMBEDDING, "rows without their scale", "D, ACC) * SCALE", "D, ACC)"),
    (EMBEDDING, "kept values are not made up for", "tl.where(is_kept, x * FACTOR, 0.0)", "tl.where(is_kept, x, 0.0)"),
    (EMBEDDING, "a number of no row gives 0", 'tl.where(is_there[:, None], rows, float("nan"))', "rows"),
    (EMBEDDING, "the kept are dropped", ".to(tl.int32) >= THRESHOLD", ".to(tl.int32) < THRESHOLD"),
    (
        EMBEDDING,
        "dropped values have a gradient",
        "tl.where(_is_kept(row_hash_ptr, column_hash_ptr, t, d, T, D, THRESHOLD), x, 0.0)",
        "x",
    ),
    (EMBEDDING, "kept values have no gradient", "THRESHOLD), x, 0.0)", "THRESHOLD), 0.0, x)"),
)

MUTATIONS: tuple[Mutation, ...] = (
    *(Mutation(*change, ATTENTION_TESTS) for change in _ATTENTION),
    *(Mutation(*change, ATTENTION_TESTS, "split_keys") for change in _JOINED),
    *(Mutation(*change, CE_TESTS) for change in _CROSS_ENTROPY),
    *(Mutation(*change, SEARCH_TESTS) for change in _SEARCH),
    *(Mutation(*change, SAMPLED_TESTS) for change in _SAMPLED),
    *(Mutation(*change, SUM_TESTS) for change in _SUMS),
    *(Mutation(*change, EMBEDDING_TESTS) for change in _EMBEDDING),
)
