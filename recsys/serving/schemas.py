"""The bodies of requests and answers. Strict: no unknown field, no silent conversion."""

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Annotated, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    StrictInt,
    StrictStr,
    ValidationError,
    model_validator,
)

from recsys.errors import InputError
from recsys.features.journal.file import check_id
from recsys.features.journal.journal import Event

MAX_K = 1_000
MAX_ITEMS = 10_000  # of a sequence, a list of candidates or of excluded items
MAX_EVENTS = 10_000  # of one feedback request
EARLIEST_US = 100_000_000_000_000  # March 1973: smaller numbers are seconds or milliseconds
LATEST_US = 253_402_300_799_999_999  # the end of the year 9999: greater numbers are nanoseconds

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_BRANCHES = ("body", "int", "str")  # parts of a location that name no field


def _raw_id(value: int | str) -> int | str:
    try:
        check_id("id", value)
    except InputError as error:
        # The field is named by its place in the body.
        raise ValueError(str(error).removeprefix("id").lstrip("=: ")) from error
    return value


def _time_us(value: int | str) -> int:
    time_us = value if isinstance(value, int) else _parsed_us(value)
    if not EARLIEST_US <= time_us <= LATEST_US:
        span = f"{_iso(EARLIEST_US)} to {_iso(LATEST_US)}"
        raise ValueError(f"{value} lies outside {span}; send microseconds since 1970, or ISO 8601 text")
    return time_us


def _parsed_us(value: str) -> int:
    try:
        moment = datetime.fromisoformat(value)
    except ValueError as error:
        raise ValueError(
            f"{value!r} is no time; send ISO 8601 such as 2026-01-31T12:00:00Z, or microseconds"
        ) from error
    if moment.tzinfo is None:
        raise ValueError(f"{value!r} has no offset; append Z for UTC")
    return (moment - _EPOCH) // timedelta(microseconds=1)


def _iso(time_us: int) -> str:
    return (_EPOCH + timedelta(microseconds=time_us)).isoformat()


RawId = Annotated[StrictInt | StrictStr, AfterValidator(_raw_id)]
Time = Annotated[
    StrictInt | StrictStr,
    AfterValidator(_time_us),
    Field(description="ISO 8601 text with an offset, or integer microseconds since 1970 (UTC)"),
]
Items = Annotated[list[RawId], Field(max_length=MAX_ITEMS)]


class _Body(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)


class _Asked(_Body):
    """Whose next item is asked for: a user of the journal, or a raw sequence."""

    user_id: RawId | None = Field(default=None, description="a user; the history comes from the journal")
    sequence: Items | None = Field(default=None, description="raw item ids, oldest first, in place of a user")
    query_time: Time | None = Field(default=None, description="ask as of this time; by default now")

    @model_validator(mode="after")
    def _one_of_both(self) -> Self:
        if (self.user_id is None) == (self.sequence is None):
            raise ValueError("give either user_id or sequence")
        return self


class RecommendRequest(_Asked):
    """The k best items for a user or a sequence."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"user_id": "ann", "k": 3}, {"sequence": [17, 42], "k": 3}]}
    )

    k: int = Field(default=10, ge=1, le=MAX_K)
    exclude: Items = Field(default_factory=list, description="items to leave out")
    exclude_seen: bool = Field(default=True, description="leave out what stands in the history")


class RecommendQuery(BaseModel):
    """What stands behind the `?` of a recommendation asked for by its address."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    k: int = Field(default=10, ge=1, le=MAX_K)


class RankRequest(_Asked):
    """Given candidates, best first."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"user_id": "ann", "candidates": [5, 6, 7]}]})

    candidates: Items = Field(min_length=1)

    @model_validator(mode="after")
    def _distinct(self) -> Self:
        seen: set[str] = set()
        for item in self.candidates:
            if str(item) in seen:
                raise ValueError(f"candidates: {item!r} is listed twice")
            seen.add(str(item))
        return self


class RankedItem(_Body):
    """One item of an answer; rank 1 is the best."""

    item_id: int | str
    score: float | None = Field(description="null: a candidate that the model does not know")
    rank: int


class RankedAnswer(_Body):
    """Items, best first, and who ranked them."""

    request_id: str
    model: str
    version: str = Field(description="of the bundle")
    source: Literal["model", "popularity"]
    why: str
    user_id: int | str | None
    query_time: int = Field(description="microseconds since 1970 (UTC)")
    items: list[RankedItem]
    unknown: list[int | str] = Field(description="items of the history that the model does not know")


class FeedbackEvent(_Body):
    """What a user did. With an event_id or a timestamp a repeated request stores nothing twice."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"user_id": "ann", "item_id": 42, "event_id": "a-1"}]})

    user_id: RawId
    item_id: RawId
    timestamp: Time | None = Field(default=None, description="by default the moment of receipt")
    event_type: str = "click"
    event_id: str | None = Field(default=None, description="unique over all users")
    weight: float | None = Field(default=None, allow_inf_nan=False)
    session_id: str | None = None
    request_id: str | None = Field(default=None, description="of the answer that showed the item")

    @model_validator(mode="after")
    def _fits_the_journal(self) -> Self:
        self.to_event()
        return self

    def to_event(self) -> Event:
        """The event as the journal takes it."""
        return Event(
            user_id=self.user_id,
            item_id=self.item_id,
            time_us=self.timestamp,  # type: ignore[arg-type]  # the validator has made text an integer
            event_type=self.event_type,
            event_id=self.event_id,
            weight=self.weight,
            session_id=self.session_id,
            request_id=self.request_id,
        )


class Rejected(_Body):
    """An event that was not stored."""

    index: int = Field(description="in the list that was sent, from 0")
    reason: str


class FeedbackAnswer(_Body):
    """What became of each event; those accepted are on disk."""

    accepted: int
    duplicates: int
    rejected: list[Rejected]
    durable: Literal[True] = True


class ErrorAnswer(BaseModel):
    """What was wrong, in one line."""

    error: str


class ReadyAnswer(_Body):
    """Whether requests are answered."""

    status: Literal["ready", "starting", "draining", "failed"]
    error: str | None = None


class VersionAnswer(_Body):
    """What is running."""

    package: str
    model: str | None
    bundle_version: str | None
    items: int | None = Field(description="that the model knows")
    data: dict[str, object] | None = Field(description="where the model comes from")
    journal: str | None = Field(description="id of the journal's writer")


def one_line(errors: Sequence[object] | ValidationError) -> str:
    """The first errors of a validation, in one line: `field: what is wrong`."""
    found = errors.errors() if isinstance(errors, ValidationError) else errors
    lines = [_line(error) for error in found[:3] if isinstance(error, dict)]
    more = f" (and {len(found) - 3} more)" if len(found) > 3 else ""
    return "; ".join(lines) + more


def unreadable(error: BaseException | None) -> str:
    """Why a body could not be taken as JSON, in one line."""
    if isinstance(error, UnicodeDecodeError):
        return f"the body is no JSON (no {error.encoding} at byte {error.start}); send UTF-8"
    if isinstance(error, RecursionError):
        return "the body is nested too deeply; send it flat"
    if isinstance(error, ValueError):
        return "the body holds an integer with too many digits; send it as text"
    return "the body could not be read; send it again"


def _line(error: dict[str, object]) -> str:
    location = error.get("loc")
    place = location if isinstance(location, tuple | list) else ()
    if error.get("type") == "json_invalid":
        return f"the body is no JSON (at character {place[-1]})"
    if error.get("type") == "missing" and tuple(place) == ("body",):
        return "the body is empty; send JSON"
    names = _field_names(place, ends_in_field=error.get("type") == "extra_forbidden")
    message = " ".join(str(error.get("msg")).removeprefix("Value error, ").split())
    return f"{'.'.join(names)}: {message}" if names else message


def _field_names(place: Sequence[object], ends_in_field: bool) -> list[str]:
    """A location without what is no field: the body as a whole, and branches of a union."""
    inner = place[1:] if place[:1] == ("body",) and len(place) > 1 else place
    fields = list(inner[:-1] if ends_in_field else inner)
    names = [str(part) for part in fields if part not in _BRANCHES and not str(part).startswith("function-")]
    return names + [str(part) for part in inner[-1:] if ends_in_field]
