import itertools
import os
import random
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recsys.errors import DataError, InputError, JournalError
from recsys.features.journal.file import FILE, id_of, key_of
from recsys.features.journal.journal import Event, Impression, Journal, event_id_of, now_us

HOUR_US = 3_600_000_000
NOW_US = 1_750_000_000_000_000


class Clock:
    """A clock that stands where it is put."""

    def __init__(self, time_us: int = NOW_US) -> None:
        self.time_us = time_us

    def __call__(self) -> int:
        return self.time_us


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[Journal]:
    with Journal(tmp_path / "journal", clock=Clock()) as opened:
        yield opened


def impression(user_id: int | str | None, request_id: str = "r1") -> Impression:
    return Impression(
        request_id=request_id,
        kind="recommend",
        user_id=user_id,
        item_ids=[3, "three", 5],
        scores=[1.5, 0.25, None],
        source="model",
        model="sasrec",
        model_version="0123456789ab",
        query_us=NOW_US,
    )


def test_events_come_back_oldest_first_and_the_last_in_wins_a_tie(journal: Journal) -> None:
    journal.append([Event(user_id=1, item_id=item, time_us=time_us) for item, time_us in [(10, 5), (11, 3), (12, 5)]])
    journal.append([Event(user_id=1, item_id=13, time_us=5), Event(user_id=2, item_id=99, time_us=1)])
    past = journal.history(1)
    assert past.item_ids == [11, 10, 12, 13]
    assert past.times == [3, 5, 5, 5]
    assert journal.history(1, limit=2).item_ids == [12, 13]
    assert journal.history(1, limit=0).item_ids == []
    assert journal.history(3).item_ids == []


def test_as_of_shows_only_what_had_happened_until_then(journal: Journal) -> None:
    journal.append([Event(user_id=1, item_id=item, time_us=item * HOUR_US) for item in (1, 2, 3)])
    assert journal.history(1, as_of=2 * HOUR_US).item_ids == [1, 2]
    assert journal.history(1, as_of=2 * HOUR_US - 1).item_ids == [1]
    assert journal.history(1, limit=1, as_of=2 * HOUR_US).item_ids == [2]
    assert journal.history(1, as_of=0).item_ids == []


@settings(max_examples=25, deadline=None)
@given(
    events=st.lists(
        st.tuples(st.integers(0, 2), st.integers(0, 5), st.integers(0, 3)),
        max_size=40,
    ),
    limit=st.integers(0, 12),
    as_of=st.integers(0, 3),
    cut=st.integers(0, 40),
)
def test_history_equals_a_stable_sort_of_a_list(
    tmp_path_factory: pytest.TempPathFactory,
    events: list[tuple[int, int, int]],
    limit: int,
    as_of: int,
    cut: int,
) -> None:
    with Journal(tmp_path_factory.mktemp("journal")) as journal:
        numbered = [
            Event(user_id=user, item_id=item, time_us=at, event_id=f"e{number}")
            for number, (user, item, at) in enumerate(events)
        ]
        journal.append(numbered[:cut])
        journal.append(numbered[cut:])
        for user in range(3):
            own = sorted((e for e in events if e[0] == user and e[2] <= as_of), key=lambda e: e[2])
            expected = [(item, at) for _, item, at in own][len(own) - min(limit, len(own)) :]
            past = journal.history(user, limit, as_of)
            assert list(zip(past.item_ids, past.times or [], strict=True)) == expected


def test_integer_and_text_ids_come_back_as_they_were_and_name_the_same_user(journal: Journal) -> None:
    journal.append(
        [Event(user_id=7, item_id=12), Event(user_id="7", item_id="12"), Event(user_id="007", item_id="ä b")]
    )
    assert journal.history(7).item_ids == journal.history("7").item_ids == [12, "12"]
    assert journal.history("007").item_ids == ["ä b"]
    assert journal.users() == [7, "007"]


@given(st.one_of(st.integers(-(2**63), 2**63 - 1), st.text(min_size=1, max_size=30), st.integers().map(str)))
def test_a_stored_id_is_the_id_that_was_given(raw_id: int | str) -> None:
    key, is_text = key_of(raw_id)
    assert id_of(key, is_text) == raw_id
    assert key_of(str(raw_id))[0] == key


def test_the_same_event_is_stored_once(journal: Journal) -> None:
    event = Event(user_id=1, item_id=2, time_us=3, event_id="e1")
    assert journal.append([event]).accepted == 1
    again = journal.append([event, event])
    assert (again.accepted, again.duplicates, again.ids) == (0, 2, ["e1", "e1"])
    assert len(journal.read()) == 1


def test_events_without_an_id_are_known_by_their_content_and_occurrence(journal: Journal) -> None:
    twice = [Event(user_id=1, item_id=2, time_us=3), Event(user_id="1", item_id=2, time_us=3)]
    first = journal.append(twice)
    assert (first.accepted, len(set(first.ids))) == (2, 2)
    assert first.ids == [event_id_of(1, 2, "t3", "click", n) for n in (0, 1)]
    assert journal.append(twice).duplicates == 2
    others = [
        Event(user_id=1, item_id=2, time_us=4),
        Event(user_id=1, item_id=2, position=3),
        Event(user_id=1, item_id=2, time_us=3, event_type="buy"),
        Event(user_id=1, item_id=22, time_us=3),
        Event(user_id=12, item_id=2, time_us=3),
    ]
    assert journal.append(others).accepted == len(others)


def test_events_without_id_and_order_are_each_their_own(journal: Journal) -> None:
    click = Event(user_id=1, item_id=2)
    assert [journal.append([click]).accepted, journal.append([click]).accepted] == [1, 1]
    assert journal.history(1).times == [NOW_US, NOW_US]


def test_an_event_id_used_for_another_event_is_reported_and_not_stored(journal: Journal) -> None:
    journal.append([Event(user_id=1, item_id=2, event_id="e1")])
    result = journal.append([Event(user_id=1, item_id=4, event_id="e2"), Event(user_id=1, item_id=3, event_id="e1")])
    assert (result.accepted, result.duplicates, result.conflicts) == (1, 0, [1])
    assert journal.history(1).item_ids == [2, 4]


def test_a_time_in_the_future_is_clamped_and_the_claimed_one_kept(journal: Journal) -> None:
    soon, late = NOW_US + 30_000_000, NOW_US + 26 * HOUR_US
    journal.append([Event(user_id=1, item_id=1, time_us=late), Event(user_id=1, item_id=2, time_us=soon)])
    first, second = journal.read()
    assert (first.time_us, first.claimed_us, first.received_us) == (NOW_US, late, NOW_US)
    assert (second.time_us, second.claimed_us) == (soon, None)
    assert journal.append([Event(user_id=1, item_id=1, time_us=late)]).duplicates == 1
    assert journal.stats().clamped == 1


def test_positions_stand_before_times_and_give_a_history_without_times(journal: Journal) -> None:
    journal.append([Event(user_id=1, item_id=50)])
    journal.append([Event(user_id=1, item_id=item, position=place) for item, place in [(2, 2), (1, 1)]])
    past = journal.history(1)
    assert (past.item_ids, past.times) == ([1, 2, 50], None)
    assert [event.position for event in journal.read()] == [None, 2, 1]


def test_a_cursor_sees_every_event_once_in_the_order_of_offsets(journal: Journal) -> None:
    journal.append([Event(user_id=1, item_id=item, time_us=100 - item) for item in range(25)])
    cursor, items = 0, []
    while rows := journal.read(cursor, limit=7):
        assert len(rows) <= 7
        items += [row.item_id for row in rows]
        cursor = rows[-1].offset
    assert items == list(range(25))


def test_an_impression_comes_back_whole(journal: Journal) -> None:
    shown = [impression(7), impression(None, "r2")]
    journal.append_impressions(shown)
    stored = journal.read_impressions()
    assert [row.impression for row in stored] == shown
    assert [row.offset for row in stored] == [1, 2]
    assert journal.read_impressions(after_offset=1)[0].impression.request_id == "r2"


def test_a_forgotten_user_is_in_no_file_and_stays_forgotten(tmp_path: Path) -> None:
    events = [Event(user_id="Zwiebelfisch", item_id="Quastenflosser", time_us=at) for at in range(40)]
    with Journal(tmp_path) as journal:
        journal.append([*events, Event(user_id="other", item_id="kept", time_us=1)])
        journal.append_impressions([impression("Zwiebelfisch"), impression("other", "r2")])
        assert journal.forget("Zwiebelfisch") == 41
        with pytest.raises(JournalError, match="closed"):
            _closed_append(journal)
        reopened = Journal(tmp_path)
    with reopened as journal:
        assert journal.users() == ["other"]
        assert journal.history("Zwiebelfisch").item_ids == []
        assert journal.append(events).duplicates == 40
        assert journal.append([Event(user_id="Zwiebelfisch", item_id="new", time_us=99)]).accepted == 1
        assert [row.offset for row in journal.read()] == [41, 42]
        assert [row.impression.user_id for row in journal.read_impressions()] == ["other"]
        assert journal.stats().redacted == 40


def _closed_append(journal: Journal) -> None:
    journal.close()
    content = b"".join(path.read_bytes() for path in journal.folder.iterdir())
    assert b"other" in content
    assert b"Zwiebelfisch" not in content
    assert b"Quastenflosser" not in content
    journal.append([Event(user_id=1, item_id=1)])


def test_forgetting_leaves_nothing_in_the_log_of_an_open_journal(tmp_path: Path) -> None:
    with Journal(tmp_path) as journal:
        journal.append([Event(user_id="Zwiebelfisch", item_id=1)])
        # Another process reads the bytes: closing a second handle here would drop SQLite's locks.
        search = f"cat {tmp_path}/{FILE}* | grep -c Zwiebelfisch"
        assert subprocess.run(search, shell=True, capture_output=True, text=True).stdout.strip() != "0"
        journal.forget("Zwiebelfisch")
        assert subprocess.run(search, shell=True, capture_output=True, text=True).stdout.strip() == "0"


def test_no_event_id_stands_in_the_way_of_forgetting(tmp_path: Path) -> None:
    ids = ["redacted-1", "redacted-2", "redacted-3"]
    with Journal(tmp_path) as journal:
        journal.append([Event(user_id="ann", item_id=1, event_id="a")])
        journal.append([Event(user_id="eve", item_id=2, event_id=event_id) for event_id in ids])
        assert journal.forget("ann") == 1
        assert journal.failure is None
        assert [row.event_id for row in journal.read()] == ids
        assert journal.forget("eve") == 3
        assert journal.append([Event(user_id="eve", item_id=2, event_id="redacted-1")]).duplicates == 1


def test_rows_redacted_under_an_older_id_are_left_out_and_block_nobody(tmp_path: Path) -> None:
    with Journal(tmp_path) as journal:
        journal.append([Event(user_id="ann", item_id=1), Event(user_id="eve", item_id=2)])
        journal.forget("ann")
    with sqlite3.connect(tmp_path / FILE) as older:
        older.execute("UPDATE events SET event_id = 'redacted-1' WHERE offset = 1")
    older.close()
    with Journal(tmp_path) as journal:
        assert [row.user_id for row in journal.read()] == ["eve"]
        assert journal.stats().redacted == 1
        assert journal.append([Event(user_id="eve", item_id=3, event_id="redacted-1")]).conflicts == [0]
        assert journal.forget("eve") == 1


def test_forgetting_says_so_when_a_reader_keeps_older_pages(tmp_path: Path) -> None:
    with Journal(tmp_path) as journal:
        journal.append([Event(user_id="Zwiebelfisch", item_id=1)])
        reader = sqlite3.connect(f"file:{tmp_path / FILE}?mode=ro", uri=True, isolation_level=None)
        reader.execute("BEGIN")
        reader.execute("SELECT * FROM events").fetchall()
        with pytest.raises(JournalError, match="long-running reader"):
            journal.forget("Zwiebelfisch")
        reader.close()
        assert journal.forget("Zwiebelfisch") == 0
        assert journal.append([Event(user_id=1, item_id=1)]).accepted == 1


def test_a_second_writer_is_refused_by_name_and_readers_are_not(tmp_path: Path) -> None:
    with Journal(tmp_path) as journal:
        with pytest.raises(
            InputError, match=rf"process {os.getpid()} since .*; stop it first, or post .* /v1/feedback"
        ):
            Journal(tmp_path)
        with Journal(tmp_path, read_only=True) as reader:
            journal.append([Event(user_id=1, item_id=2)])
            assert reader.history(1).item_ids == [2]
            with pytest.raises(InputError, match="reading only"):
                reader.append([Event(user_id=1, item_id=2)])
    with Journal(tmp_path) as journal:
        assert journal.history(1).item_ids == [2]


def test_a_reader_never_empties_the_log_of_a_killed_writer(tmp_path: Path) -> None:
    with _child("j.append([Event(user_id=1, item_id=2)])\nos.kill(os.getpid(), 9)", tmp_path) as child:
        assert child.wait(20) == -signal.SIGKILL
    before = (tmp_path / f"{FILE}-wal").stat().st_size
    with Journal(tmp_path, read_only=True) as reader:
        assert reader.history(1).item_ids == [2]
    assert (tmp_path / f"{FILE}-wal").stat().st_size == before > 0


def test_a_missing_or_foreign_or_newer_or_damaged_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no journal here"):
        Journal(tmp_path / "none", read_only=True)
    assert not (tmp_path / "none").exists()
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    with sqlite3.connect(foreign / FILE) as other:
        other.execute("CREATE TABLE t (a)")
    other.close()
    with pytest.raises(DataError, match="but no journal"):
        Journal(foreign)
    Journal(tmp_path / "newer").close()
    with sqlite3.connect(tmp_path / "newer" / FILE) as newer:
        newer.execute("PRAGMA user_version = 9")
    newer.close()
    with pytest.raises(DataError, match="journal format 9, this version reads 1"):
        Journal(tmp_path / "newer")
    damaged = tmp_path / "damaged"
    damaged.mkdir()
    (damaged / FILE).write_bytes(b"no database" * 1000)
    for read_only in (False, True):
        with pytest.raises(DataError, match="damaged, or no journal"):
            Journal(damaged, read_only=read_only)
    assert (damaged / FILE).read_bytes() == b"no database" * 1000


def test_a_folder_that_cannot_be_one_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(InputError, match="cannot be a journal folder"):
        Journal(tmp_path / "file")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"user_id": ""}, "user_id: 0 characters"),
        ({"item_id": "x" * 1025}, "item_id: 1025 characters"),
        ({"user_id": 2**63}, "beyond 64 bits"),
        ({"user_id": True}, "got bool"),
        ({"item_id": 1.5}, "got float"),
        ({"item_id": None}, "got NoneType"),
        ({"item_id": "\ud800"}, "not valid Unicode"),
        ({"time_us": 1, "position": 1}, "one order"),
        ({"time_us": 2**63}, "time_us=9223372036854775808: beyond 64 bits"),
        ({"weight": float("nan")}, "weight=nan"),
        ({"event_type": ""}, "event_type"),
        ({"event_id": "a\nb"}, "event_id"),
    ],
)
def test_a_malformed_event_is_refused_when_it_is_made(fields: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        Event(**{"user_id": 1, "item_id": 1, **fields})  # type: ignore[arg-type]  # wrong types are the point


def test_concurrent_appenders_share_commits_and_all_are_kept(tmp_path: Path) -> None:
    clock = itertools.count(NOW_US)
    with Journal(tmp_path, clock=lambda: next(clock)) as journal:

        def work(user: int) -> None:
            for item in range(50):
                assert journal.append([Event(user_id=user, item_id=item)]).accepted == 1
                assert journal.history(user, limit=1).item_ids == [item]

        threads = [threading.Thread(target=work, args=(user,)) for user in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert [len(journal.history(user).item_ids) for user in range(8)] == [50] * 8
        assert [row.offset for row in journal.read(limit=1_000)] == list(range(1, 401))


def _child(body: str, folder: Path) -> subprocess.Popen[str]:
    program = (
        "import os, sys, threading, time\n"
        "from pathlib import Path\n"
        "from recsys.errors import JournalError\n"
        "from recsys.features.journal.journal import Event, Journal\n"
        f"j = Journal(Path({str(folder)!r}))\n{body}\n"
    )
    return subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)


@pytest.mark.parametrize("seed", range(4))
def test_kill_nine_loses_nothing_that_was_acknowledged(tmp_path: Path, seed: int) -> None:
    body = (
        "def work(t):\n"
        "    for n in range(10**9):\n"
        "        ids = j.append([Event(user_id=t, item_id=n, event_id=f'{seed}-{t}-{n}-{m}') for m in range(3)]).ids\n"
        "        os.write(1, (' '.join(ids) + '\\n').encode())\n"
        "for t in range(4): threading.Thread(target=work, args=(t,)).start()\n"
    )
    rng, acknowledged = random.Random(seed), set()
    for life in range(2):
        with _child(body.replace("{seed}", f"{seed}.{life}"), tmp_path) as child:
            assert child.stdout is not None
            lines = [child.stdout.readline()]
            time.sleep(rng.uniform(0, 0.15))
            child.kill()
            lines += child.stdout
        acknowledged |= {event_id for line in lines if line.endswith("\n") for event_id in line.split()}
        with Journal(tmp_path) as journal:
            stored = [row.event_id for row in journal.read(limit=10**6)]
        assert acknowledged <= set(stored)
        assert len(set(stored)) == len(stored)
    assert len(acknowledged) > 10


def test_a_full_disk_poisons_the_writer_and_keeps_what_was_acknowledged(tmp_path: Path) -> None:
    """A limit on the size of files stands for the full disk; raising it again must not revive the writer."""
    body = """
import resource
hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, hard))
kept = []
try:
    for n in range(10_000):
        j.append([Event(user_id=1, item_id=n, event_id=f"e{n}")])
        kept.append(f"e{n}")
    sys.exit("no failure")
except JournalError as error:
    assert "nothing is retried" in str(error), error
resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
assert j.failure
assert len(j.history(1).item_ids) == len(kept)
for _ in range(3):
    try:
        j.append([Event(user_id=1, item_id=-1, event_id="late")])
        sys.exit("written after a failure")
    except JournalError:
        pass
j.close()
print(" ".join(kept))
"""
    child = _child(body, tmp_path)
    output, _ = child.communicate(timeout=30)
    assert child.returncode == 0
    with Journal(tmp_path) as journal:
        stored = [row.event_id for row in journal.read(limit=10**6)]
        assert set(output.split()) <= set(stored)
        assert len(stored) > 50
        assert "late" not in stored
        assert journal.append([Event(user_id=1, item_id=-1)]).accepted == 1


def test_a_poisoned_writer_leaves_the_log_for_the_next_one(tmp_path: Path) -> None:
    """Closing must not checkpoint: after a failed fsync a second one may lie."""
    with Journal(tmp_path) as journal:
        journal.append([Event(user_id=1, item_id=2)])
        assert journal._writer is not None
        with pytest.raises(JournalError, match="a write failed .*no such table.*then restart"):
            journal._writer.run(lambda connection: connection.execute("INSERT INTO missing VALUES (1)"))
        with pytest.raises(JournalError, match="no such table"):
            journal.append([Event(user_id=1, item_id=3)])
    assert (tmp_path / f"{FILE}-wal").stat().st_size > 0
    with Journal(tmp_path) as journal:
        assert journal.history(1).item_ids == [2]


def test_a_job_that_breaks_a_rule_fails_alone(tmp_path: Path) -> None:
    """It waits between two good jobs in one commit; nothing of it is stored, and the writer goes on."""
    outcomes: dict[str, object] = {}
    with Journal(tmp_path) as journal:
        writer = journal._writer
        assert writer is not None
        gate, is_blocked = threading.Event(), threading.Event()

        def block(_: sqlite3.Connection) -> None:
            is_blocked.set()
            gate.wait()

        def store(name: str, keys: list[str]) -> None:
            try:
                rows = [(key, name) for key in keys]
                outcomes[name] = writer.run(lambda c: c.executemany("INSERT INTO meta VALUES (?, ?)", rows).rowcount)
            except sqlite3.IntegrityError as error:
                outcomes[name] = str(error)

        threads = [threading.Thread(target=writer.run, args=(block,))]
        threads[0].start()
        is_blocked.wait()
        for name, keys in (("first", ["a"]), ("broken", ["b", "a"]), ("last", ["c"])):
            threads.append(threading.Thread(target=store, args=(name, keys)))
            threads[-1].start()
            time.sleep(0.02)
        gate.set()
        for thread in threads:
            thread.join()
        assert outcomes == {"first": 1, "broken": "UNIQUE constraint failed: meta.key", "last": 1}
        assert journal.failure is None
        assert journal._all("SELECT key FROM meta WHERE key != 'writer' ORDER BY key") == [("a",), ("c",)]
        assert journal.append([Event(user_id=1, item_id=2)]).accepted == 1


def overwrite_the_middle(folder: Path) -> None:
    """8 KiB of another file; by another process, as closing a handle here would drop SQLite's locks."""
    pages = (folder / FILE).stat().st_size // 8192
    program = "import sys; f = open(sys.argv[1], 'r+b'); f.seek(int(sys.argv[2]) * 8192); f.write(b'\\xf5' * 8192)"
    subprocess.run([sys.executable, "-c", program, str(folder / FILE), str(pages // 2)], check=True)


def test_a_damaged_page_that_is_read_ends_all_writing_and_the_next_opening_names_it(tmp_path: Path) -> None:
    with Journal(tmp_path) as journal:
        journal.append([Event(user_id=n % 50, item_id=n, time_us=n) for n in range(5_000)])
    with Journal(tmp_path) as journal, Journal(tmp_path, read_only=True) as reader:
        overwrite_the_middle(tmp_path)
        assert journal.failure is None
        with pytest.raises(JournalError, match="cannot be read .*; restore it from a backup"):
            journal.read(limit=5_000)
        assert "the journal is damaged" in str(journal.failure)
        with pytest.raises(JournalError, match="the journal is damaged .*then restart"):
            journal.append([Event(user_id=1, item_id=1)])
        with pytest.raises(JournalError, match="cannot be read"):
            reader.read(limit=5_000)
    with pytest.raises(DataError, match="damaged, or no journal .*restore it from a backup"):
        Journal(tmp_path)


def test_a_query_that_fails_is_no_damage(tmp_path: Path) -> None:
    with Journal(tmp_path) as journal:
        with pytest.raises(JournalError, match="cannot be read"):
            journal._all("SELECT * FROM missing")
        assert journal.failure is None
        assert journal.append([Event(user_id=1, item_id=1)]).accepted == 1


def test_a_job_that_fails_takes_its_whole_commit_with_it(tmp_path: Path) -> None:
    with Journal(tmp_path) as journal:
        assert journal._writer is not None

        def half(connection: sqlite3.Connection) -> None:
            connection.execute("INSERT INTO meta VALUES ('half', 'written')")
            raise OSError("torn")

        with pytest.raises(JournalError, match="OSError: torn"):
            journal._writer.run(half)
    with Journal(tmp_path) as journal:
        assert journal._all("SELECT * FROM meta WHERE key = 'half'") == []


def test_a_wait_for_a_commit_has_a_deadline(tmp_path: Path) -> None:
    with Journal(tmp_path, timeout_s=0.05) as journal:
        assert journal._writer is not None
        gate = threading.Event()
        blocker = threading.Thread(target=journal._writer.run, args=(lambda _: gate.wait(),))
        blocker.start()
        time.sleep(0.02)
        with pytest.raises(JournalError, match=r"no commit within 0\.05 s"):
            journal.append([Event(user_id=1, item_id=2, event_id="e")])
        gate.set()
        blocker.join()
        assert journal.append([Event(user_id=1, item_id=2, event_id="e")]).duplicates == 1


def test_the_log_is_checkpointed_while_the_journal_is_open(tmp_path: Path) -> None:
    with Journal(tmp_path) as journal:
        for start in range(0, 30_000, 5_000):
            journal.append([Event(user_id=n % 50, item_id=n, time_us=n) for n in range(start, start + 5_000)])
        assert (tmp_path / f"{FILE}-wal").stat().st_size < (tmp_path / FILE).stat().st_size


def test_a_history_is_read_in_well_under_a_millisecond(tmp_path: Path) -> None:
    with Journal(tmp_path) as journal:
        journal.append([Event(user_id=n % 200, item_id=n, time_us=n) for n in range(20_000)])
        took_s = []
        for user in range(200):
            start = time.perf_counter()
            journal.history(user, limit=50)
            took_s.append(time.perf_counter() - start)
        assert sorted(took_s)[100] < 0.001


def test_the_default_clock_is_the_time_of_day() -> None:
    assert abs(now_us() / 1e6 - time.time()) < 5


def test_a_commit_waits_for_the_disk(journal: Journal) -> None:
    assert journal._writer is not None
    pragmas = ("journal_mode", "synchronous", "secure_delete", "wal_autocheckpoint")
    found = journal._writer.run(lambda c: [c.execute(f"PRAGMA {name}").fetchone()[0] for name in pragmas])
    assert found == ["wal", 2, 1, 0]
