"""Counting and chance: who gets a row."""

import math

import pytest
import torch

from recsys.models.embedding_table.admission import AdmissionConfig, ChanceAdmission, SlidingCounter, build_admission


def once(counter: SlidingCounter, *ids: int) -> list[int]:
    return counter.add(torch.tensor(ids), torch.ones(len(ids), dtype=torch.int64)).tolist()


def test_sightings_add_up_beyond_fifteen() -> None:
    counter = SlidingCounter(100, 4)
    for number in range(1, 41):
        assert once(counter, 5) == [number]
    assert counter.add(torch.tensor([5, 6]), torch.tensor([10, 3])).tolist() == [50, 3]


def test_an_id_is_forgotten_after_so_many_others_and_not_before() -> None:
    counter = SlidingCounter(8, 4)  # splits of two
    once(counter, 1)
    for other in range(100, 106):
        once(counter, other)
    assert once(counter, 1) == [2]
    for other in range(200, 206):
        once(counter, other)
    assert once(counter, 1) == [3]
    for other in range(300, 309):
        once(counter, other)
    assert once(counter, 1) == [1]


def test_the_count_comes_along_when_an_id_is_seen_again() -> None:
    counter = SlidingCounter(8, 4)
    for number in range(1, 60):
        once(counter, 1000 + number)
        assert once(counter, 7) == [number]


def test_no_call_counts_more_ids_than_the_capacity() -> None:
    generator = torch.Generator().manual_seed(3)
    counter, order = SlidingCounter(12, 3), list[int]()  # splits of four
    for size in (1, 3, 2, 11, 12, 13, 40, 5, 1, 1, 200, 4):
        ids = torch.randperm(300, generator=generator)[:size]
        totals = once(counter, *ids.tolist())
        state = counter.state()
        assert len(state["ids"]) <= 12
        assert max(state["sizes"].tolist()) <= 4
        kept = set(state["ids"].tolist())
        order += ids.tolist()
        assert set(order[-8:]) <= kept, "of the last 8 sightings every id is counted"
        assert min(totals) >= 1


def test_what_a_call_sees_is_put_down_as_id_by_id() -> None:
    generator = torch.Generator().manual_seed(4)
    at_once, single = SlidingCounter(12, 3), SlidingCounter(12, 3)
    for _ in range(200):
        ids = torch.randperm(30, generator=generator)[: int(torch.randint(1, 20, (1,), generator=generator))]
        once(at_once, *ids.tolist())
        for id_ in ids.tolist():
            once(single, id_)
        ours, theirs = at_once.state(), single.state()
        assert torch.equal(ours["ids"], theirs["ids"])
        assert torch.equal(ours["sizes"], theirs["sizes"])


def test_a_window_that_is_overfull_as_older_states_and_merged_ones_is_taken_and_shrinks() -> None:
    counter = SlidingCounter(6, 3)
    counter.load_state({"ids": torch.arange(9), "counts": torch.arange(9) + 1, "sizes": torch.tensor([2, 2, 5])})
    assert once(counter, 8, 1, 100) == [10, 3, 1]
    for id_ in range(200, 206):
        once(counter, id_)
    assert counter.state()["sizes"].tolist() == [2, 2, 1]


def test_a_counter_survives_a_reload() -> None:
    one, other = SlidingCounter(8, 4), SlidingCounter(8, 4)
    generator = torch.Generator().manual_seed(0)
    stream = [torch.unique(torch.randint(0, 12, (3,), generator=generator)) for _ in range(60)]
    for ids in stream[:30]:
        one.add(ids, torch.ones_like(ids))
    other.load_state(one.state())
    for ids in stream[30:]:
        assert torch.equal(one.add(ids, torch.ones_like(ids)), other.add(ids, torch.ones_like(ids)))


@pytest.mark.parametrize("threshold", [1, 4, 30])
def test_by_threshold_sightings_95_percent_are_in(threshold: int) -> None:
    admission = ChanceAdmission(threshold, seed=0)
    waiting = torch.arange(20_000)
    for _ in range(threshold):
        waiting = waiting[~admission.admit(waiting, torch.ones_like(waiting))]
    assert 1 - len(waiting) / 20_000 == pytest.approx(0.95, abs=0.006)
    at_once = ChanceAdmission(threshold, seed=1).admit(torch.arange(20_000), torch.full((20_000,), threshold))
    assert float(at_once.double().mean()) == pytest.approx(0.95, abs=0.006)


def test_a_threshold_of_one_lets_all_in() -> None:
    assert build_admission(AdmissionConfig(mode="threshold", threshold=1), 0) is None


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"mode": "some"}, "admission mode 'some'; wanted all, threshold or probability"),
        ({"threshold": 0}, "admission threshold=0; wanted at least 1"),
        ({"threshold": 5}, "admission threshold=5 with mode=all; set mode=threshold, or probability"),
        ({"splits": 1}, "admission splits=1; wanted at least 2"),
        ({"capacity": 3}, "admission capacity=3; wanted at least splits=4"),
        ({"mode": "threshold", "threshold": math.nan}, "admission threshold=nan; wanted a whole number"),
        ({"mode": "threshold", "threshold": 2.5}, r"admission threshold=2\.5; wanted a whole number"),
        ({"mode": "threshold", "threshold": True}, "admission threshold=True; wanted a whole number"),
        ({"mode": "probability", "threshold": math.inf}, "admission threshold=inf; wanted a whole number"),
        ({"splits": 2.5}, r"admission splits=2\.5; wanted a whole number"),
        ({"capacity": "9"}, "admission capacity='9'; wanted a whole number"),
    ],
)
def test_what_is_no_admission_is_refused(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        AdmissionConfig(**settings)  # type: ignore[arg-type]  # wrong on purpose
