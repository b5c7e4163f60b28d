"""SASRec: a causal Transformer that predicts, after each event, the next one.

    loss = mean over t of -log softmax(h_t E^T)[x_{t+1}],  h = encoder(x_1..x_t)     (`loss.kind` names others)

Paper: Kang and McAuley 2018, arXiv:1808.09781.
Differs: full softmax over all items in place of one sampled negative (Klenitskiy and Vasilev 2023, arXiv:2309.07602);
pre-norm and recency positions by default.
"""

from dataclasses import dataclass, field
from functools import partial
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from recsys.features.batches import JaggedBatch
from recsys.features.dataset import PreparedDataset
from recsys.features.sampling import Sampling, stride_of
from recsys.models.encoder import Encoder, EncoderConfig, draw_weights, init_weights
from recsys.models.item_inputs import ItemInputsConfig
from recsys.models.item_table import build_item_inputs
from recsys.models.losses import LossConfig, Objective


@dataclass(frozen=True, kw_only=True)
class SASRecConfig(EncoderConfig):
    """Encoder shape, the longest history, what training reads of a longer one, and the loss."""

    max_len: int = 200
    window_prop: float | None = None  # stride of training windows / max_len; null: the last max_len + 1 events alone
    inputs: ItemInputsConfig = field(default_factory=ItemInputsConfig)  # beside the items' ids
    loss: LossConfig = LossConfig()

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.max_len < 1:
            raise ValueError(f"max_len={self.max_len} must be at least 1")
        stride_of(self.window_prop, self.max_len)

    @property
    def sampling(self) -> Sampling:
        """How training sequences are cut."""
        return Sampling(window_stride=stride_of(self.window_prop, self.max_len))


class SASRec(nn.Module):
    """NextItemModel with (D,) states: score = <state, item vector>.

    Args:
        config: shape, inputs and loss.
        num_items: V; 0 with `inputs.embedding: table` is no vocabulary: batches then hold raw 64-bit ids.
    """

    item_rows: ClassVar[tuple[str, ...]] = ("item.weight",)  # tensors with a row for each item

    def __init__(self, config: SASRecConfig, num_items: int) -> None:
        super().__init__()
        self.config, self.max_len, self.train_len = config, config.max_len, config.max_len + 1
        self.sampling, self.inputs = config.sampling, config.inputs
        every = config.loss.kind == "ce"
        self.item = build_item_inputs(config.inputs, num_items, config.d_model, every=every)
        self.encoder = Encoder(config, max_len=config.max_len, causal=True)
        self.apply(partial(init_weights, kind=config.init))
        if self.item.unknown is not None:
            draw_weights(self.item.unknown, config.init)
        self.objective = Objective(config.loss, num_items)

    def loss(self, batch: JaggedBatch, generator: torch.Generator) -> Tensor:
        """Mean loss of every event but the first of its sequence."""
        lengths = np.array(batch.lengths, dtype=np.int64)
        last = np.cumsum(lengths) - 1
        is_input = np.ones(len(batch.values), dtype=bool)
        is_input[last[lengths > 0]] = False
        inputs = torch.from_numpy(np.flatnonzero(is_input)).to(batch.values.device, non_blocking=True)
        event_types = None if batch.event_types is None else batch.event_types[inputs]
        shorter = tuple(np.maximum(lengths - 1, 0).tolist())
        states = self._states(batch.values[inputs], shorter, generator, event_types)
        return self.objective(states, inputs + 1, self.item, None, batch, generator)

    def num_targets(self, batch: JaggedBatch, generator: torch.Generator) -> int:  # noqa: ARG002  # the protocol's; nothing is drawn
        """Every event but the first of its sequence."""
        return sum(max(length - 1, 0) for length in batch.lengths)

    def encode(self, batch: JaggedBatch) -> Tensor:
        """(B, D): the state after each sequence's last item.

        Raises:
            ValueError: a sequence is empty.
        """
        return self.encoder.last_states(self.item.tokens(batch.values, batch.event_types), batch.lengths)

    def item_vectors(self, item_ids: Tensor | None = None) -> Tensor:
        """(V+1, D), or the rows `item_ids`. Without a vocabulary those of the items known so far; see `item_ids`."""
        return self.item.output_vectors(item_ids)

    def item_ids(self) -> Tensor:
        """(V,) int64 whose vectors rows 1, 2, … of `item_vectors()` are: 1..V, or raw ids without a vocabulary."""
        return self.item.item_ids()

    def read(self, dataset: PreparedDataset) -> None:
        """Take what the inputs and the loss need of the dataset."""
        self.item.read(dataset)
        self.objective.read(dataset)

    def _states(
        self,
        values: Tensor,
        lengths: tuple[int, ...],
        generator: torch.Generator | None,
        event_types: Tensor | None = None,
    ) -> Tensor:
        states: Tensor = self.encoder(self.item.tokens(values, event_types, generator), lengths, generator)
        return states
