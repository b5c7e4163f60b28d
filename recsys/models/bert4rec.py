"""BERT4Rec: a bidirectional Transformer that fills masked events.

    loss = mean over masked t of -log softmax(z_t E^T + b)[x_t],  z = LN(gelu(W h)),  h = encoder(x with masks)
           (`loss.kind` names others)

At inference one mask stands after the history. Training draws fresh masks for every batch; a share of the sequences is
masked at its last event only, which is the question asked at inference.

Paper: Sun et al. 2019, arXiv:1904.06690.
Differs: masks are dynamic, not drawn once; pre-norm and recency positions by default; no token-type vector.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from recsys.features.batches import JaggedBatch
from recsys.features.dataset import PreparedDataset
from recsys.models.encoder import Encoder, EncoderConfig, init_weights
from recsys.models.losses import LossConfig, Objective


@dataclass(frozen=True, kw_only=True)
class BERT4RecConfig(EncoderConfig):
    """Encoder shape, the longest sequence (the mask included), the masking and the loss."""

    max_len: int = 200
    mask_share: float = 0.2  # of a sequence's events, at least one
    last_item_share: float = 0.1  # of the sequences, masked at the last event only
    loss: LossConfig = LossConfig()

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.max_len < 2:
            raise ValueError(f"max_len={self.max_len} must be at least 2: one item and the mask")
        if not 0.0 < self.mask_share <= 1.0:
            raise ValueError(f"mask_share={self.mask_share} must be in (0, 1]")
        if not 0.0 <= self.last_item_share <= 1.0:
            raise ValueError(f"last_item_share={self.last_item_share} must be in [0, 1]")


class BERT4Rec(nn.Module):
    """NextItemModel with (D+1,) states: score = <state, item vector> + the item's bias."""

    def __init__(self, config: BERT4RecConfig, num_items: int) -> None:
        super().__init__()
        self.config, self.max_len, self.train_len = config, config.max_len - 1, config.max_len
        self.item = nn.Embedding(num_items + 1, config.d_model, padding_idx=0)
        self.mask = nn.Parameter(torch.empty(config.d_model))
        self.encoder = Encoder(config, max_len=config.max_len, causal=False)
        self.transform = nn.Linear(config.d_model, config.d_model)
        self.norm = nn.LayerNorm(config.d_model)
        self.bias = nn.Parameter(torch.zeros(num_items + 1))
        self.apply(init_weights)
        nn.init.normal_(self.mask, std=0.02)
        self.objective = Objective(config.loss, num_items)

    def read(self, dataset: PreparedDataset) -> None:
        """Take from the dataset what the loss draws its negatives by."""
        self.objective.read(dataset)

    def loss(self, batch: JaggedBatch, generator: torch.Generator) -> Tensor:
        """Mean loss of the masked events."""
        is_masked = draw_masks(batch.lengths, self.config.mask_share, self.config.last_item_share, generator)
        is_masked = is_masked.to(batch.values.device, non_blocking=True)
        x = torch.where(is_masked[:, None], self.mask, self.item(batch.values))  # (T, D)
        states = self.encoder(x, batch.lengths, generator)[is_masked]
        places = is_masked.nonzero().squeeze(1)
        return self.objective(self._transform(states), places, self.item.weight[1:], self.bias[1:], batch, generator)

    def encode(self, batch: JaggedBatch) -> Tensor:
        """(B, D+1): the state of a mask set after each sequence; its last dimension is 1, for the items' biases.

        Raises:
            ValueError: a sequence is empty.
        """
        if 0 in batch.lengths:
            raise ValueError(f"sequence {batch.lengths.index(0)} is empty; a state stands after an item")
        device = batch.values.device
        sequence = torch.repeat_interleave(
            torch.arange(len(batch.lengths), device=device), batch.offsets.diff(), output_size=len(batch.values)
        )
        at = torch.arange(len(batch.values), device=device) + sequence  # (T,) places in the longer batch
        x = self.mask.repeat(len(batch.values) + len(batch.lengths), 1)  # (T+B, D)
        x = x.index_copy(0, at, self.item(batch.values))
        states = self.encoder.last_states(x, tuple(length + 1 for length in batch.lengths))  # (B, D)
        return F.pad(self._transform(states), (0, 1), value=1.0)

    def item_vectors(self, item_ids: Tensor | None = None) -> Tensor:
        """(V+1, D+1), or the rows `item_ids`; the last dimension is the item's bias."""
        vectors = torch.cat([self.item.weight, self.bias[:, None]], dim=1)
        return vectors if item_ids is None else vectors[item_ids]

    def _transform(self, states: Tensor) -> Tensor:
        transformed: Tensor = self.norm(F.gelu(self.transform(states)))
        return transformed


def draw_masks(
    lengths: tuple[int, ...], mask_share: float, last_item_share: float, generator: torch.Generator
) -> Tensor:
    """(T,) bool: max(1, round(length x mask_share)) random events of each sequence, or its last event alone.

    A sequence is masked at its last event alone with probability `last_item_share`.
    """
    length = np.array(lengths, dtype=np.int64)
    sequence = np.repeat(np.arange(len(length)), length)
    end = np.cumsum(length)
    draw = torch.rand(len(sequence), generator=generator, dtype=torch.float64).numpy()
    only_last = torch.rand(len(length), generator=generator).numpy() < last_item_share
    draw[end[only_last & (length > 0)] - 1] = -1.0  # first in its sequence's order
    count = np.where(only_last, 1, np.maximum(1, np.rint(length * mask_share).astype(np.int64)))
    order = np.lexsort((draw, sequence))
    rank = np.arange(len(sequence)) - np.repeat(end - length, length)
    is_masked = np.zeros(len(sequence), dtype=bool)
    is_masked[order[rank < np.repeat(count, length)]] = True
    return torch.from_numpy(is_masked)
