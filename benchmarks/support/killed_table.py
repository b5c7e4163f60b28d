"""A trainer in a process of its own that dies by SIGKILL at a random moment, and what its log then holds.

The process tells what it is about to do in one byte of a file in memory that both map, and writes each step whose delta
is durable to a file that it syncs: so many lines are acknowledged, whatever happens next.
"""

import mmap
import multiprocessing
import os
import signal
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

import numpy as np
import torch

from benchmarks.support.table_stream import Phase, TableStream, different
from recsys.models.delta import Cut, DeltaLog, ServingModel, deltas_since, read_log

PHASES: tuple[Phase, ...] = get_args(Phase)
BUNDLE = "b"
NEW_IDS, CAPACITY = 20, 300
COMPACT_EVERY = 40  # steps
ROWS_A_STEP = 40  # of a cut that is copied between steps
PRELOADED = ("torch", "numba", "recsys.models.delta", "benchmarks.support.table_stream")
PATIENCE_S = 60.0
AIM_S = 2.0


@dataclass(frozen=True)
class Death:
    """One kill.

    phase: what the trainer was about to do. acknowledged, restored: steps. problem: what is wrong; empty: nothing.
    """

    phase: Phase
    acknowledged: int
    restored: int
    problem: str


class KilledTable:
    """A trainer that is killed and goes on, and one that never stopped.

    Args:
        folder: an empty one.
        seed: of the stream.
    """

    def __init__(self, folder: Path, seed: int) -> None:
        self._folder, self._seed = folder, seed
        self._truth = _trainer(seed)
        self._truth.follow()
        self._truth.train_without_log(5)  # and all kernels are compiled
        self._truth = _trainer(seed)
        self._truth.follow()
        self._served = ServingModel(BUNDLE)

    def kill(self, after_s: float, aim: Phase | None = None) -> Death:
        """Start the trainer, kill it so long after it began to read its log, and look at what it left.

        Args:
            after_s: seconds.
            aim: wait after these until it is about to do this, for at most AIM_S.

        Raises:
            RuntimeError: it ended by itself.
        """
        (self._folder / "phase").write_bytes(b"\0")
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(list(PRELOADED))
        process = context.Process(target=_train, args=(str(self._folder), self._seed))
        process.start()
        with (self._folder / "phase").open("r+b") as file, mmap.mmap(file.fileno(), 1) as shown:
            until = time.monotonic() + PATIENCE_S
            while shown[0] == 0 and process.is_alive() and time.monotonic() < until:
                time.sleep(0.001)
            time.sleep(after_s)
            until = time.monotonic() + AIM_S
            while aim is not None and shown[0] != 1 + PHASES.index(aim) and time.monotonic() < until:
                time.sleep(0)
            process.kill()
            process.join()
            phase = PHASES[shown[0] - 1] if shown[0] else "restore"
        if process.exitcode != -signal.SIGKILL:
            raise RuntimeError(f"the trainer ended with {process.exitcode}, before it was killed")
        acknowledged = _acknowledged(self._folder)
        return Death(phase, acknowledged, *self._look(acknowledged))

    def _look(self, acknowledged: int) -> tuple[int, str]:
        """The step that the log is at, and what is wrong."""
        if DeltaLog(self._folder / "log", BUNDLE).is_empty:
            return 0, "" if acknowledged < 0 else "the log is empty"
        folded = read_log(self._folder / "log")
        step = int(folded.extra["step"])
        if step < acknowledged:
            return step, f"step {acknowledged} was acknowledged"
        self._truth.train_without_log(step)
        if wrong := different(self._truth.folded_state(folded), self._truth.state()):
            return step, f"these differ: {', '.join(wrong)}"
        assert folded.version is not None
        for delta in deltas_since(self._folder / "out", self._served.at):
            self._served.apply(delta)
        if self._served.at is not None and self._served.at > folded.version:
            return step, f"servers are at {self._served.at}, the log at {folded.version}"
        if self._served.at == folded.version:
            return step, self._served_otherwise()
        return step, ""

    def _served_otherwise(self) -> str:
        now = self._served.version()
        for name, table in self._truth.tables.items():
            rows = table.live_rows()
            ids = table.ids_of(rows)
            if len(now.tables[name]) != len(ids) or not torch.equal(
                now.tables[name].vectors(ids), table.pages.gather(rows)
            ):
                return f"servers have another {name}"
        return ""


def _trainer(seed: int) -> TableStream:
    return TableStream(seed, new_ids=NEW_IDS, capacity=CAPACITY)


def _acknowledged(folder: Path) -> int:
    """The last step; -1: none. A line without an end was being written."""
    path = folder / "acknowledged"
    lines = path.read_text().split("\n")[:-1] if path.exists() else []
    return int(lines[-1]) if lines else -1


def _train(folder: str, seed: int) -> None:
    """In the child: go on until the end comes."""
    torch.set_num_threads(1)
    place = Path(folder)
    _trainer(seed).train_without_log(5)  # loads the compiled kernels: most of a short life would be that
    with (place / "phase").open("r+b") as file, mmap.mmap(file.fileno(), 1) as shown:

        def show(phase: Phase) -> None:
            shown[0] = 1 + PHASES.index(phase)

        show("restore")
        trainer = TableStream(seed, new_ids=NEW_IDS, capacity=CAPACITY, on_phase=show)
        log = DeltaLog(place / "log", BUNDLE, published=place / "out")
        if log.is_empty:
            log.start(trainer.tables, trainer.weights, trainer.extra)
        else:
            restored = log.restore(trainer.tables)
            trainer.resume(restored.dense, restored.extra)
        _run(trainer, log, show, place / "acknowledged")


def _run(trainer: TableStream, log: DeltaLog, show: Callable[[Phase], None], told: Path) -> None:
    """Cuts by turns at once, and copied between steps and written on another thread."""
    draw = np.random.default_rng(os.getpid())
    with ThreadPoolExecutor(1) as pool, told.open("ab", buffering=0) as file:

        def write(cut: Cut, step: int) -> None:
            log.write(cut.delta())
            file.write(f"{step}\n".encode())
            os.fsync(file.fileno())

        cut: Cut | None = None
        cut_at, waiting = trainer.step, list[Future[None]]()
        while True:
            trainer.train()
            if cut is not None and cut.copy(ROWS_A_STEP):
                waiting.append(pool.submit(write, cut, cut_at))
                cut = None
            if trainer.is_at_a_cut:
                show("cut")
                if cut is not None:
                    cut.copy(sum(map(len, trainer.tables.values())))
                    waiting.append(pool.submit(write, cut, cut_at))
                cut, cut_at = log.cut(trainer.weights, trainer.extra), trainer.step
                if draw.random() < 0.5:
                    for one in waiting:
                        one.result()
                    waiting = []
                    write(cut, cut_at)
                    cut = None
            if trainer.step % COMPACT_EVERY == 0:
                show("compaction")
                log.compact()
