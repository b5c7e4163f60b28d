import json
from pathlib import Path
from typing import Any

import pytest

from recsys.models.bundle import load_bundle
from recsys.models.tracking_server import connect
from recsys.pipelines.run_folder import RunFolder
from recsys.pipelines.tracking.cursor import TrackingCursor
from recsys.pipelines.tracking.delivery import CURVES, flat
from recsys.pipelines.tracking.tracker import Tracker, sync

pytest.importorskip("mlflow", reason="needs the extra tracking")


def test_a_run_arrives_whole(tmp_path: Path, bundle: Path, store: str, runs: Any, peek: Any) -> None:
    run = runs.write(tmp_path / "first")
    runs.end(run, bundle)
    runs.evaluate(run, 0.3)
    sent = Tracker(run, store, "whole").send()
    (there,) = peek.runs(store, "whole")
    assert there.info.run_id == sent.run_id
    assert (there.info.run_name, there.info.status) == ("first", "FINISHED")
    assert there.data.params == {key: str(value) for key, value in flat(RunFolder(run).record["config"]).items()}
    assert there.data.tags["protocol.test"] == "loo/next/full-rank/exclude-seen"
    assert there.data.tags["data_hash"] == "0123456789ab"
    assert there.data.tags["git_commit"] == "f" * 40
    assert there.data.tags["bundle_version"] == load_bundle(bundle).version
    assert peek.history(store, sent.run_id, "train/loss") == [(step, 1 / step) for step in range(1, 6)]
    assert peek.history(store, sent.run_id, "valid/ndcg_at_10") == [(5, 0.25)]
    assert peek.history(store, sent.run_id, "test/sasrec/ndcg_at_10") == [(0, 0.3)]
    assert peek.artifacts(store, sent.run_id) == {"run.json", "evaluation.json", "curves.png"}
    assert (run / "curves.png").read_bytes().startswith(b"\x89PNG")


def test_gauges_of_tables_arrive_as_metrics(tmp_path: Path, store: str, runs: Any, peek: Any) -> None:
    run = runs.write(tmp_path / "tables")
    for step in (5, 9):
        gauges = {"item.rows.size": 10 * step, "item.rows.refused": 0, "item.rows.bytes_per_id": 18.5}
        runs.log(run, {"event": "tables", "step": step, "epoch": 0, **gauges})
    sent = Tracker(run, store, "tables").send()
    assert peek.history(store, sent.run_id, "tables/item.rows.size") == [(5, 50), (9, 90)]
    assert peek.history(store, sent.run_id, "tables/item.rows.refused") == [(5, 0), (9, 0)]
    assert peek.history(store, sent.run_id, "tables/item.rows.bytes_per_id") == [(5, 18.5), (9, 18.5)]


def test_sending_twice_gives_one_run_one_version_and_no_second_point(
    tmp_path: Path, bundle: Path, store: str, runs: Any, peek: Any
) -> None:
    run = runs.write(tmp_path / "twice")
    runs.end(run, bundle)
    first = Tracker(run, store, "twice", model_name="twice").send()
    before = (run / "tracking.json").read_text()
    second = Tracker(run, store, "twice", model_name="twice").send()
    assert (second.num_points, second.files) == (0, [])
    assert (second.run_id, second.model) == (first.run_id, "models:/twice/1")
    assert (run / "tracking.json").read_text() == before
    assert len(peek.runs(store, "twice")) == 1


def test_a_growing_log_is_sent_piece_by_piece(tmp_path: Path, bundle: Path, store: str, runs: Any, peek: Any) -> None:
    run = runs.write(tmp_path / "growing", num_steps=3)
    first = Tracker(run, store, "growing").send(status="RUNNING")
    assert peek.runs(store, "growing")[0].info.status == "RUNNING"
    assert first.model is None
    with (run / "log.jsonl").open("a") as file:
        file.write('{"event": "step", "step": 4, "time": 1700000004, "lo')
    assert Tracker(run, store, "growing").send().num_points == 0
    with (run / "log.jsonl").open("a") as file:
        file.write('ss": 0.25}\n')
    runs.log(run, {"event": "step", "step": 5, "loss": 1 / 5})
    assert Tracker(run, store, "growing").send().num_points == 2
    runs.end(run, bundle)
    last = Tracker(run, store, "growing").send()
    assert peek.history(store, first.run_id, "train/loss") == [(step, 1 / step) for step in range(1, 6)]
    assert last.model is not None
    assert peek.runs(store, "growing")[0].info.status == "FINISHED"


def test_a_torn_line_is_counted_and_passed_over(tmp_path: Path, store: str, runs: Any, peek: Any) -> None:
    run = runs.write(tmp_path / "torn", num_steps=2)
    with (run / "log.jsonl").open("a") as file:
        file.write('{"event": "step", "st\n[1]\n')
    runs.log(run, {"event": "step", "step": 3, "loss": 0.5})
    sent = Tracker(run, store, "torn").send()
    assert sent.num_damaged == 2
    assert [step for step, _ in peek.history(store, sent.run_id, "train/loss")] == [1, 2, 3]


def test_a_log_that_was_cut_is_read_again_from_its_beginning(tmp_path: Path, store: str, runs: Any, peek: Any) -> None:
    run = runs.write(tmp_path / "cut", num_steps=4)
    sent = Tracker(run, store, "cut").send()
    lines = (run / "log.jsonl").read_text().splitlines(keepends=True)
    (run / "log.jsonl").write_text("".join(lines[:2]))
    runs.log(run, {"event": "step", "step": 9, "loss": 0.125})
    Tracker(run, store, "cut").send()
    assert [step for step, _ in peek.history(store, sent.run_id, "train/loss")] == [1, 2, 3, 4, 9]


def test_a_setting_changed_on_resume_becomes_a_tag(tmp_path: Path, store: str, runs: Any, peek: Any) -> None:
    run = runs.write(tmp_path / "changed")
    Tracker(run, store, "changed").send()
    record = RunFolder(run).record
    record["config"]["train"] = {"lr": 0.01, "epochs": 9}
    (run / "run.json").write_text(json.dumps(record))
    Tracker(run, store, "changed").send()
    (there,) = peek.runs(store, "changed")
    assert (there.data.params["train.lr"], there.data.params["train.epochs"]) == ("0.001", "9")
    assert there.data.tags["changed.train.lr"] == "0.01"


def test_a_later_evaluation_is_sent_by_the_next_sync(
    tmp_path: Path, bundle: Path, store: str, runs: Any, peek: Any
) -> None:
    run = runs.write(tmp_path / "late")
    runs.end(run, bundle)
    sent = Tracker(run, store, "late").send()
    runs.evaluate(run, 0.5)
    (again,) = sync([run])
    assert again.files == ["evaluation.json"]
    assert peek.history(store, sent.run_id, "test/sasrec/ndcg_at_10") == [(0, 0.5)]


def test_another_split_is_sent_beside_the_test_figures(
    tmp_path: Path, bundle: Path, store: str, runs: Any, peek: Any
) -> None:
    run = runs.write(tmp_path / "splits")
    runs.end(run, bundle)
    runs.evaluate(run, 0.3)
    runs.evaluate(run, 0.4, split="valid")
    sent = Tracker(run, store, "splits").send()
    runs.evaluate(run, 0.5, seen="keep", protocol="loo/next/full-rank/keep-seen")
    (again,) = sync([run])
    assert again.files == ["evaluation.test.keep.json"]
    for label, ndcg in (("test", 0.3), ("valid", 0.4), ("test.keep", 0.5)):
        assert peek.history(store, sent.run_id, f"{label}/sasrec/ndcg_at_10") == [(0, ndcg)]
    assert {"evaluation.json", "evaluation.valid.json"} < peek.artifacts(store, sent.run_id)
    (there,) = peek.runs(store, "splits")
    assert there.data.tags["protocol.test"] == "loo/next/full-rank/exclude-seen"


def test_a_run_deleted_on_the_server_is_sent_anew(tmp_path: Path, store: str, runs: Any, peek: Any) -> None:
    run = runs.write(tmp_path / "deleted")
    first = Tracker(run, store, "deleted").send()
    with connect(store) as client:
        client.delete_run(first.run_id)
    second = Tracker(run, store, "deleted").send()
    assert second.run_id != first.run_id
    assert len(peek.history(store, second.run_id, "train/loss")) == 5


def test_the_challenger_is_the_newest_version_and_stays_so_when_an_old_run_is_sent_again(
    tmp_path: Path, bundle: Path, store: str, runs: Any
) -> None:
    for name in ("old", "young"):
        runs.end(runs.write(tmp_path / name), bundle)
        Tracker(tmp_path / name, store, "alias", model_name="alias").send()
    old = TrackingCursor.read(tmp_path / "old")
    assert old is not None
    TrackingCursor(run_key=old.run_key, uri=store, experiment="alias", register_as="alias").save(tmp_path / "old")
    assert sync([tmp_path / "old"])[0].model == "models:/alias/1"
    with connect(store) as client:
        assert client.get_model_version_by_alias("alias", "challenger").version == 2


def test_only_steps_tables_and_validations_are_curves() -> None:
    assert set(CURVES) == {"step", "tables", "validation"}


def test_both_protocols_are_kept(tmp_path: Path, store: str, runs: Any, peek: Any) -> None:
    run = runs.write(tmp_path / "protocols")
    Tracker(run, store, "protocols").send()
    assert "protocol.test" not in peek.runs(store, "protocols")[0].data.tags
    runs.evaluate(run, 0.3)
    Tracker(run, store, "protocols").send()
    runs.evaluate(run, 0.3, split="valid")
    Tracker(run, store, "protocols").send()
    tags = peek.runs(store, "protocols")[0].data.tags
    assert tags["protocol.valid"] == "loo/next/full-rank"
    assert tags["protocol.test"] == "loo/next/full-rank/exclude-seen"


def test_the_registered_version_carries_its_test_figure_and_its_floor(
    tmp_path: Path, bundle: Path, store: str, runs: Any
) -> None:
    run = runs.write(tmp_path / "figures")
    runs.end(run, bundle)
    Tracker(run, store, "figures", model_name="figures").send()
    for ndcg in (0.3, 0.4):
        runs.evaluate(run, ndcg)
        sync([run])
        with connect(store) as client:
            tags = client.get_model_version_by_alias("figures", "challenger").tags
        assert tags["protocol.test"] == "loo/next/full-rank/exclude-seen"
        assert (tags["test.ndcg_at_10"], tags["test.floor"], tags["test.floor_ndcg_at_10"]) == (
            str(ndcg),
            "popularity",
            "0.125",
        )
    before = (run / "tracking.json").read_text()
    sync([run])
    assert (run / "tracking.json").read_text() == before


def test_a_version_deleted_in_the_registry_does_not_stop_a_later_evaluation(
    tmp_path: Path, bundle: Path, store: str, runs: Any, peek: Any
) -> None:
    run = runs.write(tmp_path / "gone")
    runs.end(run, bundle)
    sent = Tracker(run, store, "gone", model_name="gone").send()
    with connect(store) as client:
        client.delete_model_version("gone", "1")
    runs.evaluate(run, 0.5)
    sync([run])
    assert peek.history(store, sent.run_id, "test/sasrec/ndcg_at_10") == [(0, 0.5)]


@pytest.mark.parametrize("change", [{"bundle_version": "000000000000"}, {"split": "valid"}], ids=str)
def test_figures_of_another_bundle_or_part_are_no_tags_of_the_version(
    tmp_path: Path, bundle: Path, store: str, runs: Any, change: dict[str, str]
) -> None:
    run, name = runs.write(tmp_path / "other"), f"other-{next(iter(change))}"
    runs.end(run, bundle)
    runs.evaluate(run, 0.3, **change)
    Tracker(run, store, "other", model_name=name).send()
    with connect(store) as client:
        tags = client.get_model_version_by_alias(name, "challenger").tags
    assert set(tags) == {"bundle_version", "data_hash"}
