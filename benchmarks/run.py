"""Every benchmark, one after another: `make bench`; with ARGS=--peers training beside RecTools and RecBole, too.

Not among them: `train_quality` (hours, `make train-quality`); `gpu`, `kernels` and `tune_kernels` (for a machine with a
GPU); `kernels_aot` and `mutate_kernels` (many minutes, when a kernel changes); `table_soak` (70 minutes).
"""

import argparse
import os
import runpy
import sys

RUNS = (  # a module and its arguments
    "shop_world",
    "attention",
    "attention --padded",
    "linear_cross_entropy --large",
    "sampled_loss",
    "search_topk",
    "jagged_embedding",
    "hash_table",
    "embedding_table",
    "cold_rows",
    "table_deltas",
    "table_faults --kills 100",
    "torchrec_modules",
    "path",
    "training_speed",
    "preparation",
    "evaluation_speed",
    "floors",
    "losses",
    "compare",
    "memory",
    "training_peers",
    "table_step",
    "new_rows",
    "collision_quality",
    "id_stream",
    "resume",
)
# These simulate what they measure on; all others need RECSYS_DATA.
WITHOUT_DATA = (
    "shop_world",
    "attention",
    "linear_cross_entropy",
    "sampled_loss",
    "search_topk",
    "jagged_embedding",
    "hash_table",
    "embedding_table",
    "cold_rows",
    "table_deltas",
    "table_faults",
    "torchrec_modules",
    "new_rows",
    "id_stream",
    "resume",
)
# Hours, most of them in the peers.
WITH_PEERS = ("training_peers",)


def main() -> None:
    """Run each module with its arguments; those whose data is absent, or not asked for, are skipped and say so."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--peers", action="store_true", help="train beside RecTools and RecBole, too (hours)")
    has_peers = parser.parse_args().peers
    for run in RUNS:
        name, *options = run.split()
        if name in WITH_PEERS and not has_peers:
            print(f"== {run}: skipped, --peers was not given")
            continue
        if name not in WITHOUT_DATA and not os.environ.get("RECSYS_DATA"):
            print(f"== {run}: skipped, RECSYS_DATA is not set")
            continue
        print(f"== {run}", flush=True)
        sys.argv = [name, *options]
        runpy.run_module(f"benchmarks.{name}", run_name="__main__")


if __name__ == "__main__":
    main()
