"""Jagged batches as torchrec's tensors and back."""

from dataclasses import fields, replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

pytest.importorskip("torchrec", reason="torchrec is not installed: pip install -e '.[torchrec]'")
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")

from torchrec import EmbeddingCollection, EmbeddingConfig, JaggedTensor, KeyedJaggedTensor  # noqa: E402  # where torchrec is installed

from recsys.features.batches import JaggedBatch  # noqa: E402  # where torchrec is installed
from recsys.features.torchrec_batches import (  # noqa: E402  # where torchrec is installed
    from_jagged_tensor,
    from_keyed_jagged_tensor,
    to_jagged_tensor,
    to_keyed_jagged_tensor,
)

INT64 = st.integers(-(2**63), 2**63 - 1)


def assert_same(found: JaggedBatch, wanted: JaggedBatch) -> None:
    for field in fields(JaggedBatch):
        mine, theirs = getattr(found, field.name), getattr(wanted, field.name)
        if isinstance(theirs, Tensor):
            assert mine.dtype == theirs.dtype == torch.int64
            assert mine.tolist() == theirs.tolist(), field.name
        else:
            assert mine == theirs, field.name


@st.composite
def batches(draw: st.DrawFn) -> JaggedBatch:
    """Any columns, sequences that are empty, times of all of int64."""
    sequences = draw(st.lists(st.lists(INT64, max_size=4), max_size=5))

    def of_events() -> list[list[int]]:
        return [draw(st.lists(INT64, min_size=len(s), max_size=len(s))) for s in sequences]

    def of_sequences() -> list[int]:
        return draw(st.lists(INT64, min_size=len(sequences), max_size=len(sequences)))

    batch = JaggedBatch.from_sequences(
        sequences,
        times=of_events() if draw(st.booleans()) else None,
        event_types=of_events() if draw(st.booleans()) else None,
        query_times=of_sequences() if draw(st.booleans()) else None,
        users=of_sequences() if draw(st.booleans()) else None,
    )
    return replace(batch, instances=torch.tensor(of_sequences(), dtype=torch.int64)) if draw(st.booleans()) else batch


@settings(max_examples=60, deadline=None)
@given(batch=batches())
def test_a_batch_comes_back_as_it_went(batch: JaggedBatch) -> None:
    assert_same(from_keyed_jagged_tensor(to_keyed_jagged_tensor(batch)), batch)
    alone = JaggedBatch(batch.values, batch.offsets, batch.lengths)
    assert_same(from_jagged_tensor(to_jagged_tensor(batch)), alone)


BATCH = JaggedBatch.from_sequences(
    [[3, 4], [], [5]], times=[[10, 20], [], [2**60 + 1]], query_times=[30, 40, 50], users=[1, 2, 0]
)


def test_features_have_the_columns_names_lengths_and_values() -> None:
    features = to_keyed_jagged_tensor(BATCH)
    assert features.keys() == ["items", "times", "query_times", "users"]
    assert features.stride() == 3
    parts = features.to_dict()
    assert parts["items"].to_dense()[0].tolist() == [3, 4]
    assert parts["times"].values().tolist() == [10, 20, 2**60 + 1]
    assert parts["times"].lengths().tolist() == [2, 0, 1]
    assert parts["users"].lengths().tolist() == [1, 1, 1]
    assert to_keyed_jagged_tensor(BATCH, ["users", "items"]).keys() == ["users", "items"]


def test_an_embedding_collection_of_torchrec_reads_the_features() -> None:
    config = EmbeddingConfig(name="table", embedding_dim=2, num_embeddings=6, feature_names=["items"])
    collection = EmbeddingCollection(tables=[config])
    found = collection(to_keyed_jagged_tensor(BATCH))["items"]
    assert torch.equal(found.values(), collection.embeddings["table"].weight[BATCH.values])
    assert found.lengths().tolist() == list(BATCH.lengths)


def test_a_jagged_tensor_shares_the_batchs_memory() -> None:
    items = to_jagged_tensor(BATCH)
    assert items.values().data_ptr() == BATCH.values.data_ptr()
    assert items.offsets().data_ptr() == BATCH.offsets.data_ptr()
    assert to_jagged_tensor(BATCH, "times").values().tolist() == [10, 20, 2**60 + 1]


def features(**parts: tuple[list[int], list[int]]) -> KeyedJaggedTensor:
    return KeyedJaggedTensor.from_jt_dict(
        {
            name: JaggedTensor(torch.tensor(values), lengths=torch.tensor(lengths))
            for name, (values, lengths) in parts.items()
        }
    )


@pytest.mark.parametrize(
    ("found", "line"),
    [
        (features(times=([1], [1])), "'items' is missing"),
        (features(items=([1], [1]), prices=([1], [1])), "'prices' is none of items, times"),
        (features(items=([1, 2], [1, 1]), times=([1, 2], [2, 0])), "as many elements as 'items' in each sequence"),
        (features(items=([1, 2], [1, 1]), users=([1, 2], [2, 0])), "one element of each sequence"),
    ],
)
def test_features_that_are_no_batch_are_refused(found: KeyedJaggedTensor, line: str) -> None:
    with pytest.raises(ValueError, match=line):
        from_keyed_jagged_tensor(found)


def test_weights_and_fractions_are_refused() -> None:
    weighted = KeyedJaggedTensor(["items"], torch.tensor([1]), lengths=torch.tensor([1]), weights=torch.ones(1))
    with pytest.raises(ValueError, match="weights, for which a batch has no place"):
        from_keyed_jagged_tensor(weighted)
    with pytest.raises(ValueError, match="weights, for which a batch has no place"):
        from_jagged_tensor(weighted["items"])
    with pytest.raises(ValueError, match="'items' is torch.float32; wanted int64"):
        from_jagged_tensor(JaggedTensor(torch.tensor([1.5]), lengths=torch.tensor([1])))


def test_a_column_that_is_not_there_is_refused() -> None:
    with pytest.raises(ValueError, match="no column 'event_types'; it has items, times, query_times, users"):
        to_keyed_jagged_tensor(BATCH, ["event_types"])
    with pytest.raises(ValueError, match="events have no column 'users'"):
        to_jagged_tensor(BATCH, "users")
