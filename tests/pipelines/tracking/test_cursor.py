import json
from pathlib import Path
from typing import Any

import pytest

from recsys.errors import DataError
from recsys.models.tracking_server import connect
from recsys.pipelines.tracking.cursor import TrackingCursor
from recsys.pipelines.tracking.tracker import Tracker

pytest.importorskip("mlflow", reason="needs the extra tracking")


def test_a_cursor_that_fell_behind_is_caught_up_without_a_second_run_or_point(
    tmp_path: Path, bundle: Path, store: str, runs: Any, peek: Any
) -> None:
    run = runs.write(tmp_path / "behind")
    runs.end(run, bundle)
    first = Tracker(run, store, "behind", model_name="behind").send()
    key = json.loads((run / "tracking.json").read_text())["run_key"]
    # As if the process had been killed after the server took everything, before the cursor was written.
    TrackingCursor(run_key=key, uri=store, experiment="behind", register_as="behind").save(run)
    again = Tracker(run, store, "behind").send()
    assert again.run_id == first.run_id
    assert again.model == first.model == "models:/behind/1"
    assert len(peek.runs(store, "behind")) == 1
    assert len(peek.history(store, first.run_id, "train/loss")) == 5
    with connect(store) as client:
        assert len(client.search_model_versions("name = 'behind'")) == 1
        experiment = client.get_experiment_by_name("behind")
        assert len(client.search_logged_models([experiment.experiment_id])) == 1


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "damaged"),
        ('{"format": 99, "run_key": "a"}', "not of format 1"),
        ('{"format": 1, "run_key": "a", "colour": 1}', "damaged"),
        ('{"format": 1}', "not of format 1"),
        ("[]", "holds a list"),
    ],
)
def test_a_damaged_cursor_is_named_with_its_remedy(tmp_path: Path, content: str, message: str, runs: Any) -> None:
    run = runs.write(tmp_path / "run")
    (run / "tracking.json").write_text(content)
    with pytest.raises(DataError, match=f"tracking.json: {message}.*; remove it, and recsys runs sync sends"):
        TrackingCursor.read(run)
