"""linear_cross_entropy on the CPU against F.cross_entropy on full logits.

    python -m benchmarks.linear_cross_entropy [--threads 2] [--repeats 20] [--large]

Forward and backward, fp32, D = 64, in turn within one loop, with several sizes of the buffer, and once with logits in
bfloat16, whose errors are printed beside: of the loss, and of each gradient relative to its norm. The op's test runs
first, and a red op is not timed.
"""

import argparse
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.support.in_turn import in_turn
from benchmarks.support.record import append
from recsys.kernels.linear_cross_entropy import linear_cross_entropy

SHAPES = {"ml-1m": (3_417, 10_000), "beauty": (12_101, 2_000)}
LARGE = {"amazon-beauty-bert4rec": (54_542, 512)}
BUDGETS_MIB = (1, 4, 16, 64)
WIDTH = 64


def measure(shape: str, num_items: int, num_rows: int, repeats: int) -> dict[str, Any]:
    """Milliseconds of forward and backward, interleaved."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(num_rows, WIDTH, generator=generator).requires_grad_()
    w = (torch.randn(num_items, WIDTH, generator=generator) * 0.3).requires_grad_()
    target = torch.randint(0, num_items, (num_rows,), generator=generator)

    def full() -> Tensor:
        return F.cross_entropy(x @ w.t(), target)

    def ours(budget_mib: int) -> Callable[[], Tensor]:
        return lambda: linear_cross_entropy(x, w, target, memory_budget_bytes=budget_mib << 20)

    runs = {"full": full} | {f"{budget} MiB": ours(budget) for budget in BUDGETS_MIB}
    runs["default"] = lambda: linear_cross_entropy(x, w, target)
    runs["bfloat16"] = lambda: linear_cross_entropy(x, w, target, logits_dtype=torch.bfloat16)
    torch.testing.assert_close(runs["default"](), full())

    def passes(run: Callable[[], Tensor]) -> Callable[[], object]:
        return lambda: torch.autograd.grad(run(), (x, w))

    figures = in_turn({name: passes(run) for name, run in runs.items()}, repeats)
    errors = _errors(runs["bfloat16"](), runs["default"](), (x, w))
    return {"shape": shape, "V": num_items, "N": num_rows, "D": WIDTH, "ms": figures, "bfloat16_errors": errors}


def _errors(narrow: Tensor, wide: Tensor, leaves: tuple[Tensor, Tensor]) -> dict[str, float]:
    """Error of the loss, and of the gradients of x and w relative to their norms."""
    errors = {"loss": abs(float((narrow - wide).detach()))}
    pairs = zip(*(torch.autograd.grad(loss, leaves) for loss in (narrow, wide)), strict=True)
    errors |= {name: float((a - b).norm() / b.norm()) for name, (a, b) in zip(("grad_x", "grad_w"), pairs, strict=True)}
    return {name: float(f"{error:.2e}") for name, error in errors.items()}


def main() -> None:
    """Test, measure, print a table, append a line to benchmarks/results/linear_cross_entropy.jsonl."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--large", action="store_true", help="also a catalogue of 54,542 items")
    arguments = parser.parse_args()
    test = "tests/kernels/linear_cross_entropy"
    subprocess.run([sys.executable, "-m", "pytest", "-q", test], check=True)
    torch.set_num_threads(arguments.threads)
    shapes = SHAPES | (LARGE if arguments.large else {})
    cases = [measure(shape, *size, arguments.repeats) for shape, size in shapes.items()]
    for case in cases:
        figures = "   ".join(f"{name} {value['median']}" for name, value in case["ms"].items())
        print(f"{case['shape']:8} V {case['V']:6} N {case['N']:6}  ms: {figures}")
        print(f"{'':8} errors of bfloat16: {case['bfloat16_errors']}")
    append("linear_cross_entropy", {"threads": arguments.threads, "cases": cases})


if __name__ == "__main__":
    main()
