"""The command that is advised works, on small logs too, and filters are advised only where they leave enough."""

import shlex
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from recsys.cli import main
from recsys.features.describe.advice import advice
from recsys.features.describe.config import DescribeConfig
from recsys.features.describe.source import describe_source

Rows = list[tuple[int, int, int]]
START = 1_500_000_000


def advised(folder: Path, rows: Rows) -> list[str]:
    log = folder / "a log.csv"
    log.write_text("user,item,ts\n" + "".join(f"{u},{i},{START + t}\n" for u, i, t in rows))
    return advice(describe_source(log, DescribeConfig(), lambda line: None))  # noqa: ARG005  # told of nothing


def run(line: str, folder: Path) -> int:
    words = shlex.split(line.removeprefix("next: recsys "))
    return main([str(folder / "data") if word == "DATA" else word for word in words])


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows=st.lists(st.tuples(st.integers(0, 9), st.integers(0, 6), st.integers(0, 9)), min_size=1, max_size=60))
def test_the_advised_command_works_or_none_is_advised(rows: Rows, tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("log")
    last = advised(folder, rows)[-1]
    if last.startswith("next: "):
        assert run(last, folder) == 0
    else:
        assert last == "no user has 3 events: nothing can be split yet; gather more"


# name, rows, settings that are advised, settings that are not
FILTERS = ("filters.min_item_events=5", "filters.min_user_events=3")
LOGS: list[tuple[str, Rows, tuple[str, ...], tuple[str, ...]]] = [
    ("one user", [(0, n, n) for n in range(8)], (), FILTERS),
    ("every item is rare", [(u, 10 * u + n, n) for u in range(20) for n in range(4)], (), FILTERS),
    ("short users", [(u, n % 4, u + n) for u in range(30) for n in range(1 if u else 4)], (), FILTERS),
    ("one item of each user is popular", [(u, 100 * u * n, n) for u in range(60) for n in range(4)], (), FILTERS),
    ("the same item again and again", [(0, 1, n) for n in range(9)] + [(1, 2, 3)], (), ("events.repeats=collapse",)),
    (
        "a long tail",
        [(u, n, n) for u in range(40) for n in range(12)] + [(100 + u, 100 + u, 5) for u in range(30)],
        FILTERS,
        (),
    ),
    ("enough for a split by time", [(u, n, u + 99 * n) for u in range(40) for n in range(30)], ("time",), ("loo",)),
]


@pytest.mark.parametrize(("rows", "has", "lacks"), [log[1:] for log in LOGS], ids=[log[0] for log in LOGS])
def test_what_is_advised_leaves_enough(
    rows: Rows, has: tuple[str, ...], lacks: tuple[str, ...], tmp_path: Path
) -> None:
    last = advised(tmp_path, rows)[-1]
    words = shlex.split(last)
    assert set(has) <= set(words)
    assert not set(lacks) & set(words)
    assert run(last, tmp_path) == 0


def test_where_too_much_is_rejected_the_lines_come_first(tmp_path: Path) -> None:
    (tmp_path / "log.csv").write_text("user,item,ts\n" + "".join(f"u,{n},{START + n}\n" for n in range(9)) + ",1,2\n")
    found = describe_source(tmp_path / "log.csv", DescribeConfig(), lambda line: None)  # noqa: ARG005  # told of nothing
    assert advice(found)[-1].startswith("next, once the lines are mended: recsys prepare ")
