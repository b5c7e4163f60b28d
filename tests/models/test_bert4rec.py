import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from recsys.features.batches import JaggedBatch
from recsys.models.bert4rec import BERT4Rec, BERT4RecConfig, draw_masks


def counts_of(mask: torch.Tensor, lengths: tuple[int, ...]) -> list[int]:
    return [int(part.sum()) for part in torch.split(mask, list(lengths))]


@settings(max_examples=50, deadline=None)
@given(
    lengths=st.lists(st.integers(0, 40), min_size=1, max_size=8).map(tuple),
    share=st.sampled_from([0.15, 0.2, 0.6, 1.0]),
    seed=st.integers(0, 99),
)
def test_each_sequence_has_its_share_of_masks_and_at_least_one(
    lengths: tuple[int, ...], share: float, seed: int
) -> None:
    mask = draw_masks(lengths, share, 0.0, torch.Generator().manual_seed(seed))
    wanted = [min(length, max(1, round(length * share))) for length in lengths]
    assert counts_of(mask, lengths) == wanted


@settings(max_examples=20, deadline=None)
@given(lengths=st.lists(st.integers(0, 40), min_size=1, max_size=8).map(tuple), seed=st.integers(0, 99))
def test_last_item_samples_are_masked_at_the_last_event_alone(lengths: tuple[int, ...], seed: int) -> None:
    mask = draw_masks(lengths, 0.5, 1.0, torch.Generator().manual_seed(seed))
    for part in torch.split(mask, list(lengths)):
        assert part.tolist() == ([False] * (len(part) - 1) + [True])[: len(part)]


def test_the_share_of_last_item_samples_is_the_one_asked_for() -> None:
    lengths = (20,) * 4000
    mask = draw_masks(lengths, 0.5, 0.1, torch.Generator().manual_seed(0)).view(-1, 20)
    share = float((mask.sum(1) == 1).float().mean())
    assert share == pytest.approx(0.1, abs=0.02)


def test_every_position_is_masked_equally_often() -> None:
    mask = draw_masks((10,) * 5000, 0.2, 0.0, torch.Generator().manual_seed(0)).view(-1, 10).float().mean(0)
    np.testing.assert_allclose(mask.numpy(), 0.2, atol=0.025)


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
