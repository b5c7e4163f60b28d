from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from recsys.features.batches import JaggedBatch, TrainBatches, query_batches
from recsys.features.dataset import PreparedDataset
from recsys.features.sampling import Sampling
from tests.worlds import typed_world


def sequences_of(batch: JaggedBatch) -> list[list[int]]:
    return [part.tolist() for part in torch.split(batch.values, list(batch.lengths))]


def test_a_batch_holds_the_last_items_of_each_sequence_without_padding() -> None:
    batch = JaggedBatch.from_sequences([[1, 2, 3], [], [4]], times=[[10, 20, 30], [], [40]], max_len=2)
    assert batch.values.tolist() == [2, 3, 4]
    assert batch.offsets.tolist() == [0, 2, 2, 3]
    assert batch.lengths == (2, 0, 1)
    assert batch.times is not None
    assert batch.times.tolist() == [20, 30, 40]
    assert batch.max_len == 2
    assert JaggedBatch.from_sequences([[1, 2]], max_len=0).lengths == (0,)
    assert JaggedBatch.from_sequences([]).max_len == 0


def test_times_of_another_shape_are_refused() -> None:
    with pytest.raises(ValueError, match="times must have one value for each item"):
        JaggedBatch.from_sequences([[1, 2]], times=[[1]])
    with pytest.raises(ValueError, match="event_types must have one value for each item"):
        JaggedBatch.from_sequences([[1, 2]], event_types=[[1]])


def test_event_types_belong_to_their_events(tmp_path: Path) -> None:
    """Of shards and cuts, in training and in questions; a log without types gives none."""
    dataset = typed_world(tmp_path, users=30, shards=3)
    slices, queries = dataset.train_slices(), dataset.queries("test")
    batches = [(None, batch) for batch in TrainBatches(dataset, max_len=5, tokens_per_batch=64, seed=0).epoch(0)]
    batches += list(query_batches(dataset, queries, max_len=5))  # type: ignore[arg-type]  # with row numbers
    seen = 0
    for rows, batch in batches:
        assert batch.event_types is not None
        assert batch.users is not None
        types = torch.split(batch.event_types, list(batch.lengths))
        for place, user in enumerate(batch.users.tolist()):
            part, row = (
                (slices, int(np.flatnonzero(slices.user == user)[0])) if rows is None else (queries, rows[place])
            )
            shard = dataset.shards[part.shard[row]]
            assert shard.event_types is not None
            wanted = shard.event_types[part.start[row] : part.end[row]][-5:]
            assert types[place].tolist() == wanted.tolist()
            seen += len(set(wanted.tolist())) > 1
    assert seen > 30


def test_a_log_without_event_types_gives_none(circle: PreparedDataset) -> None:
    assert next(TrainBatches(circle, max_len=8, tokens_per_batch=64, seed=0).epoch(0)).event_types is None


def test_event_types_are_cut_with_their_items() -> None:
    batch = JaggedBatch.from_sequences([[1, 2, 3], [4]], event_types=[[7, 8, 9], [5]], max_len=2)
    assert batch.event_types is not None
    assert batch.event_types.tolist() == [8, 9, 5]


def test_an_epoch_holds_every_training_sequence_once(circle: PreparedDataset) -> None:
    batches = TrainBatches(circle, max_len=8, tokens_per_batch=64, seed=3)
    found = sorted(tuple(sequence) for batch in batches.epoch(0) for sequence in sequences_of(batch))
    slices = circle.train_slices()
    wanted = sorted(tuple(slices.gather(i)[0][-8:].tolist()) for i in range(len(slices)) if slices.lengths[i] > 1)
    assert found == wanted
    assert sum(map(len, wanted)) == batches.num_tokens


def test_no_batch_exceeds_the_token_budget_and_few_fall_far_below(circle: PreparedDataset) -> None:
    totals = [len(batch.values) for batch in TrainBatches(circle, max_len=8, tokens_per_batch=64, seed=3).epoch(1)]
    assert max(totals) <= 64
    assert all(total > 64 - 8 for total in totals[:-1])


def test_the_order_is_a_function_of_seed_epoch_and_step(circle: PreparedDataset) -> None:
    def run(seed: int, epoch: int, first: int = 0) -> list[list[int]]:
        batches = TrainBatches(circle, max_len=8, tokens_per_batch=64, seed=seed)
        return [batch.values.tolist() for batch in batches.epoch(epoch, first)]

    assert run(1, 0) == run(1, 0)
    assert run(1, 0) != run(1, 1)
    assert run(1, 0) != run(2, 0)
    assert run(1, 0)[3:] == run(1, 0, first=3)


def test_users_and_times_belong_to_their_sequences(circle: PreparedDataset) -> None:
    slices = circle.train_slices()
    by_user = {int(user): i for i, user in enumerate(slices.user)}
    for batch in TrainBatches(circle, max_len=100, tokens_per_batch=200, seed=0).epoch(0):
        assert batch.users is not None
        assert batch.times is not None
        times = torch.split(batch.times, list(batch.lengths))
        for user, sequence, stamps in zip(batch.users.tolist(), sequences_of(batch), times, strict=True):
            items, wanted = slices.gather(by_user[user])
            assert sequence == items.tolist()
            assert wanted is not None
            assert stamps.tolist() == wanted.tolist()


@pytest.mark.parametrize("budget", [16, 100, 10_000])
def test_every_question_is_asked_once_with_its_history_and_time(circle: PreparedDataset, budget: int) -> None:
    queries = circle.queries("test")
    asked: list[int] = []
    for rows, batch in query_batches(circle, queries, max_len=5, tokens_per_batch=budget):
        assert len(batch.values) <= max(budget, 5)
        assert batch.query_times is not None
        assert queries.query_time is not None
        assert batch.query_times.tolist() == queries.query_time[rows].tolist()
        for row, sequence in zip(rows.tolist(), sequences_of(batch), strict=True):
            assert sequence == queries.gather(row)[0][-5:].tolist()
        asked += rows.tolist()
    assert sorted(asked) == list(range(len(queries)))


def test_a_budget_below_one_sequence_is_refused(circle: PreparedDataset) -> None:
    with pytest.raises(ValueError, match="tokens_per_batch=7 is less than one sequence of max_len=8"):
        TrainBatches(circle, max_len=8, tokens_per_batch=7, seed=0)


def test_a_batch_moves_as_a_whole() -> None:
    made = JaggedBatch.from_sequences([[1, 2]], times=[[5, 6]], query_times=[7], users=[1], event_types=[[1, 2]])
    batch = replace(made, instances=torch.tensor([3])).to("meta")
    for tensor in (batch.values, batch.offsets, batch.times, batch.query_times, batch.users, batch.event_types):
        assert tensor is not None
        assert tensor.device == torch.device("meta")
    assert np.array_equal(batch.lengths, (2,))
    assert batch.instances is not None
    assert batch.instances.device == torch.device("cpu"), "masks are made on the host"


def test_an_epoch_holds_every_copy_of_every_window_once(circle: PreparedDataset) -> None:
    sampling = Sampling(window_stride=3, copies=4)
    batches = TrainBatches(circle, max_len=6, tokens_per_batch=64, seed=1, sampling=sampling)
    slices = circle.train_slices()
    wanted: list[tuple[int, list[int]]] = []
    for i in range(len(slices)):
        items, n = slices.gather(i)[0].tolist(), int(slices.lengths[i])
        begins = [0] if n <= 6 else sorted([*range(n - 6, 0, -3), 0])
        wanted += [(int(slices.user[i]), items[begin : begin + 6]) for begin in begins if n > 1]
    assert (batches.num_windows, batches.num_instances) == (len(wanted), 4 * len(wanted))
    assert len(wanted) > len(slices), "some users have more than one window"
    found: dict[int, tuple[int, list[int]]] = {}
    for batch in batches.epoch(0):
        assert batch.instances is not None
        assert batch.users is not None
        told = zip(batch.instances.tolist(), batch.users.tolist(), sequences_of(batch), strict=True)
        found |= {instance: (user, sequence) for instance, user, sequence in told}
    assert found == {4 * number + copy: window for number, window in enumerate(wanted) for copy in range(4)}
    assert batches.num_tokens == 4 * sum(len(sequence) for _, sequence in wanted)


def test_copies_are_shuffled_together(circle: PreparedDataset) -> None:
    batches = TrainBatches(circle, max_len=8, tokens_per_batch=64, seed=1, sampling=Sampling(copies=5))
    order = np.concatenate(batches.plan(0))
    window = order[: len(order) // 5] // 5
    assert len(np.unique(window)) < 0.8 * len(window), "the first fifth is no pass over the windows"
    assert np.concatenate(batches.plan(1)).tolist() != order.tolist()


def test_batches_of_a_number_of_sequences_ignore_their_tokens(circle: PreparedDataset) -> None:
    batches = TrainBatches(circle, max_len=8, tokens_per_batch=4, seed=0, sequences_per_batch=40)
    sizes = [len(batch.lengths) for batch in batches.epoch(0)]
    assert sizes == [40, 40, 40, 30]
    assert sorted(np.concatenate(batches.plan(0)).tolist()) == list(range(150))
