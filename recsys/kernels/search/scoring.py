"""How a candidate c scores a behaviour i, the same for search and attention.

    s_ci = scale <q_c, k_i> + scale2 <q2_c, k2_i> + k_bias_i

The first pair is what things are, the second where or when they stand (DARE scales the two apart), the bias a number a
behaviour, such as TWIN's compressed cross features or the log size of a cluster. A bucketed time gap needs nothing of
its own: a sequence's candidates are asked at one moment, so the bucket's vector belongs to the behaviour, in `k2`.

Papers: Feng et al. 2024, arXiv:2410.02604 (DARE); Chang et al. 2023, arXiv:2302.02352 (TWIN).

Dims: Tc candidates, Tk behaviours, H heads, D and D2 widths.
"""

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from recsys.kernels.factors import as_factor
from recsys.kernels.jagged import JaggedMeta, check_is_meta

MAX_WIDTH = 256


@dataclass(frozen=True, kw_only=True)
class Scoring:
    """The tensors and factors of a score."""

    q: Tensor  # (Tc, H, D)
    k: Tensor  # (Tk, H, D)
    scale: float
    q2: Tensor | None  # (Tc, H, D2)
    k2: Tensor | None  # (Tk, H, D2)
    scale2: float
    k_bias: Tensor | None  # (Tk, H)

    @property
    def dtype(self) -> torch.dtype:
        """In which scores are computed: float32, or float64 for float64 inputs."""
        return torch.promote_types(self.q.dtype, torch.float32)

    def with_heads(self) -> "Scoring":
        """The same with an axis of one head in place of none."""
        if self.q.dim() == 3:
            return self
        q2, k2 = (None if x is None else x.unsqueeze(1) for x in (self.q2, self.k2))
        bias = None if self.k_bias is None else self.k_bias.unsqueeze(1)
        return replace(self, q=self.q.unsqueeze(1), k=self.k.unsqueeze(1), q2=q2, k2=k2, k_bias=bias)

    def of_sequence(self, c: slice, i: slice) -> Tensor:
        """(nc, H, n) scores of the candidates `c` and behaviours `i`: the definition."""
        scores = self.scale * torch.einsum("chd,nhd->chn", self.q[c].to(self.dtype), self.k[i].to(self.dtype))
        if self.q2 is not None and self.k2 is not None:
            second = torch.einsum("chd,nhd->chn", self.q2[c].to(self.dtype), self.k2[i].to(self.dtype))
            scores = scores + self.scale2 * second
        if self.k_bias is not None:
            scores = scores + self.k_bias[i].to(self.dtype).t()
        return scores


def checked_scoring(
    q: Tensor,
    k: Tensor,
    meta_c: JaggedMeta,
    meta_k: JaggedMeta,
    scale: float | None,
    q2: Tensor | None,
    k2: Tensor | None,
    scale2: float | None,
    k_bias: Tensor | None,
) -> Scoring:
    """The score of these tensors, with the factors that were left out: 1/sqrt(width).

    Raises:
        ValueError: shapes, dtypes, devices or ranges do not agree.
    """
    _check_pair("q", q, "k", k)
    if not q.is_floating_point():
        raise ValueError(f"q is {q.dtype}; wanted a floating dtype")
    if (q2 is None) != (k2 is None):
        raise ValueError(f"{'q2' if q2 is None else 'k2'} is missing; wanted both q2 and k2, or neither")
    if scale2 is not None and q2 is None:
        raise ValueError(f"scale2={scale2} without q2 and k2; wanted both, or no scale2")
    if q2 is not None and k2 is not None:
        _check_pair("q2", q2, "k2", k2)
        check_rows("q2", q2, "q", q)
        check_rows("k2", k2, "k", k)
    if k_bias is not None and (k_bias.shape != k.shape[:-1] or not k_bias.is_floating_point()):
        raise ValueError(
            f"k_bias has the shape {tuple(k_bias.shape)} in {k_bias.dtype}; wanted {tuple(k.shape[:-1])}, floating"
        )
    for name, other in (("k", k), ("q2", q2), ("k2", k2), ("k_bias", k_bias)):
        check_like(name, other, q, is_dtype_free=name == "k_bias")
    _check_meta("q", q, "meta_c", meta_c)
    _check_meta("k", k, "meta_k", meta_k)
    num_c, num_k = meta_c.offsets.shape[0] - 1, meta_k.offsets.shape[0] - 1
    if num_c != num_k:
        raise ValueError(f"meta_c has {num_c} sequences, meta_k has {num_k}; they must be equal")
    scale = 1.0 / math.sqrt(q.shape[-1]) if scale is None else as_factor("scale", scale)
    if scale2 is None:
        scale2 = 1.0 if q2 is None else 1.0 / math.sqrt(q2.shape[-1])
    scale2 = as_factor("scale2", scale2)
    return Scoring(q=q, k=k, scale=scale, q2=q2, k2=k2, scale2=scale2, k_bias=k_bias)


def check_rows(name: str, x: Tensor, like_name: str, like: Tensor) -> None:
    """Raise ValueError where `x` differs from `like` in more than its width."""
    if x.dim() != like.dim() or x.shape[:-1] != like.shape[:-1]:
        raise ValueError(
            f"{name} has the shape {tuple(x.shape)}, {like_name} has {tuple(like.shape)}; "
            "they must be equal but for the width"
        )


def check_width(name: str, x: Tensor) -> None:
    """Raise ValueError unless the kernels can hold a row."""
    if not 1 <= x.shape[-1] <= MAX_WIDTH:
        raise ValueError(f"{name} has the width {x.shape[-1]}; wanted 1 to {MAX_WIDTH}")


def check_like(name: str, x: Tensor | None, q: Tensor, is_dtype_free: bool = False) -> None:
    """Raise ValueError where `x` lies elsewhere than q, or in another dtype."""
    if x is not None and x.device != q.device:
        raise ValueError(f"q is on {q.device}, {name} is on {x.device}; they must be equal")
    if x is not None and x.dtype != q.dtype and not is_dtype_free:
        raise ValueError(f"q is {q.dtype}, {name} is {x.dtype}; they must be equal")


def _check_pair(name_q: str, q: Tensor, name_k: str, k: Tensor) -> None:
    if q.dim() not in (2, 3) or q.dim() != k.dim() or q.shape[1:] != k.shape[1:]:
        raise ValueError(
            f"{name_q} has the shape {tuple(q.shape)}, {name_k} has {tuple(k.shape)}; "
            "wanted (Tc, D) and (Tk, D), or (Tc, H, D) and (Tk, H, D)"
        )
    check_width(name_q, q)


def _check_meta(name: str, x: Tensor, name_meta: str, meta: JaggedMeta) -> None:
    check_is_meta(name_meta, meta)
    if x.shape[0] != meta.total:
        raise ValueError(f"{name} has {x.shape[0]} rows, {name_meta} has {meta.total} tokens; they must be equal")
    if meta.offsets.device != x.device:
        raise ValueError(
            f"{name_meta}.offsets is on {meta.offsets.device}, {name} is on {x.device}; they must be equal: "
            "JaggedMeta.from_lengths(lengths, device)"
        )
