import io
import itertools
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from recsys.features.click_batch import NO_ID, ClickBatch
from recsys.kernels.row_pages import RowOptimizer
from recsys.models.deepfm import DeepFM, DeepFMConfig, Field, pair_products
from recsys.models.embedding_table import CollisionlessEmbedding, TableConfig
from recsys.models.hashed_embedding import HashedEmbedding, rows_of
from recsys.models.protocols import ClickModel

FIELDS = (Field(name="user"), Field(name="item"), Field(name="history", length=3, space="item"))


def build(config: DeepFMConfig, *, num_rows: int = 1000, seed: int = 0, init_std: float = 0.3) -> DeepFM:
    tables = {
        space: HashedEmbedding(
            config.row_width, num_rows, RowOptimizer("adagrad"), init_std=init_std, seed=seed + number
        )
        for number, space in enumerate(config.spaces)
    }
    return DeepFM(config, tables, seed=seed)


def random_batch(size: int, columns: int, dense: int = 0, seed: int = 0) -> ClickBatch:
    generator = torch.Generator().manual_seed(seed)
    return ClickBatch(
        ids=torch.randint(0, 50, (size, columns), generator=generator),
        labels=torch.randint(0, 2, (size,), generator=generator).float(),
        dense=torch.randn(size, dense, generator=generator) if dense else None,
    )


def by_hand(model: DeepFM, batch: ClickBatch) -> Tensor:
    """The docstring's formula, example by example."""
    user, item, history = batch.ids[:, :1], batch.ids[:, 1:2], batch.ids[:, 2:]
    logits = []
    for n in range(len(batch)):
        lookups = [("user", user[n]), ("item", item[n]), ("item", history[n][history[n] != NO_ID])]
        rows = torch.stack([model.tables[s](ids).mean(0) if len(ids) else torch.zeros(5) for s, ids in lookups])
        weights, vectors = rows[:, 0], rows[:, 1:]
        pairs = sum(torch.dot(a, b) for a, b in itertools.combinations(vectors, 2))
        x = torch.cat([vectors.flatten(), *([] if batch.dense is None else [batch.dense[n]])])
        linear = torch.tensor(0.0)
        if batch.dense is not None:
            assert model.dense_weights is not None
            linear = torch.dot(model.dense_weights.weight[0], batch.dense[n])
        for layer in model.layers:
            x = functional.relu(layer(x))
        logits.append(weights.sum() + pairs + model.out(x)[0] + linear)
    return torch.stack(logits)


@pytest.mark.parametrize("dense", [0, 2])
def test_logits_are_the_formula(dense: int) -> None:
    model = build(DeepFMConfig(fields=FIELDS, width=4, hidden=(7, 5), num_dense=dense)).eval()
    batch = random_batch(17, 5, dense)
    ids = batch.ids.clone()
    ids[::2, 3], ids[1, 2:] = NO_ID, NO_ID
    batch = ClickBatch(ids, batch.labels, batch.dense)
    torch.testing.assert_close(model.logits(batch), by_hand(model, batch))
    torch.testing.assert_close(model.predict(batch), torch.sigmoid(model.logits(batch)))
    assert model.hidden(batch).shape == (17, 5)
    assert isinstance(model, ClickModel)


@pytest.mark.parametrize("fields", [1, 2, 7])
def test_the_pair_term_is_the_sum_over_all_pairs(fields: int) -> None:
    vectors = torch.randn(5, fields, 6, dtype=torch.float64)
    wanted = torch.zeros(5, dtype=torch.float64)
    for f, g in itertools.combinations(range(fields), 2):
        wanted += (vectors[:, f] * vectors[:, g]).sum(1)
    torch.testing.assert_close(pair_products(vectors), wanted)
    assert torch.autograd.gradcheck(pair_products, vectors.requires_grad_())


def test_a_step_moves_rows_against_the_loss_gradient() -> None:
    model = build(DeepFMConfig(fields=FIELDS, width=4, hidden=(8,)))
    batch = random_batch(64, 5)
    table = model.tables["user"]
    assert isinstance(table, HashedEmbedding)
    loss = model.loss(batch)
    torch.autograd.backward(loss)
    rows, vectors = table._looked_up[0]
    assert vectors.grad is not None
    row, place = int(rows[0]), 0
    slope = float(vectors.grad[rows == row].sum(0)[place])
    size, number = 1e-2, torch.tensor([row])
    losses = []
    for sign in (1, -1):
        vectors, states, _ = table._pages.read(number)
        moved = vectors.clone()
        moved[0, place] += sign * size
        table._pages.write(number, moved, states, 0)
        with torch.no_grad():
            losses.append(float(model.loss(batch)))
        table._pages.write(number, vectors, states, 0)
    assert (losses[0] - losses[1]) / (2 * size) == pytest.approx(slope, rel=0.02)
    for _ in range(20):
        model.step_tables(0.05)
        loss = model.loss(batch)
        torch.autograd.backward(loss)
    assert float(loss.detach()) < min(losses)


def fitted(scores: Callable[[ClickBatch], Tensor], step: Callable[[], None], batch: ClickBatch) -> float:
    """Share of examples that are right after 150 steps."""
    assert batch.labels is not None
    for _ in range(150):
        torch.autograd.backward(functional.binary_cross_entropy_with_logits(scores(batch), batch.labels))
        step()
    return float(((scores(batch) > 0) == (batch.labels > 0)).float().mean())


def test_it_fits_what_depends_on_pairs_alone_and_a_linear_model_does_not() -> None:
    ids = torch.cartesian_prod(torch.arange(20), torch.arange(20))
    batch = ClickBatch(ids, ((ids[:, 0] + ids[:, 1]) % 2).float())  # each id alone says nothing
    config = DeepFMConfig(fields=FIELDS[:2], width=4, hidden=(16,))
    model = build(config, num_rows=100_000)
    adam = torch.optim.Adam(model.dense_parameters(), lr=1e-2)

    def step() -> None:
        adam.step()
        adam.zero_grad()
        model.step_tables(0.1)

    assert fitted(model.logits, step, batch) == 1
    linear = HashedEmbedding(1, 100_000, RowOptimizer("adagrad"))
    offset = torch.tensor([0, 1 << 20])
    share = fitted(lambda part: linear(part.ids + offset).sum((1, 2)), lambda: linear.step(0.1), batch)
    assert share < 0.6


def test_shared_rows_do_not_tell_ids_apart() -> None:
    config = DeepFMConfig(fields=FIELDS[:2], width=4, hidden=(16,))
    one_row = build(config, num_rows=1).eval()
    assert len(torch.unique(one_row.predict(random_batch(40, 2)))) == 1
    assert len(torch.unique(build(config).eval().predict(random_batch(40, 2)))) > 20


def test_the_same_seed_gives_the_same_weights_to_the_last_bit() -> None:
    config = DeepFMConfig(fields=FIELDS, width=8)

    def trained(seed: int) -> Tensor:
        torch.manual_seed(torch.seed() % 1000)  # what the global generator holds does not matter
        model = build(config, seed=seed)
        adam = torch.optim.Adam(model.dense_parameters(), lr=1e-2)
        for number in range(5):
            torch.autograd.backward(model.loss(random_batch(256, 5, seed=number)))
            adam.step()
            adam.zero_grad()
            model.step_tables(0.05)
        return model.eval().predict(random_batch(64, 5, seed=99))

    assert torch.equal(trained(3), trained(3))
    assert not torch.equal(trained(3), trained(4))


def test_a_saved_model_answers_the_same() -> None:
    config = DeepFMConfig(fields=FIELDS, width=8)
    model, other, batch = build(config, seed=1), build(config, seed=2), random_batch(30, 5)
    file = io.BytesIO()
    torch.save(model.state_dict(), file)
    file.seek(0)
    other.load_state_dict(torch.load(file))
    assert torch.equal(model.eval().predict(batch), other.eval().predict(batch))


def test_thinned_negatives_are_corrected_by_their_share() -> None:
    config = DeepFMConfig(fields=FIELDS, width=4, negatives_kept=0.1)
    batch, model = random_batch(20, 5), build(config).eval()
    odds = torch.exp(model.logits(batch)) * 0.1
    torch.testing.assert_close(model.predict(batch), odds / (1 + odds))


def test_calibration_of_sampled_labels_is_refused() -> None:
    with pytest.raises(ValueError, match="no click probability"):
        DeepFMConfig(fields=FIELDS, labels="sampled", negatives_kept=0.5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"fields": ()}, "at least one"),
        ({"fields": (Field(name="a"), Field(name="a"))}, "each name once"),
        ({"hidden": ()}, "one hidden layer"),
        ({"negatives_kept": 0.0}, "negatives_kept"),
        ({"labels": "clicks"}, "impression or sampled"),
    ],
)
def test_settings_out_of_range_are_named(change: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DeepFMConfig(**{"fields": FIELDS, **change})  # type: ignore[arg-type]  # wrong on purpose


def test_tables_and_columns_that_do_not_fit_are_named() -> None:
    config = DeepFMConfig(fields=FIELDS, width=4)
    with pytest.raises(ValueError, match="wanted those of the spaces user, item"):
        DeepFM(config, {"user": HashedEmbedding(5, 3, RowOptimizer("sgd"))})
    with pytest.raises(ValueError, match="4 columns of ids"):
        build(config).predict(random_batch(3, 4))
    with pytest.raises(ValueError, match="no labels"):
        build(config).loss(ClickBatch(torch.zeros(3, 5, dtype=torch.int64)))


@pytest.mark.parametrize("width", [4, 6])
def test_a_table_of_another_width_is_named(width: int) -> None:
    config = DeepFMConfig(fields=FIELDS, width=4)
    right, table = HashedEmbedding(5, 3, RowOptimizer("sgd")), CollisionlessEmbedding(TableConfig(width=width))
    message = f"the space 'item' has rows of width {width}; wanted 5, the vector's 4 and a weight"
    with pytest.raises(ValueError, match=message):
        DeepFM(config, {"user": right, "item": table})


@pytest.mark.parametrize("label", [-1.0, 0.5, 2.0, float("nan")])
def test_a_label_that_is_neither_0_nor_1_is_named_and_changes_nothing(label: float) -> None:
    model = DeepFM(DeepFMConfig(fields=FIELDS[:1]), {"user": CollisionlessEmbedding(TableConfig(width=17))})
    labels = torch.tensor([0.0, label, 1.0])
    with pytest.raises(ValueError, match=f"1 of 3 labels are neither 0 nor 1, the first is {label}"):
        model.loss(ClickBatch(torch.arange(3)[:, None], labels))
    assert model.gauges()["user"]["size"] == 0
    whole = torch.tensor([0, 1, 1])
    ids = torch.arange(3)[:, None]
    assert torch.equal(model.loss(ClickBatch(ids, whole)), model.loss(ClickBatch(ids, whole.float())))


def test_an_empty_batch_has_no_loss_and_no_predictions() -> None:
    model, batch = build(DeepFMConfig(fields=FIELDS, width=4)), random_batch(0, 5)
    with pytest.raises(ValueError, match="the batch has no examples"):
        model.loss(batch)
    assert model.eval().predict(batch).shape == (0,)


def test_without_collisions_a_hashed_table_trains_as_the_collisionless_one_does_to_the_last_bit() -> None:
    config, ids = DeepFMConfig(fields=FIELDS, width=4, hidden=(8,)), torch.arange(50)
    hashed = {space: HashedEmbedding(5, 1 << 20, RowOptimizer("adagrad"), seed=4) for space in config.spaces}
    exact = {
        space: CollisionlessEmbedding(TableConfig(width=5, optimizer=RowOptimizer("adagrad"), seed=9))
        for space in config.spaces
    }
    rows = rows_of(ids, 1 << 20, 4)
    assert len(torch.unique(rows)) == len(ids)
    for space, table in hashed.items():
        table._pages.write(rows, exact[space](ids).detach(), None, 0)
    predictions = []
    for tables in (hashed, exact):
        model = DeepFM(config, tables, seed=1)
        for number in range(10):
            torch.autograd.backward(model.loss(random_batch(300, 5, seed=number)))
            model.step_tables(0.1)
        predictions.append(model.eval().predict(random_batch(100, 5, seed=99)))
    assert torch.equal(*predictions)


def test_ids_that_come_in_scoring_get_no_row() -> None:
    config = DeepFMConfig(fields=FIELDS[:2], width=4, hidden=(8,))
    table = TableConfig(width=5, unknown="learned")
    model = DeepFM(config, {space: CollisionlessEmbedding(table) for space in config.spaces})
    model.loss(random_batch(30, 2))
    sizes = [part["size"] for part in model.gauges().values()]
    model.eval().predict(ClickBatch(torch.arange(1000, 1100).view(50, 2)))
    assert [part["size"] for part in model.gauges().values()] == sizes
    assert model.gauges()["user"]["unknown"] == 50
    learned = [model.tables[space].unknown for space in config.spaces]
    assert {id(vector) for vector in learned} <= {id(parameter) for parameter in model.dense_parameters()}


def test_rows_past_their_time_go_by_the_time_of_the_batches_and_late_batches_do_not_turn_it_back() -> None:
    config = DeepFMConfig(fields=(Field(name="user"),), width=4, hidden=(8,))
    model = DeepFM(config, {"user": CollisionlessEmbedding(TableConfig(width=5, ttl_s=60.0))})

    def train(user: int, second: int) -> None:
        ids, times = torch.full((3, 1), user), torch.full((3,), second * 1_000_000)
        torch.autograd.backward(model.loss(ClickBatch(ids, torch.ones(3), times=times)))
        model.step_tables(0.1)

    train(1, 1000)
    train(2, 1050)
    train(3, 1020)
    assert model.expire() == 0
    train(2, 1100)
    assert model.expire() == 1
    assert model.gauges()["user"]["size"] == 2
