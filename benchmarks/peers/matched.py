"""The settings that ours, RecTools and RecBole are trained with side by side, and how each spells them.

RecTools has one width of the feed-forward net for each model (SASRec: the model's own, with ReLU; BERT4Rec: four times
it, with GELU), one dropout for everything, attention weights included, and Adam with beta2 .98: ours and RecBole's
follow. Every side reads at most `max_len` items of a user and trains on one sequence a user.

Where they can not be equal: RecBole's SASRec has a loss at the last position alone (it expects every prefix as a row of
its own, which is off here), ours and RecTools' at every position. RecTools replaces a tenth of the masked events of
BERT4Rec by other items and leaves a tenth; ours and RecBole's mask them all. Ours and RecBole's BERT4Rec have an output
layer and item biases, RecTools' has none. RecTools knows the items of its training windows alone.
"""

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal

from recsys.pipelines.optimization import OptimizationConfig

Model = Literal["sasrec", "bert4rec"]
MAX_LEN = {"ml-1m": 200}
DEFAULT_MAX_LEN = 50


@dataclass(frozen=True, kw_only=True)
class Matched:
    """What is the same on every side."""

    model: Model
    max_len: int  # items that a state is made of
    width: int = 64
    layers: int = 2
    heads: int = 2
    dropout: float = 0.2
    mask_prob: float = 0.2  # of BERT4Rec
    lr: float = 1e-3
    beta2: float = 0.98
    sequences_per_batch: int = 256
    threads: int = 2
    seed: int = 0

    @property
    def feed_forward(self) -> int:
        """Width of the feed-forward net: RecTools'."""
        return self.width * (1 if self.model == "sasrec" else 4)

    @property
    def activation(self) -> str:
        """Between the two layers of the feed-forward net: RecTools'."""
        return "relu" if self.model == "sasrec" else "gelu"

    @property
    def window(self) -> int:
        """Events of a user that an epoch reads at most: SASRec's last one is a target alone."""
        return self.max_len + (1 if self.model == "sasrec" else 0)

    def ours(self, data: Path, *, epochs: int, precision: str) -> dict[str, Any]:
        """The config of our run: no schedule, no early stop, one validation after the last epoch.

        Args:
            data: folder of the prepared dataset.
            epochs: at least 1.
            precision: `fp32`, or a value of `train.precision`.
        """
        model: dict[str, Any] = {
            "name": self.model,
            "max_len": self.max_len,
            "d_model": self.width,
            "num_layers": self.layers,
            "num_heads": self.heads,
            "d_ff": self.feed_forward,
            "activation": self.activation,
            "dropout": self.dropout,
            "attention_dropout": self.dropout,
        }
        if self.model == "bert4rec":
            model |= {"mask_share": self.mask_prob, "last_item_share": 0.0}
        train: dict[str, Any] = {
            "epochs": epochs,
            "lr": self.lr,
            "beta2": self.beta2,
            "tokens_per_batch": self.sequences_per_batch * self.window,
            "sequences_per_batch": self.sequences_per_batch,
            "validate_every": epochs,
            "patience": None,
            "device": "cpu",
            "threads": self.threads,
        }
        if precision != "fp32":
            train["precision"] = precision
        return {"data": str(data), "model": model, "train": train, "seed": self.seed}


def matched(data: str, model: Model, **changed: Any) -> Matched:
    """The settings of one set and model; `changed` names fields of `Matched`."""
    return Matched(model=model, max_len=MAX_LEN.get(data, DEFAULT_MAX_LEN), **changed)


def has_precision() -> bool:
    """Whether our training can run in another precision than float32."""
    return "precision" in {field.name for field in fields(OptimizationConfig)}
