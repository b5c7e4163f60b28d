import json
from pathlib import Path

import numpy as np
import polars
import pytest
import torch

from benchmarks import collision_quality
from benchmarks.support.movie_clicks import read_movie_clicks
from recsys.features.click_batch import NO_ID


def write_log(folder: Path, users: int = 40, items: int = 60, length: int = 20) -> Path:
    """Users take items of their half of the catalogue."""
    generator = np.random.default_rng(0)
    rows = [
        (100 + user, 7 * int(item), place)
        for user in range(users)
        for place, item in enumerate(generator.permutation(items // 2)[:length] * 2 + user % 2)
    ]
    file = folder / "ml-1m" / "sequences.parquet"
    file.parent.mkdir(parents=True)
    frame = polars.DataFrame(rows, schema=["user_id", "item_id", "position"], orient="row")
    frame.sample(fraction=1, shuffle=True, seed=1).write_parquet(file)
    return file


def test_the_last_tenth_of_each_user_is_tested_and_nothing_of_it_trained_on(tmp_path: Path) -> None:
    file = write_log(tmp_path)
    for held_out, tested, trained in (("test", {18, 19}, set(range(18))), ("validation", {16, 17}, set(range(16)))):
        clicks = read_movie_clicks(file, history=3, held_out=held_out)
        places = np.tile(np.arange(20), 40)
        assert set(places[clicks.is_test]) == tested
        assert set(places[clicks.is_trained]) == trained


def test_examples_hold_what_was_taken_before_and_negatives_that_never_were(tmp_path: Path) -> None:
    file = write_log(tmp_path)
    clicks = read_movie_clicks(file, history=3)
    taken = {
        user: list(rows["item_id"]) for (user,), rows in polars.read_parquet(file).sort("position").group_by("user_id")
    }
    for batch in (clicks.epoch(0, 0), clicks.test()):
        assert batch.labels is not None
        assert float(batch.labels.mean()) == 0.5
        for (user, item, *history), label in zip(batch.ids.tolist(), batch.labels.tolist(), strict=True):
            assert (item in taken[user]) == (label == 1)
            if label == 1:
                place = taken[user].index(item)
                before = taken[user][max(0, place - 3) : place][::-1]
                assert history == before + [NO_ID] * (3 - len(before))
    assert torch.equal(clicks.epoch(1, 0).ids, clicks.epoch(1, 0).ids)
    assert not torch.equal(clicks.epoch(1, 0).ids, clicks.epoch(1, 1).ids)
    counts = clicks.popularity(np.array([0, 7, 999]))
    assert counts.tolist() == [int((clicks.items[clicks.is_trained] == item).sum()) for item in (0, 7, 999)]


def test_the_slope_is_that_of_a_line_through_the_origin() -> None:
    assert collision_quality.slope([1.0, 2.0, 3.0], [-0.2, -0.4, -0.6]) == pytest.approx(-0.2)


@pytest.mark.slow
def test_collisions_cost_what_the_table_says_and_a_second_call_runs_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_log(tmp_path)
    monkeypatch.setenv("RECSYS_DATA", str(tmp_path))
    words = ["--seeds", "2", "--doses", "0.001", "30", "--epochs", "20", "--batch", "64"]
    words += ["--out", str(tmp_path / "runs"), "--results", str(tmp_path / "results")]
    collision_quality.main(words)
    runs = (tmp_path / "runs" / "runs.jsonl").read_text()
    row = json.loads((tmp_path / "results" / "collision_quality.jsonl").read_text())
    control, dose = row["doses"]
    assert row["labels"] == "sampled"
    assert row["collisionless"]["mean"] > 0.8
    assert dose["difference"]["mean"] < -0.15  # a row or two are left: who belongs to which half is lost
    assert abs(control["difference"]["mean"]) < 0.1
    assert dose["lost_users"]["mean"] == pytest.approx(1 - 1 / 40)
    assert dose["lost"] == pytest.approx(1 - (1 - np.exp(-30)) / 30)
    assert "| 0.001 (control) |" in capsys.readouterr().out
    monkeypatch.setattr(collision_quality, "fit", None)
    collision_quality.main(words)
    assert (tmp_path / "runs" / "runs.jsonl").read_text() == runs
