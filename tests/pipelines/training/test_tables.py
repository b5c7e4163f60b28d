"""What a run writes down of its model's tables."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from recsys.features.dataset import PreparedDataset
from recsys.kernels.row_pages import RowOptimizer
from recsys.models.deepfm import DeepFM, DeepFMConfig, Field
from recsys.models.embedding_table import CollisionlessEmbedding, TableConfig
from recsys.models.hashed_embedding import HashedEmbedding
from recsys.pipelines.run_log import RunLog
from recsys.pipelines.training import train
from recsys.pipelines.training.tables import gauges_of, log_tables
from tests.pipelines.training.small import config_of, events_of

COUNTS = {"inserted", "not_admitted", "refused", "evicted", "expired", "erased", "unknown"}


def test_every_epoch_tells_the_gauges_of_the_table(circle: PreparedDataset, tmp_path: Path) -> None:
    config = config_of(circle, epochs=3, validate_every=2, patience=None)
    config = replace(config, model={**config.model, "inputs": {"embedding": "table"}})
    observed: list[dict[str, Any]] = []
    train(config, tmp_path / "run", observed.append)
    tables = events_of(tmp_path / "run", "tables")
    assert [event["epoch"] for event in tables] == [0, 1, 2]
    assert [event["step"] for event in tables] == [event["step"] for event in events_of(tmp_path / "run", "checkpoint")]
    assert {f"item.rows.{key}" for key in COUNTS | {"size", "bytes", "load"}} <= tables[-1].keys()
    assert tables[-1]["item.rows.size"] == tables[-1]["item.rows.inserted"] == circle.num_items
    assert tables[-1]["item.rows.bytes"] > 4 * 16 * circle.num_items
    assert [event for event in observed if event["event"] == "tables"] == tables
    assert events_of(tmp_path / "run", "warning") == []


def test_a_model_without_a_table_tells_none(circle: PreparedDataset, tmp_path: Path) -> None:
    train(config_of(circle, epochs=1), tmp_path / "run")
    assert events_of(tmp_path / "run", "tables") == []


def test_a_table_that_refuses_ids_is_warned_of_once_over_resumes_too(tmp_path: Path) -> None:
    full, roomy = (CollisionlessEmbedding(TableConfig(width=2, capacity=size)) for size in (3, 8))
    module = nn.ModuleDict({"full": full, "roomy": roomy})
    log, told = RunLog(tmp_path / "log.jsonl", lambda event: None), []  # noqa: ARG005  # nobody watches
    for step, ids in enumerate([[1, 2, 3], [4, 5], [6]]):
        full(torch.tensor(ids)), roomy(torch.tensor(ids))
        log_tables(module, log, step, 0)
        told.append(len(events_of(tmp_path, "warning")))
    assert told == [0, 1, 1]
    resumed: list[dict[str, Any]] = []
    log_tables(module, RunLog(tmp_path / "log.jsonl", resumed.append), 3, 1)
    assert [event["event"] for event in resumed] == ["tables"]
    (warning,) = events_of(tmp_path, "warning")
    assert warning["step"] == 1
    assert warning["message"].startswith("full is full: new ids find no room")
    refused = [(event["full.refused"], event["roomy.refused"]) for event in events_of(tmp_path, "tables")]
    assert refused == [(0, 0), (2, 0), (3, 0), (3, 0)]


def test_gauges_are_those_of_each_table_once() -> None:
    config = DeepFMConfig(fields=(Field(name="user"), Field(name="item")), width=4)
    hashed = HashedEmbedding(5, 10, RowOptimizer("sgd"))
    tables = {"user": hashed, "item": CollisionlessEmbedding(TableConfig(width=5))}
    found = gauges_of(DeepFM(config, tables))
    assert found.keys() == {"tables.user", "tables.item"}
    assert found["tables.user"] == hashed.gauges()
