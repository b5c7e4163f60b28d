"""A server of files that can be told to misbehave, on a port of its own."""

import http.server
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest

Handler = Callable[["_Request"], None]


@dataclass
class Files:
    """Files by path, and what the server does once before it serves them rightly."""

    url: str = ""
    files: dict[str, bytes] = field(default_factory=dict)
    etags: dict[str, str | None] = field(default_factory=dict)
    faults: list[Handler] = field(default_factory=list)  # one a request, the first one first
    asked: list[dict[str, str]] = field(default_factory=list)  # headers of each request
    knows_ranges: bool = True

    def put(self, path: str, data: bytes, etag: str | None = '"one"') -> str:
        self.files[path], self.etags[path] = data, etag
        return f"{self.url}{path}"


class _Request(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    place: Files

    def do_GET(self) -> None:
        self.place.asked.append(dict(self.headers))
        if self.place.faults:
            self.place.faults.pop(0)(self)
        elif self.path in self.place.files:
            self.send_file()
        else:
            self.send_text(404, b"gone")

    def send_file(self, end: int | None = None, **headers: str) -> None:
        """The file, or the rest of it; torn after `end` bytes of it."""
        data, etag = self.place.files[self.path], self.place.etags[self.path]
        first = 0
        asked = self.headers.get("Range")
        if asked and self.place.knows_ranges and self.headers.get("If-Range") == etag:
            first = int(asked.removeprefix("bytes=").partition("-")[0])
            if first >= len(data):
                self.send_text(416, b"")
                return
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {first}-{len(data) - 1}/{len(data)}")
        else:
            self.send_response(200)
        if etag is not None:
            self.send_header("ETag", etag)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(data) - first))
        self.end_headers()
        self.wfile.write(data[first:end])
        if end is not None:
            self.close_connection = True

    def send_text(self, status: int, text: bytes, **headers: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, format: str, *arguments: Any) -> None:
        del format, arguments


@pytest.fixture
def server() -> Iterator[Files]:
    place = Files()
    handler = type("Request", (_Request,), {"place": place})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as running:
        thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        place.url = f"http://127.0.0.1:{running.server_address[1]}"
        try:
            yield place
        finally:
            running.shutdown()
            thread.join()
