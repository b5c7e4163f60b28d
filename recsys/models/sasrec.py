"""SASRec: a causal Transformer that predicts, after each event, the next one.

    loss = mean over t of -log softmax(h_t E^T)[x_{t+1}],  h = encoder(x_1..x_t)     (`loss.kind` names others)

Paper: Kang and McAuley 2018, arXiv:1808.09781.
Differs: full softmax over all items in place of one sampled negative (Klenitskiy and Vasilev 2023, arXiv:2309.07602);
pre-norm and recency positions by default.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from recsys.features.batches import JaggedBatch
from recsys.features.dataset import PreparedDataset
from recsys.models.encoder import Encoder, EncoderConfig, init_weights
from recsys.models.losses import LossConfig, Objective


@dataclass(frozen=True, kw_only=True)
class SASRecConfig(EncoderConfig):
    """Encoder shape, the longest history and the loss."""

    max_len: int = 200
    loss: LossConfig = LossConfig()

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.max_len < 1:
            raise ValueError(f"max_len={self.max_len} must be at least 1")


class SASRec(nn.Module):
    """NextItemModel with (D,) states: score = <state, item vector>."""

    def __init__(self, config: SASRecConfig, num_items: int) -> None:
        super().__init__()
        self.config, self.max_len, self.train_len = config, config.max_len, config.max_len + 1
        self.item = nn.Embedding(num_items + 1, config.d_model, padding_idx=0)
        self.encoder = Encoder(config, max_len=config.max_len, causal=True)
        self.apply(init_weights)
        self.objective = Objective(config.loss, num_items)

    def read(self, dataset: PreparedDataset) -> None:
        """Take from the dataset what the loss draws its negatives by."""
        self.objective.read(dataset)

    def loss(self, batch: JaggedBatch, generator: torch.Generator) -> Tensor:
        """Mean loss of every event but the first of its sequence."""
        lengths = np.array(batch.lengths, dtype=np.int64)
        last = np.cumsum(lengths) - 1
        is_input = np.ones(len(batch.values), dtype=bool)
        is_input[last[lengths > 0]] = False
        inputs = torch.from_numpy(np.flatnonzero(is_input)).to(batch.values.device, non_blocking=True)
        states = self._states(batch.values[inputs], tuple(np.maximum(lengths - 1, 0).tolist()), generator)
        return self.objective(states, inputs + 1, self.item.weight[1:], None, batch, generator)

    def encode(self, batch: JaggedBatch) -> Tensor:
        """(B, D): the state after each sequence's last item.

        Raises:
            ValueError: a sequence is empty.
        """
        return self.encoder.last_states(self.item(batch.values), batch.lengths)

    def item_vectors(self, item_ids: Tensor | None = None) -> Tensor:
        """(V+1, D), or the rows `item_ids`."""
        return self.item.weight if item_ids is None else self.item.weight[item_ids]

    def _states(self, values: Tensor, lengths: tuple[int, ...], generator: torch.Generator | None) -> Tensor:
        states: Tensor = self.encoder(self.item(values), lengths, generator)
        return states
