from benchmarks.support.in_turn import in_turn


def test_alternatives_run_in_turn_and_the_first_round_does_not_count() -> None:
    calls: list[str] = []
    figures = in_turn({"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, repeats=3)
    assert calls == ["a", "b"] * 4
    assert list(figures) == ["a", "b"]
    for figure in figures.values():
        assert 0.0 <= figure["p10"] <= figure["median"] <= figure["p99"]
        assert figure["rounds"] == 3


def test_a_limit_of_time_leaves_five_rounds() -> None:
    figures = in_turn({"a": lambda: None}, repeats=50, limit_s=0.0)
    assert figures["a"]["rounds"] == 5
