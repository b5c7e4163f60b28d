"""linear_cross_entropy on the CPU against F.cross_entropy on full logits: time and peak memory, forward and backward.

    python -m benchmarks.linear_cross_entropy [--threads 2] [--repeats 20] [--limit-s 90] [--large] [--memory-only]

fp32, D = 64. Times are taken in turn within one loop: full logits; torch's own F.linear_cross_entropy where it has one,
as it is and by chunks; ours with several sizes of the buffer, and once with logits in bfloat16, whose errors are
printed beside: of the loss, and of each gradient relative to its norm. The op's tests run first, and a red op is not
timed.

Peak memory is that of a process of its own, from the inputs on, less the gradients: what the loss takes for itself.
Exit code 1 where ours takes over 128 MB (10^6 bytes).
"""

import argparse
import importlib
import json
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.support.in_turn import in_turn
from benchmarks.support.record import append
from benchmarks.support.timed import timed
from recsys.kernels.linear_cross_entropy import linear_cross_entropy

SHAPES = {"ml-1m": (3_417, 10_000), "beauty": (12_101, 2_000)}
LARGE = {"amazon-beauty-bert4rec": (54_542, 512), "50k": (50_000, 2_048), "1m": (1_000_000, 256)}
MEMORY = {"50k": (50_000, 4_096), "1m": (1_000_000, 256)}
BUDGETS_MIB = (1, 4, 16, 64)
WIDTH = 64
LIMIT_MB = 128.0
OPTIONS = "torch.nn.modules.linear_cross_entropy_options"

Loss = Callable[[Tensor, Tensor, Tensor], Tensor]


def full(x: Tensor, w: Tensor, target: Tensor) -> Tensor:
    """Cross entropy of all logits at once."""
    return F.cross_entropy(x @ w.t(), target)


def rivals() -> dict[str, Loss]:
    """Losses that ours stands beside: all logits at once, and torch's own, as it is and by chunks."""
    of_torch = getattr(F, "linear_cross_entropy", None)  # torch 2.13 has it
    if of_torch is None:
        return {"full": full}
    chunked = partial(of_torch, options=importlib.import_module(OPTIONS).LinearCrossEntropyOptions())
    return {"full": full, "torch": of_torch, "torch-chunked": chunked}


def inputs(num_items: int, num_rows: int) -> tuple[Tensor, Tensor, Tensor]:
    """x, w and target, made without a temporary."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(num_rows, WIDTH, generator=generator)
    w = torch.randn(num_items, WIDTH, generator=generator).mul_(0.3)
    return x.requires_grad_(), w.requires_grad_(), torch.randint(0, num_items, (num_rows,), generator=generator)


def measure(shape: str, num_items: int, num_rows: int, repeats: int, limit_s: float) -> dict[str, Any]:
    """Milliseconds of forward and backward, interleaved."""
    x, w, target = inputs(num_items, num_rows)

    def ours(**arguments: Any) -> Callable[[], Tensor]:
        return lambda: linear_cross_entropy(x, w, target, **arguments)

    def theirs(loss: Loss) -> Callable[[], Tensor]:
        return lambda: loss(x, w, target)

    runs = {name: theirs(loss) for name, loss in rivals().items()}
    runs |= {f"{budget} MiB": ours(memory_budget_bytes=budget << 20) for budget in BUDGETS_MIB}
    runs |= {"default": ours(), "bfloat16": ours(logits_dtype=torch.bfloat16)}
    torch.testing.assert_close(runs["default"](), runs["full"]())

    def passes(run: Callable[[], Tensor]) -> Callable[[], object]:
        return lambda: torch.autograd.grad(run(), (x, w))

    figures = in_turn({name: passes(run) for name, run in runs.items()}, repeats, limit_s)
    errors = _errors(runs["bfloat16"](), runs["default"](), (x, w))
    return {"shape": shape, "V": num_items, "N": num_rows, "D": WIDTH, "ms": figures, "bfloat16_errors": errors}


def memory(shape: str, num_items: int, num_rows: int, threads: int) -> dict[str, Any]:
    """MB that each loss takes beyond inputs and gradients."""
    taken: dict[str, float] = {}
    for name in (*rivals(), "ours"):
        numbers = [str(number) for number in (num_items, num_rows, threads)]
        run = timed([sys.executable, "-m", "benchmarks.linear_cross_entropy", "--one", name, *numbers])
        taken[name] = run.answer()["mb"] if run.is_done else float("inf")
    logits_mb = round(num_items * num_rows * 4 / 1e6)
    return {"shape": shape, "V": num_items, "N": num_rows, "D": WIDTH, "all_logits_mb": logits_mb, "mb": taken}


def take(name: str, num_items: int, num_rows: int, threads: int) -> None:
    """One forward and backward pass in this process; prints the megabytes it took beyond inputs and gradients."""
    torch.set_num_threads(threads)
    x, w, target = inputs(num_items, num_rows)
    before = _resident_mb("VmRSS")
    losses: dict[str, Loss] = {"ours": linear_cross_entropy, **rivals()}
    torch.autograd.backward(losses[name](x, w, target))
    grads = sum(leaf.numel() * leaf.element_size() for leaf in (x, w)) / 1e6
    print(json.dumps({"mb": round(_resident_mb("VmHWM") - before - grads, 1)}))


def _resident_mb(field: str) -> float:
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field)) * 1024 / 1e6


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
    parser.add_argument("--limit-s", type=float, default=90.0, help="after which 5 repeats are enough")
    parser.add_argument("--large", action="store_true", help="also catalogues of 50,000, 54,542 and 1,000,000 items")
    parser.add_argument("--memory-only", action="store_true", help="no times")
    parser.add_argument("--one", nargs=4, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        name, *numbers = arguments.one
        take(name, *(int(number) for number in numbers))
        return
    subprocess.run([sys.executable, "-m", "pytest", "-q", "tests/kernels/linear_cross_entropy"], check=True)
    peaks = [memory(shape, *size, arguments.threads) for shape, size in MEMORY.items()]
    for peak in peaks:
        figures = "   ".join(f"{name} {mb:,.0f}" for name, mb in peak["mb"].items())
        print(f"{peak['shape']:8} V {peak['V']:7} N {peak['N']:6}  MB: {figures}   (logits {peak['all_logits_mb']:,})")
    torch.set_num_threads(arguments.threads)
    shapes = {} if arguments.memory_only else SHAPES | (LARGE if arguments.large else {})
    cases = []
    for shape, size in shapes.items():
        case = measure(shape, *size, arguments.repeats, arguments.limit_s)
        figures = "   ".join(f"{name} {value['median']}" for name, value in case["ms"].items())
        print(f"{case['shape']:8} V {case['V']:7} N {case['N']:6}  ms: {figures}")
        print(f"{'':8} errors of bfloat16: {case['bfloat16_errors']}")
        cases.append(case)
    append("linear_cross_entropy", {"threads": arguments.threads, "memory": peaks, "cases": cases})
    if any(peak["mb"]["ours"] > LIMIT_MB for peak in peaks):
        sys.exit(1)


if __name__ == "__main__":
    main()
