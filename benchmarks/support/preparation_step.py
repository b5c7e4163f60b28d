"""One step of benchmarks.preparation in a process of its own, so that its memory is its own. Prints one JSON object.

python -m benchmarks.support.preparation_step hash|read|prepare|polars SOURCE [OUT]
"""

import argparse
import json
import time
from pathlib import Path
from typing import Any

Figures = dict[str, Any]


def hash_only(source: Path) -> Figures:
    """Seconds of hashing the sources."""
    from recsys.features.readers import hash_sources, open_interactions
    from recsys.features.schema import ReadConfig

    opened = open_interactions(source, ReadConfig())
    began = time.perf_counter()
    hashed = hash_sources(opened)
    return {"seconds": time.perf_counter() - began, "bytes": sum(int(entry["bytes"]) for entry in hashed)}


def read_only(source: Path) -> Figures:
    """Seconds of reading every chunk and letting it go."""
    from recsys.features.readers import open_interactions
    from recsys.features.schema import ReadConfig

    began = time.perf_counter()
    rows = sum(chunk.interactions.height for chunk in open_interactions(source, ReadConfig()).chunks())
    return {"seconds": time.perf_counter() - began, "events": rows}


def prepare_here(source: Path, out: Path) -> Figures:
    """Seconds of the whole preparation without the start of Python, and when each of its lines was told."""
    from recsys.features.prepare import PrepareConfig, SplitConfig, prepare

    told: list[tuple[float, str]] = []
    began = time.perf_counter()
    config = PrepareConfig(split=SplitConfig(protocol="loo"))
    dataset = prepare(source, out, config, lambda line: told.append((round(time.perf_counter() - began, 3), line)))
    seconds = time.perf_counter() - began
    lines = [(at, line.replace(str(out.absolute()), "OUT")) for at, line in told]
    return {"seconds": seconds, "events": dataset.num_events, "users": dataset.num_users, "told": lines}


def sort_by_polars(source: Path, out: Path) -> Figures:
    """Seconds of the least that any preparation does: scan, sort by user and time, write."""
    import polars as pl

    began = time.perf_counter()
    pl.scan_parquet(source).sort("user_id", "timestamp").sink_parquet(out)
    return {"seconds": time.perf_counter() - began}


def main() -> None:
    """Run the step that is named."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("step", choices=("hash", "read", "prepare", "polars"))
    parser.add_argument("source", type=Path)
    parser.add_argument("out", type=Path, nargs="?")
    arguments = parser.parse_args()
    if arguments.step in ("hash", "read"):
        figures = {"hash": hash_only, "read": read_only}[arguments.step](arguments.source)
    elif arguments.out is None:
        parser.error(f"{arguments.step} needs OUT")
    else:
        figures = {"prepare": prepare_here, "polars": sort_by_polars}[arguments.step](arguments.source, arguments.out)
    figures["seconds"] = round(figures["seconds"], 3)
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
