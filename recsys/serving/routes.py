"""The endpoints: each takes a request apart, calls one function of the core, and hands back what it answers.

Handlers that wait for the model or the disk are plain functions: FastAPI runs them in its thread pool.
"""

from typing import Annotated, Any
from urllib.parse import unquote_to_bytes

from fastapi import APIRouter, Body, Depends, HTTPException, Path, Query, Request, Response
from fastapi.responses import JSONResponse

from recsys.features.journal.file import MAX_ID_CHARS
from recsys.serving.schemas import (
    MAX_EVENTS,
    ErrorAnswer,
    FeedbackAnswer,
    FeedbackEvent,
    RankedAnswer,
    RankRequest,
    ReadyAnswer,
    RecommendQuery,
    RecommendRequest,
    VersionAnswer,
)
from recsys.serving.state import RankingService


def json_body(request: Request) -> None:
    """Refuse a body that is not said to be JSON: a web page elsewhere cannot send one unasked."""
    content_type = request.headers.get("content-type", "none")
    if request.method == "POST" and "json" not in content_type:
        raise HTTPException(415, f"content-type: {content_type}, wanted application/json; send that header")


def readable_path(request: Request) -> None:
    """Refuse a path that is no UTF-8: it would be answered for another user, with U+FFFD in the name."""
    try:
        unquote_to_bytes(request.scope.get("raw_path") or b"").decode()
    except UnicodeDecodeError as error:
        raise HTTPException(400, f"user_id: no UTF-8 (at byte {error.start} of the path); encode it so") from error


router = APIRouter(dependencies=[Depends(json_body)])
_ERRORS: dict[int | str, dict[str, Any]] = {code: {"model": ErrorAnswer} for code in (400, 413, 415, 422, 503)}
_EVENT = FeedbackEvent.model_json_schema()
_FEEDBACK_BODY = {
    "requestBody": {
        "required": True,
        "content": {
            "application/json": {
                "schema": {"anyOf": [_EVENT, {"type": "array", "items": _EVENT, "maxItems": MAX_EVENTS}]}
            }
        },
    }
}


def service_of(request: Request) -> RankingService:
    """The service of the app, ready or not."""
    service: RankingService = request.app.state.service
    return service


def running_service(service: Annotated[RankingService, Depends(service_of)]) -> RankingService:
    """The service, if it can answer; else the request ends with 503 and the reason."""
    fault = service.fault()
    if fault is not None:
        raise HTTPException(503, fault)
    return service


Service = Annotated[RankingService, Depends(service_of)]
Running = Annotated[RankingService, Depends(running_service)]


@router.post("/v1/recommend", responses=_ERRORS, tags=["ranking"])
def recommend(asked: RecommendRequest, request: Request, service: Running) -> RankedAnswer:
    """The k best items for a user of the journal, or for a raw sequence."""
    return service.recommend(asked, request.state.request_id)


@router.get("/v1/recommend/{user_id:path}", responses=_ERRORS, tags=["ranking"], dependencies=[Depends(readable_path)])
def recommend_user(
    user_id: Annotated[str, Path(min_length=1, max_length=MAX_ID_CHARS)],
    request: Request,
    service: Running,
    query: Annotated[RecommendQuery, Query()],
) -> RankedAnswer:
    """The k best items for a user of the journal."""
    return service.recommend(RecommendRequest(user_id=user_id, k=query.k), request.state.request_id)


@router.post("/v1/rank", responses=_ERRORS, tags=["ranking"])
def rank(asked: RankRequest, request: Request, service: Running) -> RankedAnswer:
    """Given candidates, best first."""
    return service.rank(asked, request.state.request_id)


@router.post(
    "/v1/feedback", response_model=FeedbackAnswer, responses=_ERRORS, tags=["feedback"], openapi_extra=_FEEDBACK_BODY
)
def feedback(body: Annotated[Any, Body()], service: Running) -> FeedbackAnswer | JSONResponse:
    """Store what users did, one event or a list; the answer comes when it is on disk.

    Good events are stored beside bad ones. If every event was bad, the answer is 422.
    """
    answer = service.feedback(body)
    if answer.rejected and not answer.accepted + answer.duplicates:
        first = answer.rejected[0]
        reason = {"error": f"no event was stored; event {first.index}: {first.reason}"}
        return JSONResponse(reason | answer.model_dump(exclude={"durable"}), 422)
    return answer


@router.get("/health/live", tags=["health"])
async def live() -> dict[str, str]:
    """Whether the process answers at all."""
    return {"status": "live"}


@router.get("/health/ready", tags=["health"], responses={503: {"model": ReadyAnswer}})
async def ready(service: Service) -> Response:
    """200 when requests may be sent here; else 503 and the reason."""
    answer = service.readiness()
    return JSONResponse(answer.model_dump(exclude_none=True), 200 if answer.status == "ready" else 503)


@router.get("/version", tags=["health"])
async def version(service: Service) -> VersionAnswer:
    """What is running: package, bundle, journal."""
    return service.version()
