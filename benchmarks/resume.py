"""Runs that are killed and go on: do they end with the same bytes as one that was never stopped?

    python -m benchmarks.resume [--only bert4rec "bert4rec, all on"] [--steps 20] [--writes 5] [--epoch-ends 3]

SIGKILL after random optimizer steps, inside the write of a checkpoint and at the end of an epoch; each run is then
trained to its end. Prints a line a kill and appends a line a configuration to benchmarks/results/resume.jsonl. Exit
code 1 where a sha256 differs.
"""

import argparse
import json
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.support.killed_run import Death, KilledRun
from benchmarks.support.record import append
from recsys import config as configs
from recsys.features.dataset import PreparedDataset
from recsys.pipelines.optimization import OptimizationConfig
from recsys.pipelines.run_config import TrainConfig

MODEL: dict[str, Any] = {"d_model": 32, "num_layers": 2, "num_heads": 2, "d_ff": 64, "max_len": 30}
PLAIN: dict[str, Any] = {"epochs": 4, "tokens_per_batch": 1024, "checkpoint_every": 3, "threads": 1, "patience": None}
ALL_ON: dict[str, Any] = {
    **PLAIN,
    "ema": 0.9,
    "accumulate": 3,
    "precision": "bf16",
    "clip_norm": 1.0,
    "warmup_steps": 5,
    "decay": "cosine",
    "weight_decay": 0.01,
    "tokens_per_batch": 256,
}
CASES = {
    f"{model}{label}": ({"name": model, **MODEL, "attention_dropout": 0.1}, keys)
    for model in ("sasrec", "bert4rec")
    for label, keys in (("", PLAIN), (", all on", ALL_ON))
}


def config_of(case: str, data: PreparedDataset) -> TrainConfig:
    """The run of a case of CASES."""
    model, train = CASES[case]
    return TrainConfig(data=data.path, model=model, train=OptimizationConfig(**train), seed=3)


def measure(config: TrainConfig, folder: Path, kills: dict[str, int], seed: int) -> dict[str, Any]:
    """Kill the run at random moments, once each, and compare the bytes it ends with.

    Args:
        config: the run; needs several epochs and a checkpoint every few steps.
        folder: of the run folders; they are removed as soon as they are compared.
        kills: number by kind: "step", "write", "epoch end".
        seed: of the moments.

    Returns:
        sha256 of the run that was not stopped, its steps, and each kill with its own.
    """
    file = folder / "run.json"
    file.write_text(json.dumps(configs.dump(config)), encoding="utf-8")
    wanted = KilledRun(file, folder / "whole").finish()
    steps = _steps_of(folder / "whole")
    rows = []
    for number, kill in enumerate(_kills(kills, steps, config.train.epochs, np.random.default_rng(seed))):
        run = KilledRun(file, folder / f"killed-{number}")
        death = kill(run)
        found = run.finish()
        rows.append({**asdict(death), "sha256": found, "is_equal": found == wanted})
        print(_line(rows[-1]), flush=True)
        shutil.rmtree(run.out)
    return {"sha256": wanted, "steps": steps, "kills": rows}


def _kills(
    number: dict[str, int], steps: int, epochs: int, generator: np.random.Generator
) -> Iterator[Callable[[KilledRun], Death]]:
    for step in np.sort(generator.choice(np.arange(1, steps), number["step"], replace=False)):
        yield partial(KilledRun.kill_at_step, step=int(step))
    for _ in range(number["write"]):
        yield partial(KilledRun.kill_in_write, generator=generator, writes=8)
    for n in range(number["epoch end"]):
        yield partial(KilledRun.kill_at_epoch_end, epoch=n % epochs)


def _steps_of(out: Path) -> int:
    lines = (out / "log.jsonl").read_text(encoding="utf-8").splitlines()
    return max(int(json.loads(line)["step"]) for line in lines)


def _line(row: dict[str, Any]) -> str:
    draft = "" if row["draft_bytes"] is None else f", {row['draft_bytes']:,} bytes of the draft written"
    verdict = "same bytes" if row["is_equal"] else "OTHER BYTES"
    return f"  {row['kind']} {row['at']}{draft}: on from {row['resumed_from']}, {row['sha256'][:12]} {verdict}"


def _dataset(folder: Path) -> PreparedDataset:
    # Every process that is to be killed imports this file first, and has no use for polars.
    from recsys.features.prepare import PrepareConfig, SplitConfig, prepare
    from recsys.features.simulate.shop import ShopConfig, simulate

    world = simulate(ShopConfig(users=300, items=400), folder / "world")
    return prepare(world / "interactions.parquet", folder / "data", PrepareConfig(split=SplitConfig(protocol="loo")))


def main(arguments: list[str] | None = None) -> int:
    """Every case; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=list(CASES), default=list(CASES), metavar="CASE")
    parser.add_argument("--steps", type=int, default=20, help="kills at random steps, a case")
    parser.add_argument("--writes", type=int, default=5, help="kills inside a checkpoint's write")
    parser.add_argument("--epoch-ends", type=int, default=3, help="kills between validation and checkpoint")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    options = parser.parse_args(arguments)
    kills = {"step": options.steps, "write": options.writes, "epoch end": options.epoch_ends}
    is_equal = True
    with tempfile.TemporaryDirectory() as place:
        data = _dataset(Path(place))
        for case in options.only:
            print(f"== {case}", flush=True)
            folder, began = Path(place) / case, time.perf_counter()
            folder.mkdir()
            row = measure(config_of(case, data), folder, kills, options.seed)
            equal = sum(kill["is_equal"] for kill in row["kills"])
            print(f"{case}: {equal} of {len(row['kills'])} ended with the same bytes", flush=True)
            is_equal &= equal == len(row["kills"])
            model, train = CASES[case]
            row = {"case": case, "model": model, "train": train, "seconds": round(time.perf_counter() - began, 1)} | row
            append("resume", row)
    return 0 if is_equal else 1


if __name__ == "__main__" and main():
    sys.exit(1)
