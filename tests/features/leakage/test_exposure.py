"""What a declared leaky protocol trains on of the future, counted by the definition."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from recsys.features.dataset import PreparedDataset
from recsys.features.leakage import leakage_report
from recsys.features.leakage.blocks import blocks
from recsys.features.prepare import PrepareConfig, SplitConfig, prepare

DAY = 86_400


def _prepare(folder: Path, shards: int, **split: Any) -> PreparedDataset:
    rows = [(u, (u * 7 + n * n) % 40, 1_500_000_000 + (u * 3 + n * 5) * DAY) for u in range(12) for n in range(10)]
    (folder / "log.csv").write_text("user,item,ts\n" + "".join(f"{u},{i},{t}\n" for u, i, t in rows))
    return prepare(folder / "log.csv", folder / "data", PrepareConfig(split=SplitConfig(**split), shards=shards))


@pytest.mark.parametrize("protocol", ["loo", "loo-novalid", "ratio"])
def test_what_a_leaky_protocol_sees_is_counted_by_definition(protocol: str, tmp_path: Path) -> None:
    dataset = _prepare(tmp_path, 2, protocol=protocol)
    report, slices, queries = leakage_report(dataset), dataset.train_slices(), dataset.queries("test")
    train = [(int(slices.user[i]), int(t)) for i in range(len(slices)) for t in slices.gather(i)[1]]  # type: ignore[union-attr]  # order is time
    assert queries.query_time is not None
    asked = list(zip(queries.user.tolist(), queries.query_time.tolist(), strict=True))
    after = [any(t > when and user != who for who, when in asked) for user, t in train]
    later = [sum(t > when for _, t in train) / len(train) for _, when in asked]
    assert report["declared_leaky"] is True
    assert report["test"]["training_share_after_a_target"] == pytest.approx(np.mean(after), abs=1e-6)
    assert report["test"]["mean_training_share_after_target"] == pytest.approx(np.mean(later), abs=1e-6)
    assert 0 < np.mean(later) < 1


def test_targets_that_share_their_time_with_the_event_before_are_counted(tmp_path: Path) -> None:
    lines = ["user,item,ts"]
    lines += [f"tied,{item},{1_500_000_000 + time}" for item, time in enumerate([0, 10, 20, 30, 30])]
    lines += [f"twice,{item},{1_500_000_000 + time}" for item, time in [(1, 0), (2, 10), (3, 20), (4, 30), (4, 30)]]
    lines += [f"clean{n},{item},{1_500_000_000 + 10 * item}" for n in range(2) for item in range(5)]
    (tmp_path / "log.csv").write_text("\n".join(lines) + "\n")
    report = leakage_report(
        prepare(tmp_path / "log.csv", tmp_path / "data", PrepareConfig(split=SplitConfig(protocol="loo")))
    )
    assert (report["test"]["tied_targets"], report["test"]["duplicated_targets"]) == (0.5, 0.25)
    assert (report["valid"]["tied_targets"], report["valid"]["duplicated_targets"]) == (0, 0)


def test_without_times_the_report_says_that_it_cannot_know(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("1 2 3 4\n2 3 4 5\n")
    dataset = prepare(tmp_path / "a.txt", tmp_path / "data", PrepareConfig())
    assert leakage_report(dataset) == {"declared_leaky": True, "times_known": False}


@pytest.mark.parametrize("events", [1, 7, 25, 1000])
@pytest.mark.parametrize("protocol", ["loo", "ratio", "time"])
def test_blocks_hold_every_event_once_and_know_its_part(protocol: str, events: int, tmp_path: Path) -> None:
    dataset = _prepare(tmp_path, 3, protocol=protocol)
    found, parts = [], []
    for block in blocks(dataset, events):
        found.append(block.items)
        parts.append(block.parts())
        assert len(block.items) <= max(events, block.lengths.max())
        assert [block.owner(place) for place in range(len(block.items))] == np.repeat(
            block.users, block.lengths
        ).tolist()
    wanted = []
    for shard in dataset.shards:
        for row, length in enumerate(np.diff(shard.offsets).tolist()):
            place = np.arange(length)
            wanted.append((place >= shard.train_end[row]).astype(int) + (place >= shard.valid_end[row]))
    assert np.concatenate(found).tolist() == np.concatenate([shard.items for shard in dataset.shards]).tolist()
    assert np.concatenate(parts).tolist() == np.concatenate(wanted).tolist()
