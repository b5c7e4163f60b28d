"""Data whose answer is obvious: items stand in a circle, and each is followed by the next one."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import Phase, settings

from recsys.features.dataset import PreparedDataset
from recsys.features.prepare import PrepareConfig, prepare
from recsys.features.splits import SplitConfig

CIRCLE = 20

settings.register_profile("unshrunk", phases=[Phase.explicit, Phase.generate])  # a failure is enough


# Tensors here are tiny: a second thread only waits.
torch.set_num_threads(1)


def write_circle(path: Path, users: int = 150, seed: int = 0) -> Path:
    """A CSV of `users` walks around the circle, with times a minute apart."""
    generator = np.random.default_rng(seed)
    lines = ["user_id,item_id,timestamp"]
    for user in range(users):
        start, length = int(generator.integers(CIRCLE)), int(generator.integers(5, 16))
        began = 1_600_000_000 + int(generator.integers(86_400 * 30))
        lines += [f"u{user},i{(start + n) % CIRCLE},{began + 60 * n}" for n in range(length)]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def circle_csv(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_circle(tmp_path_factory.mktemp("circle") / "clicks.csv")


@pytest.fixture(scope="session")
def circle(circle_csv: Path) -> PreparedDataset:
    """The circle, prepared with leave-one-out."""
    config = PrepareConfig(split=SplitConfig(protocol="loo"))
    return prepare(circle_csv, circle_csv.parent / "data", config)
