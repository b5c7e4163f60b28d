"""Models whose item vectors stand in a table: as good as a matrix, and for ids that no vocabulary knows."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from recsys.errors import ConfigError
from recsys.features.batches import JaggedBatch
from recsys.models import registry
from recsys.models.item_table import StreamItems, TableItems
from recsys.models.protocols import NextItemModel, rows_of
from recsys.models.ranking.score import scores_of
from tests.models.small import EVERYTHING, SMALL, D, V

NAMES = ["sasrec", "bert4rec"]
SEQUENCES = [[1, 2, 3, 4], [5, 6, 7], [8, 9, 10, 11, 12, 1]]


def built(name: str, num_items: int = V, loss: dict[str, Any] | None = None, **inputs: Any) -> Any:
    torch.manual_seed(0)
    return registry.build(
        name, {**SMALL, "inputs": {"embedding": "table", **inputs}, "loss": loss or {"kind": "ce"}}, num_items
    )


def dense_twin(table: Any, name: str, **keys: Any) -> Any:
    """The same model with a matrix that holds what stands in the table's rows."""
    twin: Any = registry.build(name, {**SMALL, **keys}, V)
    rows = table.item.all_rows()
    state = {key: value for key, value in table.state_dict().items() if not key.startswith("item.rows.")}
    state["item.weight"] = rows[:, :D]
    if name == "bert4rec":
        state["bias"] = rows[:, D]
    twin.load_state_dict(state)
    return twin


def step(model: Any, optimizer: torch.optim.Optimizer, batch: JaggedBatch, seed: int, lr: float = 1e-2) -> float:
    optimizer.zero_grad()
    loss = model.loss(batch, torch.Generator().manual_seed(seed))
    torch.autograd.backward(loss)
    optimizer.step()
    for part in rows_of(model).values():
        part.step(lr)
    return float(loss.detach())


def adam(model: nn.Module, lr: float = 1e-2) -> torch.optim.Optimizer:
    return torch.optim.AdamW(model.parameters(), lr=lr, betas=(0.9, 0.98), weight_decay=0.0)


@pytest.mark.parametrize("name", NAMES)
def test_the_full_cross_entropy_trains_a_table_as_it_trains_a_matrix(name: str) -> None:
    """Every row has a gradient in every step, so that its own Adam is the one over all of a matrix."""
    table = built(name)
    table.item_vectors()  # in training mode: every item has a row
    dense = dense_twin(table, name)
    optimizers = adam(table), adam(dense)
    batch = JaggedBatch.from_sequences(SEQUENCES)
    for seed in range(6):
        losses = step(table, optimizers[0], batch, seed), step(dense, optimizers[1], batch, seed)
        assert losses[0] == pytest.approx(losses[1], abs=1e-5)
    table.eval(), dense.eval()
    torch.testing.assert_close(table.item_vectors(), dense.item_vectors(), rtol=0, atol=1e-5)
    torch.testing.assert_close(scores_of(table, batch), scores_of(dense, batch), rtol=0, atol=1e-5)
    assert (dense.item_vectors() - dense_twin(built(name), name).item_vectors()).abs().max() > 1e-2, "it trained"


@pytest.mark.parametrize("loss", [{"kind": "bce"}, {"kind": "sampled_softmax"}, {"kind": "gbce"}], ids=str)
@pytest.mark.parametrize("shared", ["batch", "none"])
@pytest.mark.parametrize("name", NAMES)
def test_a_sampled_loss_is_that_of_a_matrix_and_gives_gradients_to_few_rows(
    name: str, loss: dict[str, Any], shared: str
) -> None:
    loss = {**loss, "num_negatives": 2, "shared": shared}
    table = built(name, loss=loss)
    table.item_vectors()
    dense = dense_twin(table, name, loss=loss)
    batch = JaggedBatch.from_sequences([[1, 2], [2, 1]])
    losses = [model.loss(batch, torch.Generator().manual_seed(3)) for model in (table, dense)]
    torch.testing.assert_close(*losses)
    torch.autograd.backward(losses)
    before = table.item.all_rows()
    matrix = dense.item.weight.grad
    for part in rows_of(table).values():
        part.step(1e-2)
    moved = (table.item.all_rows() - before).abs().amax(1) > 0
    assert int(moved.sum()) <= 2 + 2 * 4
    assert moved.tolist() == [bool(x) for x in (matrix.abs().amax(1) > 0) | moved]
    assert bool(moved[1])
    assert int(moved.sum()) < V or shared == "none"


@pytest.mark.parametrize("name", NAMES)
def test_side_columns_and_the_unknown_item_are_read_as_with_a_matrix(name: str) -> None:
    table = built(name, **EVERYTHING)
    table.item_vectors()
    table.item.categories.copy_(torch.arange(V + 1) % 4)
    table.item.vectors[1:].normal_()
    table.item.is_trained[4] = False
    dense = dense_twin(table, name, inputs=EVERYTHING)
    batch = JaggedBatch.from_sequences([[1, 2, 0, 4], [5, 6]], event_types=[[1, 2, 0, 1], [0, 1]])
    trained = JaggedBatch.from_sequences([[1, 2, 4], [5, 6]], event_types=[[1, 2, 1], [0, 1]])
    losses = [model.loss(trained, torch.Generator().manual_seed(3)) for model in (table, dense)]
    torch.testing.assert_close(*losses)
    table.eval(), dense.eval()
    torch.testing.assert_close(table.encode(batch), dense.encode(batch))
    torch.testing.assert_close(table.item_vectors(), dense.item_vectors())
    few = torch.tensor([4, 0, 2])
    torch.testing.assert_close(table.item_vectors(few), dense.item_vectors(few))


@pytest.mark.parametrize("name", NAMES)
def test_the_seed_of_a_run_decides_every_new_row(name: str) -> None:
    first, again = built(name), built(name)
    assert torch.equal(first.item_vectors(), again.item_vectors())
    torch.manual_seed(1)
    other: Any = registry.build(name, {**SMALL, "inputs": {"embedding": "table"}}, V)
    assert not torch.equal(first.item_vectors(), other.item_vectors())


def test_evaluation_makes_no_row_and_counts_nothing() -> None:
    model = built("sasrec").eval()
    assert torch.equal(model.item_vectors(), torch.zeros(V + 1, D))
    model.encode(JaggedBatch.from_sequences(SEQUENCES))
    table = model.item.rows.table
    assert (len(table), table.counts.unknown) == (0, 0)


def test_one_line_turns_it_on_and_details_are_settings() -> None:
    assert isinstance(built("sasrec").item, TableItems)
    detail = {"optimizer": "row_wise_adagrad", "eps": 1e-3, "init_std": 0.5, "capacity": 40}
    config = built("sasrec", table=detail).item.rows.config
    assert (config.optimizer.name, config.optimizer.eps, config.init_std, config.capacity) == tuple(detail.values())
    assert config.width == D
    assert built("bert4rec").item.rows.config.width == D + 1
    full = registry.full_config("sasrec", {"inputs": {"embedding": "table"}})
    assert full["inputs"]["table"]["beta2"] == 0.98
    assert registry.full_config("sasrec", full) == full


@pytest.mark.parametrize(
    ("num_items", "inputs", "loss", "message"),
    [
        (V, {"embedding": "dense", "table": {"eps": 1e-3}}, "ce", "inputs.table is given with inputs.embedding=dense"),
        (V, {"embedding": "tabel"}, "ce", "did you mean 'table'"),
        (V, {"table": {"optimiser": "sgd"}}, "ce", "did you mean 'optimizer'"),
        (V, {"table": {"eps": 0}}, "ce", "eps=0.0; wanted above 0"),
        (V, {"table": {"ttl_s": 5}}, "bce", "inputs.table.ttl_s=5.0: items of a vocabulary do not expire"),
        (V, {"table": {"admission": {"mode": "threshold", "threshold": 3}}}, "bce", "the vocabulary says which items"),
        (0, {"table": {"ttl_s": 5}}, "ce", "ttl_s=5.0 with loss.kind=ce, which touches every row in each step"),
        (0, {"table": {"capacity": 5, "eviction": "lru"}}, "ce", "eviction=lru with loss.kind=ce, which touches every"),
        (0, {"categories": True, "num_categories": 3}, "ce", "there is no vocabulary; set them to false"),
        (0, {}, "gbce", "loss.kind=gbce, shared=batch needs to know all items, and there is no vocabulary"),
    ],
)
def test_what_makes_no_sense_is_refused_by_name(
    num_items: int, inputs: dict[str, Any], loss: str, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        built("sasrec", num_items, {"kind": loss, "num_negatives": 2}, **inputs)


@pytest.mark.parametrize("loss", ["ce", "sampled_softmax", "bce", "gbce"])
@pytest.mark.parametrize("eviction", ["none", "lru", "lfu"])
@pytest.mark.parametrize("name", NAMES)
def test_a_table_smaller_than_the_vocabulary_is_refused(name: str, eviction: str, loss: str) -> None:
    """An item without a row would score exactly 0, and so rank above all whose score is negative."""
    kind = {"kind": loss, "num_negatives": 2}
    message = r"table\.capacity=11, and the vocabulary has 12 items.*raise it to 12, or leave it out"
    with pytest.raises(ConfigError, match=message):
        built(name, V, kind, table={"capacity": V - 1, "eviction": eviction})
    if loss != "ce" or eviction == "none":
        model = built(name, V, kind, table={"capacity": V, "eviction": eviction}).train()
        assert bool((model.item_vectors()[1:].abs().amax(1) > 0).all())


@pytest.mark.parametrize("kind", ["ce", "sampled_softmax", "bce", "gbce"])
@pytest.mark.parametrize("name", NAMES)
def test_after_one_step_every_item_of_the_vocabulary_has_a_row(name: str, kind: str) -> None:
    model = built(name, V, {"kind": kind, "num_negatives": 1}).train()
    step(model, adam(model), JaggedBatch.from_sequences([[1, 2, 3]]), 0)
    assert len(model.item.rows.table) == V
    assert bool((model.eval().item_vectors()[1:].abs().amax(1) > 0).all())


def big(ids: list[int]) -> list[int]:
    """Raw 64-bit ids, some of them negative, of small numbers."""
    return [(number * 0x9E3779B97F4A7C15 + 5) % 2**64 - 2**63 for number in ids]


def batch_of(sequences: list[list[int]]) -> JaggedBatch:
    return JaggedBatch.from_sequences([big(sequence) for sequence in sequences])


def chain(first: int, size: int, draw: torch.Generator, sequences: int = 24) -> list[list[int]]:
    """Histories in which each of `size` items from `first` on is followed by the next, around."""
    starts = torch.randint(0, size, (sequences,), generator=draw).tolist()
    return [[first + (start + i) % size for i in range(6)] for start in starts]


def best_of(model: Any, history: list[int]) -> int:
    model.eval()
    scores = scores_of(model, batch_of([history]))
    assert scores.shape[1] == len(model.item_ids()) + 1
    found = int(model.item_ids()[int(scores[0].argmax()) - 1])
    model.train()
    return found


@pytest.mark.parametrize(
    ("name", "loss"),
    [
        ("sasrec", {"kind": "ce"}),
        ("sasrec", {"kind": "sampled_softmax", "num_negatives": 30}),
        ("bert4rec", {"kind": "ce"}),
    ],
    ids=str,
)
def test_a_stream_of_new_ids_is_learnt_without_a_vocabulary(name: str, loss: dict[str, Any]) -> None:
    """Ten new items appear in every part of the stream; after a few steps each is recommended in its place."""
    model = built(name, 0, loss, table={"init_std": 0.2})
    assert (isinstance(model.item, StreamItems), isinstance(model, NextItemModel)) == (True, True)
    optimizer, draw = adam(model, 5e-3), torch.Generator().manual_seed(0)
    model.train()
    steps = 40 if name == "sasrec" else 150
    for part in range(3):
        for number in range(steps):
            known = [sequence for old in range(part) for sequence in chain(10 * old, 10, draw, 4)]
            batch = batch_of(chain(10 * part, 10, draw) + known)
            step(model, optimizer, batch, part * steps + number, lr=5e-3)
        assert set(model.item_ids().tolist()) == set(big(list(range(10 * part + 10))))
        hits = [best_of(model, [10 * part + (s + i) % 10 for i in range(5)]) for s in range(10)]
        wanted = big([10 * part + (s + 5) % 10 for s in range(10)])
        assert sum(a == b for a, b in zip(hits, wanted, strict=True)) >= 9
    assert (model.item_vectors(torch.tensor(big([3, 99]))).abs().amax(1) > 0).tolist() == [True, False]
    assert len(model.item_ids()) == 30, "to ask for an id gives it no row"


def test_items_that_expire_leave_the_ranking_and_their_neighbours_stay_where_they_were() -> None:
    loss = {"kind": "sampled_softmax", "num_negatives": 30}
    model = built("sasrec", 0, loss, table={"ttl_s": 100})
    optimizer, draw = adam(model), torch.Generator().manual_seed(0)
    model.train()
    rows = model.item.rows
    for day, first in enumerate((0, 10)):
        rows.clock(1000.0 + 90 * day)
        for number in range(5):
            step(model, optimizer, batch_of(chain(first, 10, draw)), number)
    assert rows.expire() == 0
    kept = model.item_vectors(torch.tensor(big(list(range(10, 20)))))
    rows.clock(1150.0)  # 150 s after the first part, 60 s after the second
    assert rows.expire() == 10
    model.eval()
    assert set(model.item_ids().tolist()) == set(big(list(range(10, 20))))
    assert torch.equal(model.item_vectors(torch.tensor(big(list(range(10, 20))))), kept)
    scores = scores_of(model, batch_of([[0, 1, 12]]))
    assert scores.shape == (1, 11)
    assert torch.isneginf(scores[:, 0]).all()
    assert torch.isfinite(scores[:, 1:]).all()


def test_a_target_that_is_not_admitted_yet_is_left_out_of_the_loss() -> None:
    for kind in ("ce", "sampled_softmax"):
        loss = {"kind": kind, "num_negatives": 5}
        model = built("sasrec", 0, loss, table={"admission": {"mode": "threshold", "threshold": 3}})
        model.train()
        optimizer = adam(model)
        assert step(model, optimizer, batch_of([[1, 2]]), 0) == 0.0  # nothing is known: no target counts
        values = [step(model, optimizer, batch_of([[1, 2, 1, 2, 1, 2]]), number) for number in range(3)]
        assert all(value > 0 for value in values[1:])
        both = model.loss(batch_of([[1, 2, 1, 2, 77]]), torch.Generator().manual_seed(0))
        assert bool(torch.isfinite(both))
        assert set(model.item_ids().tolist()) == set(big([1, 2]))


def test_a_stream_goes_on_from_its_state_to_the_bit() -> None:
    def made() -> tuple[Any, torch.optim.Optimizer]:
        model = built("sasrec", 0, {"kind": "ce"}, id_dropout=0.2).train()
        model.item.rows.clock(5.0)
        return model, adam(model)

    def trained(model: Any, optimizer: torch.optim.Optimizer, steps: range) -> None:
        for number in steps:
            draw = torch.Generator().manual_seed(number)
            step(model, optimizer, batch_of(chain(5 * number, 10, draw)), number)

    whole, part = made(), made()
    trained(*whole, range(8))
    trained(*part, range(4))
    torch.manual_seed(99)
    other: Any = registry.build(
        "sasrec", {**SMALL, "inputs": {"embedding": "table", "id_dropout": 0.2}, "loss": {"kind": "ce"}}, 0
    )
    other.load_state_dict(part[0].state_dict())
    optimizer = adam(other)
    optimizer.load_state_dict(part[1].state_dict())
    trained(other.train(), optimizer, range(4, 8))
    states: list[dict[str, Tensor]] = [whole[0].state_dict(), other.state_dict()]
    assert [key for key in states[0] if not torch.equal(states[0][key], states[1][key])] == []


def test_the_unknown_item_stands_for_ids_that_have_no_row() -> None:
    model = built("sasrec", 0, id_dropout=0.3)
    model.train()
    step(model, adam(model), batch_of([[1, 2, 3, 4]] * 8), 0)
    model.eval()
    one, other = (model.encode(batch_of([[1, stranger]])) for stranger in (500, 600))
    assert torch.equal(one, other)
    assert (model.encode(batch_of([[1, 2]])) - one).abs().max() > 1e-4
    model.item.unknown.data[: D // 2].add_(1.0)
    assert (model.encode(batch_of([[1, 500]])) - one).abs().max() > 1e-3
