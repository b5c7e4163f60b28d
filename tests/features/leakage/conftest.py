"""A small dataset by any protocol, made once a session."""

from typing import Any

import pytest

from recsys.features.dataset import PreparedDataset
from recsys.features.prepare import PrepareConfig, SplitConfig, prepare
from tests.features.leakage.planted import DAY, Prepared


@pytest.fixture(scope="session")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    """A log of 24 users and 40 items with many equal times, by any protocol and number of shards."""
    folder = tmp_path_factory.mktemp("leakage")
    rows = [(u, (u * 7 + n * n) % 40, 1_500_000_000 + (u * 3 + n * 5) % 61 * DAY) for u in range(24) for n in range(10)]
    rows += [(u, 40 + u % 5, 1_500_000_000 + (62 + u % 7) * DAY) for u in range(24)]
    rows.sort(key=lambda row: (row[0], row[2]))
    (folder / "log.csv").write_text("user,item,ts\n" + "".join(f"u{u},{i},{t}\n" for u, i, t in rows))

    def make(protocol: str = "time", shards: int = 1, **split: Any) -> PreparedDataset:
        out = folder / f"{protocol}-{shards}-{'-'.join(map(str, split.values()))}"
        config = SplitConfig(protocol=protocol, **split)  # type: ignore[arg-type]  # the tests name known ones
        return prepare(folder / "log.csv", out, PrepareConfig(split=config, shards=shards))

    return make
