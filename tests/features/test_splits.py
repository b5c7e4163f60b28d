import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recsys.errors import DataError
from recsys.features.slices import offsets_of
from recsys.features.splits import SplitConfig, by_time, leave_one_out, ratio, time_cuts

LENGTHS = st.lists(st.integers(1, 40), min_size=1, max_size=20)


def _offsets(lengths: list[int]) -> np.ndarray:
    return offsets_of(np.array(lengths, np.int64))


def test_leave_one_out_holds_out_the_last_two_events_of_users_with_three() -> None:
    train_end, valid_end = leave_one_out(_offsets([1, 2, 3, 10]))
    assert train_end.tolist() == [1, 2, 1, 8]
    assert valid_end.tolist() == [1, 2, 2, 9]


def test_leave_one_out_without_validation_holds_out_the_last_event_of_users_with_two() -> None:
    train_end, valid_end = leave_one_out(_offsets([1, 2, 3, 10]), with_valid=False)
    assert train_end.tolist() == valid_end.tolist() == [1, 1, 2, 9]


@pytest.mark.parametrize(
    ("valid", "test", "train_ends", "valid_ends"),
    [
        (0.1, 0.1, [1, 2, 1, 8, 80], [1, 2, 2, 9, 90]),
        (0.0, 0.2, [1, 2, 2, 8, 80], [1, 2, 2, 8, 80]),
        (0.29, 0.29, [1, 2, 1, 6, 42], [1, 2, 2, 8, 71]),
        (0.1, 0.8, [1, 2, 1, 1, 10], [1, 2, 2, 2, 20]),
    ],
)
def test_ratio_cuts_each_users_last_shares(
    valid: float, test: float, train_ends: list[int], valid_ends: list[int]
) -> None:
    train_end, valid_end = ratio(_offsets([1, 2, 3, 10, 100]), valid, test)
    assert train_end.tolist() == train_ends
    assert valid_end.tolist() == valid_ends


@settings(max_examples=80, deadline=None)
@given(lengths=LENGTHS, valid=st.floats(0, 0.5), test=st.floats(0.01, 0.49))
def test_ratio_leaves_everybody_a_training_part(lengths: list[int], valid: float, test: float) -> None:
    train_end, valid_end = ratio(_offsets(lengths), valid, test)
    assert (train_end >= 1).all()
    assert (train_end <= valid_end).all()
    assert (valid_end <= lengths).all()
    long = np.array(lengths) >= 3
    assert (valid_end[long] < np.array(lengths)[long]).all()
    assert ((train_end[long] < valid_end[long]) == (valid > 0)).all()


@settings(max_examples=80, deadline=None)
@given(lengths=LENGTHS, seed=st.integers(0, 99), spread=st.sampled_from([20, 1000]))
def test_a_cut_by_time_never_parts_equal_times(lengths: list[int], seed: int, spread: int) -> None:
    offsets = _offsets(lengths)
    rng = np.random.default_rng(seed)
    times = np.concatenate([np.sort(rng.integers(0, spread, length)) for length in lengths])
    try:
        cuts = time_cuts(np.sort(times), 0.1, 0.1)
    except DataError:
        return
    train_end, valid_end = by_time(offsets, times, cuts)
    for user, length in enumerate(lengths):
        own = times[offsets[user] : offsets[user + 1]].tolist()
        assert own[: train_end[user]] == [t for t in own if t < cuts[0]]
        assert own[train_end[user] : valid_end[user]] == [t for t in own if cuts[0] <= t < cuts[1]]
        assert len(own) == length


def test_the_cuts_stand_at_the_shares_of_the_events() -> None:
    assert time_cuts(np.arange(100), 0.1, 0.1) == (80, 90)
    assert time_cuts(np.arange(100), 0.0, 0.2) == (80, 80)
    tied = np.sort(np.concatenate([np.arange(75), np.full(7, 76), np.arange(77, 95)]))
    assert time_cuts(tied, 0.1, 0.1)[0] == 76


@pytest.mark.parametrize("times", [[5] * 20, [1] * 18 + [2, 3], [1] * 5 + [2] * 15])
def test_times_that_leave_a_part_empty_are_refused_with_the_remedy(times: list[int]) -> None:
    with pytest.raises(DataError, match=r"distinct times leave a part empty; use split\.protocol=loo"):
        time_cuts(np.array(times), 0.1, 0.1)


@pytest.mark.parametrize("shares", [(0.5, 0.5), (-0.1, 0.1), (0.1, 0.0), (0.1, 1.0), (1.0, 0.1)])
def test_shares_that_leave_no_training_are_refused(shares: tuple[float, float]) -> None:
    with pytest.raises(ValueError, match="_share="):
        SplitConfig(valid_share=shares[0], test_share=shares[1])
