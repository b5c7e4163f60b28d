from dataclasses import replace
from pathlib import Path

import pytest

from recsys.pipelines.compare.comparison import Advice, Comparison, Contender
from recsys.pipelines.compare.cost import Cost
from recsys.pipelines.evaluation.bootstrap import Interval
from recsys.pipelines.pictures.compare import TAKEN, _figure, draw_comparison, spread

pytest.importorskip("matplotlib", reason="needs the extra tracking")


def found(has_oracle: bool, num_floors: int = 3) -> Comparison:
    def one(name: str, kind: str, ndcg: float, ms: float) -> Contender:
        interval = Interval(ndcg, max(0.0, ndcg - 0.01), ndcg + 0.01)
        cost = None if kind == "oracle" else Cost(1000, int(1000 * ms), ms, 4 * ms)
        return Contender(name, kind, interval, interval, interval, interval, cost, None)  # type: ignore[arg-type]  # one of the three kinds

    floors = [one(f"floor-{n}", "floor", 0.1 + 0.001 * n, 0.1 + 0.01 * n) for n in range(num_floors)]
    oracle = [one("oracle", "oracle", 0.4, 1.0)] if has_oracle else []
    return Comparison(
        protocol="loo/next/full-rank/test/n=500",
        num_questions=500,
        reachable=0.97,
        contenders=(one("sasrec", "model", 0.2, 3.0), *floors, *oracle),
        best="sasrec",
        best_floor=floors[-1].name,
        advice=Advice("sasrec", ("take sasrec",), True),
        minutes=5,
        floors_tuned_s=1.0,
        floors_note="",
        settings={},
    )


@pytest.mark.parametrize("has_oracle", [False, True])
def test_a_picture_is_drawn_whole(tmp_path: Path, has_oracle: bool) -> None:
    file = draw_comparison(found(has_oracle), tmp_path / "compare.png")
    assert file.read_bytes().startswith(b"\x89PNG")
    assert [path.name for path in tmp_path.iterdir()] == ["compare.png"]


def test_a_picture_grows_with_the_number_of_scorers(tmp_path: Path) -> None:
    few = draw_comparison(found(True), tmp_path / "few.png").read_bytes()
    many = draw_comparison(found(True, 20), tmp_path / "many.png").read_bytes()
    assert int.from_bytes(many[20:24], "big") > int.from_bytes(few[20:24], "big")
    assert many[16:20] == few[16:20]


def test_no_number_of_the_milliseconds_covers_another_one() -> None:
    wide = found(True, 7)
    costs = [one.cost and replace(one.cost, median_ms=0.25, p99_ms=5.5) for one in wide.contenders]
    near = tuple(replace(one, cost=cost) for one, cost in zip(wide.contenders, costs, strict=True))
    figure = _figure(replace(wide, contenders=near))
    figure.draw_without_rendering()
    labels = [*figure.axes[1].get_xticklabels(), *figure.axes[1].get_xticklabels(minor=True)]
    shown = [label.get_window_extent() for label in labels if label.get_text()]
    assert len(shown) >= 2
    assert all(not one.overlaps(other) for n, one in enumerate(shown) for other in shown[:n])


@pytest.mark.parametrize("num_floors", [1, 7, 20])
def test_no_name_covers_another_one_or_a_dot(num_floors: int) -> None:
    figure = _figure(found(True, num_floors))
    figure.draw_without_rendering()
    right = figure.axes[1]
    names = [text.get_window_extent() for text in right.texts]
    assert len(names) == num_floors + 1
    assert all(not one.overlaps(other) for n, one in enumerate(names) for other in names[:n])
    assert all(box.x0 > right.bbox.x1 for box in names)
    assert all(figure.bbox.x0 <= box.x0 and box.x1 <= figure.bbox.x1 for box in names)


def test_the_names_stand_in_the_order_of_quality_and_the_axis_begins_below_the_lowest() -> None:
    right = _figure(found(False)).axes[1]
    ordered = sorted(right.texts, key=lambda text: -text.get_position()[1])
    assert [text.get_text().split(",")[0] for text in ordered] == ["sasrec", "floor-2", "floor-1", "floor-0"]
    bottom, top = right.get_ylim()
    assert 0.05 < bottom < 0.1
    assert 0.2 < top < 0.25


def test_every_colour_is_explained() -> None:
    def told(has_oracle: bool) -> dict[str, str]:
        (legend,) = _figure(found(has_oracle)).legends
        return {
            text.get_text(): str(mark.get_color()) for text, mark in zip(legend.texts, legend.get_lines(), strict=True)
        }

    assert list(told(False)) == ["counting", "model", "to take"]
    assert told(False)["to take"] == TAKEN
    assert "oracle: what can be known at all" in told(True)


@pytest.mark.parametrize(
    ("places", "wanted"),
    [
        ([], []),
        ([0.3], [0.3]),
        ([0.1, 0.9], [0.1, 0.9]),
        ([0.5, 0.5, 0.5], [0.4, 0.5, 0.6]),
        ([1.0, 1.0], [0.9, 1.0]),
        ([0.0, 0.0], [0.0, 0.1]),
        ([0.5] * 21, [n / 20 for n in range(21)]),
    ],
)
def test_places_are_moved_apart_and_stay_inside(places: list[float], wanted: list[float]) -> None:
    assert spread(places, 0.1) == pytest.approx(wanted)


def test_a_figure_of_nothing_is_drawn_too(tmp_path: Path) -> None:
    zero = found(False)
    nothing = Interval(0.0, 0.0, 0.0)
    contenders = tuple(
        Contender(one.name, one.kind, nothing, nothing, nothing, nothing, one.cost, None) for one in zero.contenders
    )
    draw_comparison(Comparison(**{**vars(zero), "contenders": contenders}), tmp_path / "compare.png")
