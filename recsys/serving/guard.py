"""What every request passes: its id, the bound on its body, the bound on requests at a time."""

import re
import uuid
from collections.abc import Callable

from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

REQUEST_ID = "x-request-id"
_VALID_ID = re.compile(r"[\x21-\x7e]{1,128}")


class RequestGuard:
    """An ASGI middleware; an own `X-Request-ID` is kept and echoed, a missing one is made.

    Args:
        app: what the request is passed on to.
        max_body_bytes: a longer body is answered 413.
        max_in_flight: of /v1 requests at a time; one more is answered 503 with Retry-After.
        is_draining: whether the server is about to end; answers then ask that the connection be closed.
    """

    def __init__(self, app: ASGIApp, max_body_bytes: int, max_in_flight: int, is_draining: Callable[[], bool]) -> None:
        self.app = app
        self.max_body_bytes = max_body_bytes
        self.max_in_flight = max_in_flight
        self.is_draining = is_draining
        self._in_flight = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, or answer it with 400, 413 or 503."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        given = headers.get(REQUEST_ID)
        request_id = given if given is not None and _VALID_ID.fullmatch(given) else uuid.uuid4().hex
        scope.setdefault("state", {})["request_id"] = request_id

        async def send_with_id(message: Message) -> None:
            if message["type"] == "http.response.start":
                answered = MutableHeaders(scope=message)
                answered[REQUEST_ID] = request_id
                if self.is_draining():
                    answered["connection"] = "close"
            await send(message)

        refusal = self._refusal(headers, scope, is_valid=given in (None, request_id))
        if refusal is not None:
            await refusal(scope, receive, send_with_id)
            return
        is_counted = scope["path"].startswith("/v1/")
        self._in_flight += is_counted
        try:
            await self.app(scope, self._bounded(receive), send_with_id)
        finally:
            self._in_flight -= is_counted

    def _refusal(self, headers: Headers, scope: Scope, is_valid: bool) -> JSONResponse | None:
        length = headers.get("content-length", "0")
        if not is_valid:
            return _refuse(400, "X-Request-ID: wanted 1 to 128 printable ASCII characters without spaces")
        if length.isdigit() and int(length) > self.max_body_bytes:
            return _refuse(413, self._too_long())
        if scope["path"].startswith("/v1/") and self._in_flight >= self.max_in_flight:
            return _refuse(503, f"{self.max_in_flight} requests are being answered; try again", {"Retry-After": "1"})
        return None

    def _bounded(self, receive: Receive) -> Receive:
        received_bytes = 0

        async def bounded() -> Message:
            nonlocal received_bytes
            message = await receive()
            received_bytes += len(message.get("body", b""))
            if received_bytes > self.max_body_bytes:
                raise HTTPException(413, self._too_long())
            return message

        return bounded

    def _too_long(self) -> str:
        return f"the body is longer than {self.max_body_bytes} bytes; send it in parts"


def _refuse(status: int, error: str, headers: dict[str, str] | None = None) -> JSONResponse:
    return JSONResponse({"error": error}, status, headers)
