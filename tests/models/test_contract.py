"""What every registered model must hold: one list of checks, run on each."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from recsys.features.batches import JaggedBatch
from recsys.models import registry
from recsys.models.protocols import NextItemModel
from recsys.models.ranking.score import scores_of

V = 12
SMALL: dict[str, Any] = {"d_model": 16, "num_layers": 2, "num_heads": 2, "d_ff": 32, "max_len": 10}
VARIANTS: dict[str, dict[str, Any]] = {
    "pre": {},
    "post": {"norm": "post", "positions": "absolute", "activation": "relu"},
    "ligr": {"block": "ligr"},
}
FAITHFUL: dict[str, Any] = {
    "norm": "post",
    "norm_eps": 1e-12,
    "positions": "absolute",
    "token_type": True,
    "init": "truncated",
}
CASES = [
    *(pytest.param((name, keys), id=f"{name}-{kind}") for name in registry.names() for kind, keys in VARIANTS.items()),
    pytest.param(("bert4rec", FAITHFUL), id="bert4rec-faithful"),
]


@pytest.fixture(params=CASES)
def model(request: pytest.FixtureRequest) -> NextItemModel:
    name, variant = request.param
    torch.manual_seed(0)
    built = registry.build(name, {**SMALL, **variant}, V)
    assert isinstance(built, nn.Module)
    for parameter in built.parameters():  # weights of .02 would hide an error in a small difference
        if parameter.dim() > 1:
            parameter.data.normal_(std=0.3)
    return built


def batch_of(*sequences: list[int]) -> JaggedBatch:
    return JaggedBatch.from_sequences(sequences)


def as_module(model: NextItemModel) -> nn.Module:
    assert isinstance(model, nn.Module)
    return model


SEQUENCES = [[1, 2, 3], [4], [5, 6, 7, 8, 9, 1, 2], [3, 3, 12]]


def test_it_is_a_next_item_model(model: NextItemModel) -> None:
    assert isinstance(model, NextItemModel)
    assert model.max_len >= 1
    assert model.train_len >= 2


def test_states_and_vectors_have_one_width(model: NextItemModel) -> None:
    as_module(model).eval()
    states, vectors = model.encode(batch_of(*SEQUENCES)), model.item_vectors()
    assert states.shape == (4, vectors.shape[1])
    assert vectors.shape[0] == V + 1
    torch.testing.assert_close(model.item_vectors(torch.tensor([3, 1])), vectors[[3, 1]])


def test_padding_is_never_recommended(model: NextItemModel) -> None:
    as_module(model).eval()
    scores = scores_of(model, batch_of(*SEQUENCES))
    assert scores.shape == (4, V + 1)
    assert torch.isneginf(scores[:, 0]).all()
    assert torch.isfinite(scores[:, 1:]).all()


def test_a_sequence_does_not_depend_on_its_neighbours(model: NextItemModel) -> None:
    as_module(model).eval()
    together = model.encode(batch_of(*SEQUENCES))
    alone = torch.cat([model.encode(batch_of(sequence)) for sequence in SEQUENCES])
    reverse = model.encode(batch_of(*SEQUENCES[::-1])).flip(0)
    torch.testing.assert_close(together, alone)
    torch.testing.assert_close(together, reverse)


def test_order_and_every_item_of_the_history_count(model: NextItemModel) -> None:
    as_module(model).eval()
    states = model.encode(batch_of([1, 2, 3], [2, 1, 3], [4, 2, 3], [1, 2, 3, 3]))
    for other in range(1, 4):
        assert (states[0] - states[other]).abs().max() > 1e-3


def test_the_same_generator_gives_the_same_loss(model: NextItemModel) -> None:
    as_module(model).train()

    def loss(seed: int) -> float:
        torch.manual_seed(seed)
        return model.loss(batch_of(*SEQUENCES), torch.Generator().manual_seed(seed)).item()

    assert loss(1) == loss(1)
    assert loss(1) != loss(2)


def test_every_weight_gets_a_gradient(model: NextItemModel) -> None:
    module = as_module(model)
    total = {name: 0.0 for name, _ in module.named_parameters()}
    for seed in range(20):
        module.zero_grad()
        torch.autograd.backward(model.loss(batch_of(*SEQUENCES), torch.Generator().manual_seed(seed)))
        for name, parameter in module.named_parameters():
            assert parameter.grad is not None, name
            total[name] += float(parameter.grad.abs().sum())
    assert [name for name, value in total.items() if value == 0.0] == []


def test_untrained_loss_is_the_logarithm_of_the_number_of_items() -> None:
    for name in registry.names():
        torch.manual_seed(0)
        fresh = registry.build(name, SMALL, V)
        loss = fresh.loss(batch_of(*SEQUENCES), torch.Generator().manual_seed(0))
        assert abs(loss.item() - np.log(V)) < 0.1, name


@pytest.mark.parametrize("case", CASES)
def test_it_learns_that_each_item_is_followed_by_the_next(case: tuple[str, dict[str, Any]]) -> None:
    name, variant = case
    torch.manual_seed(0)
    model = registry.build(name, {**SMALL, **variant, "dropout": 0.0}, V)
    module = as_module(model)
    for parameter in module.parameters():  # so narrow a model needs larger weights to begin with
        if parameter.dim() > 1:
            parameter.data.normal_(std=0.2)
    optimizer = torch.optim.Adam(module.parameters(), lr=5e-3)
    generator = torch.Generator().manual_seed(0)
    for _ in range(80 if name == "sasrec" else 450):
        starts = torch.randint(0, V, (24,), generator=generator).tolist()
        batch = batch_of(*[[(start + i) % V + 1 for i in range(8)] for start in starts])
        optimizer.zero_grad()
        torch.autograd.backward(model.loss(batch, generator))
        optimizer.step()
    module.eval()
    histories = [[(start + i) % V + 1 for i in range(7)] for start in range(V)]
    best = scores_of(model, batch_of(*histories)).argmax(1).tolist()
    assert best == [(start + 7) % V + 1 for start in range(V)]


def test_a_history_of_max_len_is_read_and_a_longer_one_is_refused(model: NextItemModel) -> None:
    model.encode(batch_of([1] * model.max_len))
    with pytest.raises(ValueError, match="exceeds max_len=10"):
        model.encode(batch_of([1] * (model.max_len + 1)))


def test_a_sequence_of_train_len_trains_every_position_and_a_longer_one_is_refused(model: NextItemModel) -> None:
    generator = torch.Generator().manual_seed(0)
    torch.autograd.backward(model.loss(batch_of([i % V + 1 for i in range(model.train_len)]), generator))
    positions = dict(as_module(model).named_parameters())["encoder.position.weight"].grad
    assert positions is not None
    assert (positions.abs().sum(1) > 0).all()
    with pytest.raises(ValueError, match="exceeds max_len=10"):
        model.loss(batch_of([1] * (model.train_len + 1)), generator)


@pytest.mark.parametrize("name", registry.names())
def test_every_weight_of_a_truncated_start_lies_within_two_deviations(name: str) -> None:
    """Their norms keep ones and their biases zeros."""
    torch.manual_seed(0)
    keys = {"token_type": True} if name == "bert4rec" else {}
    for init, is_beyond in (("truncated", False), ("normal", True)):
        module = as_module(registry.build(name, {**SMALL, **keys, "init": init}, 1000))
        drawn = [parameter for parameter in module.parameters() if not ((parameter == 0) | (parameter == 1)).all()]
        assert len(drawn) >= 10
        assert any(bool((parameter.abs() > 0.04).any()) for parameter in drawn) == is_beyond


def test_attention_dropout_reaches_the_loss() -> None:
    torch.manual_seed(0)
    model = registry.build("sasrec", {**SMALL, "dropout": 0.0, "attention_dropout": 0.5}, V)
    losses = {model.loss(batch_of(*SEQUENCES), torch.Generator().manual_seed(seed)).item() for seed in range(3)}
    assert len(losses) == 3
    as_module(model).eval()
    losses = {model.loss(batch_of(*SEQUENCES), torch.Generator().manual_seed(seed)).item() for seed in range(3)}
    assert len(losses) == 1


def test_an_empty_sequence_is_refused(model: NextItemModel) -> None:
    with pytest.raises(ValueError, match="sequence 1 is empty"):
        model.encode(batch_of([1, 2], [], [3]))


def test_an_unknown_key_names_the_nearest() -> None:
    with pytest.raises(ValueError, match="d_modl: unknown key; did you mean 'd_model'"):
        registry.build("sasrec", {"d_modl": 8}, V)


def test_an_unknown_name_names_the_nearest() -> None:
    with pytest.raises(ValueError, match="model.name='sasrek': no such model; did you mean 'sasrec'"):
        registry.build("sasrek", {}, V)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("num_heads", 3, "d_model=16 must be a multiple of num_heads=3"),
        ("dropout", 1.0, r"dropout=1.0 must be in \[0, 1\)"),
        ("num_heads", 0, "num_heads=0 must be at least 1"),
        ("num_layers", 0, "num_layers=0 must be at least 1"),
        ("max_len", 0, "max_len=0 must be at least"),
        ("norm", "both", "wanted one of pre, post"),
        ("block", "gru", "wanted one of transformer, ligr"),
        ("norm_eps", 0.0, r"norm_eps=0.0 must be in \(0, 1\)"),
    ],
)
@pytest.mark.parametrize("name", registry.names())
def test_a_value_out_of_range_is_named(name: str, key: str, value: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        registry.build(name, {**SMALL, key: value}, V)
