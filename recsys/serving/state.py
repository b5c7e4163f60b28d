"""The core of the service: what is loaded, and the one function behind each endpoint. It knows no HTTP.

The model is a bundle whose golden requests have been answered as stored; histories come from the journal. Nothing is
cached between the journal and an answer, so an event is in the history of the very next request.
"""

import threading
from collections.abc import Callable, Sequence
from typing import Literal

from pydantic import ValidationError

import recsys
from recsys.errors import BundleError, InputError
from recsys.features.journal.journal import CLAIMED, Impression, Journal, now_us
from recsys.models.bundle import Bundle, check_golden, load_bundle, resolve
from recsys.models.ranking.ranker import History, Ranked, Ranker
from recsys.serving.schemas import (
    MAX_EVENTS,
    FeedbackAnswer,
    FeedbackEvent,
    RankedAnswer,
    RankedItem,
    RankRequest,
    ReadyAnswer,
    RecommendRequest,
    Rejected,
    VersionAnswer,
    one_line,
)
from recsys.serving.settings import ServingSettings


class RankingService:
    """A bundle and a journal behind one object; safe to call from many threads.

    Args:
        settings: where both lie.
        clock: microseconds since 1970, UTC.
    """

    def __init__(self, settings: ServingSettings, clock: Callable[[], int] = now_us) -> None:
        self.settings = settings
        self._clock = clock
        self._ranker: Ranker[Bundle] | None = None
        self._journal: Journal | None = None
        self._is_draining = False
        self._is_closed = False
        self._gate = threading.Lock()
        self.start_error: Exception | None = None

    def start(self) -> None:
        """Load the bundle, answer its golden requests, open the journal; then the service is ready.

        Raises:
            BundleError: no bundle, a damaged one, or one that answers otherwise here than where it was made.
            InputError: another process writes the journal.
            DataError: the journal is damaged.
        """
        try:
            bundle = load_bundle(resolve(self.settings.bundle))
            _refuse_other_answers(bundle)
            timeout_s = self.settings.commit_timeout_ms / 1_000
            journal = Journal(self.settings.journal, clock=self._clock, timeout_s=timeout_s)
        except Exception as error:
            self.start_error = error
            raise
        with self._gate:
            self._ranker, self._journal = Ranker(bundle), journal
            if self._is_closed:
                journal.close()

    def fault(self) -> str | None:
        """Why no request can be answered, or None."""
        if self.start_error is not None:
            return f"the start failed: {self.start_error}"
        if self._journal is None:
            return "the bundle is being loaded"
        return self._journal.failure

    def readiness(self) -> ReadyAnswer:
        """Whether new requests should be sent here, and why not."""
        fault = self.fault()
        if fault is None and self._is_draining:
            return ReadyAnswer(status="draining", error="the server is shutting down")
        if fault is None:
            return ReadyAnswer(status="ready")
        is_starting = self.start_error is None and self._journal is None
        return ReadyAnswer(status="starting" if is_starting else "failed", error=fault)

    def recommend(self, request: RecommendRequest, request_id: str) -> RankedAnswer:
        """The k best items, journalled as shown before they are handed back.

        Raises:
            JournalError: the impression could not be stored.
        """
        history, query_us = self._asked(request)
        (ranked,) = self._loaded().recommend(
            [history], request.k, exclude_seen=request.exclude_seen, exclude=[request.exclude], query_time=query_us
        )
        return self._answer("recommend", request, request_id, history, ranked, query_us)

    def rank(self, request: RankRequest, request_id: str) -> RankedAnswer:
        """All candidates, best first, journalled as shown before they are handed back.

        Raises:
            JournalError: the impression could not be stored.
        """
        history, query_us = self._asked(request)
        ranked = self._loaded().rank(history, request.candidates, query_time=query_us)
        return self._answer("rank", request, request_id, history, ranked, query_us)

    def feedback(self, body: object) -> FeedbackAnswer:
        """What became of one event or a list of them, once those accepted are on disk.

        Raises:
            InputError: too many events.
            JournalError: the events could not be stored.
        """
        bodies = body if isinstance(body, list) else [body]
        if len(bodies) > MAX_EVENTS:
            raise InputError(f"{len(bodies)} events in one request, at most {MAX_EVENTS}; send them in parts")
        events, numbers, rejected = [], [], []
        for number, fields in enumerate(bodies):
            try:
                events.append(FeedbackEvent.model_validate(fields).to_event())
                numbers.append(number)
            except ValidationError as error:
                rejected.append(Rejected(index=number, reason=one_line(error)))
        result = self._opened().append(events)
        rejected += [Rejected(index=numbers[conflict], reason=CLAIMED) for conflict in result.conflicts]
        rejected.sort(key=lambda entry: entry.index)
        return FeedbackAnswer(accepted=result.accepted, duplicates=result.duplicates, rejected=rejected)

    def version(self) -> VersionAnswer:
        """What is running."""
        bundle = self._ranker.bundle if self._ranker else None
        return VersionAnswer(
            package=recsys.__version__,
            model=bundle.name if bundle else None,
            bundle_version=bundle.version if bundle else None,
            items=len(bundle.items) if bundle else None,
            data=bundle.data if bundle else None,
            journal=self._journal.writer if self._journal else None,
        )

    @property
    def is_draining(self) -> bool:
        """Whether the service has been asked to end."""
        return self._is_draining

    def drain(self) -> None:
        """Ask for no further requests; those that come are still answered."""
        self._is_draining = True

    def close(self) -> None:
        """Finish what waits for the disk and free the journal. A second call does nothing."""
        self.drain()
        with self._gate:
            self._is_closed = True
            if self._journal is not None:
                self._journal.close()

    def _loaded(self) -> Ranker[Bundle]:
        assert self._ranker is not None, "asked before start()"
        return self._ranker

    def _opened(self) -> Journal:
        assert self._journal is not None, "asked before start()"
        return self._journal

    def _asked(self, request: RecommendRequest | RankRequest) -> tuple[History, int]:
        asked_us = request.query_time
        assert asked_us is None or isinstance(asked_us, int)
        if request.user_id is None:
            return History(request.sequence or []), self._clock() if asked_us is None else asked_us
        past = self._opened().history(request.user_id, self.settings.max_history_events, asked_us)
        if asked_us is None:
            # A client's clock may run a little ahead: the question is never older than the last event.
            asked_us = max([self._clock(), *(past.times or [])[-1:]])
        return History(past.item_ids, past.times, past.event_types), asked_us

    def _answer(
        self,
        kind: Literal["recommend", "rank"],
        request: RecommendRequest | RankRequest,
        request_id: str,
        history: History,
        ranked: Ranked,
        query_us: int,
    ) -> RankedAnswer:
        bundle = self._loaded().bundle
        shown = Impression(
            request_id=request_id,
            kind=kind,
            user_id=request.user_id,
            item_ids=ranked.item_ids,
            scores=ranked.scores,
            source=ranked.source,
            model=bundle.name,
            model_version=bundle.version,
            query_us=query_us,
        )
        self._opened().append_impressions([shown])
        return RankedAnswer(
            request_id=request_id,
            model=bundle.name,
            version=bundle.version,
            source=ranked.source,
            why=_why(request, history, ranked, bundle),
            user_id=request.user_id,
            query_time=query_us,
            items=_numbered(ranked),
            unknown=ranked.unknown,
        )


def _refuse_other_answers(bundle: Bundle) -> None:
    differences = check_golden(bundle)
    if differences:
        raise BundleError(
            f"{bundle.path}: answers otherwise here than where it was made ({differences[0]}); "
            "save it again with this version"
        )


def _numbered(ranked: Ranked) -> list[RankedItem]:
    pairs: Sequence[tuple[int | str, float | None]] = list(zip(ranked.item_ids, ranked.scores, strict=True))
    return [RankedItem(item_id=item, score=score, rank=rank) for rank, (item, score) in enumerate(pairs, 1)]


def _why(request: RecommendRequest | RankRequest, history: History, ranked: Ranked, bundle: Bundle) -> str:
    whose = "the sequence" if request.user_id is None else f"user {request.user_id}"
    length = len(history.item_ids)
    if ranked.source == "model":
        known = min(length - len(ranked.unknown), bundle.model.max_len)
        return f"ranked by {bundle.name} from the last {known} known of {length} events of {whose}"
    if length:
        return f"the model knows none of the {length} items of {whose}: the most popular items"
    empty = "is empty" if request.user_id is None else "has no event in the journal"
    return f"{whose} {empty}: the most popular items"
