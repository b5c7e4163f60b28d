import json
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks import id_stream
from benchmarks.support.id_world import Births, IdStream, IdWorldConfig, simulate
from recsys.pipelines.evaluation.click_metrics import auc

SMALL = IdWorldConfig(
    seed=3, days=5, events_an_hour=100, users=Births(100, 3.0, float("inf")), items=Births(80, 1.0, 0.5)
)


@pytest.fixture(scope="module")
def stream() -> IdStream:
    return simulate(SMALL)


def test_clicks_are_as_likely_as_the_world_says(stream: IdStream) -> None:
    assert stream.batch.labels is not None
    labels = stream.batch.labels.numpy()
    for part in np.array_split(np.argsort(stream.truth), 10):
        deviation = np.sqrt((stream.truth[part] * (1 - stream.truth[part])).sum()) / len(part)
        assert abs(labels[part].mean() - stream.truth[part].mean()) < 4 * deviation
    assert auc(stream.truth, labels) > auc(id_stream.click_rates(stream), labels) > 0.52


def test_time_runs_on_and_ids_come_and_go(stream: IdStream) -> None:
    assert stream.batch.times is not None
    assert bool((stream.batch.times[1:] >= stream.batch.times[:-1]).all())
    days = [set(part.tolist()) for part in torch.chunk(stream.batch.ids[:, 1], SMALL.days)]
    assert len(days[4] & days[0]) < 0.2 * len(days[4])
    assert len(days[4] & days[3]) > 0.2 * len(days[4])


def test_the_same_seed_is_the_same_world(stream: IdStream) -> None:
    assert torch.equal(simulate(SMALL).batch.ids, stream.batch.ids)


def test_an_items_click_rate_knows_only_the_hours_before(stream: IdStream) -> None:
    assert stream.batch.labels is not None
    rates, items, labels = id_stream.click_rates(stream), stream.batch.ids[:, 1], stream.batch.labels
    for event in (0, 99, 100, 5_017, 11_999):
        before = items[: event // 100 * 100] == items[event]
        clicks = float(labels[: event // 100 * 100][before].sum())
        assert rates[event] == pytest.approx((clicks + 5 * float(labels.mean())) / (int(before.sum()) + 5))


@pytest.mark.slow
def test_every_variant_keeps_what_it_says_and_a_second_call_runs_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(id_stream, "PAGE_ROWS", 16)
    words = ["--seeds", "1", "--days", "4", "--events-an-hour", "150", "--ttl-days", "1"]
    words += ["--out", str(tmp_path / "runs"), "--results", str(tmp_path / "results")]
    id_stream.main([*words, "--picture", str(tmp_path / "stream.svg")])
    rows = {}
    for line in (tmp_path / "runs" / "runs.jsonl").read_text().splitlines():
        row = json.loads(line)
        rows[row["key"]["variant"]] = row
    assert list(rows) == [*id_stream.REFERENCES, *id_stream.VARIANTS]
    unbounded, expiry, lru = rows["unbounded"], rows["expiry"], rows["LRU, rows of expiry"]
    both, admission = rows["expiry and admission"], rows["admission"]
    for space in id_stream.SPACES:
        assert unbounded["rows"][space][-1] == unbounded["ids"][space]
        assert expiry["rows"][space][-1] < 0.7 * unbounded["rows"][space][-1]
        assert both["rows"][space][-1] < expiry["rows"][space][-1]
        assert admission["rows"][space][-1] < 0.7 * unbounded["rows"][space][-1]
        assert lru["rows"][space][-1] == expiry["rows"][space][-1]
        for name, of in (("hashed, bytes of unbounded", unbounded), ("hashed, bytes of expiry", expiry)):
            assert 0 <= of["bytes"][space][-1] - rows[name]["bytes"][space][-1] < 136
    assert unbounded["unknown"][-1] < expiry["unknown"][-1] < both["unknown"][-1]
    found = json.loads((tmp_path / "results" / "id_stream.jsonl").read_text())
    assert [line["variant"] for line in found["variants"]] == list(rows)
    assert "| hashed, bytes of expiry |" in capsys.readouterr().out
    assert (tmp_path / "stream.svg").read_text(encoding="utf-8").count("<path") > 20
    monkeypatch.setattr(id_stream, "measure", None)
    id_stream.main(words)
