"""Examples of a click model: what was shown or sampled, and whether it was taken.

Dims: N examples, F id columns, C dense columns. Needs torch alone.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

NO_ID = -1  # in a column of ids: there is none, as before a user's first event


@dataclass(frozen=True)
class ClickBatch:
    """N examples.

    Attributes:
        ids: (N, F) int64, raw ids of any range; -1 is no id.
        labels: (N,) float32, 1 where it was taken, else 0; None where only a prediction is asked.
        dense: (N, C) float32, or None.
        times: (N,) int64 us UTC, when each was shown; None where there is no time.

    Raises:
        ValueError: a shape or a type does not fit.
    """

    ids: Tensor
    labels: Tensor | None = None
    dense: Tensor | None = None
    times: Tensor | None = None

    def __post_init__(self) -> None:
        if self.ids.dtype != torch.int64 or self.ids.dim() != 2:
            raise ValueError(f"ids is {self.ids.dtype} of the shape {tuple(self.ids.shape)}; wanted int64 (N, F)")
        for name, values, dims in (("labels", self.labels, 1), ("dense", self.dense, 2), ("times", self.times, 1)):
            if values is not None and (values.dim() != dims or len(values) != len(self.ids)):
                raise ValueError(f"{name} has the shape {tuple(values.shape)}; wanted {len(self.ids)} rows, as ids has")

    def __len__(self) -> int:
        """N."""
        return len(self.ids)

    def __getitem__(self, rows: slice | Tensor) -> "ClickBatch":
        """Those examples."""
        return ClickBatch(*(None if part is None else part[rows] for part in self._parts))  # type: ignore[arg-type]  # parts in the order of the fields

    @property
    def _parts(self) -> tuple[Tensor | None, ...]:
        return self.ids, self.labels, self.dense, self.times
