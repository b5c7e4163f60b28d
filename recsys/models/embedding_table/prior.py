"""What the row of a new id starts from, where something is known of the id beside itself.

    CategoryPrior   w = (sum of the rows of its category + s * mean of all rows) / (rows of its category + s) + noise
    TextPrior       w = mean of all rows + (t - mean of all t) A + noise
                    A = argmin |(T - mean) A - (W - mean)|^2 + ridge |A|^2 over the ids with a row: a mean of rows,
                    weighed by how alike their texts are
    popularity      bias = a + b log(1 + popularity), a and b by least squares over the ids with a row

Sums run over the rows that live, and are taken anew when new ids come and a quarter more rows live than then, or a
number of steps passed. Of more than 131,072 rows so many are read, evenly by their numbers, so that no step waits for a
large table; a step that only trains pays nothing. The same stream gives the same rows, bit for bit; what was fitted is
part of the table's state.

Mean of a category with s: Laplace smoothing. The map from content to factors is that of Gantner et al. 2010, "Learning
Attribute-to-Feature Mappings for Cold-Start Recommendations"; differs: linear by ridge regression.

Dims: N new ids, M rows that live, C categories of an id, E numbers of a text vector, K categories, W width of a row.
"""

from collections.abc import Callable, Mapping
from typing import Protocol

import torch
from torch import Tensor

from recsys.models.embedding_table.state_checks import tensor_of

MOST_FITTED = 1 << 17  # rows that are read: a step waits for no more, however large the table is
ANEW = "no tensor of the prior at all: it is fitted anew then"
GROWTH = 1.25  # of the rows, from where on the sums are taken anew

OfIds = Callable[[Tensor], Tensor]


class Rows(Protocol):
    """What of a table is read: ids and vectors of the rows that live, and the step."""

    def live(self, most: int) -> tuple[Tensor, Tensor]:
        """(M,) int64 ids and (M, W) float32 vectors; of more rows than `most` so many, evenly by row number."""

    @property
    def tick(self) -> int:
        """The running step."""

    def __len__(self) -> int:
        """M, and the new ids."""


class Prior(Protocol):
    """Says where new rows start."""

    def starts(self, ids: Tensor, rows: Rows) -> Tensor | None:
        """(N, W) float32 that is added to what is drawn for new ids (N,) int64, zeros where nothing is known of one.

        None where nothing is known of any, as before the first row.
        """

    def state(self) -> dict[str, Tensor]:
        """What must be kept for exactly the same starts later."""

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Take up what `state` gave."""


class _Fitted:
    """A prior that is fitted to the rows from time to time."""

    def __init__(self, every: int) -> None:
        if every < 1:
            raise ValueError(f"every={every}; wanted at least 1 step")
        self.every = every
        self.forget()

    def forget(self) -> None:
        """Be fitted anew when the next row begins."""
        self._fitted_at = torch.tensor([-1, 0])  # step, and rows that lived then
        self._numbers: dict[str, Tensor] = {}

    def starts(self, ids: Tensor, rows: Rows) -> Tensor | None:
        """(N, W) float32 that is added to what is drawn for new ids (N,) int64, zeros where nothing is known of one.

        None where nothing is known of any, as before the first row.
        """
        (tick, size), live = self._fitted_at.tolist(), len(rows) - len(ids)
        is_old = not 0 <= tick <= rows.tick < tick + self.every  # after a renumbering the step lies ahead
        if live and (is_old or live >= GROWTH * size):
            known, vectors = rows.live(MOST_FITTED)
            self._numbers = self._fit(known, vectors.double())
            self._fitted_at = torch.tensor([rows.tick, live])
        return self._of(ids).float() if self._numbers else None

    def state(self) -> dict[str, Tensor]:
        """What was fitted, and when."""
        return {"fitted_at": self._fitted_at.clone(), **{name: value.clone() for name, value in self._numbers.items()}}

    def check_state(self, state: Mapping[str, Tensor]) -> None:
        """Whether `load_state` would take it; nothing changes.

        Raises:
            ValueError: it is no state of such a prior; the message begins with the tensor's name.
        """
        step, rows = tensor_of(state, "fitted_at", 2).tolist()
        if step < -1 or rows < 0:
            raise ValueError(f"fitted_at holds {step} and {rows}; wanted a step of at least -1, and at least 0 rows")
        self._check_numbers(self._used(state))

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Take up what `state` gave.

        Raises:
            ValueError: it is no state of such a prior; nothing changes.
        """
        self.check_state(state)
        self._fitted_at = state["fitted_at"].cpu().clone()
        self._numbers = {name: value.clone() for name, value in self._used(state).items()}

    def width_of(self, state: Mapping[str, Tensor]) -> int | None:
        """Numbers of the rows that a state was fitted to, which `check_state` took; None of one that was not."""
        numbers = self._used(state)
        return numbers[self.of_rows].shape[-1] if numbers else None

    of_rows = ""  # which of the numbers has the width of rows

    def _used(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {name: value for name, value in state.items() if name != "fitted_at"}

    def _check_numbers(self, numbers: Mapping[str, Tensor]) -> None:
        raise NotImplementedError

    def _fit(self, ids: Tensor, vectors: Tensor) -> dict[str, Tensor]:
        raise NotImplementedError

    def _of(self, ids: Tensor) -> Tensor:
        raise NotImplementedError


class CategoryPrior(_Fitted):
    """Starts at the mean of the rows of an id's categories, drawn towards the mean of all.

    Args:
        category_of: (N,) or (N, C) int64 categories of ids (N,) int64, from 0; -1 for none. The same id has the same.
        num_categories: K.
        smoothing: rows of the mean of all that are counted with those of a category, s.
        popularity_of: (N,) float popularity of ids (N,), such as expected events; NaN where it is not known, which then
            is the mean of its category's, in logarithms. None: the bias is a number of the row like all others.
        bias_column: of the row, that holds its bias; read with `popularity_of` alone.
        every: steps after which the sums are taken anew.
    """

    def __init__(
        self,
        category_of: OfIds,
        num_categories: int,
        *,
        smoothing: float = 1.0,
        popularity_of: OfIds | None = None,
        bias_column: int = -1,
        every: int = 100,
    ) -> None:
        super().__init__(every)
        if num_categories < 1:
            raise ValueError(f"num_categories={num_categories}; wanted at least 1")
        if smoothing < 0:
            raise ValueError(f"smoothing={smoothing}; wanted at least 0")
        self.category_of, self.num_categories, self.smoothing = category_of, num_categories, smoothing
        self.popularity_of, self.bias_column = popularity_of, bias_column

    def _fit(self, ids: Tensor, vectors: Tensor) -> dict[str, Tensor]:
        found = {"means": self._means(ids, vectors)}
        if self.popularity_of is None:
            return found
        logs = self._logs(ids)
        known = ~logs.isnan()
        x, y = logs[known], vectors[known, self.bias_column]
        if len(x) == 0:
            return found
        slope = ((x - x.mean()) * (y - y.mean())).sum() / (x - x.mean()).square().sum().clamp(min=1e-12)
        found["line"] = torch.stack([y.mean() - slope * x.mean(), slope])
        found["logs"] = self._means(ids[known], x[:, None])
        return found

    of_rows = "means"

    def _used(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        unused = ("fitted_at",) if self.popularity_of is not None else ("fitted_at", "line", "logs")
        return {name: value for name, value in state.items() if name not in unused}

    def _check_numbers(self, numbers: Mapping[str, Tensor]) -> None:
        wanted: dict[str, tuple[int | None, ...]] = {"means": (self.num_categories, None)} if numbers else {}
        if not numbers.keys().isdisjoint(("line", "logs")):
            wanted |= {"line": (2,), "logs": (self.num_categories, 1)}
        _check(numbers, wanted)

    def _means(self, ids: Tensor, values: Tensor) -> Tensor:
        """(K, …) smoothed means of values (M, …) by category."""
        categories = self._categories(ids)
        row, _ = (categories >= 0).nonzero(as_tuple=True)
        of_row = categories[categories >= 0]
        sums = values.new_zeros(self.num_categories, values.shape[1]).index_add_(0, of_row, values[row])
        counts = torch.bincount(of_row, minlength=self.num_categories)[:, None]
        sums += self.smoothing * values.mean(0)
        return torch.where(counts > 0, sums / (counts + self.smoothing).clamp(min=1e-12), values.mean(0))

    def _of(self, ids: Tensor) -> Tensor:
        categories = self._categories(ids)
        starts = _mean_over(categories, self._numbers["means"])
        if self.popularity_of is not None and "line" in self._numbers:
            logs = self._logs(ids)
            of_category = _mean_over(categories, self._numbers["logs"]).squeeze(1)
            is_told = (categories >= 0).any(1) | ~logs.isnan()
            offset, slope = self._numbers["line"]
            bias = offset + slope * torch.where(logs.isnan(), of_category, logs)
            starts[:, self.bias_column] = torch.where(is_told, bias, 0.0)
        return starts

    def _categories(self, ids: Tensor) -> Tensor:
        """(N, C), checked."""
        found = self.category_of(ids)
        if found.shape[:1] != ids.shape or found.dim() > 2 or found.dtype != torch.int64:
            raise ValueError(
                f"category_of gave {tuple(found.shape)} of {found.dtype} for {len(ids)} ids; "
                f"wanted ({len(ids)},) or ({len(ids)}, C) of torch.int64"
            )
        if found.numel() and int(found.max()) >= self.num_categories:
            raise ValueError(f"category_of gave {int(found.max())}; wanted -1 to {self.num_categories - 1}")
        return found.view(len(ids), -1)

    def _logs(self, ids: Tensor) -> Tensor:
        assert self.popularity_of is not None
        popularity = self.popularity_of(ids).double()
        if popularity.shape != ids.shape:
            raise ValueError(f"popularity_of gave {tuple(popularity.shape)} for {len(ids)} ids; wanted ({len(ids)},)")
        wrong = popularity[(popularity < 0) | popularity.isinf()]
        if len(wrong):
            raise ValueError(f"popularity_of gave {float(wrong[0])}; wanted a number of at least 0, or NaN")
        return popularity.log1p()


class TextPrior(_Fitted):
    """Starts where a linear map takes an id's text vector, fitted to the texts and rows of the ids that live.

    Args:
        vector_of: (N, E) float text vectors of ids (N,) int64; one with a NaN or an infinite number is not known.
        ridge: times the mean square of the text vectors' numbers, so that it has no unit.
        every: steps after which it is fitted anew.
    """

    def __init__(self, vector_of: OfIds, *, ridge: float = 1.0, every: int = 100) -> None:
        super().__init__(every)
        if ridge <= 0:
            raise ValueError(f"ridge={ridge}; wanted above 0")
        self.vector_of, self.ridge = vector_of, ridge

    def _fit(self, ids: Tensor, vectors: Tensor) -> dict[str, Tensor]:
        texts = self.vector_of(ids).double()
        known = texts.isfinite().all(1)
        texts, rows = texts[known], vectors[known]
        if len(texts) == 0:
            return {}
        middle, mean = texts.mean(0), rows.mean(0)
        centred = texts - middle
        weight = self.ridge * centred.square().mean().clamp(min=1e-12)
        square = centred.T @ centred + weight * torch.eye(texts.shape[1], dtype=torch.float64, device=texts.device)
        return {"map": torch.linalg.solve(square, centred.T @ (rows - mean)), "middle": middle, "mean": mean}

    of_rows = "mean"

    def _check_numbers(self, numbers: Mapping[str, Tensor]) -> None:
        if not numbers:
            return
        _check(numbers, {"map": (None, None), "middle": (None,), "mean": (None,)})
        sizes = len(numbers["middle"]), len(numbers["mean"])
        if numbers["map"].shape != sizes:
            raise ValueError(f"map has the shape {tuple(numbers['map'].shape)}; wanted {sizes}, of middle and mean")

    def _of(self, ids: Tensor) -> Tensor:
        texts = self.vector_of(ids).double()
        if texts.shape[1:] != self._numbers["middle"].shape:
            raise ValueError(
                f"vector_of gave {tuple(texts.shape)} numbers; the prior was fitted to vectors of "
                f"{len(self._numbers['middle'])}; load the table with {ANEW}"
            )
        starts = self._numbers["mean"] + (texts - self._numbers["middle"]) @ self._numbers["map"]
        return torch.where(texts.isfinite().all(1, keepdim=True), starts, 0.0)


def _check(numbers: Mapping[str, Tensor], wanted: Mapping[str, tuple[int | None, ...]]) -> None:
    """Whether these float64 numbers are there and no others, of shapes in which None is any size."""
    for name in [*wanted, *numbers]:
        if name not in numbers or name not in wanted:
            fault = "is missing" if name in wanted else "is not known"
            raise ValueError(f"{name} {fault}; wanted {', '.join(wanted) or 'nothing'} beside fitted_at, or {ANEW}")
    for name, shape in wanted.items():
        found, dtype = numbers[name].shape, numbers[name].dtype
        if dtype != torch.float64:
            raise ValueError(f"{name} is {dtype}; wanted torch.float64")
        if len(found) != len(shape) or any(size not in (None, have) for size, have in zip(shape, found, strict=True)):
            raise ValueError(f"{name} has the shape {tuple(found)}; wanted {shape}, None being any, or {ANEW}")


def _mean_over(categories: Tensor, means: Tensor) -> Tensor:
    """(N, …) mean of `means` (K, …) over an id's categories (N, C), -1 none; zeros where it has none."""
    is_one = (categories >= 0)[:, :, None]
    return (means[categories.clamp(min=0)] * is_one).sum(1) / is_one.sum(1).clamp(min=1)
