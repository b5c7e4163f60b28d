"""jagged_attention on the CPU against padded scaled_dot_product_attention and a loop over the sequences.

    python -m benchmarks.attention [--threads 2] [--repeats 20] [--long]
    python -m benchmarks.attention --padded [--quick] [--repeats 20] [--limit-s 90] [--limit-gb 16]

Forward and backward of self attention, fp32, from one (T, 3, H, D) projection; the alternatives run in turn within one
loop, and building the plan or the mask is timed apart. `--padded` takes B = 128 up to 200 tokens, B = 32 up to 2,048,
and one user of 8,192 and of 16,384, causal, forward alone and with backward, without and with a learned time bias, and
the peak memory (MB, 10^6 bytes) of each, with what it needs to prepare, in a process of its own. Padded rows stand with
a mask and, without a bias, also with `is_causal=True` alone, which gives tokens the same since padding comes last. The
op's tests run first, and a red op is not timed.
"""

import argparse
import json
import resource
import subprocess
import sys
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.support.in_turn import in_turn
from benchmarks.support.padded_attention import PaddedAttention
from benchmarks.support.record import append
from benchmarks.support.timed import timed
from recsys.kernels.attention import TimeBias, jagged_attention
from recsys.kernels.attention.torch_path.passes import MASK_CELLS
from recsys.kernels.attention.torch_path.plan import Cut, make_plan
from recsys.kernels.attention.torch_path.tiles import Plan
from recsys.kernels.attention.visibility import Visibility
from recsys.kernels.jagged import JaggedMeta

Run = Callable[[Tensor, Tensor, Tensor], Tensor]
NUM_HEADS, NUM_BUCKETS = 4, 48
SHAPES = {  # sequences, longest, width
    "B=128": (128, 200, 32),
    "B=32": (32, 2_048, 64),
    "half": (1, 8_192, 64),
    "one": (1, 16_384, 64),
}
QUICK_SHAPES = {"B=128": (16, 50, 32), "B=32": (4, 256, 64), "half": (1, 512, 64), "one": (1, 1_024, 64)}
SQUARES = 6  # matrices of (B, H, L, L) float32 that the padded path with a bias holds at once


def lengths_of(shape: str) -> tuple[list[int], int, int]:
    """Lengths as in the named data, heads and width."""
    generator = np.random.default_rng(0)
    if shape == "ml-1m":
        return np.exp(generator.normal(4.5, 0.8, 128)).clip(5, 200).astype(int).tolist(), 2, 32
    if shape == "beauty":
        return np.exp(generator.normal(1.9, 0.5, 256)).clip(3, 50).astype(int).tolist(), 2, 32
    return np.exp(generator.normal(6.5, 0.7, 8)).clip(100, 2048).astype(int).tolist(), 2, 64


def rivals(lengths: list[int], causal: bool, dropout_p: float) -> dict[str, Run]:
    """Ours, with dropout too, and what else torch offers."""
    meta = JaggedMeta.from_lengths(lengths)
    padded = PaddedAttention.of(lengths, causal)

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
    runs = rivals(lengths, causal, dropout_p)
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


def padded_case(shape: str, is_quick: bool) -> tuple[list[Tensor], Tensor, dict[str, Callable[[], Tensor]]]:
    """Tensors with a gradient, the gradient of the result, and each alternative, causal.

    Lengths fill about 40 % of the padded rows; times come in bursts, with long pauses between.
    """
    size, longest, width = (QUICK_SHAPES if is_quick else SHAPES)[shape]
    random, generator = np.random.default_rng(0), torch.Generator().manual_seed(0)
    lengths = [longest, *random.lognormal(np.log(0.4 * longest) - 0.18, 0.6, size - 1).clip(1, longest).astype(int)]
    gaps = [np.where(random.random(n) < 0.8, random.exponential(120, n), random.exponential(1e5, n)) for n in lengths]
    ts = torch.from_numpy(np.concatenate([np.cumsum(gap).clip(max=2**31 - 2) for gap in gaps]).astype(np.int32))
    total = sum(lengths)
    joined = torch.randn(total, 3, NUM_HEADS, width, generator=generator).requires_grad_()
    q, k, v = joined.unbind(1)
    share = torch.randn(total, NUM_HEADS, width, generator=generator)
    table = torch.randn(NUM_HEADS, NUM_BUCKETS, generator=generator).requires_grad_()
    bias, meta = TimeBias(table=table, ts_q=ts, ts_k=ts), JaggedMeta.from_lengths(lengths)
    # Each is made on first use, so that its memory is its own.
    padded = cache(lambda: PaddedAttention.of([int(n) for n in lengths], causal=True))
    maskless = cache(lambda: PaddedAttention.of([int(n) for n in lengths], causal=True, has_mask=False))
    thresholds = bias.thresholds().clamp(max=2**31 - 1).int()
    runs = {
        "ours": lambda: jagged_attention(q, k, v, meta, causal=True),
        "padded": lambda: padded()(q, k, v),
        "padded, is_causal": lambda: maskless()(q, k, v),
        "ours, bias": lambda: jagged_attention(q, k, v, meta, causal=True, time_bias=bias),
        "padded, bias": lambda: padded().with_bias(q, k, v, table, ts, thresholds),
    }
    return [joined, table], share, runs


def measure_padded(shape: str, options: argparse.Namespace) -> dict[str, Any]:
    """Milliseconds of both passes, and the peak memory above that of the inputs alone."""
    size, longest, _ = (QUICK_SHAPES if options.quick else SHAPES)[shape]
    square_gb = SQUARES * size * NUM_HEADS * longest**2 * 4 / 1e9
    inputs, share, runs = padded_case(shape, options.quick)
    if square_gb > options.limit_gb:
        del runs["padded, bias"]
        print(f"{shape}: padded with a bias would need some {square_gb:.0f} GB; not run")
    for name in [name for name in runs if name.startswith("padded")]:
        torch.testing.assert_close(runs[name](), runs[_ours(name)](), rtol=1e-4, atol=1e-4)

    def both(name: str) -> Callable[[], object]:
        return lambda: torch.autograd.grad(runs[name](), inputs[: 2 if "bias" in name else 1], share)

    with torch.no_grad():
        forward = in_turn(runs, options.repeats, options.limit_s)
    backward = in_turn({name: both(name) for name in runs}, options.repeats, options.limit_s)
    none = _peak_mb(shape, "inputs", options)
    peaks = {name: round(_peak_mb(shape, name, options) - none) for name in runs}
    tokens = inputs[0].shape[0]
    return {
        "shape": shape,
        "tokens": tokens,
        "fill": round(tokens / (size * longest), 2),
        "ms_forward": forward,
        "ms_both": backward,
        "peak_mb": peaks,
    }


def _peak_mb(shape: str, name: str, options: argparse.Namespace) -> float:
    """Resident memory of a process that runs both passes once."""
    command = [sys.executable, "-m", "benchmarks.attention", "--peak", shape, name, "--threads", str(options.threads)]
    run = timed([*command, *(["--quick"] if options.quick else [])], limit_gb=options.limit_gb * 2)
    return float(run.answer()["peak_mb"])


def say_peak(shape: str, name: str, is_quick: bool) -> None:
    """Run one alternative, or nothing, and print this process's peak in MB (10^6 bytes)."""
    inputs, share, runs = padded_case(shape, is_quick)
    if name in runs:
        torch.autograd.grad(runs[name](), inputs[: 2 if "bias" in name else 1], share)
    print(json.dumps({"peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6}))


def _ours(name: str) -> str:
    """What an alternative is compared with."""
    return "ours, bias" if name.endswith(", bias") else "ours"


def _print_padded(case: dict[str, Any]) -> None:
    print(f"{case['shape']}: {case['tokens']:,} tokens, fill {case['fill']}, median ms and peak MB above the inputs")
    for name, peak in case["peak_mb"].items():
        forward, both = (case[key][name]["median"] for key in ("ms_forward", "ms_both"))
        ours = _ours(name)
        times = [case[key][name]["median"] / case[key][ours]["median"] for key in ("ms_forward", "ms_both")]
        ratios = "" if name == ours else f"   ours is {times[0]:.2f} and {times[1]:.2f} times as fast"
        print(f"  {name:17} forward {forward:>9}  both {both:>9}  peak {peak:>6}{ratios}")


def main() -> None:
    """Test, measure, print a table, append a line to benchmarks/results/attention.jsonl."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--long", action="store_true", help="also sequences of up to 2,048 tokens")
    parser.add_argument("--padded", action="store_true", help="the three shapes against padded attention")
    parser.add_argument("--quick", action="store_true", help="small shapes, and nothing is written down")
    parser.add_argument("--limit-s", type=float, default=90.0, help="after which 5 repeats are enough")
    parser.add_argument("--limit-gb", type=float, default=16.0, help="a rival that needs more is not run")
    parser.add_argument("--peak", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    if arguments.peak:
        say_peak(arguments.peak[0], arguments.peak[1], arguments.quick)
        return
    subprocess.run([sys.executable, "-m", "pytest", "-q", "tests/kernels/attention"], check=True)
    if arguments.padded:
        cases = []
        for shape in SHAPES:
            cases.append(measure_padded(shape, arguments))
            _print_padded(cases[-1])
    else:
        shapes = ("ml-1m", "beauty", "long") if arguments.long else ("ml-1m", "beauty")
        cases = [measure(shape, causal, arguments.repeats) for shape in shapes for causal in (True, False)]
        for case in cases:
            figures = "   ".join(f"{name} {value['median']}" for name, value in case["ms"].items())
            print(f"{case['shape']:8} {'causal' if case['causal'] else 'both':7} fill {case['fill']}  ms: {figures}")
    if not arguments.quick:
        append("attention", {"threads": arguments.threads, "cases": cases})


if __name__ == "__main__":
    main()
