"""The collisionless table as torchrec's managed collision module, in one process."""

import copy
import logging
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

pytest.importorskip("torchrec", reason="torchrec is not installed: pip install -e '.[torchrec]'")
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")

from torchrec import (  # noqa: E402  # where torchrec is installed
    EmbeddingBagCollection,
    EmbeddingBagConfig,
    EmbeddingCollection,
    EmbeddingConfig,
    JaggedTensor,
    KeyedJaggedTensor,
)
from torchrec.modules.mc_embedding_modules import (  # noqa: E402  # where torchrec is installed
    ManagedCollisionEmbeddingBagCollection,
    ManagedCollisionEmbeddingCollection,
)
from torchrec.modules.mc_modules import ManagedCollisionCollection  # noqa: E402  # where torchrec is installed

from recsys.kernels.mixing import mixed  # noqa: E402  # where torchrec is installed
from recsys.models.embedding_table import EmbeddingTable, TableConfig  # noqa: E402  # where torchrec is installed
from recsys.models.embedding_table.bounded_rows import bucket_of  # noqa: E402  # where torchrec is installed
from recsys.models.managed_collision import CollisionlessManagedCollisionModule, reset_evicted_rows  # noqa: E402  # where torchrec is installed

ODD_IDS = [0, -1, 2**63 - 1, -(2**63), 7, 7, 0, 12]


@pytest.fixture(autouse=True)
def _no_word_of_torchrec() -> Iterator[None]:
    logging.disable(logging.INFO)
    yield
    logging.disable(logging.NOTSET)


def rows_of(module: Any, ids: list[int]) -> list[int]:
    feature = JaggedTensor(values=torch.tensor(ids, dtype=torch.int64), lengths=torch.tensor([len(ids)]))
    rows: list[int] = module({"table": feature})["table"].values().tolist()
    return rows


def collection(rows: int = 5, start: float = 1.0, **options: Any) -> Any:
    """Two features of one table, whose rows begin at `start`."""
    config = EmbeddingConfig(
        name="table",
        embedding_dim=2,
        num_embeddings=rows,
        feature_names=["items", "liked"],
        init_fn=partial(nn.init.constant_, val=start),
    )
    module = CollisionlessManagedCollisionModule(rows, name="table", **options)
    return ManagedCollisionEmbeddingCollection(
        EmbeddingCollection(tables=[config]),
        ManagedCollisionCollection({"table": module}, [config]),
        return_remapped_features=True,
    )


def asked(items: list[int], liked: list[int] | None = None) -> KeyedJaggedTensor:
    liked = [] if liked is None else liked
    return KeyedJaggedTensor(
        ["items", "liked"], torch.tensor(items + liked), lengths=torch.tensor([len(items), len(liked)])
    )


def module_of(tables: Any) -> CollisionlessManagedCollisionModule:
    return tables._managed_collision_collection._managed_collision_modules["table"]


def test_every_int64_is_an_id_and_may_stand_in_a_call_more_than_once() -> None:
    module = CollisionlessManagedCollisionModule(9)
    assert rows_of(module, ODD_IDS) == [0, 1, 2, 3, 4, 4, 0, 5]
    assert rows_of(module, ODD_IDS[::-1]) == [5, 0, 4, 4, 3, 2, 1, 0]
    ids, rows = module.export()
    assert dict(zip(ids.tolist(), rows.tolist(), strict=True)) == dict(
        zip(ODD_IDS, [0, 1, 2, 3, 4, 4, 0, 5], strict=True)
    )


def test_ids_with_a_pattern_fill_all_buckets_and_are_exported_as_they_came() -> None:
    module = CollisionlessManagedCollisionModule(800, buckets=8)
    ids = [number << 22 for number in range(-200, 200)]
    rows = rows_of(module, ids)
    found, places = module.export()
    assert dict(zip(found.tolist(), places.tolist(), strict=True)) == dict(zip(ids, rows, strict=True))
    assert places.tolist() == sorted(rows)
    assert torch.bincount(places // 100).min() > 25


def test_evaluation_inserts_nothing_and_counts_the_unknown() -> None:
    module = CollisionlessManagedCollisionModule(4)
    rows_of(module, [10, 20])
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    module.eval()
    assert rows_of(module, [20, 30, 30, 10]) == [1, 3, 3, 0]
    assert all(torch.equal(tensor, before[name]) for name, tensor in module.state_dict().items())
    assert module.gauges()["unknown"] == 2
    assert module.evict() is None


@pytest.mark.parametrize(
    ("eviction", "rows", "left"),
    [("lru", [2, 0], [2]), ("lfu", [1, 0], [1]), ("none", [3, 0], None)],
)
def test_who_makes_room_is_the_policys(eviction: Any, rows: list[int], left: list[int] | None) -> None:
    module = CollisionlessManagedCollisionModule(4, eviction=eviction)
    for ids in ([3, 2, 3, 1], [1], [1, 2], [3]):  # 1 thrice, last in call 3; 2 twice, in call 3; 3 thrice, in call 4
        rows_of(module, ids)
    rows_of(module, [2])
    rows_of(module, [2])
    # 3 in row 0: 3 uses, last in call 4. 2 in row 1: 4 uses, in call 6. 1 in row 2: 3 uses, in call 3.
    if eviction == "lfu":
        rows_of(module, [1, 1, 3, 3])
        rows_of(module, [1])  # 1 and 3 were asked for more often than 2
    assert rows_of(module, [9, 3]) == rows
    evicted = module.evict()
    assert (None if evicted is None else evicted.tolist()) == left
    assert module.evict() is None
    assert module.gauges()["refused"] == (1 if eviction == "none" else 0)


def test_a_full_table_says_so_once_and_counts(caplog: pytest.LogCaptureFixture) -> None:
    module = CollisionlessManagedCollisionModule(3, eviction="none", name="clicks")
    with caplog.at_level(logging.WARNING, logger="recsys.models"):
        rows_of(module, [1, 2])
        assert caplog.text == ""
        rows_of(module, [3, 4, 3])
        rows_of(module, [5])
    assert caplog.text.count("table 'clicks' is full") == 1
    assert module.gauges() == {
        "rows": 3,
        "size": 2,
        "load": 1.0,
        "fullest_bucket": 1.0,
        "inserted": 2,
        "refused": 4,
        "evicted": 0,
        "unknown": 0,
    }
    assert module.open_slots().tolist() == [0]


@pytest.mark.parametrize("eviction", ["lru", "lfu", "none"])
def test_gauges_are_those_of_an_embedding_table_of_the_same_stream(eviction: Any) -> None:
    module = CollisionlessManagedCollisionModule(11, eviction=eviction)
    table = EmbeddingTable(TableConfig(width=2, capacity=10, eviction=eviction))
    for ids in stream(20):
        rows_of(module, ids.tolist())
        rows = table.look_up(ids)
        table.update(rows, torch.zeros(len(ids), 2), lr=0.1)
        table.advance()
    module.eval()
    rows_of(module, [99, 98, 99])
    table.find(torch.tensor([99, 98, 99]))
    mine, theirs = module.gauges(), table.gauges()
    names = ["size", "inserted", "refused", "evicted", "unknown"]
    assert {name: mine[name] for name in names} == {name: theirs[name] for name in names}
    assert mine["evicted" if eviction != "none" else "refused"] > 20
    assert mine["unknown"] == 3


def test_ids_of_one_call_do_not_throw_each_other_out() -> None:
    module = CollisionlessManagedCollisionModule(3)
    assert rows_of(module, [1, 2, 3, 1]) == [0, 1, 2, 0]
    assert rows_of(module, [2, 4, 5]) == [1, 0, 2]


def test_a_row_that_another_id_takes_begins_anew_with_its_optimizer_state() -> None:
    tables = collection(rows=3)
    optimizer = torch.optim.Adam(tables.parameters(), lr=0.1)
    assert reset_evicted_rows(tables, optimizer) == 1
    weight = tables._embedding_module.embeddings["table"].weight
    for items, liked in (([1], [2]), ([2], [2])):
        found, _ = tables(asked(items, liked))
        optimizer.zero_grad()
        (found["items"].values().sum() + found["liked"].values().sum()).backward()
        optimizer.step()
    moments = optimizer.state[weight]
    assert (moments["exp_avg"][:2] != 0).all()
    kept = weight[1].detach().clone()
    found, rows = tables(asked([7, 2]))
    assert rows["items"].values().tolist() == [0, 1]  # 1 went, it was used longest ago
    assert found["items"].values().tolist() == [[1.0, 1.0], kept.tolist()]
    assert (moments["exp_avg"][0] == 0).all()
    assert (moments["exp_avg_sq"][0] == 0).all()
    assert (moments["exp_avg"][1] != 0).all()


def test_gradients_reach_the_rows_of_the_ids_alone() -> None:
    tables = collection()
    found, _ = tables(asked([5, 6, 5], [6]))
    (found["items"].values().sum() + 10 * found["liked"].values().sum()).backward()
    assert tables._embedding_module.embeddings["table"].weight.grad[:, 0].tolist() == [2, 11, 0, 0, 0]


def stream(steps: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randint(-20, 20, (9,), generator=generator) for _ in range(steps)]


@pytest.mark.parametrize("eviction", ["lru", "lfu", "none"])
@pytest.mark.parametrize("form", ["torch", "safetensors"])
def test_a_saved_state_goes_on_as_if_it_had_not_been_saved(tmp_path: Path, eviction: Any, form: str) -> None:
    calls = stream(12)
    first, second = (CollisionlessManagedCollisionModule(16, eviction=eviction, buckets=2) for _ in range(2))
    for ids in calls[:6]:
        rows_of(first, ids.tolist())
    if form == "torch":
        torch.save(first.state_dict(), tmp_path / "state")
        state = torch.load(tmp_path / "state", weights_only=True)
    else:
        save_file(first.state_dict(), tmp_path / "state")
        state = load_file(tmp_path / "state")
    second.load_state_dict(state)
    for ids in calls[6:]:
        assert rows_of(first, ids.tolist()) == rows_of(second, ids.tolist())
    assert second.gauges()["refused"] == first.gauges()["refused"]
    assert all(torch.equal(tensor, second.state_dict()[name]) for name, tensor in first.state_dict().items())


def test_a_copy_knows_the_same_ids_and_parts_ways() -> None:
    first = CollisionlessManagedCollisionModule(20_000)
    rows_of(first, list(range(9000)))
    second = copy.deepcopy(first)
    rows_of(first, list(range(9000, 19_000)))
    assert rows_of(second, [8999, -1, -2]) == [8999, 9000, 9001]
    assert rows_of(first, [9001, -1]) == [9001, 19_000]
    assert second.export()[0].tolist() == [*range(9000), -1, -2]


def test_a_module_whose_buffers_were_moved_goes_on_in_them() -> None:
    module = CollisionlessManagedCollisionModule(9)
    rows_of(module, [4, 5])
    module._apply(torch.clone)  # as module.to(device) does
    assert rows_of(module, [5, 6]) == [1, 2]
    assert module.export()[0].tolist() == [4, 5, 6]


def test_parts_for_processes_hold_the_ids_of_their_buckets_and_go_on_alike() -> None:
    calls = stream(10)
    whole = CollisionlessManagedCollisionModule(24, buckets=4)
    for ids in calls[:4]:
        rows_of(whole, ids.tolist())
    whole.evict()
    parts = [whole.rebuild_with_output_id_range(span, [0, 12, 24]) for span in ((0, 12), (12, 24))]
    for ids in calls[4:]:
        rows = torch.tensor(rows_of(whole, ids.tolist()))
        for number, part in enumerate(parts):
            is_here = bucket_of(mixed(ids), 4) // 2 == number
            assert rows_of(part, ids[is_here].tolist()) == rows[is_here].tolist()
    evicted = whole.evict()
    assert evicted is not None
    left = [gone for part in parts if (gone := part.evict()) is not None]
    assert torch.cat(left).tolist() == evicted.tolist()


@pytest.mark.parametrize("span", [(0, 8), (6, 10), (12, 30)])
def test_a_part_that_cuts_a_bucket_is_refused(span: tuple[int, int]) -> None:
    module = CollisionlessManagedCollisionModule(24, buckets=4, name="clicks")
    with pytest.raises(ValueError, match="multiple of the number of processes"):
        module.rebuild_with_output_id_range(span, [])


def test_a_state_of_other_buckets_is_refused() -> None:
    state = CollisionlessManagedCollisionModule(24, buckets=4).state_dict()
    with pytest.raises(ValueError, match="2 buckets of 12 rows, what is loaded has 4 of 6; build it with the same"):
        CollisionlessManagedCollisionModule(24, buckets=2).load_state_dict(state)


def test_a_state_with_a_use_in_the_future_is_refused() -> None:
    module = CollisionlessManagedCollisionModule(4)
    rows_of(module, [1])
    state = module.state_dict()
    state["_row_last_use"] = torch.tensor([5, 0, 0, 0])
    with pytest.raises(ValueError, match="used in call 5, of 1"):
        CollisionlessManagedCollisionModule(4).load_state_dict(state)


@pytest.mark.parametrize(
    ("name", "row", "number", "message"),
    [
        ("_row_counts", 0, -1, "row 0 was asked for -1 times; wanted 0 or more"),
        ("_row_counts", 0, 0, "row 0 is free before one that is taken; wanted no gaps"),
        ("_row_counts", 1, 0, "row 1 is free or shared, but has the id 6 and was last used in call 1; wanted 0 for"),
        ("_row_last_use", 0, -1, "row 0 was last used in call -1; wanted 0 or more"),
        ("_row_last_use", 3, -1, "row 3 was last used in call -1; wanted 0 or more"),
        ("_row_last_use", 1, 3, "a row was used in call 3, of 2; it is damaged"),
        ("_row_last_use", 2, 1, "row 2 is free or shared, but has the id 0 and was last used in call 1; wanted 0 for"),
        ("_row_ids", 2, -1, "row 2 is free or shared, but has the id -1 and was last used in call 0; wanted 0 for"),
        ("_row_ids", 3, 9, "row 3 is free or shared, but has the id 9 and was last used in call 0; wanted 0 for"),
        ("_row_ids", 1, 5, "id 5 has the rows 0 and 1; wanted one"),
        ("_current_iter_tensor", 0, -1, "a row was used in call 2, of -1; it is damaged"),
        ("_output_segments_tensor", 1, 2, "1 buckets of 4 rows, what is loaded has 1 of 2; build it with the same"),
    ],
)
def test_a_damaged_state_is_refused_and_the_module_goes_on(name: str, row: int, number: int, message: str) -> None:
    module = CollisionlessManagedCollisionModule(4, name="clicks")
    rows_of(module, [5, 6])
    rows_of(module, [5])
    before = {key: value.clone() for key, value in module.state_dict().items()}
    damaged = {key: value.clone() for key, value in before.items()}
    damaged[name][row] = number
    with pytest.raises(ValueError, match=f"table 'clicks'.*{message}"):
        torch.nn.ModuleDict({"held": module}).load_state_dict({f"held.{key}": t for key, t in damaged.items()})
    assert all(torch.equal(value, before[key]) for key, value in module.state_dict().items())
    assert rows_of(module, [6, 5, 7]) == [1, 0, 2]


def test_a_state_of_another_type_or_size_is_refused() -> None:
    module = CollisionlessManagedCollisionModule(4, name="clicks")
    rows_of(module, [2**60 + 1])
    narrow = {name: tensor.float() if name == "_row_ids" else tensor for name, tensor in module.state_dict().items()}
    with pytest.raises(
        ValueError, match=r"'clicks': _row_ids is torch.float32 of the shape \(4,\); wanted torch.int64"
    ):
        module.load_state_dict(narrow)
    with pytest.raises(ValueError, match=r"'clicks': _row_ids is torch.int64 of the shape \(5,\); wanted .* \(4,\)"):
        module.load_state_dict(CollisionlessManagedCollisionModule(5).state_dict())
    assert rows_of(module, [2**60 + 1]) == [0]


@pytest.mark.parametrize("buckets", [1, 2])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bool])
def test_ids_that_are_no_integers_are_refused(buckets: int, dtype: torch.dtype) -> None:
    module = CollisionlessManagedCollisionModule(8, buckets=buckets, name="clicks")
    feature = {"table": JaggedTensor(values=torch.tensor([1.2, 1.7]).to(dtype), lengths=torch.tensor([2]))}
    for call in (module, module.preprocess) if buckets > 1 else (module,):
        with pytest.raises(ValueError, match=rf"table 'clicks': ids are {dtype}; wanted int64 or int32"):
            call(feature)
    assert module.gauges()["size"] == 0


@pytest.mark.parametrize("buckets", [1, 2])
def test_an_int32_is_the_same_id_as_an_int64(buckets: int) -> None:
    module = CollisionlessManagedCollisionModule(16, buckets=buckets)
    rows = rows_of(module, [5, -7, 2**31 - 1])
    ids = torch.tensor([5, -7, 2**31 - 1], dtype=torch.int32)
    found = module({"table": JaggedTensor(values=ids, lengths=torch.tensor([3]))})["table"].values()
    assert found.tolist() == rows


def test_bad_arguments_are_refused() -> None:
    with pytest.raises(ValueError, match="eviction='fifo'; wanted lru, lfu, none"):
        CollisionlessManagedCollisionModule(4, eviction="fifo")  # type: ignore[arg-type]  # wrong on purpose
    with pytest.raises(ValueError, match="buckets=2000; wanted at most 1024"):
        CollisionlessManagedCollisionModule(4000, buckets=2000)
    module = CollisionlessManagedCollisionModule(4)
    feature = {"table": JaggedTensor(values=torch.tensor([1.0]), lengths=torch.tensor([1]))}
    with pytest.raises(ValueError, match="write_weights"):
        module.remap(feature, write_weights=torch.zeros(1))
    with pytest.raises(ValueError, match="Linear has no embedding collection"):
        reset_evicted_rows(nn.Linear(1, 1))


def test_a_collection_of_bags_begins_rows_anew_too() -> None:
    config = EmbeddingBagConfig(
        name="table",
        embedding_dim=2,
        num_embeddings=3,
        feature_names=["items", "liked"],
        init_fn=partial(nn.init.constant_, val=1.0),
    )
    tables = ManagedCollisionEmbeddingBagCollection(
        EmbeddingBagCollection(tables=[config]),
        ManagedCollisionCollection({"table": CollisionlessManagedCollisionModule(3)}, [config]),
    )
    optimizer = torch.optim.SGD(tables.parameters(), lr=0.5)
    reset_evicted_rows(tables, optimizer)
    found, _ = tables(asked([5, 6], [5]))
    assert found.to_dict()["items"].tolist() == [[2.0, 2.0]]
    found.values().sum().backward()
    optimizer.step()
    found, _ = tables(asked([6], [7]))  # 5 goes
    assert found.to_dict()["items"].tolist() == [[0.5, 0.5]]
    assert found.to_dict()["liked"].tolist() == [[1.0, 1.0]]


def test_ids_that_end_in_zeros_fall_into_all_buckets_alike() -> None:
    ids = torch.arange(80_000) << 22
    assert torch.unique(bucket_of(ids, 8)).tolist() == [0]
    sizes = torch.bincount(bucket_of(mixed(ids), 8))
    assert len(sizes) == 8
    assert (sizes - 10_000).abs().max() < 5 * 10_000**0.5
