import json
import resource
import signal
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from recsys.errors import DataError, RecsysError, StorageError
from recsys.features.fetch.download import download

DATA = np.random.default_rng(0).bytes(300_000)


class Watch:
    """What a download told, and how long it wanted to wait."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.events: list[dict[str, Any]] = []
        self.waits: list[float] = []

    def get(self, url: str, path: Path, **more: Any) -> bytes:
        found = download(
            url, path, say=self.lines.append, observe=self.events.append, sleep=self.waits.append, timeout_s=5, **more
        )
        assert found == path
        return path.read_bytes()


@pytest.fixture
def watch() -> Watch:
    return Watch()


def parts(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_whole_file_arrives_and_nothing_else_is_left(server: Any, tmp_path: Path, watch: Watch) -> None:
    url = server.put("/log.csv", DATA)
    assert watch.get(url, tmp_path / "log.csv") == DATA
    assert parts(tmp_path) == ["log.csv"]
    assert watch.events[-1]["done"] == watch.events[-1]["total"] == len(DATA)
    assert watch.events[-1]["seconds_left"] == 0
    assert (watch.lines, watch.waits) == ([], [])
    assert "Range" not in server.asked[0]


def test_a_torn_file_is_gone_on_with_at_the_byte_where_it_broke(server: Any, tmp_path: Path, watch: Watch) -> None:
    url = server.put("/log.csv", DATA)
    server.faults += [lambda request: request.send_file(end=100_000), lambda request: request.send_file(end=250_000)]
    assert watch.get(url, tmp_path / "log.csv") == DATA
    assert [asked.get("Range") for asked in server.asked] == [None, "bytes=100000-", "bytes=250000-"]
    assert [asked.get("If-Range") for asked in server.asked] == [None, '"one"', '"one"']
    assert "broke at 100,000 of 300,000 bytes" in watch.lines[0]


def test_a_later_call_goes_on_with_the_part_of_an_earlier_one(server: Any, tmp_path: Path, watch: Watch) -> None:
    url = server.put("/log.csv", DATA)
    server.faults += [lambda request: request.send_file(end=70_000)]
    with pytest.raises(RecsysError, match=r"broke at 70,000 of 300,000 bytes, 1 times .* is kept"):
        watch.get(url, tmp_path / "log.csv", attempts=1)
    assert parts(tmp_path) == ["log.csv.part", "log.csv.part.json"]
    assert (tmp_path / "log.csv.part").read_bytes() == DATA[:70_000]
    assert watch.get(url, tmp_path / "log.csv") == DATA
    assert server.asked[-1]["Range"] == "bytes=70000-"


def test_a_file_that_has_changed_meanwhile_starts_anew(server: Any, tmp_path: Path, watch: Watch) -> None:
    url = server.put("/log.csv", DATA)
    server.faults += [lambda request: request.send_file(end=70_000)]
    with pytest.raises(RecsysError):
        watch.get(url, tmp_path / "log.csv", attempts=1)
    server.put("/log.csv", DATA[::-1], etag='"two"')
    assert watch.get(url, tmp_path / "log.csv") == DATA[::-1]
    assert any("starts anew: the file there has changed" in line for line in watch.lines)


def test_a_range_of_another_length_of_file_starts_anew(server: Any, tmp_path: Path, watch: Watch) -> None:
    """A server that gives a changed file the old ETag is caught by the length."""
    url = server.put("/log.csv", DATA)
    server.faults += [lambda request: request.send_file(end=70_000)]
    with pytest.raises(RecsysError):
        watch.get(url, tmp_path / "log.csv", attempts=1)
    server.put("/log.csv", DATA[:200_000])
    assert watch.get(url, tmp_path / "log.csv") == DATA[:200_000]
    assert any("another range" in line for line in watch.lines)


def test_a_rest_that_begins_elsewhere_starts_anew(server: Any, tmp_path: Path, watch: Watch) -> None:
    url = server.put("/log.csv", DATA)
    elsewhere = f"bytes 90000-299999/{len(DATA)}"
    server.faults += [
        lambda request: request.send_file(end=70_000),
        lambda request: request.send_text(206, DATA[90_000:], Content_Range=elsewhere, ETag='"one"'),
    ]
    assert watch.get(url, tmp_path / "log.csv") == DATA
    assert any("another range" in line for line in watch.lines)


def test_a_server_without_ranges_starts_anew_and_says_so(server: Any, tmp_path: Path, watch: Watch) -> None:
    url = server.put("/log.csv", DATA)
    server.knows_ranges = False
    server.faults += [lambda request: request.send_file(end=70_000)]
    assert watch.get(url, tmp_path / "log.csv") == DATA
    assert any("starts anew: the server does not go on with a part" in line for line in watch.lines)


def test_without_etag_and_date_a_part_is_not_trusted(server: Any, tmp_path: Path, watch: Watch) -> None:
    url = server.put("/log.csv", DATA, etag=None)
    server.faults += [lambda request: request.send_file(end=70_000)]
    assert watch.get(url, tmp_path / "log.csv") == DATA
    assert "Range" not in server.asked[1]
    assert any("no ETag and no date" in line for line in watch.lines)


def test_a_weak_etag_is_no_ground_to_go_on(server: Any, tmp_path: Path, watch: Watch) -> None:
    url = server.put("/log.csv", DATA, etag='W/"one"')
    server.faults += [lambda request: request.send_file(end=70_000)]
    assert watch.get(url, tmp_path / "log.csv") == DATA
    assert "Range" not in server.asked[1]


def test_the_part_of_another_address_is_not_gone_on_with(server: Any, tmp_path: Path, watch: Watch) -> None:
    first, second = server.put("/log.csv", DATA), server.put("/other.csv", DATA[::-1])
    server.faults += [lambda request: request.send_file(end=70_000)]
    with pytest.raises(RecsysError):
        watch.get(first, tmp_path / "log.csv", attempts=1)
    assert watch.get(second, tmp_path / "log.csv") == DATA[::-1]


def test_a_damaged_note_of_the_part_starts_anew(server: Any, tmp_path: Path, watch: Watch) -> None:
    url = server.put("/log.csv", DATA)
    (tmp_path / "log.csv.part").write_bytes(b"what was this?")
    (tmp_path / "log.csv.part.json").write_text('{"url": ')
    assert watch.get(url, tmp_path / "log.csv") == DATA


def test_a_part_that_is_whole_is_not_fetched_again(server: Any, tmp_path: Path, watch: Watch) -> None:
    url = server.put("/log.csv", DATA)
    (tmp_path / "log.csv.part").write_bytes(DATA)
    note = {"url": url, "etag": '"one"', "modified": None, "total": len(DATA)}
    (tmp_path / "log.csv.part.json").write_text(json.dumps(note))
    assert watch.get(url, tmp_path / "log.csv") == DATA
    assert server.asked == []


def test_a_passing_fault_is_tried_again_with_longer_and_longer_pauses(
    server: Any, tmp_path: Path, watch: Watch
) -> None:
    url = server.put("/log.csv", DATA)
    server.faults += [lambda request: request.send_text(503, b"busy")] * 3
    assert watch.get(url, tmp_path / "log.csv") == DATA
    assert watch.waits == [1, 2, 4]
    assert all("503" in line for line in watch.lines)


def test_the_pause_that_the_server_asks_for_is_kept(server: Any, tmp_path: Path, watch: Watch) -> None:
    url = server.put("/log.csv", DATA)
    server.faults += [lambda request: request.send_text(429, b"slower", Retry_After="7")]
    assert watch.get(url, tmp_path / "log.csv") == DATA
    assert watch.waits == [7]


def test_a_server_that_keeps_failing_is_given_up_in_one_line(server: Any, tmp_path: Path, watch: Watch) -> None:
    url = server.put("/log.csv", DATA)
    server.faults += [lambda request: request.send_text(500, b"")] * 9
    with pytest.raises(RecsysError, match=r"500 Internal Server Error, 3 times in a row; nothing has come; .*--url"):
        watch.get(url, tmp_path / "log.csv", attempts=3)
    assert len(server.asked) == 3


def test_a_file_that_is_not_there_is_the_callers_fault_and_not_tried_again(
    server: Any, tmp_path: Path, watch: Watch
) -> None:
    with pytest.raises(DataError, match=r"/none\.csv: the server answers 404 Not Found; name a mirror by --url"):
        watch.get(f"{server.url}/none.csv", tmp_path / "log.csv")
    assert len(server.asked) == 1
    assert parts(tmp_path) == []


def test_a_redirect_is_followed(server: Any, tmp_path: Path, watch: Watch) -> None:
    target = server.put("/log.csv", DATA)
    server.faults += [lambda request: request.send_text(302, b"", Location=target)]
    assert watch.get(f"{server.url}/old.csv", tmp_path / "log.csv") == DATA


@pytest.mark.parametrize("page", [b"<!DOCTYPE html><title>log in", b"\n <html><body>please log in"])
def test_a_web_page_in_place_of_the_file_is_refused(server: Any, tmp_path: Path, watch: Watch, page: bytes) -> None:
    url = server.put("/log.csv", page)
    with pytest.raises(DataError, match="answers with a web page in place of the file"):
        watch.get(url, tmp_path / "log.csv")
    assert parts(tmp_path) == []


def test_a_web_page_is_told_by_its_type_too(server: Any, tmp_path: Path, watch: Watch) -> None:
    url = server.put("/log.csv", b"log in, please")
    server.faults += [lambda request: request.send_file(Content_Type="text/html; charset=utf-8")]
    with pytest.raises(DataError, match="web page"):
        watch.get(url, tmp_path / "log.csv")


def test_no_server_at_all_is_told_in_one_line(tmp_path: Path, watch: Watch) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with pytest.raises(RecsysError, match=r"can not be reached \(.*refused.*\), 2 times in a row"):
        watch.get(f"http://127.0.0.1:{port}/log.csv", tmp_path / "log.csv", attempts=2)


def test_only_http_is_fetched(tmp_path: Path, watch: Watch) -> None:
    with pytest.raises(DataError, match="http:// or https://"):
        watch.get("file:///etc/hostname", tmp_path / "log.csv")


@pytest.fixture
def small_disk() -> Iterator[None]:
    """No file may grow past 100,000 bytes: what a full disk does, without one."""
    before, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)
    signal.signal(signal.SIGXFSZ, handler)


@pytest.mark.usefixtures("small_disk")
def test_a_full_disk_is_told_in_one_line_and_the_part_stays(server: Any, tmp_path: Path, watch: Watch) -> None:
    url = server.put("/log.csv", DATA)
    with pytest.raises(StorageError, match=r"log\.csv\.part: cannot be written .* free some disk space"):
        watch.get(url, tmp_path / "log.csv")
    assert (tmp_path / "log.csv.part").read_bytes() == DATA[:100_000]
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))
    assert watch.get(url, tmp_path / "log.csv") == DATA
    assert server.asked[-1]["Range"] == "bytes=100000-"


def send_without_length(request: Any, data: bytes) -> None:
    """The whole of an answer that tells its end by closing the connection alone."""
    request.send_response(200)
    request.send_header("ETag", '"one"')
    request.end_headers()
    request.wfile.write(data)
    request.close_connection = True


def send_half_in_chunks(request: Any) -> None:
    """A half of what was asked for, in chunks, torn; as 206 without the range where a part was asked for."""
    asked = request.headers.get("Range")
    rest = DATA[int(asked[6:].partition("-")[0]) :] if asked else DATA
    request.send_response(206 if asked else 200)
    request.send_header("ETag", '"one"')
    request.send_header("Transfer-Encoding", "chunked")
    request.end_headers()
    half = rest[: len(rest) // 2]
    request.wfile.write(b"%x\r\n" % len(half) + half + b"\r\n")
    request.close_connection = True


def test_an_empty_file_is_refused(server: Any, tmp_path: Path, watch: Watch) -> None:
    with pytest.raises(DataError, match=r"log\.csv: the server answers with an empty file; name a mirror"):
        watch.get(server.put("/log.csv", b""), tmp_path / "log.csv")
    assert parts(tmp_path) == []


def test_without_an_end_that_is_told_a_file_is_taken_only_where_a_checksum_follows(
    server: Any, tmp_path: Path, watch: Watch
) -> None:
    url = server.put("/log.csv", DATA)
    server.faults += [lambda request: send_without_length(request, DATA)] * 2
    assert watch.get(url, tmp_path / "log.csv") == DATA
    (tmp_path / "log.csv").unlink()
    with pytest.raises(DataError, match="tells no length, and no checksum is known: whether the file is whole can not"):
        watch.get(url, tmp_path / "log.csv", is_end_needed=True)
    assert parts(tmp_path) == []
    assert watch.get(url, tmp_path / "log.csv", is_end_needed=True) == DATA


def test_the_rest_of_a_file_of_unknown_length_is_as_long_as_its_answer_tells(
    server: Any, tmp_path: Path, watch: Watch
) -> None:
    url = server.put("/log.csv", DATA)
    server.faults += [send_half_in_chunks, lambda request: request.send_file(end=200_000)]
    assert watch.get(url, tmp_path / "log.csv", is_end_needed=True) == DATA
    assert [asked.get("Range") for asked in server.asked] == [None, "bytes=150000-", "bytes=200000-"]


def test_a_torn_rest_is_told_by_its_length_where_its_range_tells_no_total(
    server: Any, tmp_path: Path, watch: Watch
) -> None:
    def torn(request: Any) -> None:
        request.send_response(206)
        request.send_header("Content-Range", "bytes 150000-299999/*")
        request.send_header("Content-Length", "150000")
        request.end_headers()
        request.wfile.write(DATA[150_000:160_000])
        request.close_connection = True

    server.faults += [send_half_in_chunks, torn]
    assert watch.get(server.put("/log.csv", DATA), tmp_path / "log.csv") == DATA


def test_bytes_that_came_before_are_no_progress(server: Any, tmp_path: Path, watch: Watch) -> None:
    url = server.put("/log.csv", DATA)
    server.faults += [send_half_in_chunks] * 50
    with pytest.raises(RecsysError, match="6 times in a row"):
        watch.get(url, tmp_path / "log.csv")
    assert len(server.asked) <= 8


def test_a_file_that_starts_anew_again_and_again_is_given_up(server: Any, tmp_path: Path, watch: Watch) -> None:
    """Each try gets further than the one before, and nothing is ever gone on with."""
    url = server.put("/log.csv", DATA, etag=None)

    def torn(end: int) -> Any:
        return lambda request: request.send_file(end=end)

    server.faults += [torn(end) for end in range(10_000, 290_000, 10_000)]
    with pytest.raises(RecsysError, match=r"started anew 10 times, and again: the server gives no ETag"):
        watch.get(url, tmp_path / "log.csv")
    assert len(server.asked) == 11
