"""search_topk in plain torch: runs of like length share a padded product, and most scores are never sorted.

A row's columns are cut into chunks of 32. The K best columns lie in the K chunks whose best columns are best, so only
these chunks are ranked one by one: a pass over the maxima takes the place of most of the work.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from recsys.kernels.search.scoring import Scoring

CELLS = 1 << 19  # scores held at once
CHUNK = 32
CHUNKS_PAY = 40  # columns per kept one from which ranking by chunks is faster
SLACK = 1.25  # how much longer than its shortest run a group's longest may be


def search_topk_torch(scoring: Scoring, offsets_c: Tensor, offsets_k: Tensor, top_k: int) -> tuple[Tensor, Tensor]:
    """idx and score, (Tc, H, K) each; the offsets are read on the host."""
    Tc, H, _ = scoring.q.shape
    device = scoring.q.device
    idx = torch.full((Tc, H, top_k), -1, dtype=torch.int32, device=device)
    score = torch.full((Tc, H, top_k), -torch.inf, dtype=scoring.dtype, device=device)
    for group in _groups(_runs(offsets_c.cpu().numpy(), offsets_k.cpu().numpy(), H)):
        scores, lengths = _scores(scoring, group)
        best, value = best_columns(scores.flatten(0, 2), lengths, top_k)
        kept = best.shape[1]
        rows, is_row = group.rows("c", device)
        picked = (x.view(*scores.shape[:3], kept).transpose(1, 2)[is_row] for x in (best, value))  # (rows, H, kept)
        idx[rows[is_row], :, :kept], score[rows[is_row], :, :kept] = picked
    return idx, score


def best_columns(scores: Tensor, lengths: Tensor, top_k: int) -> tuple[Tensor, Tensor]:
    """The best min(top_k, n) columns of each row, and their scores; -1 and -inf where the row is shorter.

    Args:
        scores: (R, n), n a multiple of 32; what lies behind a row's length is -inf.
        lengths: (R,) int64, columns of each row.
    """
    columns = torch.arange(scores.shape[1], device=scores.device).expand(len(scores), -1)
    if scores.shape[1] >= CHUNKS_PAY * top_k:
        maxima = scores.view(len(scores), -1, CHUNK).amax(2)  # (R, n / 32)
        if not bool(maxima.isnan().any()):
            chunks = _ranked(maxima, None, top_k).sort(dim=1).values  # ascending: places keep the order of columns
            first = torch.arange(len(scores), device=scores.device)[:, None] * maxima.shape[1]
            picked = (first + chunks).flatten()
            scores = scores.view(-1, CHUNK).index_select(0, picked).view(len(scores), -1)
            columns = (chunks[:, :, None] * CHUNK + columns[0, :CHUNK]).flatten(1)
    is_out = columns >= lengths[:, None]
    order = _ranked(scores, is_out, top_k)
    is_short = is_out.gather(1, order)
    best = columns.gather(1, order).masked_fill_(is_short, -1)
    return best.to(torch.int32), (scores.gather(1, order) + 0.0).masked_fill_(is_short, -torch.inf)


def _ranked(scores: Tensor, is_out: Tensor | None, top_k: int) -> Tensor:
    """(R, min(top_k, n)) columns in the order of search_topk; those that are out come last."""
    keys = _ordered(scores)
    if is_out is not None:
        keys.masked_fill_(is_out, torch.iinfo(keys.dtype).min)
    n = scores.shape[1]
    if keys.dtype == torch.int64:  # float64: no room for the column in the same key
        return keys.sort(dim=1, stable=True, descending=True).indices[:, :top_k]
    low = torch.arange(n - 1, -1, -1, device=scores.device)
    packed = keys.to(torch.int64).bitwise_left_shift_(32).bitwise_or_(low)
    best = packed.topk(min(top_k, n), dim=1).values
    return n - 1 - best.bitwise_and_(0xFFFFFFFF)


def _ordered(scores: Tensor) -> Tensor:
    """Integers in the order of the scores; NaN before -inf, behind what is out."""
    kind = torch.int64 if scores.dtype == torch.float64 else torch.int32
    limits = torch.iinfo(kind)
    bits = (scores + 0.0).view(kind)
    keys = (bits >> (limits.bits - 1)).bitwise_and_(limits.max).bitwise_xor_(bits)
    return keys.masked_fill_(scores.isnan(), limits.min + 1)


@dataclass(frozen=True)
class _Runs:
    """Candidates and behaviours that meet: a sequence, or some of its candidates."""

    start_c: np.ndarray
    count_c: np.ndarray
    start_k: np.ndarray
    count_k: np.ndarray

    def __getitem__(self, i: slice | np.ndarray) -> "_Runs":
        return _Runs(self.start_c[i], self.count_c[i], self.start_k[i], self.count_k[i])

    def rows(self, side: str, device: torch.device) -> tuple[Tensor, Tensor]:
        """(g, n) rows, the last one repeated up to the longest, and which are no repetition."""
        start, count = (self.start_c, self.count_c) if side == "c" else (self.start_k, self.count_k)
        place = np.arange(count.max())[None]
        rows = start[:, None] + np.minimum(place, count[:, None] - 1)
        return torch.from_numpy(rows).to(device), torch.from_numpy(place < count[:, None]).to(device)


def _runs(ends_c: np.ndarray, ends_k: np.ndarray, num_heads: int) -> _Runs:
    """Sequences with both candidates and behaviours, cut where their scores are too many, shortest first."""
    len_c, len_k = np.diff(ends_c), np.diff(ends_k)
    piece = np.maximum(CELLS // np.maximum(len_k * num_heads, 1), 1)
    pieces = np.where(len_k > 0, -(-len_c // piece), 0)
    sequence = np.repeat(np.arange(len(len_c)), pieces)
    within = np.arange(len(sequence)) - np.repeat(np.cumsum(pieces) - pieces, pieces)
    skipped = within * piece[sequence]
    count_c = np.minimum(len_c[sequence] - skipped, piece[sequence])
    runs = _Runs(ends_c[sequence] + skipped, count_c, ends_k[sequence], len_k[sequence])
    return runs[np.lexsort((count_c, runs.count_k))]


def _groups(runs: _Runs) -> Iterator[_Runs]:
    """Neighbours of like length, as many as there is room for."""
    first, most_c = 0, 0
    for last in range(len(runs.count_k)):
        most_c = max(most_c, int(runs.count_c[last]))
        cells = (last - first + 1) * most_c * int(runs.count_k[last])
        is_longer = runs.count_k[last] > SLACK * runs.count_k[first] + CHUNK
        is_wider = most_c > 4 * int(runs.count_c[first : last + 1].min())
        if last > first and (is_longer or is_wider or cells > CELLS):
            yield runs[first:last]
            first, most_c = last, int(runs.count_c[last])
    if len(runs.count_k):
        yield runs[first:]


def _scores(scoring: Scoring, group: _Runs) -> tuple[Tensor, Tensor]:
    """(g, H, nc, n) scores, n a multiple of 32, -inf behind a run's end; and the length of each row."""
    device, H, n = scoring.q.device, scoring.q.shape[1], int(group.count_k.max())
    q, k = _of(scoring.q, group, "c", scoring.dtype), _of(scoring.k, group, "k", scoring.dtype)
    padded = q.new_empty(len(q), q.shape[1], -(-n // CHUNK) * CHUNK)
    padded[:, :, n:] = -torch.inf
    scores = padded[:, :, :n]
    torch.baddbmm(scores, q, k.transpose(1, 2), beta=0, alpha=scoring.scale, out=scores)
    if scoring.q2 is not None and scoring.k2 is not None:
        q2, k2 = _of(scoring.q2, group, "c", scoring.dtype), _of(scoring.k2, group, "k", scoring.dtype)
        scores.baddbmm_(q2, k2.transpose(1, 2), alpha=scoring.scale2)
    if scoring.k_bias is not None:
        scores += _of(scoring.k_bias[:, :, None], group, "k", scoring.dtype).transpose(1, 2)
    padded = padded.view(-1, H, *padded.shape[1:])
    if group.count_k.min() < n:
        padded[..., :n].masked_fill_(~group.rows("k", device)[1][:, None, None], -torch.inf)
    lengths = torch.from_numpy(group.count_k).to(device)[:, None].expand(-1, H * padded.shape[2])
    return padded, lengths.flatten()


def _of(x: Tensor, group: _Runs, side: str, dtype: torch.dtype) -> Tensor:
    """(g * H, n, D), the rows of a group's runs; no copy of a run that is alone."""
    if len(group.count_k) == 1:
        start, count = (group.start_c, group.count_c) if side == "c" else (group.start_k, group.count_k)
        return x[int(start[0]) : int(start[0] + count[0])].to(dtype).transpose(0, 1)
    rows, _ = group.rows(side, x.device)
    picked = x.index_select(0, rows.flatten()).to(dtype)
    return picked.view(*rows.shape, *x.shape[1:]).transpose(1, 2).flatten(0, 1)
