"""`recsys compare` on real data and on the shop: floors and models at equal budget, and the advice.

    RECSYS_DATA=FOLDER python -m benchmarks.compare [--sets ml-100k amazon-beauty shop] [--minutes 5] [--trials 60]

Each is the command itself, in a process of its own; its lines pass through. What an interrupted one has done stays in
--out and is not done again, so the seconds of a line count only where its `is_fresh` is true.
"""

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks.support.interaction_sets import data_folder
from benchmarks.support.record import append

# Of each set: what differs from the defaults of the command. The models' are those of configs/.
SETTINGS: dict[str, tuple[str, ...]] = {
    "ml-100k": ("prepare.split.protocol=time",),
    "amazon-beauty": (
        "sasrec.max_len=50",
        "sasrec.dropout=0.5",
        "bert4rec.max_len=50",
        "bert4rec.mask_share=0.4",
        "bert4rec.last_item_share=0.2",
        "train.tokens_per_batch=1024",
    ),
    "shop": (),
}
FILES = {"ml-100k": "ml-100k/interactions.parquet", "amazon-beauty": "amazon-beauty/sequences.parquet"}


def measure(name: str, options: argparse.Namespace) -> dict[str, Any]:
    """What the command answers for one set, and its seconds."""
    out = options.out / name
    is_fresh = not out.exists()
    budget = {"--minutes": options.minutes, "--trials": options.trials, "--seeds": options.seeds}
    arguments = ["--out", str(out), *(str(part) for pair in budget.items() for part in pair)]
    if name == "shop":
        world = options.out / "shop-world"
        if not world.exists():
            recsys("data", "simulate", "shop", "--out", str(world))
        arguments += ["--source", str(world / "interactions.parquet"), "--world", str(world)]
    else:
        arguments += ["--source", str(data_folder() / FILES[name])]
    for setting in (*SETTINGS[name], *options.set):
        arguments += ["--set", setting]
    began = time.perf_counter()
    answer = recsys("compare", *arguments)
    return {
        "data": name,
        "minutes": options.minutes,
        "trials": options.trials,
        "seeds": options.seeds,
        "settings": [*SETTINGS[name], *options.set],
        "is_fresh": is_fresh,
        "seconds": round(time.perf_counter() - began, 1),
        "answer": answer,
    }


def recsys(*arguments: str) -> dict[str, Any]:
    """The answer of one command.

    Raises:
        SystemExit: the command failed; its line stands above.
    """
    command = [sys.executable, "-m", "recsys", "--json", *arguments]
    process = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    if process.returncode != 0:
        raise SystemExit(
            f"error: recsys {' '.join(arguments)} ended with {process.returncode}: {process.stdout.strip()}"
        )
    answer: dict[str, Any] = json.loads(process.stdout)
    return answer


def main() -> None:
    """Compare on every set, print a line each, append each to benchmarks/results/compare.jsonl."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sets", nargs="+", choices=tuple(SETTINGS), default=list(SETTINGS))
    parser.add_argument("--minutes", type=float, default=5.0, help="of training, of each model and seed")
    parser.add_argument("--trials", type=int, default=60, help="random settings tried for the floors")
    parser.add_argument("--seeds", type=int, default=1, help="runs of each model")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="more settings, for all sets")
    parser.add_argument("--out", type=Path, default=Path("runs/compare"), help="folder of the comparisons")
    options = parser.parse_args()
    for name in options.sets:
        row = measure(name, options)
        print(f"{name}: {row['seconds']} s; picture: {row['answer'].get('picture')}", flush=True)
        print(f"written to {append('compare', row)}")


if __name__ == "__main__":
    main()
