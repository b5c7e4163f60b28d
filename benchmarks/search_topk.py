"""Both stages of a long-history click model against padded torch: the search, and search with attention and gradients.

    python -m benchmarks.search_topk [--device cuda] [--threads 2] [--repeats 20] [--scale 0.1]

A case is B users with C candidates each and histories of up to N behaviours, log-normal lengths with about 40 % fill.
The rival pads histories to the longest: one matmul, a mask, torch.topk, gathers, softmax. The ops' tests run first. One
line a run is appended to benchmarks/results/search_topk.jsonl.
"""

import argparse
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.support.in_turn import in_turn
from benchmarks.support.record import append
from recsys.kernels.jagged import JaggedMeta
from recsys.kernels.search import search_topk, topk_attend

TESTS = {"cpu": "tests/kernels/search", "cuda": "tests/kernels/gpu/test_search.py"}


@dataclass(frozen=True)
class Shape:
    """Users, candidates of each, longest history, width, kept."""

    B: int
    C: int
    N: int
    D: int
    K: int


SHAPES = {
    "dare": Shape(2048, 1, 200, 32, 20),
    "twin": Shape(128, 1, 10_000, 64, 100),
    "serving": Shape(1, 500, 10_000, 64, 50),
    "longest": Shape(4, 16, 50_000, 64, 50),
}


def main() -> None:
    """Test, measure, print a line a case, append to benchmarks/results/search_topk.jsonl."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu", choices=tuple(TESTS))
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--scale", type=float, default=1.0, help="of users and lengths, to try the script")
    arguments = parser.parse_args()
    subprocess.run([sys.executable, "-m", "pytest", "-q", TESTS[arguments.device]], check=True)
    torch.set_num_threads(arguments.threads)
    cases = []
    for name, shape in SHAPES.items():
        B, C, N = (max(1, round(x * arguments.scale)) for x in (shape.B, shape.C, shape.N))
        small = Shape(B, C, N, shape.D, shape.K)
        cases.append({"shape": name, **measure(small, arguments.device, arguments.repeats)})
        figures = "   ".join(f"{run} {value['median']}" for run, value in cases[-1]["ms"].items())
        print(f"{name:8} {small}  ms: {figures}", flush=True)
    append("search_topk", {"device": arguments.device, "threads": arguments.threads, "cases": cases})


def measure(shape: Shape, device: str, repeats: int) -> dict[str, Any]:
    """Milliseconds of ours and of padded torch, and their greatest difference in scores."""
    lengths = _lengths(shape)
    meta_c = JaggedMeta.from_lengths([shape.C] * shape.B, device)
    meta_k = JaggedMeta.from_lengths(lengths, device)
    generator = torch.Generator().manual_seed(0)
    dtype = torch.float32 if device == "cpu" else torch.bfloat16
    q, k, v = (
        torch.randn(rows, shape.D, generator=generator).to(device, dtype).requires_grad_()
        for rows in (meta_c.total, meta_k.total, meta_k.total)
    )
    padded = _Padded(lengths, meta_k, shape)

    def ours() -> Tensor:
        return search_topk(q, k, meta_c, meta_k, shape.K)[1]

    def ours_trained() -> Tensor:
        out = topk_attend(q, k, v, search_topk(q, k, meta_c, meta_k, shape.K)[0], meta_c, meta_k)
        return torch.autograd.grad(out.sum(), (q, k, v))[0]

    runs: dict[str, Callable[[], Tensor]] = {
        "search": ours,
        "padded search": lambda: padded.search(q.detach(), k.detach())[1],
        "search + attend, forward + backward": ours_trained,
        "padded, forward + backward": lambda: torch.autograd.grad(padded.attend(q, k, v).sum(), (q, k, v))[0],
    }
    gap = (ours().float() - runs["padded search"]().float()).nan_to_num(0.0).abs().max()
    return {
        **vars(shape),
        "T": meta_k.total,
        "dtype": str(dtype),
        "gap": float(gap),
        "ms": in_turn({name: _waited(run, device) for name, run in runs.items()}, repeats),
    }


class _Padded:
    """The rival: histories padded to the longest, kept in memory that way."""

    def __init__(self, lengths: np.ndarray, meta_k: JaggedMeta, shape: Shape) -> None:
        self.shape = shape
        places = torch.arange(meta_k.max_len, device=meta_k.offsets.device)
        self.is_pad = places >= meta_k.offsets.diff()[:, None]  # (B, N)
        self.rows = torch.where(self.is_pad, 0, meta_k.offsets[:-1, None] + places)
        self.kept = min(shape.K, int(lengths.max()))

    def search(self, q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
        """Indices and scores, (B * C, K)."""
        B, C, D = self.shape.B, self.shape.C, self.shape.D
        scores = torch.matmul(q.view(B, C, D), k[self.rows].transpose(1, 2)) * D**-0.5
        best = scores.masked_fill(self.is_pad[:, None], -torch.inf).topk(self.kept, dim=2)
        missing = self.shape.K - self.kept
        score = torch.nn.functional.pad(best.values, (0, missing), value=-torch.inf)
        return best.indices, score.view(B * C, -1)

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """(B, C, D), with gradients."""
        B, C, D = self.shape.B, self.shape.C, self.shape.D
        idx, _ = self.search(q.detach(), k.detach())
        rows = self.rows[torch.arange(B, device=q.device)[:, None, None], idx]  # (B, C, K)
        is_pad = self.is_pad.gather(1, idx.view(B, -1)).view_as(idx)
        scores = torch.einsum("bcd,bckd->bck", q.view(B, C, D), k[rows]) * D**-0.5
        weights = scores.masked_fill(is_pad, -torch.inf).softmax(2)
        return torch.einsum("bck,bckd->bcd", weights, v[rows])


def _lengths(shape: Shape) -> np.ndarray:
    drawn = np.random.default_rng(0).lognormal(np.log(0.35 * shape.N), 0.6, shape.B)
    lengths = np.clip(drawn, 1, shape.N).astype(np.int64)
    lengths[0] = shape.N
    return lengths


def _waited(run: Callable[[], Tensor], device: str) -> Callable[[], Tensor]:
    def waited() -> Tensor:
        answer = run()
        if device == "cuda":
            torch.cuda.synchronize()
        return answer

    return waited


if __name__ == "__main__":
    main()
