"""Training beside RecTools and RecBole on the CPU: real events per second, and quality at equal epochs.

    RECSYS_DATA=FOLDER python -m benchmarks.training_peers [--sets ml-1m] [--models bert4rec] [--repeats 3]
    RECSYS_DATA=FOLDER python -m benchmarks.training_peers --quality [--quality-epochs 10]

SASRec and BERT4Rec with full softmax on ML-1M (length 200) and Beauty (length 50), settings of `peers/matched.py`, each
run a process of its own, the sides in turn, medians over the repeats. Ours: whole epochs of `recsys train` after one
that warms up. RecTools: a whole epoch of its `fit` after a few batches of another (with --peer-steps N: N batches, the
epoch extrapolated, and the record says so). RecBole: 200 steps after 20, its prefix expansion off, the epoch
extrapolated from them. An event counts once an epoch, whether it is predicted or only read; padding never counts.

With --quality ours and RecTools are trained for the same number of epochs, and the ten items that each recommends to
every test user are scored by one code: NDCG@10 with a paired interval of the difference.

A run that was made at the same commit with the same settings is taken from --scratch; --again makes it anew.
"""

import argparse
import json
import statistics
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

from benchmarks.peers.matched import Matched, has_precision, matched
from benchmarks.peers.run import run_peer
from benchmarks.support.history_table import history_table
from benchmarks.support.interaction_sets import prepared
from benchmarks.support.listed_ranks import listed_ranks
from benchmarks.support.record import append, commit
from benchmarks.support.timed import Timed, timed
from recsys.pipelines.compare.kept import KeptSteps
from recsys.pipelines.evaluation.bootstrap import difference_interval, mean_interval
from recsys.pipelines.evaluation.metrics import metrics_per_query

SIDES = ("ours-fp32", "ours-bf16", "rectools", "recbole")
NOT_AVAILABLE = "not available: train has no key precision"
METRIC = "ndcg@10"


class Bench:
    """The runs of one set: its files, and what was run before."""

    def __init__(self, name: str, options: argparse.Namespace) -> None:
        self.name, self.options = name, options
        self.dataset = prepared(name, options.scratch)
        self.folder = options.scratch / f"{name}-peers"
        self.folder.mkdir(exist_ok=True)
        self.kept = KeptSteps(self.folder / "runs")
        self.train, self.histories = self.folder / "train.parquet", self.folder / "histories.parquet"
        history_table(self.dataset.train_slices()).write_parquet(self.train)
        history_table(self.dataset.train_slices()).write_csv(self.train.with_suffix(".csv"))
        history_table(self.dataset.queries("test")).write_parquet(self.histories)

    def run(self, side: str, settings: Matched, label: str, epochs: int, lists: Path | None = None) -> dict[str, Any]:
        """The figures of one run, kept or made.

        Args:
            side: one of SIDES.
            settings: shared by the sides.
            label: tells this run from others with the same settings.
            epochs: whole epochs to train; RecBole has steps in their place.
            lists: where the recommended items go.
        """
        if side == "ours-bf16" and not has_precision():
            return {"outcome": NOT_AVAILABLE}
        given = self._given(side, settings, epochs, lists)
        step, inputs = f"{settings.model}-{side}-{label}", {"commit": commit(), "given": given}
        found = None if self.options.again else self.kept.find(step, inputs)
        if found is None or (lists is not None and not lists.is_file()):
            run = self._start(side, step, given)
            found = {**run.figures(), **(run.answer() if run.is_done else {})}
            if run.is_done:
                self.kept.keep(step, inputs, found)
        return found

    def _given(self, side: str, settings: Matched, epochs: int, lists: Path | None) -> dict[str, Any]:
        shared = {} if lists is None else {"lists": str(lists)}
        if side.startswith("ours"):
            config = settings.ours(self.dataset.path, epochs=epochs, precision=side.removeprefix("ours-"))
            return {"config": config, "out": str(self.folder / "run"), **shared}
        derived = {"feed_forward": settings.feed_forward, "activation": settings.activation}
        given = {**asdict(settings), **derived, "train": str(self.train), **shared}
        if side == "recbole":
            steps = {"steps": self.options.recbole_steps, "warmup_steps": self.options.recbole_warmup}
            return {**given, **steps, "train": str(self.train.with_suffix(".csv"))}
        is_timed = lists is None
        return {
            **given,
            "histories": str(self.histories),
            "epochs": epochs,
            "steps": self.options.peer_steps if is_timed else None,
            "warmup_steps": self.options.peer_warmup if is_timed else 0,
        }

    def _start(self, side: str, step: str, given: dict[str, Any]) -> Timed:
        file = self.folder / f"{step}.json"
        file.write_text(json.dumps(given), encoding="utf-8")
        limits = {"limit_s": self.options.limit_s, "limit_gb": self.options.limit_gb}
        if side.startswith("ours"):
            return timed([sys.executable, "-m", "benchmarks.peers.ours", str(file)], **limits)
        return run_peer(side, f"{side}_train.py", file, **limits)


def measure(bench: Bench, settings: Matched, options: argparse.Namespace) -> dict[str, Any]:
    """The runs of one cell, the sides in turn, and their medians."""
    runs: dict[str, list[dict[str, Any]]] = {side: [] for side in options.sides}
    for repeat in range(options.repeats):
        for side in options.sides:
            epochs = 1 + options.our_epochs if side.startswith("ours") else 1
            found = bench.run(side, settings, f"speed-{repeat}", epochs)
            runs[side].append(found | speed_of(side, found))
            print(f"  {side} {repeat + 1}: {_said(runs[side][-1])}", flush=True)
    sides = {side: {**median_speed(found), "runs": found} for side, found in runs.items()}
    return {"data": bench.name, "settings": asdict(settings), "sides": sides, "ratios": ratios(sides)}


def speed_of(side: str, found: dict[str, Any]) -> dict[str, float]:
    """Seconds of an epoch and real events per second of one run; nothing where it did not end well."""
    if "epoch_s" not in found:
        return {}
    if side.startswith("ours"):
        seconds = statistics.median(found["epoch_s"][1:])
        return {"seconds_of_epoch": seconds, "events_per_s": found["events"] / seconds}
    events_per_s = sum(found["timed_events"]) / sum(found["timed_s"])
    return {"seconds_of_epoch": statistics.median(found["epoch_s"]), "events_per_s": events_per_s}


def median_speed(runs: list[dict[str, Any]]) -> dict[str, float]:
    """The medians over the runs that ended well."""
    names = ("seconds_of_epoch", "events_per_s")
    done = [run for run in runs if "events_per_s" in run]
    return {name: round(statistics.median(run[name] for run in done), 3) for name in names} if done else {}


def ratios(sides: dict[str, dict[str, Any]]) -> dict[str, float]:
    """Events per second of ours over those of each peer, where both are known."""
    return {
        f"{ours} / {peer}": round(sides[ours]["events_per_s"] / sides[peer]["events_per_s"], 2)
        for ours in sides
        for peer in sides
        if ours.startswith("ours") and not peer.startswith("ours")
        if "events_per_s" in sides[ours] and "events_per_s" in sides[peer]
    }


def quality(bench: Bench, settings: Matched, options: argparse.Namespace) -> dict[str, Any]:
    """NDCG@10 of ours and RecTools after the same number of epochs, and the paired interval of their difference."""
    queries = bench.dataset.queries("test")
    values: dict[str, npt.NDArray[np.float64]] = {}
    rows: dict[str, dict[str, Any]] = {}
    for side in (side for side in options.sides if side != "recbole"):
        lists = bench.folder / f"{settings.model}-{side}-lists.parquet"
        found = bench.run(side, settings, "quality", options.quality_epochs, lists)
        rows[side] = {key: found[key] for key in ("outcome", "epoch_s", "items") if key in found}
        if "epoch_s" in found:
            ranks = listed_ranks(pl.read_parquet(lists), queries)
            values[side] = metrics_per_query(ranks, queries.target_offsets)[METRIC]
            rows[side][METRIC] = asdict(mean_interval(values[side]))
    differences = {
        f"{side} - rectools": asdict(difference_interval(values[side], values["rectools"]))
        for side in values
        if side != "rectools" and "rectools" in values
    }
    protocol = bench.dataset.protocol_string("test", "exclude")
    row = {"data": bench.name, "settings": asdict(settings), "epochs": options.quality_epochs, "protocol": protocol}
    return row | {"quality": rows, "differences": differences}


def _said(run: dict[str, Any]) -> str:
    if "events_per_s" not in run:
        said = str(run.get("said", "")).strip().splitlines()[-1:]
        return ": ".join([str(run["outcome"]), *said])
    estimated = ", extrapolated" if run.get("is_extrapolated") else ""
    return f"{run['events_per_s']:,.0f} events/s, {run['seconds_of_epoch']:.1f} s an epoch{estimated}"


def print_speed(row: dict[str, Any]) -> None:
    """A line a side, and one of ratios."""
    for side, found in row["sides"].items():
        figures = found["runs"][-1] | found | {"is_extrapolated": _is_estimate(found["runs"])}
        print(f"{row['data']:<14} {row['settings']['model']:<9} {side:<10} {_said(figures)}")
    print("   ".join(f"{name} = {value:.1f}x" for name, value in row["ratios"].items()), flush=True)


def _is_estimate(runs: list[dict[str, Any]]) -> bool:
    return any(run.get("is_extrapolated", False) for run in runs)


def print_quality(row: dict[str, Any]) -> None:
    """A line a side and a difference."""
    named = {side: found[METRIC] for side, found in row["quality"].items() if METRIC in found} | row["differences"]
    for name, interval in named.items():
        figures = f"{interval['mean']:+.4f} [{interval['low']:+.4f}, {interval['high']:+.4f}]"
        print(f"{row['data']:<14} {row['settings']['model']:<9} {name:<20} {METRIC} {figures}", flush=True)


def options_of(arguments: list[str]) -> argparse.Namespace:
    """The command line, read."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sets", nargs="+", default=["ml-1m", "amazon-beauty"])
    parser.add_argument("--models", nargs="+", default=["sasrec", "bert4rec"], choices=["sasrec", "bert4rec"])
    parser.add_argument("--sides", nargs="+", default=list(SIDES), choices=SIDES)
    parser.add_argument("--repeats", type=int, default=3, help="runs of each side, in turn")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--mask-prob", type=float, default=0.2, help="of BERT4Rec's events")
    parser.add_argument("--our-epochs", type=int, default=3, help="of ours timed in a run, after one that warms up")
    parser.add_argument("--peer-steps", type=int, help="batches of RecTools' epoch that are timed; all by default")
    parser.add_argument("--peer-warmup", type=int, default=2, help="batches of RecTools before")
    parser.add_argument("--recbole-steps", type=int, default=200, help="steps of RecBole that are timed")
    parser.add_argument("--recbole-warmup", type=int, default=20, help="steps of RecBole before")
    parser.add_argument("--quality", action="store_true", help="quality at equal epochs in place of speed")
    parser.add_argument("--quality-epochs", type=int, default=10)
    parser.add_argument("--again", action="store_true", help="make every run anew")
    parser.add_argument(
        "--scratch", type=Path, default=Path("scratch/training-peers"), help="folder of datasets and runs"
    )
    parser.add_argument("--limit-s", type=float, default=7200.0, help="most seconds of a run")
    parser.add_argument("--limit-gb", type=float, default=18.0, help="most memory of a run, 10^9 bytes")
    return parser.parse_args(arguments)


def main() -> None:
    """Print each cell's lines and append its figures to benchmarks/results/."""
    options = options_of(sys.argv[1:])
    options.scratch.mkdir(parents=True, exist_ok=True)
    for name in options.sets:
        bench = Bench(name, options)
        for model in options.models:
            settings = matched(name, model, threads=options.threads, mask_prob=options.mask_prob)
            row = (quality if options.quality else measure)(bench, settings, options)
            (print_quality if options.quality else print_speed)(row)
            file = append("training_peers", row)
    print(f"written to {file}")


if __name__ == "__main__":
    main()
