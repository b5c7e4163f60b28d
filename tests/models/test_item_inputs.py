from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from recsys.errors import ConfigError
from recsys.features.batches import JaggedBatch
from recsys.models import registry
from recsys.models.item_inputs import DenseItems, ItemInputsConfig, inputs_of
from recsys.models.protocols import NextItemModel, ReadsDataset
from tests.models.small import EVERYTHING, SMALL, D, V
from tests.worlds import described_world

NAMES = sorted(registry.BUILT_IN)


def built(name: str, **inputs: Any) -> NextItemModel:
    torch.manual_seed(0)
    model = registry.build(name, {**SMALL, "inputs": inputs}, V)
    assert isinstance(model, nn.Module)
    for parameter in model.parameters():  # weights of .02 would hide an error in a small difference
        if parameter.dim() > 1:
            parameter.data.normal_(std=0.3)
    if "item.categories" in model.state_dict():
        model.get_buffer("item.categories").copy_(torch.arange(V + 1) % 4)
    if "item.vectors" in model.state_dict():
        model.get_buffer("item.vectors").normal_(generator=torch.Generator().manual_seed(1))
    return model


def inputs(**settings: Any) -> DenseItems:
    torch.manual_seed(0)
    config = ItemInputsConfig(**{**settings, "event_type_names": tuple(settings.get("event_type_names", ()))})
    return DenseItems(config, V, D)


def batch_of(event_types: list[list[int]] | None = None) -> JaggedBatch:
    return JaggedBatch.from_sequences([[1, 2, 3, 4], [5, 6]], event_types=event_types)


def test_without_side_columns_it_is_an_embedding_to_the_bit() -> None:
    found = inputs()
    torch.manual_seed(0)
    plain = nn.Embedding(V + 1, D, padding_idx=0)
    assert list(found.state_dict()) == ["weight"]
    assert torch.equal(found.weight, plain.weight)
    ids = torch.tensor([3, 1, 3])
    generator = torch.Generator().manual_seed(5)
    state = generator.get_state()
    assert torch.equal(found.tokens(ids, torch.tensor([1, 2, 0]), generator), plain(ids))
    assert torch.equal(generator.get_state(), state), "the draws of masks and negatives would be others"
    assert found.output_vectors() is found.weight
    assert torch.equal(found.output_vectors(ids), plain.weight[ids])


@pytest.mark.parametrize("name", NAMES)
def test_side_columns_add_names_to_the_weights_and_change_none(name: str) -> None:
    plain, full = built(name), built(name, **EVERYTHING)
    assert isinstance(plain, nn.Module)
    assert isinstance(full, nn.Module)
    added = {"event_type.weight", "category.weight", "adapter.weight", "unknown", "categories", "vectors", "is_trained"}
    assert set(full.state_dict()) - set(plain.state_dict()) == {f"item.{key}" for key in added}


@pytest.mark.parametrize("name", NAMES)
def test_every_weight_of_every_input_gets_a_gradient(name: str) -> None:
    model = built(name, **EVERYTHING)
    assert isinstance(model, nn.Module)
    total = {key: 0.0 for key, _ in model.named_parameters()}
    for seed in range(20):
        model.zero_grad()
        batch = batch_of([[1, 2, 1, 2], [0, 1]])
        torch.autograd.backward(model.loss(batch, torch.Generator().manual_seed(seed)))
        for key, parameter in model.named_parameters():
            total[key] += 0.0 if parameter.grad is None else float(parameter.grad.abs().sum())
    assert [key for key, value in total.items() if value == 0.0] == []


@pytest.mark.parametrize("name", NAMES)
def test_the_type_of_a_past_event_changes_the_state_and_an_unknown_one_adds_nothing(name: str) -> None:
    model = built(name, event_types=True, event_type_names=["view", "buy"])
    assert isinstance(model, nn.Module)
    model.eval()
    model.get_parameter("item.event_type.weight").data[0].zero_()  # `built` filled it
    untold, zeros = model.encode(batch_of()), model.encode(batch_of([[0] * 4, [0] * 2]))
    told, grown = model.encode(batch_of([[0, 2, 0, 0], [0, 0]])), model.encode(batch_of([[0, 9, 0, 0], [0, 0]]))
    torch.testing.assert_close(untold, zeros)
    torch.testing.assert_close(zeros, grown)  # a type that came after training
    assert (told[0] - zeros[0]).abs().max() > 1e-3
    torch.testing.assert_close(told[1], zeros[1])


@pytest.mark.parametrize("name", NAMES)
def test_the_type_of_the_event_to_predict_is_not_told(name: str) -> None:
    """At inference the next event's type is not known: the loss must not read it."""
    masking = {"last_item_share": 1.0} if name == "bert4rec" else {}
    config = {"inputs": {"event_types": True, "event_type_names": ["view", "buy"]}, **SMALL, **masking}
    model = registry.build(name, config, V)
    batches = [JaggedBatch.from_sequences([[1, 2]], event_types=[[1, kind]]) for kind in (1, 2)]
    losses = {model.loss(batch, torch.Generator().manual_seed(0)).item() for batch in batches}
    assert len(losses) == 1


@pytest.mark.parametrize("name", NAMES)
def test_category_and_vector_stand_on_both_sides(name: str) -> None:
    model = built(name, categories=True, num_categories=3, frozen_vectors=True, vector_width=5)
    assert isinstance(model, nn.Module)
    model.eval()
    state, vectors = model.encode(batch_of())[0].clone(), model.item_vectors().clone()
    for key, other in (("item.categories", 1), ("item.vectors", 1.0)):
        column = model.get_buffer(key)
        before = column[4].clone()
        column[4] = other
        assert (model.encode(batch_of())[0] - state).abs().max() > 1e-3, key
        moved = (model.item_vectors() - vectors).abs().amax(1)
        assert moved[4] > 1e-3
        assert moved.count_nonzero() == 1
        column[4] = before
    torch.testing.assert_close(model.item_vectors(torch.tensor([7, 2])), vectors[[7, 2]])


def test_an_untrained_item_has_its_content_alone() -> None:
    found = inputs(categories=True, num_categories=3)
    found.is_trained[2] = False
    found.categories.copy_(torch.arange(V + 1) % 4)
    assert found.category is not None
    expected = found.category.weight[2]
    assert torch.equal(found.output_vectors()[2], expected)
    assert torch.equal(found.output_vectors(torch.tensor([2]))[0], expected)
    assert torch.equal(found.tokens(torch.tensor([2]))[0], expected)
    assert not torch.equal(found.output_vectors()[6], found.category.weight[2])


def test_id_dropout_replaces_the_told_share_of_ids_in_training_alone() -> None:
    found = inputs(id_dropout=0.25)
    ids = torch.full((4000,), 3)
    tokens = found.tokens(ids, None, torch.Generator().manual_seed(0))
    assert found.unknown is not None
    is_dropped = (tokens == found.unknown).all(1)
    assert 0.22 < float(is_dropped.float().mean()) < 0.28
    assert torch.equal(tokens[~is_dropped], found(ids)[~is_dropped])
    again = found.tokens(ids, None, torch.Generator().manual_seed(0))
    assert torch.equal(tokens, again)
    assert not torch.equal(tokens, found.tokens(ids, None, torch.Generator().manual_seed(1)))
    for quiet in (found.tokens(ids), found.eval().tokens(ids, None, torch.Generator().manual_seed(0))):
        assert torch.equal(quiet, found(ids))


@pytest.mark.parametrize("name", NAMES)
def test_id_dropout_trains_the_unknown_item_which_an_unseen_id_reads(name: str) -> None:
    model = built(name, id_dropout=0.3)
    assert isinstance(model, nn.Module)
    unknown = model.get_parameter("item.unknown")
    torch.autograd.backward(model.loss(batch_of(), torch.Generator().manual_seed(0)))
    assert unknown.grad is not None
    assert float(unknown.grad.abs().sum()) > 0
    model.eval()
    state = model.encode(JaggedBatch.from_sequences([[1, 2, 0, 4]]))
    unknown.data.mul_(-3.0)
    assert (model.encode(JaggedBatch.from_sequences([[1, 2, 0, 4]])) - state).abs().max() > 1e-3
    known = model.encode(batch_of())
    unknown.data.mul_(2.0)
    torch.testing.assert_close(model.encode(batch_of()), known)


@pytest.mark.parametrize("name", ["sasrec", "bert4rec"])
@pytest.mark.parametrize("init", ["normal", "truncated"])
def test_the_unknown_item_is_drawn_like_every_other(name: str, init: str) -> None:
    torch.manual_seed(0)
    wide = {"d_model": 4096, "num_layers": 1, "d_ff": 8, "init": init, "inputs": {"id_dropout": 0.1}}
    model = registry.build(name, wide, 3)
    assert isinstance(model, nn.Module)
    values = model.get_parameter("item.unknown").detach()
    assert float(values.std()) == pytest.approx(0.02 if init == "normal" else 0.0176, rel=0.05)
    assert bool((values.abs() > 0.04).any()) == (init == "normal")


def test_without_a_draw_the_unknown_item_stays_as_it_is() -> None:
    model = built("sasrec", id_dropout=1e-9)
    assert isinstance(model, nn.Module)
    torch.autograd.backward(model.loss(batch_of(), torch.Generator().manual_seed(0)))
    grad = model.get_parameter("item.unknown").grad
    assert grad is not None
    assert float(grad.abs().sum()) == 0.0


def test_an_untrained_item_of_the_history_is_read_as_unknown() -> None:
    found = inputs(id_dropout=0.1).eval()
    found.is_trained[5] = False
    assert found.unknown is not None
    wanted = torch.stack([found.unknown, found.unknown, found.weight[4]])
    assert torch.equal(found.tokens(torch.tensor([5, 0, 4])), wanted)


def test_a_switch_without_its_size_is_refused() -> None:
    for switch in ("event_types", "categories", "frozen_vectors"):
        with pytest.raises(
            ConfigError, match=f"model.inputs.{switch}=true, but inputs.* is not set; train with a data"
        ):
            inputs(**{switch: True})


def test_the_dataset_gives_categories_vectors_and_what_is_trained(tmp_path: Path) -> None:
    dataset = described_world(tmp_path, users=20)
    config = registry.fitted_config(
        "sasrec", {"inputs": {**dict.fromkeys(("categories", "frozen_vectors"), True)}}, dataset
    )
    model = registry.build("sasrec", config, dataset.num_items)
    assert isinstance(model, ReadsDataset)
    assert isinstance(model, nn.Module)
    assert inputs_of(model).num_categories == len(dataset.category_names) > 0
    model.read(dataset)
    assert model.get_buffer("item.categories").tolist() == dataset.item_categories.tolist()
    expected = nn.functional.normalize(torch.from_numpy(dataset.item_vectors[1:].copy()), dim=1)
    assert torch.equal(model.get_buffer("item.vectors")[1:], expected)
    assert model.get_buffer("item.is_trained").tolist() == (dataset.train_counts() > 0).tolist()
