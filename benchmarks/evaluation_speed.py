"""Seconds of ranking every item for every user, the forward pass included, against the bare matrix product.

    RECSYS_DATA=FOLDER python -m benchmarks.evaluation_speed [--sets ml-1m amazon-beauty] [--threads 2] [--no-peers]

SASRec with D=64, 2 blocks, 2 heads: the bundle of --runs where it was trained on the same data, else untrained, and the
line says which. In turn: `rank_targets` by screening and by its plain definition, whose ranks must be equal; the
forward pass alone; and the fp32 product (N, D) @ (D, V) in blocks of queries. RecTools' `recommend` (k=10, the same
histories) stands beside it.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.peers.run import run_peer
from benchmarks.support.history_table import history_table
from benchmarks.support.interaction_sets import prepared
from benchmarks.support.record import append
from recsys.errors import BundleError
from recsys.features.batches import query_batches
from recsys.features.dataset import PreparedDataset
from recsys.features.slices import Queries
from recsys.models import registry
from recsys.models.bundle import load_bundle
from recsys.pipelines.evaluation.full_ranking import rank_targets

QUERIES_PER_BLOCK = 1024
# Longest history that a model reads; that of configs/.
MAX_LEN = {"ml-1m": 200}
DEFAULT_MAX_LEN = 50


def measure(name: str, options: argparse.Namespace) -> dict[str, Any]:
    """The figures of one set."""
    dataset = prepared(name, options.scratch)
    model, origin = model_of(name, dataset, options.runs)
    queries = dataset.queries("test")
    ranks: dict[str, Any] = {}

    def rank(precision: Any) -> None:
        ranks[precision] = rank_targets(model, dataset, queries, precision=precision)

    runs: dict[str, Callable[[], None]] = {
        "screen": lambda: rank("screen"),
        "plain": lambda: rank("plain"),
        "forward": lambda: forward(model, dataset, queries),
        "product": product_of(len(queries), dataset.num_items, model.config.d_model),
    }
    times: dict[str, list[float]] = {run: [] for run in runs}
    for _ in range(options.repeats + 1):
        for run, call in runs.items():
            began = time.perf_counter()
            call()
            times[run].append(time.perf_counter() - began)
    seconds = {run: round(statistics.median(values[1:]), 3) for run, values in times.items()}
    row = {
        "data": name,
        "users": len(queries),
        "items": dataset.num_items,
        "model": origin,
        "max_len": model.max_len,
        "threads": torch.get_num_threads(),
        "seconds": seconds,
        "all_seconds": {run: [round(value, 3) for value in values[1:]] for run, values in times.items()},
        "over_product": round(seconds["screen"] / seconds["product"], 2),
        "ranks_are_equal": bool(np.array_equal(ranks["screen"], ranks["plain"])),
        "protocol": dataset.protocol_string("test", "exclude"),
    }
    return row | ({"rectools": rectools(dataset, queries, model.max_len, options)} if options.peers else {})


def model_of(name: str, dataset: PreparedDataset, runs: Path) -> tuple[Any, str]:
    """SASRec in eval mode, and where it comes from."""
    folder = runs / name / "sasrec" / "bundle"
    try:
        bundle = load_bundle(folder)
        if bundle.data.get("data_hash") == dataset.data_hash:
            return bundle.model, f"bundle {bundle.version}"
        why = "its bundle was trained on other data"
    except BundleError:
        why = "no bundle in runs/"
    torch.manual_seed(0)
    config = {"max_len": MAX_LEN.get(name, DEFAULT_MAX_LEN), "d_model": 64, "num_layers": 2, "num_heads": 2}
    model: Any = registry.build("sasrec", config, dataset.num_items)
    return model.eval(), f"untrained: {why}"


@torch.no_grad()
def forward(model: Any, dataset: PreparedDataset, queries: Queries) -> None:
    """The state of every history."""
    for _, batch in query_batches(dataset, queries, max_len=model.max_len):
        model.encode(batch)


def product_of(num_queries: int, num_items: int, width: int) -> Callable[[], None]:
    """The fp32 product of that many states and items, a block of queries at a time into one buffer."""
    generator = torch.Generator().manual_seed(0)
    states = torch.randn(num_queries, width, generator=generator)
    items = torch.randn(num_items, width, generator=generator)
    buffer = torch.empty(QUERIES_PER_BLOCK, num_items)

    def run() -> None:
        for block in torch.split(states, QUERIES_PER_BLOCK):
            torch.mm(block, items.T, out=buffer[: len(block)])

    return run


def rectools(dataset: PreparedDataset, queries: Queries, max_len: int, options: argparse.Namespace) -> dict[str, Any]:
    """Seconds of RecTools' `recommend` for the same histories."""
    file = options.scratch / f"{dataset.path.name}-histories.parquet"
    history_table(queries).write_parquet(file)
    threads = torch.get_num_threads()
    script, limits = "rectools_recommend.py", {"limit_s": options.limit_s, "limit_gb": options.limit_gb}
    run = run_peer("rectools", script, file, max_len, options.repeats, threads, **limits)
    file.unlink()
    if not run.is_done:
        return run.figures()
    answer = run.answer()
    return {**run.figures(), **answer, "recommend_median_s": statistics.median(answer["recommend_s"])}


def _line(row: dict[str, Any]) -> str:
    figures = "  ".join(f"{run} {value:.2f} s" for run, value in row["seconds"].items())
    equal = "" if row["ranks_are_equal"] else "  RANKS DIFFER"
    peer = row.get("rectools", {})
    seconds = peer.get("recommend_median_s")
    beside = f"  RecTools {peer['outcome'] if seconds is None else f'{seconds:.2f} s'}" if peer else ""
    return f"{row['data']:<24} {figures}  {row['over_product']:.2f} x the product{equal}{beside}   ({row['model']})"


def main() -> None:
    """Print a line a set, append the figures to benchmarks/results/; exit code 1 where ranks differ."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sets", nargs="+", default=["ml-1m", "amazon-beauty", "amazon-beauty-bert4rec"])
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--repeats", type=int, default=5, help="runs of each, in turn, after one that warms up")
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="folder of trained runs")
    parser.add_argument("--scratch", type=Path, default=Path("scratch/evaluation-speed"), help="folder of datasets")
    parser.add_argument("--no-peers", dest="peers", action="store_false", help="without RecTools")
    parser.add_argument("--limit-s", type=float, default=1800.0, help="most seconds of a peer")
    parser.add_argument("--limit-gb", type=float, default=16.0, help="most memory of a peer, 10^9 bytes")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    rows = []
    for name in options.sets:
        rows.append(measure(name, options))
        print(_line(rows[-1]), flush=True)
    print(f"written to {append('evaluation_speed', {'rows': rows})}")
    if not all(row["ranks_are_equal"] for row in rows):
        sys.exit(1)


if __name__ == "__main__":
    main()
