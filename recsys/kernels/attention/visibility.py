"""Which keys a query sees: the rules of every mask, for one sequence, as positions.

Keys stand at 0..nk-1. Query i of nq stands at i + nk - nq, so the queries align to the end of the keys (and a query
before the first key has a negative position). For a query at p and a key at j:

    causal      j <= p
    window      p - left <= j <= p + right; -1 is no limit on that side; the query's own place always lies inside
    global      the first `num_global` keys are in every window, and so is every key for a query among them
    targets     the last `num_targets` places: a target sees the keys before the first target (in a window counted from
                there) and all of its own group of `target_group`; no other query sees a target
"""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Visibility:
    """The mask arguments of `jagged_attention` that are the same for all sequences."""

    causal: bool = False
    window: tuple[int, int] = (-1, -1)
    num_global: int = 0
    target_group: int = 1

    def mask(self, num_queries: int, num_keys: int, num_targets: int = 0, device: torch.device | None = None) -> Tensor:
        """(nq, nk) bool, True where the query sees the key."""
        first_target = num_keys - num_targets
        place = torch.arange(num_queries, device=device)[:, None] + num_keys - num_queries
        key = torch.arange(num_keys, device=device)[None, :]
        p = place.clamp(max=first_target) if num_targets else place  # all targets stand right behind the history
        sees = self._in_window(p, key)
        if self.causal:
            sees = sees & (key <= p)
        if not num_targets:
            return sees
        group = (place - first_target) // self.target_group == (key - first_target) // self.target_group
        is_own_group = (place >= first_target) & (key >= first_target) & group
        return (sees & (key < first_target)) | is_own_group

    def _in_window(self, p: Tensor, key: Tensor) -> Tensor:
        left, right = self.window
        inside = torch.ones_like(p >= key)
        if left >= 0:
            inside = inside & (key >= p - left)
        if right >= 0:
            inside = inside & (key <= p + right)
        return inside | (key < self.num_global) | ((p >= 0) & (p < self.num_global))
