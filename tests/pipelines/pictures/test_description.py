"""Pictures of logs of every kind are drawn, whole or not at all."""

from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure

from recsys.features.describe.config import DescribeConfig
from recsys.features.describe.shapes import popularity_shape
from recsys.features.describe.source import describe_source
from recsys.pipelines.pictures.description import draw_description, lorenz_points

PNG = b"\x89PNG\r\n\x1a\n"
LOGS = {
    "one event": "user,item,ts\n1,2,1500000000\n",
    "equal times": "user,item,ts\n1,2,1500000000\n1,3,1500000000\n",
    "years apart": "user,item,ts\n1,2,100000000\n1,3,1500000000\n2,3,1500000000\n",
    "without times": "user,item\n1,2\n1,3\n1,3\n",
}


@pytest.mark.parametrize("name", LOGS)
def test_a_picture_is_drawn(name: str, tmp_path: Path) -> None:
    (tmp_path / "log.csv").write_text(LOGS[name])
    values = describe_source(tmp_path / "log.csv", DescribeConfig(), lambda line: None)  # noqa: ARG005  # told of nothing
    file = draw_description(values, tmp_path / "log.png")
    assert file.read_bytes().startswith(PNG)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["log.csv", "log.png"]


@pytest.mark.parametrize("num_items", [1, 2, 7, 100, 250])
def test_equal_items_lie_on_the_line_of_equal_items(num_items: int) -> None:
    shape = popularity_shape(np.full(num_items, 3))
    percent, shares = lorenz_points(shape["lorenz"], num_items)
    assert (percent[0], percent[-1], shares[0], shares[-1]) == (0, 100, 0, 100)
    assert shares == pytest.approx(percent, abs=100 / num_items if num_items > 100 else 1e-3)


@pytest.mark.parametrize("events", [1, 3, 9, 12, 100])
def test_only_the_decades_of_a_log_axis_have_numbers(
    events: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[Figure] = []

    def keep(figure: Figure, draft: Path, **_: object) -> None:
        drawn.append(figure)
        draft.write_bytes(PNG)

    monkeypatch.setattr(Figure, "savefig", keep)
    (tmp_path / "log.csv").write_text("user,item\n" + "1,2\n" * events)
    values = describe_source(tmp_path / "log.csv", DescribeConfig(), lambda line: None)  # noqa: ARG005  # told of nothing
    draw_description(values, tmp_path / "log.png")
    for axes in drawn[0].axes[:2]:
        for axis in (axes.xaxis, axes.yaxis):
            assert {axis.get_minor_formatter()(value, 0) for value in (2, 3, 60)} == {""}
            low, high = axis.get_view_interval()
            assert sum(low <= 10**n <= high for n in range(9)) >= 2
