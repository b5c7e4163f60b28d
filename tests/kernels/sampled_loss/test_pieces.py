import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from recsys.kernels.sampled_loss.pieces import Grouping


@settings(max_examples=80, deadline=None)
@given(
    groups=st.lists(st.integers(0, 5), max_size=60),
    num_empty=st.integers(0, 4),
    size=st.sampled_from([1, 2, 16, 64]),
)
def test_pieces_hold_every_row_once_beside_rows_of_its_list_alone(groups: list[int], num_empty: int, size: int) -> None:
    group = torch.tensor(groups, dtype=torch.int64)
    pieces = Grouping.of(group, len(group), 6 + num_empty, group.device).cut(size)
    seen: list[int] = []
    for number, begin, end in zip(pieces.lists.tolist(), pieces.begins.tolist(), pieces.ends.tolist(), strict=True):
        rows = pieces.rows[begin:end].tolist()
        assert len(rows) <= size
        assert all(groups[row] == number for row in rows)
        seen += rows
    assert sorted(seen) == list(range(len(groups)))
    assert pieces.num_pieces <= len(groups) // size + 6 + num_empty


@settings(max_examples=30, deadline=None)
@given(num_rows=st.integers(0, 70), size=st.sampled_from([1, 16, 64]))
def test_without_groups_all_rows_have_one_list_and_no_piece_is_empty(num_rows: int, size: int) -> None:
    pieces = Grouping.of(None, num_rows, 1, torch.device("cpu")).cut(size)
    assert pieces.lists.eq(0).all()
    assert bool((pieces.ends > pieces.begins).all())
    rows = [row for b, e in zip(pieces.begins, pieces.ends, strict=True) for row in pieces.rows[b:e].tolist()]
    assert rows == list(range(num_rows))
