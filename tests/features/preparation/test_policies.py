"""Each policy changes what it says and nothing else."""

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recsys.errors import DataError
from recsys.features.dataset import PreparedDataset
from recsys.features.preparation.policies import EventConfig
from recsys.features.prepare import PrepareConfig, SplitConfig, prepare

START = 1_500_000_000
Event = tuple[int, int, int, str, float]  # user, item, second, type, weight
EVENTS = st.lists(
    st.tuples(
        st.integers(1, 3), st.integers(1, 4), st.integers(0, 3), st.sampled_from("vb"), st.sampled_from([1.0, 3.5])
    ),
    max_size=25,
)
# A user who is long enough whatever the policies leave out.
ANCHOR: list[Event] = [(9, item, item, "v", 5.0) for item in (1, 2, 3)]


def _prepared(folder: Path, events: list[Event], config: EventConfig, shards: int = 1) -> PreparedDataset:
    rows = [f"{u},{i},{START + t},{kind},{weight}" for u, i, t, kind, weight in events]
    (folder / "log.csv").write_text("\n".join(["user,item,ts,event,rating", *rows]) + "\n")
    split = SplitConfig(protocol="loo-novalid")
    return prepare(folder / "log.csv", folder / "data", PrepareConfig(events=config, split=split, shards=shards))


def sequences(dataset: PreparedDataset) -> dict[Any, list[tuple[Any, int | None]]]:
    """Raw user id -> (raw item id, second since START or None) of each event."""
    found: dict[Any, list[tuple[Any, int | None]]] = {}
    for shard in dataset.shards:
        for row, user in enumerate(dataset.users.decode(shard.users)):
            part = slice(shard.offsets[row], shard.offsets[row + 1])
            items = dataset.items.decode(shard.items[part])
            times = [None] * len(items) if shard.times is None else (shard.times[part] // 10**6 - START).tolist()
            found[user] = list(zip(items, times, strict=True))
    return found


def _expected(events: list[Event], config: EventConfig) -> tuple[dict[int, list[tuple[int, int]]], dict[str, int]]:
    """The policies, one event at a time."""
    left: dict[str, int] = {}

    def out(name: str) -> None:
        left[name] = left.get(name, 0) + 1

    chosen = []
    for event in events:
        if config.types is not None and event[3] not in config.types:
            out(f"type:{event[3]}")
        elif config.min_weight is not None and event[4] < config.min_weight:
            out("weight")
        else:
            chosen.append(event)
    found: dict[int, list[tuple[int, int]]] = {}
    for user in dict.fromkeys(event[0] for event in chosen):
        mine = [event for event in chosen if event[0] == user]
        mine.sort(key=lambda event: (event[2], event[1] if config.ties == "item" else 0))
        if config.duplicates == "drop":
            distinct = list(dict.fromkeys((event[1], event[2], event[3]) for event in mine))
            for _ in range(len(mine) - len(distinct)):
                out("duplicates")
            mine = [(user, item, second, kind, 0.0) for item, second, kind in distinct]
        kept: list[tuple[int, int]] = []
        for place, (_, item, second, _, _) in enumerate(mine):
            before, after = [event[1] for event in mine[:place]], [event[1] for event in mine[place + 1 :]]
            is_repeat = {
                "keep": False,
                "collapse": before[-1:] == [item],
                "first": item in before,
                "last": item in after,
            }[config.repeats]
            if is_repeat:
                out("repeats")
            else:
                kept.append((item, second))
        found[user] = kept
    return found, dict(sorted(left.items()))


@settings(max_examples=60, deadline=None)
@given(
    events=EVENTS,
    config=st.builds(
        EventConfig,
        types=st.sampled_from([None, ("v",), ("v", "b")]),
        min_weight=st.sampled_from([None, 2.0]),
        ties=st.sampled_from(["file", "item"]),
        duplicates=st.sampled_from(["keep", "drop"]),
        repeats=st.sampled_from(["keep", "collapse", "first", "last"]),
    ),
    shards=st.sampled_from([1, 3]),
)
def test_policies_do_what_they_say(
    events: list[Event], config: EventConfig, shards: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    events = [*events, *ANCHOR, (9, 3, 3, "b", 5.0)]
    dataset = _prepared(tmp_path_factory.mktemp("policies"), events, config, shards)
    wanted, left_out = _expected(events, config)
    assert sequences(dataset) == wanted
    assert dataset.manifest["counts"]["left_out"] == left_out
    assert dataset.num_events == sum(map(len, wanted.values())) == len(events) - sum(left_out.values())


def test_a_shuffle_moves_events_of_one_moment_only_and_obeys_its_seed(tmp_path: Path) -> None:
    events: list[Event] = [(u, i, i // 20, "v", 1.0) for u in (1, 2) for i in range(60)]
    plain = sequences(_prepared(tmp_path, events, EventConfig()))
    first = sequences(_prepared(tmp_path, events, EventConfig(ties="shuffle")))
    again = sequences(_prepared(tmp_path, list(reversed(events)), EventConfig(ties="shuffle")))
    other = sequences(_prepared(tmp_path, events, EventConfig(ties="shuffle", seed=1)))
    assert first == again
    assert len({str(order) for order in (plain, first, other)}) == 3
    for found in (first, other):
        for user in (1, 2):
            assert sorted(found[user], key=lambda event: (event[1], event[0])) == plain[user]
            assert [second for _, second in found[user]] == [second for _, second in plain[user]]
    assert [item for item, _ in first[1]] != [item for item, _ in first[2]]


def test_texts_of_one_moment_stand_in_the_order_of_their_bytes(tmp_path: Path) -> None:
    rows = [f"u,{item},{START + second}" for second in (1, 0) for item in ("b", "é", "a", "Z", "ab")]
    (tmp_path / "log.csv").write_text("user,item,ts\n" + "\n".join(rows))
    config = PrepareConfig(events=EventConfig(ties="item"), split=SplitConfig(protocol="loo"))
    dataset = prepare(tmp_path / "log.csv", tmp_path / "data", config)
    assert [item for item, _ in sequences(dataset)["u"]] == ["Z", "a", "ab", "b", "é"] * 2
    # Indices still follow the file.
    assert dataset.items.decode(range(1, 6)) == ["b", "é", "a", "Z", "ab"]


def test_duplicates_that_are_kept_are_told(tmp_path: Path) -> None:
    events: list[Event] = [*ANCHOR, (9, 2, 2, "v", 1.0), (9, 2, 2, "b", 5.0), (9, 1, 2, "v", 5.0), (8, 2, 2, "v", 5.0)]
    dataset = _prepared(tmp_path, events, EventConfig())
    (note,) = dataset.manifest["notes"]
    assert note.startswith("1 events repeat user, item, moment and type of another; events.duplicates=drop")


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (EventConfig(types=("v",)), r"events\.types needs a column of event types; name it: read\.columns\.event_type"),
        (EventConfig(min_weight=2), r"events\.min_weight needs a column of weights; name it: read\.columns\.weight"),
        (EventConfig(duplicates="drop"), r"events\.duplicates=drop needs times or positions"),
        (EventConfig(ties="item"), r"events\.ties=item needs times or positions"),
    ],
)
def test_a_policy_the_source_has_nothing_for_is_refused(config: EventConfig, message: str, tmp_path: Path) -> None:
    (tmp_path / "log.csv").write_text("user,item\n1,1\n1,2\n1,3\n")
    with pytest.raises(DataError, match=message):
        prepare(tmp_path / "log.csv", tmp_path / "data", PrepareConfig(events=config))
    assert not (tmp_path / "data").exists()


def test_a_type_that_no_event_has_is_refused_with_those_there_are(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"events\.types names 'buy', which no event has; found b, v"):
        _prepared(tmp_path, [*ANCHOR, (9, 1, 1, "b", 1.0)], EventConfig(types=("v", "buy")))


def test_policies_that_leave_nothing_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no event of 3 counts: 3 by weight; see events"):
        _prepared(tmp_path, ANCHOR, EventConfig(min_weight=100))


@pytest.mark.parametrize("setting", [{"types": ()}, {"min_weight": float("nan")}, {"seed": -1}])
def test_a_setting_that_means_nothing_is_refused(setting: dict[str, Any]) -> None:
    (name,) = setting
    with pytest.raises(ValueError, match=f"{name}="):
        EventConfig(**setting)


@pytest.mark.parametrize(
    ("repeats", "protocol", "wanted"), [("last", None, True), ("first", None, False), ("last", "loo", False)]
)
def test_a_split_by_time_tells_that_later_events_take_out_earlier_ones(
    repeats: Any, protocol: Any, wanted: bool, tmp_path: Path
) -> None:
    rows = [f"{u},{n % 4},{START + 50 * n + u}" for n in range(12) for u in range(9)]
    (tmp_path / "log.csv").write_text("\n".join(["user,item,ts", *rows, *(f"8,{9 + n},{START + n}" for n in range(9))]))
    config = PrepareConfig(events=EventConfig(repeats=repeats), split=SplitConfig(protocol=protocol))
    dataset = prepare(tmp_path / "log.csv", tmp_path / "data", config)
    assert dataset.manifest["leakage"]["filters_count_all_events"] is wanted
