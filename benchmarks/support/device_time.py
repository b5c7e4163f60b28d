"""Alternatives timed in turn on a device: by its own clock on a GPU, with a cold L2 cache and the host ahead of it."""

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

FLUSH_BYTES = 256 << 20  # several times the L2 of any GPU
# The GPU waits so long before each run that the host has issued all of it: launches are not what is timed.
AHEAD_CYCLES = 2_000_000


@dataclass(frozen=True)
class Times:
    """Milliseconds of one alternative."""

    p10: float
    median: float
    p99: float

    @classmethod
    def of(cls, values: list[float]) -> "Times":
        """The summary of single runs."""
        low, high = np.percentile(values, [10, 99])
        return cls(round(float(low), 5), round(statistics.median(values), 5), round(float(high), 5))


def times_in_turn(
    runs: Mapping[str, Callable[[], object]], device: torch.device, repeats: int, warm_up: int = 3
) -> dict[str, Times]:
    """Milliseconds of each, in rounds in which every one runs once."""
    measured: dict[str, list[Callable[[], float]]] = {name: [] for name in runs}
    one = _CudaRun(device) if device.type == "cuda" else _host_run
    for number in range(warm_up + repeats):
        for name, run in runs.items():
            taken = one(run)
            if number >= warm_up:
                measured[name].append(taken)
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return {name: Times.of([taken() for taken in values]) for name, values in measured.items()}


class _CudaRun:
    """Runs something once and gives a function that tells its milliseconds, after a synchronisation."""

    def __init__(self, device: torch.device) -> None:
        self.flush: Tensor = torch.empty(FLUSH_BYTES, dtype=torch.int8, device=device)

    def __call__(self, run: Callable[[], object]) -> Callable[[], float]:
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]  # torch has no types for it
        self.flush.zero_()
        torch.cuda._sleep(AHEAD_CYCLES)  # type: ignore[no-untyped-call]  # nor for it
        begin.record()
        run()
        end.record()
        return lambda: begin.elapsed_time(end)


def _host_run(run: Callable[[], object]) -> Callable[[], float]:
    began = time.perf_counter()
    run()
    taken = (time.perf_counter() - began) * 1e3
    return lambda: taken
