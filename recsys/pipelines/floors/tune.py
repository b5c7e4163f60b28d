"""Tunes every family of floors on the validation part; the test part is looked at once, at the end.

1. random: settings drawn at random, and a few named ones of each family, on a sample of the questions.
2. local:  steps around the best of each family that is fast to fit, in rounds, on the same sample.
3. blend:  shares of the best item-kNN in the best transition-kNN, on the same sample.
4. final:  the best of the above, on all validation questions. The best setting of each family is taken by this.
5. test:   the taken settings alone, with intervals.

Dims: N questions.
"""

import dataclasses
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from recsys.errors import DataError, InputError
from recsys.features.dataset import PreparedDataset
from recsys.features.slices import Queries
from recsys.models.floors.ease import why_not
from recsys.pipelines.evaluation.bootstrap import interval_of, resampled_means
from recsys.pipelines.evaluation.metrics import metrics_per_query
from recsys.pipelines.floors.families import FAMILIES, MAX_WINDOW, Settings, drawn, named, nearby, turns
from recsys.pipelines.floors.fitter import Fitter
from recsys.pipelines.floors.ranking import rank_floor
from recsys.pipelines.floors.trials import TrialStore
from recsys.pipelines.floors.tuned import FILE, TunedFloors, read_floors

TRIALS = 60
SAMPLE = 5_000  # questions that the many trials are compared on
METRIC = "ndcg@10"
_LOCAL_FAMILIES = ("recent-popularity", "transition-knn", "item-knn")
_LOCAL_ROUNDS, _LOCAL_TRIALS = 2, 6
_SHARES = (0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.75)
_FINALISTS = 6

Floats = npt.NDArray[np.float64]
Observe = Callable[[dict[str, Any]], None]


@dataclasses.dataclass(frozen=True)
class _Trial:
    stage: str
    family: str
    settings: Settings
    name: str = ""


def tune_floors(
    dataset: PreparedDataset,
    trials: int = TRIALS,
    seed: int = 0,
    only: Sequence[str] = (),
    *,
    sample: int = SAMPLE,
    observe: Observe | None = None,
) -> TunedFloors:
    """The best settings of each family by NDCG@10 on the validation part, and what they reach on the test part.

    Writes floors.json into the dataset's folder. Trials that an earlier tuning of the same data, split and seed ran are
    not run again; the same arguments give the same result, stopped and resumed or not.

    Args:
        dataset: its validation part and its test part ask questions.
        trials: random trials over all families, at least 1; beside them run the named settings and the later stages.
        seed: of the trials, the sample and the bootstrap.
        only: families; all by default. `blend` needs transition-knn and item-knn.
        sample: questions that the stages before the last are compared on; all where there are no more than these.
        observe: told {"event": "trial", "done", "total", "family", "stage", "ndcg@10", "seconds_left"}.

    Raises:
        DataError: no validation or no test question; EASE asked for by name where it cannot be fitted.
        InputError: an unknown family, no trial, a damaged floors.json, a folder that cannot be written.
        StorageError: the disk is full or failed.
    """
    if trials < 1:
        raise InputError(f"trials={trials}: wanted at least 1")
    families, left_out = _families(dataset, only)
    tuning = _Tuning(dataset, trials, seed, families, sample, observe)
    best, records = tuning.run()
    test, differences = _on_test(dataset, tuning.fitter, best, seed)
    tuned = TunedFloors(
        data_hash=dataset.data_hash,
        split_hash=dataset.split_hash,
        valid_protocol=dataset.protocol_string("valid", "exclude"),
        test_protocol=dataset.protocol_string("test", "exclude"),
        seed=seed,
        random_trials=sum(record["stage"] == "random" and not record["name"] for record in records),
        families=families,
        left_out=left_out,
        best=best,
        test=test,
        differences=differences,
        seconds=round(sum(record["seconds"] for record in records), 1),
        trials=records,
    )
    tuned.save(dataset.path / FILE)
    tuning.store.close()
    return tuned


class _Tuning:
    """One run through the stages up to `final`."""

    def __init__(
        self,
        dataset: PreparedDataset,
        trials: int,
        seed: int,
        families: list[str],
        sample: int,
        observe: Observe | None,
    ) -> None:
        self.dataset, self.trials, self.seed, self.families = dataset, trials, seed, families
        self.queries, self.observe = _asked(dataset, "valid"), observe
        self.sampled = _sampled(self.queries, sample, seed)
        self.store = TrialStore(dataset, seed, read_floors(dataset))
        self.store.flush()
        self.fitter = Fitter(dataset, MAX_WINDOW)
        self.records: list[dict[str, Any]] = []
        self.done, self.spent, self.last = 0, 0.0, _FINALISTS + len(families)

    def run(self) -> tuple[dict[str, dict[str, Any]], list[dict[str, Any]]]:
        """Best settings and validation figure of each family, and a record of each trial."""
        self._stage(self._random(), self.sampled)
        for round_number in range(_LOCAL_ROUNDS):
            self._stage(self._local(round_number), self.sampled)
        self._stage(self._blends(), self.sampled)
        first, finalists = len(self.records), self._finalists()
        self.last = len(finalists)
        self._stage(finalists, self.queries)
        final = self.records[first:]
        best = {family: _best(record for record in final if record["family"] == family) for family in self.families}
        return {f: {"settings": b["settings"], "valid": b[METRIC]} for f, b in best.items()}, self.records

    @property
    def total(self) -> int:
        """Trials of all stages, the last one guessed before it is known."""
        local = _LOCAL_ROUNDS * _LOCAL_TRIALS * len(set(_LOCAL_FAMILIES) & set(self.families))
        fixed = sum(len(named(self.dataset, family)) for family in self.families)
        blends = len(_SHARES) * ("blend" in self.families)
        drawn_at_random = sum(1 for _ in turns(self.families, self.trials))
        return drawn_at_random + local + fixed + blends + self.last

    def _random(self) -> list[_Trial]:
        found = [
            _Trial("random", family, settings, name)
            for family in self.families
            for name, settings in named(self.dataset, family).items()
        ]
        for family, number in turns(self.families, self.trials):
            found.append(_Trial("random", family, drawn(self.dataset, family, number, self.seed)))
        return found

    def _local(self, round_number: int) -> list[_Trial]:
        found = []
        for family in (family for family in _LOCAL_FAMILIES if family in self.families):
            around = self._best_of(family)["settings"]
            numbers = range(round_number * _LOCAL_TRIALS, (round_number + 1) * _LOCAL_TRIALS)
            settings = [nearby(self.dataset, family, around, number, self.seed) for number in numbers]
            found += [_Trial("local", family, one) for one in settings]
        return found

    def _blends(self) -> list[_Trial]:
        if "blend" not in self.families:
            return []
        pair = {"transition": self._best_of("transition-knn"), "item": self._best_of("item-knn")}
        settings = {name: record["settings"] for name, record in pair.items()}
        return [_Trial("blend", "blend", {"share": share, **settings}) for share in _SHARES]

    def _finalists(self) -> list[_Trial]:
        """The best of every family, and the best of all; EASE once, for its fit takes long."""
        ranked = sorted(self.records, key=lambda record: -record[METRIC])
        chosen = [self._best_of(family) for family in self.families]
        chosen += [record for record in ranked if record["family"] != "ease"][:_FINALISTS]
        distinct = {str((record["family"], record["settings"])): record for record in chosen}
        return [_Trial("final", r["family"], r["settings"], r["name"]) for r in distinct.values()]

    def _best_of(self, family: str) -> dict[str, Any]:
        return _best(record for record in self.records if record["family"] == family)

    def _stage(self, trials: list[_Trial], queries: Queries) -> None:
        """Run trials, those that share counts one after another, and record them in the order of the plan."""
        records = [self._run(trial, queries) for trial in sorted(trials, key=_costly_parts)]
        order = {id(trial): place for place, trial in enumerate(sorted(trials, key=_costly_parts))}
        self.records += [records[order[id(trial)]] for trial in trials]

    def _run(self, trial: _Trial, queries: Queries) -> dict[str, Any]:
        known = self.store.get(trial.family, trial.settings, len(queries))
        if known is None:
            began = time.perf_counter()
            ranks = rank_floor(self.fitter.fit(trial.family, trial.settings), self.dataset, queries)
            ndcg = float(metrics_per_query(ranks, queries.target_offsets, (10,))[METRIC].mean())
            seconds = round(time.perf_counter() - began, 3)
            self.store.put(trial.family, trial.settings, len(queries), ndcg, seconds)
            known = {METRIC: ndcg, "seconds": seconds}
        self.done, self.spent = self.done + 1, self.spent + known["seconds"]
        self._tell(trial, known[METRIC])
        return {**dataclasses.asdict(trial), "n": len(queries), METRIC: known[METRIC], "seconds": known["seconds"]}

    def _tell(self, trial: _Trial, ndcg: float) -> None:
        if self.observe is not None:
            left = self.spent / self.done * (self.total - self.done)
            told = {"done": self.done, "total": self.total, "seconds_left": round(left, 1), METRIC: ndcg}
            self.observe({"event": "trial", "family": trial.family, "stage": trial.stage, **told})


def _families(dataset: PreparedDataset, only: Sequence[str]) -> tuple[list[str], dict[str, str]]:
    """What is tuned, in the order of FAMILIES, and what is left out and why."""
    for name in only:
        if name not in FAMILIES:
            raise InputError(f"only={name}: no such floor; wanted one of {', '.join(FAMILIES)}")
    if "blend" in only and not {"transition-knn", "item-knn"} <= set(only):
        raise InputError("only=blend: it adds transition-knn and item-knn; name these two as well")
    families = [name for name in FAMILIES if not only or name in only]
    why = why_not(dataset) if "ease" in families else None
    if why is None:
        return families, {}
    if "ease" in only:
        raise DataError(f"{dataset.path}: {why}")
    return [name for name in families if name != "ease"], {"ease": why}


def _asked(dataset: PreparedDataset, split: Any) -> Queries:
    queries = dataset.queries(split)
    if len(queries) == 0:
        raise DataError(
            f"{dataset.path}: its {split} part asks no question, and floors are tuned on the validation part and told "
            "on the test part; prepare it with another protocol"
        )
    return queries


def _sampled(queries: Queries, sample: int, seed: int) -> Queries:
    if len(queries) <= sample:
        return queries
    rows = np.sort(np.random.default_rng([seed, len(queries)]).choice(len(queries), sample, replace=False))
    return dataclasses.replace(
        queries,
        shard=queries.shard[rows],
        start=queries.start[rows],
        end=queries.end[rows],
        user=queries.user[rows],
        target_start=queries.target_start[rows],
        target_end=queries.target_end[rows],
        query_time=None if queries.query_time is None else queries.query_time[rows],
    )


def _costly_parts(trial: _Trial) -> tuple[int, str]:
    shared = trial.settings.get("l2", trial.settings.get("window"))
    return FAMILIES.index(trial.family), str(shared)


def _best(records: Iterable[dict[str, Any]]) -> dict[str, Any]:
    """The first record with the greatest figure."""
    return max(records, key=lambda record: float(record[METRIC]))


def _on_test(
    dataset: PreparedDataset, fitter: Fitter, best: dict[str, dict[str, Any]], seed: int
) -> tuple[dict[str, dict[str, dict[str, float]]], dict[str, dict[str, dict[str, float]]]]:
    """Figures with 95 % intervals, and paired differences to popularity, of each family."""
    queries = _asked(dataset, "test")
    values: dict[str, dict[str, Floats]] = {}
    for family in sorted(best, key=lambda family: family != "ease"):  # its map is still at hand
        ranks = rank_floor(fitter.fit(family, best[family]["settings"]), dataset, queries)
        values[family] = metrics_per_query(ranks, queries.target_offsets)
    pairs = [(family, metric) for family in best for metric in values[family]]
    table = np.stack([values[family][metric] for family, metric in pairs], axis=1)  # (N, metrics of all families)
    means = dict(zip(pairs, table.mean(0).tolist(), strict=True))
    draws = dict(zip(pairs, resampled_means(table, seed=seed).T, strict=True))
    test: dict[str, dict[str, dict[str, float]]] = {family: {} for family in best}
    differences: dict[str, dict[str, dict[str, float]]] = {}
    for family, metric in pairs:
        own = (family, metric)
        test[family][metric] = dataclasses.asdict(interval_of(means[own], draws[own]))
        if "popularity" in best and family != "popularity":
            base = ("popularity", metric)
            found = interval_of(means[own] - means[base], draws[own] - draws[base])
            differences.setdefault(family, {})[metric] = dataclasses.asdict(found)
    return test, differences
