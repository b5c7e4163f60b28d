"""Ids one to one onto other ids that look random, and back, so that ids with a pattern fall into all buckets alike.

    x ^= x >> 30;  x *= a;  x ^= x >> 27;  x *= b;  x ^= x >> 31      in unsigned numbers of 64 bits

Snowflake ids end in zeros, say, and would all lie in one bucket of two.

Paper: Steele, Lea, Flood 2014, "Fast splittable pseudorandom number generators"; the constants are Stafford's mix 13.
"""

from torch import Tensor

_FACTORS = (0xBF58476D1CE4E5B9, 0x94D049BB133111EB)
_INVERSES = tuple(pow(factor, -1, 2**64) for factor in _FACTORS)


def mixed(ids: Tensor) -> Tensor:
    """(N,) int64, another id for each of `ids` (N,) int64, and no two the same."""
    ids = (ids ^ _shifted(ids, 30)) * _signed(_FACTORS[0])
    ids = (ids ^ _shifted(ids, 27)) * _signed(_FACTORS[1])
    return ids ^ _shifted(ids, 31)


def unmixed(ids: Tensor) -> Tensor:
    """(N,) int64 ids of which `mixed` made these."""
    ids = (ids ^ _shifted(ids, 31) ^ _shifted(ids, 62)) * _signed(_INVERSES[1])
    ids = (ids ^ _shifted(ids, 27) ^ _shifted(ids, 54)) * _signed(_INVERSES[0])
    return ids ^ _shifted(ids, 30) ^ _shifted(ids, 60)


def _shifted(ids: Tensor, bits: int) -> Tensor:
    """As an unsigned number."""
    return (ids >> bits) & ((1 << (64 - bits)) - 1)


def _signed(number: int) -> int:
    return number - 2**64 if number >= 2**63 else number
