"""What counting reaches: the floors tuned on the validation part of every set, their figures on the test part.

    RECSYS_DATA=FOLDER python -m benchmarks.floors [--sets ml-1m amazon-beauty] [--trials 60] [--out runs/floors]

Tuned by `recsys floors` in a process of its own, its lines passing through; trials that stand in the dataset's folder
are not run again. Prints a markdown table a set: HR@10 and NDCG@10 of each floor with its 95 % interval and its
settings, and the published figures of the same task. In bold what is best on the validation part.
"""

import argparse
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.support.interaction_sets import SETS, prepared
from benchmarks.support.literature import LITERATURE
from benchmarks.support.record import append
from recsys.features.dataset import PreparedDataset
from recsys.pipelines.floors.tuned import TunedFloors, read_floors

LEFT_OUT = ("trials", "format", "format_version")  # of floors.json: hundreds of lines, and what every file says


def measure(name: str, options: argparse.Namespace) -> dict[str, Any]:
    """Settings, seconds and test figures of the floors of one set."""
    dataset = prepared(name, options.out)
    command_s, tuned = tune(dataset, options.trials)
    test = dataset.manifest["splits"]["test"]
    return {
        "data": name,
        "users": dataset.num_users,
        "items": dataset.num_items,
        "never_trained": round(test["targets_never_trained"] / test["targets"], 4),
        "command_s": command_s,
        "best_family": tuned.best_family,
        "num_trials": len(tuned.trials),
        **{key: value for key, value in asdict(tuned).items() if key not in LEFT_OUT},
    }


def tune(dataset: PreparedDataset, trials: int) -> tuple[float, TunedFloors]:
    """Seconds of `recsys floors`, and what it found.

    Raises:
        SystemExit: the command failed; its line stands above.
    """
    began = time.perf_counter()
    command = [sys.executable, "-m", "recsys", "--json", "floors", str(dataset.path), "--trials", str(trials)]
    process = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    tuned = read_floors(dataset)
    if process.returncode != 0 or tuned is None:
        raise SystemExit(
            f"error: recsys {' '.join(command[4:])} ended with {process.returncode}: {process.stdout.strip()}"
        )
    return round(time.perf_counter() - began, 1), tuned


def table(row: dict[str, Any]) -> str:
    """A markdown table of one set: floors with intervals, then what is published."""
    never = f"{row['never_trained']:.1%} of the targets never occur in training"
    lines = [
        f"**{row['data']}** ({row['users']:,} users, {row['items']:,} items; {never}; tuned in {row['seconds']:.0f} s)",
        "",
        "| | HR@10 | NDCG@10 | settings |",
        "|---|---|---|---|",
    ]
    for family, figures in row["test"].items():
        mark = "**" if family == row["best_family"] else ""
        cells = [*(_interval(figures[metric]) for metric in ("hr@10", "ndcg@10")), _settings(row["best"][family])]
        lines.append(f"| {mark}{family}{mark} | {' | '.join(cells)} |")
    lines += [f"| {family} | | | left out: {why} |" for family, why in row["left_out"].items()]
    for published in LITERATURE.get(row["data"], ()):
        figures = f"{published.hr_at_10:.4f} | {published.ndcg_at_10:.4f}"
        lines.append(f"| {published.model} ({published.source}) | {figures} | |")
    return "\n".join([*lines, "", f"`{row['test_protocol']}`", ""])


def _settings(best: dict[str, Any]) -> str:
    def plain(value: Any) -> str:
        if isinstance(value, dict):
            return "(" + ", ".join(f"{key} {plain(inner)}" for key, inner in value.items()) + ")"
        return f"{value:.3g}" if isinstance(value, float) else str(value)

    return plain(best["settings"])[1:-1]


def _interval(figure: dict[str, float]) -> str:
    return f"{figure['mean']:.4f} [{figure['low']:.4f}, {figure['high']:.4f}]"


def main() -> None:
    """Tune, fit and measure on every set; print the tables, append a line a set to benchmarks/results/floors.jsonl."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sets", nargs="+", default=list(SETS))
    parser.add_argument("--trials", type=int, default=60, help="random settings tried")
    parser.add_argument("--out", type=Path, default=Path("runs/floors"), help="folder of the prepared sets")
    options = parser.parse_args()
    for name in options.sets:
        row = measure(name, options)
        print(table(row), flush=True)
        file = append("floors", row)
    print(f"written to {file}")


if __name__ == "__main__":
    main()
