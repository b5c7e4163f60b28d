"""Counting and chance: who gets a row."""

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
    ],
)
def test_what_is_no_admission_is_refused(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        AdmissionConfig(**settings)  # type: ignore[arg-type]  # wrong on purpose
