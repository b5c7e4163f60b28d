"""docs/training.md names every setting of `train:` with its default, and nothing else."""

import json
import re
from pathlib import Path

from recsys import config as configs
from recsys.pipelines.optimization import OptimizationConfig

PAGE = Path(__file__).parents[3] / "docs" / "training.md"


def test_every_setting_stands_in_the_table_with_its_default() -> None:
    section = PAGE.read_text(encoding="utf-8").split("## Settings of `train:`")[1].split("\n## ")[0]
    rows = re.findall(r"^\| `(\w+)` \| (\S+) \|", section, re.MULTILINE)

    def value(text: str) -> object:
        plain = text.strip("`")
        return plain if text.startswith("`") else json.loads(plain)

    assert {name: value(text) for name, text in rows} == configs.dump(OptimizationConfig())
