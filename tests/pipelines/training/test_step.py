"""One optimizer step: what accumulation, clipping, the schedule and bf16 do to it, and that they do nothing else."""

import itertools
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from recsys.errors import ConfigError, TrainingDiverged
from recsys.features.batches import JaggedBatch, TrainBatches
from recsys.features.dataset import PreparedDataset
from recsys.models import registry
from recsys.models.protocols import CountsTargets, NextItemModel
from recsys.pipelines.optimization import OptimizationConfig, build_batches
from recsys.pipelines.training import seed_of_step, train
from recsys.pipelines.training.state import RunState
from recsys.pipelines.training.step import Stepper
from tests.pipelines.training.small import config_of, events_of

MODELS = ["sasrec", "bert4rec"]


def stepper_of(circle: PreparedDataset, name: str, **keys: Any) -> Stepper:
    config = config_of(circle, name, **keys)
    seed_of_step(config.seed, -1, 0)
    model = registry.build(name, config.model_config, circle.num_items)
    assert isinstance(model, nn.Module)
    return Stepper(model, model.train(), config, num_steps=10)


def batches_of(circle: PreparedDataset, n: int) -> list[JaggedBatch]:
    batches = TrainBatches(circle, max_len=12, tokens_per_batch=256, seed=5)
    return list(itertools.islice(batches.epoch(0), n))


def gradients(stepper: Stepper) -> dict[str, torch.Tensor]:
    return {
        name: parameter.grad.clone()
        for name, parameter in stepper.module.named_parameters()
        if parameter.grad is not None
    }


def test_accumulated_batches_are_one_large_batch(circle: PreparedDataset) -> None:
    """However many targets each has."""
    batches = TrainBatches(circle, max_len=12, tokens_per_batch=1, sequences_per_batch=30, seed=5)
    (whole, *_), sequences = batches.epoch(0), batches.plan(0)[0]
    parts = [batches.gather(rows) for rows in (sequences[:1], sequences[1:8], sequences[8:])]
    assert len({len(part.values) for part in parts}) == 3
    of_parts, of_whole = (stepper_of(circle, "sasrec", accumulate=n) for n in (3, 1))
    of_parts.module.eval(), of_whole.module.eval()  # no dropout
    losses = of_parts.take(parts, RunState(), 0.0), of_whole.take([whole], RunState(), 0.0)
    torch.testing.assert_close(*losses)
    for name, gradient in gradients(of_whole).items():
        torch.testing.assert_close(gradients(of_parts)[name], gradient, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("name", MODELS)
def test_the_gradient_of_a_step_is_the_mean_over_the_targets_of_its_batches(circle: PreparedDataset, name: str) -> None:
    group = batches_of(circle, 3)
    together = stepper_of(circle, name, accumulate=3)
    loss = together.take(group, RunState(), 0.0)
    alone = []
    for number, batch in enumerate(group):
        single = stepper_of(circle, name)
        state = RunState(step_in_epoch=number)
        assert isinstance(single.model, CountsTargets)
        count = single.model.num_targets(batch, seed_of_step(5, 0, number))
        alone.append((count, single.take([batch], state, 0.0), gradients(single)))
    total = sum(count for count, *_ in alone)
    torch.testing.assert_close(loss, torch.stack([count / total * each for count, each, _ in alone]).sum())
    for parameter, gradient in gradients(together).items():
        mean = torch.stack([count / total * each[parameter] for count, _, each in alone]).sum(0)
        torch.testing.assert_close(gradient, mean, rtol=1e-4, atol=1e-7)


def test_a_group_of_one_batch_is_that_batch(circle: PreparedDataset) -> None:
    (batch,) = batches_of(circle, 1)
    of_three, of_one = stepper_of(circle, "sasrec", accumulate=3), stepper_of(circle, "sasrec")
    of_three.take([batch], RunState(), 0.0)
    of_one.take([batch], RunState(), 0.0)
    first, second = gradients(of_three), gradients(of_one)
    assert all(torch.equal(first[key], second[key]) for key in second)


def test_steps_schedule_and_checkpoints_count_optimizer_steps(circle: PreparedDataset, tmp_path: Path) -> None:
    settings = {"tokens_per_batch": 128, "validate_every": 2}
    num_batches = train(config_of(circle, "sasrec", epochs=1, **settings), tmp_path / "one").steps
    accumulated = config_of(circle, "sasrec", epochs=2, accumulate=4, checkpoint_every=3, **settings)
    result = train(accumulated, tmp_path / "four")
    assert num_batches % 4, "were it a multiple, a lost last group would not be seen"
    assert result.steps == 2 * math.ceil(num_batches / 4)
    saved = [event["step"] for event in events_of(tmp_path / "four", "checkpoint")]
    ends = {math.ceil(num_batches / 4), result.steps}
    assert saved == sorted({*range(3, result.steps, 3), *ends})
    assert events_of(tmp_path / "four", "start")[0]["steps"] == result.steps


@pytest.mark.parametrize("clip", [None, 0.01])
def test_the_norm_of_the_gradient_is_cut_to_the_clip(circle: PreparedDataset, clip: float | None) -> None:
    stepper = stepper_of(circle, "sasrec", clip_norm=clip)
    stepper.take(batches_of(circle, 1), RunState(), 0.0)
    norm = torch.stack([gradient.norm() for gradient in gradients(stepper).values()]).norm().item()
    if clip is None:
        assert norm > 0.05
    else:
        assert norm == pytest.approx(clip, rel=1e-3)


def test_the_clip_cuts_the_gradient_of_the_whole_group(circle: PreparedDataset) -> None:
    stepper = stepper_of(circle, "sasrec", clip_norm=0.01, accumulate=2)
    stepper.take(batches_of(circle, 2), RunState(), 0.0)
    norm = torch.stack([gradient.norm() for gradient in gradients(stepper).values()]).norm().item()
    assert norm == pytest.approx(0.01, rel=1e-3)


def test_each_step_has_the_rate_of_its_number(circle: PreparedDataset) -> None:
    stepper = stepper_of(circle, "sasrec", warmup_steps=4, decay="linear")
    state, rates = RunState(), []
    for batch in [*batches_of(circle, 3), *batches_of(circle, 3)]:
        stepper.take([batch], state, 0.0)
        rates.append(stepper.optimizer.param_groups[0]["lr"])
    assert rates == pytest.approx([0.0025, 0.005, 0.0075, 0.01, 0.01, 0.01 * 5 / 6])
    assert (state.step, state.step_in_epoch) == (6, 6)


@pytest.mark.parametrize("name", MODELS)
def test_bf16_gives_nearly_the_same_loss_and_gradient_and_keeps_float32_weights(
    circle: PreparedDataset, name: str
) -> None:
    group = batches_of(circle, 1)
    exact, rounded = stepper_of(circle, name), stepper_of(circle, name, precision="bf16")
    losses = [stepper.take(group, RunState(), 0.0) for stepper in (exact, rounded)]
    assert losses[0] != losses[1], "nothing was rounded"
    assert losses[1].item() == pytest.approx(losses[0].item(), rel=0.01)
    wanted, found = (torch.cat([value.flatten() for value in gradients(s).values()]) for s in (exact, rounded))
    assert torch.nn.functional.cosine_similarity(wanted, found, dim=0) > 0.99
    assert {parameter.dtype for parameter in rounded.module.parameters()} == {torch.float32}
    slots = [value for slot in rounded.optimizer.state.values() for value in slot.values()]
    assert {value.dtype for value in slots} == {torch.float32}


@pytest.mark.parametrize("name", MODELS)
def test_a_bf16_run_ends_near_the_float32_run(circle: PreparedDataset, tmp_path: Path, name: str) -> None:
    """Both trained until they know the circle: on the way there the two differ by as much as two seeds do."""
    keys = {"epochs": 15} if name == "sasrec" else {"epochs": 80, "lr": 3e-3}
    figures = [
        train(
            config_of(circle, name, precision=precision, patience=None, validate_every=2, **keys), tmp_path / precision
        ).validation["ndcg@10"]
        for precision in ("float32", "bf16")
    ]
    assert figures[0] > 0.85
    assert abs(figures[0] - figures[1]) < 0.05


def test_the_settings_of_a_step_are_checked() -> None:
    for keys, message in (
        ({"ema": 1.0}, r"ema=1.0 must be in \(0, 1\), such as 0.999, or null"),
        ({"ema": 0.0}, "ema=0.0 must be in"),
        ({"accumulate": 0}, "accumulate=0 must be at least 1"),
        ({"clip_norm": -1.0}, "clip_norm=-1.0 must be above 0, or null"),
        ({"clip_norm": 0.0}, "clip_norm=0.0 must be above 0, or null"),
        ({"clip_norm": math.nan}, "clip_norm=nan must be above 0, or null"),
        ({"warmup_steps": -3}, "warmup_steps=-3 must be at least 0"),
        ({"weight_decay": -1.0}, "weight_decay=-1.0 must be at least 0"),
        ({"weight_decay": math.inf}, "weight_decay=inf must be at least 0"),
        ({"beta2": 1.0}, r"beta2=1.0 must be in \[0, 1\)"),
        ({"beta2": -0.1}, r"beta2=-0.1 must be in \[0, 1\)"),
        ({"threads": 100_000}, "threads=100000 must be at most 1,024, or null"),
    ):
        with pytest.raises(ValueError, match=message):
            OptimizationConfig(**keys)


def test_a_batch_that_holds_no_sequence_is_refused(circle: PreparedDataset) -> None:
    config = config_of(circle, tokens_per_batch=12)
    model = registry.build("sasrec", config.model_config, circle.num_items)
    assert isinstance(model, NextItemModel)
    with pytest.raises(ConfigError, match="train.tokens_per_batch=12 is less than one sequence of 13 events"):
        build_batches(model, circle, config.train, seed=0)


def test_a_weight_that_is_not_finite_is_named_before_it_is_saved(circle: PreparedDataset) -> None:
    stepper = stepper_of(circle, "sasrec")
    stepper.check_weights(RunState())
    with torch.no_grad():
        next(iter(stepper.module.parameters()))[1, 0] = float("nan")
    with pytest.raises(TrainingDiverged, match=r"item.weight is not finite at step 7 .*the last checkpoint is kept"):
        stepper.check_weights(RunState(step=7))
