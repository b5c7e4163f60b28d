"""Pictures of logs of every kind are drawn, whole or not at all."""

from pathlib import Path

import pytest

from recsys.features.describe.config import DescribeConfig
from recsys.features.describe.source import describe_source
from recsys.pipelines.pictures.description import draw_description

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
