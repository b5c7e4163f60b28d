import torch

from recsys.kernels.attention.visibility import Visibility


def _drawn(visibility: Visibility, num_queries: int, num_keys: int, num_targets: int = 0) -> list[str]:
    mask = visibility.mask(num_queries, num_keys, num_targets)
    return ["".join("x" if seen else "." for seen in row) for row in mask.tolist()]


def test_bidirectional_sees_all_and_causal_the_lower_triangle() -> None:
    assert _drawn(Visibility(), 2, 3) == ["xxx", "xxx"]
    assert _drawn(Visibility(causal=True), 3, 3) == ["x..", "xx.", "xxx"]


def test_queries_align_to_the_end_of_the_keys() -> None:
    assert _drawn(Visibility(causal=True), 2, 4) == ["xxx.", "xxxx"]
    assert _drawn(Visibility(causal=True), 3, 2) == ["..", "x.", "xx"]


def test_a_window_counts_neighbours_without_the_query_itself() -> None:
    assert _drawn(Visibility(window=(1, 0)), 4, 4) == ["x...", "xx..", ".xx.", "..xx"]
    assert _drawn(Visibility(window=(0, 0)), 3, 3) == ["x..", ".x.", "..x"]
    assert _drawn(Visibility(window=(1, 2)), 4, 4) == ["xxx.", "xxxx", ".xxx", "..xx"]
    assert _drawn(Visibility(window=(-1, 1)), 3, 3) == ["xx.", "xxx", "xxx"]
    assert _drawn(Visibility(window=(1, 5), causal=True), 3, 3) == ["x..", "xx.", ".xx"]


def test_global_tokens_are_seen_by_all_and_see_all() -> None:
    assert _drawn(Visibility(window=(0, 0), num_global=1), 3, 3) == ["xxx", "xx.", "x.x"]


def test_a_query_before_the_first_key_is_not_global() -> None:
    assert _drawn(Visibility(window=(0, 0), num_global=1), 3, 2) == ["x.", "xx", "xx"]


def test_under_causal_a_global_token_sees_only_what_precedes_it() -> None:
    visibility = Visibility(window=(0, 0), num_global=2, causal=True)
    assert _drawn(visibility, 4, 4) == ["x...", "xx..", "xxx.", "xx.x"]


def test_global_everywhere_is_no_window() -> None:
    for causal in (False, True):
        narrow = Visibility(window=(1, 1), num_global=6, causal=causal).mask(6, 6)
        assert torch.equal(narrow, Visibility(causal=causal).mask(6, 6))


def test_targets_see_the_history_and_themselves_and_are_seen_by_no_other() -> None:
    assert _drawn(Visibility(causal=True), 4, 4, 2) == ["x...", "xx..", "xxx.", "xx.x"]
    assert _drawn(Visibility(), 4, 4, 2) == ["xx..", "xx..", "xxx.", "xx.x"]


def test_targets_of_one_group_see_each_other() -> None:
    drawn = _drawn(Visibility(causal=True, target_group=2), 5, 5, 3)
    assert drawn == ["x....", "xx...", "xxxx.", "xxxx.", "xx..x"]


def test_a_window_of_targets_counts_from_the_end_of_the_history() -> None:
    drawn = _drawn(Visibility(causal=True, window=(1, -1)), 5, 5, 2)
    assert drawn == ["x....", "xx...", ".xx..", "..xx.", "..x.x"]


def test_candidates_alone_as_queries_see_the_same_as_in_the_whole_sequence() -> None:
    whole = Visibility(causal=True, target_group=2).mask(7, 7, 4)
    assert torch.equal(Visibility(causal=True, target_group=2).mask(4, 7, 4), whole[3:])
