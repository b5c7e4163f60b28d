"""Bundles between their floor and their ceiling: the evaluations that `recsys evaluate` and the demo print."""

import json
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from recsys.errors import DataError, InputError
from recsys.features.dataset import PreparedDataset
from recsys.features.leakage import check_bundle, refuse_leaks, refuse_leaky
from recsys.files import write_json
from recsys.models.bundle import Bundle, attach_metrics, load_bundle, resolve
from recsys.models.oracle import ShopOracle
from recsys.models.protocols import NextItemModel, Scorer
from recsys.pipelines.evaluation.bootstrap import Interval, seeds_difference, seeds_interval
from recsys.pipelines.evaluation.evaluate import Evaluation, Seen, Split, evaluate, evaluate_sampled
from recsys.pipelines.evaluation.list_metrics import Diversity
from recsys.pipelines.evaluation.sampled import By
from recsys.pipelines.floors.fit import describe_floors, fit_floors
from recsys.pipelines.run_folder import evaluation_file, evaluation_label, read_json

Observe = Callable[[dict[str, Any]], None]


@dataclass(frozen=True)
class EvaluationReport:
    """The figures, the bundle they are of, and the file that holds them; `notes` say which floors these are."""

    evaluation: Evaluation
    bundle: Bundle
    file: Path
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class RunsReport:
    """Several runs on one dataset.

    groups: model -> the scorers (runs) of one configuration. metrics: model -> metric -> interval over queries and
    runs. differences: "a - b" -> metric -> paired interval over queries and runs.
    """

    evaluation: Evaluation
    groups: dict[str, list[str]]
    metrics: dict[str, dict[str, Interval]]
    differences: dict[str, dict[str, Interval]]
    notes: list[str]

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        plain = {name: {m: vars(i) for m, i in row.items()} for name, row in self.metrics.items()}
        differences = {name: {m: vars(i) for m, i in row.items()} for name, row in self.differences.items()}
        means = {"groups": self.groups, "over_runs": plain, "differences_between_models": differences}
        return {**self.evaluation.to_dict(), **means}

    def table(self) -> list[dict[str, str]]:
        """One row a model, over its runs, and one a pair of models, as text."""
        names = self.evaluation.headline
        rows = [
            {"model": model, "runs": str(len(self.groups[model]))} | {name: str(row[name]) for name in names}
            for model, row in self.metrics.items()
        ]
        return rows + [
            {"model": pair, "runs": ""}
            | {name: f"{row[name].mean:+.4f} [{row[name].low:+.4f}, {row[name].high:+.4f}]" for name in names}
            for pair, row in self.differences.items()
        ]


def evaluate_bundle(
    source: str | Path,
    data: Path | None = None,
    *,
    split: Split = "test",
    seen: Seen = "exclude",
    world: Path | None = None,
    tracking_uri: str | None = None,
    observe: Observe | None = None,
) -> EvaluationReport:
    """Evaluate a bundle beside its floors, and write the figures into its run folder (or beside the bundle).

    Each split and seen rule has a file of its own: evaluation.json for test without seen items, evaluation.valid.json,
    evaluation.test.keep.json, evaluation.valid.keep.json; and a key of its own in the bundle's metrics.

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
        DataError: the dataset is not the one the model was trained on, or its split asks no question; a leak of the
            dataset or the bundle, by its name.
    """
    bundle, dataset, scorers = _open_beside_floors(source, data, world, tracking_uri)
    evaluation = evaluate(
        scorers,
        dataset,
        split,
        seen,
        observe=observe,
        with_lists=True,
        with_slices=True,
        diversity=item_categories(dataset),
    )
    figures = {**evaluation.to_dict(), "model": bundle.name, "bundle_version": bundle.version}
    label = evaluation_label(split, seen)
    file = _folder_of(bundle) / evaluation_file(label)
    write_json(file, figures)
    attach_metrics(bundle.path, {**bundle.metrics, label: figures})
    return EvaluationReport(evaluation, bundle, file, [describe_floors(dataset)])


def evaluate_bundle_sampled(
    source: str | Path,
    data: Path | None = None,
    *,
    split: Split = "test",
    num_negatives: int = 100,
    by: By = "uniform",
    sample_seed: int = 0,
    world: Path | None = None,
    tracking_uri: str | None = None,
) -> EvaluationReport:
    """Rank a bundle's targets among sampled negatives, and write evaluation.sampled.json; nothing else is changed.

    The validation part's go to evaluation.valid.sampled.json.

    Args:
        source, data, split, world, tracking_uri: as for `evaluate_bundle`.
        num_negatives, by, sample_seed: as for `draw_negatives`.

    Raises:
        BundleError, DataError: as `evaluate_bundle`; a user with too few items to draw from.
    """
    bundle, dataset, scorers = _open_beside_floors(source, data, world, tracking_uri)
    evaluation = evaluate_sampled(scorers, dataset, split, num_negatives=num_negatives, by=by, sample_seed=sample_seed)
    file = _folder_of(bundle) / ("evaluation.sampled.json" if split == "test" else f"evaluation.{split}.sampled.json")
    write_json(file, {**evaluation.to_dict(), "model": bundle.name, "bundle_version": bundle.version})
    return EvaluationReport(evaluation, bundle, file, [describe_floors(dataset)])


def evaluate_runs(
    sources: Sequence[str | Path],
    data: Path | None = None,
    *,
    split: Split = "test",
    seen: Seen = "exclude",
    world: Path | None = None,
    tracking_uri: str | None = None,
    observe: Observe | None = None,
) -> RunsReport:
    """Evaluate several runs on one dataset: runs of one configuration as one model, different models side by side.

    Args:
        sources: at least two run folders, bundle folders or models:/name@alias.
        data, split, seen, world, tracking_uri, observe: as for `evaluate_bundle`.

    Raises:
        InputError: fewer than two sources, or the same bundle twice.
        BundleError, DataError: as `evaluate_bundle`; a run was trained on other data.
    """
    if len(sources) < 2:
        raise InputError(f"{len(sources)} run given; evaluate_runs wants at least two")
    opened = [_open(source, data, tracking_uri) for source in sources]
    dataset = opened[0][1]
    for bundle, _ in opened[1:]:
        _refuse_other_data(dataset, bundle)
    _refuse_leaks(dataset, [bundle for bundle, _ in opened])
    repeated = [version for version, n in Counter(bundle.version for bundle, _ in opened).items() if n > 1]
    if repeated:
        raise InputError(f"bundle version {repeated[0]} is given twice; runs of several seeds differ in their weights")
    groups, models = _grouped([bundle for bundle, _ in opened])
    scorers = _beside_floors(dataset, models, world)
    evaluation = evaluate(scorers, dataset, split, seen, observe=observe)
    names = list(next(iter(evaluation.metrics.values())))
    values = {
        model: {name: np.stack([evaluation.values[run][name] for run in runs]) for name in names}
        for model, runs in groups.items()
    }
    metrics = {model: {name: seeds_interval(column) for name, column in row.items()} for model, row in values.items()}
    first, *others = values
    differences = {
        f"{other} - {first}": {name: seeds_difference(values[other][name], values[first][name]) for name in names}
        for other in others
    }
    return RunsReport(evaluation, groups, metrics, differences, [describe_floors(dataset)])


def item_categories(dataset: PreparedDataset) -> Diversity | None:
    """Categories of the items table, where the dataset has one with a `category` column of one value an item."""
    path = dataset.path / "items.parquet"
    if not path.is_file():
        return None
    import polars as pl

    columns = pl.read_parquet_schema(path)
    if "category" not in columns or "item_index" not in columns or columns["category"].is_nested():
        return None
    table = pl.read_parquet(path, columns=["item_index", "category"]).drop_nulls()
    labels = np.full(dataset.num_items + 1, -1, dtype=np.int64)
    codes = table.get_column("category").cast(pl.String).rank("dense").cast(pl.Int64)
    labels[table.get_column("item_index").to_numpy()] = codes.to_numpy()
    return Diversity(of="category", labels=labels)


def _open_beside_floors(
    source: str | Path, data: Path | None, world: Path | None, tracking_uri: str | None
) -> tuple[Bundle, PreparedDataset, dict[str, NextItemModel | Scorer]]:
    """One bundle with its dataset, both without leaks, and its model beside the floors and the oracle."""
    bundle, dataset = _open(source, data, tracking_uri)
    _refuse_leaks(dataset, [bundle])
    return bundle, dataset, _beside_floors(dataset, {bundle.name: bundle.model}, world)


def _open(source: str | Path, data: Path | None, tracking_uri: str | None) -> tuple[Bundle, PreparedDataset]:
    path = resolve(source, tracking_uri)
    bundle = load_bundle(path)
    dataset = PreparedDataset.open(data or _trained_on(path))
    _refuse_other_data(dataset, bundle)
    return bundle, dataset


def _beside_floors(
    dataset: PreparedDataset, models: dict[str, NextItemModel], world: Path | None
) -> dict[str, NextItemModel | Scorer]:
    scorers: dict[str, NextItemModel | Scorer] = {**fit_floors(dataset), **models}
    return scorers if world is None else {**scorers, "oracle": ShopOracle(world, dataset)}


def _grouped(bundles: Sequence[Bundle]) -> tuple[dict[str, list[str]], dict[str, NextItemModel]]:
    """Models by name, each with its runs; two configurations of one model are two models."""
    keys = [json.dumps([bundle.name, bundle.config], sort_keys=True) for bundle in bundles]
    labels: dict[str, str] = {}
    for key, bundle in zip(keys, bundles, strict=True):
        same = sum(json.loads(known)[0] == bundle.name for known in labels)
        labels.setdefault(key, bundle.name if same == 0 else f"{bundle.name} ({same + 1})")
    groups: dict[str, list[str]] = {}
    models: dict[str, NextItemModel] = {}
    sizes = Counter(keys)
    for key, bundle in zip(keys, bundles, strict=True):
        runs = groups.setdefault(labels[key], [])
        run = labels[key] if sizes[key] == 1 else f"{labels[key]} run {len(runs) + 1}"
        runs.append(run)
        models[run] = bundle.model
    return groups, models


def _folder_of(bundle: Bundle) -> Path:
    path = bundle.path
    folder = path.parent if path.name == "bundle" else path.parent / f"{path.name}.evaluation"
    folder.mkdir(exist_ok=True)
    return folder


def _refuse_other_data(dataset: PreparedDataset, bundle: Bundle) -> None:
    """Another split of the same log would ask for what the model was trained on."""
    trained_on = bundle.data.get("data_hash")
    if dataset.data_hash != trained_on:
        raise DataError(
            f"{dataset.path}: data hash {dataset.data_hash}, but bundle {bundle.path} was trained on {trained_on}; "
            "with other data or another split its targets may have been trained on: name the dataset it was trained on"
        )


def _refuse_leaks(dataset: PreparedDataset, bundles: Sequence[Bundle]) -> None:
    refuse_leaky(dataset, str(dataset.path))
    for bundle in bundles:
        leaks = check_bundle(dataset, bundle.path)
        refuse_leaks(leaks, str(bundle.path), "train and save the bundle again")


def _trained_on(bundle: Path) -> Path:
    run = bundle.parent / "run.json"
    if not run.is_file():
        raise DataError(f"{bundle}: its run folder is not beside it; name the prepared dataset by --data")
    data = Path(read_json(run)["config"]["data"])
    if not data.is_dir():
        raise DataError(f"{data}: the run was trained there, and it is no folder here; name the dataset by --data")
    return data
