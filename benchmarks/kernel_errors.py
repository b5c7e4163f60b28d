"""How far the Triton kernels are from their definitions in float64: a table of every output and gradient.

    python -m benchmarks.kernel_errors [--op attention] [--no-page]

Runs the kernels by Triton's interpreter in float64 and float32, and writes the table in docs/kernels.md and a line of
benchmarks/results/kernel_errors.jsonl. Exits with 1 where float64 is beyond 1e-12.
"""

import argparse
import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.support.marked_part import markdown, rewrite
from benchmarks.support.record import append
from recsys.kernels.jagged import JaggedMeta
from recsys.kernels.jagged_embedding import jagged_embedding
from recsys.kernels.linear_cross_entropy import linear_cross_entropy
from recsys.kernels.sampled_loss import Kind, sampled_loss
from recsys.kernels.search import search_topk, topk_attend
from tests.kernels.attention.cases import CASES, draw

PAGE = Path("docs/kernels.md")
LIMIT = 1e-12  # of float64
Call = Callable[..., list[Tensor]]


@dataclass(frozen=True)
class Case:
    """A call of an op: named inputs with a gradient, and the function of them."""

    op: str
    name: str
    inputs: dict[str, Tensor]
    call: Call


def cases() -> Iterator[Case]:
    """Of every op."""
    for case in CASES:
        drawn = draw(case, torch.float64)
        yield Case("attention", case.name, dict(zip(drawn.names, drawn.inputs, strict=True)), drawn.run)
    yield from _cross_entropy()
    yield from _sampled()
    yield from _embedding()
    yield from _search()


def _normal(*shape: int) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(sum(shape)))


def _cross_entropy() -> Iterator[Case]:
    target = torch.arange(40) * 7 % 70
    target[3] = -100
    inputs = {"x": _normal(40, 24), "w": _normal(70, 24), "bias": _normal(70)}
    for name, smoothing in (("plain", 0.0), ("label smoothing", 0.1)):

        def call(x: Tensor, w: Tensor, bias: Tensor, smoothing: float = smoothing) -> list[Tensor]:
            return [linear_cross_entropy(x, w, target, bias=bias, label_smoothing=smoothing)]

        yield Case("linear_cross_entropy", name, inputs, call)


def _sampled() -> Iterator[Case]:
    target, log_q = torch.arange(33) * 5 % 60, torch.log_softmax(_normal(60), 0)
    shared, own = torch.arange(24) * 11 % 60, (torch.arange(33)[:, None] * 3 + torch.arange(24) * 7) % 60
    inputs = {"x": _normal(33, 24), "w": _normal(60, 24), "bias": _normal(60)}
    kinds: tuple[Kind, ...] = ("softmax", "logq", "bce", "gbce")
    for kind in kinds:
        for lists, negatives in (("one list", shared), ("own lists", own)):

            def call(
                x: Tensor, w: Tensor, bias: Tensor, kind: Kind = kind, negatives: Tensor = negatives
            ) -> list[Tensor]:
                q = log_q.to(x.dtype) if kind == "logq" else None
                return [sampled_loss(x, w, target, negatives, kind=kind, bias=bias, beta=0.3, log_q=q)]

            yield Case("sampled_loss", f"{kind}, {lists}", inputs, call)


def _embedding() -> Iterator[Case]:
    ids = torch.arange(90) * 13 % 17

    def call(w: Tensor) -> list[Tensor]:
        return [jagged_embedding(w, ids, scale=3.0)]

    yield Case("jagged_embedding", "repeated rows", {"w": _normal(17, 24)}, call)


def _search() -> Iterator[Case]:
    meta_c, meta_k = JaggedMeta.from_lengths([3, 0, 1]), JaggedMeta.from_lengths([70, 9, 4])
    q, k, v = _normal(4, 16), _normal(83, 16), _normal(83, 24)
    idx, _ = search_topk(q, k, meta_c, meta_k, 6)

    def find(q: Tensor, k: Tensor) -> list[Tensor]:
        found, score = search_topk(q.detach(), k.detach(), meta_c, meta_k, 6)
        assert torch.equal(found, idx)
        return [score]

    def attend(q: Tensor, k: Tensor, v: Tensor) -> list[Tensor]:
        return [topk_attend(q, k, v, idx, meta_c, meta_k)]

    yield Case("search_topk", "scores of the same six", {"q": q, "k": k}, find)
    yield Case("topk_attend", "six of up to 70", {"q": q, "k": k, "v": v}, attend)


def errors_of(case: Case, dtype: torch.dtype) -> dict[str, float]:
    """Largest absolute error of each output and gradient, over the reference's largest value where that exceeds 1."""
    inputs = [x.to(dtype) for x in case.inputs.values()]
    found = _values(case, inputs, "triton")
    exact = _values(case, [x.double() for x in inputs], "reference")
    errors = {}
    for name, x in exact.items():
        is_finite = torch.isfinite(x)
        gap = torch.where(is_finite, found[name].double() - x, 0.0).abs().max()
        errors[name] = float(gap / x[is_finite].abs().max().clamp(min=1.0))
    return errors


def _values(case: Case, inputs: list[Tensor], backend: str) -> dict[str, Tensor]:
    os.environ["RECSYS_KERNELS"] = backend
    leaves = [x.detach().clone().requires_grad_() for x in inputs]
    outputs = case.call(*leaves)
    values = {f"output {i}" if i else "output": x.detach() for i, x in enumerate(outputs)}
    total = sum((x.masked_fill(~torch.isfinite(x), 0.0) * _normal(*x.shape).to(x)).sum() for x in outputs)
    assert isinstance(total, Tensor)
    if total.requires_grad:
        grads = torch.autograd.grad(total, leaves)
        values |= {f"d{name}": grad for name, grad in zip(case.inputs, grads, strict=True)}
    return values


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--op", default="", help="ops whose name holds this; the page is then left alone")
    parser.add_argument("--no-page", action="store_true", help="leave docs/kernels.md as it is")
    arguments = parser.parse_args()
    os.environ["TRITON_INTERPRET"] = "1"  # kernels are imported at their first call
    rows, is_near = [], True
    for case in (case for case in cases() if arguments.op in case.op):
        wide, narrow = errors_of(case, torch.float64), errors_of(case, torch.float32)
        is_near = is_near and max(wide.values()) <= LIMIT
        worst = [f"{max(errors.values()):.0e}" for errors in (wide, narrow)]
        parts = ", ".join(f"{name} {error:.0e}" for name, error in wide.items())
        rows.append([case.op, case.name, *worst, parts])
        print(" | ".join(rows[-1]), flush=True)
    columns = ["op", "case", "float64, worst", "float32, worst", "float64, each"]
    if not (arguments.op or arguments.no_page):
        rewrite(PAGE, "kernel-errors", markdown(columns, rows))
        append("kernel_errors", {"columns": columns, "rows": rows})
        print(f"written to {PAGE} and benchmarks/results/kernel_errors.jsonl")
    if not is_near:
        sys.exit(f"error: a float64 result is further than {LIMIT:.0e} from its definition")


if __name__ == "__main__":
    main()
