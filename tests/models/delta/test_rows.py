"""Columns that are read part by part."""

import pytest
import torch

from recsys.models.delta.rows import rows_by, rows_of


@pytest.mark.parametrize("size", [0, 1, 17, 63])
@pytest.mark.parametrize("part_bytes", [1, 24, 25, 1 << 20])
def test_the_parts_are_all_of_it_and_none_is_larger_than_wanted(size: int, part_bytes: int) -> None:
    whole = torch.randn(size, 3)
    rows = rows_by(part_bytes, whole.dtype, tuple(whole.shape), lambda start, stop: whole[start:stop])
    assert torch.equal(rows.loaded(), whole)
    assert rows.nbytes == whole.nbytes
    assert all(part.nbytes <= max(part_bytes, 12) for part in rows.parts())
    assert all(len(part) for part in rows.parts())
    assert len(list(rows.parts())) == -(-size // max(1, part_bytes // 12))


def test_a_tensor_is_one_part() -> None:
    whole = torch.arange(5)
    assert [part.tolist() for part in rows_of(whole).parts()] == [[0, 1, 2, 3, 4]]
    assert list(rows_of(whole[:0]).parts()) == []
