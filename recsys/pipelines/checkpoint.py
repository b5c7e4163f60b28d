"""Checkpoints of a training run: a folder each, written whole or not at all, checked when read.

    step-00000120/  tensors.safetensors  model.*, optimizer.*, best.*, average.*
                    state.json           where the run stands, sha256

Random numbers need no state of their own: every draw is a function of (seed, epoch, step).
"""

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from safetensors.torch import load_file, save
from torch import Tensor, nn, optim

from recsys.errors import CheckpointError
from recsys.files import recover_folder, replace_folder, sha256_of, storage_errors, sync

FORMAT_VERSION = 1
KEEP = 2


class Stored(NamedTuple):
    """What a checkpoint brings back beside model and optimizer: where the run stood, and named weights."""

    state: dict[str, Any]
    best: dict[str, Tensor]  # of the best validation so far; empty before the first
    average: dict[str, Tensor]  # of the parameters; empty where none is kept


def save_checkpoint(
    folder: Path,
    step: int,
    *,
    model: nn.Module,
    optimizer: optim.Optimizer,
    best: dict[str, Tensor],
    state: dict[str, Any],
    average: dict[str, Tensor] | None = None,
) -> Path:
    """Write `folder/step-…` and remove all but the newest two.

    Args:
        folder: the run's checkpoint folder.
        step: optimizer steps done.
        model, optimizer: what is trained; the parameter order must be the same at loading.
        best: weights of the best validation so far; empty before the first.
        state: JSON values that say where the run stands.
        average: of the parameters, by name; None where none is kept.

    Raises:
        InputError: the folder cannot be written.
        StorageError: the disk is full or failed; older checkpoints stay as they were.
    """
    path = folder / f"step-{step:08d}"
    draft = folder / f".{path.name}.{os.getpid()}.tmp"
    with storage_errors(path, "older checkpoints are kept; free some disk space and run the same command again"):
        try:
            draft.mkdir(parents=True)
            tensors = _tensors(model, optimizer) | _named("best", best) | _named("average", average or {})
            _write(draft, tensors, {**state, "format": FORMAT_VERSION, "step": step})
            replace_folder(path, draft)
        finally:
            shutil.rmtree(draft, ignore_errors=True)
    sync(folder)
    for old in _named_by_step(folder)[:-KEEP]:
        shutil.rmtree(old)
    return path


def _named_by_step(folder: Path) -> list[Path]:
    """The oldest first; other names are not ours."""
    return sorted(path for path in folder.glob("step-*") if path.name.removeprefix("step-").isdecimal())


def found_in(folder: Path) -> list[Path]:
    """The checkpoints in `folder`, the newest first. What an interrupted write left behind is taken away.

    A checkpoint is written again where a run was stopped at the last step of an epoch: the older one is set aside
    meanwhile, and comes back if the write was interrupted before the new one stood.
    """
    for name in {leftover.name.split(".")[1] for leftover in folder.glob(".step-*")}:
        recover_folder(folder / name)
    return _named_by_step(folder)[::-1]


def load_checkpoint(path: Path, *, model: nn.Module, optimizer: optim.Optimizer) -> Stored:
    """Load model and optimizer in place; returns the rest.

    Raises:
        CheckpointError: damaged, of an unknown format version, or of another model.
    """
    try:
        state: dict[str, Any] = json.loads((path / "state.json").read_text(encoding="utf-8"))
        version, digest = state["format"], state["sha256"]
    except (OSError, ValueError, KeyError) as error:
        raise CheckpointError(
            f"{path}: state.json is missing or damaged; remove this folder to go on from an older one, if there is one"
        ) from error
    if version != FORMAT_VERSION:
        raise CheckpointError(
            f"{path}: format version {version}, wanted {FORMAT_VERSION}; finish the run with the version that began it"
        )
    file = path / "tensors.safetensors"
    if not file.is_file() or sha256_of(file) != digest:
        raise CheckpointError(
            f"{file}: missing or its bytes differ; remove {path} to go on from an older checkpoint, if there is one"
        )
    tensors = load_file(file)
    try:
        model.load_state_dict(_part(tensors, "model."))
    except RuntimeError as error:
        raise CheckpointError(
            f"{path}: belongs to another model: {str(error).splitlines()[-1].strip()}; name another --out"
        ) from error
    names = [name for name, _ in model.named_parameters()]
    moments: dict[int, dict[str, Tensor]] = {}
    for key, tensor in _part(tensors, "optimizer.").items():
        name, _, slot = key.rpartition(".")
        moments.setdefault(names.index(name), {})[slot] = tensor
    current = optimizer.state_dict()
    optimizer.load_state_dict({"state": moments, "param_groups": current["param_groups"]})
    return Stored(state, _part(tensors, "best."), _part(tensors, "average."))


def _tensors(model: nn.Module, optimizer: optim.Optimizer) -> dict[str, Tensor]:
    tensors = _named("model", model.state_dict())
    for name, parameter in model.named_parameters():
        for slot, value in optimizer.state.get(parameter, {}).items():
            tensors[f"optimizer.{name}.{slot}"] = value
    return tensors


def _named(part: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {f"{part}.{key}": value for key, value in tensors.items()}


def _write(draft: Path, tensors: dict[str, Tensor], state: dict[str, Any]) -> None:
    file = draft / "tensors.safetensors"
    flat = {key: value.detach().cpu().contiguous().clone() for key, value in tensors.items()}
    file.write_bytes(save(flat))
    text = json.dumps({**state, "sha256": sha256_of(file)}, indent=1, sort_keys=True, allow_nan=True)
    (draft / "state.json").write_text(text + "\n", encoding="utf-8")
    for written in (file, draft / "state.json", draft):
        sync(written)


def _part(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}
