"""The kernels on a GPU against their rivals: milliseconds, TFLOP/s, GB/s, errors and memory, in one JSON.

    python -m benchmarks.kernels --suite h200 --out OUT [--only REGEX] [--skip REGEX] [--budget-s 500]
    python -m benchmarks.kernels --suite cpu --tiny --out OUT        # tries every part on a CPU; its times say nothing

Needs torch, triton and numpy alone. Each part draws its inputs, lets all rivals run in turn within one loop with a cold
L2 cache, and reports P10, median and P99 by the GPU's own clock: forward, backward with its graph kept, and `both`.
`wall_ms` is forward and backward by the host's clock, whatever the host does included. FLOP are the definition's,
4 H D sum(n^2) forward (half if causal) and 2.5 times that backward, whatever a rival really executes; rates are of P10.
`max_error` is against the definition in float64 on the same inputs, beside that of the definition in the rivals' dtype
(`definition_error`). A rival that cannot run is an `error` line; where it is ours, the part has failed.
OUT/kernels.json is written after every part, and a part that stands there and has not failed is not run again.
"""

import argparse
import itertools
import json
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks.support.attention_problem import BACKWARD_FLOP, Problem, Shape
from benchmarks.support.attention_rivals import RIVALS
from benchmarks.support.bert4rec_speed import bert4rec_speed
from benchmarks.support.hash_table_speed import hash_table_speed
from benchmarks.support.op_contests import (
    Match,
    jagged_embedding_match,
    linear_cross_entropy_match,
    sampled_loss_match,
    search_topk_match,
    topk_attend_match,
)
from benchmarks.support.record import commit, machine
from benchmarks.support.rival_figures import Contest, measure

Part = Callable[[], dict[str, Any]]
OUTPUTS = ("out", "grad_q", "grad_k", "grad_v", "grad_table")  # the last one with a bias alone
SUITES = {"h200": "cuda", "cpu": "cpu"}
TINY_TOKENS, TINY_LEN = 256, 64


def attention_shapes() -> Iterator[Shape]:
    """What is measured: the regimes of real histories and of long ones, then biases, SiLU and windows."""
    for width in (64, 128, 32):
        yield Shape(name=f"8192 causal d{width}", max_len=8192, width=width)
        yield Shape(name=f"200 ragged d{width}", max_len=200, width=width, is_ragged=True, causal=False)
        yield Shape(name=f"200 d{width}", max_len=200, width=width, causal=False)
        yield Shape(name=f"2048 causal d{width}", max_len=2048, width=width)
        yield Shape(name=f"2048 causal ragged d{width}", max_len=2048, width=width, is_ragged=True)
        yield Shape(name=f"16384 causal d{width}", max_len=16_384, width=width)
    for max_len in (2048, 200, 8192):
        ragged = max_len < 8192
        yield Shape(name=f"{max_len} causal time bias d64", max_len=max_len, width=64, is_ragged=ragged, bias=True)
        yield Shape(name=f"{max_len} causal silu d64", max_len=max_len, width=64, is_ragged=ragged, kind="silu")
    for max_len in (2048, 8192, 16_384):
        name = f"{max_len} window 64, 1 global d64"
        yield Shape(name=name, max_len=max_len, width=64, causal=False, window=(64, 64), num_global=1)


def attention_part(shape: Shape, device: torch.device, repeats: int) -> dict[str, Any]:
    """One shape, every rival."""
    problem = Problem(shape, device)
    flop = 0.0 if shape.window != (-1, -1) else problem.forward_flop
    moved = float(problem.tensor_bytes)
    contest = Contest(problem.inputs, problem.share, flop, 4 * moved, BACKWARD_FLOP * flop, 8 * moved)
    right = problem.checked(torch.float64)

    def errors(found: list[torch.Tensor]) -> dict[str, float]:
        pairs = zip(OUTPUTS[: len(right)], found, right, strict=True)
        return {name: float((one.double() - other).abs().max()) for name, one, other in pairs}

    builds = {name: partial(build, problem) for name, build in RIVALS.items()}
    return {
        "max_len": shape.max_len,
        "width": shape.width,
        "heads": shape.num_heads,
        "sequences": len(problem.lengths),
        "tokens": problem.meta.total,
        "fill": round(problem.fill, 3),
        "dtype": str(shape.dtype).removeprefix("torch."),
        "definition_error": errors(problem.checked(shape.dtype)),
        "rivals": measure(contest, builds, device, repeats, lambda run: errors(problem.found(run))),
    }


def match_part(make: Callable[[], Match], device: torch.device, repeats: int) -> dict[str, Any]:
    """One shape of another op."""
    match = make()
    return {"rivals": measure(match.contest, match.builds, device, repeats, match.errors)}


def parts(device: torch.device, repeats: int, is_tiny: bool) -> dict[str, Part]:
    """Everything there is to measure, by name, in the order of its weight."""
    found: dict[str, Part] = {}
    for shape in attention_shapes():
        sized = _tiny(shape, device) if is_tiny else shape
        found[f"attention, {shape.name}"] = partial(attention_part, sized, device, repeats)
    for name, make in _matches(device, 64 if is_tiny else 1).items():
        found[name] = partial(match_part, make, device, repeats)
    found["bert4rec on ml-1m's shape"] = partial(
        bert4rec_speed, device, 1 if is_tiny else 40, 256 if is_tiny else 32_768
    )
    for slots, load in itertools.product((128_000_000, 64_000_000, 1_000_000), (0.5, 0.75, 0.9)):
        found[f"hash_table, {slots} slots, load {load}"] = partial(
            hash_table_speed, device, slots // 4_000 if is_tiny else slots, load, repeats
        )
    return found


def _tiny(shape: Shape, device: torch.device) -> Shape:
    dtype = shape.dtype if device.type == "cuda" else torch.float32
    return replace(shape, max_len=min(shape.max_len, TINY_LEN), tokens=TINY_TOKENS, num_heads=2, dtype=dtype)


def _matches(device: torch.device, less: int) -> dict[str, Callable[[], Match]]:
    rows = 65_536 // less
    found: dict[str, Callable[[], Match]] = {}
    for items, width in ((50_000, 64), (1_000_000, 64), (1_000_000, 128)):
        name = f"linear_cross_entropy, V {items}, D {width}"
        found[name] = partial(linear_cross_entropy_match, device, rows, items // less**2 or 1, width)
    for is_shared in (False, True):
        name = f"sampled_loss, V 1000000, 256 {'shared' if is_shared else 'own'} negatives, D 64"
        found[name] = partial(sampled_loss_match, device, rows, 1_000_000 // less, 256 // min(less, 8), 64, is_shared)
    for candidates in (1, 16):
        name = f"search_topk, 64 users of 50000, {candidates} candidates, K 128"
        found[name] = partial(search_topk_match, device, 64 // min(less, 32), 50_000 // less, candidates, 64, 128)
    found["topk_attend, 64 users of 50000, 16 candidates, K 128"] = partial(
        topk_attend_match, device, 64 // min(less, 32), 50_000 // less, 16, 64, 128
    )
    found["jagged_embedding, V 1000000, D 128"] = partial(
        jagged_embedding_match, device, 1_000_000 // less, 4 * rows, 128
    )
    return found


class Suite:
    """The parts and the JSON that they go into.

    Args:
        out: folder of kernels.json.
        device: where they run.
        is_again: whether parts that stand in the file are measured anew.
    """

    def __init__(self, out: Path, device: torch.device, is_again: bool = False) -> None:
        self.file, self.is_again = out / "kernels.json", is_again
        out.mkdir(parents=True, exist_ok=True)
        kept = json.loads(self.file.read_text(encoding="utf-8"))["parts"] if self.file.is_file() else {}
        self.report: dict[str, Any] = {"machine": {**machine(), **versions(device)}, "commit": _commit(), "parts": kept}

    def run(self, name: str, part: Part) -> None:
        """Measure one part, print it, write the file; a part that fails is an error line."""
        if self.is_measured(name):
            print(f"{name}: stands in {self.file}")
            return
        began = time.perf_counter()
        try:
            figures = part()
        except Exception as error:  # the other parts are worth having
            figures = {"error": f"{type(error).__name__}: {str(error)[:300]}"}
        self.report["parts"][name] = {**figures, "seconds": round(time.perf_counter() - began, 1)}
        self._write()
        print("\n".join(told(name, figures)), flush=True)
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def is_measured(self, name: str) -> bool:
        """Whether the file has the part, it did not fail, and it is not asked for again."""
        part = self.report["parts"].get(name)
        return part is not None and not has_failed(part) and not self.is_again

    def end(self, not_run: Sequence[str]) -> bool:
        """Write down which parts failed and which were not reached; returns whether all is well."""
        failed = [name for name, part in self.report["parts"].items() if has_failed(part)]
        self.report |= {"failed": failed, "not_run": list(not_run)}
        self._write()
        return not failed and not not_run

    def _write(self) -> None:
        self.file.write_text(json.dumps(self.report, indent=1) + "\n", encoding="utf-8")


def has_failed(part: dict[str, Any]) -> bool:
    """Whether a part ended early, or ours, forward or backward; a rival may fail."""
    ours = part.get("rivals", {}).get("ours", {})
    return "error" in part or any(f"{kind}error" in ours for kind in ("", "backward_", "after_"))


def told(name: str, figures: dict[str, Any]) -> Iterator[str]:
    """A part, for the eye."""
    if "g_keys_s" in figures:
        yield f"{name}: {figures['ids']:,} ids at load {figures['load']}, {figures['bytes_per_id']} bytes an id"
        yield from (f"  {run:28} {rate:9.3f} G keys/s" for run, rate in figures["g_keys_s"].items())
        return
    if "rivals" not in figures:
        yield f"{name}: {json.dumps(figures)}"
        return
    yield name
    for rival, row in figures["rivals"].items():
        if "error" in row:
            yield f"  {rival:28} {row['error'][:100]}"
            continue
        passes = [_told_pass(row.get(which)) for which in ("forward", "both")]
        worst = max(row.get("max_error", {}).values(), default=float("nan"))
        yield f"  {rival:28} {passes[0]} {passes[1]}  error {worst:.1e}  {row.get('peak_mb') or 0:8.0f} MB"


def _told_pass(times: dict[str, float] | None) -> str:
    if times is None:
        return f"{'-':>30}"
    rate = f"{times['tflop_s']:.0f} TF/s" if "tflop_s" in times else f"{times.get('gb_s', 0):.0f} GB/s"
    return f"{times['p10']:9.3f} {times['median']:9.3f} ms {rate:>9}"


def versions(device: torch.device) -> dict[str, Any]:
    """What belongs beside a GPU's figures: Triton, CUDA, clocks and power."""
    found: dict[str, Any] = {"triton": None, "cuda": torch.version.cuda}
    with suppress(ImportError):
        import triton

        found["triton"] = triton.__version__
    if device.type == "cuda" and shutil.which("nvidia-smi"):
        asked = "driver_version,clocks.sm,clocks.mem,clocks.max.sm,power.limit,temperature.gpu"
        command = ["nvidia-smi", f"--query-gpu={asked}", "--format=csv,noheader"]
        found["nvidia_smi"] = subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()
    return found


def _commit() -> str | None:
    try:
        return commit() or None
    except OSError:
        return None  # a machine without git


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the suite; the exit code: 0, 1 with parts that failed or were not reached, 2 where it cannot run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--suite", choices=SUITES, default="h200")
    parser.add_argument("--out", type=Path, default=Path("runs/kernels"), help="folder of kernels.json")
    parser.add_argument("--tiny", action="store_true", help="small inputs and 2 rounds: a trial of the script")
    parser.add_argument("--repeats", type=int, default=30, help="timed rounds")
    parser.add_argument("--only", default="", help="parts whose name holds this regular expression")
    parser.add_argument("--skip", default="$^", help="parts whose name holds this regular expression are left out")
    parser.add_argument("--budget-s", type=float, help="begin no part after so many seconds; the same command goes on")
    parser.add_argument("--again", action="store_true", help="also parts that stand in the file")
    options = parser.parse_args(arguments)
    device = torch.device(SUITES[options.suite])
    if device.type == "cuda" and not torch.cuda.is_available():
        print("error: --suite h200 needs a GPU; --suite cpu --tiny tries the script without one", file=sys.stderr)
        return 2
    suite = Suite(options.out, device, options.again)
    began, not_run = time.monotonic(), list[str]()
    for name, part in parts(device, 2 if options.tiny else options.repeats, options.tiny).items():
        if not re.search(options.only, name) or re.search(options.skip, name):
            continue
        is_spent = options.budget_s is not None and time.monotonic() - began > options.budget_s
        if is_spent and not suite.is_measured(name):
            not_run.append(name)
            continue
        suite.run(name, part)
    if not_run:
        print(f"the budget is spent, {len(not_run)} parts are left; the same command goes on")
    return 0 if suite.end(not_run) else 1


if __name__ == "__main__":
    sys.exit(main())
