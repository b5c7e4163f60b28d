"""The module: gradients, steps, unknown ids, checkpoints."""

import copy
import pickle
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from recsys.models.embedding_table import CollisionlessEmbedding, RowOptimizer, TableConfig


def embedding_of(**settings: Any) -> CollisionlessEmbedding:
    return CollisionlessEmbedding(
        TableConfig(**{"width": 4, "optimizer": RowOptimizer("sgd"), **settings}), page_rows=8
    )


def test_shapes_follow_the_ids() -> None:
    embedding = embedding_of()
    ids = torch.tensor([[5, 6, 5], [7, -7, 6]])
    vectors = embedding(ids)
    assert vectors.shape == (2, 3, 4)
    assert torch.equal(vectors[0, 0], vectors[0, 2])
    assert embedding(torch.empty(0, 2, dtype=torch.int64)).shape == (0, 2, 4)


@pytest.mark.parametrize("name", ["sgd", "adagrad", "adam"])
def test_it_trains_as_a_dense_embedding_does(name: Any) -> None:
    embedding = embedding_of(optimizer=RowOptimizer(name, eps=1e-3))
    ids = torch.arange(6)
    dense = torch.nn.Embedding(6, 4, _weight=embedding(ids).detach().clone())
    rivals: dict[str, Any] = {
        "sgd": torch.optim.SGD(dense.parameters(), lr=0.1),
        "adagrad": torch.optim.Adagrad(dense.parameters(), lr=0.1, eps=1e-3),
        "adam": torch.optim.Adam(dense.parameters(), lr=0.1, eps=1e-3),
    }
    generator = torch.Generator().manual_seed(0)
    for _ in range(4):
        wanted = torch.cat([ids, torch.randint(0, 6, (20,), generator=generator)])  # every row, as Adam moves all
        weights = torch.randn(26, 4, generator=generator)
        for module in (embedding, dense):
            (module(wanted) * weights).tanh().sum().backward()
        embedding.step(0.1)
        rivals[name].step()
        rivals[name].zero_grad()
    torch.testing.assert_close(embedding(ids), dense(ids), rtol=1e-5, atol=1e-6)


def test_several_look_ups_of_a_step_are_one_update() -> None:
    one, two = (embedding_of(optimizer=RowOptimizer("adagrad")) for _ in range(2))
    ids = torch.tensor([1, 2, 3, 1])
    (one(ids).sum() * 3).backward()
    one.step(0.1)
    (two(ids[:1]).sum() * 3 + two(ids[1:]).sum() * 3).backward()
    two.step(0.1)
    assert torch.equal(one(ids), two(ids))


def test_evaluation_changes_nothing() -> None:
    embedding = embedding_of()
    embedding(torch.tensor([1, 2]))
    embedding.eval()
    before = embedding.state_dict()
    assert not embedding(torch.tensor([8, 9])).any()
    after = embedding.state_dict()
    changed = [name for name in before if not torch.equal(before[name], after[name])]
    assert changed == ["table.counts_so_far"]
    assert embedding.gauges()["unknown"] == 2


def test_unknown_ids_share_a_vector_that_learns() -> None:
    embedding = embedding_of(unknown="learned").eval()
    embedding(torch.tensor([8, 9])).sum().backward()
    assert embedding.unknown is not None
    assert embedding.unknown.grad is not None
    assert torch.equal(embedding.unknown.grad, torch.full((4,), 2.0))


def test_id_dropout_trains_the_unknown_vector_and_not_the_row() -> None:
    embedding = embedding_of(unknown="learned", id_dropout=0.5, init_std=1.0)
    ids = torch.arange(1000)
    vectors = embedding(ids)
    is_dropped = (vectors == 0).all(1)
    assert 400 < int(is_dropped.sum()) < 600
    before = embedding.table.pages.gather(embedding.table.index.find(ids))
    vectors.sum().backward()
    embedding.step(1.0)
    after = embedding.table.pages.gather(embedding.table.index.find(ids))
    assert torch.equal(before[is_dropped], after[is_dropped])
    assert torch.equal(before[~is_dropped] - 1, after[~is_dropped])
    assert embedding.unknown is not None
    assert embedding.unknown.grad is not None
    assert torch.equal(embedding.unknown.grad, torch.full((4,), float(is_dropped.sum())))


def test_gradients_are_dropped_scaled_and_measured() -> None:
    embedding = embedding_of(init_std=0.0)
    ids = torch.tensor([1, 2, 1])
    embedding(ids).sum().backward()
    assert float(embedding.gradient_norm()) == pytest.approx((4 * (4 + 1)) ** 0.5)
    embedding.scale_gradients(0.5)
    embedding.step(1.0)
    assert torch.equal(embedding(torch.tensor([1, 2])), torch.tensor([[-1.0] * 4, [-0.5] * 4]))
    embedding(ids).sum().backward()
    embedding.drop_gradients()
    embedding.step(1.0)
    assert torch.equal(embedding(torch.tensor([1, 2])), torch.tensor([[-1.0] * 4, [-0.5] * 4]))


def test_a_checkpoint_in_safetensors_is_the_whole_module(tmp_path: Path) -> None:
    settings: Any = {"capacity": 6, "eviction": "lru", "unknown": "learned", "id_dropout": 0.3, "ttl_s": 50}
    one, other = (torch.nn.Sequential(embedding_of(**settings)) for _ in range(2))
    generator = torch.Generator().manual_seed(0)

    def train(model: torch.nn.Sequential, steps: list[torch.Tensor]) -> None:
        for ids in steps:
            embedding = model[0]
            assert isinstance(embedding, CollisionlessEmbedding)
            embedding(ids).square().sum().backward()
            embedding.step(0.1)

    stream = [torch.randint(0, 20, (5,), generator=generator) for _ in range(40)]
    train(one, stream[:20])
    save_file({name: value.contiguous() for name, value in one.state_dict().items()}, tmp_path / "w.safetensors")
    other.load_state_dict(load_file(tmp_path / "w.safetensors"))
    train(one, stream[20:])
    train(other, stream[20:])
    ours, theirs = one.state_dict(), other.state_dict()
    for name in ours:
        if "clock" not in name:  # the machine's clock went on
            assert torch.equal(ours[name], theirs[name]), name


def test_a_checkpoint_that_does_not_fit_is_refused_whole() -> None:
    embedding, wider = embedding_of(), embedding_of(width=8)
    embedding(torch.tensor([1]))
    wider(torch.tensor([5]))
    with pytest.raises(RuntimeError, match=r"'vectors' is of the shape \(1, 4\); this table's is \(1, 8\)"):
        wider.load_state_dict(embedding.state_dict())
    with pytest.raises(RuntimeError, match="Missing key"):
        wider.load_state_dict({})
    whole = embedding_of(width=8, unknown="learned")
    whole(torch.tensor([3]))
    small = embedding_of(width=8, unknown="learned", capacity=1)
    nn.init.ones_(whole.unknown)  # type: ignore[arg-type]  # there is one: unknown=learned
    whole(torch.tensor([4]))
    with pytest.raises(RuntimeError, match="there are 2 ids; wanted at most max_rows=1"):
        small.load_state_dict(whole.state_dict())
    assert small.unknown is not None
    assert not small.unknown.any()
    assert wider.table.find(torch.tensor([5])).tolist() == [0]


def test_new_rows_after_a_reload_are_drawn_by_the_seed_of_the_state() -> None:
    first, second = embedding_of(seed=2**64 - 1), embedding_of(seed=3)
    first(torch.tensor([1]))
    second.load_state_dict(first.state_dict())
    assert torch.equal(first(torch.tensor([2])), second(torch.tensor([2])))


def test_a_number_that_is_not_finite_is_found_in_any_row() -> None:
    embedding = embedding_of()
    embedding(torch.arange(20)).sum().backward()
    assert embedding.is_finite()
    embedding.scale_gradients(float("nan"))
    embedding.step(0.1)
    assert not embedding.is_finite()


@pytest.mark.parametrize("ids", [[1, 2], torch.tensor([1.0]), torch.tensor([1], dtype=torch.int32)])
def test_what_are_no_ids_is_refused(ids: Any) -> None:
    embedding = embedding_of()
    for call in (embedding, embedding.erase):
        with pytest.raises(ValueError, match=r"ids is .*; wanted a tensor of int64; strings become ids by string_ids"):
            call(ids)


@pytest.mark.parametrize("lr", [-0.1, float("nan"), float("inf"), None, "a", "1", True, 10**400, [0.1]])
def test_what_is_no_rate_is_refused_and_applies_nothing(lr: Any) -> None:
    embedding = embedding_of(init_std=0.0)
    embedding(torch.tensor([1])).sum().backward()
    with pytest.raises(ValueError, match=re.escape(f"lr={lr}; wanted a number of at least 0")):
        embedding.step(lr)
    embedding.step(1.0)
    assert embedding(torch.tensor([1])).tolist() == [[-1.0] * 4]


def test_a_row_that_went_before_its_step_takes_no_gradient_whoever_has_it() -> None:
    embedding = embedding_of(init_std=0.0)
    early = embedding(torch.tensor([1, 2]))
    late = embedding(torch.tensor([1, 2]))
    early.sum().backward()
    embedding.erase(torch.tensor([2]))
    new = embedding(torch.tensor([3]))
    (late.sum() + new.sum()).backward()
    assert float(embedding.gradient_norm()) == pytest.approx((4 * (4 + 1)) ** 0.5)
    embedding.step(1.0)
    assert embedding(torch.tensor([1, 3])).tolist() == [[-2.0] * 4, [-1.0] * 4]
    embedding(torch.tensor([3])).sum().backward()
    embedding.step(1.0)
    assert embedding(torch.tensor([3])).tolist() == [[-2.0] * 4]


@pytest.mark.parametrize("is_between", [False, True], ids=["at once", "after a step"])
@pytest.mark.parametrize("how", ["evicted", "erased", "expired", "reloaded"])
def test_a_gradient_that_comes_late_is_never_another_ids(how: str, is_between: bool) -> None:
    embedding = embedding_of(capacity=1, eviction="lru", ttl_s=5, init_std=0.0)
    embedding.clock(0)
    late = embedding(torch.tensor([1]))
    embedding.step(1.0)
    if how == "erased":
        embedding.erase(torch.tensor([1]))
    elif how == "expired":
        embedding.clock(9)
        embedding.expire()
    elif how == "reloaded":
        other = embedding_of(capacity=1, eviction="lru", ttl_s=5, init_std=0.0)
        other(torch.tensor([7]))
        embedding.load_state_dict(other.state_dict())
    embedding(torch.tensor([2]))
    if is_between:
        embedding.step(1.0)
    late.sum().backward()
    embedding.step(1.0)
    assert not embedding.eval()(torch.tensor([2, 1])).any()


def test_ids_whose_start_could_not_be_told_have_no_row() -> None:
    embedding = embedding_of(init_std=0.0)

    class Failing:
        def starts(self, ids: torch.Tensor, rows: object) -> torch.Tensor:  # noqa: ARG002  # the protocol's
            raise KeyError("no category of 3")

        def state(self) -> dict[str, torch.Tensor]:
            return {}

        def load_state(self, state: object) -> None:
            """Nothing is kept."""

    embedding(torch.tensor([1]))
    embedding.table.prior = Failing()
    with pytest.raises(KeyError, match="no category of 3"):
        embedding(torch.tensor([1, 3, 4]))
    embedding.table.prior = None
    assert (len(embedding.table), embedding.table.live_rows().tolist()) == (1, [0])
    embedding(torch.tensor([1, 3, 4])).sum().backward()
    embedding.step(1.0)
    assert embedding(torch.tensor([1, 3, 4])).tolist() == [[-1.0] * 4] * 3


def test_a_gradient_that_comes_after_a_smaller_state_was_loaded_reads_no_foreign_memory() -> None:
    embedding = embedding_of()
    empty = {name: value.clone() for name, value in embedding.state_dict().items()}
    late = embedding(torch.arange(5_000))
    embedding.load_state_dict(empty)
    late.sum().backward()
    embedding(torch.tensor([1]))
    embedding.step(0.1)
    assert len(embedding.table) == 1
    with pytest.raises(ValueError, match="row 4000 is asked for; there is memory for 8"):
        embedding.of_rows(torch.tensor([4_000]))


def test_rows_stay_float32_and_lie_where_there_is_memory() -> None:
    embedding = embedding_of()
    for narrow in (embedding.half, embedding.double):
        with pytest.raises(ValueError, match="the table's rows are float32, not"):
            narrow()
    with pytest.raises(ValueError, match="a table has no rows on the device meta"):
        embedding.to("meta")
    assert embedding.to("cpu") is embedding


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda module: pickle.loads(pickle.dumps(module))])
def test_a_copy_lives_on_its_own(copied: Callable[[CollisionlessEmbedding], CollisionlessEmbedding]) -> None:
    one = embedding_of(capacity=5, eviction="lru", optimizer=RowOptimizer("adam"))

    def train(embedding: CollisionlessEmbedding, *ids: int) -> None:
        embedding(torch.tensor(ids)).square().sum().backward()
        embedding.step(0.1)

    train(one, 1, 2, 3, 4)
    other = copied(one)
    before = {name: value.clone() for name, value in one.state_dict().items()}
    train(other, 3, 5, 6, 7)
    other.erase(torch.tensor([7]))
    assert all(torch.equal(before[name], value) for name, value in one.state_dict().items())
    train(one, 3, 5, 6, 7)
    one.erase(torch.tensor([7]))
    ours, theirs = one.state_dict(), other.state_dict()
    for name in ours:
        if "clock" not in name:
            assert torch.equal(ours[name], theirs[name]), name
