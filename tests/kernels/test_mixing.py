"""Mixed ids: as published, one to one, the same by torch and by numpy."""

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from recsys.kernels.mixing import mixed, mixed_bits, shifted, signed, unmixed

NUMBERS = st.integers(-(2**63), 2**63 - 1)


def splitmix(number: int) -> int:
    """The published generator's next number, in whole numbers."""
    number = (number + 0x9E3779B97F4A7C15) % 2**64
    number = (number ^ number >> 30) * 0xBF58476D1CE4E5B9 % 2**64
    number = (number ^ number >> 27) * 0x94D049BB133111EB % 2**64
    return number ^ number >> 31


@given(ids=st.lists(NUMBERS, max_size=5))
def test_ids_are_mixed_as_published_and_come_back(ids: list[int]) -> None:
    found = mixed(torch.tensor(ids, dtype=torch.int64))
    assert [id_ % 2**64 for id_ in found.tolist()] == [splitmix(id_ % 2**64) for id_ in ids]
    assert unmixed(found).tolist() == ids
    bits = mixed_bits(np.array(ids, dtype=np.int64).view(np.uint64))
    assert bits.view(np.int64).tolist() == found.tolist()


@given(number=NUMBERS, bits=st.integers(1, 63))
def test_numbers_are_shifted_as_unsigned_ones(number: int, bits: int) -> None:
    assert int(shifted(torch.tensor(number), bits)) == (number % 2**64) >> bits
    assert signed(number % 2**64) == number
