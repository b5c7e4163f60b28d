"""The web application and the process around it.

`serve` binds the port first, answers /health at once, loads in the background, and is ready when the bundle has
answered its golden requests and the journal is open. SIGTERM drains: not ready, still answering, then closed.
"""

import asyncio
import contextlib
import errno
import logging
import signal
import socket
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from types import FrameType

import uvicorn
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

import recsys
from recsys.errors import InputError, JournalError
from recsys.serving.guard import REQUEST_ID, RequestGuard
from recsys.serving.routes import router
from recsys.serving.schemas import one_line, unreadable
from recsys.serving.settings import ServingSettings
from recsys.serving.state import RankingService

BACKLOG = 2_048
CLOSE_S = 10  # longest wait for open requests once the port is closed
_UNREADABLE = "There was an error parsing the body"  # FastAPI's words; the cause says more

_log = logging.getLogger(__name__)


def create_app(service: RankingService) -> FastAPI:
    """The web application over a service, which it starts (unless that has been done) and closes."""

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        if service.readiness().status == "starting":
            threading.Thread(target=_start, args=(service,), name="loading", daemon=True).start()
        yield
        await asyncio.to_thread(service.close)

    app = FastAPI(title="recsys", version=recsys.__version__, lifespan=lifespan)
    app.state.service = service
    app.include_router(router)
    app.add_middleware(
        RequestGuard,
        max_body_bytes=service.settings.max_body_bytes,
        max_in_flight=service.settings.max_in_flight,
        is_draining=lambda: service.is_draining,
    )
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(HTTPException, _refused)
    app.add_exception_handler(InputError, _callers_fault)
    app.add_exception_handler(JournalError, _not_durable)
    app.add_exception_handler(Exception, _our_fault)
    return app


def serve(
    bundle: str,
    journal: Path,
    host: str = "127.0.0.1",
    port: int = 8080,
    ready: Callable[[int], None] | None = None,
) -> None:
    """Run the server until SIGTERM or Ctrl-C; says on stderr where it listens.

    Args:
        bundle: a folder, a run folder or models:/name@alias.
        journal: the folder of the journal; made when missing.
        host, port: where to listen; port 0 takes a free one.
        ready: called with the port, on a thread of its own, once requests are answered.

    Raises:
        InputError: the port is in use, or another process writes the journal.
        BundleError, DataError: the bundle or the journal cannot be used.
        KeyboardInterrupt: it was stopped by Ctrl-C.
    """
    server = _Server(ServingSettings(bundle=bundle, journal=Path(journal)), host, port, ready)
    server.run_to_the_end()


@contextlib.contextmanager
def background_server(
    bundle: str, journal: Path, host: str = "127.0.0.1", port: int = 0, timeout_s: float = 60.0
) -> Iterator[str]:
    """The address of a server that runs on a thread of this process for as long as the context lasts.

    Raises:
        As `serve`; also InputError where it is not ready within `timeout_s`.
    """
    is_ready = threading.Event()
    settings = ServingSettings(bundle=bundle, journal=Path(journal), drain_ms=0)
    server = _Server(settings, host, port, lambda _: is_ready.set())
    thread = threading.Thread(target=server.run, args=([server.socket],), name="server")
    thread.start()
    try:
        deadline = time.monotonic() + timeout_s
        while thread.is_alive() and not is_ready.wait(0.02):
            if time.monotonic() > deadline:
                raise InputError(f"{bundle}: the server is not ready after {timeout_s:g} s")
        if server.service.start_error is not None:
            raise server.service.start_error
        yield f"http://{host}:{server.port}"
    finally:
        server.should_exit = True
        thread.join()


class _Server(uvicorn.Server):
    """A uvicorn server that says when it is ready, stops where the start fails, and drains on SIGTERM."""

    def __init__(self, settings: ServingSettings, host: str, port: int, on_ready: Callable[[int], None] | None) -> None:
        self.socket = _bind(host, port)
        self.port: int = self.socket.getsockname()[1]
        self.service = RankingService(settings)
        self._address = f"http://{host}:{self.port}"
        self._on_ready = on_ready
        self._announcement: asyncio.Task[None] | None = None
        self._stop_at: float | None = None
        config = uvicorn.Config(
            create_app(self.service),
            log_level="warning",
            access_log=False,
            server_header=False,
            ws="none",
            timeout_graceful_shutdown=CLOSE_S,
        )
        super().__init__(config)

    def run_to_the_end(self) -> None:
        """Run until a signal; a failed start is raised."""
        sys.stderr.write(f"Listening on {self._address}, loading {self.service.settings.bundle}\n")
        self.run([self.socket])
        if self.service.start_error is not None:
            raise self.service.start_error

    async def on_tick(self, counter: int) -> bool:
        """Whether to stop; called every 0.1 s."""
        if self.service.start_error is not None:
            return True
        if self._announcement is None and self.service.readiness().status == "ready":
            self._announcement = asyncio.create_task(asyncio.to_thread(self._announce))
        if self._stop_at is not None and time.monotonic() >= self._stop_at:
            return True
        return await super().on_tick(counter)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Drain at the first SIGTERM; stop at once at Ctrl-C or a second signal."""
        if sig == signal.SIGTERM and self._stop_at is None:
            self.service.drain()
            self._stop_at = time.monotonic() + self.service.settings.drain_ms / 1_000
            return
        super().handle_exit(sig, frame)

    def _announce(self) -> None:
        sys.stderr.write(f"Ready on {self._address}, documentation on {self._address}/docs\n")
        if self._on_ready is not None:
            self._on_ready(self.port)


def _start(service: RankingService) -> None:
    # The error is kept in the service, which says it on /health/ready; `serve` raises it.
    with contextlib.suppress(Exception):
        service.start()


def _bind(host: str, port: int) -> socket.socket:
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        # Without the protocol's name asyncio leaves Nagle's algorithm on, and each answer waits 40 ms for an ACK.
        listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    except (OSError, OverflowError) as error:
        raise InputError(f"{host}:{port}: no such address ({error}); use --host 127.0.0.1") from error
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind(address)
        listener.listen(BACKLOG)
    except OSError as error:
        listener.close()
        if error.errno == errno.EADDRINUSE:
            raise InputError(
                f"port {port} on {host} is in use; choose another with --port (0 takes a free one)"
            ) from error
        raise InputError(
            f"{host}:{port}: cannot listen there ({error.strerror}); choose another --host or --port"
        ) from error
    return listener


def _failure(status: int, error: str) -> JSONResponse:
    return JSONResponse({"error": " ".join(error.split())}, status)


async def _invalid(_: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)
    return _failure(422, one_line(error.errors()))


async def _refused(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    if error.status_code in (404, 405):
        return _failure(error.status_code, f"{request.method} {request.url.path}: no such endpoint; see /docs")
    if error.detail == _UNREADABLE:
        return _failure(error.status_code, unreadable(error.__cause__))
    return _failure(error.status_code, error.detail)


async def _callers_fault(_: Request, error: Exception) -> JSONResponse:
    return _failure(400, str(error))


async def _not_durable(_: Request, error: Exception) -> JSONResponse:
    return _failure(503, str(error))


async def _our_fault(request: Request, error: Exception) -> JSONResponse:
    request_id = request.state.request_id
    _log.error("request %s failed", request_id, exc_info=error)
    answer = _failure(500, f"an error of the server, logged under request {request_id}")
    answer.headers[REQUEST_ID] = request_id
    return answer
