import json
from pathlib import Path
from typing import Any

import pytest

from recsys.cli import main

pytest.importorskip("matplotlib", reason="needs the extra tracking")

SMALL = ["--set", "sasrec.d_model=16", "--set", "sasrec.num_layers=1", "--set", "train.threads=1"]
QUICK = ["--models", "sasrec", "--minutes", "0.004", "--trials", "12", *SMALL]


def error(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    capsys.readouterr()
    assert main(["compare", *words]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    last = captured.err.splitlines()[-1]
    assert last.startswith("error: ")
    return last


def test_a_log_becomes_a_table_an_advice_and_a_picture(
    circle_csv: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["compare", "--source", str(circle_csv), "--out", str(tmp_path / "out"), *QUICK]
    words += ["--set", "prepare.split.protocol=loo"]
    assert main(words) == 0
    captured = capsys.readouterr()
    assert "NDCG@10" in captured.out
    assert "- take " in captured.out
    assert "protocol: loo/next/full-rank" in captured.out
    assert "[2/3] sasrec; at most 0 s of training left" in captured.err
    assert (tmp_path / "out" / "compare.png").read_bytes().startswith(b"\x89PNG")
    assert main([*words, "--json"]) == 0
    answer: dict[str, Any] = json.loads(capsys.readouterr().out)
    assert answer["advice"]["take"] in {one["name"] for one in answer["contenders"]}
    assert answer["picture"] == str(tmp_path / "out" / "compare.png")


def test_bad_input_is_one_line(circle_csv: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = ["--out", str(tmp_path / "out")]
    log = ["--source", str(circle_csv), *out]
    assert "name either --source LOG or --data DATASET" in error(capsys, *out)
    assert "name either --source LOG or --data DATASET" in error(capsys, *log, "--data", "x")
    assert "no such model; did you mean 'sasrec'" in error(capsys, *log, "--models", "sasrek")
    assert error(capsys, *log, "--models", "foo") == "error: --models foo: no such model; " + (
        "known models: bert4rec, sasrec"
    )
    assert error(capsys, *log, "--models", "").startswith("error: --models: names none; known models: bert4rec")
    assert error(capsys, *log, "--models", "sasrec,sasrec").startswith("error: --models sasrec,sasrec: names one")
    assert error(capsys, *log, "--minutes", "0").startswith("error: --minutes 0: wanted a time above 0")
    assert error(capsys, *log, "--trials", "0") == "error: --trials 0: wanted at least 1"
    assert error(capsys, *log, "--seeds", "0") == "error: --seeds 0: wanted at least 1"
    assert error(capsys, *log, "--set", "sasrec.max_len=-3").startswith("error: --set sasrec: max_len=-3 must be")
    assert error(capsys, *log, "--set", "sasrec.train.lr=-1").startswith("error: --set sasrec.train: lr=-1")
    assert error(capsys, *log, "--set", "train.lr=x").startswith("error: --set train.lr='x': wanted")
    no_valid = ["--set", "prepare.split.protocol=loo-novalid"]
    assert "prepare it with --set prepare.split.protocol=loo" in error(capsys, *log, *QUICK, *no_valid)
    assert "did you mean 'bert4rec'" in error(capsys, *log, "--set", "bertrec.dropout=0.1")
    assert "did you mean 'dropout'" in error(capsys, *log, *QUICK, "--set", "sasrec.droput=0.1")
    assert "belong to --source" in error(capsys, "--data", str(tmp_path), *out, "--set", "prepare.shards=2")
    assert "none.csv" in error(capsys, "--source", str(tmp_path / "none.csv"), *out)
    (tmp_path / "text.csv").write_text("once upon a time\nthere was no log, at all\n")
    assert "text.csv" in error(capsys, "--source", str(tmp_path / "text.csv"), *out)
