"""A trainer is killed at random moments: is the table of its log the one of a trainer that never stopped?

    python -m benchmarks.table_faults [--kills 100] [--seed 0] [--no-record]

By SIGKILL, while two tables grow, evict, expire, are cut, copied between steps, and compacted. After each death the log
is read, and compared bit for bit with the stream computed anew up to the log's step, which may not lie before the last
step that was acknowledged. Every second kill is at any moment, the others are when the trainer is about to do one of
AIMS. Prints a line a kill and appends a line to benchmarks/results/table_faults.jsonl. Exit code 1 where anything
differs.
"""

import argparse
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from benchmarks.support.killed_table import Death, KilledTable
from benchmarks.support.number_arguments import whole
from benchmarks.support.record import append
from benchmarks.support.table_stream import Phase
from recsys.config import MAX_SEED

MOST_S = 0.6  # of a trainer's life
AIMS: tuple[Phase, ...] = ("growth", "eviction", "compaction", "cut")  # of every second kill, in turn


def deaths(kills: int, seed: int, folder: Path) -> list[Death]:
    """So many, each told as it comes."""
    draw, killed, found = np.random.default_rng(seed), KilledTable(folder, seed), list[Death]()
    for number in range(kills):
        aim = AIMS[number // 2 % len(AIMS)] if number % 2 else None
        found.append(killed.kill(float(draw.random()) * MOST_S, aim))
        last = found[-1]
        print(
            f"{number + 1:4}  killed in {last.phase:10}  acknowledged {last.acknowledged:6}  "
            f"restored {last.restored:6}  {last.problem or 'the same'}",
            flush=True,
        )
    return found


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=whole(1, 100_000), default=100)
    parser.add_argument("--seed", type=whole(0, MAX_SEED - 1), default=0)
    parser.add_argument("--no-record", action="store_true", help="write no line of results")
    given = parser.parse_args(arguments)
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        found = deaths(given.kills, given.seed, Path(folder))
    wrong = [death.problem for death in found if death.problem]
    figures = {
        "kills": len(found),
        "different": len(wrong),
        "by_phase": dict(Counter(death.phase for death in found)),
        "steps": found[-1].restored,
        "seconds": round(time.monotonic() - began),
    }
    if not given.no_record:
        append("table_faults", figures)
    print(figures)
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
