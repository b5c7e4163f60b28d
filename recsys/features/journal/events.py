"""What the journal holds: events (what users did) and impressions (what they were shown)."""

import hashlib
import math
import uuid
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from recsys.errors import InputError
from recsys.features.journal.file import check_id

MAX_TEXT_CHARS = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """What a user did, as it is handed in; checked when it is made (InputError)."""

    user_id: int | str
    item_id: int | str
    time_us: int | None = None  # us since 1970, UTC; None: when it is received
    position: int | None = None  # its place where the source knows no times
    event_type: str = "click"
    event_id: str | None = None
    weight: float | None = None
    session_id: str | None = None
    request_id: str | None = None  # of the answer that showed the item

    def __post_init__(self) -> None:
        check_id("user_id", self.user_id)
        check_id("item_id", self.item_id)
        if self.time_us is not None and self.position is not None:
            raise InputError("time_us and position are both given; an event has one order")
        for name in ("time_us", "position"):
            value = getattr(self, name)
            if value is not None and not -(2**63) <= value < 2**63:
                raise InputError(f"{name}={value}: beyond 64 bits")
        if self.weight is not None and not math.isfinite(self.weight):
            raise InputError(f"weight={self.weight}: wanted a finite number")
        _check_text("event_type", self.event_type)
        for name in ("event_id", "session_id", "request_id"):
            if getattr(self, name) is not None:
                _check_text(name, getattr(self, name))


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredEvent:
    """An event as it lies in the journal."""

    offset: int
    event_id: str
    user_id: int | str
    item_id: int | str
    event_type: str
    time_us: int | None  # None where the source knows a position only
    position: int | None
    received_us: int
    claimed_us: int | None  # the client's time, where it lay in the future and was clamped
    weight: float | None
    session_id: str | None
    request_id: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Impression:
    """What one answer showed: items in their order (position 1 first) with the scores they were served with."""

    request_id: str
    kind: str  # "recommend" or "rank"
    user_id: int | str | None  # None: a raw sequence was asked about
    item_ids: Sequence[int | str]
    scores: Sequence[float | None]
    source: str  # "model" or "popularity"
    model: str
    model_version: str
    query_us: int
    delta_version: str | None = None
    propensity: float = 1.0  # probability that the policy shows this list; a deterministic ranking shows it always


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredImpression:
    """An impression as it lies in the journal."""

    offset: int
    received_us: int
    impression: Impression


def event_id_of(user_id: int | str, item_id: int | str, order: str, event_type: str, occurrence: int) -> str:
    """The id of an event that came without one: 32 hex digits.

    Args:
        user_id, item_id: raw ids; 7 and "7" are the same.
        order: `t` and the time in us, or `p` and the position.
        event_type: such as "click".
        occurrence: how many equal events stand before it in the same source.
    """
    user, item = str(user_id), str(item_id)
    text = f"{len(user)}:{user}{len(item)}:{item}{order}:{event_type}:{occurrence}"
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def ids_of(events: Sequence[Event]) -> list[str]:
    """The id of each event: its own, else the hash of its content; one of its own where it has no order either."""
    seen: Counter[tuple[str, str, str, str]] = Counter()
    ids = []
    for event in events:
        order = f"p{event.position}" if event.position is not None else f"t{event.time_us}"
        if event.event_id is not None:
            ids.append(event.event_id)
        elif order == "tNone":
            ids.append(uuid.uuid4().hex)
        else:
            kind = (str(event.user_id), str(event.item_id), order, event.event_type)
            ids.append(event_id_of(*kind, seen[kind]))
            seen[kind] += 1
    return ids


def _check_text(name: str, text: str) -> None:
    if not text or len(text) > MAX_TEXT_CHARS or not text.isprintable():
        raise InputError(f"{name}={text[:40]!r}: wanted 1 to {MAX_TEXT_CHARS} printable characters")
