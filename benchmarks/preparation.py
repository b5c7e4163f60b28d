"""`recsys prepare`: ML-1M from text, and a big simulated log against the least that polars can do, with peak memory.

    RECSYS_DATA=FOLDER python -m benchmarks.preparation [--only ml-1m] [--events 20000000] [--users 1000 200000 5000000]

Every figure is of a process of its own, the start of Python included, the files in the cache. The bare peer is polars'
scan, sort by user and time, write, of the same files; hashing of the sources is timed apart and told. RecBole's and
RecTools' dataset building stand beside it (--no-peers leaves them out); they are killed at --limit-s and --limit-gb.
Simulated logs stay in --scratch for the next time: 20 M events are about 0.25 GB each.
"""

import argparse
import shutil
import statistics
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import polars as pl

from benchmarks.peers.run import run_peer
from benchmarks.support.big_log import LogConfig, write_log
from benchmarks.support.interaction_sets import data_folder
from benchmarks.support.record import append
from benchmarks.support.timed import Timed, timed

Figures = dict[str, Any]

PEER_MAX_LEN = 50
PEER_USERS = 200_000


def recsys_prepare(source: Path, out: Path, *more: str) -> Timed:
    """One run of the command; what stood at `out` is removed first."""
    shutil.rmtree(out, ignore_errors=True)
    command = [sys.executable, "-m", "recsys", "--json", "prepare", "--source", str(source), "--out", str(out)]
    return timed([*command, "--protocol", "loo", *more])


def step(name: str, *paths: Path) -> Timed:
    """One run of a step of `preparation_step`."""
    return timed([sys.executable, "-m", "benchmarks.support.preparation_step", name, *map(str, paths)])


def measure_ml_1m(data: Path, scratch: Path, options: argparse.Namespace) -> Figures:
    """ML-1M as `user::item::rating::timestamp` text: the command, its steps, the peers."""
    folder = scratch / "ml-1m"
    text = _ml_1m_text(data / "ml-1m" / "sequences.parquet", folder)
    _warm(text)
    runs = [recsys_prepare(text, folder / "data") for _ in range(options.repeats)]
    figures: Figures = {"log": "ml-1m, :: text", "bytes": text.stat().st_size, "prepare": _median(runs)}
    figures["counts"] = runs[-1].answer()["counts"]
    figures["hash"] = step("hash", text).answer()
    figures["read"] = step("read", text).answer()
    shutil.rmtree(folder / "data", ignore_errors=True)
    figures["in_process"] = step("prepare", text, folder / "data").answer()
    if options.peers:
        events = pl.read_csv(
            text.read_bytes().replace(b"::", b","),
            has_header=False,
            new_columns=["user_id", "item_id", "-", "timestamp"],
        ).drop("-")
        events.write_parquet(folder / "events.parquet")
        figures["peers"] = measure_peers(folder / "events.parquet", folder / "recbole", options)
    return figures


def measure_log(config: LogConfig, scratch: Path, options: argparse.Namespace) -> Figures:
    """A simulated log: the command and polars in turn, hashing apart, the peers where asked."""
    source, out = write_log(config, scratch), scratch / "out"
    _warm(source)
    ours, bare, hashing = [], [], []
    for _ in range(options.repeats):
        ours.append(recsys_prepare(source, out))
        counts = ours[-1].answer()["counts"]
        shutil.rmtree(out, ignore_errors=True)
        hashing.append(step("hash", source).answer()["seconds"])
        sorted_file = scratch / "sorted.parquet"
        bare.append(step("polars", source, sorted_file))
        bare[-1].answer()
        sorted_file.unlink()
    figures: Figures = {
        "log": config.name,
        "events": config.events,
        "bytes": sum(path.stat().st_size for path in source.iterdir()),
        "counts": counts,
        "prepare": _median(ours),
        "hash_s": statistics.median(hashing),
        "polars": _median(bare),
        "read": step("read", source).answer(),
    }
    without_hash = figures["prepare"]["seconds"] - figures["hash_s"]
    figures["prepare_without_hash_s"] = round(without_hash, 3)
    figures["over_polars"] = round(without_hash / figures["polars"]["seconds"], 3)
    if options.peers and config.users == options.peer_users and not config.is_one_row_group:
        figures["peers"] = measure_peers(source, scratch / "recbole", options)
    return figures


def measure_peers(source: Path, atomic: Path, options: argparse.Namespace) -> Figures:
    """RecBole's and RecTools' dataset building of the same events, each once; killed at the limits."""
    atomic.mkdir(parents=True, exist_ok=True)
    renamed = [pl.col("user_id").alias("user_id:token"), pl.col("item_id").alias("item_id:token")]
    events = pl.scan_parquet(source).select(*renamed, pl.col("timestamp").alias("timestamp:float"))
    events.sink_csv(atomic / f"{atomic.name}.inter", separator="\t")
    limits = {"limit_s": options.limit_s, "limit_gb": options.limit_gb}
    runs = {
        "recbole": run_peer("recbole", "recbole_dataset.py", atomic, PEER_MAX_LEN, **limits),
        "rectools": run_peer("rectools", "rectools_dataset.py", source, PEER_MAX_LEN, **limits),
    }
    shutil.rmtree(atomic)
    return {name: run.figures() | ({"built": run.answer()} if run.is_done else {}) for name, run in runs.items()}


def variants(options: argparse.Namespace) -> list[LogConfig]:
    """The logs to measure: each number of users, and one file that is one row group."""
    logs = [LogConfig(events=options.events, users=users, items=options.items) for users in options.users]
    middle = sorted(options.users)[len(options.users) // 2]
    whole = LogConfig(events=options.events, users=middle, items=options.items, files=1, is_one_row_group=True)
    return [*logs, whole]


def _ml_1m_text(sequences: Path, folder: Path) -> Path:
    """The set as the file it once was, but for the rating (0) and the timestamp (the position)."""
    folder.mkdir(parents=True, exist_ok=True)
    text = folder / "ratings.dat"
    columns = [pl.col("user_id"), pl.col("item_id"), pl.lit("0"), pl.col("position")]
    lines = pl.read_parquet(sequences).select(pl.concat_str(columns, separator="::"))
    lines.write_csv(text, include_header=False, quote_style="never")
    return text


def _warm(source: Path) -> None:
    """Read every byte once, so that all runs find the files in the cache."""
    for path in sorted(source.iterdir()) if source.is_dir() else [source]:
        path.read_bytes()


def _median(runs: list[Timed]) -> Figures:
    for run in runs:
        run.answer()
    return {
        "seconds": statistics.median(run.seconds for run in runs),
        "all_seconds": [run.seconds for run in runs],
        "peak_gb": max(run.peak_gb for run in runs),
    }


def _tell(figures: Figures) -> None:
    ours = figures["prepare"]
    lines = [f"{figures['log']}: prepare {ours['seconds']:.2f} s, peak {ours['peak_gb']:.2f} GB"]
    if "polars" in figures:
        bare = figures["polars"]
        lines.append(
            f"  hashing {figures['hash_s']:.2f} s of it; polars {bare['seconds']:.2f} s, {bare['peak_gb']:.2f} GB"
        )
        lines.append(f"  without hashing {figures['over_polars']:.2f} x polars")
    for name, peer in figures.get("peers", {}).items():
        lines.append(f"  {name}: {peer['outcome']}, {peer['seconds']:.1f} s, peak {peer['peak_gb']:.2f} GB")
    print("\n".join(lines), flush=True)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=("ml-1m", "simulated"), help="one of the two parts")
    parser.add_argument("--events", type=int, default=LogConfig().events)
    parser.add_argument("--users", type=int, nargs="+", default=[1_000, 200_000, 5_000_000])
    parser.add_argument("--items", type=int, default=LogConfig().items)
    parser.add_argument("--repeats", type=int, default=3, help="runs of each, in turn; the median counts")
    parser.add_argument("--scratch", type=Path, default=Path("scratch/preparation"), help="folder of logs and outputs")
    parser.add_argument("--no-peers", dest="peers", action="store_false", help="without RecBole and RecTools")
    parser.add_argument("--peer-users", type=int, default=PEER_USERS, help="the log that the peers build")
    parser.add_argument("--limit-s", type=float, default=900.0, help="most seconds of a peer")
    parser.add_argument("--limit-gb", type=float, default=16.0, help="most memory of a peer, 10^9 bytes")
    return parser.parse_args()


def main() -> None:
    """Measure, print some lines a log, append a line a log to benchmarks/results/preparation.jsonl."""
    options = _options()
    parts: list[Callable[[], Figures]] = []
    if options.only != "simulated":
        parts.append(partial(measure_ml_1m, data_folder(), options.scratch, options))
    if options.only != "ml-1m":
        parts += [partial(measure_log, log, options.scratch, options) for log in variants(options)]
    for measure in parts:
        figures = measure()
        _tell(figures)
        file = append("preparation", figures)
    print(f"written to {file}")


if __name__ == "__main__":
    main()
