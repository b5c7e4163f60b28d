from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from recsys.errors import DataError
from recsys.features.batches import JaggedBatch
from recsys.features.dataset import PreparedDataset
from recsys.features.prepare import PrepareConfig, SplitConfig, prepare
from recsys.models.floors import RecentConfig, RecentPopularity

Logs = Callable[[list[list[int]]], PreparedDataset]
SECOND = 1_000_000


@pytest.fixture
def timed(tmp_path: Path) -> PreparedDataset:
    """Training: item 1 at 1000 and 1030 s, item 2 at 1010 s, item 3 at 1020 s; the last two events are held out."""
    (tmp_path / "log.csv").write_text(
        "user_id,item_id,timestamp\n"
        "1,1,1600001000\n1,2,1600001010\n1,2,1600001050\n1,2,1600001060\n"
        "2,3,1600001020\n2,1,1600001030\n2,3,1600001070\n2,3,1600001080\n"
    )
    return prepare(tmp_path / "log.csv", tmp_path / "data", PrepareConfig(split=SplitConfig(protocol="loo")))


def at(*seconds: int) -> JaggedBatch:
    return JaggedBatch.from_sequences([[1]] * len(seconds), query_times=[(1600000000 + s) * SECOND for s in seconds])


def test_an_event_halves_in_weight_with_each_half_life_of_later_events(logs: Logs) -> None:
    dataset = logs([[1, 2, 3, 4, 4], [1, 1, 4, 4]])  # ages: 1: 2, 2: 1, 3: 0; 1: 1, 1: 0
    scores = RecentPopularity.fit(dataset, RecentConfig(half_life=1.0)).scores(JaggedBatch.from_sequences([[1], []]))
    assert scores.tolist() == [[-torch.inf, 0.25 + 0.5 + 1, 0.5, 1.0, 0.0]] * 2


def test_seconds_are_counted_back_from_the_question_and_the_future_is_not_seen(timed: PreparedDataset) -> None:
    floor = RecentPopularity.fit(timed, RecentConfig(half_life=10.0, unit="seconds"))
    scores = floor.scores(at(1031, 1000, 1015, 1020, 1021, 10**9))
    assert scores[:, 1:].tolist() == [
        [0.125 + 1, 0.25, 0.5],  # all four, counted back from the last of them
        [0, 0, 0],  # nothing came before
        [0.5, 1, 0],
        [0.5, 1, 0],  # what happens at the very moment of the question does not count
        [0.25, 0.5, 1],
        [0.125 + 1, 0.25, 0.5],  # long after, nothing vanishes
    ]
    assert torch.equal(floor.scores(JaggedBatch.from_sequences([[1]]))[0], scores[0])


def test_the_order_of_the_questions_changes_no_score(timed: PreparedDataset) -> None:
    floor = RecentPopularity.fit(timed, RecentConfig(half_life=7.0, unit="seconds"))
    moments = [1031, 1000, 1015, 1020, 1021]
    together = floor.scores(at(*moments))
    for row, moment in zip(together, moments, strict=True):
        np.testing.assert_allclose(floor.scores(at(moment))[0], row, rtol=1e-12)


def test_half_lives_in_seconds_need_times(logs: Logs) -> None:
    with pytest.raises(DataError, match="ordered by rows|ordered by position"):
        RecentPopularity.fit(logs([[1, 2, 3, 4]]), RecentConfig(unit="seconds"))


@pytest.mark.parametrize("setting", [{"half_life": 0.0}, {"half_life": float("nan")}, {"unit": "days"}])
def test_a_setting_out_of_range_is_refused_by_name(setting: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=f"{next(iter(setting))}=.*wanted"):
        RecentConfig(**setting)  # type: ignore[arg-type]  # the point
