"""Where a run stands, and its way to disk and back: all that is no function of (seed, epoch, step)."""

import os
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from recsys import __version__
from recsys.errors import CheckpointError
from recsys.pipelines import checkpoint
from recsys.pipelines.run_config import source_commit
from recsys.pipelines.training.average import WeightAverage

METRIC = "ndcg@10"


@dataclass
class RunState:
    """Counters of a run; JSON values.

    epoch: the one that is being trained, from 0. step_in_epoch: optimizer steps of it that are done. step: of all.
    best, best_epoch: figures of the best validation so far. bad: validations since. seconds: of training, over all
    resumes. validated_at_s: `seconds` at the last validation.
    """

    epoch: int = 0
    step_in_epoch: int = 0
    step: int = 0
    best_epoch: int | None = None
    best: dict[str, float] = field(default_factory=dict)
    bad: int = 0
    seconds: float = 0.0
    validated_at_s: float = 0.0

    def count_validation(self, figures: dict[str, float], epoch: int) -> bool:
        """Take in the figures of a validation; returns whether they are the best so far."""
        if self.best and figures[METRIC] <= self.best[METRIC]:
            self.bad += 1
            return False
        self.best, self.best_epoch, self.bad = figures, epoch, 0
        return True


class Checkpoints:
    """The checkpoints of one run: what is trained, written whole and brought back in place.

    Args:
        folder: `checkpoints/` of the run.
        module, optimizer: what is trained.
        average: of the weights, where the run keeps one.
        warn: gets a line where a resumed run may differ from one that was never stopped, or a checkpoint is damaged.
    """

    def __init__(
        self,
        folder: Path,
        module: nn.Module,
        optimizer: torch.optim.Optimizer,
        average: WeightAverage | None,
        warn: Callable[[str], None],
    ) -> None:
        self.folder, self.module, self.optimizer, self.average, self.warn = folder, module, optimizer, average, warn
        self.best_weights: dict[str, Tensor] = {}

    def save(self, state: RunState) -> Path:
        """Write the state and all tensors; returns the checkpoint's folder.

        Raises:
            StorageError: the disk is full or failed; the older checkpoints stay.
        """
        return checkpoint.save_checkpoint(
            self.folder,
            state.step,
            model=self.module,
            optimizer=self.optimizer,
            best=self.best_weights,
            average=None if self.average is None else self.average.by_name(),
            state={**asdict(state), **self._place()},
        )

    def load_newest(self) -> RunState | None:
        """Go on from the newest checkpoint that is whole; None where there is none.

        Raises:
            CheckpointError: there are some, and none can be used.
        """
        passed: list[CheckpointError] = []
        for path in checkpoint.found_in(self.folder):
            try:
                stored = checkpoint.load_checkpoint(path, model=self.module, optimizer=self.optimizer)
                if self.average is not None:
                    self.average.load(stored.average, path)
            except CheckpointError as error:
                passed.append(error)
            else:
                for damage in passed:
                    self.warn(f"{damage}; going on from the one before")
                self.best_weights = stored.best
                self._compare_place(stored.state)
                return _state_of(stored.state)
        if passed:
            raise passed[0]
        return None

    def _compare_place(self, stored: dict[str, Any]) -> None:
        for name, value in self._place().items():
            if stored.get(name, value) != value:
                self.warn(
                    f"resumed with {name}={value}, began with {name}={stored[name]}: "
                    "the last bits of the weights may differ"
                )

    def _place(self) -> dict[str, Any]:
        return place_of(next((parameter.device for parameter in self.module.parameters()), torch.device("cpu")))


def place_of(device: torch.device) -> dict[str, Any]:
    """What the last bits of a run depend on and no setting fixes; JSON values."""
    return {
        "threads": torch.get_num_threads(),
        "device": str(device),
        "gpu": torch.cuda.get_device_name(device) if device.type == "cuda" else None,
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "torch": torch.__version__,
        "kernels": os.environ.get("RECSYS_KERNELS") or "auto",
        "recsys": __version__,
        "commit": source_commit(),
    }


def _state_of(stored: dict[str, Any]) -> RunState:
    """A counter that an older version did not keep has its default."""
    return RunState(**{each.name: stored[each.name] for each in fields(RunState) if each.name in stored})
