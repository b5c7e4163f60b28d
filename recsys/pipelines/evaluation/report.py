"""A bundle between its floor and its ceiling: the evaluation that `recsys evaluate` and the demo print."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from recsys.errors import DataError
from recsys.features.dataset import PreparedDataset
from recsys.files import write_json
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
        DataError: the dataset is not the one the model was trained on, or its split asks no question.
    """
    path = resolve(source, tracking_uri)
    bundle = load_bundle(path)
    dataset = PreparedDataset.open(data or _trained_on(path))
    _refuse_other_data(dataset, bundle)
    scorers: dict[str, NextItemModel | Scorer] = {**fit_floors(dataset), bundle.name: bundle.model}
    if world is not None:
        scorers["oracle"] = ShopOracle(world, dataset)
    evaluation = evaluate(scorers, dataset, split, seen, observe=observe)
    figures = {**evaluation.to_dict(), "model": bundle.name, "bundle_version": bundle.version}
    folder = path.parent if path.name == "bundle" else path.parent / f"{path.name}.evaluation"
    folder.mkdir(exist_ok=True)
    file = folder / "evaluation.json"
    write_json(file, figures)
    attach_metrics(path, {**bundle.metrics, split: figures})
    return EvaluationReport(evaluation, bundle, file)


def _refuse_other_data(dataset: PreparedDataset, bundle: Bundle) -> None:
    """Another split of the same log would ask for what the model was trained on."""
    trained_on = bundle.data.get("data_hash")
    if dataset.data_hash != trained_on:
        raise DataError(
            f"{dataset.path}: data hash {dataset.data_hash}, but bundle {bundle.path} was trained on {trained_on}; "
            "with other data or another split its targets may have been trained on: name the dataset it was trained on"
        )


def _trained_on(bundle: Path) -> Path:
    run = bundle.parent / "run.json"
    if not run.is_file():
        raise DataError(f"{bundle}: its run folder is not beside it; name the prepared dataset by --data")
    return Path(json.loads(run.read_text(encoding="utf-8"))["config"]["data"])
