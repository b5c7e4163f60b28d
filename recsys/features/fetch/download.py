"""One file over HTTP: resumed where it was torn, started anew where it has changed, whole at the end.

    NAME.part        what has come so far
    NAME.part.json   of which version of the file: address, ETag, date, bytes

A part is gone on with only by `Range` with `If-Range`: the server then sends the rest of the very same version, or the
whole of another one. Needs the standard library alone.
"""

import http.client
import json
import shutil
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import asdict, dataclass
from email.message import Message
from pathlib import Path
from typing import IO, Any

from recsys import __version__
from recsys.errors import DataError, RecsysError, StorageError
from recsys.files import storage_errors, write_json

CHUNK_BYTES = 1 << 20
TIMEOUT_S = 30.0
ATTEMPTS = 6  # in a row without a new byte
MAX_STARTS = 10  # anew: each gives up bytes that had come
LONGEST_PAUSE_S = 60.0
_PASSING = (408, 425, 429, 500, 502, 503, 504)

Observe = Callable[[dict[str, Any]], None]
Say = Callable[[str], None]


@dataclass(frozen=True)
class _Version:
    """What tells one version of the file on the server from another."""

    url: str
    etag: str | None
    modified: str | None
    total: int | None

    @property
    def validator(self) -> str | None:
        """For If-Range: a strong ETag or a date; None: the server gives neither, and a part can not be gone on with."""
        return self.etag if self.etag and not self.etag.startswith("W/") else self.modified


class _Passing(Exception):
    """A fault that may pass. `wait_s` is what the server asked for."""

    def __init__(self, reason: str, wait_s: float | None = None) -> None:
        super().__init__(reason)
        self.wait_s = wait_s


def download(
    url: str,
    path: Path,
    *,
    say: Say,
    observe: Observe,
    attempts: int = ATTEMPTS,
    timeout_s: float = TIMEOUT_S,
    sleep: Callable[[float], None] = time.sleep,
    is_end_needed: bool = False,
) -> Path:
    """The file at `url`, written to `path`; a part that an earlier call left there is gone on with.

    Args:
        url: http or https.
        path: where it goes; PATH.part and PATH.part.json stand beside it until it is whole.
        say: told in one line what happens: retries, a new start.
        observe: told {"event": "fetch", "done", "total", "bytes_per_s", "seconds_left"} while bytes come.
        attempts: tries in a row without a byte further than any before, until it gives up.
        timeout_s: of one read.
        sleep: between tries.
        is_end_needed: an answer that tells neither its length nor its end is refused: torn, it would look whole.

    Raises:
        DataError: no http address, the server has no such file, or it answers with a web page, an empty file, or
            without an end that can be told.
        RecsysError: the server can not be reached or keeps failing; the part is kept.
        StorageError: the disk is full or failed; the part is kept.
    """
    if not url.startswith(("http://", "https://")):
        raise DataError(f"{url}: wanted an address that begins with http:// or https://")
    transfer = _Transfer(url, path, say, observe, timeout_s, is_end_needed=is_end_needed)
    failures = 0
    while True:
        before = transfer.furthest
        try:
            transfer.attempt()
            return transfer.finish()
        except _Passing as fault:
            failures = 1 if transfer.furthest > before else failures + 1
            if failures >= attempts:
                raise RecsysError(
                    f"{url}: {fault}, {failures} times in a row; {transfer.kept()} try again later, or name a mirror "
                    "by --url"
                ) from fault
            wait_s = min(LONGEST_PAUSE_S, 2.0 ** (failures - 1) if fault.wait_s is None else fault.wait_s)
            say(f"{url}: {fault}; trying again in {wait_s:.0f} s")
            sleep(wait_s)


class _Transfer:
    """The part, and how to make it grow."""

    def __init__(
        self, url: str, path: Path, say: Say, observe: Observe, timeout_s: float, *, is_end_needed: bool
    ) -> None:
        self.url, self.path, self.say, self.observe, self.timeout_s = url, path, say, observe, timeout_s
        self.is_end_needed, self.num_starts = is_end_needed, 0
        self.part, self.note = path.with_name(f"{path.name}.part"), path.with_name(f"{path.name}.part.json")
        self.version = self._noted()
        self.done = self.part.stat().st_size if self.version is not None and self.part.is_file() else 0
        self.furthest = self.done
        self.began, self.came = time.monotonic(), 0

    def kept(self) -> str:
        return f"what has come ({self.done:,} bytes) is kept and gone on with;" if self.done else "nothing has come;"

    def attempt(self) -> None:
        """Ask once, for the rest where a part can be gone on with, and take what comes."""
        validator = self.version.validator if self.version is not None else None
        if self.done and validator is None:
            self._start_anew("the server gives no ETag and no date to go on with the part by")
        if self.done and self.version is not None and self.done == self.version.total:
            return
        headers = {"User-Agent": f"recsys-platform/{__version__}", "Accept-Encoding": "identity"}
        if self.done and validator is not None:
            headers |= {"Range": f"bytes={self.done}-", "If-Range": validator}
        with self._open(headers) as response:
            self._take(response)

    def finish(self) -> Path:
        if not self.done:
            self._forget()
            raise DataError(f"{self.url}: the server answers with an empty file; name a mirror by --url")
        with storage_errors(self.path, "free some disk space and run the same command again"):
            self.part.replace(self.path)
            self.note.unlink(missing_ok=True)
        return self.path

    def _open(self, headers: dict[str, str]) -> http.client.HTTPResponse:
        try:
            response = urllib.request.urlopen(urllib.request.Request(self.url, headers=headers), timeout=self.timeout_s)
        except urllib.error.HTTPError as error:
            with error:
                self._refused(error)
            raise _Passing(f"the server answers {error.code} {error.reason}", _retry_after(error.headers)) from error
        except (OSError, http.client.HTTPException) as error:
            raise _Passing(f"can not be reached ({_reason(error)})") from error
        assert isinstance(response, http.client.HTTPResponse)
        return response

    def _refused(self, error: urllib.error.HTTPError) -> None:
        """What no further try can mend."""
        if error.code == 416 and self.done:
            self._start_anew("the part is longer than the file there")
        elif error.code not in _PASSING:
            raise DataError(
                f"{self.url}: the server answers {error.code} {error.reason}; name a mirror by --url, or fetch it by "
                "hand and unpack it into a folder of this name in $RECSYS_DATA"
            )

    def _take(self, response: http.client.HTTPResponse) -> None:
        first = self._prepare(response)
        mode = "ab" if self.done else "wb"
        remedy = "free some disk space and run the same command again: it goes on with the part"
        total = self._total(response.headers)
        if self.is_end_needed and total is None and not response.chunked:
            self._forget()
            raise DataError(
                f"{self.url}: the server tells no length, and no checksum is known: whether the file is whole can not "
                "be told; name a mirror by --url"
            )
        with storage_errors(self.part, remedy):
            stream = self.part.open(mode, buffering=0)
        with stream:
            chunk = first
            while chunk:
                with storage_errors(self.part, remedy):
                    _write_whole(stream, chunk)
                self.done, self.came = self.done + len(chunk), self.came + len(chunk)
                self.furthest = max(self.furthest, self.done)
                self._tell(total)
                chunk = self._read(response)
        if total is not None and self.done < total:
            raise _Passing(f"the connection broke at {self.done:,} of {total:,} bytes")
        if total is not None and self.done > total:
            self._start_anew(f"{self.done:,} bytes came where {total:,} were told")
            raise _Passing("more bytes came than the server told")

    def _prepare(self, response: http.client.HTTPResponse) -> bytes:
        """The first bytes; the part is emptied where they are the beginning of the file."""
        if response.status == 206 and self._fits(response.headers):
            return self._read(response)
        if response.status == 206:
            self._start_anew("the server sends another range than asked for")
            raise _Passing("the server sends another range than asked for")
        first = self._read(response)
        self._refuse_page(response, first)
        found = _version_of(self.url, response.headers)
        if self.done:
            same = self.version is not None and found.validator == self.version.validator
            self._start_anew("the server does not go on with a part" if same else "the file there has changed")
        free = shutil.disk_usage(self.part.parent).free
        if found.total is not None and found.total > free:
            raise StorageError(f"{self.part}: {found.total:,} bytes would come, the disk has {free:,} left; free some")
        self.version = found
        with storage_errors(self.note, "free some disk space and run the same command again"):
            write_json(self.note, asdict(found))
        return first

    def _total(self, headers: Message) -> int | None:
        """The bytes of the whole file: by the first answer, else by what this one tells of the rest."""
        if self.version is not None and self.version.total is not None:
            return self.version.total
        length = headers.get("Content-Length", "")
        if length.isdigit():
            return self.done + int(length)
        total = headers.get("Content-Range", "").rpartition("/")[2]
        return int(total) if total.isdigit() else None

    def _fits(self, headers: Message) -> bool:
        """Whether the answer is the rest of the part."""
        found = headers.get("Content-Range", "").removeprefix("bytes ")
        span, _, total = found.partition("/")
        is_total_known = self.version is not None and self.version.total is not None and total.isdigit()
        if is_total_known and self.version is not None and int(total) != self.version.total:
            return False
        return span.partition("-")[0] == str(self.done)

    def _refuse_page(self, response: http.client.HTTPResponse, first: bytes) -> None:
        start = first[:512].lstrip().lower()
        if response.headers.get_content_type() == "text/html" or start.startswith((b"<!doctype html", b"<html")):
            raise DataError(
                f"{self.url}: the server answers with a web page in place of the file (a login, or a page of errors); "
                "open the address in a browser, or name a mirror by --url"
            )

    def _read(self, response: http.client.HTTPResponse) -> bytes:
        try:
            return response.read1(CHUNK_BYTES)
        except (OSError, http.client.HTTPException) as error:
            raise _Passing(f"the connection broke at {self.done:,} bytes ({_reason(error)})") from error

    def _start_anew(self, why: str) -> None:
        self.num_starts += 1
        if self.num_starts > MAX_STARTS:
            raise RecsysError(f"{self.url}: started anew {MAX_STARTS} times, and again: {why}; name a mirror by --url")
        self.say(f"{self.url}: starts anew: {why}")
        self._forget()

    def _forget(self) -> None:
        with storage_errors(self.part, "free some disk space and run the same command again"):
            self.part.unlink(missing_ok=True)
            self.note.unlink(missing_ok=True)
        self.done, self.version = 0, None

    def _tell(self, total: int | None) -> None:
        speed = self.came / max(time.monotonic() - self.began, 1e-9)
        left = None if total is None else (total - self.done) / max(speed, 1e-9)
        self.observe({"event": "fetch", "done": self.done, "total": total, "bytes_per_s": speed, "seconds_left": left})

    def _noted(self) -> _Version | None:
        """The version of which the part is, where the note is whole and of this address."""
        try:
            noted = _Version(**json.loads(self.note.read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError):
            return None
        return noted if noted.url == self.url else None


def _write_whole(stream: IO[bytes], chunk: bytes) -> None:
    """Without a buffer, so that a full disk is met here and every byte that was told is there after a kill."""
    rest = memoryview(chunk)
    while rest:
        rest = rest[stream.write(rest) or 0 :]


def _version_of(url: str, headers: Message) -> _Version:
    length = headers.get("Content-Length", "")
    return _Version(url, headers.get("ETag"), headers.get("Last-Modified"), int(length) if length.isdigit() else None)


def _retry_after(headers: Message) -> float | None:
    value = (headers.get("Retry-After") or "").strip()
    return float(value) if value.isdigit() else None


def _reason(error: Exception) -> str:
    reason = getattr(error, "reason", None) or error
    return " ".join(str(reason).split()) or type(error).__name__
