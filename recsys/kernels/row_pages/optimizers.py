"""Optimizers of single rows: a row that had no gradient does not change, nor does its state.

    sgd                w -= lr g
    row_wise_adagrad   s += mean(g^2)        w -= lr g / (sqrt(s) + eps)
    adagrad            s += g^2              w -= lr g / (sqrt(s) + eps)
    adam               n += 1, m and v move  w -= lr (m / (1 - beta1^n)) / (sqrt(v / (1 - beta2^n)) + eps)

g is the sum of a row's gradients in the call. n counts the row's own updates: a row that comes late begins like the
first ones did. Weight decay is decoupled: w *= 1 - lr weight_decay before the step.
"""

from dataclasses import dataclass
from typing import Literal, get_args

from torch import Tensor

from recsys.config import check_types

Name = Literal["sgd", "row_wise_adagrad", "adagrad", "adam"]
NAMES: tuple[Name, ...] = get_args(Name)


@dataclass(frozen=True)
class RowOptimizer:
    """How rows are updated.

    Attributes:
        name: sgd, row_wise_adagrad, adagrad or adam.
        weight_decay: decoupled; of the rows that have a gradient alone.
        eps: beside the root.
        beta1, beta2: of adam.
        initial_accumulator: s of a new row, of both adagrads.
    """

    name: Name = "row_wise_adagrad"
    weight_decay: float = 0.0
    eps: float = 1e-8
    beta1: float = 0.9
    beta2: float = 0.999
    initial_accumulator: float = 0.0

    def __post_init__(self) -> None:
        if self.name not in NAMES:
            raise ValueError(f"optimizer {self.name!r}; wanted {', '.join(NAMES)}")
        check_types(self)
        for field, is_right, wanted in (
            ("weight_decay", self.weight_decay >= 0, "at least 0"),
            ("eps", self.eps > 0, "above 0"),
            ("beta1", 0 <= self.beta1 < 1, "in [0, 1)"),
            ("beta2", 0 <= self.beta2 < 1, "in [0, 1)"),
            ("initial_accumulator", self.initial_accumulator >= 0, "at least 0"),
        ):
            if not is_right:
                raise ValueError(f"{field}={getattr(self, field)}; wanted {wanted}")

    def state_width(self, width: int) -> int:
        """Numbers of state beside a row of so many."""
        return {"sgd": 0, "row_wise_adagrad": 1, "adagrad": width, "adam": 2 * width + 1}[self.name]

    @property
    def initial_state(self) -> float:
        """Every number of a new row's state."""
        return self.initial_accumulator if self.name in ("row_wise_adagrad", "adagrad") else 0.0

    def step(self, vectors: Tensor, states: Tensor, gradients: Tensor, lr: float) -> None:
        """Update rows in place.

        Args:
            vectors: (U, D).
            states: (U, state_width(D)).
            gradients: (U, D), their sums.
            lr: learning rate.
        """
        width = vectors.shape[1]
        vectors.mul_(1 - lr * self.weight_decay)
        if self.name == "sgd":
            vectors.sub_(lr * gradients)
        elif self.name == "adam":
            mean, square, count = states[:, :width], states[:, width : 2 * width], states[:, 2 * width :]
            count += 1
            mean.mul_(self.beta1).add_((1 - self.beta1) * gradients)
            square.mul_(self.beta2).add_((1 - self.beta2) * gradients * gradients)
            of_mean, of_square = ((1 - beta ** count.double()).float() for beta in (self.beta1, self.beta2))
            vectors.sub_(lr * (mean / of_mean) / ((square / of_square).sqrt() + self.eps))
        else:
            squares = gradients * gradients
            states += squares.mean(1, keepdim=True) if self.name == "row_wise_adagrad" else squares
            vectors.sub_(lr * gradients / (states.sqrt() + self.eps))
