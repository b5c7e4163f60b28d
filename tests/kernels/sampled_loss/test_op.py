import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend

from recsys.kernels.linear_cross_entropy import linear_cross_entropy
from recsys.kernels.sampled_loss import sampled_loss, sampled_loss_reference, tiles

KINDS = ["softmax", "logq", "bce", "gbce"]


def _inputs(N: int, V: int, D: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(seed)
    x, w, bias = (torch.randn(*size, generator=generator, dtype=torch.float64) for size in ((N, D), (V, D), (V,)))
    target = torch.randint(0, V, (N,), generator=generator)
    return x.to(dtype).requires_grad_(), w.to(dtype).requires_grad_(), bias.to(dtype).requires_grad_(), target


def _log_q(V: int, seed: int = 0) -> Tensor:
    q = torch.rand(V, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) + 0.1
    return (0.9 * q / q.sum()).log()


def _negatives(sharing: str, N: int, G: int, K: int, V: int, seed: int) -> dict[str, Tensor]:
    """Lists of negatives in one of three shapes; some slots hold -1."""
    generator = torch.Generator().manual_seed(seed)
    size = {"all": (K,), "groups": (G, K), "rows": (N, K)}[sharing]
    negatives = torch.randint(-1, V, size, generator=generator)
    if sharing != "groups":
        return {"negatives": negatives}
    return {"negatives": negatives, "groups": torch.randint(0, G, (N,), generator=generator)}


def _extra(kind: str, V: int) -> dict[str, Any]:
    return {"kind": kind, "log_q": _log_q(V) if kind == "logq" else None, "beta": 0.3 if kind == "gbce" else 1.0}


@pytest.mark.parametrize("kind", KINDS)
def test_autocast_narrows_neither_value_nor_gradient(kind: str) -> None:
    x, w, bias, target = _inputs(64, 31, 16, dtype=torch.float32)
    negatives = _negatives("all", 64, 1, 20, 31, seed=1)["negatives"]

    def run() -> tuple[Tensor, ...]:
        loss = sampled_loss(x, w, target, negatives, bias=bias, **_extra(kind, 31))
        return (loss.detach(), *torch.autograd.grad(loss, (x, w, bias)))

    plain = run()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = run()
    for one, other in zip(plain, inside, strict=True):
        assert torch.equal(one, other)


@settings(max_examples=150, deadline=None)
@given(
    N=st.sampled_from([0, 1, 2, 17, 63, 130]),
    V=st.sampled_from([2, 3, 31, 257]),
    D=st.sampled_from([1, 8, 50]),
    G=st.sampled_from([1, 2, 7]),
    K=st.sampled_from([0, 1, 5, 64]),
    sharing=st.sampled_from(["all", "groups", "rows"]),
    kind=st.sampled_from(KINDS),
    has_bias=st.booleans(),
    has_log_q=st.booleans(),
    reduction=st.sampled_from(["mean", "sum", "none"]),
    cache=st.sampled_from([1, 20_000, 1 << 24]),
    seed=st.integers(0, 99),
)
@example(
    N=63,
    V=3,
    D=50,
    G=1,
    K=64,
    sharing="rows",
    kind="logq",
    has_bias=True,
    has_log_q=False,
    reduction="none",
    cache=1,
    seed=76,
)
def test_it_equals_its_definition_in_value_and_gradient(
    N: int,
    V: int,
    D: int,
    G: int,
    K: int,
    sharing: str,
    kind: str,
    has_bias: bool,
    has_log_q: bool,
    reduction: Any,
    cache: int,
    seed: int,
) -> None:
    x, w, bias, target = _inputs(N, V, D, seed)
    leaves = [x, w, bias] if has_bias else [x, w]
    arguments: dict[str, Any] = {**_extra(kind, V), **_negatives(sharing, N, G, K, V, seed), "reduction": reduction}
    arguments["bias"] = bias if has_bias else None
    if kind == "softmax" and has_log_q:
        arguments["log_q"] = _log_q(V, seed)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tiles, "CACHE_BYTES", cache)
        found = sampled_loss(x, w, target, **arguments)
        share = torch.randn(found.shape, dtype=found.dtype, generator=torch.Generator().manual_seed(seed))
        grads = torch.autograd.grad(found, leaves, share)
    expected = sampled_loss_reference(x, w, target, **arguments)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    wanted = torch.autograd.grad(expected, leaves, share, allow_unused=True, materialize_grads=True)
    for a, b in zip(grads, wanted, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("kind", ["softmax", "bce", "gbce"])
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_gradients_are_those_of_finite_differences(kind: str, reduction: Any) -> None:
    x, w, bias, target = _inputs(5, 9, 3)
    lists: dict[str, Any] = _negatives("groups", 5, 2, 4, 9, 0)

    def run(x: Tensor, w: Tensor, bias: Tensor) -> Tensor:
        return sampled_loss(x, w, target, bias=bias, reduction=reduction, **lists, **_extra(kind, 9))

    assert torch.autograd.gradcheck(run, (x, w, bias))


def test_gradients_of_logq_are_those_of_finite_differences_once_its_weight_is_held() -> None:
    x, w, _, target = _inputs(5, 9, 3)
    log_q = _log_q(9)
    negatives = torch.tensor([0, 3, 4, 8])
    counts = negatives != target[:, None]
    rest: list[Tensor] = []

    def run(x: Tensor, w: Tensor) -> Tensor:
        s, a = (x * w[target]).sum(1), x @ w[negatives].t() - log_q[negatives]
        terms = torch.exp(a) * counts * (1 - log_q[target].exp())[:, None]
        if not rest:
            rest.append(1 - s.exp() / (s.exp() + terms.sum(1) / counts.sum(1)))
        return (rest[0].detach() * (terms.sum(1).log() - s)).mean()

    assert torch.autograd.gradcheck(run, (x, w))
    found = sampled_loss(x, w, target, negatives, kind="logq", log_q=log_q)
    torch.testing.assert_close(found, run(x, w))
    for a, b in zip(*(torch.autograd.grad(loss, (x, w)) for loss in (found, run(x, w))), strict=True):
        torch.testing.assert_close(a, b)


def test_by_hand() -> None:
    """One row of two negatives, logits 1 for the target and 2, -1 for them."""
    x, w = torch.ones(1, 1, dtype=torch.float64), torch.tensor([[1.0], [2.0], [-1.0]], dtype=torch.float64)
    target, negatives = torch.tensor([0]), torch.tensor([1, 2])
    e = torch.exp(torch.tensor([1.0, 2.0, -1.0], dtype=torch.float64))

    def found(**arguments: Any) -> float:
        return sampled_loss(x, w, target, negatives, **arguments).item()

    assert found() == pytest.approx(float(-(e[0] / e.sum()).log()))
    sigmoid = e / (1 + e)
    no = float((1 - sigmoid[1:]).log().sum())
    yes = float(sigmoid[0].log())
    assert found(kind="bce") == pytest.approx(-(yes + no) / 3)
    assert found(kind="gbce", beta=0.25) == pytest.approx(-(0.25 * yes + no) / 3)
    q = torch.tensor([0.2, 0.5, 0.3], dtype=torch.float64)
    corrected = float((e[1:] / (q[1:] / 0.8)).sum())
    p = float(e[0]) / (float(e[0]) + corrected / 2)
    wanted = (1 - p) * (math.log(corrected) - 1.0)
    assert found(kind="logq", log_q=q.log()) == pytest.approx(wanted, rel=1e-12)


def test_with_all_other_items_softmax_is_the_full_cross_entropy() -> None:
    x, w, bias, target = _inputs(30, 40, 8)
    found = sampled_loss(x, w, target, torch.arange(40), bias=bias)
    full = linear_cross_entropy(x, w, target, bias=bias)
    torch.testing.assert_close(found, full)
    for a, b in zip(*(torch.autograd.grad(loss, (x, w, bias)) for loss in (found, full)), strict=True):
        torch.testing.assert_close(a, b)


def test_gbce_with_a_factor_of_one_is_bce() -> None:
    x, w, bias, target = _inputs(30, 40, 8)
    negatives = torch.arange(0, 40, 3)
    bce = sampled_loss(x, w, target, negatives, kind="bce", bias=bias)
    assert torch.equal(sampled_loss(x, w, target, negatives, kind="gbce", beta=1.0, bias=bias), bce)
    assert sampled_loss(x, w, target, negatives, kind="gbce", beta=0.9, bias=bias) < bce


def test_a_constant_added_to_log_q_changes_no_softmax() -> None:
    x, w, _, target = _inputs(30, 40, 8)
    negatives, log_q = torch.arange(0, 40, 3), _log_q(40)
    plain = sampled_loss(x, w, target, negatives)
    torch.testing.assert_close(sampled_loss(x, w, target, negatives, log_q=torch.full((40,), -3.0)), plain)
    corrected = sampled_loss(x, w, target, negatives, log_q=log_q)
    torch.testing.assert_close(sampled_loss(x, w, target, negatives, log_q=log_q + 5.0), corrected)
    assert abs((corrected - plain).item()) > 1e-3


def test_the_gradient_of_logq_is_on_average_that_of_the_full_cross_entropy() -> None:
    x, w, _, target = _inputs(4, 12, 3)
    log_q = (_log_q(12).softmax(0)).log()
    generator = torch.Generator().manual_seed(0)
    rounds, K = 300, 400
    (full,) = torch.autograd.grad(linear_cross_entropy(x, w, target), x)
    total = torch.zeros_like(full)
    for _ in range(rounds):
        negatives = torch.multinomial(log_q.exp(), K, replacement=True, generator=generator)
        total += torch.autograd.grad(sampled_loss(x, w, target, negatives, kind="logq", log_q=log_q), x)[0]
    torch.testing.assert_close(total / rounds, full, rtol=0.03, atol=2e-3)


@pytest.mark.parametrize("kind", KINDS)
def test_a_negative_that_is_the_target_is_neither_met_nor_counted(kind: str) -> None:
    x, w, _, target = _inputs(6, 20, 4)
    others = torch.tensor([[n for n in range(20) if n != int(t)][:5] for t in target])
    colliding = torch.cat([target[:, None], others, target[:, None], torch.full((6, 1), -1)], 1)
    arguments = _extra(kind, 20)
    alone, found = (sampled_loss(x, w, target, ids, **arguments) for ids in (others, colliding))
    torch.testing.assert_close(found, alone)
    for a, b in zip(*(torch.autograd.grad(loss, (x, w)) for loss in (found, alone)), strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("kind", KINDS)
def test_a_row_without_negatives_has_its_targets_term_alone(kind: str) -> None:
    x, w, _, target = _inputs(3, 20, 4)
    for ids in (target[:, None], torch.full((3, 2), -1), torch.empty(3, 0, dtype=torch.int64)):
        losses = sampled_loss(x, w, target, ids, reduction="none", **_extra(kind, 20))
        s = (x * w[target]).sum(1)
        factor = {"bce": 1.0, "gbce": 0.3}.get(kind, 0.0)
        torch.testing.assert_close(losses, -factor * F.logsigmoid(s))
        for grad in torch.autograd.grad(losses.sum(), (x, w)):
            assert bool(torch.isfinite(grad).all())
            assert (float(grad.abs().sum()) > 0) == (factor > 0)


def test_items_that_are_neither_target_nor_negative_get_no_gradient_even_if_they_are_nan() -> None:
    x, w, _, target = _inputs(6, 30, 4)
    negatives = torch.tensor([1, 4, 6])
    met = torch.unique(torch.cat([target, negatives]))
    with torch.no_grad():
        w[[n for n in range(30) if n not in met.tolist()]] = float("nan")
    loss = sampled_loss(x, w, target, negatives)
    (grad,) = torch.autograd.grad(loss, w)
    assert torch.isfinite(loss)
    assert torch.equal(grad.abs().sum(1).nonzero().squeeze(1), met)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", [30.0, 500.0])
def test_large_logits_neither_overflow_nor_vanish(kind: str, size: float) -> None:
    x, w, _, target = _inputs(40, 60, 8, dtype=torch.float32)
    arguments = {**_extra(kind, 60), "negatives": torch.arange(0, 60, 2)}
    if arguments["log_q"] is not None:
        arguments["log_q"] = arguments["log_q"].float()
    wide = [t.detach().double().requires_grad_() for t in (x, w)]
    found, expected = (
        sampled_loss(x * size, w, target, **arguments),
        sampled_loss_reference(wide[0] * size, wide[1], target, **arguments),
    )
    torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=1e-4)
    pairs = zip(torch.autograd.grad(found, (x, w)), torch.autograd.grad(expected, wide), strict=True)
    for a, b in pairs:
        torch.testing.assert_close(a.double(), b, rtol=1e-2, atol=1e-3 * float(b.abs().max()))


def test_the_gradient_of_a_scaled_loss_is_scaled_and_may_be_asked_twice() -> None:
    x, w, _, target = _inputs(6, 9, 4)
    loss = sampled_loss(x, w, target, torch.tensor([1, 2]))
    once = torch.autograd.grad(loss, w, retain_graph=True)[0].clone()
    torch.testing.assert_close(torch.autograd.grad(3 * loss, w, retain_graph=True)[0], 3 * once)
    torch.testing.assert_close(torch.autograd.grad(loss, w)[0], once)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_narrow_inputs_are_computed_wide_and_get_gradients_of_their_own_dtype(dtype: torch.dtype) -> None:
    x, w, bias, target = _inputs(20, 50, 8, dtype=dtype)
    wide = [t.detach().float().requires_grad_() for t in (x, w, bias)]
    negatives = torch.arange(0, 50, 3)
    found = sampled_loss(x, w, target, negatives, bias=bias)
    expected = sampled_loss_reference(wide[0], wide[1], target, negatives, bias=wide[2])
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected)
    pairs = zip(torch.autograd.grad(found, (x, w, bias)), torch.autograd.grad(expected, wide), strict=True)
    for a, b in pairs:
        assert a.dtype == dtype
        torch.testing.assert_close(a.float(), b, rtol=1e-2, atol=1e-4)


@pytest.mark.parametrize(("kind", "sharing"), [("logq", "groups"), ("softmax", "all")])
def test_two_graphs_at_most_for_all_batches(kind: str, sharing: str) -> None:
    def run(x: Tensor, w: Tensor, bias: Tensor, target: Tensor, lists: dict[str, Tensor], log_q: Tensor) -> Tensor:
        return sampled_loss(x, w, target, bias=bias, log_q=log_q, kind=kind, **lists)  # type: ignore[arg-type]  # names of kinds and of lists

    torch._dynamo.reset()
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(run, backend=counter, fullgraph=True)
    for step in range(5):
        x, w, bias, target = _inputs(5 + 3 * step, 20, 4, step)
        lists = _negatives(sharing, len(x), 3 + step, 4 + step, 20, step)
        found, expected = (f(x, w, bias, target, lists, _log_q(20)) for f in (compiled, run))
        torch.testing.assert_close(found, expected)
        pairs = (torch.autograd.grad(loss, (x, w, bias)) for loss in (found, expected))
        for a, b in zip(*pairs, strict=True):
            torch.testing.assert_close(a, b)
    assert counter.frame_count <= 2


def test_the_custom_op_keeps_its_promises() -> None:
    x, w, bias, target = _inputs(6, 9, 4)
    lists = _negatives("groups", 6, 2, 5, 9, 0)
    op = torch.ops.recsys.sampled_loss.default
    torch.library.opcheck(op, (x, w, bias, target, lists["negatives"], lists["groups"], None, "gbce", 0.3))
    torch.library.opcheck(op, (x, w, None, target, lists["negatives"][0], None, _log_q(9), "logq", 1.0))


def test_the_path_may_be_the_definition(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RECSYS_KERNELS", "reference")
    x, w, bias, target = _inputs(6, 9, 4)
    found, expected = (
        run(x, w, target, torch.tensor([1, 2]), bias=bias) for run in (sampled_loss, sampled_loss_reference)
    )
    assert torch.equal(found, expected)


GOOD: dict[str, Any] = {
    "x": torch.zeros(3, 5),
    "w": torch.zeros(4, 5),
    "target": torch.zeros(3, dtype=torch.int64),
    "negatives": torch.tensor([1, 2]),
}
REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"w": torch.zeros(4, 2)}, r"x has the shape \(3, 5\), w has \(4, 2\); wanted \(N, D\) and \(V, D\)"),
    ({"w": torch.zeros(0, 5)}, "w has V=0 rows; wanted at least one item"),
    ({"kind": "bce", "beta": 0.5}, "kind='bce' has no use for beta=0.5; wanted kind='gbce', or no beta"),
    ({"kind": "logq", "log_q": torch.full((4,), -1e-9)}, r"log_q\[0\]=-9.99\S* wanted below -1e-7"),
    ({"target": torch.zeros(2, dtype=torch.int64)}, r"target has the shape \(2,\), x has N=3 rows; wanted \(3,\)"),
    ({"target": torch.zeros(3, dtype=torch.int32)}, "target is torch.int32; wanted int64"),
    ({"target": torch.tensor([0, 4, 1])}, "target holds 4; wanted 0 to 3"),
    ({"negatives": torch.tensor([0, 4])}, "negatives holds 4; wanted -1 to 3"),
    ({"negatives": torch.tensor([0, -2])}, "negatives holds -2; wanted -1 to 3"),
    ({"negatives": torch.tensor([0.0])}, "negatives is torch.float32; wanted int64"),
    ({"negatives": torch.zeros(2, 2, dtype=torch.int64)}, r"negatives has the shape \(2, 2\), x has N=3 rows"),
    ({"groups": torch.zeros(3, dtype=torch.int64)}, r"negatives has the shape \(2,\), groups has \(3,\); wanted"),
    (
        {"negatives": torch.zeros(2, 2, dtype=torch.int64), "groups": torch.tensor([0, 2, 1])},
        "groups holds 2; wanted 0 to 1",
    ),
    ({"bias": torch.zeros(3)}, r"bias has the shape \(3,\), w has V=4 rows; wanted \(4,\)"),
    ({"x": torch.zeros(3, 5, dtype=torch.int64)}, "x is torch.int64; wanted a floating dtype"),
    ({"w": torch.zeros(4, 5, device="meta")}, "x is on cpu, w is on meta; they must be equal"),
    ({"reduction": "max"}, "reduction='max'; wanted 'mean', 'sum' or 'none'"),
    ({"kind": "hinge"}, "kind='hinge'; wanted softmax, logq, bce, gbce"),
    ({"kind": "gbce", "beta": 0.0}, "beta=0.0; wanted above 0, at most 1"),
    ({"kind": "logq"}, "kind='logq' needs log_q"),
    ({"kind": "bce", "log_q": torch.zeros(4)}, "kind='bce' has no use for log_q"),
    ({"kind": "logq", "log_q": torch.zeros(4)}, r"log_q\[0\]=0.0; wanted below -1e-7"),
    ({"log_q": torch.tensor([0.0, -torch.inf, 0.0, 0.0])}, r"log_q\[1\]=-inf; wanted finite values"),
]


@pytest.mark.parametrize(("arguments", "message"), REFUSED, ids=[message[:40] for _, message in REFUSED])
def test_a_wrong_argument_is_refused_with_its_value(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        sampled_loss(**{**GOOD, **arguments})


def test_the_good_arguments_of_that_test_are_good() -> None:
    assert sampled_loss(**GOOD).item() == pytest.approx(torch.tensor(3.0).log().item())


def test_the_gradients_of_a_reduced_loss_are_handed_over_without_a_copy() -> None:
    generator = torch.Generator().manual_seed(0)
    x, w = (torch.randn(n, 4, generator=generator).requires_grad_() for n in (3, 9))
    loss = sampled_loss(x, w, torch.tensor([0, 4, 8]), torch.tensor([1, 2]))
    node: Any = loss.grad_fn
    formed = node.grads[1].data_ptr()
    once = torch.autograd.grad(2 * loss, (x, w), retain_graph=True)
    assert once[1].data_ptr() == formed
    kept = [grad.clone() for grad in once]
    again = torch.autograd.grad(3 * loss, (x, w))
    for first, held, second in zip(once, kept, again, strict=True):
        assert torch.equal(first, held)
        torch.testing.assert_close(second / 3, first / 2)
