# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-calls, allow-untyped-decorators
"""What the kernels of sampled_loss share: logits, a row's loss block by block, and the derivative by each logit.

A row's state is (m, z, num): the highest logit so far and the sum of exp(logit - m), or of the softplus for bce, over
the num negatives that count. Ids outside [0, V) give NaN, but for -1, which does not count.

[M] rows, [K] negatives, [D] width.
"""

import triton
import triton.language as tl

SOFTMAX = tl.constexpr(0)
LOGQ = tl.constexpr(1)
BINARY = tl.constexpr(2)


@triton.jit
def log1p(x):
    one_more = 1.0 + x
    # The quotient makes up for what 1 + x rounds off.
    return tl.where(one_more == 1.0, x, tl.log(one_more) * (x / tl.where(one_more == 1.0, 1.0, one_more - 1.0)))


@triton.jit
def softplus(x):
    return tl.maximum(x, 0.0) + log1p(tl.exp(-tl.abs(x)))


@triton.jit
def sigmoid(x):
    return 1.0 / (1.0 + tl.exp(-tl.maximum(x, -80.0)))  # 2e-35 there; exp(89) is no float32


@triton.jit
def known(ids, V):
    """Ids that may be read: 0 for those that lie outside."""
    return tl.where((ids >= 0) & (ids < V), ids, 0)


@triton.jit
def item_vectors(ids, given, d, FLAGS: tl.constexpr):
    """[K, D]; zeros for -1 and for ids outside."""
    here = ((ids >= 0) & (ids < given.V))[:, None] & (d < FLAGS.D)[None, :]
    return tl.load(given.w + known(ids, given.V)[:, None] * FLAGS.D + d[None, :], mask=here, other=0.0)


@triton.jit
def offsets_of(ids, given, FLAGS: tl.constexpr):
    """bias - log q of negatives, NaN where an id lies outside."""
    offset = tl.where((ids >= -1) & (ids < given.V), 0.0, float("nan")).to(FLAGS.ACC)
    if FLAGS.HAS_BIAS:
        offset += tl.load(given.bias + known(ids, given.V)).to(FLAGS.ACC)
    if FLAGS.HAS_LOG_Q:
        offset -= tl.load(given.log_q + known(ids, given.V)).to(FLAGS.ACC)
    return offset


@triton.jit
def target_terms(product, target, given, FLAGS: tl.constexpr):
    """The targets' logits, of softmax less their log q; and that log q, or 0."""
    s = product + tl.where((target >= 0) & (target < given.V), 0.0, float("nan")).to(FLAGS.ACC)
    log_q = tl.zeros_like(s)
    if FLAGS.HAS_BIAS:
        s += tl.load(given.bias + known(target, given.V)).to(FLAGS.ACC)
    if FLAGS.HAS_LOG_Q:
        log_q = tl.load(given.log_q + known(target, given.V)).to(FLAGS.ACC)
        if FLAGS.KIND == SOFTMAX:
            s -= log_q
    return s, log_q


@triton.jit
def first_state(s, KIND: tl.constexpr):
    """The state before the first negative; the softmax's maximum begins at the target."""
    m = s if KIND == SOFTMAX else tl.full(s.shape, float("-inf"), s.dtype)
    return m, tl.zeros_like(s), tl.zeros(s.shape, tl.int32)


@triton.jit
def next_state(a, counts, m, z, num, KIND: tl.constexpr):
    """The state after the logits `a` [M, K], of which those with `counts` count."""
    num += tl.sum(counts.to(tl.int32), axis=1)
    if KIND == BINARY:
        z += tl.sum(tl.where(counts, softplus(a), 0.0), axis=1)
    else:
        a = tl.where(counts, a, float("-inf"))
        highest = tl.maximum(m, tl.max(a, axis=1))
        pivot = tl.where(highest == float("-inf"), 0.0, highest)
        z = z * tl.exp(m - pivot) + tl.sum(tl.exp(a - pivot[:, None]), axis=1)
        m = highest
    return m, z, num


@triton.jit
def row_terms(s, log_q, m, z, num, KIND: tl.constexpr, BETA: tl.constexpr):
    """Losses, derivatives by the targets' logits, and (scale, pivot) of `coefficients`."""
    if KIND == SOFTMAX:
        whole = z + tl.exp(s - m)
        loss, of_target, scale = m + tl.log(whole) - s, -z / whole, 1.0 / whole
    elif KIND == LOGQ:
        m, z = tl.where(num > 0, m, 0.0), tl.where(num > 0, z, 1.0)
        gap = m + tl.log(z) + log1p(-tl.exp(log_q)) - s
        count = tl.maximum(num, 1).to(s.dtype)
        rest = tl.where(num > 0, sigmoid(gap - tl.log(count)), 0.0)  # 1 - p
        loss, of_target, scale = rest * gap, -rest, rest / z
    else:
        scale = 1.0 / (num + 1).to(s.dtype)
        loss, of_target = (z + BETA * softplus(-s)) * scale, -BETA * sigmoid(-s) * scale
        m = tl.zeros_like(s)
    return loss, of_target, scale, m


@triton.jit
def coefficients(a, counts, pivot, KIND: tl.constexpr):
    """Derivatives by the logits `a`, but for the row's factor `scale`: between 0 and 1."""
    if KIND == BINARY:
        return tl.where(counts, sigmoid(a), 0.0)
    return tl.where(counts, tl.exp(tl.where(counts, a - pivot, 0.0)), 0.0)
