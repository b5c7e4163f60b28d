import torch

from benchmarks.support.device_time import Times, times_in_turn


def test_alternatives_run_in_turn_and_warm_up_does_not_count() -> None:
    calls: list[str] = []
    found = times_in_turn({"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, torch.device("cpu"), 4, 2)
    assert calls == ["a", "b"] * 6
    assert list(found) == ["a", "b"]
    for times in found.values():
        assert 0.0 <= times.p10 <= times.median <= times.p99


def test_percentiles_are_those_of_the_single_runs() -> None:
    times = Times.of([float(n) for n in range(101)])
    assert (times.p10, times.median, times.p99) == (10.0, 50.0, 99.0)
