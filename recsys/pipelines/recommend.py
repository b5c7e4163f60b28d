"""Recommendations without a server: for one raw sequence, or for many users into a file.

The scores are those of the server: both call `models.ranking.ranker`. Users the model never saw are answered from their
history like any other; users without a known item get the popularity list, marked in the column `source`.
"""

import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import polars as pl

from recsys.errors import InputError
from recsys.features.dataset import PreparedDataset
from recsys.features.journal.file import check_id, key_of
from recsys.features.journal.journal import Journal
from recsys.features.preparation.progress import silent
from recsys.files import storage_errors
from recsys.models.bundle import Bundle, load_bundle, resolve
from recsys.models.ranking.ranker import History, ItemId, Ranked, Ranker

USERS_PER_BATCH = 1_024
SAY_EVERY_S = 2.0
SUFFIXES = (".parquet", ".csv", ".jsonl")

UserId = int | str
Say = Callable[[str], None]
Write = Callable[[pl.DataFrame], None]


def recommend_sequence(bundle: str | Path, sequence: Sequence[ItemId], k: int) -> Ranked:
    """The k best items after a raw sequence, oldest first.

    Raises:
        InputError: k < 1.
        BundleError: no bundle there, or a damaged one.
    """
    _check_k(k)
    (ranked,) = Ranker(load_bundle(resolve(bundle))).recommend([History(list(sequence))], k)
    return ranked


def recommend_users(
    bundle: str | Path,
    users: Sequence[UserId] | None,
    data: Path | None,
    journal: Path | None,
    k: int,
    out: Path,
    say: Say | None = None,
) -> dict[str, int | float | str]:
    """Write the k best items of each user to `out`, whole or not at all.

    The columns are user_id, item_id, score, rank (from 1) and source (`model` or `popularity`).

    Args:
        bundle: a folder, a run folder or models:/name@alias.
        users: raw ids, each answered once; None is every user of the source.
        data: a prepared dataset whose users' events, of all parts, are the histories; or
        journal: a journal that holds the histories. One of both.
        k: items for each user, at least 1; fewer where fewer are left.
        out: .parquet, .csv or .jsonl.
        say: called with lines of progress.

    Returns:
        `users`, `rows`, `popularity` (users answered from the popularity list), `seconds`, `out`.

    Raises:
        InputError: k < 1, not one of `data` and `journal`, another suffix, no users, or `out` cannot be written.
        BundleError, DataError: bundle, dataset or journal cannot be used.
        StorageError: the disk is full or failed; an older file at `out` is kept.
    """
    _check_k(k)
    out, tell = Path(out), say or silent
    if out.suffix not in SUFFIXES:
        raise InputError(f"{out}: unknown suffix {out.suffix!r}; name a file that ends with {', '.join(SUFFIXES)}")
    with ExitStack() as stack:
        histories = _open(data, journal, stack)
        ranker = Ranker(load_bundle(resolve(bundle)))
        chosen = _as_the_source_names_them(users, histories.users())
        began = time.perf_counter()
        with _table_file(out) as write:
            counts = _recommend(ranker, chosen, histories, k, write, tell)
    seconds = time.perf_counter() - began
    if counts["popularity"] == counts["users"]:
        tell(
            f"warning: none of the {counts['users']:,} users of {data or journal} has an item that the bundle knows: "
            "all are answered from popularity; name the histories that belong to the bundle"
        )
    speed = f"{len(chosen) / seconds:,.0f} users/s"
    tell(f"{out}: {counts['users']:,} users, {counts['rows']:,} rows in {seconds:.2f} s ({speed})")
    return {**counts, "seconds": round(seconds, 3), "out": str(out)}


class _Histories(Protocol):
    def users(self) -> list[UserId]:
        """Every user, as the source names them."""
        ...

    def of(self, users: Sequence[UserId]) -> list[History]:
        """Their histories; an unknown user's is empty."""
        ...


class _JournalHistories:
    def __init__(self, journal: Journal) -> None:
        self._journal = journal

    def users(self) -> list[UserId]:
        return self._journal.users()

    def of(self, users: Sequence[UserId]) -> list[History]:
        pasts = [self._journal.history(user) for user in users]
        return [History(past.item_ids, past.times, past.event_types) for past in pasts]


class _DatasetHistories:
    def __init__(self, dataset: PreparedDataset) -> None:
        self._dataset = dataset
        self._item_ids = np.array([None, *dataset.items.decode(np.arange(1, dataset.num_items + 1))], dtype=object)
        self._event_types = np.array([None, *dataset.event_type_names], dtype=object)
        self._shard = np.full(dataset.num_users + 1, -1, np.int64)  # of each user index
        self._row = np.zeros(dataset.num_users + 1, np.int64)
        for number, shard in enumerate(dataset.shards):
            self._shard[shard.users] = number
            self._row[shard.users] = np.arange(len(shard.users))

    def users(self) -> list[UserId]:
        return list(self._dataset.users.decode(np.arange(1, self._dataset.num_users + 1)))

    def of(self, users: Sequence[UserId]) -> list[History]:
        return [self._history(index) for index in self._dataset.users.encode(users).tolist()]

    def _history(self, index: int) -> History:
        if self._shard[index] < 0:
            return History([])
        shard, row = self._dataset.shards[self._shard[index]], self._row[index]
        part = slice(shard.offsets[row], shard.offsets[row + 1])
        times = None if shard.times is None else shard.times[part].tolist()
        event_types = None if shard.event_types is None else self._event_types[shard.event_types[part]].tolist()
        return History(self._item_ids[shard.items[part]].tolist(), times, event_types)


def _check_k(k: int) -> None:
    if k < 1:
        raise InputError(f"k={k}: wanted at least 1")


def _open(data: Path | None, journal: Path | None, stack: ExitStack) -> _Histories:
    if data is not None and journal is None:
        dataset = PreparedDataset.open(data)
        dataset.verify()
        return _DatasetHistories(dataset)
    if journal is not None and data is None:
        return _JournalHistories(stack.enter_context(Journal(Path(journal), read_only=True)))
    raise InputError("histories come from a prepared dataset or from a journal: give one of --data and --journal")


def _as_the_source_names_them(asked: Sequence[UserId] | None, known: list[UserId]) -> list[UserId]:
    """Each user once, as an integer where all are integers, else as text: 7 and "7" are the same user."""
    own = {str(user): user for user in known}
    for user in asked or ():
        check_id("user_id", user)
    chosen = (
        known if asked is None else [own.get(str(user), user) for user in {str(user): user for user in asked}.values()]
    )
    if not chosen:
        raise InputError("no user to recommend to; name at least one, or a source that holds some")
    found = [user for user in chosen if str(user) in own]
    keys = [key_of(user)[0] for user in chosen]
    if all(isinstance(user, int) for user in found or chosen) and all(isinstance(key, int) for key in keys):
        return keys
    return [str(user) for user in chosen]


def _recommend(
    ranker: Ranker[Bundle], users: list[UserId], histories: _Histories, k: int, write: Write, tell: Say
) -> dict[str, int]:
    began = told = time.perf_counter()
    counts = {"users": len(users), "rows": 0, "popularity": 0}
    for first in range(0, len(users), USERS_PER_BATCH):
        part = users[first : first + USERS_PER_BATCH]
        ranked = ranker.recommend(histories.of(part), k)
        rows = _rows(part, ranked, ranker.bundle.items.kind == "int")
        write(rows)
        counts["rows"] += rows.height
        counts["popularity"] += sum(answer.source == "popularity" for answer in ranked)
        if (moment := time.perf_counter()) - told > SAY_EVERY_S:
            told, done = moment, first + len(part)
            tell(f"{done:,} of {len(users):,} users ({done / (told - began):,.0f} users/s)")
    return counts


def _rows(users: Sequence[UserId], ranked: Sequence[Ranked], has_int_items: bool) -> pl.DataFrame:
    pairs = list(zip(users, ranked, strict=True))
    columns: dict[str, list[Any]] = {
        "user_id": [user for user, answer in pairs for _ in answer.item_ids],
        "item_id": [item for answer in ranked for item in answer.item_ids],
        "score": [score for answer in ranked for score in answer.scores],
        "rank": [rank for answer in ranked for rank in range(1, len(answer.item_ids) + 1)],
        "source": [answer.source for answer in ranked for _ in answer.item_ids],
    }
    kinds = {
        "user_id": pl.Int64 if isinstance(users[0], int) else pl.String,
        "item_id": pl.Int64 if has_int_items else pl.String,
        "score": pl.Float64,
        "rank": pl.Int32,
        "source": pl.String,
    }
    return pl.DataFrame(columns, schema=kinds)


@contextmanager
def _table_file(out: Path) -> Iterator[Write]:
    """What appends rows to a draft, which takes its name `out` once all is written."""
    draft = out.with_name(f".{out.name}.{os.getpid()}.tmp")
    try:
        with storage_errors(out, "free space or name another file"):
            out.parent.mkdir(parents=True, exist_ok=True)
            with ExitStack() as stack:
                yield _parquet(draft, stack) if out.suffix == ".parquet" else _text(draft, out.suffix, stack)
            draft.replace(out)
    finally:
        with suppress(OSError):
            draft.unlink()


def _text(draft: Path, suffix: str, stack: ExitStack) -> Write:
    file = stack.enter_context(draft.open("wb"))

    def write(rows: pl.DataFrame) -> None:
        if suffix == ".csv":
            rows.write_csv(file, include_header=file.tell() == 0)
        else:
            rows.write_ndjson(file)

    return write


def _parquet(draft: Path, stack: ExitStack) -> Write:
    import pyarrow.parquet as pq

    writers: list[Any] = []

    def write(rows: pl.DataFrame) -> None:
        table = rows.to_arrow()
        if not writers:
            writers.append(stack.enter_context(pq.ParquetWriter(draft, table.schema)))
        writers[0].write_table(table)

    return write
