"""Rivals measured side by side: times, errors and memory of each, or why there are none."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from benchmarks.support.device_time import times_in_turn

WALL_REPEATS = 10


@dataclass(frozen=True)
class Contest:
    """What rivals do.

    Attributes:
        inputs: the tensors whose gradients are asked for; none: forward alone.
        share: gradient of the output; None for a scalar.
        forward_flop, forward_bytes: by convention, the same for all; 0 leaves the rate out.
        backward_flop, backward_bytes: likewise.
    """

    inputs: Sequence[Tensor]
    share: Tensor | None
    forward_flop: float = 0.0
    forward_bytes: float = 0.0
    backward_flop: float = 0.0
    backward_bytes: float = 0.0


def measure(
    contest: Contest,
    builds: Mapping[str, Callable[[], Callable[[], Tensor]]],
    device: torch.device,
    repeats: int,
    errors: Callable[[Callable[[], Tensor]], dict[str, float]] | None = None,
) -> dict[str, dict[str, Any]]:
    """Figures of each rival; `error` holds the reason where one cannot run, forward or backward.

    Args:
        builds: each makes a rival ready and returns its forward pass.
        repeats: timed rounds, at least 20 for figures that are kept.
        errors: of a rival's results, by name.
    """
    found: dict[str, dict[str, Any]] = {name: {} for name in builds}
    runs: dict[str, Callable[[], Tensor]] = {}
    for name, build in builds.items():
        try:
            runs[name] = build()
            with torch.no_grad():
                runs[name]()
        except Exception as error:  # one rival's failure is its figure
            found[name]["error"] = _reason(error)
            runs.pop(name, None)
    forward = times_in_turn({name: _without_graph(run) for name, run in runs.items()}, device, repeats)
    for name, times in forward.items():
        found[name]["forward"] = {**asdict(times), **_rates(times.p10, contest.forward_flop, contest.forward_bytes)}
    backward = {
        name: run for name, run in runs.items() if contest.inputs and _backward_works(contest, run, found[name])
    }
    _time_backward(contest, backward, device, repeats, found)
    for name, run in runs.items():
        try:
            if errors is not None and (name in backward or not contest.inputs):
                found[name]["max_error"] = errors(run)
            found[name]["peak_mb"], found[name]["wall_ms"] = _whole(contest, run, name in backward, device)
        except Exception as error:  # as above
            found[name]["after_error"] = _reason(error)
    return found


def _time_backward(
    contest: Contest,
    runs: Mapping[str, Callable[[], Tensor]],
    device: torch.device,
    repeats: int,
    found: dict[str, dict[str, Any]],
) -> None:
    passes = {name: _backward(contest, run()) for name, run in runs.items()}
    for name, times in times_in_turn(passes, device, repeats).items():
        found[name]["backward"] = {**asdict(times), **_rates(times.p10, contest.backward_flop, contest.backward_bytes)}
    passes.clear()  # and the graphs with them
    flop, moved = contest.forward_flop + contest.backward_flop, contest.forward_bytes + contest.backward_bytes
    for name, times in times_in_turn({n: _both(contest, run) for n, run in runs.items()}, device, repeats).items():
        found[name]["both"] = {**asdict(times), **_rates(times.p10, flop, moved)}


def _both(contest: Contest, run: Callable[[], Tensor]) -> Callable[[], object]:
    """Forward and backward together: an op may form its gradients in either."""
    return lambda: torch.autograd.grad(run(), contest.inputs, contest.share)


def _backward(contest: Contest, out: Tensor) -> Callable[[], object]:
    return lambda: torch.autograd.grad(out, contest.inputs, contest.share, retain_graph=True)


def _backward_works(contest: Contest, run: Callable[[], Tensor], figures: dict[str, Any]) -> bool:
    try:
        torch.autograd.grad(run(), contest.inputs, contest.share)
    except Exception as error:  # as above
        figures["backward_error"] = _reason(error)
        return False
    return True


def _without_graph(run: Callable[[], Tensor]) -> Callable[[], object]:
    def forward() -> Tensor:
        with torch.no_grad():
            return run()

    return forward


def _whole(contest: Contest, run: Callable[[], Tensor], has_backward: bool, device: torch.device) -> tuple[Any, float]:
    """Peak MB (10^6 bytes) above what was there, None on a CPU; and milliseconds on the wall, the host's included."""
    is_cuda = device.type == "cuda"

    def once() -> None:
        out = run()
        if has_backward:
            torch.autograd.grad(out, contest.inputs, contest.share)
        if is_cuda:
            torch.cuda.synchronize(device)

    peak = None
    if is_cuda:
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        once()
        peak = round((torch.cuda.max_memory_allocated(device) - before) / 1e6, 1)
    times = []
    for _ in range(WALL_REPEATS):
        began = time.perf_counter()
        once()
        times.append((time.perf_counter() - began) * 1e3)
    return peak, round(sorted(times)[len(times) // 2], 4)


def _rates(ms: float, flop: float, moved: float) -> dict[str, float]:
    rates = {"tflop_s": flop / ms / 1e9, "gb_s": moved / ms / 1e6}
    return {name: round(rate, 2) for name, rate in rates.items() if rate}


def _reason(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {(lines or [''])[0][:300]}"
