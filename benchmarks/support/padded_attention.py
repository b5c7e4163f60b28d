"""Attention over padded rows by torch's own means: what a jagged batch costs without an op for it."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel


@dataclass(frozen=True)
class PaddedAttention:
    """Rows (T, H, D) to (B, H, L, D) and back, around `F.scaled_dot_product_attention`.

    Attributes:
        size: B.
        rows: (B * L,) the row in each slot; padding repeats the last row of its sequence.
        is_token: (T,) the slot of each row.
        mask: (B, 1, 1 or L, L) bool, True where a key is seen; None: `is_causal=True` without a mask, by which a token
            sees no padding, since that stands at the end.
    """

    size: int
    rows: Tensor
    is_token: Tensor
    mask: Tensor | None

    @classmethod
    def of(cls, lengths: list[int], causal: bool, has_mask: bool = True) -> "PaddedAttention":
        """The gather and the mask of a batch.

        Raises:
            ValueError: there is to be no mask, and the attention is not causal.
        """
        if not has_mask and not causal:
            raise ValueError("has_mask=False; wanted causal=True beside it: without a mask, padding would be seen")
        length, longest = torch.tensor(lengths), max(lengths)
        place = torch.arange(longest)
        is_key = place < length[:, None]
        starts = torch.cumsum(length, 0) - length
        rows = (starts[:, None] + torch.minimum(place, length[:, None] - 1)).flatten()
        mask = is_key[:, None, None, :] if has_mask else None
        if mask is not None and causal:
            mask = mask & (place[:, None] >= place[None, :])
        return cls(len(lengths), rows, is_key.flatten().nonzero().squeeze(1), mask)

    def __call__(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """(T, H, D) by torch's fused kernel."""
        q, k, v = self._dense(q), self._dense(k), self._dense(v)
        return self._back(F.scaled_dot_product_attention(q, k, v, attn_mask=self.mask, is_causal=self.mask is None))

    def with_bias(self, q: Tensor, k: Tensor, v: Tensor, table: Tensor, ts: Tensor, thresholds: Tensor) -> Tensor:
        """(T, H, D) with a learned time bias gathered to (B, H, L, L), which leaves torch its plain path alone.

        The look-up is `index_select`: indexing by a tensor has a gradient that is some 300 times slower.
        """
        assert self.mask is not None
        times = ts[self.rows].view(self.size, -1)
        buckets = torch.bucketize((times[:, :, None] - times[:, None, :]).abs(), thresholds, right=True)
        bias = table.index_select(1, buckets.flatten()).view(-1, *buckets.shape).transpose(0, 1)
        bias = bias.masked_fill(~self.mask, -torch.inf)  # (B, H, L, L)
        q, k, v = self._dense(q), self._dense(k), self._dense(v)
        with sdpa_kernel(SDPBackend.MATH):
            return self._back(F.scaled_dot_product_attention(q, k, v, attn_mask=bias))

    def _dense(self, rows: Tensor) -> Tensor:
        dense = rows.reshape(len(rows), -1).index_select(0, self.rows)
        return dense.view(self.size, -1, *rows.shape[1:]).transpose(1, 2)

    def _back(self, out: Tensor) -> Tensor:
        return out.transpose(1, 2).flatten(0, 1).index_select(0, self.is_token)
