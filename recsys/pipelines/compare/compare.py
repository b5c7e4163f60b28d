"""Floors and models on one dataset at equal budget: who is best, by how much, at what cost, and which one to take.

Every step's result is kept in the folder and found again where its inputs are the same, so that the same command goes
on after any interruption:

    floors.json   the tuned floors, where the dataset does not hold as thorough ones of its own
    steps/        figures of each scorer: its NDCG@10 and HR@10 of every question (.npy), cost, seconds
    models/       a run folder of each model, seed and setting
    compare.json  compare.png
"""

import hashlib
import json
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from recsys import __version__
from recsys import config as configs
from recsys.errors import DataError
from recsys.features.dataset import PreparedDataset
from recsys.files import storage_errors, write_json
from recsys.models.bundle import load_bundle
from recsys.models.floors import FLOOR_CLASSES, Popularity
from recsys.models.oracle import ShopOracle
from recsys.models.protocols import NextItemModel, Scorer
from recsys.pipelines.compare.advice import advise
from recsys.pipelines.compare.comparison import Comparison, Contender
from recsys.pipelines.compare.config import CompareConfig
from recsys.pipelines.compare.cost import Cost, Request, cost_of_floor, cost_of_model, requests_of
from recsys.pipelines.compare.floors import tuned_floors
from recsys.pipelines.compare.intervals import PairedMeans, paired_means
from recsys.pipelines.compare.kept import KeptSteps
from recsys.pipelines.compare.model_settings import suited_settings, training_config
from recsys.pipelines.evaluation.evaluate import evaluate
from recsys.pipelines.evaluation.full_ranking import rank_targets
from recsys.pipelines.evaluation.metrics import metrics_per_query
from recsys.pipelines.floors.ranking import rank_floor
from recsys.pipelines.run_config import TrainConfig
from recsys.pipelines.training import train

FEWEST_QUESTIONS = 20
METRICS = ("ndcg@10", "hr@10")
_REMEDY = "free some disk space and run the same command again: finished steps are not done again"

Observe = Callable[[dict[str, Any]], None]
Floats = npt.NDArray[np.float64]


def compare(
    dataset: PreparedDataset,
    out: Path,
    config: CompareConfig,
    *,
    world: Path | None = None,
    observe: Observe | None = None,
) -> Comparison:
    """Compare floors and models on the test part; writes compare.json into `out`.

    Args:
        dataset: prepared, with a validation part.
        out: folder of everything; what an interrupted comparison left there is gone on with.
        config: contenders and budget.
        world: folder of the simulated world the data comes from; adds its oracle.
        observe: told {"event": "compare", "step", "steps", "name", "seconds_left"} when a step begins, and about what
            happens inside.

    Raises:
        ConfigError: a setting of a model is unknown or out of range.
        DataError: no validation part, too few questions, or a world of another log.
        InputError: `out` cannot be written.
        Stopped: SIGINT or SIGTERM while a model trained; the same call goes on from there.
        StorageError: the disk is full or failed; finished steps are kept.
    """
    _refuse_unfit(dataset, is_own=_is_within(dataset.path, out))
    job = _Job(dataset, Path(out), config, world, observe or _ignore)
    with storage_errors(out, _REMEDY):
        _check_place(out)
    return job.run()


class _Job:
    """One comparison: its steps in order, and how much of its time is left."""

    def __init__(
        self, dataset: PreparedDataset, out: Path, config: CompareConfig, world: Path | None, observe: Observe
    ) -> None:
        self.dataset, self.out, self.config, self.world, self.observe = dataset, out, config, world, observe
        self.kept = KeptSteps(out / "steps")
        self.runs = {
            (name, seed): training_config(name, seed, dataset, config)
            for name in config.models
            for seed in range(config.seeds)
        }
        self.inputs = {"data": dataset.data_hash, "split": dataset.split_hash, "recsys": __version__}
        self.oracle = None if world is None else ShopOracle(world, dataset)
        self.steps, self.step = 1 + len(self.runs) + (world is not None) + 1, 0
        self.values: dict[str, list[Floats]] = {}  # of each scorer, a (2, N) table of METRICS a run
        self.costs: dict[str, Cost] = {}
        self.seconds: dict[str, list[float]] = {}
        self.kinds: dict[str, str] = {}
        self.bundles: dict[str, str] = {}
        self._asked: list[Request] | None = None

    def run(self) -> Comparison:
        self._begin("floors")
        tuned_s, note = self._floors()
        for (name, seed), run in self.runs.items():
            self._begin(name if self.config.seeds == 1 else f"{name}, run {seed + 1} of {self.config.seeds}")
            self._model(name, seed, run)
        if self.oracle is not None:
            self._begin("oracle")
            self._add(
                "oracle", "oracle", self._measured("oracle", {**self.inputs, "world": str(self.world)}, self.oracle)
            )
        self._begin("intervals")
        found = self._summary(tuned_s, note)
        with storage_errors(self.out / "compare.json", _REMEDY):
            write_json(self.out / "compare.json", found.to_dict())
        return found

    def _begin(self, name: str) -> None:
        self.step += 1
        later = [(key, run) for number, (key, run) in enumerate(self.runs.items(), start=2) if number >= self.step]
        seconds = sum(run.train.max_seconds or 0.0 for key, run in later if not self._is_trained(*key, run))
        self.observe(
            {"event": "compare", "step": self.step, "steps": self.steps, "name": name, "seconds_left": seconds}
        )

    def _floors(self) -> tuple[float, str]:
        inputs = {**self.inputs, "trials": self.config.trials}
        done = self.kept.find("floors", inputs)
        settings = {} if done is None else dict(done.get("settings", ()))
        kept = (self._is_kept(name, {**inputs, "settings": own}) for name, own in settings.items())
        if done is None or not settings or not all(kept):
            folder = self.dataset.path if _is_within(self.dataset.path, self.out) else self.out
            tuned = tuned_floors(self.dataset, self.config.trials, folder, self.observe)
            done = {"settings": list(tuned.settings.items()), "seconds": tuned.tuning_s, "note": tuned.note}
            for name, floor in tuned.floors.items():
                made_of = {**inputs, "settings": tuned.settings[name]}
                self._add(name, "floor", self._measured(name, made_of, floor, seconds=tuned.fit_s[name]))
            self.kept.keep("floors", inputs, done)
            return float(done["seconds"]), str(done["note"])
        for name, own in settings.items():
            self._add(name, "floor", self._measured(name, {**inputs, "settings": own}, None))
        return float(done["seconds"]), str(done["note"])

    def _model(self, name: str, seed: int, run: TrainConfig) -> None:
        step, inputs, folder = self._place(name, seed, run)
        found = self._kept_figures(step, inputs)
        if found is None or not (folder / "bundle").is_dir():
            result = train(run, folder, lambda event: self.observe({**event, "run": step}))
            bundle = load_bundle(result.bundle)
            cost = cost_of_model(bundle, self._requests())
            found = self._measured(step, inputs, bundle.model, seconds=result.seconds, cost=cost)
        self.bundles.setdefault(name, str(folder / "bundle"))
        self._add(name, "model", found)

    def _place(self, name: str, seed: int, run: TrainConfig) -> tuple[str, dict[str, Any], Path]:
        """The name of a run's step, what its figures are made of, and its folder."""
        inputs = {**self.inputs, "run": configs.dump(run) | {"data": None}, "model": run.model_config}
        step = f"{name}-{seed}"
        return step, inputs, self.out / "models" / f"{step}-{_short(inputs)}"

    def _is_trained(self, name: str, seed: int, run: TrainConfig) -> bool:
        step, inputs, folder = self._place(name, seed, run)
        return (folder / "bundle").is_dir() and self._is_kept(step, inputs)

    def _is_kept(self, step: str, inputs: Mapping[str, Any]) -> bool:
        return self._kept_figures(step, inputs) is not None

    def _kept_figures(self, step: str, inputs: Mapping[str, Any]) -> tuple[Floats, dict[str, Any]] | None:
        figures, values = self.kept.find(step, inputs), self.kept.array(step)
        is_whole = figures is not None and values is not None and values.shape == (2, figures["n"])
        return (values, figures) if is_whole and figures is not None and values is not None else None

    def _measured(
        self,
        step: str,
        inputs: Mapping[str, Any],
        scorer: NextItemModel | Scorer | None,
        *,
        seconds: float | None = None,
        cost: Cost | None = None,
    ) -> tuple[Floats, dict[str, Any]]:
        """The figures of every question, and cost and seconds: kept ones, or measured now and kept."""
        found = self._kept_figures(step, inputs)
        if found is not None:
            return found
        assert scorer is not None
        queries = self.dataset.queries("test")
        if isinstance(scorer, FLOOR_CLASSES):
            ranks = rank_floor(scorer, self.dataset, queries)
        else:
            ranks = rank_targets(scorer, self.dataset, queries, name=step, observe=self.observe)
        metrics = metrics_per_query(ranks, queries.target_offsets, (10,))
        if cost is None and isinstance(scorer, FLOOR_CLASSES):
            cost = cost_of_floor(scorer, self.dataset, self._requests())
        values = np.stack([metrics[name] for name in METRICS])
        figures = {"n": len(queries), "seconds": seconds, "cost": None if cost is None else vars(cost)}
        self.kept.keep(step, inputs, figures, values)
        return values, figures

    def _add(self, name: str, kind: str, found: tuple[Floats, dict[str, Any]]) -> None:
        values, figures = found
        self.values.setdefault(name, []).append(values)
        self.kinds[name] = kind
        if figures["cost"] is not None:
            self.costs.setdefault(name, Cost(**figures["cost"]))
        if figures["seconds"] is not None:
            self.seconds.setdefault(name, []).append(float(figures["seconds"]))

    def _requests(self) -> list[Request]:
        if self._asked is None:
            self._asked = requests_of(self.dataset)
        return self._asked

    def _summary(self, tuned_s: float, note: str) -> Comparison:
        tables = {name: np.stack(runs) for name, runs in self.values.items()}  # (S, 2, N)
        ndcg = paired_means({name: table[:, 0] for name, table in tables.items()})
        hr = paired_means({name: table[:, 1] for name, table in tables.items()})
        floors = [name for name, kind in self.kinds.items() if kind == "floor"]
        rivals = [name for name, kind in self.kinds.items() if kind != "oracle"]
        best, best_floor = max(rivals, key=ndcg.means.__getitem__), max(floors, key=ndcg.means.__getitem__)
        order = sorted(rivals, key=lambda name: -ndcg.means[name]) + [name for name in tables if name not in rivals]
        contenders = tuple(self._contender(name, ndcg, hr, best, best_floor) for name in order)
        n = int(next(iter(tables.values())).shape[2])
        return Comparison(
            protocol=self.dataset.protocol_string("test", "exclude"),
            num_questions=n,
            reachable=self._reachable(),
            contenders=contenders,
            best=best,
            best_floor=best_floor,
            advice=advise(contenders, best, best_floor, n),
            minutes=self.config.minutes,
            floors_tuned_s=round(tuned_s, 1),
            floors_note=note,
            settings={
                name: configs.dump(run) | {"data": str(run.data)}
                for (name, seed), run in self.runs.items()
                if seed == 0
            }
            | {"suited": suited_settings(self.dataset)},
        )

    def _contender(self, name: str, ndcg: PairedMeans, hr: PairedMeans, best: str, best_floor: str) -> Contender:
        kind = self.kinds[name]
        seconds = self.seconds.get(name)
        return Contender(
            name=name,
            kind=kind,  # type: ignore[arg-type]  # one of the three, by _add
            ndcg=ndcg.interval(name),
            hr=hr.interval(name),
            to_best=None if name == best or kind == "oracle" else ndcg.difference(name, best),
            to_floor=None if name == best_floor else ndcg.difference(name, best_floor),
            cost=self.costs.get(name),
            training_s=None if not seconds else round(float(np.mean(seconds)), 2),
            runs=len(self.values[name]),
            bundle=self.bundles.get(name),
        )

    def _reachable(self) -> float:
        return evaluate({"popularity": Popularity.fit(self.dataset)}, self.dataset).reachable


def _is_within(path: Path, folder: Path) -> bool:
    return path.resolve().is_relative_to(Path(folder).resolve())


def _check_place(out: Path) -> None:
    """Before anything is tuned or trained: a file can be written there."""
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=out):
        pass


def _refuse_unfit(dataset: PreparedDataset, *, is_own: bool) -> None:
    """`is_own`: the comparison prepared the dataset itself."""
    num_valid, num_test = len(dataset.queries("valid")), len(dataset.queries("test"))
    remedy = "--set prepare.split.protocol=loo" if is_own else "recsys prepare --protocol loo"
    if num_valid == 0:
        raise DataError(
            f"{dataset.path}: its validation part asks no question (protocol {dataset.protocol}), so neither floors "
            f"nor models can be tuned; prepare it with {remedy} (or time, or ratio)"
        )
    if num_test < FEWEST_QUESTIONS:
        raise DataError(
            f"{dataset.path}: only {num_test} users ask a question in the test part; wanted at least "
            f"{FEWEST_QUESTIONS} to compare anything: take a longer log, or lower the filters"
        )


def _short(inputs: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(inputs, sort_keys=True).encode()).hexdigest()[:8]


def _ignore(event: dict[str, Any]) -> None:
    """Nobody watches."""
