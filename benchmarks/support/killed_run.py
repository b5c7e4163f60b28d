"""Training runs in processes of their own, and their deaths by SIGKILL at moments of three kinds.

A process is forked from a server that has imported torch and never trained: it starts at once and knows nothing of a
run but what its folder holds. Deaths at a step and at an epoch's end come from within, by a hook of torch's optimizers
and by the run's own events; deaths inside a checkpoint's write come from without, by watching the folder, and count
only where the unfinished draft is found lying there afterwards.
"""

import multiprocessing
import os
import shutil
import signal
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, Literal

import numpy as np

from recsys import config as configs
from recsys.files import sha256_of
from recsys.pipelines.run_config import TrainConfig

Kind = Literal["step", "write", "epoch end"]
# What a first step would import.
PRELOADED = (
    *("recsys.pipelines.training", "recsys.models.sasrec", "recsys.models.bert4rec", "torch._dynamo"),
    *("recsys.kernels.hash_table.numba_index", "recsys.kernels.row_pages.numba_path"),
)
ATTEMPTS = 60  # to hit a write, which may be over before the signal arrives
FIRST_REACH_S = 0.002  # the signal comes at a random moment so soon after the first byte


@dataclass(frozen=True, kw_only=True)
class Death:
    """One kill.

    kind: where it struck. at: the step (or, for an epoch's end, the epoch). resumed_from: step of the newest whole
    checkpoint that it left; 0 is none. draft_bytes: of an unfinished checkpoint.
    """

    kind: Kind
    at: int
    resumed_from: int
    draft_bytes: int | None = None


@dataclass(frozen=True)
class KilledRun:
    """A run that is killed and goes on.

    Args:
        config: JSON file of a TrainConfig.
        out: run folder.
    """

    config: Path
    out: Path

    def finish(self) -> str:
        """Train to the end; returns the sha256 of the bundle's weights."""
        self._wait(self._start(None, None), killed=False)
        return sha256_of(self.out / "bundle" / "weights.safetensors")

    def kill_at_step(self, step: int) -> Death:
        """Die right after `step` optimizer steps of this process."""
        before = self.newest()
        self._wait(self._start(step, None), killed=True)
        return Death(kind="step", at=before + step, resumed_from=self.newest())

    def kill_at_epoch_end(self, epoch: int) -> Death:
        """Die after the validation of `epoch`, before the checkpoint that would hold it."""
        self._wait(self._start(None, epoch), killed=True)
        return Death(kind="epoch end", at=epoch, resumed_from=self.newest())

    def kill_in_write(self, generator: np.random.Generator, writes: int) -> Death:
        """Die between the first byte of a checkpoint and its rename, in one of the first `writes` of this process.

        A signal that came too late is no death of this kind: the folder is put back, and the next comes sooner.

        Raises:
            RuntimeError: no signal arrived inside a write.
        """
        with tempfile.TemporaryDirectory() as place:
            kept = Path(place) / "kept"
            if self.out.exists():
                shutil.copytree(self.out, kept)
            for attempt in range(ATTEMPTS):
                process = self._start(None, None)
                self._await_draft(process, int(generator.integers(writes)))
                time.sleep(float(generator.random()) * FIRST_REACH_S * 0.9**attempt)
                process.kill()
                process.join()
                for draft in self._begun():
                    size, step = _bytes_of(draft), int(draft.name.split(".")[1].removeprefix("step-"))
                    return Death(kind="write", at=step, resumed_from=self.newest(), draft_bytes=size)
                shutil.rmtree(self.out)
                if kept.exists():
                    shutil.copytree(kept, self.out)
        raise RuntimeError(f"{ATTEMPTS} signals, none inside a write; take a larger model")

    def newest(self) -> int:
        """Step of the newest whole checkpoint; 0 is none."""
        return max((int(path.name.removeprefix("step-")) for path in self._found("step-*")), default=0)

    def _start(self, at_step: int | None, at_epoch: int | None) -> BaseProcess:
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(list(PRELOADED))
        process = context.Process(target=_train, args=(str(self.config), str(self.out), at_step, at_epoch))
        process.start()
        return process

    def _await_draft(self, process: BaseProcess, passed: int) -> None:
        """Until a draft with a first byte appears after `passed` others, or the process ends."""
        seen: set[Path] = set()
        while process.is_alive():
            seen.update(self._begun())
            if len(seen) > passed:
                return

    def _begun(self) -> list[Path]:
        """Drafts that hold at least one byte."""
        return [draft for draft in self._found(".step-*.tmp") if _bytes_of(draft)]

    def _found(self, pattern: str) -> list[Path]:
        return sorted((self.out / "checkpoints").glob(pattern))

    def _wait(self, process: BaseProcess, *, killed: bool) -> None:
        process.join()
        wanted = -signal.SIGKILL if killed else 0
        if process.exitcode != wanted:
            raise RuntimeError(f"{self.out}: the process ended with {process.exitcode}, wanted {wanted}")


def _bytes_of(draft: Path) -> int:
    try:
        return sum(file.stat().st_size for file in draft.iterdir())
    except FileNotFoundError:  # renamed meanwhile
        return 0


def _train(config: str, out: str, at_step: int | None, at_epoch: int | None) -> None:
    """In the child: train, and die where it was told to."""
    from torch.optim.optimizer import register_optimizer_step_post_hook

    from recsys.pipelines.training import train

    if at_step is not None:
        register_optimizer_step_post_hook(_dies_after(at_step))

    def observe(event: dict[str, Any]) -> None:
        if event["event"] == "validation" and event["epoch"] == at_epoch:
            os.kill(os.getpid(), signal.SIGKILL)

    train(configs.load(TrainConfig, configs.read(Path(config))), Path(out), observe)


def _dies_after(steps: int) -> Callable[..., None]:
    taken = 0

    def count(*_: Any) -> None:
        nonlocal taken
        taken += 1
        if taken == steps:
            os.kill(os.getpid(), signal.SIGKILL)

    return count
