"""A bundle between its floor and its ceiling: the evaluation that `recsys evaluate` and the demo print."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from recsys.errors import DataError
from recsys.features.dataset import PreparedDataset
from recsys.models.bundle import Bundle, attach_metrics, load_bundle, resolve
from recsys.models.oracle import ShopOracle
from recsys.models.protocols import NextItemModel, Scorer
from recsys.pipelines.evaluation.evaluate import Evaluation, Seen, Split, evaluate
from recsys.pipelines.evaluation.floors import fit_floors


@dataclass(frozen=True)
class EvaluationReport:
    """The figures, the bundle they are of, and the file that holds them."""

    evaluation: Evaluation
    bundle: Bundle
    file: Path


def evaluate_bundle(
    source: str | Path,
    data: Path | None = None,
    *,
    split: Split = "test",
    seen: Seen = "exclude",
    world: Path | None = None,
    tracking_uri: str | None = None,
    observe: Callable[[dict[str, Any]], None] | None = None,
) -> EvaluationReport:
    """Evaluate a bundle beside its floors, and write evaluation.json into its run folder (or beside the bundle).

    Args:
        source: a run folder, a bundle folder or models:/name@alias.
        data: prepared dataset; by default the one its run was trained on.
        split: `valid` or `test`.
        seen: whether items of the history may be recommended again.
        world: folder of the simulated world the data comes from; adds its oracle.
        tracking_uri: of the registry, for models:/….
        observe: told about progress.

    Raises:
        BundleError: no bundle there, or a damaged one.
        DataError: the dataset has another vocabulary, or its split asks no question.
    """
    path = resolve(source, tracking_uri)
    bundle = load_bundle(path)
    dataset = PreparedDataset.open(data or _trained_on(path))
    if dataset.data_hash != bundle.data.get("data_hash") and not _same_items(dataset, bundle):
        raise DataError(
            f"{dataset.path}: its items are not those of bundle {path} "
            f"(V={dataset.num_items} and {len(bundle.items)}); name the dataset that the model was trained on"
        )
    scorers: dict[str, NextItemModel | Scorer] = {**fit_floors(dataset), bundle.name: bundle.model}
    if world is not None:
        scorers["oracle"] = ShopOracle(world, dataset)
    evaluation = evaluate(scorers, dataset, split, seen, observe=observe)
    figures = {**evaluation.to_dict(), "model": bundle.name, "bundle_version": bundle.version}
    folder = path.parent if path.name == "bundle" else path.parent / f"{path.name}.evaluation"
    folder.mkdir(exist_ok=True)
    file = folder / "evaluation.json"
    _write_json(file, figures)
    attach_metrics(path, {**bundle.metrics, split: figures})
    return EvaluationReport(evaluation, bundle, file)


def _trained_on(bundle: Path) -> Path:
    run = bundle.parent / "run.json"
    if not run.is_file():
        raise DataError(f"{bundle}: its run folder is not beside it; name the prepared dataset by --data")
    return Path(json.loads(run.read_text(encoding="utf-8"))["config"]["data"])


def _same_items(dataset: PreparedDataset, bundle: Bundle) -> bool:
    if len(dataset.items) != len(bundle.items):
        return False
    indices = np.arange(1, len(bundle.items) + 1)
    return dataset.items.decode(indices) == bundle.items.decode(indices)


def _write_json(path: Path, value: Any) -> None:
    draft = path.with_name(path.name + ".tmp")
    draft.write_text(json.dumps(value, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    draft.rename(path)
