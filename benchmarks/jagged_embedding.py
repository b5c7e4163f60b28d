"""jagged_embedding beside F.embedding: forward, and forward with the gradients of both tables.

    python -m benchmarks.jagged_embedding [--device cpu] [--threads 1] [--repeats 20] [--tiny]

float32, D = 64 and 128, in turn within one loop. `torch` is F.embedding of the items times a scale plus F.embedding of
the positions; the ids are drawn so that some items are frequent. The op's test runs first, and a red op is not timed.
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
from recsys.kernels.jagged_embedding import jagged_embedding

SHAPES = {"ml-1m": (10_000, 3_417, 200), "amazon-beauty": (10_000, 12_101, 50), "long": (100_000, 54_542, 200)}  # T V P
TINY = {"tiny": (100, 30, 10)}
WIDTHS = (64, 128)


def measure(shape: tuple[int, int, int], width: int, device: str, repeats: int) -> dict[str, Any]:
    """Milliseconds, interleaved."""
    (T, V, P), generator = shape, torch.Generator().manual_seed(0)
    w, pos, share = (torch.randn(size, width, generator=generator).to(device) for size in (V, P, T))
    ids = (torch.rand(T, generator=generator) ** 3 * V).long().to(device)
    positions = torch.randint(0, P, (T,), generator=generator).to(device)
    w.requires_grad_()
    pos.requires_grad_()
    scale = width**0.5

    def ours() -> Tensor:
        return jagged_embedding(w, ids, pos=pos, positions=positions, scale=scale, padding_idx=0)

    def plain() -> Tensor:
        return F.embedding(ids, w, padding_idx=0) * scale + F.embedding(positions, pos)

    def both(run: Callable[[], Tensor]) -> Callable[[], object]:
        return lambda: torch.autograd.grad(run(), (w, pos), share)

    def settled(run: Callable[[], object]) -> Callable[[], object]:
        def timed() -> None:
            run()
            if device != "cpu":
                torch.cuda.synchronize()

        return timed

    torch.testing.assert_close(ours(), plain())
    runs = {"ours": ours, "torch": plain, "ours, gradients": both(ours), "torch, gradients": both(plain)}
    figures = in_turn({name: settled(run) for name, run in runs.items()}, repeats)
    return {"T": T, "V": V, "P": P, "D": width, "ms": figures}


def main() -> None:
    """Test, measure, print a line a case, append to benchmarks/results/jagged_embedding.jsonl."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--tiny", action="store_true", help="one small shape, not recorded")
    arguments = parser.parse_args()
    tests = ["tests/kernels/jagged_embedding", "tests/kernels/segment_sum"]
    subprocess.run([sys.executable, "-m", "pytest", "-q", *tests], check=True)
    torch.set_num_threads(arguments.threads)
    cases = []
    for name, shape in (TINY if arguments.tiny else SHAPES).items():
        for width in WIDTHS:
            cases.append({"shape": name} | measure(shape, width, arguments.device, arguments.repeats))
            figures = "   ".join(f"{run} {value['median']}" for run, value in cases[-1]["ms"].items())
            print(f"{name:14} T {shape[0]:6} V {shape[1]:6} D {width:4}  ms: {figures}", flush=True)
    if not arguments.tiny:
        append("jagged_embedding", {"device": arguments.device, "threads": arguments.threads, "cases": cases})


if __name__ == "__main__":
    main()
