import contextlib
import http.server
import os
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from recsys.errors import DataError, InputError, TrackingError
from recsys.models.tracking_server import check_uri, connect, without_password
from recsys.pipelines.run_folder import RunFolder, find_runs
from recsys.pipelines.tracking.cursor import TrackingCursor
from recsys.pipelines.tracking.tracker import Tracker, sync, tracking_uri

pytest.importorskip("mlflow", reason="needs the extra tracking")


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
    tmp_path: Path,
    bundle: Path,
    store: str,
    server: Callable[[], Any],
    monkeypatch: pytest.MonkeyPatch,
    runs: Any,
    peek: Any,
) -> None:
    monkeypatch.setattr("recsys.pipelines.tracking.tracker._OBSERVE_EVERY_S", 0.0)
    run, warnings = runs.write(tmp_path / "dead"), list[str]()
    name = f"dead{time.monotonic_ns()}"
    with server() as uri:
        began = time.monotonic()
        tracker = Tracker(run, uri, name, warn=warnings.append)
        for event in RunFolder(run).log().events:
            tracker.observe(event)
        runs.end(run, bundle)
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
    assert len(peek.runs(store, name)) == 1
    assert peek.history(store, sent.run_id, "train/loss") == [(step, 1 / step) for step in range(1, 6)]


def test_sync_to_a_dead_server_says_so_and_keeps_the_run(tmp_path: Path, runs: Any) -> None:
    run = runs.write(tmp_path / "run")
    with refusing() as uri, pytest.raises(TrackingError, match=f"tracking server {uri}: .*refused"):
        sync([run], uri=uri)
    cursor = TrackingCursor.read(run)
    assert cursor is not None
    assert (cursor.uri, cursor.log_bytes, cursor.run_id) == (uri, 0, None)


def test_a_database_that_cannot_be_opened_is_one_line(tmp_path: Path, runs: Any) -> None:
    run = runs.write(tmp_path / "run")
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


def test_a_password_stays_out_of_messages_and_files(tmp_path: Path, runs: Any) -> None:
    run = runs.write(tmp_path / "run")
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


def test_a_folder_without_a_run_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"run.json is missing\); name a folder written by recsys train"):
        RunFolder(tmp_path)
    with pytest.raises(DataError, match="no run there; name a run folder"):
        sync([tmp_path])


def test_runs_are_found_in_a_folder_and_in_order(tmp_path: Path, runs: Any) -> None:
    for name in ("b", "a"):
        runs.write(tmp_path / name)
    (tmp_path / "c").mkdir()
    assert [run.name for run in find_runs(tmp_path)] == ["a", "b"]
    assert [run.name for run in find_runs(tmp_path / "a")] == ["a"]


@pytest.mark.parametrize("server", [refusing, lambda: answering(_page)], ids=["refuses", "is no mlflow"])
def test_a_wrong_uri_changes_nothing_of_where_the_run_is_tracked(
    tmp_path: Path, store: str, server: Callable[[], Any], runs: Any
) -> None:
    run = runs.write(tmp_path / "typo")
    sent = Tracker(run, store, "typo").send()
    before = (run / "tracking.json").read_text()
    with server() as uri, pytest.raises(TrackingError):
        sync([run], uri=uri)
    assert (run / "tracking.json").read_text() == before
    runs.log(run, {"event": "step", "step": 6, "loss": 0.125})
    (again,) = sync([run])
    assert (again.uri, again.run_id, again.num_points) == (store, sent.run_id, 1)
