from typing import Any

import pytest
import torch

from recsys.features.batches import JaggedBatch, TrainBatches
from recsys.features.dataset import PreparedDataset
from recsys.features.sampling import Sampling
from recsys.models.bert4rec import BERT4Rec, BERT4RecConfig

SMALL: dict[str, Any] = {"d_model": 8, "num_layers": 1, "num_heads": 1, "d_ff": 8, "max_len": 8, "dropout": 0.0}
STATIC: dict[str, Any] = {**SMALL, "masking": "static", "mask_share": 0.5, "window_prop": 0.25, "copies": 3}


def test_a_masked_item_does_not_reach_its_own_prediction() -> None:
    torch.manual_seed(0)
    config = BERT4RecConfig(d_model=8, num_layers=1, num_heads=1, d_ff=8, max_len=8, dropout=0.0, last_item_share=1.0)
    model = BERT4Rec(config, 6).eval()
    seen: list[torch.Tensor] = []
    model.norm.register_forward_hook(lambda module, args, output: seen.append(output))  # noqa: ARG005  # torch's signature
    for last in (4, 5):
        model.loss(JaggedBatch.from_sequences([[1, 2, 3, last]]), torch.Generator().manual_seed(0))
    torch.testing.assert_close(seen[0], seen[1], rtol=0, atol=0)


def test_the_state_of_loss_on_the_last_item_is_the_state_served() -> None:
    """Masking the last event in training asks the same question as a mask set after the history."""
    torch.manual_seed(0)
    config = BERT4RecConfig(d_model=8, num_layers=2, num_heads=2, d_ff=8, max_len=8, dropout=0.0, last_item_share=1.0)
    model = BERT4Rec(config, 6).eval()
    seen: list[torch.Tensor] = []
    model.norm.register_forward_hook(lambda module, args, output: seen.append(output))  # noqa: ARG005  # torch's signature
    model.loss(JaggedBatch.from_sequences([[1, 2, 3, 6], [2, 5]]), torch.Generator().manual_seed(0))
    served = model.encode(JaggedBatch.from_sequences([[1, 2, 3], [2]]))
    torch.testing.assert_close(seen[0], served[:, :-1])
    assert served[:, -1].tolist() == [1.0, 1.0]


def masks_by_instance(circle: PreparedDataset, epoch: int, first_step: int = 0, **keys: Any) -> dict[int, list[bool]]:
    """Which tokens the model masks."""
    torch.manual_seed(0)
    model = BERT4Rec(BERT4RecConfig(**{**STATIC, **keys}), circle.num_items)
    found: dict[int, list[bool]] = {}
    batches = TrainBatches(circle, max_len=8, tokens_per_batch=512, seed=0, sampling=model.sampling)
    for batch in batches.epoch(epoch, first_step):
        is_masked = model._masks(batch, torch.Generator().manual_seed(epoch))
        assert batch.instances is not None
        parts = torch.split(is_masked, list(batch.lengths))
        found |= {int(number): part.tolist() for number, part in zip(batch.instances, parts, strict=True)}
    return found


def test_static_masks_are_the_same_in_every_epoch_and_after_a_resume(circle: PreparedDataset) -> None:
    first, second = (masks_by_instance(circle, epoch) for epoch in (0, 1))
    assert first == second
    rest = masks_by_instance(circle, 1, first_step=3)
    assert 0 < len(rest) < len(second)
    assert rest == {number: first[number] for number in rest}
    assert masks_by_instance(circle, 0, mask_seed=1) != first
    dynamic: dict[str, Any] = {"masking": "dynamic", "copies": 4}
    assert masks_by_instance(circle, 0, **dynamic) != masks_by_instance(circle, 1, **dynamic)


def test_one_of_copies_and_one_is_masked_at_the_last_event(circle: PreparedDataset) -> None:
    masks = masks_by_instance(circle, 0)
    assert sorted(masks) == list(range(len(masks)))
    for number, mask in masks.items():
        wanted = 1 if number % 4 == 3 else max(1, round(len(mask) / 2))
        assert sum(mask) == wanted
        assert number % 4 != 3 or mask[-1]


@pytest.mark.parametrize("masking", ["static", "dynamic"])
def test_no_sequence_has_more_masks_than_max_predictions(circle: PreparedDataset, masking: str) -> None:
    keys: dict[str, Any] = {"masking": masking, "mask_share": 1.0, "copies": 1}
    most = max(sum(mask) for mask in masks_by_instance(circle, 0, max_predictions=3, **keys).values())
    assert most == 3
    assert max(sum(mask) for mask in masks_by_instance(circle, 0, **keys).values()) == 8


def test_a_model_says_how_it_samples() -> None:
    assert BERT4RecConfig().sampling == Sampling()
    assert BERT4RecConfig(max_len=50, window_prop=0.1).sampling == Sampling(window_stride=5)
    assert BERT4RecConfig(masking="static", copies=10).sampling == Sampling(copies=11)


def test_the_token_type_is_added_to_masks_and_items_alike() -> None:
    torch.manual_seed(0)
    model = BERT4Rec(BERT4RecConfig(**SMALL, token_type=True), 6).eval()
    plain = BERT4Rec(BERT4RecConfig(**SMALL), 6).eval()
    plain.load_state_dict({key: value for key, value in model.state_dict().items() if key != "token_type"})
    assert model.token_type is not None
    with torch.no_grad():
        plain.encoder.position.weight += model.token_type
    batch = JaggedBatch.from_sequences([[1, 2, 3], [4, 5]])
    torch.testing.assert_close(model.encode(batch), plain.encode(batch))
    losses = [m.loss(batch, torch.Generator().manual_seed(0)) for m in (model, plain)]
    torch.testing.assert_close(*losses)


def test_a_static_batch_that_has_no_instances_is_refused() -> None:
    model = BERT4Rec(BERT4RecConfig(**STATIC), 6)
    with pytest.raises(ValueError, match="the batch has no instances.*make it by TrainBatches"):
        model.loss(JaggedBatch.from_sequences([[1, 2, 3]]), torch.Generator())


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"copies": 0}, "copies=0 must be at least 1"),
        ({"max_predictions": 0}, "max_predictions=0 must be at least 1"),
        ({"window_prop": 0.1}, r"window_prop=0.1 must be in \[1/max_len, 1\]"),
        ({"window_prop": 1.5}, r"window_prop=1.5 must be in \[1/max_len, 1\]"),
        ({"mask_seed": -1}, "mask_seed=-1 must be at least 0"),
        ({"last_item_share": 1.5}, r"last_item_share=1.5 must be in \[0, 1\]"),
        ({"last_item_share": 0.1, "masking": "static"}, "last_item_share=0.1 with masking=static.*leave it out"),
    ],
)
def test_a_setting_that_cannot_be_is_named(keys: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        BERT4RecConfig(**{**SMALL, **keys})
