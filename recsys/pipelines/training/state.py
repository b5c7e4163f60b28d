"""Where a run stands, and its way to disk and back: all that is no function of (seed, epoch, step)."""

from collections.abc import Callable
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from recsys.errors import CheckpointError
from recsys.pipelines import checkpoint


@dataclass
class RunState:
    """Counters of a run; JSON values.

    epoch: the one that is being trained, from 0. step_in_epoch: steps of it that are done. step: steps in all.
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


class Checkpoints:
    """The checkpoints of one run: what is trained, written whole and brought back in place.

    Args:
        folder: `checkpoints/` of the run.
        module, optimizer: what is trained.
        warn: gets a line where a resumed run may differ from one that was never stopped, or a checkpoint is damaged.
    """

    def __init__(
        self, folder: Path, module: nn.Module, optimizer: torch.optim.Optimizer, warn: Callable[[str], None]
    ) -> None:
        self.folder, self.module, self.optimizer, self.warn = folder, module, optimizer, warn
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
            state={**asdict(state), "threads": torch.get_num_threads()},
        )

    def load_newest(self) -> RunState | None:
        """Go on from the newest checkpoint that is whole; None where there is none.

        Raises:
            CheckpointError: there are some, and none can be used.
        """
        found = checkpoint.found_in(self.folder)
        for path in found:
            try:
                stored, self.best_weights = checkpoint.load_checkpoint(
                    path, model=self.module, optimizer=self.optimizer
                )
            except CheckpointError as error:
                if path == found[-1]:
                    raise
                self.warn(f"{error}; going on from the one before")
            else:
                self._compare_threads(stored)
                return _state_of(stored)
        return None

    def _compare_threads(self, stored: dict[str, Any]) -> None:
        if stored["threads"] != torch.get_num_threads():
            self.warn(
                f"resumed with {torch.get_num_threads()} threads, began with {stored['threads']}: "
                "the last bits of the weights may differ"
            )


def _state_of(stored: dict[str, Any]) -> RunState:
    """A counter that an older version did not keep has its default."""
    return RunState(**{each.name: stored[each.name] for each in fields(RunState) if each.name in stored})
