"""topk_attend in plain torch: the kept rows are gathered for as many candidates at once as there is room for."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from recsys.kernels.ordered_add import add_rows
from recsys.kernels.search.scoring import Scoring

NUMBERS = 1 << 20  # of gathered rows held at once

Gradients = tuple[
    Tensor, Tensor, Tensor, Tensor, Tensor, Tensor
]  # of q, k, v, q2, k2, k_bias; empty where there is none


def attend_torch(scoring: Scoring, v: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
    """out (Tc, H, Dv) and the log of the softmax denominator (Tc, H)."""
    Tc, H, _ = rows.shape
    out, lse = v.new_zeros(Tc, H, v.shape[2]), v.new_full((Tc, H), -torch.inf, dtype=scoring.dtype)
    for piece in _pieces(scoring, v, rows):
        scores = piece.scores()
        lse[piece.c] = scores.logsumexp(2)
        weights = _weights(scores, lse[piece.c])
        out[piece.c] = torch.matmul(weights[:, :, None], piece.of(v))[:, :, 0].to(v.dtype)
    return out, lse


def attend_backward_torch(scoring: Scoring, v: Tensor, rows: Tensor, lse: Tensor, grad: Tensor) -> Gradients:
    """Gradients of (out * grad).sum()."""
    s, dtype = scoring, scoring.dtype
    bias = None if s.k_bias is None else s.k_bias[..., None]  # (Tk, H, 1)
    dq, dk, dv, dq2, dk2, dbias = (
        None if x is None else torch.zeros(x.shape, dtype=dtype, device=x.device)
        for x in (s.q, s.k, v, s.q2, s.k2, bias)
    )
    assert dq is not None
    assert dk is not None
    assert dv is not None
    for piece in _pieces(scoring, v, rows):
        weights = _weights(piece.scores(), lse[piece.c])
        g = grad[piece.c].to(dtype)  # (c, H, Dv)
        rate = torch.matmul(piece.of(v), g[..., None])[..., 0]  # (c, H, K)
        rate = weights * (rate - (weights * rate).sum(2, keepdim=True))  # gradient of the scores
        piece.add(dv, weights[..., None] * g[:, :, None])
        piece.backward_of_pair(rate * s.scale, s.q, s.k, dq, dk)
        if s.q2 is not None and s.k2 is not None and dq2 is not None and dk2 is not None:
            piece.backward_of_pair(rate * s.scale2, s.q2, s.k2, dq2, dk2)
        if dbias is not None:
            piece.add(dbias, rate[..., None])
    none = v.new_empty(0)
    return (
        dq.to(s.q.dtype),
        dk.to(s.k.dtype),
        dv.to(v.dtype),
        none if dq2 is None else dq2.to(s.q.dtype),
        none.clone() if dk2 is None else dk2.to(s.q.dtype),
        none.clone() if dbias is None or s.k_bias is None else dbias[..., 0].to(s.k_bias.dtype),
    )


@dataclass(frozen=True)
class _Piece:
    """Some candidates and the rows kept for them."""

    scoring: Scoring
    c: slice
    flat: Tensor  # (c * H * K,) rows of (Tk * H, width); 0 where nothing is kept
    is_kept: Tensor  # (c, H, K)
    is_full: bool

    def of(self, x: Tensor) -> Tensor:
        """(c, H, K, width) rows, zero where nothing is kept."""
        picked = x.flatten(0, 1).index_select(0, self.flat).to(self.scoring.dtype)
        picked = picked.view(*self.is_kept.shape, x.shape[2])
        return picked if self.is_full else picked.masked_fill_(~self.is_kept[..., None], 0.0)

    def scores(self) -> Tensor:
        """(c, H, K), -inf where nothing is kept."""
        s = self.scoring
        scores = torch.matmul(self.of(s.k), s.q[self.c].to(s.dtype)[..., None])[..., 0] * s.scale
        if s.q2 is not None and s.k2 is not None:
            scores += torch.matmul(self.of(s.k2), s.q2[self.c].to(s.dtype)[..., None])[..., 0] * s.scale2
        if s.k_bias is not None:
            scores += self.of(s.k_bias[..., None])[..., 0]
        return scores if self.is_full else scores.masked_fill_(~self.is_kept, -torch.inf)

    def backward_of_pair(self, rate: Tensor, q: Tensor, k: Tensor, dq: Tensor, dk: Tensor) -> None:
        """Set the gradient of q and add to that of k, where `rate` (c, H, K) is that of <q, k>."""
        dq[self.c] = torch.matmul(rate[:, :, None], self.of(k))[:, :, 0]
        self.add(dk, rate[..., None] * q[self.c].to(self.scoring.dtype)[:, :, None])

    def add(self, total: Tensor, parts: Tensor) -> None:
        """Add (c, H, K, width) to the kept rows of (Tk, H, width), in their order."""
        flat, parts = self.flat, parts.flatten(0, 2)
        if not self.is_full:
            kept = self.is_kept.flatten()
            flat, parts = flat[kept], parts[kept]
        add_rows(total.flatten(0, 1), flat, parts)


def _pieces(scoring: Scoring, v: Tensor, rows: Tensor) -> Iterator[_Piece]:
    Tc, H, K = rows.shape
    width = max(scoring.q.shape[2], v.shape[2])
    step = max(NUMBERS // max(H * K * width, 1), 1)
    heads = torch.arange(H, device=rows.device)[:, None]
    for start in range(0, Tc if v.shape[0] else 0, step):  # without behaviours there is no row to gather
        c = slice(start, min(start + step, Tc))
        is_kept = rows[c] >= 0
        flat = torch.where(is_kept, rows[c] * H + heads, 0).flatten()
        yield _Piece(scoring, c, flat, is_kept, bool(is_kept.all()))


def _weights(scores: Tensor, lse: Tensor) -> Tensor:
    """Softmax of the kept, 0 for all where there are none."""
    return torch.exp(scores - lse.masked_fill(lse == -torch.inf, 0.0)[..., None])
