"""What is owed on a machine with a GPU, in one command: kernels, agreement with the CPU, speed, trainings to the end.

    python -m benchmarks.gpu --runs runs --out OUT [--device cuda] [--seconds 20] [--epochs 40] [--kernels-only]

First the tests of the kernels that need a GPU (where pytest is there) and `python -m benchmarks.kernels`, each in a
process of its own; then the models. Needs torch, triton, numpy, safetensors and PyYAML alone, and, for the models, the
prepared datasets runs/ml-1m/data and runs/amazon-beauty/data (`python -m benchmarks.path` makes them; they are copied
as they are). Writes OUT/gpu.json after every part, and OUT/kernels.json.
"""

import argparse
import importlib.util
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks.support.op_contests import path
from benchmarks.support.record import machine
from recsys import config as configs
from recsys.features.batches import TrainBatches, query_batches
from recsys.features.dataset import PreparedDataset
from recsys.models import registry
from recsys.models.bundle import load_bundle
from recsys.models.ranking.score import scores_of
from recsys.pipelines.evaluation.full_ranking import rank_targets
from recsys.pipelines.evaluation.metrics import metrics_per_query
from recsys.pipelines.optimization import build_batches, build_optimizer
from recsys.pipelines.run_config import TrainConfig
from recsys.pipelines.training import train

CONFIGS = ("ml-1m/sasrec", "ml-1m/bert4rec", "amazon-beauty/sasrec", "amazon-beauty/bert4rec")
WARM_UP_STEPS = 5
# The dataset's conftest needs packages that a bare machine lacks, and its versions may warn where ours do not.
KERNEL_TESTS = ("-m", "gpu", "-q", "-W", "default", "--confcutdir", "tests/kernels", "tests/kernels/gpu")


def kernel_tests(tests: Sequence[str] = KERNEL_TESTS) -> dict[str, Any]:
    """The outcome of the kernels' tests on the GPU, and the end of what they print."""
    if importlib.util.find_spec("pytest") is None:
        return {"skipped": "pytest is not installed"}
    run = subprocess.run([sys.executable, "-m", "pytest", *tests], capture_output=True, text=True, check=False)
    return {"exit_code": run.returncode, "output": (run.stdout + run.stderr)[-4000:]}


def kernel_speed(out: Path, device: str, more: Sequence[str] = ()) -> dict[str, Any]:
    """Every part of `benchmarks.kernels`, in OUT/kernels.json: how many, and which failed."""
    suite = ("h200",) if device == "cuda" else ("cpu", "--tiny")
    command = [sys.executable, "-m", "benchmarks.kernels", "--suite", *suite, "--out", str(out), *more]
    exit_code = subprocess.run(command, check=False).returncode
    file = out / "kernels.json"
    parts = json.loads(file.read_text(encoding="utf-8"))["parts"] if file.is_file() else {}
    return {"exit_code": exit_code, "parts": len(parts), "failed": [n for n, part in parts.items() if "error" in part]}


def load_config(name: str, runs: Path, device: str, epochs: int | None) -> TrainConfig:
    """The config of configs/, on this device."""
    mapping = configs.read(Path("configs") / f"{name}.yaml")
    mapping |= {"data": str(runs / name.split("/")[0] / "data")}
    mapping["train"] |= {"device": device, **({} if epochs is None else {"epochs": epochs})}
    return configs.load(TrainConfig, mapping)


def agreement(config: TrainConfig, device: str) -> dict[str, float]:
    """Largest difference of loss, gradients and scores between this device and the CPU, dropout off, float32."""
    dataset = PreparedDataset.open(config.data)
    found = {}
    for place in ("cpu", device):
        torch.manual_seed(0)
        model: Any = registry.build(config.model["name"], {**config.model_config, "dropout": 0.0}, dataset.num_items)
        model.to(place)
        batches = TrainBatches(dataset, max_len=model.train_len, tokens_per_batch=4096, seed=0)
        batch = next(iter(batches.epoch(0))).to(place)
        loss = model.loss(batch, torch.Generator().manual_seed(0))
        torch.autograd.backward(loss)
        gradients = torch.cat([parameter.grad.flatten().cpu() for parameter in model.parameters()])
        _, asked = next(iter(query_batches(dataset, dataset.queries("valid"), max_len=model.max_len, max_rows=64)))
        scores = scores_of(model.eval(), asked.to(place))[:, 1:].cpu()
        found[place] = (float(loss.detach()), gradients, scores)
    (loss_a, grad_a, score_a), (loss_b, grad_b, score_b) = found["cpu"], found[device]
    return {
        "loss": abs(loss_a - loss_b),
        "gradient_relative": float((grad_a - grad_b).norm() / grad_a.norm()),
        "score": float((score_a - score_b).abs().max()),
    }


def speed(config: TrainConfig, device: str, seconds: float, kernels: str = "auto") -> dict[str, Any]:
    """Real events per second of training steps by a path of the kernels, each timed to its end on the device."""
    with path(kernels):
        return _speed(config, device, seconds)


def _speed(config: TrainConfig, device: str, seconds: float) -> dict[str, Any]:
    dataset = PreparedDataset.open(config.data)
    model: Any = registry.build(config.model["name"], config.model_config, dataset.num_items)
    model.to(device).train()
    optimizer = build_optimizer(model, config.train)
    batches = build_batches(model, dataset, config.train, config.seed)
    speeds: list[float] = []
    until, number, epoch = time.perf_counter() + seconds, 0, 0
    while time.perf_counter() < until:
        for batch in batches.epoch(epoch):
            began = time.perf_counter()
            optimizer.zero_grad(set_to_none=True)
            torch.autograd.backward(model.loss(batch.to(device), torch.Generator().manual_seed(number)))
            optimizer.step()
            if device == "cuda":
                torch.cuda.synchronize()
            number += 1
            if number > WARM_UP_STEPS:
                speeds.append(len(batch.values) / (time.perf_counter() - began))
            if time.perf_counter() >= until:
                break
        epoch += 1
    return {"events_per_s": round(statistics.median(speeds)), "steps": len(speeds)}


def quality(config: TrainConfig, out: Path) -> dict[str, Any]:
    """Train to the end and rank the test part in full."""
    began = time.perf_counter()
    result = train(config, out)
    seconds = time.perf_counter() - began
    dataset, bundle = PreparedDataset.open(config.data), load_bundle(result.bundle)
    queries = dataset.queries("test")
    ranks = rank_targets(bundle.model, dataset, queries)
    figures = {name: float(value.mean()) for name, value in metrics_per_query(ranks, queries.target_offsets).items()}
    return {
        "seconds": round(seconds, 1),
        "epochs": result.epochs,
        "best_epoch": result.best_epoch,
        "protocol": dataset.protocol_string("test", "exclude"),
        "validation": result.validation,
        "test": figures,
    }


def _write(out: Path, report: dict[str, Any]) -> None:
    (out / "gpu.json").write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


def main() -> None:
    """Run every part for every config and write the JSON after each."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="folder of the prepared datasets")
    parser.add_argument("--out", type=Path, default=Path("runs/gpu"), help="folder for gpu.json and the runs")
    parser.add_argument("--device", default="cuda", help="cuda, or cpu to try the script")
    parser.add_argument("--seconds", type=float, default=20.0, help="of timed steps for each config")
    parser.add_argument("--epochs", type=int, default=None, help="of the trainings; those of each config by default")
    parser.add_argument("--only", default="", help="configs whose name holds this")
    parser.add_argument("--kernels-only", action="store_true", help="leave the models out")
    parser.add_argument("--no-kernels", action="store_true", help="leave the kernels out")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    report: dict[str, Any] = {"machine": machine(), "configs": {}}
    if not arguments.no_kernels:
        kernel_parts: dict[str, Callable[[], dict[str, Any]]] = {
            "kernel tests": kernel_tests,
            "kernel speed": partial(kernel_speed, arguments.out, arguments.device),
        }
        for part, measure in kernel_parts.items():
            report[part] = measure()
            _write(arguments.out, report)
            print(f"{part}: {json.dumps(report[part])}", flush=True)
    if arguments.kernels_only:
        return
    for name in (name for name in CONFIGS if arguments.only in name):
        config = load_config(name, arguments.runs, arguments.device, arguments.epochs)
        row = report["configs"].setdefault(name, {})
        parts: dict[str, Callable[[], dict[str, Any]]] = {
            "agreement": partial(agreement, config, arguments.device),
            "speed": partial(speed, config, arguments.device, arguments.seconds),
            "speed, torch path": partial(speed, config, arguments.device, arguments.seconds, "torch"),
            "quality": partial(quality, config, arguments.out / name.replace("/", "-")),
        }
        for part, measure in parts.items():
            row[part] = measure()
            _write(arguments.out, report)
            print(f"{name} {part}: {json.dumps(row[part])}", flush=True)


if __name__ == "__main__":
    main()
