"""How a run ends: with a bundle and what was found, or asked to stop."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from recsys.errors import RecsysError
from recsys.features.dataset import PreparedDataset
from recsys.models.bundle import save_bundle
from recsys.models.protocols import NextItemModel

GOLDEN_USERS = 8
_OF_THE_RECORD = ("data_hash", "protocol", "order", "recsys", "commit")


@dataclass(frozen=True)
class TrainResult:
    """Where the run ended and what it found."""

    bundle: Path
    epochs: int
    steps: int
    best_epoch: int | None
    validation: dict[str, float]  # of the best epoch; empty where the protocol holds out none
    seconds: float
    weights_sha256: str  # of the weights in the bundle


class Stopped(RecsysError):
    """The run was asked to stop; it saved a checkpoint first."""


def write_bundle(
    path: Path,
    model: NextItemModel,
    made_by: tuple[str, dict[str, Any]],
    dataset: PreparedDataset,
    record: dict[str, Any],
    validation: dict[str, Any],
) -> Path:
    """The bundle of a run that has ended.

    Args:
        path: of the bundle's folder.
        model: in eval mode, with the weights that are kept.
        made_by: the model's name, and its config with the sizes that the dataset gave it.
        record: of the run.
        dataset: what it was trained on.
        validation: figures of the best epoch with their protocol; empty where the protocol holds out none.
    """
    name, config = made_by
    items = dataset.path / "items.parquet"
    return save_bundle(
        path,
        model=model,
        name=name,
        config=config,
        items=dataset.items,
        popularity=dataset.train_counts(),
        metrics={"validation": validation},
        data={key: record[key] for key in _OF_THE_RECORD},
        golden_histories=_golden_histories(dataset),
        history_lengths=dataset.train_slices().lengths,
        item_table=items if items.is_file() else None,
    )


def _golden_histories(dataset: PreparedDataset) -> list[list[int | str]]:
    """Histories of a few users with the most varied lengths, and one of a new user."""
    slices = dataset.train_slices()
    order = np.argsort(slices.lengths, kind="stable")
    chosen = order[np.linspace(0, len(order) - 1, GOLDEN_USERS).astype(np.int64)]
    histories: list[list[int | str]] = [
        list(dataset.items.decode(np.asarray(slices.gather(int(i))[0][-50:], dtype=np.int64))) for i in chosen
    ]
    return [*histories, []]
