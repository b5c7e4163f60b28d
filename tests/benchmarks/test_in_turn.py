from benchmarks.support.in_turn import in_turn


def test_alternatives_run_in_turn_and_the_first_round_does_not_count() -> None:
    calls: list[str] = []
    figures = in_turn({"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, repeats=3)
    assert calls == ["a", "b"] * 4
    assert list(figures) == ["a", "b"]
    for figure in figures.values():
        assert 0.0 <= figure["p10"] <= figure["median"] <= figure["p99"]
