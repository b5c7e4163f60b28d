"""What a model of next items minimises: full cross entropy, or a loss over sampled negatives.

    ce               -log softmax(scores of all V items)[target]
    sampled_softmax  the same over the target and K negatives
    bce, gbce        binary cross entropy of the target against K negatives; gbce weighs the target by beta
    mixed_logq       softmax over K popular and uniform negatives, corrected for how often each is drawn

    beta = alpha (t (1 - 1/alpha) + 1/alpha) = 1 - t (1 - alpha),   alpha = K / (V - 1)

Without a vocabulary (V = 0) ce is over the items that have a row by now, and the negatives of sampled_softmax and bce
are other items of the batch.

The formulas and papers stand in `kernels/sampled_loss`, the draws in `negatives`; docs/losses.md says which to take.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from recsys.errors import ConfigError
from recsys.features.batches import JaggedBatch
from recsys.features.dataset import PreparedDataset
from recsys.kernels.linear_cross_entropy import linear_cross_entropy
from recsys.kernels.sampled_loss import Kind, sampled_loss
from recsys.models.item_inputs import ItemInputs
from recsys.models.negatives import Mixture, TrainingItems, draw_distinct, draw_rows, draw_unseen

_NO_TARGET = -100  # ignored by the kernel; no place of an item is so low
_KERNEL_KINDS: dict[str, Kind] = {"sampled_softmax": "softmax", "bce": "bce", "gbce": "gbce", "mixed_logq": "logq"}


@dataclass(frozen=True, kw_only=True)
class LossConfig:
    """Which loss, and how its negatives are drawn."""

    kind: Literal["ce", "sampled_softmax", "bce", "gbce", "mixed_logq"] = "ce"
    num_negatives: int = 256  # of each list; below the number of items; not for ce
    shared: Literal["batch", "sequence", "none"] = "batch"  # who shares a list; sequence leaves out its user's items
    gbce_t: float = 0.75  # 0 is bce, 1 calibrates fully and learns more slowly
    uniform_share: float = 0.5  # of mixed_logq's negatives; the others are drawn by popularity
    logits: Literal["float32", "bfloat16"] = "float32"  # of ce; the target's stays float32

    def __post_init__(self) -> None:
        if self.num_negatives < 1:
            raise ValueError(f"num_negatives={self.num_negatives} must be at least 1")
        if not 0.0 <= self.gbce_t <= 1.0:
            raise ValueError(f"gbce_t={self.gbce_t} must be in [0, 1]")
        if not 0.0 < self.uniform_share <= 1.0:
            raise ValueError(f"uniform_share={self.uniform_share} must be in (0, 1]")
        if self.logits != "float32" and self.kind != "ce":
            raise ValueError(f"logits={self.logits!r} is for kind='ce', not {self.kind!r}; set logits=float32")
        if self.kind == "mixed_logq" and self.shared != "batch":
            raise ValueError(
                f"shared={self.shared!r} is not for kind='mixed_logq', whose negatives are drawn for the batch; "
                "set shared=batch"
            )


class Objective(nn.Module):
    """The loss of states against the items that follow them. It has no weights."""

    log_q: Tensor | None

    def __init__(self, config: LossConfig, num_items: int) -> None:
        super().__init__()
        if not num_items and (config.kind in ("gbce", "mixed_logq") or config.shared != "batch"):
            raise ConfigError(
                f"model.loss.kind={config.kind}, shared={config.shared} needs to know all items, and there is no "
                "vocabulary; set model.loss.kind=ce, sampled_softmax or bce, and shared=batch"
            )
        self.config, self.num_items = config, num_items
        self.register_buffer("log_q", None, persistent=False)
        self._mixture: Mixture | None = None
        self._training_items: TrainingItems | None = None

    def read(self, dataset: PreparedDataset) -> None:
        """Take what the negatives are drawn by: counts of items, items of users.

        Raises:
            ConfigError: the catalogue is too small for so many negatives.
        """
        self._check_size()
        if self.config.kind == "mixed_logq":
            self._mixture = Mixture(dataset.train_counts()[1:], self.config.uniform_share)
            self.log_q = self._mixture.log_q
        if self.config.kind != "ce" and self.config.shared == "sequence":
            self._training_items = TrainingItems(dataset)

    def forward(
        self,
        states: Tensor,
        places: Tensor,
        item: ItemInputs,
        bias: Tensor | None,
        batch: JaggedBatch,
        generator: torch.Generator,
    ) -> Tensor:
        """Scalar: the mean over the states.

        Args:
            states: (N, D).
            places: (N,) int64, where in `batch.values` each state's target stands.
            item: has the vectors of the items.
            bias: (V+1,) of the items where it is no part of their rows, or None.
            batch: whose values are the targets.
            generator: CPU generator, for the negatives.

        Raises:
            ValueError: the loss needs the dataset, or the batch's users, and has not got them.
            ConfigError: the catalogue is too small for so many negatives.
        """
        target = batch.values[places]
        if self.config.kind == "ce":
            scored = item.scored(target, bias, every=True)
            dtype = torch.bfloat16 if self.config.logits == "bfloat16" else None
            if not len(scored.vectors):
                return states.sum() * 0.0  # without a vocabulary, before any item is admitted
            return linear_cross_entropy(
                states,
                scored.vectors,
                scored.places,
                bias=scored.bias,
                ignore_index=_NO_TARGET if self.num_items else -1,  # without a vocabulary an item may have no row
                logits_dtype=dtype,
            )
        if not self.num_items:
            return self._over_the_batch(states, target, item, batch, generator)
        self._check_size()
        num_negatives = self.config.num_negatives
        negatives, groups = self._draw(batch, places, generator)
        drawn = negatives.to(states.device, non_blocking=True)
        scored = item.scored(torch.cat([target, drawn.flatten() + 1]), bias, every=False)
        kind, log_q = _KERNEL_KINDS[self.config.kind], self.log_q
        if log_q is not None:
            log_q = (log_q if scored.items is None else log_q[scored.items]).to(states.device)
        return sampled_loss(
            states,
            scored.vectors,
            scored.places[: len(target)],
            torch.where(drawn < 0, -1, scored.places[len(target) :].view_as(drawn)),
            groups=groups,
            kind=kind,
            bias=scored.bias,
            log_q=log_q,
            beta=gbce_beta(num_negatives, self.num_items, self.config.gbce_t) if kind == "gbce" else 1.0,
        )

    def _over_the_batch(
        self, states: Tensor, target: Tensor, item: ItemInputs, batch: JaggedBatch, generator: torch.Generator
    ) -> Tensor:
        """Without a vocabulary: negatives are the batch's other items, and a target without a row is left out."""
        ids = torch.unique(batch.values)
        chosen = draw_distinct(len(ids), self.config.num_negatives, generator).to(ids.device)
        scored = item.scored(torch.cat([target, ids[chosen]]), None, every=False)
        places, negatives = scored.places[: len(target)], scored.places[len(target) :]
        has_row = places >= 0
        if not len(scored.vectors):
            return states.sum() * 0.0
        kind = _KERNEL_KINDS[self.config.kind]
        return sampled_loss(states[has_row], scored.vectors, places[has_row], negatives, kind=kind, bias=scored.bias)

    def _draw(self, batch: JaggedBatch, places: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor | None]:
        """Negatives, and which list each row has."""
        num_negatives = self.config.num_negatives
        if self.config.kind == "mixed_logq":
            if self._mixture is None:
                raise ValueError("loss.kind=mixed_logq needs the training counts; call read(dataset) of the model")
            return self._mixture.draw(num_negatives, generator), None
        if self.config.shared == "batch":
            return draw_distinct(self.num_items, num_negatives, generator), None
        if self.config.shared == "none":
            return draw_rows(len(places), self.num_items, num_negatives, generator), None
        if self._training_items is None:
            raise ValueError("loss.shared=sequence needs the users' items; call read(dataset) of the model")
        if batch.users is None:
            raise ValueError("batch.users is None; loss.shared=sequence needs the user of each sequence")
        seen, lengths = self._training_items.of(batch.users.numpy(force=True))
        negatives = draw_unseen(seen, lengths, self.num_items, num_negatives, generator)
        return negatives, torch.bucketize(places, batch.offsets[1:], right=True)

    def _check_size(self) -> None:
        config = self.config
        if config.kind != "ce" and config.num_negatives >= self.num_items:
            raise ConfigError(
                f"model.loss.num_negatives={config.num_negatives} is not below the {self.num_items} items; "
                "lower it, or set model.loss.kind=ce"
            )


def gbce_beta(num_negatives: int, num_items: int, t: float) -> float:
    """The weight of gbce's target: 1 at t=0, the negatives' sampling rate K / (V - 1) at t=1.

    Args:
        num_negatives: K, below `num_items`.
        num_items: V.
        t: calibration in [0, 1].
    """
    return 1.0 - t * (1.0 - num_negatives / (num_items - 1))
