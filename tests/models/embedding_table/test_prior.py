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
            "popularity_of gave -1.0; wanted a number of at least 0, or NaN",
        ),
        (
            CategoryPrior(by_ten, 3, popularity_of=lambda ids: ids.double() + math.inf),
            "popularity_of gave inf; wanted a number of at least 0, or NaN",
        ),
        (
            CategoryPrior(by_ten, 3, popularity_of=lambda ids: ids[:, None]),
            r"popularity_of gave \(1, 1\) for 1 ids; wanted \(1,\)",
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


def fitted(kind: str) -> tuple[CollisionlessEmbedding, dict[str, Tensor]]:
    """A table whose prior was fitted, and the prior's state."""
    embedding = embedding_of(PRIORS[kind]())
    put(embedding, torch.arange(30), torch.randn(30, WIDTH, generator=torch.Generator().manual_seed(0)))
    embedding(torch.tensor([9, 31]))
    prior = embedding.table.prior
    assert prior is not None
    assert len(prior.state()) == 4
    return embedding, prior.state()


DAMAGED: list[tuple[str, str, Callable[[Tensor], Tensor], str]] = [
    (kind, name, damage, message)
    for kind, name in [("category", "means"), ("category", "line"), ("category", "logs")]
    + [("text", "map"), ("text", "middle"), ("text", "mean")]
    for damage, message in [
        (lambda value: value.float(), f"{name} is torch.float32; wanted torch.float64"),
        (lambda value: value[None], f"{name} has the shape"),
        (lambda value: value[:-1], "map has the shape" if kind == "text" else f"{name} has the shape"),
    ]
] + [
    (kind, "fitted_at", damage, message)
    for kind in PRIORS
    for damage, message in [
        (lambda value: value[:-1], r"fitted_at is torch.int64 of the shape \(1,\); wanted int64 \(2,\)"),
        (lambda value: value.double(), "fitted_at is torch.float64"),
        (lambda value: value * torch.tensor([0, 1]) - torch.tensor([2, 0]), "fitted_at holds -2 and 30; wanted a step"),
        (lambda value: value * torch.tensor([1, 0]) - torch.tensor([0, 1]), "fitted_at holds 1 and -1; wanted a step"),
    ]
]


@pytest.mark.parametrize(("kind", "name", "damage", "message"), DAMAGED)
def test_a_damaged_state_is_refused_by_name_and_nothing_changes(
    kind: str, name: str, damage: Callable[[Tensor], Tensor], message: str
) -> None:
    embedding, whole = fitted(kind)
    other = PRIORS[kind]()
    with pytest.raises(ValueError, match=f"^{message}"):
        other.load_state(whole | {name: damage(whole[name])})
    assert other.state().keys() == {"fitted_at"}
    assert other.state()["fitted_at"].tolist() == [-1, 0]
    state = embedding.table.state()
    with pytest.raises(ValueError, match=rf"^prior\.{message}"):
        embedding.table.load_state(state | {f"prior.{name}": damage(whole[name])})


@pytest.mark.parametrize("kind", sorted(PRIORS))
def test_a_part_that_is_missing_or_not_known_is_named(kind: str) -> None:
    _, whole = fitted(kind)
    for name in whole:
        with pytest.raises(ValueError, match=f"^{name} is missing; wanted"):
            PRIORS[kind]().load_state({part: value for part, value in whole.items() if part != name})
    with pytest.raises(ValueError, match="^else is not known; wanted"):
        PRIORS[kind]().load_state(whole | {"else": whole["fitted_at"].double()})


@pytest.mark.parametrize("kind", sorted(PRIORS))
def test_a_prior_that_was_never_fitted_is_loaded(kind: str) -> None:
    prior = PRIORS[kind]()
    _, whole = fitted(kind)
    prior.load_state(whole)
    prior.load_state(PRIORS[kind]().state())
    assert prior.state().keys() == {"fitted_at"}


@pytest.mark.parametrize(
    "popularity_of", [None, lambda ids: torch.full((len(ids),), math.nan), lambda ids: ids.double()]
)
def test_popularity_may_be_known_before_or_after_or_never(popularity_of: Any) -> None:
    _, whole = fitted("category")
    prior = CategoryPrior(by_ten, 4, popularity_of=popularity_of)
    prior.load_state(whole)
    assert ("line" in prior.state()) == (popularity_of is not None)
    prior.load_state({name: whole[name] for name in ("fitted_at", "means")})
    assert prior.state().keys() == {"fitted_at", "means"}


@pytest.mark.parametrize("kind", sorted(PRIORS))
def test_a_table_loads_what_it_saves_whatever_its_numbers(kind: str) -> None:
    embedding = embedding_of(PRIORS[kind]())
    put(embedding, torch.arange(30), torch.full((30, WIDTH), math.nan))
    embedding(torch.tensor([9, 31]))
    other = embedding_of(PRIORS[kind]())
    other.load_state_dict(embedding.state_dict())
    assert other.table.prior is not None
    assert other.table.prior.state().keys() == embedding.table.prior.state().keys()  # type: ignore[union-attr]  # put there above


@pytest.mark.parametrize("kind", sorted(PRIORS))
def test_a_state_of_rows_of_another_width_is_refused_before_anything_changes(kind: str) -> None:
    embedding, whole = fitted(kind)
    state = embedding.table.state()
    wider = PRIORS[kind]()
    made = CollisionlessEmbedding(TableConfig(width=WIDTH + 1, optimizer=RowOptimizer("sgd")), page_rows=8)
    made.table.prior = wider
    made.table.look_up(torch.arange(30))
    made.table.look_up(torch.tensor([9, 31]))
    held = embedding.table.state()
    with pytest.raises(
        ValueError, match=r"the state's prior was fitted to rows of 5 numbers; wanted 4, or none of the"
    ):
        embedding.table.load_state(state | {f"prior.{name}": value for name, value in wider.state().items()})
    assert all(torch.equal(held[name], value) for name, value in embedding.table.state().items())
    embedding.table.load_state({name: value for name, value in state.items() if not name.startswith("prior.")})
    assert whole.keys() == wider.state().keys()


def test_a_prior_whose_step_lies_ahead_is_fitted_anew() -> None:
    """As after the steps were renumbered."""
    embedding, whole = fitted("category")
    prior = embedding.table.prior
    assert prior is not None
    prior.load_state(whole | {"fitted_at": torch.tensor([10**12, 31])})
    embedding(torch.tensor([33]))
    assert prior.state()["fitted_at"].tolist() == [embedding.table.tick, 31]


def test_a_text_with_an_infinite_number_is_not_known() -> None:
    texts = torch.eye(40, 3)
    texts[7, 1] = math.inf
    embedding = embedding_of(TextPrior(lambda ids: texts[ids]))
    put(embedding, torch.arange(20), torch.ones(20, WIDTH))
    assert torch.isfinite(embedding(torch.tensor([30]))).all()
    other = TextPrior(lambda ids: texts[ids])
    other.load_state(embedding.table.prior.state())  # type: ignore[union-attr]  # put there above
    assert torch.equal(other._of(torch.tensor([7])), torch.zeros(1, WIDTH, dtype=torch.float64))


def test_text_vectors_of_another_size_than_the_fitted_are_named_and_the_remedy_helps() -> None:
    embedding, _ = fitted("text")
    embedding.table.prior.vector_of = lambda ids: torch.ones(len(ids), 3)  # type: ignore[union-attr]  # put there above
    with pytest.raises(ValueError, match=r"vector_of gave \(1, 3\) numbers; the prior was fitted to vectors of 2"):
        embedding(torch.tensor([34]))
    state = embedding.table.state()
    embedding.table.load_state({name: value for name, value in state.items() if not name.startswith("prior.")})
    embedding(torch.tensor([34]))
    assert embedding.table.prior.state()["middle"].shape == (3,)  # type: ignore[union-attr]  # put there above


@pytest.mark.parametrize("kind", sorted(PRIORS))
def test_without_its_tensors_a_prior_forgets_what_it_was_fitted_to(kind: str) -> None:
    embedding, _ = fitted(kind)
    state = embedding.table.state()
    embedding.table.load_state({name: value for name, value in state.items() if not name.startswith("prior.")})
    assert embedding.table.prior.state().keys() == {"fitted_at"}  # type: ignore[union-attr]  # put there above


def test_settings_out_of_range_are_refused() -> None:
    for wrong, message in (
        (lambda: CategoryPrior(by_ten, 0), "num_categories=0; wanted at least 1"),
        (lambda: CategoryPrior(by_ten, 1, smoothing=-1), "smoothing=-1; wanted at least 0"),
        (lambda: TextPrior(by_ten, ridge=0), "ridge=0; wanted above 0"),
        (lambda: TextPrior(by_ten, every=0), "every=0; wanted at least 1 step"),
    ):
        with pytest.raises(ValueError, match=message):
            wrong()
