import json
import shutil
from pathlib import Path

import pytest

from recsys.errors import BundleError, DataError
from recsys.models import bundle as bundles
from recsys.serving.schemas import RecommendRequest
from recsys.serving.settings import ServingSettings
from recsys.serving.state import RankingService

from .conftest import Clock


def service_of(bundle: Path, journal: Path, **settings: int) -> RankingService:
    return RankingService(ServingSettings(bundle=str(bundle), journal=journal, **settings))


def test_a_bundle_that_answers_otherwise_than_stored_is_not_served(bundle_path: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(bundle_path, tmp_path / "copy"))
    golden = json.loads((copy / "golden.json").read_text())
    golden[1]["scores"][0] += 0.5
    (copy / "golden.json").write_text(json.dumps(golden))
    bundles._write_manifest(copy)
    service = service_of(copy, tmp_path / "journal")
    with pytest.raises(BundleError, match="answers otherwise here than where it was made .*golden request 1"):
        service.start()
    assert service.readiness().status == "failed"
    assert "golden request 1" in str(service.readiness().error)
    assert not (tmp_path / "journal").exists()


def test_a_damaged_journal_is_the_reason_of_a_failed_start(bundle_path: Path, tmp_path: Path) -> None:
    (tmp_path / "journal.db").write_bytes(b"x" * 5000)
    service = service_of(bundle_path, tmp_path)
    with pytest.raises(DataError, match="damaged, or no journal"):
        service.start()
    assert "damaged" in str(service.fault())


def test_a_restart_answers_as_before(bundle_path: Path, tmp_path: Path) -> None:
    answers = []
    for _ in range(2):
        service = service_of(bundle_path, tmp_path)
        service.start()
        service.feedback(
            [{"user_id": 1, "item_id": 105, "event_id": "a"}, {"user_id": 1, "item_id": 110, "event_id": "b"}]
        )
        answers.append(service.recommend(RecommendRequest(user_id=1), "r"))
        service.close()
    assert answers[0].items == answers[1].items
    assert answers[0].source == "model"


def test_a_service_closed_while_it_starts_leaves_the_journal_free(bundle_path: Path, tmp_path: Path) -> None:
    service = service_of(bundle_path, tmp_path)
    service.close()
    service.start()
    other = service_of(bundle_path, tmp_path)
    other.start()
    other.close()


def test_only_the_last_events_of_a_very_long_history_are_read(bundle_path: Path, tmp_path: Path, clock: Clock) -> None:
    settings = ServingSettings(bundle=str(bundle_path), journal=tmp_path, max_history_events=2)
    service = RankingService(settings, clock)
    service.start()
    service.feedback([{"user_id": 1, "item_id": item} for item in (101, 105, 110)])
    answer = service.recommend(RecommendRequest(user_id=1, k=30), "r")
    assert "2 known of 2 events" in answer.why
    assert 101 in [item.item_id for item in answer.items]
    service.close()


@pytest.mark.parametrize("name", ["max_body_bytes", "max_in_flight", "max_history_events", "commit_timeout_ms"])
def test_a_bound_below_one_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(ValueError, match=f"{name}=0: wanted at least 1"):
        service_of(tmp_path, tmp_path, **{name: 0})
