"""64-bit ids of strings, and of several features in one table.

A string's id is the first 8 bytes of its BLAKE2b hash: the same in every process, on every machine. Two of n strings
share an id with odds of about n^2 / 2^65: 1 in 37 million for a million of them, 1 in 37 for a billion. `IdCheck` finds
a pair that does.

Shards and draws of prepared datasets go by another hash, `hash_ids` of `recsys.features.preparation.steps.hashing`: it
is a sum of words, quicker by far, but whoever names items could make two that share a row. Both are stored, and neither
may change.

Several features share a table by the upper bits of their ids, as in Monolith (there 10 or 15 bits); below them is room
for ids from 0 on, or for a hash that is shorter by so many bits.

Paper: Liu et al. 2022, arXiv:2209.07663.
"""

import hashlib
from collections.abc import Iterable, Sequence

import numpy as np
import torch
from torch import Tensor

from recsys.kernels.mixing import mixed, shifted, signed


def string_ids(strings: Iterable[str]) -> Tensor:
    """(N,) int64 ids of strings.

    Raises:
        ValueError: one string alone, whose letters would be taken, or something else than strings.
    """
    if isinstance(strings, str):
        raise ValueError(f"strings={strings!r} is one string; wanted several: [{strings!r}]")
    strings = list(strings)
    wrong = [string for string in strings if not isinstance(string, str)]
    if wrong:
        raise ValueError(f"strings holds {wrong[0]!r}, of type {type(wrong[0]).__name__}; wanted strings alone")
    digests = b"".join(hashlib.blake2b(string.encode(), digest_size=8).digest() for string in strings)
    return torch.from_numpy(np.frombuffer(digests, dtype="<i8").astype(np.int64))


def check_ids(ids: Tensor) -> None:
    """Nothing, for ids of 64 bits.

    Raises:
        ValueError: `ids` is no tensor of int64.
    """
    if not isinstance(ids, Tensor) or ids.dtype != torch.int64:
        given = ids.dtype if isinstance(ids, Tensor) else type(ids).__name__
        raise ValueError(f"ids is {given}; wanted a tensor of int64; strings become ids by string_ids")


class FeatureIds:
    """Ids that carry their feature's number in their upper bits.

    Args:
        features: their names; a name's place is its number, so append, and never remove.
        bits: for the number.

    Raises:
        ValueError: a name stands there twice, `features` is one string alone, or the bits are too few.
    """

    def __init__(self, features: Sequence[str], bits: int = 10) -> None:
        if isinstance(features, str):
            raise ValueError(f"features={features!r} is one string; wanted several: [{features!r}]")
        if type(bits) is not int or not 1 <= bits <= 32:
            raise ValueError(f"bits={bits!r}; wanted a whole number from 1 to 32")
        if len(features) > 1 << bits:
            raise ValueError(f"{len(features)} features do not fit {bits} bits; wanted at most {1 << bits}")
        self.numbers = {name: number for number, name in enumerate(features)}
        if len(self.numbers) < len(features):
            raise ValueError(f"features {list(features)} holds a name twice")
        self.bits, self._below = bits, 64 - bits

    def of(self, feature: str, ids: Tensor) -> Tensor:
        """(…) int64 table ids of a feature's own ids, which lie in [0, 2^(64 - bits)): exact.

        Raises:
            ValueError: unknown feature, an id does not fit, or `ids` is no tensor of int64: the feature's number would
                not fit beside narrower ids.
        """
        check_ids(ids)
        most = 1 << self._below
        if ids.numel() and (int(ids.min()) < 0 or int(ids.max()) >= most):
            raise ValueError(
                f"ids of {feature!r} lie in [{int(ids.min())}, {int(ids.max())}]; wanted 0 to {most - 1}; "
                "take `hashed` for ids of 64 bits"
            )
        return ids | self._upper(feature)

    def hashed(self, feature: str, ids: Tensor) -> Tensor:
        """(…) int64 table ids of any ids, mixed to 64 - bits bits: two of n share one with odds n^2 / 2^(65-bits).

        Raises:
            ValueError: unknown feature, or `ids` is no tensor of int64.
        """
        check_ids(ids)
        return shifted(mixed(ids), self.bits) | self._upper(feature)

    def _upper(self, feature: str) -> int:
        if feature not in self.numbers:
            raise ValueError(f"feature {feature!r} is unknown; wanted {', '.join(self.numbers)}")
        return signed(self.numbers[feature] << self._below)


def feature_numbers(ids: Tensor, bits: int) -> Tensor:
    """(N,) int64 feature of each id."""
    return (ids >> (64 - bits)) & ((1 << bits) - 1) if bits else torch.zeros_like(ids)


class IdCheck:
    """Remembers which string has which id, and finds two that share one. For preparation: it keeps every string."""

    def __init__(self) -> None:
        self._strings: dict[int, str] = {}

    def add(self, strings: Iterable[str]) -> list[tuple[str, str]]:
        """The pairs of different strings that share an id, with those that were added before."""
        given = strings if isinstance(strings, str) else list(strings)
        return self.add_ids(given, string_ids(given))

    def add_ids(self, strings: Sequence[str], ids: Tensor) -> list[tuple[str, str]]:
        """The same for ids (N,) of another hash."""
        pairs = []
        for string, id_ in zip(strings, ids.tolist(), strict=True):
            other = self._strings.setdefault(id_, string)
            if other != string:
                pairs.append((other, string))
        return pairs
