import contextlib
import http.server
import json
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from recsys.errors import DataError, InputError, TrackingError
from recsys.features.vocabulary import Vocabulary
from recsys.models import registry
from recsys.models.bundle import load_bundle, save_bundle
from recsys.models.ranking.ranker import History, Ranker
from recsys.models.tracking_server import check_uri, connect, without_password
from recsys.pipelines.run_folder import RunFolder, find_runs
from recsys.pipelines.tracking.cursor import TrackingCursor
from recsys.pipelines.tracking.delivery import CURVES, flat
from recsys.pipelines.tracking.tracker import Tracker, sync, tracking_uri

pytest.importorskip("mlflow", reason="needs the extra tracking")

NUM_ITEMS = 12
MODEL = {"d_model": 8, "num_layers": 1, "num_heads": 1, "max_len": 6}


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(3)
    config = {"name": "sasrec", **MODEL}
    items = Vocabulary.from_ids([f"i{n}" for n in range(1, NUM_ITEMS + 1)])
    return save_bundle(
        tmp_path_factory.mktemp("bundle") / "bundle",
        model=registry.build("sasrec", MODEL, NUM_ITEMS),
        name="sasrec",
        config={key: value for key, value in config.items() if key != "name"},
        items=items,
        popularity=np.arange(NUM_ITEMS + 1),
        metrics={},
        data={"data_hash": "abc"},
        golden_histories=[["i1", "i2"]],
    )


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory, bundle: Path) -> "tuple[Path, subprocess.CompletedProcess[str]]":
    """A run that was sent by a process of its own into a database that it made."""
    folder = tmp_path_factory.mktemp("first")
    end(write_run(folder / "runs" / "quiet"), bundle)
    (folder / "here").mkdir()
    imports = "import sys; from pathlib import Path; from recsys.pipelines.tracking.tracker import sync"
    code = f"{imports}; sync([Path(sys.argv[1])])"
    environment = {key: value for key, value in os.environ.items() if key != "MLFLOW_TRACKING_URI"}
    command = [sys.executable, "-c", code, str(folder / "runs" / "quiet")]
    done = subprocess.run(command, cwd=folder / "here", env=environment, capture_output=True, text=True, check=False)
    return folder, done


@pytest.fixture(scope="module")
def store(first: "tuple[Path, subprocess.CompletedProcess[str]]") -> str:
    """One database for the module: making one takes seconds."""
    return f"sqlite:///{first[0]}/runs/mlflow.db"


def write_run(folder: Path, num_steps: int = 5, record: dict[str, Any] | None = None) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    plain = {
        "format": 1,
        "config": {"data": "data", "model": {"name": "sasrec", **MODEL}, "train": {"lr": 0.001}, "seed": 7},
        "data_hash": "0123456789ab",
        "protocol": "loo/next/full-rank",
        "commit": "f" * 40,
        "recsys": "0.1.0",
        "torch": "2.13.0",
    }
    (folder / "run.json").write_text(json.dumps({**plain, **(record or {})}))
    log(folder, {"event": "start", "step": 0, "parameters": 100})
    for step in range(1, num_steps + 1):
        log(folder, {"event": "step", "step": step, "epoch": 0, "loss": 1 / step, "tokens_per_s": 1000 + step})
    log(folder, {"event": "validation", "step": num_steps, "epoch": 0, "ndcg@10": 0.25, "n": 40})
    return folder


def log(folder: Path, event: dict[str, Any]) -> None:
    with (folder / "log.jsonl").open("a") as file:
        file.write(json.dumps({"time": 1.7e9 + event["step"], **event}) + "\n")


def end(folder: Path, bundle: Path, step: int = 5) -> None:
    shutil.copytree(bundle, folder / "bundle", dirs_exist_ok=True)
    log(folder, {"event": "end", "step": step, "seconds": 1.5})


def evaluate(folder: Path, ndcg: float) -> None:
    figures = {"sasrec": {"ndcg@10": {"mean": ndcg, "low": 0.1, "high": 0.4}}}
    value = {"protocol": "loo/next/full-rank/exclude-seen", "split": "test", "metrics": figures}
    (folder / "evaluation.json").write_text(json.dumps(value))


def history(uri: str, run_id: str, key: str) -> list[tuple[int, float]]:
    with connect(uri) as client:
        return sorted((point.step, point.value) for point in client.get_metric_history(run_id, key))


def runs_of(uri: str, experiment: str) -> list[Any]:
    with connect(uri) as client:
        found = client.get_experiment_by_name(experiment)
        return list(client.search_runs([found.experiment_id])) if found else []


def artifacts(uri: str, run_id: str) -> set[str]:
    with connect(uri) as client:
        return {file.path for file in client.list_artifacts(run_id)}


def test_a_run_arrives_whole(tmp_path: Path, bundle: Path, store: str) -> None:
    run = write_run(tmp_path / "first")
    end(run, bundle)
    evaluate(run, 0.3)
    sent = Tracker(run, store, "whole").send()
    (there,) = runs_of(store, "whole")
    assert there.info.run_id == sent.run_id
    assert (there.info.run_name, there.info.status) == ("first", "FINISHED")
    assert there.data.params == {key: str(value) for key, value in flat(RunFolder(run).record["config"]).items()}
    assert there.data.tags["protocol"] == "loo/next/full-rank/exclude-seen"
    assert there.data.tags["data_hash"] == "0123456789ab"
    assert there.data.tags["git_commit"] == "f" * 40
    assert there.data.tags["bundle_version"] == load_bundle(bundle).version
    assert history(store, sent.run_id, "train/loss") == [(step, 1 / step) for step in range(1, 6)]
    assert history(store, sent.run_id, "valid/ndcg_at_10") == [(5, 0.25)]
    assert history(store, sent.run_id, "test/sasrec/ndcg_at_10") == [(0, 0.3)]
    assert artifacts(store, sent.run_id) == {"run.json", "evaluation.json", "curves.png"}
    assert (run / "curves.png").read_bytes().startswith(b"\x89PNG")


def test_sending_twice_gives_one_run_one_version_and_no_second_point(tmp_path: Path, bundle: Path, store: str) -> None:
    run = write_run(tmp_path / "twice")
    end(run, bundle)
    first = Tracker(run, store, "twice", model_name="twice").send()
    before = (run / "tracking.json").read_text()
    second = Tracker(run, store, "twice", model_name="twice").send()
    assert (second.num_points, second.files) == (0, [])
    assert (second.run_id, second.model) == (first.run_id, "models:/twice/1")
    assert (run / "tracking.json").read_text() == before
    assert len(runs_of(store, "twice")) == 1


def test_a_cursor_that_fell_behind_is_caught_up_without_a_second_run_or_point(
    tmp_path: Path, bundle: Path, store: str
) -> None:
    run = write_run(tmp_path / "behind")
    end(run, bundle)
    first = Tracker(run, store, "behind", model_name="behind").send()
    key = json.loads((run / "tracking.json").read_text())["run_key"]
    # As if the process had been killed after the server took everything, before the cursor was written.
    TrackingCursor(run_key=key, uri=store, experiment="behind", register_as="behind").save(run)
    again = Tracker(run, store, "behind").send()
    assert again.run_id == first.run_id
    assert again.model == first.model == "models:/behind/1"
    assert len(runs_of(store, "behind")) == 1
    assert len(history(store, first.run_id, "train/loss")) == 5
    with connect(store) as client:
        assert len(client.search_model_versions("name = 'behind'")) == 1
        experiment = client.get_experiment_by_name("behind")
        assert len(client.search_logged_models([experiment.experiment_id])) == 1


def test_a_growing_log_is_sent_piece_by_piece(tmp_path: Path, bundle: Path, store: str) -> None:
    run = write_run(tmp_path / "growing", num_steps=3)
    first = Tracker(run, store, "growing").send(status="RUNNING")
    assert runs_of(store, "growing")[0].info.status == "RUNNING"
    assert first.model is None
    with (run / "log.jsonl").open("a") as file:
        file.write('{"event": "step", "step": 4, "time": 1700000004, "lo')
    assert Tracker(run, store, "growing").send().num_points == 0
    with (run / "log.jsonl").open("a") as file:
        file.write('ss": 0.25}\n')
    log(run, {"event": "step", "step": 5, "loss": 1 / 5})
    assert Tracker(run, store, "growing").send().num_points == 2
    end(run, bundle)
    last = Tracker(run, store, "growing").send()
    assert history(store, first.run_id, "train/loss") == [(step, 1 / step) for step in range(1, 6)]
    assert last.model is not None
    assert runs_of(store, "growing")[0].info.status == "FINISHED"


def test_a_torn_line_is_counted_and_passed_over(tmp_path: Path, store: str) -> None:
    run = write_run(tmp_path / "torn", num_steps=2)
    with (run / "log.jsonl").open("a") as file:
        file.write('{"event": "step", "st\n[1]\n')
    log(run, {"event": "step", "step": 3, "loss": 0.5})
    sent = Tracker(run, store, "torn").send()
    assert sent.num_damaged == 2
    assert [step for step, _ in history(store, sent.run_id, "train/loss")] == [1, 2, 3]


def test_a_log_that_was_cut_is_read_again_from_its_beginning(tmp_path: Path, store: str) -> None:
    run = write_run(tmp_path / "cut", num_steps=4)
    sent = Tracker(run, store, "cut").send()
    lines = (run / "log.jsonl").read_text().splitlines(keepends=True)
    (run / "log.jsonl").write_text("".join(lines[:2]))
    log(run, {"event": "step", "step": 9, "loss": 0.125})
    Tracker(run, store, "cut").send()
    assert [step for step, _ in history(store, sent.run_id, "train/loss")] == [1, 2, 3, 4, 9]


def test_a_setting_changed_on_resume_becomes_a_tag(tmp_path: Path, store: str) -> None:
    run = write_run(tmp_path / "changed")
    Tracker(run, store, "changed").send()
    record = RunFolder(run).record
    record["config"]["train"] = {"lr": 0.01, "epochs": 9}
    (run / "run.json").write_text(json.dumps(record))
    Tracker(run, store, "changed").send()
    (there,) = runs_of(store, "changed")
    assert (there.data.params["train.lr"], there.data.params["train.epochs"]) == ("0.001", "9")
    assert there.data.tags["changed.train.lr"] == "0.01"


def test_a_later_evaluation_is_sent_by_the_next_sync(tmp_path: Path, bundle: Path, store: str) -> None:
    run = write_run(tmp_path / "late")
    end(run, bundle)
    sent = Tracker(run, store, "late").send()
    evaluate(run, 0.5)
    (again,) = sync([run])
    assert again.files == ["evaluation.json"]
    assert history(store, sent.run_id, "test/sasrec/ndcg_at_10") == [(0, 0.5)]


def test_a_run_deleted_on_the_server_is_sent_anew(tmp_path: Path, store: str) -> None:
    run = write_run(tmp_path / "deleted")
    first = Tracker(run, store, "deleted").send()
    with connect(store) as client:
        client.delete_run(first.run_id)
    second = Tracker(run, store, "deleted").send()
    assert second.run_id != first.run_id
    assert len(history(store, second.run_id, "train/loss")) == 5


def test_the_registered_model_answers_as_the_ranker_and_holds_no_pickle(
    tmp_path: Path, bundle: Path, store: str
) -> None:
    import mlflow
    import pandas as pd

    run = write_run(tmp_path / "model")
    end(run, bundle)
    sent = Tracker(run, store, "model", model_name="shop").send()
    assert sent.model == "models:/shop/1"
    with connect(store) as client:
        assert client.get_model_version_by_alias("shop", "challenger").version == 1
        folder = Path(mlflow.artifacts.download_artifacts("models:/shop@challenger", dst_path=str(tmp_path / "down")))
        model = mlflow.pyfunc.load_model("models:/shop@challenger")
        frame = pd.DataFrame({"sequence": [["i1", "i2"], "i3", "", "unheard"], "k": [3, 2, 4, 1]})
        answer = model.predict(frame)
        plain = model.predict(pd.DataFrame({"sequence": ["i1 i2"]}))
    assert load_bundle(folder / "data" / "bundle").version == load_bundle(bundle).version
    names = {file.name for file in folder.rglob("*") if file.is_file()}
    assert "MLmodel" in names
    assert not [name for name in names if name.endswith((".pkl", ".pickle", ".pt", ".bin", ".cloudpickle"))]
    assert "pkl" not in (folder / "MLmodel").read_text()

    ranker = Ranker(load_bundle(bundle))
    first, second, empty, unknown = ranker.recommend([History(s) for s in (["i1", "i2"], ["i3"], [], [])], 10)
    assert list(answer["item_ids"][0]) == first.item_ids[:3]
    assert list(answer["scores"][0]) == pytest.approx(first.scores[:3])
    assert list(answer["item_ids"][1]) == second.item_ids[:2]
    assert list(answer["item_ids"][2]) == empty.item_ids[:4]
    assert list(answer["item_ids"][3]) == unknown.item_ids[:1]
    assert list(answer["source"]) == ["model", "model", "popularity", "popularity"]
    assert list(plain["item_ids"][0]) == first.item_ids[:10]


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"items": ["i1"]}, "wanted a column sequence"),
        ({"sequence": [3.5]}, "sequence=3.5: wanted a list of item ids, or text"),
        ({"sequence": ["i1"], "k": [0]}, "k=0: wanted at least 1"),
        ({"sequence": ["i1"], "k": ["many"]}, "k='many': wanted a whole number"),
    ],
)
def test_a_question_the_model_cannot_read_is_refused_in_one_line(
    bundle: Path, columns: dict[str, Any], message: str
) -> None:
    import pandas as pd

    from recsys.pipelines.tracking.pyfunc import BundleModel

    with pytest.raises(InputError, match=message):
        BundleModel(bundle).predict(pd.DataFrame(columns))


def test_the_challenger_is_the_newest_version_and_stays_so_when_an_old_run_is_sent_again(
    tmp_path: Path, bundle: Path, store: str
) -> None:
    for name in ("old", "young"):
        end(write_run(tmp_path / name), bundle)
        Tracker(tmp_path / name, store, "alias", model_name="alias").send()
    old = TrackingCursor.read(tmp_path / "old")
    assert old is not None
    TrackingCursor(run_key=old.run_key, uri=store, experiment="alias", register_as="alias").save(tmp_path / "old")
    assert sync([tmp_path / "old"])[0].model == "models:/alias/1"
    with connect(store) as client:
        assert client.get_model_version_by_alias("alias", "challenger").version == 2


@contextlib.contextmanager
def refusing() -> Iterator[str]:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        yield f"http://127.0.0.1:{taken.getsockname()[1]}"


@contextlib.contextmanager
def silent() -> Iterator[str]:
    """Accepts and never answers."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen(64)
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"


@contextlib.contextmanager
def answering(answer: Callable[[http.server.BaseHTTPRequestHandler], None]) -> Iterator[str]:
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            answer(self)

        do_POST = do_GET

        def log_message(self, format: str, *args: Any) -> None:
            del format, args

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def _page(handler: http.server.BaseHTTPRequestHandler) -> None:
    body = b"<html>not mlflow</html>"
    handler.send_response(200)
    handler.send_header("Content-Length", str(len(body)))
    handler.end_headers()
    handler.wfile.write(body)


def _only_healthy(handler: http.server.BaseHTTPRequestHandler) -> None:
    """Well at /health, and silent on everything else until the client has hung up."""
    if handler.path != "/health":
        handler.connection.settimeout(20)
        handler.connection.recv(1 << 16)
        while handler.connection.recv(1 << 16):
            pass
        return
    _page(handler)


@pytest.mark.parametrize(
    "server",
    [refusing, silent, lambda: answering(_page), lambda: answering(_only_healthy)],
    ids=["refuses", "never answers", "is no mlflow", "hangs after its health check"],
)
def test_a_dead_server_costs_a_run_one_warning_and_a_moment_and_a_later_sync_delivers_everything(
    tmp_path: Path, bundle: Path, store: str, server: Callable[[], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("recsys.pipelines.tracking.tracker._OBSERVE_EVERY_S", 0.0)
    run, warnings = write_run(tmp_path / "dead"), list[str]()
    name = f"dead{time.monotonic_ns()}"
    with server() as uri:
        began = time.monotonic()
        tracker = Tracker(run, uri, name, warn=warnings.append)
        for event in RunFolder(run).log().events:
            tracker.observe(event)
        end(run, bundle)
        assert tracker.close() is None
        assert time.monotonic() - began < 8
    (warning,) = warnings
    assert warning.startswith("tracking stopped, the run goes on: ")
    assert warning.endswith(f"deliver later with: recsys runs sync {run}")
    assert uri in warning
    assert "\n" not in warning
    (sent,) = sync([run], uri=store)
    assert sent.num_points == 3 * 5 + 3
    assert sent.model is not None
    assert len(runs_of(store, name)) == 1
    assert history(store, sent.run_id, "train/loss") == [(step, 1 / step) for step in range(1, 6)]


def test_sync_to_a_dead_server_says_so_and_keeps_the_run(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    with refusing() as uri, pytest.raises(TrackingError, match=f"tracking server {uri}: .*refused"):
        sync([run], uri=uri)
    cursor = TrackingCursor.read(run)
    assert cursor is not None
    assert (cursor.uri, cursor.log_bytes, cursor.run_id) == (uri, 0, None)


def test_a_database_that_cannot_be_opened_is_one_line(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    with pytest.raises(TrackingError, match="run.json") as caught:
        sync([run], uri=f"sqlite:///{run}/run.json/mlflow.db")
    assert "\n" not in str(caught.value)


def test_the_uri_is_the_option_then_the_variable_then_beside_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    assert tracking_uri(None, tmp_path / "runs" / "a") == f"sqlite:///{tmp_path}/runs/mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://variable:5000")
    assert tracking_uri(None, tmp_path / "a") == "http://variable:5000"
    assert tracking_uri("sqlite:////x.db", tmp_path / "a") == "sqlite:////x.db"


@pytest.mark.parametrize("uri", ["mlruns", "/tmp/mlruns", "file:///tmp/mlruns", "ftp://host"])
def test_a_uri_that_cannot_hold_models_is_refused_before_the_run(tmp_path: Path, uri: str) -> None:
    with pytest.raises(InputError, match=r"wanted sqlite:///PATH, http://HOST:PORT or a database"):
        Tracker(tmp_path, uri)


def test_a_password_stays_out_of_messages_and_files(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    uri = "postgresql://me:secret@127.0.0.1:1/db"
    assert without_password(uri) == "postgresql://me:***@127.0.0.1:1/db"
    assert check_uri(uri) == uri
    warnings: list[str] = []
    tracker = Tracker(run, uri, warn=warnings.append)
    assert tracker.close() is None
    assert "secret" not in warnings[0] + (run / "tracking.json").read_text()
    with pytest.raises(InputError, match="password is not kept; give it by --tracking"):
        sync([run])


def test_a_store_that_is_connected_to_leaves_no_trace(
    store: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    import mlflow

    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "77")
    mlflow.set_tracking_uri(None)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    with connect(store) as client:
        assert os.environ["MLFLOW_HTTP_REQUEST_TIMEOUT"] == "30"
        assert client.tracking_uri == mlflow.get_tracking_uri() == store
    assert os.environ["MLFLOW_HTTP_REQUEST_TIMEOUT"] == "77"
    assert "MLFLOW_TRACKING_URI" not in os.environ
    assert not mlflow.is_tracking_uri_set()
    assert capfd.readouterr() == ("", "")


def test_a_first_run_prints_nothing_and_makes_no_folder_in_the_working_directory(
    first: "tuple[Path, subprocess.CompletedProcess[str]]",
) -> None:
    folder, done = first
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert list((folder / "here").iterdir()) == []
    assert {path.name for path in (folder / "runs").iterdir()} == {"quiet", "mlflow.db", "mlartifacts"}


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
def test_a_damaged_cursor_is_named_with_its_remedy(tmp_path: Path, content: str, message: str) -> None:
    run = write_run(tmp_path / "run")
    (run / "tracking.json").write_text(content)
    with pytest.raises(DataError, match=f"tracking.json: {message}.*; remove it, and recsys runs sync sends"):
        TrackingCursor.read(run)


def test_a_folder_without_a_run_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"run.json is missing\); name a folder written by recsys train"):
        RunFolder(tmp_path)
    with pytest.raises(DataError, match="no run there; name a run folder"):
        sync([tmp_path])


def test_runs_are_found_in_a_folder_and_in_order(tmp_path: Path) -> None:
    for name in ("b", "a"):
        write_run(tmp_path / name)
    (tmp_path / "c").mkdir()
    assert [run.name for run in find_runs(tmp_path)] == ["a", "b"]
    assert [run.name for run in find_runs(tmp_path / "a")] == ["a"]


def test_only_steps_and_validations_are_curves() -> None:
    assert set(CURVES) == {"step", "validation"}
