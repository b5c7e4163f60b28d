import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from recsys.models.masking import draw_masks, static_masks

LENGTHS = st.lists(st.integers(0, 40), min_size=1, max_size=8).map(tuple)


def counts_of(mask: torch.Tensor, lengths: tuple[int, ...]) -> list[int]:
    return [int(part.sum()) for part in torch.split(mask, list(lengths))]


def drawn(lengths: tuple[int, ...], share: float, last: float = 0.0, seed: int = 0) -> torch.Tensor:
    return draw_masks(lengths, share, last, torch.Generator().manual_seed(seed))


def static(
    lengths: tuple[int, ...], instances: list[int], copies: int = 3, seed: int = 0, cap: int | None = None
) -> list[list[bool]]:
    """Masks of half the events, by sequence."""
    mask = static_masks(lengths, torch.tensor(instances), 0.5, copies, seed, cap)
    return [part.tolist() for part in torch.split(mask, list(lengths))]


@settings(max_examples=50, deadline=None)
@given(
    lengths=LENGTHS,
    share=st.sampled_from([0.15, 0.2, 0.6, 1.0]),
    cap=st.sampled_from([None, 1, 7]),
    seed=st.integers(0, 99),
)
def test_each_sequence_has_its_share_of_masks_at_least_one_and_at_most_the_cap(
    lengths: tuple[int, ...], share: float, cap: int | None, seed: int
) -> None:
    wanted = [min(length, cap or 99, max(1, round(length * share))) for length in lengths]
    dynamic = draw_masks(lengths, share, 0.0, torch.Generator().manual_seed(seed), cap)
    assert counts_of(dynamic, lengths) == wanted
    instances = torch.arange(len(lengths)) * 11 + seed % 10  # of 11 copies the first ten are random
    assert counts_of(static_masks(lengths, instances, share, 10, seed, cap), lengths) == wanted


@settings(max_examples=20, deadline=None)
@given(lengths=LENGTHS, seed=st.integers(0, 99))
def test_last_item_samples_are_masked_at_the_last_event_alone(lengths: tuple[int, ...], seed: int) -> None:
    instances = torch.arange(len(lengths)) * 11 + 10
    for mask in (drawn(lengths, 0.5, 1.0, seed), static_masks(lengths, instances, 0.5, 10, seed)):
        for part in torch.split(mask, list(lengths)):
            assert part.tolist() == ([False] * (len(part) - 1) + [True])[: len(part)]


def test_the_share_of_last_item_samples_is_the_one_asked_for() -> None:
    mask = drawn((20,) * 4000, 0.5, 0.1).view(-1, 20)
    assert float((mask.sum(1) == 1).float().mean()) == pytest.approx(0.1, abs=0.02)


@pytest.mark.parametrize("is_static", [False, True])
def test_every_position_is_masked_equally_often_and_without_regard_to_its_neighbour(is_static: bool) -> None:
    lengths = (10,) * 5000
    instances = torch.arange(5000) * 2
    flat = static_masks(lengths, instances, 0.2, 1, 0) if is_static else drawn(lengths, 0.2)
    mask = flat.view(-1, 10).double()
    np.testing.assert_allclose(mask.mean(0).numpy(), 0.2, atol=0.025)
    pairs = (mask.T @ mask / 5000)[~torch.eye(10, dtype=torch.bool)]
    np.testing.assert_allclose(pairs.numpy(), 2 * 1 / (10 * 9), atol=0.012)  # two of ten without replacement
    between = (mask[:-1] * mask[1:]).mean()  # the same position of the next instance
    assert float(between) == pytest.approx(0.04, abs=0.005)


def test_static_masks_are_known_by_instance_and_seed_alone() -> None:
    lengths = (30, 12, 30)
    together = static(lengths, [8, 4, 9])
    assert static(lengths[::-1], [9, 4, 8]) == together[::-1]
    assert [static((n,), [i])[0] for n, i in zip(lengths, [8, 4, 9], strict=True)] == together
    assert static(lengths, [8, 4, 9], seed=1) != together


def test_static_masks_differ_between_copies_and_between_windows() -> None:
    masks = static((30,) * 12, list(range(12)))
    random = [tuple(mask) for number, mask in enumerate(masks) if number % 4 != 3]
    assert len(set(random)) == 9
    assert masks[3] == masks[7] == masks[11] == [False] * 29 + [True]
