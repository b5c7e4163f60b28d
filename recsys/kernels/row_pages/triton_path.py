"""Rows in pages, by the kernels of `triton_rows.py`; gradients are put in the order of their rows by torch."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import triton
from torch import Tensor

from recsys.kernels.launch import launch_of
from recsys.kernels.row_pages import triton_rows as kernels
from recsys.kernels.row_pages.optimizers import NAMES, RowOptimizer

MAX_BLOCK = 1024
MIN_BLOCK = 8
PIECE = 64  # gradients that are summed one after the other
ALIGNED = 4  # numbers: pages begin at multiples of 16 bytes
NUMBER_BYTES = 4  # of float32 and int32


@dataclass(frozen=True)
class Pages:
    """Pages of one kind.

    Attributes:
        base: the first page.
        begins: (P,) int64, where each begins, in numbers from the first page on.
        log_page: a page has 2^log_page rows.
        width: numbers of a row.
    """

    base: Tensor
    begins: Tensor
    log_page: int
    width: int

    @classmethod
    def of(cls, pages: Sequence[Tensor], log_page: int, width: int) -> "Pages":
        """The pages (2^log_page, width), or (2^log_page,), of float32 or int32."""
        first = pages[0]
        begins = [(page.data_ptr() - first.data_ptr()) // NUMBER_BYTES for page in pages]
        return cls(first, torch.tensor(begins, device=first.device), log_page, width)


def gather(rows: Tensor, pages: Pages) -> Tensor:
    """(N, width) the rows (N,) int64, zeros where one is below 0."""
    rows = rows.contiguous()
    out = torch.empty(len(rows), pages.width, dtype=pages.base.dtype, device=rows.device)
    part = _part(pages.width)
    if out.numel():
        grid, launch = _copied_by("gather", rows, pages)
        kernels.gather_kernel[grid](
            rows, out, len(rows), pages.base, pages.begins, pages.log_page, pages.width // part, PART=part, **launch
        )
    return out


def scatter(rows: Tensor, pages: Pages, values: Tensor | float) -> None:
    """Write values (N, width), or one value, to rows (N,) int64, each there once; one below 0 is left out."""
    rows = rows.contiguous()
    if len(rows) == 0 or pages.width == 0:
        return
    is_one, part = not isinstance(values, Tensor), _part(pages.width)
    given = values.to(pages.base.dtype).contiguous() if isinstance(values, Tensor) else pages.base
    grid, launch = _copied_by("scatter", rows, pages)
    kernels.scatter_kernel[grid](
        rows,
        given,
        values if is_one else 0.0,
        len(rows),
        pages.base,
        pages.begins,
        pages.log_page,
        pages.width // part,
        PART=part,
        IS_ONE=is_one,
        **launch,
    )


def update(
    rows: Tensor,
    gradients: Tensor,
    vectors: Pages,
    states: Pages,
    ticks: Pages,
    optimizer: RowOptimizer,
    lr: float,
    tick: int,
) -> None:
    """One step of the optimizer for every row, by the sum of its gradients in the order of the call.

    Waits for the GPU: for how many rows there are, and how often one stands there at most.
    """
    kept = (rows >= 0).nonzero().squeeze(1)
    if len(kept) == 0:
        return
    width = vectors.width
    ordered, order = rows[kept].to(torch.int32).sort(stable=True)  # half the passes of int64; rows are below 2^31
    met, times = torch.unique_consecutive(ordered, return_counts=True)
    values, pairs, times = _in_pieces(gradients.float().contiguous(), kept[order], times)
    stops = times.cumsum(0)
    launch = _launch("update", width, rows.device)
    kernels.update_kernel[(triton.cdiv(len(met), launch["BLOCK_N"]),)](
        met.long(),
        values,
        pairs,
        stops - times,
        stops,
        len(met),
        vectors.base,
        vectors.begins,
        states.base,
        states.begins,
        ticks.base,
        ticks.begins,
        vectors.log_page,
        width // _part(width),
        states.width,
        tick,
        lr,
        1 - lr * optimizer.weight_decay,
        optimizer.eps,
        *_powers(optimizer.beta1),
        *_powers(optimizer.beta2),
        KIND=NAMES.index(optimizer.name),
        PART=_part(width),
        **launch,
    )


def _in_pieces(values: Tensor, pairs: Tensor, times: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Values, the places of those of each segment, and how many: sums in place of them while a segment is long.

    Args:
        values: (N, D).
        pairs: (P,) places in `values`, segment by segment.
        times: (S,) how many each segment has.
    """
    most, width = int(times.max()), values.shape[1]
    part = _part(width)
    launch = _launch("piece_sums", width, values.device)
    while most > PIECE:
        pieces = (times + (PIECE - 1)) // PIECE
        segments = torch.repeat_interleave(pieces)
        nth = torch.arange(len(segments), device=values.device) - (pieces.cumsum(0) - pieces)[segments]
        stops = times.cumsum(0)
        starts = (stops - times)[segments] + nth * PIECE
        stops = torch.minimum(starts + PIECE, stops[segments])
        sums = torch.empty(len(segments), width, device=values.device)
        kernels.piece_sums_kernel[(triton.cdiv(len(segments), launch["BLOCK_N"]),)](
            values, pairs, starts, stops, sums, len(segments), width // part, PART=part, **launch
        )
        values, pairs, times = sums, torch.arange(len(segments), device=values.device), pieces
        most = -(-most // PIECE)
    return values, pairs, times


def _part(width: int) -> int:
    """Numbers that are loaded together."""
    return ALIGNED if width % ALIGNED == 0 else 1


def _powers(beta: float) -> tuple[float, float, float]:
    return beta, 1 - beta, math.log(beta) if beta else -math.inf


def _copied_by(kernel: str, rows: Tensor, pages: Pages) -> tuple[tuple[int, int], dict[str, int]]:
    launch = _launch(kernel, min(pages.width, MAX_BLOCK), rows.device)
    return (triton.cdiv(len(rows), launch["BLOCK_N"]), triton.cdiv(pages.width, launch["BLOCK_D"])), launch


def _launch(kernel: str, width: int, device: torch.device) -> dict[str, int]:
    block = max(MIN_BLOCK, triton.next_power_of_2(width))
    return {**launch_of("row_pages", kernel, device, width=block), "BLOCK_D": block}
