"""The examples of docs/serving.md against a real server."""

import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import pytest

from recsys.serving.state import RankingService

from .conftest import Client

PAGE = (Path(__file__).parents[2] / "docs" / "serving.md").read_text(encoding="utf-8")
BLOCK = r"```json\n(.*?)\n```"
EXAMPLES = re.findall(rf"### `POST (\S+)`.*?{BLOCK}\s+{BLOCK}", PAGE, flags=re.DOTALL)


def shape(value: Any) -> Any:
    """Names and types, numbers being one type; of a list the first entry."""
    if isinstance(value, dict):
        return {key: shape(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [shape(value[0])] if value else []
    return "number" if isinstance(value, int | float) and not isinstance(value, bool) else type(value).__name__


def test_three_endpoints_are_shown() -> None:
    assert [path for path, _, _ in EXAMPLES] == ["/v1/recommend", "/v1/rank", "/v1/feedback"]


@pytest.mark.parametrize(("path", "request_text", "answer_text"), EXAMPLES, ids=[path for path, _, _ in EXAMPLES])
def test_an_example_is_answered_as_shown(client: Client, path: str, request_text: str, answer_text: str) -> None:
    client.post("/v1/feedback", [{"user_id": "ann", "item_id": item} for item in (105, 110)])
    answer = client.post(path, json.loads(request_text))
    assert answer.status_code == 200, answer.text
    shown, got = json.loads(answer_text), answer.json()
    assert shape(got) == shape(shown)
    for name in ("why", "source", "user_id", "rejected", "accepted", "unknown"):
        assert got.get(name) == shown.get(name)


def test_the_rows_of_the_journal_are_as_shown(client: Client, service: RankingService) -> None:
    client.post(
        "/v1/feedback", {"user_id": "ann", "item_id": 117, "event_id": "a", "timestamp": "2025-06-15T12:00:00Z"}
    )
    client.post("/v1/recommend", {"user_id": "ann", "k": 2})
    event, impression = re.findall(BLOCK, PAGE, flags=re.DOTALL)[-2:]
    (stored,) = service._opened().read()
    assert shape(dataclasses.asdict(stored)) == shape(json.loads(event))
    (shown,) = service._opened().read_impressions()
    assert shape(dataclasses.asdict(shown)) == shape(json.loads(impression))
