"""What the rest of the platform asks of a model: a few methods, no base class.

Dims: B users (sequences), K candidates, V items, D width, N examples, H hidden width. Item index 0 is padding,
1..V are items.
"""

from typing import Literal, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from recsys.features.batches import JaggedBatch
from recsys.features.click_batch import ClickBatch
from recsys.features.dataset import PreparedDataset
from recsys.features.sampling import Sampling

Labels = Literal["impression", "sampled"]  # what was shown and taken or not; or negatives were drawn


@runtime_checkable
class Scorer(Protocol):
    """Ranks by any rule: floors, oracles, item graphs. Higher is better."""

    def scores(self, batch: JaggedBatch, candidates: Tensor | None = None) -> Tensor:
        """(B, V+1) float: column j is item j, column 0 is -inf; or (B, K) for `candidates` (B, K) int64."""
        ...


@runtime_checkable
class NextItemModel(Protocol):
    """A network that maps a history and an item into one space; the score is their dot product."""

    max_len: int  # longest history that `encode` reads
    train_len: int  # longest training sequence that `loss` reads

    def loss(self, batch: JaggedBatch, generator: torch.Generator) -> Tensor:
        """Scalar: the mean over the batch's targets; masks and negatives come from `generator` (CPU)."""
        ...

    def encode(self, batch: JaggedBatch) -> Tensor:
        """(B, D): the state from which the next item is predicted. Every sequence holds at least one item."""
        ...

    def item_vectors(self, item_ids: Tensor | None = None) -> Tensor:
        """(V+1, D), or (len(item_ids), D). Row 0 is padding and is never recommended."""
        ...


@runtime_checkable
class ClickModel(Protocol):
    """A network that gives an example, a user and an item among others, the probability of a click.

    With labels `sampled` that is the chance of a positive among those drawn: good for order, and never calibrated.
    """

    labels: Labels

    def loss(self, batch: ClickBatch) -> Tensor:
        """Scalar: the mean over the batch's examples."""
        ...

    def predict(self, batch: ClickBatch) -> Tensor:
        """(N,) probability."""
        ...

    def hidden(self, batch: ClickBatch) -> Tensor:
        """(N, H): the state before the output, by which alike examples are found."""
        ...


@runtime_checkable
class SamplesWindows(Protocol):
    """A model that trains on more than the last events of each user, once an epoch."""

    sampling: Sampling


@runtime_checkable
class CountsTargets(Protocol):
    """A model that tells how many targets its loss is the mean of, so that accumulated batches weigh by them."""

    def num_targets(self, batch: JaggedBatch, generator: torch.Generator) -> int:
        """Those of `loss` with a generator in the same state."""
        ...


@runtime_checkable
class ReadsDataset(Protocol):
    """A model that needs more of the dataset than batches: counts of items, vectors, categories."""

    def read(self, dataset: PreparedDataset) -> None:
        """Take it. Called once, after construction and before any checkpoint is loaded."""
        ...


@runtime_checkable
class TrainsRows(Protocol):
    """A module, such as an embedding table, whose rows are no parameters and have an optimizer of their own.

    The training loop finds it among the modules of a model. The gradients of its rows wait for `step`.
    """

    def step(self, lr: float) -> None:
        """Apply the gradients since the last step."""
        ...

    def drop_gradients(self) -> None:
        """Forget the gradients since the last step."""
        ...

    def gradient_norm(self) -> Tensor:
        """Scalar: the length of the gradients since the last step."""
        ...

    def scale_gradients(self, factor: float) -> None:
        """Multiply the gradients since the last step."""
        ...

    def is_finite(self) -> bool:
        """Whether no number of any row is NaN or infinite."""
        ...


@runtime_checkable
class HasGauges(Protocol):
    """A module, such as an embedding table, that tells how it stands: how large it is, what it counted."""

    def gauges(self) -> dict[str, float]:
        """Numbers by name. `refused`, where it is there: how often an id found no room for a row."""
        ...


def rows_of(module: nn.Module) -> dict[str, TrainsRows]:
    """The parts of `module` that train rows of their own, by name."""
    return {name: part for name, part in module.named_modules() if isinstance(part, TrainsRows)}
