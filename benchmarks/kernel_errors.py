"""How far the Triton kernels are from their definitions in float64: a table of every output and gradient.

    python -m benchmarks.kernel_errors [--op attention] [--no-page]

Runs the kernels by Triton's interpreter in float64 and float32, and writes the table in docs/kernels.md and a line of
benchmarks/results/kernel_errors.jsonl. Losses are those of each row, and gradients those of a random combination of the
outputs, so none is tiny. Exits with 1 where float64 is beyond 1e-12.
"""

import argparse
import math
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.support.marked_part import markdown, rewrite
from benchmarks.support.record import append
from recsys.kernels.jagged import JaggedMeta
from recsys.kernels.jagged_embedding import jagged_embedding
from recsys.kernels.linear_cross_entropy import linear_cross_entropy
from recsys.kernels.sampled_loss import Kind, sampled_loss
from recsys.kernels.search import search_topk, topk_attend
from recsys.kernels.segment_sum import segment_sum
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
    yield from _sums()
    yield from _embedding()
    yield from _search()


def _normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1000 * seed + sum(shape)))


def _cross_entropy() -> Iterator[Case]:
    target = torch.arange(40) * 7 % 70
    target[3] = -100
    inputs = {"x": _normal(40, 24), "w": _normal(70, 24), "bias": _normal(70)}
    settings = (("plain", 1.0, 0.0), ("label smoothing", 1.0, 0.1), ("logit scale", 2.5, 0.0), ("both", 2.5, 0.1))
    for name, scale, smoothing in settings:

        def call(
            x: Tensor, w: Tensor, bias: Tensor, scale: float = scale, smoothing: float = smoothing
        ) -> list[Tensor]:
            return [
                linear_cross_entropy(
                    x, w, target, bias=bias, reduction="none", logit_scale=scale, label_smoothing=smoothing
                )
            ]

        yield Case("linear_cross_entropy", name, inputs, call)


def _sampled() -> Iterator[Case]:
    rows, slots = torch.arange(33), torch.arange(24)
    target, groups, log_q = rows * 5 % 60, rows * 2 % 3, torch.log_softmax(_normal(60), 0)
    lists = {
        "one list": slots * 11 % 60,
        "grouped lists": (torch.arange(3)[:, None] * 17 + slots * 7) % 60,
        "own lists": (rows[:, None] * 3 + slots * 7) % 60,
    }
    inputs = {"x": _normal(33, 24), "w": _normal(60, 24), "bias": _normal(60)}
    kinds: tuple[Kind, ...] = ("softmax", "logq", "bce", "gbce")
    for kind in kinds:
        for name, full in lists.items():
            for suffix, negatives in (("", full), (", slots of -1", full.masked_fill(full % 4 == 1, -1))):

                def call(
                    x: Tensor,
                    w: Tensor,
                    bias: Tensor,
                    kind: Kind = kind,
                    negatives: Tensor = negatives,
                    groups: Tensor | None = groups if name == "grouped lists" else None,
                ) -> list[Tensor]:
                    q = log_q.to(x.dtype) if kind == "logq" else None
                    given: dict[str, Any] = {"groups": groups, "kind": kind, "bias": bias, "log_q": q}
                    given |= {"beta": 0.3} if kind == "gbce" else {}
                    return [sampled_loss(x, w, target, negatives, reduction="none", **given)]

                yield Case("sampled_loss", f"{kind}, {name}{suffix}", inputs, call)


def _sums() -> Iterator[Case]:
    ids = torch.arange(270).view(90, 3) * 13 % 19 - 1  # -1 and 17 are of no segment
    ids[20:70] = 4

    def plain(x: Tensor) -> list[Tensor]:
        return [segment_sum(x.detach(), ids[:, 0].contiguous(), 17)]

    def weighted(x: Tensor, weights: Tensor, add_to: Tensor) -> list[Tensor]:
        return [segment_sum(x.detach(), ids, 17, weights=weights.detach(), scale=0.3, add_to=add_to.detach())]

    inputs = {"x": _normal(90, 24), "weights": _normal(90, 3), "add_to": _normal(17, 24)}
    yield Case("segment_sum", "a number a row", {"x": inputs["x"]}, plain)
    yield Case("segment_sum", "three weighted numbers a row, scale, add_to", inputs, weighted)


def _embedding() -> Iterator[Case]:
    ids, positions = torch.arange(90) * 13 % 17, torch.arange(90) % 11

    def call(w: Tensor) -> list[Tensor]:
        return [jagged_embedding(w, ids, scale=3.0)]

    inputs = {"w": _normal(17, 24), "pos": _normal(11, 24)}
    yield Case("jagged_embedding", "repeated rows", {"w": inputs["w"]}, call)
    for name, dropout_p in (("positions", 0.0), ("positions and dropout", 0.3)):

        def placed(w: Tensor, pos: Tensor, dropout_p: float = dropout_p) -> list[Tensor]:
            return [
                jagged_embedding(w, ids, pos=pos, positions=positions, scale=3.0, dropout_p=dropout_p, seed=2**33 + 7)
            ]

        yield Case("jagged_embedding", name, inputs, placed)


def _search() -> Iterator[Case]:
    """A pair alone; and with heads a second pair and a bias."""
    metas = JaggedMeta.from_lengths([3, 0, 1]), JaggedMeta.from_lengths([70, 9, 4])
    for name, heads in (("", ()), (", two heads, second pair, bias", (2,))):
        inputs = {"q": _normal(4, *heads, 16), "k": _normal(83, *heads, 16)}
        if heads:
            inputs |= {"q2": _normal(4, *heads, 8), "k2": _normal(83, *heads, 8), "k_bias": _normal(83, *heads)}
        idx, _ = search_topk(inputs["q"], inputs["k"], *metas, 6, **_rest(inputs))

        def find(*given: Tensor, names: tuple[str, ...] = tuple(inputs), idx: Tensor = idx) -> list[Tensor]:
            named = dict(zip(names, (x.detach() for x in given), strict=True))
            found, score = search_topk(named["q"], named["k"], *metas, 6, **_rest(named))
            assert torch.equal(found, idx)
            return [score]

        yield Case("search_topk", f"scores of the same six{name}", inputs, find)

        inputs = {**inputs, "v": _normal(83, *heads, 24)}

        def attend(*given: Tensor, names: tuple[str, ...] = tuple(inputs), idx: Tensor = idx) -> list[Tensor]:
            named = dict(zip(names, given, strict=True))
            return [topk_attend(named["q"], named["k"], named["v"], idx, *metas, **_rest(named))]

        yield Case("topk_attend", f"six of up to 70{name}", inputs, attend)


def _rest(inputs: dict[str, Tensor]) -> dict[str, Any]:
    rest: dict[str, Any] = {name: x for name, x in inputs.items() if name in ("q2", "k2", "k_bias")}
    return {**rest, "scale2": 0.4} if rest else rest


def errors_of(case: Case, dtype: torch.dtype) -> dict[str, float]:
    """`relative_error` of each output and gradient, for inputs rounded to `dtype`."""
    inputs = [x.to(dtype) for x in case.inputs.values()]
    found = _values(case, inputs, "triton")
    exact = _values(case, [x.double() for x in inputs], "reference")
    return {name: relative_error(found[name], x) for name, x in exact.items()}


def relative_error(found: Tensor, exact: Tensor) -> float:
    """Largest absolute error over the largest absolute value of `exact`, or over 1 where that is 0.

    Infinite where one of the two is not finite and the other is not the same.
    """
    found, is_finite = found.double(), torch.isfinite(exact)
    if not torch.equal(torch.isfinite(found), is_finite) or not torch.equal(found[~is_finite], exact[~is_finite]):
        return math.inf
    if not is_finite.any():
        return 0.0
    found, exact = found[is_finite], exact[is_finite]
    largest = float(exact.abs().max())
    return float((found - exact).abs().max()) / (largest or 1.0)


def _values(case: Case, inputs: list[Tensor], backend: str) -> dict[str, Tensor]:
    os.environ["RECSYS_KERNELS"] = backend
    leaves = [x.detach().clone().requires_grad_() for x in inputs]
    outputs = case.call(*leaves)
    values = {f"output {i}" if i else "output": x.detach() for i, x in enumerate(outputs)}
    total = sum((x.masked_fill(~torch.isfinite(x), 0.0) * _normal(*x.shape, seed=9).to(x)).sum() for x in outputs)
    assert isinstance(total, Tensor)
    if total.requires_grad:
        grads = torch.autograd.grad(total, leaves)
        values |= {f"d{name}": grad for name, grad in zip(case.inputs, grads, strict=True)}
    return values


def main(given: Sequence[str] | None = None) -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--op", default="", help="ops whose name holds this; the page is then left alone")
    parser.add_argument("--no-page", action="store_true", help="leave docs/kernels.md as it is")
    arguments = parser.parse_args(given)
    os.environ["TRITON_INTERPRET"] = "1"  # kernels are imported at their first call
    rows, is_near = [], True
    for case in (case for case in cases() if arguments.op in case.op):
        wide, narrow = errors_of(case, torch.float64), errors_of(case, torch.float32)
        is_near = is_near and all(error <= LIMIT for error in wide.values())
        worst = [f"{max(errors.values()):.0e}" for errors in (wide, narrow)]
        parts = ", ".join(f"{name} {error:.0e}" for name, error in wide.items())
        rows.append([case.op, case.name, *worst, parts])
        print(" | ".join(rows[-1]), flush=True)
    columns = ["op", "case", "float64, worst", "float32, worst", "float64, each"]
    if not (arguments.op or arguments.no_page):
        append("kernel_errors", {"columns": columns, "rows": rows})
        rewrite(PAGE, "kernel-errors", markdown(columns, rows))
        print(f"written to {PAGE} and benchmarks/results/kernel_errors.jsonl")
    if not is_near:
        sys.exit(f"error: a float64 result is further than {LIMIT:.0e} from its definition")


if __name__ == "__main__":
    main()
