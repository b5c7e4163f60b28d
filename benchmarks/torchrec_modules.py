"""The collisionless module against torchrec's own managed collision modules, on a CPU, on one stream of Zipf ids.

    python -m benchmarks.torchrec_modules [--rows 1000000] [--ids 4000000] [--batch 65536] [--threads 2] [--no-record]

Random 64-bit ids by Zipf's law with exponent 1.05, `--ids` of them, in KeyedJaggedTensors of `--batch` ids; each module
stands in a ManagedCollisionCollection. "Training" maps a batch, takes its new ids in and throws others out; it is
measured when every table is full. torchrec's sorted module (MCH) takes ids in every `interval` batches. "Look-up" is
evaluation. torchrec's hashed module (HashZch) takes in no ids on a CPU, so it looks up in an empty table, where the
first probe ends a search. "Shared" is the share of ids in unseen training batches that had to share a row. One line a
run is appended to benchmarks/results/torchrec_modules.jsonl.
"""

import argparse
import itertools
import logging
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.support.in_turn import in_turn
from benchmarks.support.number_arguments import MOST_REPEATS, MOST_THREADS, refuse_beyond_memory, whole
from benchmarks.support.record import append

EXPONENT = 1.05
BATCHES = 100  # of the stream, then it begins again
CALLS = 10  # timed together: a whole interval of MCH
BUCKETS = 8
SEQUENCE = 64  # ids of each of a batch's sequences


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print, append to benchmarks/results/torchrec_modules.jsonl."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=whole(), default=1_000_000, help="of each table")
    parser.add_argument("--ids", type=whole(), default=4_000_000, help="different ones in the stream")
    parser.add_argument("--batch", type=whole(), default=65_536, help="ids a batch")
    parser.add_argument("--threads", type=whole(1, MOST_THREADS), default=torch.get_num_threads())
    parser.add_argument("--repeats", type=whole(1, MOST_REPEATS), default=10)
    parser.add_argument("--no-record", action="store_true", help="write no line of results")
    options = parser.parse_args(arguments)
    if options.rows % BUCKETS or options.rows < 2 * BUCKETS:
        parser.error(f"argument --rows: {options.rows}; wanted a multiple of {BUCKETS}, and at least {2 * BUCKETS}")
    if options.batch % SEQUENCE:
        parser.error(f"argument --batch: {options.batch}; wanted a multiple of {SEQUENCE}")
    num_bytes = 1000 * options.rows + 24 * options.ids + 40 * BATCHES * options.batch
    refuse_beyond_memory(parser, num_bytes, "--rows, --ids and --batch")
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    torch.set_num_threads(options.threads)
    found = measure(options.rows, options.ids, options.batch, options.repeats)
    print(f"{options.rows:,} rows, {options.ids:,} ids, {options.batch:,} ids a batch")
    for kind in ("training", "look-up"):
        for name, figures in found[kind].items():
            shared = f"  shared {figures['shared']:.1%}" if "shared" in figures else ""
            print(
                f"  {kind:<9} {name:<38} {figures['batches_per_s']:>8,.1f} batches/s "
                f"{figures['millions_per_s']:>7,.2f} M ids/s{shared}"
            )
    if not options.no_record:
        written = {"threads": options.threads, "rows": options.rows, "ids": options.ids, "batch": options.batch}
        print(f"written to {append('torchrec_modules', written | found)}")


def measure(rows: int, num_ids: int, batch: int, repeats: int) -> dict[str, Any]:
    """Speeds in training and in evaluation, and which share of the ids had no row of their own."""
    batches = stream(num_ids, batch)
    modules = {name: collection(rows, module) for name, module in modules_of(rows).items()}
    hashed = modules.pop("HashZch (table empty)")
    for module in modules.values():
        for features in fill(rows, num_ids, batch):
            module(features)
            module.evict()
    steps = {name: _next(module, batches) for name, module in modules.items()}
    times = in_turn({name: _times(step) for name, step in steps.items()}, repeats)
    unseen = stream(num_ids, batch, seed=2, count=2 * CALLS)
    training = {name: _speeds(figures, batch) for name, figures in times.items()}
    for name, module in modules.items():
        buckets = next(iter(module.table_to_number_buckets().values()))
        training[name]["shared"] = round(shared_share(module, unseen, rows // buckets), 4)
    for module in (*modules.values(), hashed):
        module.eval()
    looking = {
        name: _times(_next(module, batches)) for name, module in (modules | {"HashZch (table empty)": hashed}).items()
    }
    times = in_turn(looking, repeats)
    return {"training": training, "look-up": {name: _speeds(figures, batch) for name, figures in times.items()}}


def modules_of(rows: int) -> dict[str, Any]:
    """The modules that are compared."""
    from torchrec.modules.hash_mc_modules import HashZchManagedCollisionModule
    from torchrec.modules.mc_modules import LFU_EvictionPolicy, LRU_EvictionPolicy, MCHManagedCollisionModule

    from recsys.models.managed_collision import CollisionlessManagedCollisionModule

    device = torch.device("cpu")
    return {
        "collisionless lru": CollisionlessManagedCollisionModule(rows, eviction="lru"),
        f"collisionless lru, {BUCKETS} buckets": CollisionlessManagedCollisionModule(
            rows, eviction="lru", buckets=BUCKETS
        ),
        "collisionless lfu": CollisionlessManagedCollisionModule(rows, eviction="lfu"),
        "MCH lru, interval 1": MCHManagedCollisionModule(rows, device, LRU_EvictionPolicy(), 1),
        "MCH lru, interval 10": MCHManagedCollisionModule(rows, device, LRU_EvictionPolicy(), 10),
        "MCH lfu, interval 10": MCHManagedCollisionModule(rows, device, LFU_EvictionPolicy(), 10),
        "HashZch (table empty)": HashZchManagedCollisionModule(zch_size=rows, device=device, total_num_buckets=1),
    }


def collection(rows: int, module: Any) -> Any:
    """One table of one feature."""
    from torchrec import EmbeddingConfig
    from torchrec.modules.mc_modules import ManagedCollisionCollection

    config = EmbeddingConfig(name="table", embedding_dim=8, num_embeddings=rows, feature_names=["items"])
    return ManagedCollisionCollection({"table": module}, [config])


def stream(num_ids: int, batch: int, seed: int = 0, count: int = BATCHES) -> list[Any]:
    """Batches of Zipf ids; which id is frequent is left to chance."""
    generator = np.random.default_rng(seed)
    ids = names(num_ids)
    drawn = generator.zipf(EXPONENT, 2 * count * batch) - 1
    kept = drawn[drawn < num_ids]
    while len(kept) < count * batch:
        drawn = generator.zipf(EXPONENT, count * batch) - 1
        kept = np.concatenate([kept, drawn[drawn < num_ids]])
    return [features_of(ids[torch.from_numpy(part)]) for part in np.split(kept[: count * batch], count)]


def fill(rows: int, num_ids: int, batch: int) -> Iterator[Any]:
    """As many different ids as there are rows, and for MCH's sake some batches more."""
    ids = names(num_ids)[torch.arange(rows + 20 * batch) % num_ids]
    for first in range(0, len(ids) - batch + 1, batch):
        yield features_of(ids[first : first + batch])


def names(num_ids: int) -> Tensor:
    return torch.from_numpy(np.random.default_rng(1).integers(0, 2**63 - 1, num_ids))


def features_of(ids: Tensor) -> Any:
    from torchrec import KeyedJaggedTensor

    return KeyedJaggedTensor(["items"], ids, lengths=torch.full((len(ids) // SEQUENCE,), SEQUENCE))


def shared_share(module: Any, batches: list[Any], bucket_rows: int) -> float:
    """Of training batches' ids, those that got the last row of a bucket."""
    total = shared = 0
    for features in batches:
        found = module(features).values()
        module.evict()
        total, shared = total + len(found), shared + int((found % bucket_rows == bucket_rows - 1).sum())
    return shared / total


def _next(module: Any, batches: list[Any]) -> Callable[[], object]:
    """One call with the next batch; what was thrown out is taken, as an embedding collection would."""
    turn = itertools.cycle(batches)

    def run() -> None:
        module(next(turn))
        module.evict()

    return run


def _times(run: Callable[[], object]) -> Callable[[], object]:
    return lambda: [run() for _ in range(CALLS)]


def _speeds(milliseconds: dict[str, float], batch: int) -> dict[str, Any]:
    per_s = CALLS / (milliseconds["median"] / 1e3)
    return {
        "ms": milliseconds,
        "batches_per_s": round(per_s, 2),
        "millions_per_s": round(per_s * batch / 1e6, 3),
    }


if __name__ == "__main__":
    main()
