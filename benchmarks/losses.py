"""The losses side by side: each trained for the same seconds, then ranked in full beside the floor.

    RECSYS_DATA=FOLDER python -m benchmarks.losses [--sets ml-1m amazon-beauty] [--model sasrec] [--seconds 300]
                                                   [--losses ce gbce-256] [--seed 0] [--data runs/floors]
                                                   [--set model.d_model=64]

Each run is configs/SET/MODEL.yaml with another `model.loss` and `train.max_seconds`: rate, dropout and schedule are
those chosen for full cross entropy. What stands in benchmarks/results/losses.jsonl, of this machine with so many
threads, is not done again, and an interrupted run goes on from its checkpoint in --out. The floors are those tuned in
the dataset's folder by benchmarks.floors, else eight named settings: the row says which. Differences are paired.
"""

import argparse
import json
from dataclasses import asdict
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch

from benchmarks.support.config_hash import hash_of
from benchmarks.support.interaction_sets import prepared
from benchmarks.support.record import RESULTS, append, machine
from recsys import config as configs
from recsys.errors import RecsysError
from recsys.features.dataset import PreparedDataset
from recsys.models.bundle import load_bundle
from recsys.models.protocols import Scorer
from recsys.pipelines.evaluation.bootstrap import difference_interval
from recsys.pipelines.evaluation.evaluate import evaluate
from recsys.pipelines.floors.fit import describe_floors, fit_floors
from recsys.pipelines.run_config import TrainConfig
from recsys.pipelines.training import TrainResult, train

LOSSES: dict[str, dict[str, Any]] = {
    "ce": {},
    "ce-bfloat16": {"logits": "bfloat16"},
    "sampled_softmax-256": {"kind": "sampled_softmax", "num_negatives": 256},
    "sampled_softmax-1024": {"kind": "sampled_softmax", "num_negatives": 1024},
    "sampled_softmax-3000": {"kind": "sampled_softmax", "num_negatives": 3000},
    "sampled_softmax-3000-sequence": {"kind": "sampled_softmax", "num_negatives": 3000, "shared": "sequence"},
    "gbce-256": {"kind": "gbce", "num_negatives": 256},
    "gbce-256-none": {"kind": "gbce", "num_negatives": 256, "shared": "none"},
    "mixed_logq-256": {"kind": "mixed_logq", "num_negatives": 256},
    "mixed_logq-1024": {"kind": "mixed_logq", "num_negatives": 1024},
    "bce-1-none": {"kind": "bce", "num_negatives": 1, "shared": "none"},
    "bce-256": {"kind": "bce", "num_negatives": 256},
}
FILE = "losses"
BASE = "ce"  # what the others are compared to
KEY = ("data", "model", "loss", "max_seconds", "seed", "config_hash", "data_hash", "threads", "cpu")
METRICS = ("ndcg@10", "hr@10")
EPOCHS = 1_000_000  # the seconds end it


def measure(
    key: dict[str, Any], dataset: PreparedDataset, floors: dict[str, Scorer], options: argparse.Namespace
) -> dict[str, Any]:
    """One loss on one set: trained for the seconds, ranked in full on the test part, beside cross entropy's model."""
    trained = fit(key, dataset, options)
    base = trained if key["loss"] == BASE else fit(key_of(key["data"], BASE, dataset, options), dataset, options)
    models = {BASE: load_bundle(base.bundle).model, options.model: load_bundle(trained.bundle).model}
    found = evaluate({**floors, **models}, dataset, "test")
    assert found.best_floor is not None
    values = found.values
    to_base = {each: difference_interval(values[options.model][each], values[BASE][each]) for each in METRICS}
    return {
        **key,
        "settings": LOSSES[key["loss"]],
        "set": options.set,
        "epochs": trained.epochs,
        "steps": trained.steps,
        "best_epoch": trained.best_epoch,
        "seconds": round(trained.seconds, 1),
        "validation": trained.validation,
        "test": {metric: asdict(found.metrics[options.model][metric]) for metric in METRICS},
        "difference": {metric: asdict(found.differences[options.model][metric]) for metric in METRICS},
        "to_ce": {metric: asdict(difference) for metric, difference in to_base.items()},
        "floor": found.best_floor,
        "floor_test": {metric: asdict(found.metrics[found.best_floor][metric]) for metric in METRICS},
        "floors": describe_floors(dataset),
        "reachable": found.reachable,
        "protocol": found.protocol,
    }


def config_of(data: str, loss: str, dataset: PreparedDataset, options: argparse.Namespace) -> TrainConfig:
    """The set's configuration with another loss, for so many seconds."""
    settings = configs.override(configs.read(Path("configs") / data / f"{options.model}.yaml"), options.set)
    settings["model"]["loss"] = LOSSES[loss]
    settings["train"] |= {"max_seconds": options.seconds, "epochs": EPOCHS}
    return configs.load(TrainConfig, settings | {"data": str(dataset.path), "seed": options.seed})


def key_of(data: str, loss: str, dataset: PreparedDataset, options: argparse.Namespace) -> dict[str, Any]:
    """What a run is known by."""
    config = config_of(data, loss, dataset, options)
    hashes = hash_of(config), dataset.data_hash
    place = config.train.threads or torch.get_num_threads(), machine()["cpu"]
    return dict(zip(KEY, (data, options.model, loss, options.seconds, options.seed, *hashes, *place), strict=True))


def fit(key: dict[str, Any], dataset: PreparedDataset, options: argparse.Namespace) -> TrainResult:
    """The trained model, in a run folder of its own; at once where it is trained.

    Raises:
        SystemExit: it cannot be trained; one line says why.
    """
    config = config_of(key["data"], key["loss"], dataset, options)
    place = sha256(f"{key['threads']} {key['cpu']}".encode()).hexdigest()[:4]
    name = f"{key['model']}-{key['loss']}-{key['max_seconds']:g}s-seed{key['seed']}-{key['config_hash']}-{place}"
    try:
        return train(config, options.out / key["data"] / name)
    except RecsysError as error:
        raise SystemExit(f"error: {key['data']} {name}: {error}") from error


def row_done(key: dict[str, Any]) -> dict[str, Any] | None:
    """The row of this run, if it is written already."""
    file = RESULTS / f"{FILE}.jsonl"
    lines = file.read_text(encoding="utf-8").splitlines() if file.is_file() else []
    rows = (json.loads(line) for line in lines)
    return next((row for row in rows if all(row.get(part) == key[part] for part in KEY)), None)


def table(rows: list[dict[str, Any]]) -> str:
    """A markdown table of one set and model, best first; the floor stands last."""
    first = rows[0]
    assert len({(row["threads"], row["cpu"]) for row in rows}) == 1, "equal seconds are of one machine"
    changed = "".join(f", {assignment}" for assignment in first["set"])
    lines = [
        f"**{first['data']}, {first['model']}{changed}** ({first['max_seconds']:g} s of training each, "
        f"seed {first['seed']}, {first['threads']} threads; {first['floors']})",
        "",
        "| loss | NDCG@10 | HR@10 | NDCG@10 - ce | NDCG@10 - floor | epochs | best epoch |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in sorted(rows, key=lambda row: -row["test"]["ndcg@10"]["mean"]):
        best = "-" if row["best_epoch"] is None else row["best_epoch"] + 1
        cells = [row["loss"], *(_figure(row["test"][metric]) for metric in METRICS)]
        cells.append("" if row["loss"] == BASE else _figure(row["to_ce"]["ndcg@10"], "+"))
        cells.append(_figure(row["difference"]["ndcg@10"], "+"))
        lines.append(f"| {' | '.join(cells)} | {row['epochs']} | {best} |")
    floor = " | ".join(_figure(first["floor_test"][metric]) for metric in METRICS)
    lines.append(f"| floor: {first['floor']} | {floor} | | | | |")
    return "\n".join([*lines, "", f"`{first['protocol']}`", ""])


def _figure(interval: dict[str, float], sign: str = "") -> str:
    return f"{interval['mean']:{sign}.4f} [{interval['low']:{sign}.4f}, {interval['high']:{sign}.4f}]"


def compare(name: str, options: argparse.Namespace) -> list[dict[str, Any]]:
    """Every loss of one set, measured unless its row is written already."""
    dataset = prepared(name, options.data)
    floors: dict[str, Scorer] = {}
    rows = []
    for loss in options.losses:
        key = key_of(name, loss, dataset, options)
        row = row_done(key)
        if row is None:
            floors = floors or fit_floors(dataset)
            row = measure(key, dataset, floors, options)
            append(FILE, row)
            print(f"{name} {options.model} {loss}: NDCG@10 {_figure(row['test']['ndcg@10'])}", flush=True)
        rows.append(row)
    return rows


def main() -> None:
    """Train and rank with every loss on every set; print a table a set, append a line a run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sets", nargs="+", choices=("ml-1m", "amazon-beauty"), default=["ml-1m", "amazon-beauty"])
    parser.add_argument("--model", choices=("sasrec", "bert4rec"), default="sasrec")
    parser.add_argument("--losses", nargs="+", choices=tuple(LOSSES), default=list(LOSSES))
    parser.add_argument("--seconds", type=float, default=300.0, help="of training, validations included")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="changes the configuration")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--data", type=Path, default=Path("runs/floors"), help="folder of the prepared sets")
    parser.add_argument("--out", type=Path, default=Path("runs/losses"), help="folder of the runs")
    options = parser.parse_args()
    for name in options.sets:
        print(table(compare(name, options)), flush=True)


if __name__ == "__main__":
    main()
