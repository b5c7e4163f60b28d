"""jagged_attention on the CPU against padded scaled_dot_product_attention and a loop over the sequences.

    python -m benchmarks.attention [--threads 2] [--repeats 20] [--long]

Forward and backward of self attention, fp32, from one (T, 3, H, D) projection; the three run in turn within one loop,
and building the plan or the mask is timed apart. The op's test runs first, and a red op is not timed.
"""

import argparse
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.support.in_turn import in_turn
from benchmarks.support.record import append
from recsys.kernels.attention.cpu import MASK_CELLS
from recsys.kernels.attention.op import jagged_attention
from recsys.kernels.attention.plan import Cut, make_plan
from recsys.kernels.attention.tiles import Plan
from recsys.kernels.attention.visibility import Visibility
from recsys.kernels.jagged import JaggedMeta

Run = Callable[[Tensor, Tensor, Tensor], Tensor]


def lengths_of(shape: str) -> tuple[list[int], int, int]:
    """Lengths as in the named data, heads and width."""
    generator = np.random.default_rng(0)
    if shape == "ml-1m":
        return np.exp(generator.normal(4.5, 0.8, 128)).clip(5, 200).astype(int).tolist(), 2, 32
    if shape == "beauty":
        return np.exp(generator.normal(1.9, 0.5, 256)).clip(3, 50).astype(int).tolist(), 2, 32
    return np.exp(generator.normal(6.5, 0.7, 8)).clip(100, 2048).astype(int).tolist(), 2, 64


def rivals(lengths: list[int], num_heads: int, width: int, causal: bool, dropout_p: float) -> dict[str, Run]:
    """Ours, with dropout too, and what else torch offers."""
    meta = JaggedMeta.from_lengths(lengths)
    rows, is_token, mask = _padding(lengths, causal)
    total, size, longest = meta.total, len(lengths), meta.max_len

    def padded(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        dense_q, dense_k, dense_v = (
            x.reshape(total, -1).index_select(0, rows).view(size, longest, num_heads, width).transpose(1, 2)
            for x in (q, k, v)
        )
        out = F.scaled_dot_product_attention(dense_q, dense_k, dense_v, attn_mask=mask)
        return out.transpose(1, 2).reshape(size * longest, num_heads, width).index_select(0, is_token)

    def loop(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        parts = zip(*(torch.split(x.transpose(0, 1), lengths, dim=1) for x in (q, k, v)), strict=True)
        outs = [F.scaled_dot_product_attention(a, b, c, is_causal=causal) for a, b, c in parts]
        return torch.cat(outs, dim=1).transpose(0, 1)

    def ours(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return jagged_attention(q, k, v, meta, causal=causal)

    def ours_dropout(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return jagged_attention(q, k, v, meta, causal=causal, dropout_p=dropout_p, seed=1)

    return {"ours": ours, "padded": padded, "loop": loop, "ours, dropout": ours_dropout}


def measure(shape: str, causal: bool, repeats: int, dropout_p: float = 0.2) -> dict[str, Any]:
    """Milliseconds of forward and backward, interleaved, and of building the plan."""
    lengths, num_heads, width = lengths_of(shape)
    generator = torch.Generator().manual_seed(0)
    joined = torch.randn(sum(lengths), 3, num_heads, width, generator=generator).requires_grad_()
    share = torch.randn(sum(lengths), num_heads, width, generator=generator)
    runs = rivals(lengths, num_heads, width, causal, dropout_p)
    outs = {name: run(*joined.unbind(1)) for name, run in runs.items()}
    for name in ("padded", "loop"):
        torch.testing.assert_close(outs["ours"], outs[name], rtol=1e-4, atol=1e-5)

    def passes(run: Run) -> Callable[[], object]:
        return lambda: torch.autograd.grad(run(*joined.unbind(1)), joined, share)

    def plan() -> Plan:
        meta = JaggedMeta.from_lengths(lengths)
        return make_plan(meta, meta, Visibility(causal=causal), None, Cut(False, MASK_CELLS))

    figures = in_turn({**{name: passes(run) for name, run in runs.items()}, "plan": plan}, repeats)
    fill = sum(lengths) / (len(lengths) * max(lengths))
    return {"shape": shape, "causal": causal, "tokens": sum(lengths), "fill": round(fill, 2), "ms": figures}


def _padding(lengths: list[int], causal: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Row of each padded slot, the slots that hold a token, and the mask (B, 1, 1 or L, L)."""
    length, longest = torch.tensor(lengths), max(lengths)
    place = torch.arange(longest)
    is_key = place < length[:, None]
    starts = torch.cumsum(length, 0) - length
    rows = (starts[:, None] + torch.minimum(place, length[:, None] - 1)).flatten()
    mask = is_key[:, None, None, :]
    if causal:
        mask = mask & (place[:, None] >= place[None, :])
    return rows, is_key.flatten().nonzero().squeeze(1), mask


def main() -> None:
    """Test, measure, print a table, append a line to benchmarks/results/attention.jsonl."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--long", action="store_true", help="also sequences of up to 2,048 tokens")
    arguments = parser.parse_args()
    subprocess.run([sys.executable, "-m", "pytest", "-q", "tests/kernels/attention"], check=True)
    torch.set_num_threads(arguments.threads)
    shapes = ("ml-1m", "beauty", "long") if arguments.long else ("ml-1m", "beauty")
    cases = [measure(shape, causal, arguments.repeats) for shape in shapes for causal in (True, False)]
    for case in cases:
        figures = "   ".join(f"{name} {value['median']}" for name, value in case["ms"].items())
        print(f"{case['shape']:8} {'causal' if case['causal'] else 'both':7} fill {case['fill']}  ms: {figures}")
    append("attention", {"threads": arguments.threads, "cases": cases})


if __name__ == "__main__":
    main()
