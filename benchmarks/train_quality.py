"""How good the models get: every configuration trained to its end, one after another, beside the tuned floor.

    RECSYS_DATA=FOLDER python -m benchmarks.train_quality [--only ml-1m/sasrec] [--seeds 0 1 2] [--budget-s 3600]

Resumable: a run that was stopped, by Ctrl-C, by the budget or by a crash, goes on with the same command, and what is
finished (same configuration, seed and data) is skipped. All configurations get their first seed before any gets its
second. A finished run appends a line to benchmarks/results/train_quality.jsonl, with its curve, and rewrites the table
between the two markers of docs/results.md.
"""

import argparse
import json
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from rich.console import Console

from benchmarks.floors import tune
from benchmarks.support.config_hash import hash_of
from benchmarks.support.interaction_sets import SETS, prepared
from benchmarks.support.marked_part import rewrite
from benchmarks.support.quality_table import MARK, table
from benchmarks.support.record import RESULTS, append
from recsys import config as configs
from recsys.errors import RecsysError
from recsys.features.dataset import PreparedDataset
from recsys.pipelines.checkpoint import found_in
from recsys.pipelines.evaluation.report import evaluate_bundle
from recsys.pipelines.run_config import TrainConfig
from recsys.pipelines.run_folder import RunFolder, read_json
from recsys.pipelines.training import Stopped, TrainResult, train
from recsys.progress import Progress

ROOT = Path(__file__).parents[1]
WANTED = (
    *(f"{data}/{model}" for data in list(SETS)[:3] for model in ("sasrec", "bert4rec")),
    "ml-1m/sasrec-table",
    "ml-1m/bert4rec-table",
    "ml-1m/sasrec-3000",
    "amazon-beauty/sasrec-1024",
)
METRIC = "ndcg@10"
INTERRUPTED = 130


@dataclass(frozen=True)
class Job:
    """One run: a configuration `<data>/<model>` and a seed."""

    name: str
    file: Path
    seed: int

    def dataset(self, parent: Path) -> PreparedDataset:
        """The set of its folder's name, prepared below `parent`; any other set is what the configuration names."""
        data = self.name.partition("/")[0]
        return prepared(data, parent) if data in SETS else PreparedDataset.open(self._config().data)

    def config(self, dataset: PreparedDataset) -> TrainConfig:
        """The run on this dataset."""
        return replace(self._config(), data=dataset.path, seed=self.seed)

    def _config(self) -> TrainConfig:
        return configs.load(TrainConfig, configs.read(self.file), f"{self.file}: ")


def jobs_of(folder: Path, only: Sequence[str], seeds: Sequence[int]) -> tuple[list[Job], list[str]]:
    """The runs whose configuration exists, seed by seed, and the names of those that are missing."""
    there = [name for name in only if (folder / f"{name}.yaml").is_file()]
    jobs = [Job(name, folder / f"{name}.yaml", seed) for seed in seeds for name in there]
    return jobs, [name for name in only if name not in there]


class Quality:
    """The runs and where their figures stand.

    Args:
        options: of the command line.
        console: where progress is shown.
    """

    def __init__(self, options: argparse.Namespace, console: Console) -> None:
        self.options, self.console = options, console
        self.until = None if options.budget_s is None else time.monotonic() + options.budget_s

    @property
    def is_spent(self) -> bool:
        """Whether the budget of time is spent."""
        return self.until is not None and time.monotonic() >= self.until

    def rows(self) -> list[dict[str, Any]]:
        """The finished runs, oldest first."""
        file = self.options.results / "train_quality.jsonl"
        lines = file.read_text(encoding="utf-8").splitlines() if file.is_file() else []
        return [json.loads(line) for line in lines]

    def run(self, job: Job) -> bool:
        """Train and measure one run unless its figures stand already; returns whether there was anything to do.

        Raises:
            Stopped: it was asked to stop, or the budget is spent; the same call goes on.
        """
        dataset = job.dataset(self.options.out / "data")
        config = job.config(dataset)
        key = {"name": job.name, "config_hash": hash_of(config), "seed": job.seed, "data_hash": dataset.data_hash}
        if any(key.items() <= row.items() for row in self.rows()):
            return False
        tune(dataset, self.options.trials)
        self._hold_budget()
        out = self.options.out / f"{job.name.replace('/', '-')}-{key['config_hash']}-seed{job.seed}"
        with Progress(self.console) as progress:
            result = train(config, out, self._observer(progress.observe))
            self._hold_budget()
            figures = _figures(out, dataset, result, progress)
        row = {**key, **figures, "config": configs.dump(config) | {"data": dataset.path.name}}
        append("train_quality", row, self.options.results)
        self.write_table()
        return True

    def write_table(self) -> None:
        """The table of all finished runs, into the page."""
        rewrite(self.options.page, MARK, table(self.rows()))

    def _hold_budget(self) -> None:
        if self.is_spent:
            raise Stopped("the budget is spent between two stages")

    def _observer(self, show: Callable[[dict[str, Any]], None]) -> Callable[[dict[str, Any]], None]:
        def observe(event: dict[str, Any]) -> None:
            show(event)
            if self.is_spent:
                signal.raise_signal(signal.SIGINT)

        return observe


def _figures(out: Path, dataset: PreparedDataset, result: TrainResult, progress: Progress) -> dict[str, Any]:
    """What a finished run is worth: test figures between floor and ceiling, curve, parameters, seconds."""
    report = evaluate_bundle(out, dataset.path, observe=progress.observe)
    evaluation, model = report.evaluation, report.bundle.name
    events = RunFolder(out).log().events
    floor = evaluation.best_floor
    assert floor is not None, "fit_floors gives at least one"
    return {
        "test": _plain(evaluation.metrics[model]),
        "floor": floor,
        "floor_test": _plain(evaluation.metrics[floor]),
        "difference": _plain(evaluation.differences[model]),
        "reachable": evaluation.reachable,
        "protocol": evaluation.protocol,
        "validation": result.validation,
        "best_epoch": result.best_epoch,
        "epochs": result.epochs,
        "steps": result.steps,
        "parameters": next(event["parameters"] for event in events if event["event"] == "start"),
        "curve": [[event["epoch"], event[METRIC]] for event in events if event["event"] == "validation"],
        "train_s": round(result.seconds, 1),
        "threads": read_json(found_in(out / "checkpoints")[0] / "state.json")["threads"],
        "evaluate_s": evaluation.seconds[model],
        "weights_sha256": result.weights_sha256,
        "run": out.name,
    }


def _plain(figures: dict[str, Any]) -> dict[str, dict[str, float]]:
    return {name: asdict(figure) for name, figure in figures.items()}


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", default=list(WANTED), metavar="DATA/MODEL", help="these configurations")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument(
        "--budget-s",
        type=float,
        help="stop after so many seconds, once a stage ends or a training step; the same command goes on",
    )
    parser.add_argument(
        "--trials", type=int, default=60, help="random settings tried for the floors, after the fixed ones"
    )
    parser.add_argument("--configs", type=Path, default=ROOT / "configs", help="folder of DATA/MODEL.yaml")
    parser.add_argument("--out", type=Path, default=Path("runs/train-quality"), help="folder of datasets and runs")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of train_quality.jsonl")
    parser.add_argument("--page", type=Path, default=ROOT / "docs" / "results.md", help="page with the two markers")
    return parser


def _told(jobs: Sequence[Job], missing: Sequence[str]) -> Iterator[str]:
    yield f"{len(jobs)} runs: " + ", ".join(dict.fromkeys(job.name for job in jobs))
    yield from (f"missing: configs/{name}.yaml; left out" for name in missing)


def main(arguments: Sequence[str] | None = None) -> int:
    """Every run that is not finished; the exit code: 0, 1 after an error, 2 with nothing to train, 130 after Ctrl-C."""
    options = _parser().parse_args(arguments)
    console = Console(stderr=True)
    quality = Quality(options, console)
    jobs, missing = jobs_of(options.configs, options.only, options.seeds)
    for line in _told(jobs, missing):
        console.print(line, highlight=False)
    try:
        for number, job in enumerate(jobs, start=1):
            if quality.is_spent:
                console.print(f"the budget is spent, {len(jobs) - number + 1} runs are left; the same command goes on")
                break
            console.print(f"[{number}/{len(jobs)}] {job.name}, seed {job.seed}", markup=False, highlight=False)
            if not quality.run(job):
                console.print("  finished before: skipped", highlight=False)
        quality.write_table()
    except Stopped as stopped:
        console.print(str(stopped), highlight=False, soft_wrap=True)
        return 0 if quality.is_spent else INTERRUPTED
    except KeyboardInterrupt:
        console.print("stopped before a training or after it; the same command goes on", highlight=False)
        return INTERRUPTED
    except RecsysError as error:
        console.print(f"error: {error}", highlight=False, soft_wrap=True)
        return 1
    return 0 if jobs else 2


if __name__ == "__main__":
    sys.exit(main())
