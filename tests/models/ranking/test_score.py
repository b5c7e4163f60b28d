import numpy as np
import torch

from recsys.features.batches import JaggedBatch
from recsys.models.floors import Popularity
from recsys.models.ranking.score import scores_of
from recsys.models.sasrec import SASRec, SASRecConfig


def model_and_batch(rows: int = 5) -> tuple[SASRec, JaggedBatch]:
    torch.manual_seed(0)
    model = SASRec(SASRecConfig(d_model=16, num_heads=2, num_layers=1, max_len=10), num_items=30).eval()
    rng = np.random.default_rng(0)
    return model, JaggedBatch.from_sequences([rng.integers(1, 31, n) for n in rng.integers(1, 10, rows)])


def test_a_models_score_is_the_dot_product_of_state_and_item() -> None:
    model, batch = model_and_batch()
    scores = scores_of(model, batch)
    with torch.no_grad():
        wanted = torch.einsum("bd,vd->bv", model.encode(batch), model.item_vectors())
    assert (scores[:, 0] == -torch.inf).all()
    torch.testing.assert_close(scores[:, 1:], wanted[:, 1:])


def test_a_scorer_speaks_for_itself() -> None:
    _, batch = model_and_batch(3)
    floor = Popularity(np.array([0, 3, 2, 1]))
    assert scores_of(floor, batch).tolist() == [[-torch.inf, 3, 2, 1]] * 3


def test_kept_vectors_give_the_same_scores_and_take_no_gradient() -> None:
    model, batch = model_and_batch()
    vectors = model.item_vectors().detach()
    scores = scores_of(model, batch, vectors)
    assert torch.equal(scores, scores_of(model, batch))
    assert not scores.requires_grad
    assert scores.dtype == torch.float32


def test_double_vectors_give_each_row_the_same_score_alone_and_in_company() -> None:
    model, batch = model_and_batch(40)
    with torch.no_grad():
        states = model.encode(batch)
    model.encode = lambda batch: states[: len(batch.lengths)]  # type: ignore[method-assign]  # the same states, so that the product alone is compared
    vectors = model.item_vectors().detach().double()
    alone = JaggedBatch.from_sequences([[1]])
    assert torch.equal(scores_of(model, alone, vectors), scores_of(model, batch, vectors)[:1])
