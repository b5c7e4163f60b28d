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
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from recsys.errors import DataError, InputError
from recsys.features.dataset import PreparedDataset
from recsys.features.slices import Queries
from recsys.files import storage_errors
from recsys.models.floors.ease import why_not
from recsys.pipelines.evaluation.bootstrap import interval_of, resampled_means
from recsys.pipelines.evaluation.metrics import metrics_per_query
from recsys.pipelines.floors.families import FAMILIES, MAX_WINDOW, Settings, drawn, named, nearby, turns
from recsys.pipelines.floors.fitter import Fitter
from recsys.pipelines.floors.merge import merge_best, merge_trials
from recsys.pipelines.floors.ranking import rank_floor
from recsys.pipelines.floors.time_left import INVERSE, Part, TimeLeft, parts_of
from recsys.pipelines.floors.trials import TrialStore
from recsys.pipelines.floors.tuned import FILE, TunedFloors, read_floors

TRIALS = 60
SAMPLE = 5_000  # questions that the many trials are compared on
METRIC = "ndcg@10"
_LOCAL_FAMILIES = ("recent-popularity", "transition-knn", "item-knn")
_BLENDED = ("transition-knn", "item-knn")
_LOCAL_ROUNDS, _LOCAL_TRIALS = 2, 6
_SHARES = (0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.75)
_FINALISTS = 6

Floats = npt.NDArray[np.float64]
Observe = Callable[[dict[str, Any]], None]
Figures = dict[str, dict[str, dict[str, float]]]


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
    folder: Path | None = None,
) -> TunedFloors:
    """The best settings of each family by NDCG@10 on the validation part, and what they reach on the test part.

    Writes floors.json into `folder`, joined to the one of the same data and split that lies there: families that were
    not asked for stay, so do all trials, and an earlier setting that is better. Trials of the same seed are not run
    again, and nothing is tuned where a floors.json of the same data holds as many of these families. From nothing, the
    same arguments give the same result, stopped and resumed or not.

    Args:
        dataset: its validation part and its test part ask questions.
        trials: random trials over all families, at least 1; beside them run the named settings and the later stages.
        seed: of the trials, the sample and the bootstrap.
        only: families; all by default. `blend` brings along transition-knn and item-knn, which it adds.
        sample: questions that the stages before the last are compared on; all where there are no more than these.
        observe: told {"event": "trial", "done", "total", "family", "stage", "ndcg@10", "seconds_left"}, and
            {"event": "warning", "message"} of a damaged floors.partial.json.
        folder: where floors.json and floors.partial.json are kept, the dataset's own by default. In another one the
            dataset's floors.json is read too, with trials of any seed, and never written.

    Raises:
        DataError: no validation or no test question; a damaged floors.json; EASE asked for by name where it cannot be
            fitted.
        InputError: an unknown family, no trial, a folder that cannot be written.
        StorageError: the disk is full or failed.
    """
    if trials < 1:
        raise InputError(f"trials={trials}: wanted at least 1")
    families, left_out = _families(dataset, only)
    valid, test_queries = _asked(dataset, "valid"), _asked(dataset, "test")
    place = folder or dataset.path
    places = dict.fromkeys((place, dataset.path))
    found = [one for one in (read_floors(dataset, at) for at in places) if one is not None and one.is_of(dataset)]
    for one in found:
        if one.has_run(families, trials, None if folder else seed):
            return one
    earlier = found[0] if found else None
    with storage_errors(place, "free space and run the same command again"):
        place.mkdir(parents=True, exist_ok=True)
    store = TrialStore(dataset, seed, found, place)
    tuning = _Tuning(dataset, trials, seed, families, _sampled(valid, sample, seed), valid, store, observe)
    new_best, new_records = tuning.run()
    best, records = merge_best(earlier, new_best), merge_trials(earlier, new_records)
    test, differences = _on_test(tuning.fitter, test_queries, best, seed, earlier)
    left_out = {**(earlier.left_out if earlier else {}), **left_out}
    tuned = TunedFloors(
        data_hash=dataset.data_hash,
        split_hash=dataset.split_hash,
        valid_protocol=dataset.protocol_string("valid", "exclude"),
        test_protocol=dataset.protocol_string("test", "exclude"),
        seed=seed,
        random_trials=sum(record["stage"] == "random" and not record["name"] for record in records),
        families=list(best),
        left_out={family: why for family, why in left_out.items() if family not in best},
        best=best,
        test=test,
        differences=differences,
        seconds=round(sum(record["seconds"] for record in records), 1),
        trials=records,
    )
    tuned.save(place / FILE)
    store.close()
    return tuned


class _Tuning:
    """One run through the stages up to `final`."""

    def __init__(
        self,
        dataset: PreparedDataset,
        trials: int,
        seed: int,
        families: list[str],
        sampled: Queries,
        queries: Queries,
        store: TrialStore,
        observe: Observe | None,
    ) -> None:
        self.dataset, self.trials, self.seed, self.families = dataset, trials, seed, families
        self.sampled, self.queries, self.store, self.observe = sampled, queries, store, observe
        if store.fault is not None:
            self._say({"event": "warning", "message": f"{store.path}: damaged ({store.fault}); begun anew"})
        store.flush()
        self.fitter = Fitter(dataset, MAX_WINDOW)
        self.records: list[dict[str, Any]] = []
        self.done, self.time_left = 0, TimeLeft()
        self.l2: float | None = None  # whose inverse the fitter holds
        self.later = self._guessed()  # trials of each stage after this one, by family

    def run(self) -> tuple[dict[str, dict[str, Any]], list[dict[str, Any]]]:
        """Best settings and validation figure of each family, and a record of each trial."""
        self._stage(self._random(), self.sampled)
        for round_number in range(_LOCAL_ROUNDS):
            self._stage(self._local(round_number), self.sampled)
        self._stage(self._blends(), self.sampled)
        first = len(self.records)
        self._stage(self._finalists(), self.queries)
        final = self.records[first:]
        best = {family: _best(record for record in final if record["family"] == family) for family in self.families}
        return {f: {"settings": b["settings"], "valid": b[METRIC]} for f, b in best.items()}, self.records

    def _guessed(self) -> list[list[Part]]:
        """The trials of every stage, by what is known before the first."""
        n = len(self.sampled)
        local = [Part(family, n) for family in _LOCAL_FAMILIES if family in self.families for _ in range(_LOCAL_TRIALS)]
        blends = [Part("blend", n)] * (len(_SHARES) if "blend" in self.families else 0)
        finalists = [family for family in _BLENDED if family in self.families] or self.families
        last = [Part(INVERSE) if family == "ease" else Part(family, len(self.queries)) for family in self.families]
        last += [Part(finalists[0], len(self.queries))] * _FINALISTS
        return [[], *[local] * _LOCAL_ROUNDS, blends, last]

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
        self.later.pop(0)
        places = sorted(range(len(trials)), key=lambda place: _costly_parts(trials[place]))
        records: dict[int, dict[str, Any]] = {}
        for turn, place in enumerate(places):
            records[place] = self._run(trials[place], queries)
            self._tell(trials[place], records[place][METRIC], [trials[left] for left in places[turn + 1 :]], queries)
        self.records += [records[place] for place in range(len(trials))]

    def _run(self, trial: _Trial, queries: Queries) -> dict[str, Any]:
        known = self.store.get(trial.family, trial.settings, len(queries))
        if known is None:
            began = time.perf_counter()
            ranks = rank_floor(self.fitter.fit(trial.family, trial.settings), self.dataset, queries)
            ndcg = float(metrics_per_query(ranks, queries.target_offsets, (10,))[METRIC].mean())
            seconds = round(time.perf_counter() - began, 3)
            self.store.put(trial.family, trial.settings, len(queries), ndcg, seconds)
            known = {METRIC: ndcg, "seconds": seconds}
            self.time_left.add(parts_of([(trial.family, trial.settings)], len(queries), self.l2)[0], seconds)
            self.l2 = trial.settings.get("l2", self.l2)
        told = {"n": len(queries), METRIC: known[METRIC], "seconds": known["seconds"], "seed": self.seed}
        return {**dataclasses.asdict(trial), **told}

    def _tell(self, trial: _Trial, ndcg: float, rest: list[_Trial], queries: Queries) -> None:
        """rest: of this stage; those that were run by an earlier tuning cost nothing."""
        self.done += 1
        later = [part for stage in self.later for part in stage]
        unknown = [(t.family, t.settings) for t in rest if self.store.get(t.family, t.settings, len(queries)) is None]
        left = self.time_left.of(parts_of(unknown, len(queries), self.l2) + later)
        told = {"done": self.done, "total": self.done + len(rest) + len(later), "seconds_left": round(left, 1)}
        self._say({"event": "trial", "family": trial.family, "stage": trial.stage, **told, METRIC: ndcg})

    def _say(self, event: dict[str, Any]) -> None:
        if self.observe is not None:
            self.observe(event)


def _families(dataset: PreparedDataset, only: Sequence[str]) -> tuple[list[str], dict[str, str]]:
    """What is tuned, in the order of FAMILIES, and what is left out and why."""
    for name in only:
        if name not in FAMILIES:
            raise InputError(f"only={name}: no such floor; wanted one of {', '.join(FAMILIES)}")
    added = _BLENDED if "blend" in only else ()
    families = [name for name in FAMILIES if not only or name in only or name in added]
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
    """EASE soon after the start: its price is most of the time, and known from then on."""
    order = ("popularity", "ease", *FAMILIES)
    return order.index(trial.family), str(trial.settings.get("l2", trial.settings.get("window")))


def _best(records: Iterable[dict[str, Any]]) -> dict[str, Any]:
    """The first record with the greatest figure."""
    return max(records, key=lambda record: float(record[METRIC]))


def _on_test(
    fitter: Fitter, queries: Queries, best: dict[str, dict[str, Any]], seed: int, earlier: TunedFloors | None
) -> tuple[Figures, Figures]:
    """Figures with 95 % intervals, and paired differences to popularity, of each family.

    A family that the earlier tuning asked with the same settings keeps its figures: it is not fitted again.
    """
    kept = [] if earlier is None else [family for family in best if _stands(family, best, earlier, fitter.dataset)]
    if earlier is not None and len(kept) == len(best):
        return earlier.test, earlier.differences
    asked = [family for family in best if family not in kept or family == "popularity"]
    values: dict[str, dict[str, Floats]] = {}
    for family in sorted(asked, key=lambda family: family != "ease"):  # its map is still at hand
        ranks = rank_floor(fitter.fit(family, best[family]["settings"]), fitter.dataset, queries)
        values[family] = metrics_per_query(ranks, queries.target_offsets)
    pairs = [(family, metric) for family in asked for metric in values[family]]
    table = np.stack([values[family][metric] for family, metric in pairs], axis=1)  # (N, metrics of all families)
    means = dict(zip(pairs, table.mean(0).tolist(), strict=True))
    draws = dict(zip(pairs, resampled_means(table, seed=seed).T, strict=True))
    test: Figures = {family: {} for family in best}
    differences: Figures = {}
    for family, metric in pairs:
        own = (family, metric)
        test[family][metric] = dataclasses.asdict(interval_of(means[own], draws[own]))
        if "popularity" in best and family != "popularity":
            base = ("popularity", metric)
            found = interval_of(means[own] - means[base], draws[own] - draws[base])
            differences.setdefault(family, {})[metric] = dataclasses.asdict(found)
    if earlier is not None:
        test |= {family: earlier.test[family] for family in kept}
        differences |= {family: earlier.differences[family] for family in kept if family in earlier.differences}
    return test, {family: differences[family] for family in best if family in differences}


def _stands(family: str, best: dict[str, dict[str, Any]], earlier: TunedFloors, dataset: PreparedDataset) -> bool:
    """Whether the earlier figures of a family hold on, its difference to popularity among them, if it can be had."""
    if family not in earlier.best or earlier.best[family] != best[family]:
        return False
    is_told = family in earlier.differences or family == "popularity" or "popularity" not in best
    return is_told or (family == "ease" and why_not(dataset) is not None)
