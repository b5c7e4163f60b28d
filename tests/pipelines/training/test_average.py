"""The average of the weights: its formula, and that a run validates and keeps it and trains as it would without."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from torch.optim.optimizer import register_optimizer_step_post_hook

from recsys.errors import CheckpointError
from recsys.features.dataset import PreparedDataset
from recsys.features.prepare import PrepareConfig, SplitConfig, prepare
from recsys.pipelines.training import TrainResult, train
from recsys.pipelines.training.average import WeightAverage
from tests.pipelines.training.small import config_of


def run(data: PreparedDataset, out: Path, **keys: Any) -> TrainResult:
    return train(config_of(data, **{"epochs": 1, **keys}), out)


def weighted(weights: list[torch.Tensor], decay: float) -> torch.Tensor:
    """The definition: shares (1 - d) d^(T - t) of w_t, scaled to sum to 1."""
    shares = np.array([decay ** (len(weights) - 1 - t) for t in range(len(weights))])
    return sum((w * float(s) for w, s in zip(weights, shares / shares.sum(), strict=True)), torch.zeros(()))


def newest(out: Path) -> dict[str, torch.Tensor]:
    return load_file(sorted((out / "checkpoints").glob("step-*"))[-1] / "tensors.safetensors")


@pytest.mark.parametrize("decay", [0.5, 0.9, 0.999])
def test_the_average_is_the_weighted_mean_of_the_weights_after_each_step(decay: float) -> None:
    module = nn.Linear(3, 2)
    average = WeightAverage(module, decay)
    seen = []
    for step in range(1, 8):
        nn.init.normal_(module.weight)
        average.update(step)
        seen.append(module.weight.detach().clone())
        torch.testing.assert_close(average.by_name()["weight"], weighted(seen, decay), rtol=1e-5, atol=1e-6)


def test_the_weights_come_back_after_the_average_even_from_an_error() -> None:
    module = nn.Linear(3, 2)
    average = WeightAverage(module, 0.9)
    before = average.by_name()["weight"].clone()
    nn.init.normal_(module.weight)
    trained = module.weight.detach().clone()

    def fail_inside() -> None:
        with average.in_place():
            assert torch.equal(module.weight, before)
            raise KeyError

    with pytest.raises(KeyError):
        fail_inside()
    assert torch.equal(module.weight, trained)
    assert torch.equal(average.by_name()["weight"], before)


def test_a_run_keeps_the_average_of_its_weights(circle: PreparedDataset, tmp_path: Path) -> None:
    seen: list[torch.Tensor] = []

    def look(optimizer: torch.optim.Optimizer, *_: Any) -> None:
        seen.append(optimizer.param_groups[0]["params"][0].detach().clone())

    hook = register_optimizer_step_post_hook(look)
    try:
        result = run(circle, tmp_path / "run", ema=0.8)
    finally:
        hook.remove()
    kept = load_file(result.bundle / "weights.safetensors")["item.weight"]
    assert len(seen) == result.steps > 3
    torch.testing.assert_close(kept, weighted(seen, 0.8), rtol=1e-5, atol=1e-6)
    assert not torch.equal(kept, seen[-1])


def test_averaging_changes_what_is_validated_and_kept_and_nothing_of_the_training(
    circle: PreparedDataset, tmp_path: Path
) -> None:
    keys = {"epochs": 2, "lr": 3e-3}
    plain, averaged = run(circle, tmp_path / "plain", **keys), run(circle, tmp_path / "averaged", ema=0.95, **keys)
    with_average, without = newest(tmp_path / "averaged"), newest(tmp_path / "plain")
    trained = [key for key in without if key.startswith(("model.", "optimizer."))]
    assert trained
    assert all(torch.equal(with_average[key], without[key]) for key in trained)
    assert plain.validation != averaged.validation
    assert plain.weights_sha256 != averaged.weights_sha256


def test_without_validation_the_last_average_is_kept(circle: PreparedDataset, tmp_path: Path) -> None:
    """`loo-novalid` holds out no validation part, so there is no best epoch."""
    source = circle.path.parent / "clicks.csv"
    data = prepare(source, tmp_path / "data", PrepareConfig(split=SplitConfig(protocol="loo-novalid")))
    result = run(data, tmp_path / "run", ema=0.8)
    assert result.best_epoch is None
    kept = load_file(result.bundle / "weights.safetensors")["item.weight"]
    stored = newest(tmp_path / "run")
    assert torch.equal(kept, stored["average.item.weight"])
    assert not torch.equal(kept, stored["model.item.weight"])


def test_a_checkpoint_without_the_average_is_refused_by_name(tmp_path: Path) -> None:
    average = WeightAverage(nn.Linear(3, 2), 0.9)
    with pytest.raises(CheckpointError, match=r"holds no average of these weights \(train.ema=0.9\); remove it"):
        average.load({}, tmp_path)
