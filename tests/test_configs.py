"""Every configuration in configs/ loads, and says how it is run."""

from pathlib import Path

import pytest

from recsys import config as configs
from recsys.models import registry
from recsys.pipelines.run_config import TrainConfig

ROOT = Path(__file__).resolve().parents[1]
FILES = sorted((ROOT / "configs").rglob("*.yaml"))


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(ROOT)))
def test_it_loads_and_names_its_own_command(file: Path) -> None:
    config = configs.load(TrainConfig, configs.read(file), f"{file.name}: ")
    model = registry.build(config.model["name"], config.model_config, 10)
    assert config.train.tokens_per_batch >= model.train_len
    name = file.relative_to(ROOT)
    first = file.read_text(encoding="utf-8").splitlines()[0]
    assert first == f"# recsys train {name} --out runs/{name.parent.name}/{file.stem}"
    assert config.model["name"] == model_of(file)


def test_there_is_a_config_for_each_model() -> None:
    assert {model_of(file) for file in FILES} == set(registry.BUILT_IN)


def model_of(file: Path) -> str:
    """`bert4rec-faithful.yaml` is another setting of bert4rec."""
    return file.stem.split("-")[0]
