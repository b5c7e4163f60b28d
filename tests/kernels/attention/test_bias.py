import math

import pytest
import torch

from recsys.kernels.attention.bias import PosBias, TimeBias, t5_thresholds, time_thresholds


def _counting_table(num_buckets: int) -> torch.Tensor:
    return torch.arange(num_buckets, dtype=torch.float64)[None]  # the bias is the bucket


@pytest.mark.parametrize(("buckets", "steps"), [("log2x1", 1), ("log2x2", 2), ("log2x4", 4)])
def test_log2_buckets_are_the_floor_of_the_logarithm(buckets: str, steps: int) -> None:
    seconds = torch.tensor([0, 1, 2, 3, 4, 5, 7, 8, 100, 86_400, 2**20, 2**31 - 1], dtype=torch.int32)
    bias = TimeBias(table=_counting_table(150), ts_q=seconds, ts_k=torch.zeros(1, dtype=torch.int32), buckets=buckets)
    found = bias.scores(slice(None), slice(None))[0, :, 0].long().tolist()
    expected = [math.floor(steps * math.log2(max(s, 1)) + 1e-12) for s in seconds.tolist()]
    assert found == expected


def test_hstu_buckets_are_logarithms_over_the_constant_of_its_code() -> None:
    thresholds = time_thresholds("hstu", 10)
    for gap in range(1, 14):
        assert sum(t <= gap for t in thresholds) == min(int(math.log(gap) / 0.301), 9)


def test_the_last_bucket_takes_all_longer_gaps_and_the_sign_of_a_gap_is_nothing() -> None:
    times = torch.tensor([0, 10**9], dtype=torch.int32)
    bias = TimeBias(table=_counting_table(4), ts_q=times, ts_k=times, buckets="log2x1")
    assert bias.scores(slice(None), slice(None))[0].tolist() == [[0, 3], [3, 0]]


def test_own_thresholds_count_what_lies_at_or_below() -> None:
    gaps = torch.tensor([0, 4, 5, 9, 10], dtype=torch.int32)
    thresholds = torch.tensor([5, 10], dtype=torch.int32)
    bias = TimeBias(table=_counting_table(3), ts_q=gaps, ts_k=torch.zeros(1, dtype=torch.int32), buckets=thresholds)
    assert bias.scores(slice(None), slice(None))[0, :, 0].tolist() == [0, 0, 1, 1, 2]


def test_toeplitz_clips_the_distance_at_its_reach() -> None:
    places = torch.arange(4)
    bias = PosBias(table=_counting_table(5))
    found = bias.scores(places, places, causal=False)[0].tolist()
    assert found == [[2, 1, 0, 0], [3, 2, 1, 0], [4, 3, 2, 1], [4, 4, 3, 2]]


@pytest.mark.parametrize(("num_buckets", "max_distance"), [(32, 128), (16, 100), (8, 20)])
def test_t5_buckets_are_those_of_the_paper(num_buckets: int, max_distance: int) -> None:
    exact = num_buckets // 2
    thresholds = t5_thresholds(num_buckets, max_distance)
    assert len(thresholds) == num_buckets - 1
    for distance in range(2 * max_distance):
        expected = distance
        if distance >= exact:
            grown = math.log(distance / exact) / math.log(max_distance / exact) * (num_buckets - exact)
            expected = min(exact + math.floor(grown + 1e-9), num_buckets - 1)
        assert sum(t <= distance for t in thresholds) == expected


def test_t5_gives_half_of_its_buckets_to_keys_behind_the_query_unless_causal() -> None:
    bias = PosBias(table=_counting_table(8), kind="t5", max_distance=20)
    query, keys = torch.tensor([5]), torch.tensor([4, 5, 6])
    assert bias.scores(query, keys, causal=False)[0, 0].tolist() == [1, 0, 5]
    assert bias.scores(query, keys, causal=True)[0, 0].tolist() == [1, 0, 0]


def test_an_unknown_rule_names_the_known_ones() -> None:
    with pytest.raises(ValueError, match=r"time_bias.buckets='log3'; wanted log2x1, log2x2, log2x4, hstu"):
        time_thresholds("log3", 4)
