"""BERT4Rec: a bidirectional Transformer that fills masked events.

    loss = mean over masked t of -log softmax(z_t E^T + b)[x_t],  z = LN(gelu(W h)),  h = encoder(x with masks)
           (`loss.kind` names others)

At inference one mask stands after the history, so that max_len - 1 items are read. Training draws fresh masks for every
batch; a share of the sequences is masked at its last event only, which is the question asked at inference.

Paper: Sun et al. 2019, arXiv:1904.06690. `configs/*/bert4rec-faithful.yaml` are the authors' settings: every window of
a sequence ten times with random masks and once with its last event masked, the masks never drawn anew; post-norm,
absolute positions, a token-type vector. docs/models.md lists each difference.
Differs, in these too: no padding, which the authors hide behind a score of -10000; the softmax is over the V items,
where theirs holds padding and special tokens as well; the mask is a vector of its own, not a row of the item table.
"""

from dataclasses import dataclass, field
from functools import partial
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from recsys.config import MAX_SEED
from recsys.features.batches import JaggedBatch
from recsys.features.dataset import PreparedDataset
from recsys.features.sampling import Sampling, stride_of
from recsys.models.encoder import Encoder, EncoderConfig, draw_weights, init_weights
from recsys.models.item_inputs import ItemInputsConfig
from recsys.models.item_table import build_item_inputs
from recsys.models.losses import LossConfig, Objective
from recsys.models.masking import draw_masks, static_masks

LAST_ITEM_SHARE = 0.1


@dataclass(frozen=True, kw_only=True)
class BERT4RecConfig(EncoderConfig):
    """Encoder shape, the longest sequence (the mask included), the masking, what is masked, and the loss."""

    max_len: int = 200
    mask_share: float = 0.2  # of a sequence's events, at least one
    last_item_share: float | None = None  # of the sequences, masked at the last event only; .1 if dynamic
    masking: Literal["dynamic", "static"] = "dynamic"  # drawn for every batch, or once for each copy of a window
    max_predictions: int | None = None  # masks of a sequence at most
    window_prop: float | None = None  # stride of training windows / max_len; null: the last max_len events alone
    copies: int = 1  # of a window in an epoch, with random masks; static masking adds one masked at the last event
    mask_seed: int = 0  # of static masks
    token_type: bool = False  # one learned vector is added to every token
    inputs: ItemInputsConfig = field(default_factory=ItemInputsConfig)  # beside the items' ids
    loss: LossConfig = LossConfig()

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.max_len < 2:
            raise ValueError(f"max_len={self.max_len} must be at least 2: one item and the mask")
        if not 0.0 < self.mask_share <= 1.0:
            raise ValueError(f"mask_share={self.mask_share} must be in (0, 1]")
        self._check_last_item_share()
        for name in ("max_predictions", "copies"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise ValueError(f"{name}={value} must be at least 1")
        stride_of(self.window_prop, self.max_len)
        if not 0 <= self.mask_seed < MAX_SEED:
            raise ValueError(f"mask_seed={self.mask_seed} must be at least 0 and below 2^64")

    @property
    def sampling(self) -> Sampling:
        """How training sequences are cut and repeated."""
        stride = stride_of(self.window_prop, self.max_len)
        return Sampling(window_stride=stride, copies=self.copies + (self.masking == "static"))

    def _check_last_item_share(self) -> None:
        share = self.last_item_share
        if self.masking == "static":
            if share is not None:
                raise ValueError(
                    f"last_item_share={share} with masking=static, where one of copies + 1 is masked so; leave it out"
                )
        elif share is None:
            object.__setattr__(self, "last_item_share", LAST_ITEM_SHARE)
        elif not 0.0 <= share <= 1.0:
            raise ValueError(f"last_item_share={share} must be in [0, 1]")


class BERT4Rec(nn.Module):
    """NextItemModel with (D+1,) states: score = <state, item vector> + the item's bias.

    Args:
        config: shape, masking, inputs and loss.
        num_items: V; 0 with `inputs.embedding: table` is no vocabulary: batches then hold raw 64-bit ids.
    """

    item_rows: ClassVar[tuple[str, ...]] = ("item.weight", "bias")  # tensors with a row for each item

    def __init__(self, config: BERT4RecConfig, num_items: int) -> None:
        super().__init__()
        self.config, self.max_len, self.train_len = config, config.max_len - 1, config.max_len
        self.sampling = config.sampling
        self.inputs = config.inputs
        every = config.loss.kind == "ce"
        self.item = build_item_inputs(config.inputs, num_items, config.d_model, every=every, has_bias=True)
        self.mask = nn.Parameter(torch.empty(config.d_model))
        self.encoder = Encoder(config, max_len=config.max_len, causal=False)
        self.transform = nn.Linear(config.d_model, config.d_model)
        self.norm = nn.LayerNorm(config.d_model, eps=config.norm_eps)
        # A table's rows hold the biases: one look-up, one step and one end for both.
        self.bias = nn.Parameter(torch.zeros(num_items + 1)) if config.inputs.table is None else None
        self.token_type = nn.Parameter(torch.empty(config.d_model)) if config.token_type else None
        self.apply(partial(init_weights, kind=config.init))
        for vector in (self.mask, self.token_type, self.item.unknown):
            if vector is not None:
                draw_weights(vector, config.init)
        self.objective = Objective(config.loss, num_items)

    def loss(self, batch: JaggedBatch, generator: torch.Generator) -> Tensor:
        """Mean loss of the masked events."""
        masks, device = self._masks(batch, generator), batch.values.device  # masks are on the host
        places = masks.nonzero().squeeze(1)
        tokens = self.item.tokens(batch.values, batch.event_types, generator)
        x = torch.where(masks.to(device, non_blocking=True)[:, None], self.mask, tokens)  # (T, D)
        states = self._transform(self.encoder.states_at(self._typed(x), batch.lengths, places, generator))
        return self.objective(states, places.to(device, non_blocking=True), self.item, self.bias, batch, generator)

    def num_targets(self, batch: JaggedBatch, generator: torch.Generator) -> int:
        """The masked events."""
        return int(self._masks(batch, generator).sum())

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
        x = x.index_copy(0, at, self.item.tokens(batch.values, batch.event_types))
        states = self.encoder.last_states(self._typed(x), tuple(length + 1 for length in batch.lengths))  # (B, D)
        return F.pad(self._transform(states), (0, 1), value=1.0)

    def item_vectors(self, item_ids: Tensor | None = None) -> Tensor:
        """(V+1, D+1), or the rows `item_ids`; the last dimension is the item's bias.

        Without a vocabulary those of the items known so far; see `item_ids`.
        """
        vectors = self.item.output_vectors(item_ids)
        if self.bias is None:
            return vectors
        bias = self.bias if item_ids is None else self.bias[item_ids]
        return torch.cat([vectors, bias[:, None]], dim=1)

    def item_ids(self) -> Tensor:
        """(V,) int64 whose vectors rows 1, 2, … of `item_vectors()` are: 1..V, or raw ids without a vocabulary."""
        return self.item.item_ids()

    def read(self, dataset: PreparedDataset) -> None:
        """Take what the inputs and the loss need of the dataset."""
        self.item.read(dataset)
        self.objective.read(dataset)

    def _masks(self, batch: JaggedBatch, generator: torch.Generator) -> Tensor:
        config = self.config
        if config.masking == "dynamic":
            assert config.last_item_share is not None
            return draw_masks(
                batch.lengths, config.mask_share, config.last_item_share, generator, config.max_predictions
            )
        if batch.instances is None:
            raise ValueError("the batch has no instances, and static masks belong to these; make it by TrainBatches")
        return static_masks(
            batch.lengths, batch.instances, config.mask_share, config.copies, config.mask_seed, config.max_predictions
        )

    def _typed(self, x: Tensor) -> Tensor:
        return x if self.token_type is None else x + self.token_type

    def _transform(self, states: Tensor) -> Tensor:
        transformed: Tensor = self.norm(F.gelu(self.transform(states)))
        return transformed
