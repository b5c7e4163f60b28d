import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import torch
from fastapi import FastAPI

from recsys.features.vocabulary import Vocabulary
from recsys.models import registry
from recsys.models.bundle import save_bundle
from recsys.serving.app import create_app
from recsys.serving.settings import ServingSettings
from recsys.serving.state import RankingService

CONFIG = {"d_model": 16, "num_layers": 1, "num_heads": 2, "d_ff": 16, "max_len": 20}
ITEMS = list(range(101, 131))  # the first is the most popular one; 129 and 130 were never bought
NOW_US = 1_750_000_000_000_000


class Clock:
    """A clock that moves only when it is told to."""

    def __init__(self) -> None:
        self.time_us = NOW_US

    def __call__(self) -> int:
        return self.time_us


class Client:
    """Requests to an app without a network, one after another."""

    def __init__(self, app: FastAPI, runner: asyncio.Runner) -> None:
        self._runner = runner
        transport = httpx.ASGITransport(app, raise_app_exceptions=False)
        self._client = httpx.AsyncClient(transport=transport, base_url="http://test")

    def request(self, method: str, path: str, **fields: Any) -> httpx.Response:
        return self._runner.run(self._client.request(method, path, **fields))

    def get(self, path: str, **fields: Any) -> httpx.Response:
        return self.request("GET", path, **fields)

    def post(self, path: str, body: object, **fields: Any) -> httpx.Response:
        return self.request("POST", path, json=body, **fields)


@pytest.fixture(scope="session")
def bundle_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A SASRec with random weights over 30 items."""
    torch.manual_seed(3)
    return save_bundle(
        tmp_path_factory.mktemp("served") / "bundle",
        model=registry.build("sasrec", CONFIG, len(ITEMS)),
        name="sasrec",
        config=CONFIG,
        items=Vocabulary.from_ids(ITEMS),
        popularity=np.array([0, *range(28, 0, -1), 0, 0]),
        metrics={},
        data={"data_hash": "abc"},
        golden_histories=[[101], [105, 102, 120], []],
    )


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def service(bundle_path: Path, tmp_path: Path, clock: Clock) -> Iterator[RankingService]:
    settings = ServingSettings(bundle=str(bundle_path), journal=tmp_path / "journal")
    started = RankingService(settings, clock)
    started.start()
    yield started
    started.close()


@pytest.fixture
def runner() -> Iterator[asyncio.Runner]:
    with asyncio.Runner() as opened:
        yield opened


@pytest.fixture
def client(service: RankingService, runner: asyncio.Runner) -> Client:
    return Client(create_app(service), runner)
