import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from recsys.errors import BundleError, InputError
from recsys.features.journal.journal import Journal
from recsys.serving.app import _bind, background_server, serve

PROGRAM = """
import sys
from pathlib import Path
from recsys.serving.app import serve
serve(sys.argv[1], Path(sys.argv[2]), port=int(sys.argv[3]), ready=lambda port: print(port, flush=True))
print("closed", flush=True)
"""


@contextmanager
def server_process(bundle: Path, journal: Path, port: int = 0) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A server in a process of its own, ready; and its address."""
    arguments = [sys.executable, "-c", PROGRAM, str(bundle), str(journal), str(port)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    with subprocess.Popen(
        arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    ) as process:
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            assert line, process.stderr.read() if process.stderr else ""
            yield process, f"http://127.0.0.1:{line.strip()}"
        finally:
            process.kill()


@pytest.mark.slow
def test_kill_nine_and_a_restart_lose_nothing_and_sigterm_drains(bundle_path: Path, tmp_path: Path) -> None:
    journal = tmp_path / "journal"
    with server_process(bundle_path, journal) as (process, url):
        assert httpx.get(f"{url}/health/ready").json() == {"status": "ready"}
        for item in (105, 110, 101):
            answer = httpx.post(f"{url}/v1/feedback", json={"user_id": "ann", "item_id": item})
            assert answer.json() == {"accepted": 1, "duplicates": 0, "rejected": [], "durable": True}
        before = httpx.get(f"{url}/v1/recommend/ann").json()
        process.kill()
        assert process.wait(20) == -signal.SIGKILL
    with server_process(bundle_path, journal) as (process, url):
        after = httpx.get(f"{url}/v1/recommend/ann").json()
        assert after["items"] == before["items"]
        assert after["source"] == "model"
        with httpx.Client(base_url=url) as client:
            assert client.get("/health/ready").status_code == 200
            process.send_signal(signal.SIGTERM)
            deadline = time.monotonic() + 5
            while (ready := client.get("/health/ready")).status_code == 200 and time.monotonic() < deadline:
                time.sleep(0.01)
            assert ready.json() == {"status": "draining", "error": "the server is shutting down"}
            last = client.get("/v1/recommend/ann")
            assert (last.status_code, last.headers["connection"]) == (200, "close")
        assert process.wait(20) == 0
        assert process.stdout is not None
        assert process.stdout.read() == "closed\n"
    assert not (journal / "journal.db-wal").exists()
    with Journal(journal, read_only=True) as reader:
        assert reader.history("ann").item_ids == [105, 110, 101]
        assert len(reader.read_impressions()) == 3


def test_threads_that_post_and_ask_at_once_see_their_own_events(bundle_path: Path, tmp_path: Path) -> None:
    errors: list[BaseException] = []

    def post(url: str, user: int) -> None:
        try:
            with httpx.Client(base_url=url) as client:
                for item in range(101, 116):
                    assert client.post("/v1/feedback", json={"user_id": user, "item_id": item}).json()["accepted"] == 1
                    shown = [row["item_id"] for row in client.get(f"/v1/recommend/{user}?k=30").json()["items"]]
                    assert set(shown) == set(range(item + 1, 129))
        except BaseException as error:
            errors.append(error)

    def ask(url: str) -> None:
        try:
            with httpx.Client(base_url=url) as client:
                answers = [client.post("/v1/recommend", json={"sequence": [105, 110]}).json() for _ in range(15)]
                assert all(answer["items"] == answers[0]["items"] for answer in answers)
        except BaseException as error:
            errors.append(error)

    with background_server(str(bundle_path), tmp_path / "journal") as url:
        threads = [threading.Thread(target=post, args=(url, user)) for user in range(4)]
        threads += [threading.Thread(target=ask, args=(url,)) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert errors == []
    with Journal(tmp_path / "journal", read_only=True) as reader:
        assert [reader.history(user).item_ids for user in range(4)] == [list(range(101, 116))] * 4


def test_a_port_in_use_is_one_line_with_the_remedy(bundle_path: Path, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as holder:
        port = holder.getsockname()[1]
        with pytest.raises(InputError, match=rf"port {port} on 127.0.0.1 is in use; choose another with --port"):
            serve(str(bundle_path), tmp_path / "journal", port=port)
    assert not (tmp_path / "journal").exists()


def test_the_listener_names_its_protocol_so_that_answers_do_not_wait_for_an_ack() -> None:
    with _bind("127.0.0.1", 0) as listener:
        assert listener.proto == socket.IPPROTO_TCP


def test_an_address_that_is_none_is_refused(bundle_path: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"cannot listen there|no such address"):
        serve(str(bundle_path), tmp_path / "journal", host="192.0.2.1", port=0)


def test_a_server_that_cannot_start_says_why_and_ends(bundle_path: Path, tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="no bundle there"):
        serve(str(tmp_path / "none"), tmp_path / "journal", port=0)
    with Journal(tmp_path / "held"), pytest.raises(InputError, match="this journal is written by process"):
        serve(str(bundle_path), tmp_path / "held", port=0)
    with pytest.raises(BundleError, match="no bundle there"), background_server(str(tmp_path / "none"), tmp_path / "j"):
        pass


def test_a_server_that_has_ended_frees_its_journal_and_its_port(bundle_path: Path, tmp_path: Path) -> None:
    with background_server(str(bundle_path), tmp_path / "journal") as url:
        port = int(url.rsplit(":", 1)[1])
        assert httpx.get(f"{url}/health/ready").status_code == 200
    with Journal(tmp_path / "journal"):
        pass
    with background_server(str(bundle_path), tmp_path / "journal", port=port) as url:
        assert url.endswith(f":{port}")
