"""States cut into shards and put together: against the table that was never split."""

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from recsys.models.embedding_table import (
    AdmissionConfig,
    CollisionlessEmbedding,
    EmbeddingTable,
    RowOptimizer,
    TableConfig,
)
from recsys.models.embedding_table.reshard import merge_states, shard_of, split_state

WIDTH = 3
BY_ID = ("vectors", "states", "ticks", "counts")


def table_of(state: dict[str, torch.Tensor] | None = None, **settings: Any) -> EmbeddingTable:
    config = {"width": WIDTH, "optimizer": RowOptimizer("adam"), "init_std": 1.0, **settings}
    table = EmbeddingTable(TableConfig(**config), page_rows=8)
    table.clock.set(0)
    if state is not None:
        table.load_state(state)
    return table


def train(tables: list[EmbeddingTable], ids: torch.Tensor, second: float) -> None:
    """A step of all shards: each trains its ids, with gradients that are a function of the place in the whole call."""
    gradients = torch.sin(torch.arange(float(len(ids) * WIDTH)).view(-1, WIDTH) + second)
    shards = shard_of(ids, len(tables))
    for shard, table in enumerate(tables):
        table.clock.set(second)
        rows = table.look_up(ids[shards == shard])
        table.update(rows, gradients[shards == shard], lr=0.1)
        table.advance()


def stream(steps: int, most: int = 40, size: int = 8, seed: int = 0) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(-most // 2, most // 2, (size,), generator=generator) for _ in range(steps)]


def held(table: EmbeddingTable) -> dict[int, list[list[float]]]:
    """What an id has, in seconds too, by id."""
    state = table.state()
    rows = state["rows"]
    parts = [state[name][rows].tolist() for name in BY_ID if name in state]
    seconds = table.clock.seconds_of(state["ticks"][rows].squeeze(1))[:, None].tolist()
    return {id_: list(values) for id_, *values in zip(state["ids"].tolist(), *parts, seconds, strict=True)}


def splitmix(number: int) -> int:
    """The finaliser of splitmix64, of whole numbers."""
    h = (number + 0x9E3779B97F4A7C15) % 2**64
    h = (h ^ (h >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
    h = (h ^ (h >> 27)) * 0x94D049BB133111EB % 2**64
    return h ^ (h >> 31)


def test_shards_are_alike_in_size_and_the_same_everywhere() -> None:
    ids = torch.arange(30_000)
    sizes = torch.bincount(shard_of(ids, 3))
    assert len(sizes) == 3
    assert abs(int(sizes.max()) - 10_000) < 300
    assert abs(int(sizes.min()) - 10_000) < 300
    some = [0, 1, 2, -1, 2**63 - 1, -(2**63)]
    assert shard_of(torch.tensor(some), 7).tolist() == [splitmix(id_ ^ 0x5851F42D4C957F2D) % 7 for id_ in some]
    assert not shard_of(ids, 1).any()
    for number in (0, -1, 1.5, None):
        with pytest.raises(ValueError, match=f"num_shards={number}; wanted a whole number of at least 1"):
            shard_of(ids, number)  # type: ignore[arg-type]  # what no type checker has seen comes here too
    for strange in (ids.int(), ids.float(), [1], None):
        with pytest.raises(ValueError, match=r"^ids is .*; wanted a tensor of int64"):
            shard_of(strange, 2)  # type: ignore[arg-type]  # as above


@pytest.mark.parametrize("eviction", ["none", "lru", "lfu", "ttl"])
@pytest.mark.parametrize("mode", ["all", "threshold", "probability"])
def test_one_to_two_to_one_keeps_all_that_ids_have(eviction: Any, mode: Any) -> None:
    config: dict[str, Any] = {"capacity": 20, "eviction": eviction, "ttl_s": 9}
    config["admission"] = AdmissionConfig(mode=mode, threshold=1 if mode == "all" else 2, capacity=30)
    whole = table_of(**config)
    whole.follow()
    for second, ids in enumerate(stream(30)):
        train([whole], ids, second)
        if second == 20:
            whole.erase(ids)
    state = whole.state()
    parts = split_state(state, 2)
    shards = [table_of(part, **config) for part in parts]
    assert min(len(shard) for shard in shards) > 0
    for number, shard in enumerate(shards):
        assert set(shard_of(shard.index.export()[0], 2).tolist()) == {number}
    merged = merge_states([shard.state() for shard in shards])
    again = table_of(merged, **config)
    assert held(again) == held(whole)
    assert again.counts == whole.counts
    assert again.clock.tick == whole.clock.tick
    for since in range(whole.clock.tick):
        ours, theirs = whole.changes(since), again.changes(since)
        assert torch.equal(whole.ids_of(ours.rows).sort().values, again.ids_of(theirs.rows).sort().values)
        assert torch.equal(ours.deleted, theirs.deleted)


@settings(max_examples=25, deadline=None)
@given(numbers=st.lists(st.integers(1, 5), min_size=1, max_size=4), seed=st.integers(0, 99))
def test_the_result_depends_on_no_number_of_shards(numbers: list[int], seed: int) -> None:
    config: dict[str, Any] = {"admission": AdmissionConfig(mode="threshold", threshold=3, capacity=16)}
    whole = table_of(**config)
    whole.follow()
    for second, ids in enumerate(stream(12, seed=seed)):
        train([whole], ids, second)
    whole.erase(torch.arange(3))
    once = merge_states(split_state(whole.state(), 1))
    state = whole.state()
    for number in numbers:
        state = merge_states(split_state(state, number))
    for name in once:
        if not name.startswith("admission"):  # sightings stand in another order
            assert torch.equal(state[name], once[name]), name
    sightings = [
        sorted(zip(s["admission.ids"].tolist(), s["admission.counts"].tolist(), strict=True)) for s in (state, once)
    ]
    assert sightings[0] == sightings[1]


@pytest.mark.parametrize("numbers", [[1, 2, 1], [2, 3, 1], [3, 1, 2]])
@pytest.mark.parametrize("threshold", [1, 3])
def test_training_on_shards_is_training_of_the_whole(numbers: list[int], threshold: int) -> None:
    config: dict[str, Any] = {"ttl_s": 4, "admission": AdmissionConfig(mode="threshold", threshold=threshold)}
    whole, shards = table_of(**config), [table_of(**config) for _ in range(numbers[0])]
    for place, shard in enumerate(shards):
        shard.shard = (place, numbers[0])
    second = 0
    for number in numbers:
        if number != len(shards):
            merged = merge_states([shard.state() for shard in shards])
            shards = [table_of(part, **config) for part in split_state(merged, number)]
        for ids in stream(15, seed=second):
            train([whole], ids, second)
            train(shards, ids, second)
            assert whole.expire() == sum(shard.expire() for shard in shards)
            second += 1
        assert held(whole) == {id_: values for shard in shards for id_, values in held(shard).items()}
    assert whole.counts.expired > 0
    merged_counts = merge_states([shard.state() for shard in shards])["counts_so_far"].tolist()
    assert merged_counts == list(vars(whole.counts).values())


@pytest.mark.parametrize("eviction", ["lru", "lfu"])
def test_a_merged_table_evicts_as_the_one_that_was_never_split(eviction: Any) -> None:
    config: dict[str, Any] = {"capacity": 25, "eviction": eviction}
    whole = table_of(**config)
    for second, ids in enumerate(stream(300, size=1)):  # no two rows have the same tick
        if second == 150:
            again = table_of(merge_states(split_state(whole.state(), 2)), **config)
        for table in (whole, again) if second >= 150 else (whole,):
            train([table], ids, second)
        if second >= 150:
            assert held(whole) == held(again)
    assert whole.counts == again.counts
    assert whole.counts.evicted >= 100


def test_a_shard_may_lie_in_a_file_and_its_state_in_safetensors(tmp_path: Path) -> None:
    embedding = CollisionlessEmbedding(TableConfig(width=WIDTH, id_dropout=0.1, unknown="learned"))
    for ids in stream(10):
        embedding(ids).square().sum().backward()
        embedding.step(0.1)
    state = {name: value for name, value in embedding.state_dict().items() if name.startswith("table.")}
    parts = split_state({name.removeprefix("table."): value for name, value in state.items()}, 2)
    shards = []
    for number, part in enumerate(parts):
        save_file(part, tmp_path / f"{number}.safetensors")
        config = TableConfig(
            width=WIDTH, id_dropout=0.1, unknown="learned", hot_rows=4, cold_file=str(tmp_path / f"rows{number}")
        )
        shard = CollisionlessEmbedding(config)
        loaded = {f"table.{name}": value for name, value in load_file(tmp_path / f"{number}.safetensors").items()}
        shard.load_state_dict({**loaded, "unknown": embedding.state_dict()["unknown"]})
        assert torch.equal(shard.state_dict()["table.shard"], torch.tensor([number, 2]))
        shards.append(shard)
    assert held(embedding.table) == {id_: row for shard in shards for id_, row in held(shard.table).items()}
    assert torch.equal(parts[1]["generator"], state["table.generator"])


def split_once(**settings: Any) -> list[dict[str, torch.Tensor]]:
    table = table_of(**settings)
    for second, ids in enumerate(stream(3)):
        train([table], ids, second)
    return split_state(table.state(), 2)


def test_shards_whose_clocks_differ_are_refused() -> None:
    one, other = split_once()
    shard = table_of(other)
    shard.advance()
    with pytest.raises(ValueError, match=r"'clock.tick' of states 0 and 1 differ.*: set the clocks of all shards"):
        merge_states([one, shard.state()])
    shard = table_of(other)
    shard.clock.set(77)
    with pytest.raises(ValueError, match=r"'clock.now' of states 0 and 1 differ"):
        merge_states([one, shard.state()])


def test_an_id_in_two_shards_is_refused() -> None:
    one, other = split_once()
    both = int(one["ids"][0])
    strayed = {**other, "ids": torch.cat([torch.tensor([both]), other["ids"][1:]])}
    with pytest.raises(ValueError, match=rf"id {both} stands in the states \[0, 1\]; wanted in one"):
        merge_states([one, strayed])


def states_of_split(number: int, ids: int = 1000) -> list[dict[str, torch.Tensor]]:
    """What tables say that took up the shards of one with so many ids."""
    whole = table_of()
    whole.look_up(torch.arange(ids))
    shards = [table_of(part) for part in split_state(whole.state(), number)]
    assert [shard.shard for shard in shards] == [(place, number) for place in range(number)]
    return [shard.state() for shard in shards]


def test_a_set_of_shards_of_which_one_is_missing_is_refused() -> None:
    states = states_of_split(4)
    assert len(merge_states(states[::-1])["ids"]) == 1000
    with pytest.raises(ValueError, match=r"shards \[3\] of 4 are missing, and so their ids; wanted all of them"):
        merge_states(states[:3])
    with pytest.raises(ValueError, match=r"shards \[0, 1, 3\] of 4 are missing"):
        merge_states(states[2:3])


def test_shards_of_two_splits_are_refused() -> None:
    with pytest.raises(ValueError, match="states 0 and 1 are of different splits: shard 0 of 2 and shard 1 of 3"):
        merge_states([states_of_split(2)[0], states_of_split(3)[1]])


def test_shards_of_two_tables_of_the_same_seed_and_clock_are_refused() -> None:
    one, again = split_once(), split_once()
    assert torch.equal(one[0]["split"], again[1]["split"])  # the same stream: the same table
    assert len(merge_states([one[0], again[1]])["ids"]) == len(merge_states(one)["ids"])
    table = table_of()
    for second, ids in enumerate(stream(3)):
        train([table], ids + 1000, second)
    other = split_state(table.state(), 2)
    with pytest.raises(ValueError, match=r"states 0 and 1 are shards of different tables.*: 'split' is \w+ and \w+; "):
        merge_states([one[0], other[1]])
    loaded = [table_of(one[0]).state(), table_of(other[1]).state()]
    with pytest.raises(ValueError, match="shards of different tables"):
        merge_states(loaded)


def test_tables_that_differ_in_vectors_alone_are_two() -> None:
    table = table_of()
    for second, ids in enumerate(stream(3)):
        train([table], ids, second)
    state = table.state()
    moved = {**state, "vectors": state["vectors"] + 1e-3}
    with pytest.raises(ValueError, match="shards of different tables"):
        merge_states([split_state(state, 2)[0], split_state(moved, 2)[1]])


def test_older_shards_say_nothing_of_their_split_and_still_merge() -> None:
    one, other = split_once()
    older = [{name: value for name, value in state.items() if name != "split"} for state in (one, other)]
    tables = [table_of(state) for state in older]
    assert [table.split for table in tables] == [None, None]
    ours, theirs = merge_states([one, other]), merge_states([table.state() for table in tables])
    assert "split" not in ours
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    with pytest.raises(ValueError, match=r"'split' is \w{16} and none"):
        merge_states([one, older[1]])


def test_an_empty_table_is_split_too() -> None:
    parts = split_state(table_of().state(), 3)
    assert len(merge_states(parts)["ids"]) == 0


def test_a_shard_that_is_there_twice_is_refused() -> None:
    states = states_of_split(2)
    with pytest.raises(ValueError, match="states 1 and 2 are both shard 1 of 2; wanted each shard once"):
        merge_states([*states, states[1]])


def test_a_table_that_was_never_split_merges_only_alone() -> None:
    first, second = table_of(), table_of()
    first.look_up(torch.arange(5))
    second.look_up(torch.arange(5, 9))
    assert merge_states([first.state()])["ids"].tolist() == [0, 1, 2, 3, 4]
    first.shard = (0, 2)
    with pytest.raises(ValueError, match="state 1 does not say which shard it is.* it merges only alone"):
        merge_states([first.state(), second.state()])
    second.shard = (1, 2)
    assert merge_states([first.state(), second.state()])["ids"].tolist() == list(range(9))


def test_a_merged_table_is_no_shard_and_a_shard_is_not_split_again() -> None:
    one, other = states_of_split(2)
    again = table_of(one)
    again.load_state(merge_states([one, other]))
    assert again.shard is None
    assert "shard" not in again.state()
    assert len(split_state(split_state(again.state(), 1)[0], 3)) == 3
    with pytest.raises(ValueError, match="the state is shard 1 of 2; merge all of them before it is split anew"):
        split_state(other, 2)


@pytest.mark.parametrize("said", [[2, 2], [-1, 2], [0], [0, 1, 2], 1])
def test_a_shard_that_cannot_be_is_refused(said: Any) -> None:
    one, other = states_of_split(2)
    with pytest.raises(ValueError, match="state 1 says that it is shard .*; wanted its number from 0, and of how many"):
        merge_states([one, {**other, "shard": torch.tensor(said)}])


def test_shards_of_which_one_alone_is_followed_are_refused() -> None:
    one, other = split_once()
    shard = table_of(other)
    shard.follow()
    with pytest.raises(ValueError, match="one of states 0 and 1 is followed, the other is not"):
        merge_states([one, shard.state()])


def test_changes_of_merged_shards_are_known_since_all_of_them_know() -> None:
    table = table_of()
    table.follow()
    for second, ids in enumerate(stream(9)):
        train([table], ids, second)
        table.erase(ids[:2])
    since = table.clock.tick - 3
    shards = [table_of(part) for part in split_state(table.state(), 2)]
    shards[1].follow(since)
    again = table_of(merge_states([shard.state() for shard in shards]))
    assert torch.equal(again.changes(since).deleted, table.changes(since).deleted)
    assert int(again.state()["deleted.ticks"].min()) == since
    with pytest.raises(ValueError, match=f"changes since tick {since - 1} are not known, only those since {since}"):
        again.changes(since - 1)


def test_parts_of_the_window_of_admission_are_laid_newest_on_newest() -> None:
    one, other = split_once(admission=AdmissionConfig(mode="threshold", threshold=9))
    ids = torch.arange(5)
    one |= {"admission.ids": ids[:3], "admission.counts": ids[:3] + 1, "admission.sizes": torch.tensor([2, 1])}
    other |= {"admission.ids": ids[3:], "admission.counts": ids[3:] + 1, "admission.sizes": torch.tensor([2])}
    merged = merge_states([other, one])
    assert merged["admission.sizes"].tolist() == [2, 3]
    assert merged["admission.ids"].tolist() == [0, 1, 3, 4, 2]
    assert merged["admission.counts"].tolist() == [1, 2, 4, 5, 3]


def test_states_of_different_tables_and_unknown_parts_are_refused() -> None:
    one, other = split_once()
    with pytest.raises(ValueError, match="there is no state to merge"):
        merge_states([])
    with pytest.raises(ValueError, match="states 0 and 1 are of different tables: one alone has 'counts'"):
        merge_states([one, {**other, "counts": other["ticks"]}])
    with pytest.raises(ValueError, match="'states' is 7 wide in the one, 3 in the other"):
        merge_states([one, {**other, "states": other["vectors"]}])
    with pytest.raises(ValueError, match="state 1 has no 'vectors'; wanted what state"):
        merge_states([one, {name: value for name, value in other.items() if name != "vectors"}])
    with pytest.raises(ValueError, match="the state has 'colour', which resharding does not know"):
        split_state({**one, "colour": one["ids"]}, 2)
