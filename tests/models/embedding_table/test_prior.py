"""Where new rows start."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from recsys.models.embedding_table import CategoryPrior, CollisionlessEmbedding, RowOptimizer, TableConfig, TextPrior

WIDTH = 4


def by_ten(ids: Tensor) -> Tensor:
    """The category of 0..9 is 0, of 10..19 is 1, …; negative ids have none."""
    return torch.where(ids < 0, -1, ids // 10)


def embedding_of(prior: Any = None, noise: float = 0.0, **settings: Any) -> CollisionlessEmbedding:
    made = CollisionlessEmbedding(
        TableConfig(width=WIDTH, optimizer=RowOptimizer("sgd"), init_std=noise, **settings), page_rows=8
    )
    made.table.prior = prior
    return made


def put(embedding: CollisionlessEmbedding, ids: Tensor, vectors: Tensor) -> None:
    rows = embedding.table.look_up(ids)
    embedding.table.pages.vectors.put(rows, vectors)
    embedding.step(0.0)


def test_a_new_row_is_the_mean_of_its_category_and_noise() -> None:
    vectors = torch.randn(20, WIDTH)
    quiet = embedding_of(CategoryPrior(by_ten, 3, smoothing=0.0))
    put(quiet, torch.cat([torch.arange(5), torch.arange(10, 25)]), vectors)
    torch.testing.assert_close(quiet(torch.tensor([7]))[0], vectors[:5].mean(0))
    torch.testing.assert_close(quiet(torch.tensor([29]))[0], vectors[15:].mean(0))
    assert torch.equal(quiet(torch.tensor([-4]))[0], torch.zeros(WIDTH)), "nothing is known of it"
    loud, plain = embedding_of(CategoryPrior(by_ten, 3, smoothing=0.0), noise=0.1), embedding_of(noise=0.1)
    put(loud, torch.arange(5), vectors[:5])
    torch.testing.assert_close(loud(torch.tensor([7])) - vectors[:5].mean(0), plain(torch.tensor([7])))


def test_smoothing_draws_a_small_category_to_the_mean_of_all() -> None:
    vectors = torch.randn(11, WIDTH)
    embedding = embedding_of(CategoryPrior(by_ten, 3, smoothing=2.0))
    put(embedding, torch.arange(11), vectors)
    mean = vectors.mean(0)
    torch.testing.assert_close(embedding(torch.tensor([15]))[0], (vectors[10] + 2 * mean) / 3)
    torch.testing.assert_close(embedding(torch.tensor([25]))[0], mean)  # a category without a row


def test_an_id_of_several_categories_starts_between_them() -> None:
    def both(ids: Tensor) -> Tensor:
        return torch.stack([by_ten(ids), torch.where(ids == 99, 0, -1)], dim=1).clamp(max=1)

    vectors = torch.randn(20, WIDTH)
    embedding = embedding_of(CategoryPrior(both, 2, smoothing=0.0))
    put(embedding, torch.arange(20), vectors)
    wanted = (vectors[:10].mean(0) + vectors[10:].mean(0)) / 2
    torch.testing.assert_close(embedding(torch.tensor([99]))[0], wanted)


def test_the_sums_follow_the_rows_that_live_and_are_taken_seldom() -> None:
    asked: list[int] = []

    def counted(ids: Tensor) -> Tensor:
        asked.append(len(ids))
        return by_ten(ids)

    embedding = embedding_of(CategoryPrior(counted, 40, smoothing=0.0, every=10))
    put(embedding, torch.arange(100), torch.ones(100, WIDTH))
    asked.clear()
    for new in range(100, 105):
        embedding(torch.tensor([new]))
        embedding.step(0.0)
    assert sorted(asked) == [1, 1, 1, 1, 1, 100], "all rows were read once"
    embedding.erase(torch.arange(50))
    put(embedding, torch.arange(50, 60), torch.full((10, WIDTH), 5.0))
    for _ in range(10):
        embedding.step(0.0)
    torch.testing.assert_close(embedding(torch.tensor([55, 9]))[0], torch.full((WIDTH,), 5.0))
    fresh = embedding(torch.tensor([305])).detach()
    assert 1.0 < float(fresh[0, 0]) < 5.0, "a category without a row is the mean of the rows that live"


def test_a_bias_starts_at_the_popularity_that_is_known_or_its_categorys() -> None:
    popularity = torch.tensor([0.0, 3.0, 15.0, 63.0] * 5 + [float("nan")] * 80)
    popularity[30] = 7.0
    embedding = embedding_of(
        CategoryPrior(by_ten, 10, smoothing=0.0, popularity_of=lambda ids: popularity[ids], bias_column=3)
    )
    ids = torch.arange(20)
    vectors = torch.randn(20, WIDTH)
    vectors[:, 3] = 0.5 * popularity[:20].log1p() - 2.0
    put(embedding, ids, vectors)
    starts = embedding(torch.tensor([30, 39, 19])).detach()
    assert float(starts[0, 3]) == pytest.approx(0.5 * math.log(8) - 2.0, abs=1e-5)
    assert float(starts[1, 3]) == pytest.approx(float(vectors[:, 3].mean()), abs=1e-5)
    torch.testing.assert_close(starts[0, :3], vectors[:, :3].mean(0))


def test_a_text_vector_says_where_a_row_starts() -> None:
    draw = torch.Generator().manual_seed(0)
    texts = torch.randn(300, 6, generator=draw)
    texts[7] = torch.nan
    turn = torch.randn(6, WIDTH, generator=draw)
    embedding = embedding_of(TextPrior(lambda ids: texts[ids], ridge=1e-4))
    put(embedding, torch.arange(100, 300), texts[100:] @ turn + 3.0)
    torch.testing.assert_close(embedding(torch.arange(5)), texts[:5] @ turn + 3.0, rtol=1e-3, atol=1e-3)
    assert torch.equal(embedding(torch.tensor([7]))[0], torch.zeros(WIDTH))


@pytest.mark.parametrize("kind", ["category", "text"])
def test_a_table_goes_on_from_its_state_with_the_same_starts(kind: str) -> None:
    texts = torch.randn(300, 6, generator=torch.Generator().manual_seed(0))

    def made() -> CollisionlessEmbedding:
        prior = CategoryPrior(by_ten, 30) if kind == "category" else TextPrior(lambda ids: texts[ids])
        return embedding_of(prior, noise=0.1)

    def trained(embedding: CollisionlessEmbedding, steps: range) -> None:
        for step in steps:
            ids = torch.arange(7 * step, 7 * step + 12)
            embedding(ids).pow(2).sum().backward()
            embedding.step(0.1)

    whole, part, other = made(), made(), made()
    trained(whole, range(30))
    trained(part, range(17))
    other.load_state_dict(part.state_dict())
    trained(other, range(17, 30))
    states = whole.state_dict(), other.state_dict()
    assert [key for key in states[0] if "clock" not in key and not torch.equal(states[0][key], states[1][key])] == []


@pytest.mark.parametrize(
    ("prior", "message"),
    [
        (CategoryPrior(lambda ids: ids, 3), "category_of gave 9; wanted -1 to 2"),
        (CategoryPrior(lambda ids: ids.float(), 3), r"category_of gave \(1,\) of torch.float32 for 1 ids; wanted"),
        (
            CategoryPrior(by_ten, 3, popularity_of=lambda ids: -ids.double() - 1),
            "popularity_of gave -1.0; wanted at least 0, or NaN",
        ),
    ],
)
def test_what_is_told_of_ids_is_checked(prior: CategoryPrior, message: str) -> None:
    embedding = embedding_of(prior)
    embedding(torch.tensor([0]))
    with pytest.raises(ValueError, match=message):
        embedding(torch.tensor([9]))


@pytest.mark.parametrize("starts", [(1, 3), (2, WIDTH), (1, 1), (WIDTH,)])
def test_starts_of_another_shape_are_refused_and_the_id_has_no_row(
    starts: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    embedding = embedding_of(TextPrior(by_ten))
    monkeypatch.setattr(TextPrior, "starts", lambda *_: torch.zeros(starts))
    with pytest.raises(ValueError, match="the prior gave .* numbers for new rows; wanted"):
        embedding(torch.tensor([9]))
    assert embedding.table.find(torch.tensor([9])).tolist() == [-1]


def texts_of(ids: Tensor) -> Tensor:
    return torch.stack([ids.double(), ids.double() ** 2], 1)


PRIORS: dict[str, Callable[[], CategoryPrior | TextPrior]] = {
    "category": lambda: CategoryPrior(by_ten, 4, popularity_of=lambda ids: ids.double()),
    "text": lambda: TextPrior(texts_of),
}


@pytest.mark.parametrize("kind", sorted(PRIORS))
def test_a_damaged_state_is_refused_by_name_and_nothing_changes(kind: str) -> None:
    embedding = embedding_of(PRIORS[kind]())
    put(embedding, torch.arange(30), torch.randn(30, WIDTH, generator=torch.Generator().manual_seed(0)))
    embedding(torch.tensor([9, 31]))
    whole, other = embedding.table.prior.state(), PRIORS[kind]()  # type: ignore[union-attr]  # put there above
    assert len(whole) == 4
    before = other.state()
    for name, value in whole.items():
        wrong = [value[:-1], value[None], value.float(), torch.full_like(value, -2)]
        wrong += [] if name == "fitted_at" else [value.clone().fill_(math.nan)]
        for damaged in wrong if name == "fitted_at" else wrong[:3] + wrong[4:]:
            is_free = damaged.shape[1:] == value.shape[1:] and damaged.dtype == value.dtype and name == "mean"
            with pytest.raises(ValueError, match="mean" if is_free else name):
                other.load_state(whole | {name: damaged})
    for state in ({}, {"fitted_at": whole["fitted_at"], "else": whole["fitted_at"].double()}):
        with pytest.raises(ValueError, match=r"fitted_at is missing|else is there; wanted"):
            other.load_state(state)
    for name in whole:
        with pytest.raises(ValueError, match=rf"{name} is missing|is there; wanted .*{name}"):
            other.load_state({part: value for part, value in whole.items() if part != name})
    assert other.state().keys() == before.keys()
    assert torch.equal(other.state()["fitted_at"], before["fitted_at"])
    other.load_state(whole)
    assert other.state().keys() == whole.keys()


def test_settings_out_of_range_are_refused() -> None:
    for wrong, message in (
        (lambda: CategoryPrior(by_ten, 0), "num_categories=0; wanted at least 1"),
        (lambda: CategoryPrior(by_ten, 1, smoothing=-1), "smoothing=-1; wanted at least 0"),
        (lambda: TextPrior(by_ten, ridge=0), "ridge=0; wanted above 0"),
        (lambda: TextPrior(by_ten, every=0), "every=0; wanted at least 1 step"),
    ):
        with pytest.raises(ValueError, match=message):
            wrong()
