"""Which events of a sequence are masked: drawn afresh for every batch, or the same for an instance for ever.

    random masks: m = min(P, max(1, round(share * n))) of the n events, without replacement
    last item:    the last event alone, the question asked at inference

Paper: Sun et al. 2019, arXiv:1904.06690. The authors write masks down before training; here a static mask is a hash of
(seed, instance, position), so that none is stored.

Dims: B sequences, T tokens.
"""

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

_ADDEND, _FIRST, _SECOND = (np.uint64(n) for n in (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB))


def draw_masks(
    lengths: tuple[int, ...],
    mask_share: float,
    last_item_share: float,
    generator: torch.Generator,
    max_predictions: int | None = None,
) -> Tensor:
    """(T,) bool: random masks, or with probability `last_item_share` the last event of a sequence alone.

    Args:
        lengths: (B,) events of each sequence, on the host.
        mask_share: of the events, in (0, 1].
        last_item_share: in [0, 1].
        generator: CPU generator.
        max_predictions: P; None is no limit.
    """
    draw = torch.rand(sum(lengths), generator=generator, dtype=torch.float64).numpy()
    is_last_only = torch.rand(len(lengths), generator=generator).numpy() < last_item_share
    return _masks(lengths, draw, is_last_only, mask_share, max_predictions)


def static_masks(
    lengths: tuple[int, ...],
    instances: Tensor,
    mask_share: float,
    copies: int,
    seed: int,
    max_predictions: int | None = None,
) -> Tensor:
    """(T,) bool: random masks for the first `copies` copies of a window, its last event alone for the one after them.

    Args:
        lengths: (B,) events of each sequence, on the host.
        instances: (B,) int64 on the host, window * (copies + 1) + copy.
        mask_share: of the events, in (0, 1].
        copies: of a window, with random masks.
        seed: of the masks.
        max_predictions: P; None is no limit.
    """
    instance = instances.numpy()
    length = np.array(lengths, dtype=np.int64)
    position = np.arange(length.sum()) - np.repeat(np.cumsum(length) - length, length)
    by_instance = _mixed(instance.astype(np.uint64) ^ _mixed(np.array([seed], dtype=np.uint64)))  # (B,)
    draw = _mixed(np.repeat(by_instance, length) ^ position.astype(np.uint64)) >> np.uint64(11)  # 53 bits are exact
    is_last_only = instance % (copies + 1) == copies
    return _masks(lengths, draw.astype(np.float64), is_last_only, mask_share, max_predictions)


def _masks(
    lengths: tuple[int, ...],
    draw: npt.NDArray[np.float64],
    is_last_only: npt.NDArray[np.bool_],
    mask_share: float,
    max_predictions: int | None,
) -> Tensor:
    """The m events of least draw (T,) of each sequence; of a last-item sample the last event."""
    length = np.array(lengths, dtype=np.int64)
    sequence = np.repeat(np.arange(len(length)), length)
    end = np.cumsum(length)
    draw[end[is_last_only & (length > 0)] - 1] = -1.0  # first in its sequence's order
    count = np.maximum(1, np.rint(length * mask_share).astype(np.int64))
    if max_predictions is not None:
        count = np.minimum(count, max_predictions)
    count[is_last_only] = 1
    order = np.lexsort((draw, sequence))
    rank = np.arange(len(sequence)) - np.repeat(end - length, length)
    is_masked = np.zeros(len(sequence), dtype=bool)
    is_masked[order[rank < np.repeat(count, length)]] = True
    return torch.from_numpy(is_masked)


def _mixed(word: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """SplitMix64 of each word (Steele et al. 2014): a bijection of 64 bits whose output passes for random."""
    word = word + _ADDEND
    word = (word ^ (word >> np.uint64(30))) * _FIRST
    word = (word ^ (word >> np.uint64(27))) * _SECOND
    return word ^ (word >> np.uint64(31))
