import json
from pathlib import Path

import pytest

from recsys.cli import main


@pytest.fixture(autouse=True)
def _no_data_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RECSYS_DATA", raising=False)


def error(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    capsys.readouterr()
    assert main(["data", "fetch", *words]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    return captured.err.splitlines()[-1]


def test_every_set_is_listed_with_its_terms(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "fetch", "--list", "--json"]) == 0
    listed = {one["name"]: one for one in json.loads(capsys.readouterr().out)["sets"]}
    assert {"ml-100k", "ml-1m", "ml-20m", "amazon-beauty", "amazon-sports", "amazon-toys"} <= set(listed)
    assert listed["ml-1m"]["checksum"] == "published"
    assert "no commercial use" in listed["ml-1m"]["terms"]
    assert listed["amazon-2023-books"]["checksum"] == "first use"


def test_bad_input_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = ["--out", str(tmp_path / "ml")]
    assert "NAME is missing" in error(capsys)
    assert "did you mean 'ml-1m'" in error(capsys, "ml1m", *out)
    assert "add --accept-terms" in error(capsys, "ml-1m", *out)
    assert "http:// or https://" in error(capsys, "ml-1m", *out, "--accept-terms", "--url", "ftp://x/ml-1m.zip")


def test_a_folder_of_recsys_data_is_used_and_the_next_command_is_printed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "all of it" / "ml-100k"
    folder.mkdir(parents=True)
    (folder / "u.data").write_text("1\t2\t3\t4\n")
    monkeypatch.setenv("RECSYS_DATA", str(folder.parent))
    assert main(["data", "fetch", "ml-100k"]) == 0
    captured = capsys.readouterr()
    assert "nothing is fetched" in captured.err
    command = captured.out.splitlines()[-1]
    assert command.startswith(f"next: recsys prepare --source '{folder}/u.data' --out runs/ml-100k/data --set ")
    assert '\'read.names=["user_id","item_id","rating","timestamp"]\'' in command


def test_the_printed_command_prepares_the_set(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The settings of each shape of file in the catalogue, on a few lines as its publisher writes them."""
    lines = {
        "ml-100k": ("u.data", "{u}\t{i}\t3\t{t}"),
        "ml-1m": ("ratings.dat", "{u}::{i}::5::{t}"),
        "ml-20m": ("ratings.csv", "{u},{i},3.5,{t}"),
        "amazon-beauty-bert4rec": ("beauty.txt", "{u} {i}"),
        "gowalla": ("loc-gowalla_totalCheckins.txt", "{u}\t2010-10-{d}T23:55:27Z\t30.2359\t-97.7951\t{i}"),
        "lastfm-hetrec2k": ("user_taggedartists-timestamps.dat", "{u}\t{i}\t7\t{t}000"),
        "amazon-2014-beauty": (
            "reviews_Beauty_5.json",
            '{{"reviewerID": "A{u}", "asin": "B{i}", "overall": 5.0, "unixReviewTime": {t}, "reviewText": "a, b"}}',
        ),
        "amazon-2023-video-games": ("Video_Games.csv", "A{u},B{i},5.0,{t}123"),
    }
    heads = {
        "ml-20m": "userId,movieId,rating,timestamp",
        "amazon-2023-video-games": "user_id,parent_asin,rating,timestamp",
        "lastfm-hetrec2k": "userID\tartistID\ttagID\ttimestamp",
    }
    monkeypatch.setenv("RECSYS_DATA", str(tmp_path))
    for name, (file, line) in lines.items():
        (tmp_path / name).mkdir()
        rows = [
            line.format(u=u, i=(u + n) % 9, t=1_286_000_000 + 86_400 * n + u, d=10 + n)
            for u in range(1, 9)
            for n in range(6)
        ]
        head = [heads[name]] if name in heads else []
        (tmp_path / name / file).write_text("\n".join([*head, *rows]) + "\n")
        capsys.readouterr()
        assert main(["data", "fetch", name, "--json"]) == 0
        found = json.loads(capsys.readouterr().out)
        settings = [word for setting in found["settings"] for word in ("--set", setting)]
        out = str(tmp_path / f"{name}.prepared")
        assert main(["prepare", "--source", found["source"], "--out", out, *settings, "--json"]) == 0
        answer = json.loads(capsys.readouterr().out)
        assert (answer["users"], answer["items"], answer["events"]) == (8, 9, 48), name
        assert answer["order"] == ("rows" if name == "amazon-beauty-bert4rec" else "time"), name
