from pathlib import Path

import numpy as np
import pytest

from recsys.features.dataset import PreparedDataset
from recsys.features.prepare import PrepareConfig, SplitConfig, prepare


@pytest.fixture
def walks(tmp_path: Path) -> PreparedDataset:
    """Steps of one on a circle of 30, but the last step, which tests, is random."""
    rng = np.random.default_rng(0)
    starts, ends = rng.integers(0, 30, 120), rng.integers(0, 30, 120)
    rows = [[(start + n) % 30 for n in range(8)] + [end] for start, end in zip(starts, ends, strict=True)]
    (tmp_path / "log.txt").write_text("".join(f"{u} {' '.join(map(str, row))}\n" for u, row in enumerate(rows)))
    return prepare(tmp_path / "log.txt", tmp_path / "data", PrepareConfig(split=SplitConfig(protocol="loo")))
