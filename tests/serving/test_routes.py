import asyncio
import json
import sqlite3
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from recsys.models.bundle import load_bundle
from recsys.models.ranking.ranker import History, Ranker
from recsys.serving.app import create_app
from recsys.serving.settings import ServingSettings
from recsys.serving.state import RankingService

from .conftest import ITEMS, NOW_US, Client, Clock

DAY_US = 86_400_000_000


def items_of(answer: httpx.Response) -> list[int]:
    assert answer.status_code == 200, answer.text
    return [item["item_id"] for item in answer.json()["items"]]


def scores_of(answer: httpx.Response) -> dict[int, float]:
    return {item["item_id"]: item["score"] for item in answer.json()["items"]}


def click(client: Client, user_id: int | str, *item_ids: int, **fields: object) -> None:
    answer = client.post("/v1/feedback", [{"user_id": user_id, "item_id": item, **fields} for item in item_ids])
    assert answer.json()["accepted"] == len(item_ids), answer.text


def test_a_click_is_in_the_history_and_out_of_the_candidates_of_the_next_request(client: Client) -> None:
    click(client, "ann", 105, 110)
    before = client.post("/v1/recommend", {"user_id": "ann", "k": 28})
    assert len(items_of(before)) == 26
    top = items_of(before)[0]
    click(client, "ann", top)
    after = client.post("/v1/recommend", {"user_id": "ann", "k": 28})
    assert top not in items_of(after)
    assert set(items_of(after)) == set(items_of(before)) - {top}
    moved = [item for item in items_of(after) if scores_of(after)[item] != scores_of(before)[item]]
    assert len(moved) > 20
    assert "last 3 known of 3 events of user ann" in after.json()["why"]


def test_served_scores_are_those_of_the_ranker_on_the_same_history(client: Client, bundle_path: Path) -> None:
    click(client, "ann", 105, 110, 101)
    (expected,) = Ranker(load_bundle(bundle_path)).recommend([History([105, 110, 101])], 28)
    by_user = client.get("/v1/recommend/ann?k=28").json()
    by_sequence = client.post("/v1/recommend", {"sequence": [105, 110, 101], "k": 28}).json()
    ranked = client.post("/v1/rank", {"user_id": "ann", "candidates": ITEMS[:28]}).json()
    for answer in (by_user, by_sequence):
        assert [item["item_id"] for item in answer["items"]] == expected.item_ids
        assert [item["score"] for item in answer["items"]] == expected.scores
        assert [item["rank"] for item in answer["items"]] == list(range(1, 26))
    by_item = {item["item_id"]: item["score"] for item in ranked["items"]}
    assert {item: by_item[item] for item in expected.item_ids} == dict(
        zip(expected.item_ids, expected.scores, strict=True)
    )


def test_an_answer_says_who_ranked_and_why(client: Client, service: RankingService) -> None:
    answer = client.post("/v1/recommend", {"sequence": [105, 999, "x"], "k": 2}, headers={"X-Request-ID": "abc-1"})
    body = answer.json()
    version = service.version().bundle_version
    assert answer.headers["x-request-id"] == body["request_id"] == "abc-1"
    assert (body["model"], body["version"], body["source"]) == ("sasrec", version, "model")
    assert body["unknown"] == [999, "x"]
    assert body["why"] == "ranked by sasrec from the last 1 known of 3 events of the sequence"
    assert body["query_time"] == NOW_US
    assert len(body["items"]) == 2


def test_a_new_user_gets_the_popularity_list_marked_so(client: Client) -> None:
    answer = client.get("/v1/recommend/nobody?k=3")
    assert items_of(answer) == [101, 102, 103]
    assert answer.json()["source"] == "popularity"
    assert answer.json()["why"] == "user nobody has no event in the journal: the most popular items"
    click(client, "eve", 777)
    answer = client.get("/v1/recommend/eve?k=3")
    assert (answer.json()["source"], answer.json()["unknown"]) == ("popularity", [777])
    assert answer.json()["why"] == "the model knows none of the 1 items of user eve: the most popular items"
    answer = client.post("/v1/recommend", {"sequence": [], "k": 1})
    assert answer.json()["why"] == "the sequence is empty: the most popular items"


def test_items_that_nobody_bought_are_never_recommended(client: Client) -> None:
    for body in ({"sequence": [105]}, {"user_id": "nobody"}):
        assert set(items_of(client.post("/v1/recommend", body | {"k": 1000}))) <= set(ITEMS[:28])


def test_exclude_and_exclude_seen_do_what_they_say(client: Client) -> None:
    everything = items_of(client.post("/v1/recommend", {"sequence": [105, 106], "k": 28, "exclude_seen": False}))
    assert set(everything) == set(ITEMS[:28])
    unseen = items_of(client.post("/v1/recommend", {"sequence": [105, 106], "k": 28}))
    assert unseen == [item for item in everything if item not in (105, 106)]
    rest = items_of(client.post("/v1/recommend", {"sequence": [105, 106], "k": 28, "exclude": [101, "102", 9]}))
    assert rest == [item for item in unseen if item not in (101, 102)]


def test_rank_puts_unknown_candidates_last(client: Client) -> None:
    answer = client.post("/v1/rank", {"sequence": [105], "candidates": [999, 103, 130, 101, "y"]}).json()
    assert [item["item_id"] for item in answer["items"]][2:] == [999, 130, "y"]
    assert [item["score"] for item in answer["items"]][2:] == [None] * 3
    assert answer["items"][0]["score"] > answer["items"][1]["score"]


def test_a_query_time_asks_the_journal_as_it_was(client: Client, clock: Clock) -> None:
    click(client, "ann", 105, timestamp=NOW_US - 2 * DAY_US)
    click(client, "ann", 110, timestamp="2025-06-15T15:06:40+00:00")
    early = client.post("/v1/recommend", {"user_id": "ann", "query_time": NOW_US - DAY_US})
    assert 110 in items_of(client.post("/v1/recommend", {"sequence": [105], "k": 28}))
    assert items_of(early) == items_of(client.post("/v1/recommend", {"sequence": [105]}))
    assert early.json()["query_time"] == NOW_US - DAY_US
    late = client.post("/v1/recommend", {"user_id": "ann"})
    assert items_of(late) == items_of(client.post("/v1/recommend", {"sequence": [105, 110]}))
    clock.time_us += 1
    assert client.get("/v1/recommend/ann").json()["query_time"] == NOW_US + 1


def test_the_question_is_never_older_than_the_last_event(client: Client) -> None:
    click(client, "ann", 105, timestamp=NOW_US + 30_000_000)
    assert client.get("/v1/recommend/ann").json()["query_time"] == NOW_US + 30_000_000


def test_everything_shown_is_in_the_journal_before_the_answer(client: Client, service: RankingService) -> None:
    click(client, 7, 105)
    shown = client.post("/v1/recommend", {"user_id": 7, "k": 3}).json()
    ranked = client.post("/v1/rank", {"sequence": [105], "candidates": [101, 999]}).json()
    popular = client.get("/v1/recommend/new?k=2").json()
    journal = service._opened()
    stored = [row.impression for row in journal.read_impressions()]
    assert [(row.kind, row.user_id, row.source) for row in stored] == [
        ("recommend", 7, "model"),
        ("rank", None, "model"),
        ("recommend", "new", "popularity"),
    ]
    for row, answer in zip(stored, (shown, ranked, popular), strict=True):
        assert row.request_id == answer["request_id"]
        assert list(row.item_ids) == [item["item_id"] for item in answer["items"]]
        assert list(row.scores) == [item["score"] for item in answer["items"]]
        assert (row.model, row.model_version, row.query_us) == ("sasrec", answer["version"], answer["query_time"])


def test_integer_and_text_users_are_the_same_user(client: Client) -> None:
    click(client, 7, 105)
    click(client, "7", 106)
    assert client.get("/v1/recommend/7").json()["source"] == "model"
    assert "2 known of 2" in client.post("/v1/recommend", {"user_id": 7}).json()["why"]


def test_a_user_id_may_hold_slashes_and_any_character(client: Client) -> None:
    click(client, "a/b ü?", 105)
    assert client.get("/v1/recommend/a%2Fb%20%C3%BC%3F").json()["user_id"] == "a/b ü?"
    assert client.get("/v1/recommend/a%2Fb%20%C3%BC%3F").json()["source"] == "model"


def test_a_user_that_is_no_utf8_is_refused_and_never_taken_for_another(client: Client) -> None:
    answer = client.get("/v1/recommend/%ff")
    assert (answer.status_code, answer.json()["error"][:17]) == (400, "user_id: no UTF-8")
    assert client.get("/v1/recommend/%EF%BF%BD").json()["user_id"] == "\ufffd"


def test_what_an_address_asks_is_as_strict_as_a_body(client: Client) -> None:
    answer = client.get("/v1/recommend/ann?kk=3")
    assert answer.status_code == 422
    assert answer.json() == {"error": "query.kk: Extra inputs are not permitted"}
    for k in ("0", "1001", "x"):
        answer = client.get(f"/v1/recommend/ann?k={k}")
        assert answer.status_code == 422
        assert answer.json()["error"].startswith("query.k: Input should be")


def test_feedback_takes_one_event_or_a_list_and_counts_what_became_of_them(client: Client) -> None:
    one = {"user_id": 1, "item_id": 105, "event_id": "e1", "weight": 2, "session_id": "s", "request_id": "r"}
    answer = client.post("/v1/feedback", one)
    assert answer.json() == {"accepted": 1, "duplicates": 0, "rejected": [], "durable": True}
    mixed = [one, {"user_id": 1}, one | {"item_id": 106}, {"user_id": 1, "item_id": 107, "colour": "red"}]
    answer = client.post("/v1/feedback", [*mixed, {"user_id": 1, "item_id": 108}, "nonsense"])
    body = answer.json()
    assert (answer.status_code, body["accepted"], body["duplicates"]) == (200, 1, 1)
    assert [entry["index"] for entry in body["rejected"]] == [1, 2, 3, 5]
    reasons = [entry["reason"] for entry in body["rejected"]]
    assert reasons[0] == "item_id: Field required"
    assert reasons[1] == "event_id is already used for another event; give each event an id of its own"
    assert reasons[2] == "colour: Extra inputs are not permitted"
    assert client.post("/v1/feedback", []).json()["accepted"] == 0


def test_feedback_of_bad_events_alone_is_refused(client: Client, service: RankingService) -> None:
    answer = client.post("/v1/feedback", {"user_id": 1, "item_id": None})
    assert answer.status_code == 422
    assert answer.json()["error"].startswith("no event was stored; event 0: item_id: ")
    assert answer.json()["rejected"][0]["index"] == 0
    assert service._opened().read() == []


def test_a_repeated_feedback_with_a_time_is_a_duplicate(client: Client) -> None:
    event = {"user_id": 1, "item_id": 105, "timestamp": NOW_US - 5}
    assert client.post("/v1/feedback", event).json()["accepted"] == 1
    assert client.post("/v1/feedback", event).json()["duplicates"] == 1


@pytest.mark.parametrize(
    ("path", "body", "message"),
    [
        ("/v1/recommend", {}, "give either user_id or sequence"),
        ("/v1/recommend", {"user_id": 1, "sequence": [1]}, "give either user_id or sequence"),
        ("/v1/recommend", {"user_id": 1, "k": 0}, "k: Input should be greater than or equal to 1"),
        ("/v1/recommend", {"user_id": 1, "k": 1001}, "k: Input should be less than or equal to 1000"),
        ("/v1/recommend", {"user_id": 1, "k": "5"}, "k: Input should be a valid integer"),
        ("/v1/recommend", {"user_id": 1, "n": 5}, "n: Extra inputs are not permitted"),
        ("/v1/recommend", {"user_id": True}, "user_id: Input should be a valid integer"),
        ("/v1/recommend", {"user_id": ""}, "user_id: 0 characters long, wanted 1 to 1024"),
        ("/v1/recommend", {"user_id": 2**63}, "user_id: 9223372036854775808: beyond 64 bits; send it as text"),
        ("/v1/recommend", {"sequence": [1, ""]}, "sequence.1: 0 characters long"),
        ("/v1/recommend", {"user_id": 1, "strategy": 1}, "strategy: Extra inputs are not permitted"),
        ("/v1/recommend", {"user_id": 1, "int": 1}, "int: Extra inputs are not permitted"),
        ("/v1/recommend", {"user_id": 1, "body": 1}, "body: Extra inputs are not permitted"),
        ("/v1/recommend", {"sequence": [1.5]}, "sequence.0: Input should be a valid integer"),
        ("/v1/recommend", {"sequence": [1] * 10_001}, "sequence: List should have at most 10000 items"),
        ("/v1/recommend", {"user_id": 1, "query_time": 1_750_000_000}, "send microseconds since 1970"),
        ("/v1/recommend", {"user_id": 1, "query_time": 2**70}, "lies outside 1973-03-03"),
        ("/v1/recommend", {"user_id": 1, "query_time": 1_750_000_000_000_000_000}, "send microseconds since 1970"),
        ("/v1/recommend", {"user_id": 1, "query_time": "2025-01-01"}, "has no offset; append Z for UTC"),
        ("/v1/recommend", {"user_id": 1, "query_time": "soon"}, "'soon' is no time; send ISO 8601"),
        ("/v1/recommend", {"user_id": 1, "query_time": "0001-01-01T00:00:00+14:00"}, "lies outside 1973-03-03"),
        ("/v1/recommend", {"user_id": 1, "query_time": "1970-01-01T00:00:00Z"}, "lies outside 1973-03-03"),
        ("/v1/recommend", {"user_id": 1, "query_time": "9999-12-31T23:59:59-14:00"}, "lies outside 1973-03-03"),
        ("/v1/feedback", {"user_id": 1, "item_id": 1, "interest": 5}, "interest: Extra inputs are not permitted"),
        ("/v1/feedback", {"user_id": 1, "item_id": ""}, "event 0: item_id: 0 characters long"),
        ("/v1/rank", {"user_id": 1}, "candidates: Field required"),
        ("/v1/rank", {"user_id": 1, "candidates": []}, "candidates: List should have at least 1 item"),
        ("/v1/rank", {"user_id": 1, "candidates": [12, "12"]}, "candidates: '12' is listed twice"),
        ("/v1/feedback", {"user_id": 1, "item_id": 1, "event_type": ""}, "event_type=''"),
        ("/v1/feedback", {"user_id": 1, "item_id": 1, "timestamp": 5}, "5 lies outside 1973-03-03"),
    ],
)
def test_what_is_wrong_with_a_body_is_said_in_one_line(client: Client, path: str, body: object, message: str) -> None:
    answer = client.post(path, body)
    assert answer.status_code == 422
    assert message in answer.json()["error"]
    assert "\n" not in answer.json()["error"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "the body is empty; send JSON"),
        (b"{", "the body is no JSON (at character 1)"),
        (b'{"user_id":', "the body is no JSON (at character 11)"),
        (b"\xff\xfe", "the body is no JSON (at character 0)"),
        (b'{"user_id": "\xff"}', "the body is no JSON (no utf-8 at byte 13); send UTF-8"),
        (b"[" * 100_000, "the body is nested too deeply; send it flat"),
        (b'{"user_id": ' + b"9" * 5_000 + b"}", "the body holds an integer with too many digits; send it as text"),
    ],
)
def test_a_body_that_is_no_json_is_the_callers_fault(client: Client, content: bytes, message: str) -> None:
    for path in ("/v1/recommend", "/v1/feedback"):
        answer = client.request("POST", path, content=content, headers={"content-type": "application/json"})
        assert answer.status_code in (400, 422)
        assert answer.json() == {"error": message}


FIELDS = ["user_id", "item_id", "sequence", "k", "candidates", "timestamp", "exclude", "weight", "query_time"]
JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(FIELDS), inner, max_size=4),
    max_leaves=8,
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(JSON_VALUES)
def test_no_body_is_an_error_of_the_server(client: Client, body: object) -> None:
    content = json.dumps(body).encode()
    for path in ("/v1/recommend", "/v1/rank", "/v1/feedback"):
        answer = client.request("POST", path, content=content, headers={"content-type": "application/json"})
        assert answer.status_code in (200, 400, 422), answer.text
        assert answer.status_code == 200 or "error" in answer.json()


def test_a_body_without_its_type_is_told_the_header_to_send(client: Client, service: RankingService) -> None:
    content = b'{"user_id": 1, "item_id": 105}'
    for headers in ({}, {"content-type": "application/x-www-form-urlencoded"}):
        for path in ("/v1/recommend", "/v1/feedback"):
            answer = client.request("POST", path, content=content, headers=headers)
            assert answer.status_code == 415
            assert "wanted application/json" in answer.json()["error"]
    assert service._opened().read() == []


def test_a_body_over_the_bound_is_refused_with_or_without_its_length(client: Client) -> None:
    async def parts() -> Any:
        for _ in range(6):
            yield b" " * (1 << 20)

    for content in (b" " * (5 << 20), parts()):
        answer = client.request("POST", "/v1/feedback", content=content, headers={"content-type": "application/json"})
        assert answer.status_code == 413
        assert answer.json() == {"error": "the body is longer than 4194304 bytes; send it in parts"}


def test_too_many_events_are_refused_whole(client: Client, service: RankingService) -> None:
    answer = client.post("/v1/feedback", [{"user_id": 1, "item_id": 1}] * 10_001)
    assert answer.status_code == 400
    assert answer.json() == {"error": "10001 events in one request, at most 10000; send them in parts"}
    assert service._opened().read() == []


def test_a_bad_request_id_is_refused_and_a_missing_one_is_made(client: Client) -> None:
    answer = client.get("/health/live", headers={"X-Request-ID": "two words"})
    assert answer.status_code == 400
    assert answer.json()["error"].startswith("X-Request-ID: ")
    assert len(client.get("/health/live").headers["x-request-id"]) == 32


def test_an_unknown_path_or_method_points_to_the_documentation(client: Client) -> None:
    assert client.get("/v2/x").json() == {"error": "GET /v2/x: no such endpoint; see /docs"}
    assert client.get("/v1/rank").status_code == 405
    assert client.get("/v1/recommend/").status_code in (404, 422)


def test_the_documentation_names_every_endpoint_and_the_feedback_event(client: Client) -> None:
    document = client.get("/openapi.json").json()
    assert set(document["paths"]) == {
        "/v1/recommend",
        "/v1/recommend/{user_id}",
        "/v1/rank",
        "/v1/feedback",
        "/health/live",
        "/health/ready",
        "/version",
    }
    body = document["paths"]["/v1/feedback"]["post"]["requestBody"]["content"]["application/json"]["schema"]
    assert "event_id" in body["anyOf"][0]["properties"]
    assert client.get("/docs").status_code == 200


def test_version_names_the_package_the_bundle_and_the_journal(client: Client, service: RankingService) -> None:
    body = client.get("/version").json()
    assert body["model"] == "sasrec"
    assert body["items"] == 30
    assert body["data"]["data_hash"] == "abc"
    assert body["journal"] == service._opened().writer


def test_before_the_start_everything_but_health_is_answered_503(
    bundle_path: Path, tmp_path: Path, runner: asyncio.Runner
) -> None:
    service = RankingService(ServingSettings(bundle=str(bundle_path), journal=tmp_path / "j"))
    client = Client(create_app(service), runner)
    assert client.get("/health/live").status_code == 200
    answer = client.get("/health/ready")
    assert (answer.status_code, answer.json()) == (503, {"status": "starting", "error": "the bundle is being loaded"})
    assert client.get("/v1/recommend/1").json() == {"error": "the bundle is being loaded"}
    assert client.get("/version").json()["model"] is None
    service.start()
    assert client.get("/health/ready").json() == {"status": "ready"}
    assert "connection" not in client.get("/v1/recommend/1").headers
    service.drain()
    for path in ("/health/ready", "/v1/recommend/1", "/v2/none"):
        assert client.get(path).headers["connection"] == "close"
    answer = client.get("/health/ready")
    assert (answer.status_code, answer.json()["status"]) == (503, "draining")
    assert client.get("/v1/recommend/1").status_code == 200
    service.close()


def test_a_poisoned_journal_makes_the_server_not_ready_and_nothing_is_claimed(
    client: Client, service: RankingService
) -> None:
    writer = service._opened()._writer
    assert writer is not None
    with pytest.raises(Exception, match="no such table"):
        writer.run(lambda connection: connection.execute("INSERT INTO missing VALUES (1)"))
    answer = client.post("/v1/feedback", {"user_id": 1, "item_id": 105})
    assert answer.status_code == 503
    assert "nothing is retried" in answer.json()["error"]
    assert client.get("/v1/recommend/1").status_code == 503
    ready = client.get("/health/ready")
    assert (ready.status_code, ready.json()["status"]) == (503, "failed")


def test_a_journal_damaged_in_the_middle_makes_the_server_not_ready(
    client: Client, service: RankingService, tmp_path: Path
) -> None:
    click(client, "ann", *ITEMS * 20)
    assert len(service._opened().read()) == 600
    path = tmp_path / "journal" / "journal.db"
    writer = service._opened()._writer
    assert writer is not None
    writer.run(lambda _: None, truncates=True)  # the log is emptied into the file
    # By another process, as closing a handle here would drop SQLite's locks.
    program = "import sys; f = open(sys.argv[1], 'r+b'); f.seek(8192); f.write(b'\\xf5' * (int(sys.argv[2]) - 8192))"
    subprocess.run([sys.executable, "-c", program, str(path), str(path.stat().st_size)], check=True)
    service._opened()._close_readers()  # a page in a reader's cache is still whole
    assert client.post("/v1/recommend", {"user_id": "ann"}).status_code == 503
    ready = client.get("/health/ready")
    assert (ready.status_code, ready.json()["status"]) == (503, "failed")
    assert "damaged" in ready.json()["error"]
    assert client.post("/v1/feedback", {"user_id": 1, "item_id": 105}).status_code == 503


def test_more_requests_than_the_bound_are_told_to_come_again(
    bundle_path: Path, tmp_path: Path, runner: asyncio.Runner
) -> None:
    service = RankingService(ServingSettings(bundle=str(bundle_path), journal=tmp_path / "j", max_in_flight=2))
    service.start()
    app = create_app(service)
    writer = service._opened()._writer
    assert writer is not None
    gate, is_blocked = threading.Event(), threading.Event()

    def block(_: sqlite3.Connection) -> None:
        is_blocked.set()
        gate.wait()

    blocker = threading.Thread(target=writer.run, args=(block,))
    blocker.start()
    is_blocked.wait()

    async def flood() -> tuple[httpx.Response, list[httpx.Response], httpx.Response]:
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            waiting = [asyncio.create_task(client.get("/v1/recommend/1")) for _ in range(2)]
            await asyncio.sleep(0.1)
            refused = await client.get("/v1/recommend/1")
            health = await client.get("/health/ready")
            gate.set()
            return refused, list(await asyncio.gather(*waiting)), health

    refused, answered, health = runner.run(flood())
    blocker.join()
    assert (refused.status_code, refused.headers["retry-after"]) == (503, "1")
    assert refused.json() == {"error": "2 requests are being answered; try again"}
    assert [answer.status_code for answer in answered] == [200, 200]
    assert health.status_code == 200
    service.close()


def test_an_error_of_ours_is_one_line_with_the_request_to_look_for(
    service: RankingService, client: Client, caplog: pytest.LogCaptureFixture
) -> None:
    service._ranker = None  # what only a bug of ours could do
    answer = client.get("/v1/recommend/1", headers={"X-Request-ID": "find-me"})
    assert answer.status_code == 500
    assert answer.json() == {"error": "an error of the server, logged under request find-me"}
    assert answer.headers["x-request-id"] == "find-me"
    assert "find-me" in caplog.text
