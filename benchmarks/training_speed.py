"""Real events per second of each model, and where the time of a step goes.

    python -m benchmarks.training_speed [--only ml-1m] [--seconds 20] [--against COMMIT [--rounds 5]]

Needs the prepared datasets of configs/ml-1m and configs/amazon-beauty (benchmarks.path makes them). An event counts
once an epoch, whether it is predicted or only read; nothing is padding. Each figure is the median over the steps after
warm-up. `--against` checks another commit out beside this one and lets both measure in turn, each by its own benchmark,
in processes of their own.
"""

import argparse
import re
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks.support.record import append
from benchmarks.support.training_steps import events_per_s, trained
from recsys import config as configs
from recsys.pipelines.run_config import TrainConfig

CONFIGS = ("ml-1m/sasrec", "ml-1m/bert4rec", "amazon-beauty/sasrec", "amazon-beauty/bert4rec")


def measure(name: str, seconds: float) -> dict[str, Any]:
    """Events per second of one config, and the share of each part of a step."""
    config = configs.load(TrainConfig, configs.read(Path("configs") / f"{name}.yaml"))
    subject = trained(config)
    speeds = events_per_s(subject, seconds)
    batches = subject.batches
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        for number, batch in zip(range(5), batches.epoch(0), strict=False):
            subject.step(batch, number)
    median = statistics.median(speeds)
    return {
        "config": name,
        "events_per_s": round(median),
        "p10": round(statistics.quantiles(speeds, n=10)[0]),
        "p90": round(statistics.quantiles(speeds, n=10)[-1]),
        "steps": len(speeds),
        "epoch_s": round(batches.num_tokens / median, 2),
        "events_per_epoch": batches.num_tokens,
        "parameters": sum(parameter.numel() for parameter in subject.model.parameters()),
        "profile": _shares(profiler),
    }


def _shares(profiler: Any) -> dict[str, float]:
    """The ten operators that take the most time of their own, as shares of the whole."""
    averages = profiler.key_averages()
    total = sum(entry.self_cpu_time_total for entry in averages)
    best = sorted(averages, key=lambda entry: -entry.self_cpu_time_total)[:10]
    return {entry.key: round(entry.self_cpu_time_total / total, 3) for entry in best}


def compare(names: list[str], commit: str, seconds: float, rounds: int) -> list[dict[str, Any]]:
    """Events per second of each config here and at `commit`, in turn: all runs, and the median of the rounds' ratios.

    A machine has faster and slower minutes; the two runs of a round share theirs.
    """
    here = Path.cwd()
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        there = Path(folder) / "tree"
        subprocess.run(["git", "worktree", "add", "--detach", "--quiet", str(there), commit], check=True)
        try:
            (there / "runs").symlink_to(here / "runs")
            for name in names:
                now, then = [], []
                for number in range(rounds):
                    now.append(_events_per_s(name, seconds, here, ["--no-record"]))
                    then.append(_events_per_s(name, seconds, there, []))
                    print(f"{name} round {number + 1} of {rounds}: {now[-1]:,} now, {then[-1]:,} then", file=sys.stderr)
                ratio = round(statistics.median(a / b for a, b in zip(now, then, strict=True)), 3)
                rows.append({"config": name, "now": now, "then": then, "ratio": ratio})
        finally:
            subprocess.run(["git", "worktree", "remove", "--force", str(there)], check=True)
    return rows


def _events_per_s(name: str, seconds: float, tree: Path, options: list[str]) -> int:
    command = [sys.executable, "-m", "benchmarks.training_speed", "--only", name, "--seconds", str(seconds), *options]
    run = subprocess.run(command, cwd=tree, capture_output=True, text=True, check=False)
    found = re.search(r"([\d,]+) events/s", run.stdout)
    if found is None:
        raise SystemExit(f"error: {tree}: {' '.join(command)} told no speed\n{run.stderr[-2000:]}")
    return int(found[1].replace(",", ""))


def main() -> None:
    """Print a line a config and append the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=20.0, help="of timed steps for each config")
    parser.add_argument("--only", default="", help="configs whose name holds this")
    parser.add_argument("--against", metavar="COMMIT", help="measure in turn with this commit")
    parser.add_argument("--rounds", type=int, default=5, help="with --against")
    parser.add_argument("--no-record", action="store_true", help="write no line of results")
    arguments = parser.parse_args()
    names = [name for name in CONFIGS if arguments.only in name]
    if arguments.against:
        rows = compare(names, arguments.against, arguments.seconds, arguments.rounds)
        for row in rows:
            now, then = (statistics.median(row[key]) for key in ("now", "then"))
            speeds = f"{now:>8,.0f} events/s, {then:>8,.0f} then"
            print(f"{row['config']:<24} {speeds}: {row['ratio']:.3f} times as fast in a round")
        figures: dict[str, Any] = {"against": arguments.against, "rows": rows}
    else:
        figures = {"rows": []}
        for name in names:
            row = measure(name, arguments.seconds)
            figures["rows"].append(row)
            top = ", ".join(f"{key} {share:.0%}" for key, share in list(row["profile"].items())[:5])
            print(f"{name:<24} {row['events_per_s']:>8,} events/s  epoch {row['epoch_s']:>6.1f} s   {top}")
    if not arguments.no_record:
        print(f"written to {append('training_speed', {'threads': torch.get_num_threads(), **figures})}")


if __name__ == "__main__":
    main()
