"""Every loss with every model, on the circle: 20 items, each followed by the next one."""

from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any, get_args, get_type_hints

import numpy as np
import pytest
import torch
from torch import nn

from recsys import config as configs
from recsys.errors import ConfigError
from recsys.features.batches import JaggedBatch, TrainBatches
from recsys.features.dataset import PreparedDataset
from recsys.kernels.linear_cross_entropy import linear_cross_entropy
from recsys.kernels.sampled_loss import sampled_loss
from recsys.models import registry
from recsys.models.bundle import load_bundle
from recsys.models.item_inputs import DenseItems, ItemInputsConfig
from recsys.models.losses import LossConfig, Objective, gbce_beta
from recsys.models.protocols import NextItemModel, ReadsDataset
from recsys.models.sasrec import SASRec, SASRecConfig
from recsys.pipelines.run_config import TrainConfig
from recsys.pipelines.training import train

SMALL: dict[str, Any] = {"d_model": 16, "num_layers": 1, "num_heads": 2, "d_ff": 32, "max_len": 20, "dropout": 0.0}
LOSSES: list[dict[str, Any]] = [
    {"kind": "ce"},
    {"kind": "ce", "logits": "bfloat16"},
    {"kind": "sampled_softmax", "num_negatives": 8},
    {"kind": "sampled_softmax", "num_negatives": 8, "shared": "sequence"},
    {"kind": "sampled_softmax", "num_negatives": 8, "shared": "none"},
    {"kind": "bce", "num_negatives": 8},
    {"kind": "bce", "num_negatives": 1, "shared": "none"},
    {"kind": "gbce", "num_negatives": 8},
    {"kind": "gbce", "num_negatives": 8, "shared": "sequence"},
    {"kind": "mixed_logq", "num_negatives": 8},
]
NAMES = sorted(registry.BUILT_IN)


def build(name: str, dataset: PreparedDataset, loss: dict[str, Any], seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    model = registry.build(name, {**SMALL, "loss": loss}, dataset.num_items)
    assert isinstance(model, nn.Module)
    assert isinstance(model, ReadsDataset)
    for parameter in model.parameters():  # so narrow a model needs larger weights to begin with
        if parameter.dim() > 1:
            parameter.data.normal_(std=0.2)
    model.read(dataset)
    return model


def batches(dataset: PreparedDataset, epochs: int) -> Iterator[JaggedBatch]:
    source = TrainBatches(dataset, max_len=20, tokens_per_batch=300, seed=0)
    for epoch in range(epochs):
        yield from source.epoch(epoch)


def loss_of(model: nn.Module, batch: JaggedBatch, seed: int = 0) -> torch.Tensor:
    assert isinstance(model, NextItemModel)
    return model.loss(batch, torch.Generator().manual_seed(seed))


def ids(loss: dict[str, Any]) -> str:
    return "-".join(map(str, loss.values()))


@pytest.mark.parametrize("loss", LOSSES, ids=ids)
@pytest.mark.parametrize("name", NAMES)
def test_it_falls_while_the_next_item_is_learnt(circle: PreparedDataset, name: str, loss: dict[str, Any]) -> None:
    model = build(name, circle, loss)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    values = []
    epochs, share = (10, 0.6) if name == "sasrec" else (30, 0.85)
    for step, batch in enumerate(batches(circle, epochs)):
        value = loss_of(model, batch, step)
        optimizer.zero_grad()
        torch.autograd.backward(value)
        optimizer.step()
        values.append(value.item())
    assert np.mean(values[-10:]) < share * np.mean(values[:3])


@pytest.mark.parametrize("loss", LOSSES, ids=ids)
@pytest.mark.parametrize("name", NAMES)
def test_every_weight_gets_a_gradient(circle: PreparedDataset, name: str, loss: dict[str, Any]) -> None:
    model = build(name, circle, loss)
    total = {key: torch.zeros_like(parameter) for key, parameter in model.named_parameters()}
    for seed, batch in enumerate(batches(circle, 3)):
        model.zero_grad()
        torch.autograd.backward(loss_of(model, batch, seed))
        for key, parameter in model.named_parameters():
            assert parameter.grad is not None, key
            total[key] += parameter.grad.abs()
    assert [key for key, value in total.items() if not float(value.sum()) > 0] == []
    item_rows = total["item.weight"].sum(1)
    assert (item_rows[1:] > 0).all()


@pytest.mark.parametrize("loss", LOSSES, ids=ids)
@pytest.mark.parametrize("name", NAMES)
def test_the_generator_decides_it(circle: PreparedDataset, name: str, loss: dict[str, Any]) -> None:
    model = build(name, circle, loss).eval()
    batch = next(batches(circle, 1))
    assert loss_of(model, batch, 1).item() == loss_of(model, batch, 1).item()
    if name == "sasrec":  # in BERT4Rec the masks differ already
        assert (loss_of(model, batch, 1).item() == loss_of(model, batch, 2).item()) == (loss["kind"] == "ce")


@pytest.mark.parametrize("name", NAMES)
def test_every_setting_changes_it(circle: PreparedDataset, name: str) -> None:
    mixed = {"kind": "mixed_logq", "num_negatives": 8, "uniform_share": 0.9}
    more = [{"kind": "gbce", "num_negatives": 8, "gbce_t": 0.5}, {"kind": "gbce", "num_negatives": 9}, mixed]
    batch = next(batches(circle, 1))
    values = [loss_of(build(name, circle, loss).eval(), batch).item() for loss in [*LOSSES, *more]]
    assert len(set(values)) == len(values)


def test_the_default_is_the_full_cross_entropy_to_the_bit(circle: PreparedDataset) -> None:
    torch.manual_seed(0)
    model = SASRec(SASRecConfig(**SMALL), circle.num_items)
    sequence = [3, 4, 5, 9]
    batch = JaggedBatch.from_sequences([sequence])
    states = model.encoder(model.item(batch.values[:-1]), (3,))
    wanted = linear_cross_entropy(states, model.get_parameter("item.weight")[1:], batch.values[1:] - 1)
    assert torch.equal(model.loss(batch, torch.Generator()), wanted)


def objective(dataset: PreparedDataset, **settings: Any) -> Objective:
    made = Objective(LossConfig(**settings), dataset.num_items)
    made.read(dataset)
    return made


def items_of(vectors: torch.Tensor) -> DenseItems:
    """Items 1..V with these vectors (V, D)."""
    made = DenseItems(ItemInputsConfig(), *vectors.shape)
    made.weight.data[1:] = vectors
    return made


def test_a_sequence_meets_no_item_its_user_trained_on_and_every_other_one(circle: PreparedDataset) -> None:
    """Items of the validation and test part are negatives as well: leaving them out would tell the answer."""
    made = objective(circle, kind="bce", shared="sequence", num_negatives=19)
    items = items_of(torch.zeros(circle.num_items, 1))
    slices = circle.train_slices()
    row = int(np.argmin(slices.lengths))
    seen = slices.gather(row)[0].tolist()
    batch = JaggedBatch.from_sequences([seen[-2:]], users=[int(slices.user[row])])
    loss = made(torch.ones(1, 1), torch.tensor([1]), items, None, batch, torch.Generator())
    (grad,) = torch.autograd.grad(loss, items.weight)
    met = set((grad.squeeze(1) > 0).nonzero().squeeze(1).tolist())
    assert met == set(range(1, circle.num_items + 1)) - set(seen)
    assert grad[seen[-1]] < 0


def test_each_row_meets_the_list_of_its_own_sequence(circle: PreparedDataset) -> None:
    """Rows one by one, the first and the last of each sequence too: no item their user trained on gets a push down."""
    made = objective(circle, kind="bce", shared="sequence", num_negatives=19)
    slices = circle.train_slices()
    rows = np.argsort(slices.lengths, kind="stable")[:3]
    histories = [slices.gather(row)[0].tolist() for row in rows]
    batch = JaggedBatch.from_sequences(histories, users=slices.user[rows].tolist())
    sequence = np.repeat(np.arange(3), slices.lengths[rows])
    for place in range(len(batch.values)):
        items = items_of(torch.zeros(circle.num_items, 1))
        loss = made(torch.ones(1, 1), torch.tensor([place]), items, None, batch, torch.Generator())
        (grad,) = torch.autograd.grad(loss, items.weight)
        met = set((grad.squeeze(1) > 0).nonzero().squeeze(1).tolist())
        assert met == set(range(1, circle.num_items + 1)) - set(histories[sequence[place]])


def test_the_objective_is_the_kernel_on_its_draws(circle: PreparedDataset) -> None:
    made = objective(circle, kind="gbce", num_negatives=5, gbce_t=0.5)
    states, weight, bias = torch.randn(3, 4), torch.randn(20, 4), torch.randn(20)
    batch = JaggedBatch.from_sequences([[1, 2], [5, 6, 7]])
    places = torch.tensor([1, 3, 4])
    found = made(
        states, places, items_of(weight), torch.cat([torch.zeros(1), bias]), batch, torch.Generator().manual_seed(3)
    )
    drawn = torch.randperm(20, generator=torch.Generator().manual_seed(3))[:5]
    beta = 1 - 0.5 * (1 - 5 / 19)
    wanted = sampled_loss(states, weight, torch.tensor([1, 5, 6]), drawn, kind="gbce", bias=bias, beta=beta)
    torch.testing.assert_close(found, wanted, rtol=0, atol=0)


def test_the_negatives_of_mixed_logq_come_from_the_training_counts(circle: PreparedDataset) -> None:
    counts = circle.train_counts()[1:]
    log_q = objective(circle, kind="mixed_logq", num_negatives=4, uniform_share=0.25).log_q
    assert log_q is not None
    np.testing.assert_allclose(log_q.exp().numpy(), 0.75 * counts / counts.sum() + 0.25 / len(counts), rtol=1e-5)


def test_gbce_beta_is_that_of_the_paper() -> None:
    for t in (0.0, 0.75, 1.0):
        alpha = 256 / 3415
        assert gbce_beta(256, 3416, t) == pytest.approx(alpha * (t * (1 - 1 / alpha) + 1 / alpha))
    assert gbce_beta(256, 3416, 0.0) == 1.0


@pytest.mark.parametrize(
    ("loss", "message"),
    [
        ({"kind": "mixed_logq", "num_negatives": 4}, "loss.kind=mixed_logq needs the training counts; call read"),
        (
            {"kind": "bce", "num_negatives": 4, "shared": "sequence"},
            "loss.shared=sequence needs the users' items; call",
        ),
    ],
)
@pytest.mark.parametrize("name", NAMES)
def test_a_loss_that_needs_the_dataset_says_so(name: str, loss: dict[str, Any], message: str) -> None:
    model: Any = registry.build(name, {**SMALL, "loss": loss}, 20)
    with pytest.raises(ValueError, match=message):
        model.loss(JaggedBatch.from_sequences([[1, 2, 3]]), torch.Generator())


def test_sequences_without_users_are_refused(circle: PreparedDataset) -> None:
    model: Any = build("sasrec", circle, {"kind": "bce", "num_negatives": 4, "shared": "sequence"})
    with pytest.raises(ValueError, match="batch.users is None; loss.shared=sequence needs the user"):
        model.loss(JaggedBatch.from_sequences([[1, 2, 3]]), torch.Generator())


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("num_negatives", 0, "num_negatives=0 must be at least 1"),
        ("gbce_t", 1.5, r"gbce_t=1.5 must be in \[0, 1\]"),
        ("uniform_share", 0.0, r"uniform_share=0.0 must be in \(0, 1\]"),
        ("kind", "hinge", "model sasrec: loss.kind='hinge': wanted one of ce, sampled_softmax, bce, gbce, mixed_logq"),
        ("num_negative", 3, "loss.num_negative: unknown key; did you mean 'num_negatives'"),
    ],
)
def test_a_setting_out_of_range_is_named(key: str, value: object, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        registry.build("sasrec", {"loss": {key: value}}, 20)


def test_mixed_logq_shares_its_negatives_with_the_batch() -> None:
    with pytest.raises(ValueError, match="shared='sequence' is not for kind='mixed_logq'"):
        LossConfig(kind="mixed_logq", shared="sequence")


def test_bfloat16_logits_are_for_the_full_cross_entropy() -> None:
    with pytest.raises(ValueError, match="logits='bfloat16' is for kind='ce', not 'bce'"):
        LossConfig(kind="bce", logits="bfloat16")


def test_a_catalogue_smaller_than_the_negatives_is_refused(circle: PreparedDataset) -> None:
    made = Objective(LossConfig(kind="bce", num_negatives=20), 20)
    message = "model.loss.num_negatives=20 is not below the 20 items; lower it, or set model.loss.kind=ce"
    with pytest.raises(ConfigError, match=message):
        made.read(circle)
    with pytest.raises(ConfigError, match=message):
        made(torch.ones(1, 1), torch.tensor([1]), items_of(torch.ones(20, 1)), None, _pair(), torch.Generator())


def test_the_page_names_every_setting_and_every_choice() -> None:
    page = (Path(__file__).parents[2] / "docs" / "losses.md").read_text(encoding="utf-8")
    hints = get_type_hints(LossConfig)
    names = {field.name for field in fields(LossConfig)} | {name for hint in hints.values() for name in get_args(hint)}
    assert {"num_negatives", "mixed_logq", "sequence"} <= names
    assert [name for name in names if f"`{name}`" not in page] == []


def _pair() -> JaggedBatch:
    return JaggedBatch.from_sequences([[1, 2]])


@pytest.mark.parametrize("loss", ["mixed_logq", "gbce"])
@pytest.mark.parametrize("name", NAMES)
def test_a_run_trains_with_it_and_its_bundle_needs_no_dataset(
    circle: PreparedDataset, tmp_path: Path, name: str, loss: str
) -> None:
    shared = "batch" if loss == "mixed_logq" else "sequence"
    settings = configs.override(
        {"data": str(circle.path), "model": {"name": name, **SMALL}},
        [f"model.loss.kind={loss}", "model.loss.num_negatives=6", f"model.loss.shared={shared}", "train.epochs=1"],
    )
    result = train(configs.load(TrainConfig, settings), tmp_path / "run")
    bundle = load_bundle(result.bundle)
    assert bundle.config["loss"]["kind"] == loss
    assert result.validation["ndcg@10"] > 0
