"""A model whose item vectors stand in a table: through training, resume, bundle, evaluation, and the next day."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from benchmarks.support.killed_run import KilledRun
from recsys import config as configs
from recsys.errors import ConfigError, TrainingDiverged
from recsys.features.dataset import PreparedDataset
from recsys.models import registry
from recsys.models.bundle import check_golden, load_bundle
from recsys.models.item_table import TableItems
from recsys.models.protocols import rows_of
from recsys.models.warm_start import warm_start
from recsys.pipelines.evaluation.report import evaluate_bundle
from recsys.pipelines.optimization import clip_gradients
from recsys.pipelines.recommend import recommend_sequence
from recsys.pipelines.run_config import TrainConfig
from recsys.pipelines.tracking.pyfunc import BundleModel
from recsys.pipelines.training import train
from recsys.pipelines.training.state import RunState
from recsys.pipelines.training.step import Stepper
from tests.pipelines.training.small import config_of
from tests.pipelines.training.test_step import batches_of

NAMES = ["sasrec", "bert4rec"]
TABLE: dict[str, Any] = {"embedding": "table"}


def with_table(config: TrainConfig, **inputs: Any) -> TrainConfig:
    return replace(config, model={**config.model, "inputs": {**TABLE, **inputs}})


def stepper_of(circle: PreparedDataset, config: TrainConfig) -> Stepper:
    torch.manual_seed(0)
    model = registry.build(config.model["name"], config.model_config, circle.num_items)
    assert isinstance(model, nn.Module)
    return Stepper(model, model.train(), config, num_steps=6)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("clip_norm", [None, 0.05])
def test_rows_follow_schedule_clipping_and_accumulation_as_a_matrix_does(
    circle: PreparedDataset, name: str, clip_norm: float | None
) -> None:
    keys: dict[str, Any] = {"clip_norm": clip_norm, "warmup_steps": 3, "decay": "cosine", "accumulate": 2}
    config = config_of(circle, name, **keys)
    config = replace(config, model={**config.model, "dropout": 0.0})
    table, dense = stepper_of(circle, with_table(config)), stepper_of(circle, config)
    items = table.module.get_submodule("item")
    assert isinstance(items, TableItems)
    items.output_vectors()
    rows, width = items.all_rows(), items.d_model
    state = {key: value for key, value in table.module.state_dict().items() if not key.startswith("item.rows.")}
    state |= {"item.weight": rows[:, :width]} | ({"bias": rows[:, width]} if items.has_bias else {})
    dense.module.load_state_dict(state)
    states, batches = (RunState(), RunState()), batches_of(circle, 2) * 4
    for at in range(0, 8, 2):
        losses = [stepper.take(batches[at : at + 2], s, 0.0) for stepper, s in zip((table, dense), states, strict=True)]
        torch.testing.assert_close(*losses, rtol=0, atol=1e-5)
    found, wanted = items.all_rows()[:, :width], dense.module.get_parameter("item.weight")
    torch.testing.assert_close(found[1:], wanted[1:], rtol=0, atol=2e-5)
    assert float((found - rows[:, :width]).abs().max()) > 5e-3, "it trained"


def test_clipping_measures_parameters_and_rows_together(circle: PreparedDataset) -> None:
    """Without the rows the length would be below the limit, and nothing would be clipped."""
    (batch,) = batches_of(circle, 1)
    lengths: dict[str, float] = {}
    stepper = stepper_of(circle, with_table(config_of(circle)))
    torch.autograd.backward(stepper.model.loss(batch, torch.Generator().manual_seed(0)))
    (part,) = rows_of(stepper.module).values()
    lengths["rows"] = float(part.gradient_norm())
    grads = [p.grad for p in stepper.module.parameters() if p.grad is not None]
    lengths["parameters"] = float(nn.utils.get_total_norm(grads))
    total = float(np.hypot(lengths["rows"], lengths["parameters"]))
    assert total > max(lengths.values()) * 1.01
    clip_gradients(stepper.module, [part], total / 4)
    assert float(part.gradient_norm()) == pytest.approx(lengths["rows"] / 4, rel=1e-4)
    assert float(nn.utils.get_total_norm(grads)) == pytest.approx(lengths["parameters"] / 4, rel=1e-4)
    clip_gradients(stepper.module, [part], total)
    assert float(part.gradient_norm()) == pytest.approx(lengths["rows"] / 4, rel=1e-4)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"ema": 0.9}, "train.ema=0.9 keeps an average of parameters, and the rows of item.rows are none"),
        ({"optimizer": "bert_adam"}, "train.optimizer=bert_adam does not reach the rows of item.rows"),
    ],
)
def test_settings_that_do_not_reach_the_rows_are_refused(
    circle: PreparedDataset, tmp_path: Path, keys: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        train(with_table(config_of(circle, **keys)), tmp_path / "run")


def test_a_row_that_is_not_finite_ends_the_run(circle: PreparedDataset) -> None:
    stepper = stepper_of(circle, with_table(config_of(circle)))
    stepper.take(batches_of(circle, 1), RunState(), 0.0)
    stepper.check_weights(RunState())
    items = stepper.module.get_submodule("item")
    assert isinstance(items, TableItems)
    items.put_rows(torch.full((circle.num_items + 1, items.d_model), torch.nan))
    with pytest.raises(TrainingDiverged, match="a row of item.rows is not finite at step 0"):
        stepper.check_weights(RunState())


def test_kills_change_no_byte(circle: PreparedDataset, tmp_path: Path) -> None:
    keys = {"clip_norm": 0.5, "decay": "cosine", "tokens_per_batch": 128, "checkpoint_every": 3}
    config = with_table(config_of(circle, "bert4rec", patience=None, **keys), id_dropout=0.1)
    file = tmp_path / "run.json"
    file.write_text(json.dumps(configs.dump(config)))
    whole, run = KilledRun(file, tmp_path / "whole"), KilledRun(file, tmp_path / "killed")
    wanted = whole.finish()
    deaths = [run.kill_at_step(5), run.kill_at_epoch_end(0)]
    assert max(death.resumed_from for death in deaths) > 0
    assert run.finish() == wanted


@pytest.mark.parametrize("name", NAMES)
def test_from_training_to_recommendations_and_the_next_day(circle: PreparedDataset, tmp_path: Path, name: str) -> None:
    epochs = 10 if name == "sasrec" else 30
    config = with_table(config_of(circle, name, epochs=epochs, patience=None, validate_every=epochs))
    result = train(config, tmp_path / "run")
    assert result.validation["ndcg@10"] > 0.5
    bundle = load_bundle(result.bundle)
    assert check_golden(bundle) == []
    report = evaluate_bundle(tmp_path / "run", circle.path)
    assert report.evaluation.metrics[name]["ndcg@10"].mean > 0.5
    history = [str(item) for item in circle.items.decode(np.array([1, 2, 3, 4]))]
    ranked = recommend_sequence(result.bundle, history, 5)
    assert ranked.source == "model"
    assert ranked.unknown == []
    pandas = pytest.importorskip("pandas", reason="needs the extra tracking")
    answer = BundleModel(result.bundle).predict(pandas.DataFrame({"sequence": [history], "k": [5]}))
    assert answer["item_ids"][0] == ranked.item_ids
    assert answer["scores"][0] == pytest.approx(ranked.scores)
    warm = replace(config, warm_start=str(result.bundle), train=replace(config.train, epochs=1, lr=1e-4))
    again = train(warm, tmp_path / "warm")
    assert again.validation["ndcg@10"] > 0.5


@pytest.mark.parametrize("name", NAMES)
def test_a_warm_start_takes_every_row(circle: PreparedDataset, tmp_path: Path, name: str) -> None:
    config = with_table(config_of(circle, name, epochs=1))
    bundle = load_bundle(train(config, tmp_path / "run").bundle)
    torch.manual_seed(7)
    fresh: Any = registry.build(name, config.model_config, circle.num_items)
    assert warm_start(fresh, bundle, name, config.model_config, circle) == circle.num_items
    fresh.eval()
    assert torch.equal(fresh.item_vectors(), bundle.model.item_vectors())
    plain = config_of(circle, name).model_config
    with pytest.raises(ConfigError, match=r"has inputs.embedding=table, this run inputs.embedding=dense"):
        warm_start(registry.build(name, plain, circle.num_items), bundle, name, plain, circle)
