"""Logs whose answer can be counted by hand."""

from collections.abc import Callable, Sequence
from itertools import count

import pytest

from recsys.features.dataset import PreparedDataset
from recsys.features.prepare import PrepareConfig, SplitConfig, prepare

Logs = Callable[[Sequence[Sequence[int]]], PreparedDataset]


@pytest.fixture(scope="session")
def logs(tmp_path_factory: pytest.TempPathFactory) -> Logs:
    """Item ids are 1..V and appear in that order, so an id is its index; the last two events of a user are held out."""
    folder, numbers = tmp_path_factory.mktemp("logs"), count()

    def write(sequences: Sequence[Sequence[int]]) -> PreparedDataset:
        place = folder / str(next(numbers))
        place.mkdir()
        lines = [f"{user} {' '.join(map(str, items))}" for user, items in enumerate(sequences, start=1)]
        (place / "log.txt").write_text("\n".join(lines) + "\n")
        return prepare(place / "log.txt", place / "data", PrepareConfig(split=SplitConfig(protocol="loo")))

    return write
