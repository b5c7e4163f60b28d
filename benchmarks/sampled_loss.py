"""sampled_loss on the CPU: shared, grouped and own negatives against plain torch and against full cross entropy.

    python -m benchmarks.sampled_loss [--threads 2] [--repeats 20]

Forward and backward, fp32, D = 64, in turn within one loop. `plain` is what one writes by hand: for shared negatives
one product and a cross entropy over its columns, the target's own column masked; for others the gathered vectors of
each row's negatives, where they fit 4 GB. `full` is linear_cross_entropy over all items. The op's test runs first, and
a red op is not timed.
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
from recsys.kernels.sampled_loss import sampled_loss, sampled_loss_reference

SHAPES = {"ml-1m": (3_417, 4_096, 40), "amazon-beauty-bert4rec": (54_542, 2_048, 350)}  # V, rows, sequences
NEGATIVES = (256, 1024, 3000)
WIDTH = 64
LIMIT_BYTES = 4e9


def measure(shape: str, num_negatives: int, repeats: int) -> dict[str, Any]:
    """Milliseconds of forward and backward, interleaved."""
    num_items, num_rows, num_groups = SHAPES[shape]
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(num_rows, WIDTH, generator=generator).requires_grad_()
    w = (torch.randn(num_items, WIDTH, generator=generator) * 0.3).requires_grad_()
    target = torch.randint(0, num_items, (num_rows,), generator=generator)
    groups = torch.randint(0, num_groups, (num_rows,), generator=generator).sort().values
    lists = torch.stack([torch.randperm(num_items, generator=generator)[:num_negatives] for _ in range(num_groups)])
    shared = lists[0]
    own = torch.randint(0, num_items, (num_rows, num_negatives), generator=generator)

    def plain() -> Tensor:
        scores = (x @ w[shared].t()).masked_fill(shared == target[:, None], -torch.inf)
        scores = torch.cat([(x * w[target]).sum(1, keepdim=True), scores], 1)
        return F.cross_entropy(scores, torch.zeros_like(target))

    runs: dict[str, Callable[[], Tensor]] = {
        "batch": lambda: sampled_loss(x, w, target, shared),
        "batch, plain": plain,
        "sequence": lambda: sampled_loss(x, w, target, lists, groups=groups),
        "own": lambda: sampled_loss(x, w, target, own),
        "full": lambda: linear_cross_entropy(x, w, target),
    }
    if num_rows * num_negatives * WIDTH * 4 * 2 < LIMIT_BYTES:
        runs["own, plain"] = lambda: sampled_loss_reference(x, w, target, own)
    torch.testing.assert_close(runs["batch"](), plain())

    def passes(run: Callable[[], Tensor]) -> Callable[[], object]:
        return lambda: torch.autograd.grad(run(), (x, w))

    figures = in_turn({name: passes(run) for name, run in runs.items()}, repeats)
    return {"shape": shape, "V": num_items, "N": num_rows, "K": num_negatives, "G": num_groups, "ms": figures}


def main() -> None:
    """Test, measure, print a line a case, append to benchmarks/results/sampled_loss.jsonl."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--repeats", type=int, default=20)
    arguments = parser.parse_args()
    test = "tests/kernels/sampled_loss"
    subprocess.run([sys.executable, "-m", "pytest", "-q", test], check=True)
    torch.set_num_threads(arguments.threads)
    cases = []
    for shape in SHAPES:
        for num_negatives in NEGATIVES:
            cases.append(measure(shape, num_negatives, arguments.repeats))
            case = cases[-1]
            figures = "   ".join(f"{name} {value['median']}" for name, value in case["ms"].items())
            print(f"{shape:22} V {case['V']:6} N {case['N']:5} K {num_negatives:5}  ms: {figures}", flush=True)
    append("sampled_loss", {"threads": arguments.threads, "cases": cases})


if __name__ == "__main__":
    main()
