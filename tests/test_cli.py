import json
import os
import re
import resource
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import typer
import yaml

import recsys
from recsys.cli import app, main
from recsys.features.dataset import PreparedDataset
from recsys.pipelines.tracking.cursor import TrackingCursor

DOCS = Path(__file__).parents[1] / "docs" / "cli.md"
MODEL = {"name": "sasrec", "d_model": 8, "num_layers": 1, "num_heads": 1, "max_len": 8}
TRAIN = {"epochs": 2, "tokens_per_batch": 256, "lr": 1e-2, "threads": 1}


def write_config(file: Path, **train: Any) -> Path:
    file.write_text(yaml.safe_dump({"model": MODEL, "train": {**TRAIN, **train}}))
    return file


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, circle_csv: Path) -> Iterator[Path]:
    """A folder with a log, a dataset, and a run that was trained and tracked through the command line."""
    folder = tmp_path_factory.mktemp("cli")
    config = write_config(folder / "sasrec.yaml")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", "")  # put back at the end, whatever happens to it below
        patch.delenv("MLFLOW_TRACKING_URI")
        patch.chdir(folder)
        assert main(["prepare", "--source", str(circle_csv), "--out", "data", "--protocol", "loo"]) == 0
        assert main(["train", str(config), "--data", "data", "--out", "runs/first", "--register", "circle"]) == 0
        yield folder


def result(capsys: pytest.CaptureFixture[str], *words: str, code: int = 0) -> dict[str, Any]:
    """The one object that the command prints on stdout with --json."""
    capsys.readouterr()
    assert main([*words, "--json"]) == code
    out = capsys.readouterr().out
    assert out.count("\n") == 1
    value: dict[str, Any] = json.loads(out)
    return value


def error(capsys: pytest.CaptureFixture[str], *words: str, code: int = 2) -> str:
    """The one line that a failing command prints on stderr."""
    capsys.readouterr()
    assert main(list(words)) == code
    captured = capsys.readouterr()
    assert captured.out == ""
    *said, line = captured.err.splitlines()
    assert line.startswith("error: ")
    assert not [other for other in said if other.startswith(("error", "Traceback"))]
    return line


def commands(group: Any, path: tuple[str, ...] = ("recsys",)) -> Iterator[tuple[str, Any]]:
    yield " ".join(path), group
    for name, command in getattr(group, "commands", {}).items():
        yield from commands(command, (*path, name))


def sections() -> dict[str, str]:
    parts = re.split(r"^## `(recsys[^`]*)`$", DOCS.read_text(encoding="utf-8"), flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def test_every_command_and_every_option_is_documented_and_no_other() -> None:
    documented = sections()
    tree = dict(commands(typer.main.get_command(app)))
    leaves = {path: command for path, command in tree.items() if path == "recsys" or not hasattr(command, "commands")}
    assert set(documented) == set(leaves)
    for path, command in leaves.items():
        options = {name for p in command.params if p.param_type_name == "option" for name in p.opts} - {"--help"}
        rows = [line for line in documented[path].splitlines() if line.startswith("| `-")]
        named = {name for row in rows for name in re.findall(r"`(-{1,2}[a-z][a-z-]*)", row.split(" | ")[0])}
        assert named - {"--help", "-h"} == options, path


def test_the_documented_options_are_those_of_the_real_help(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    for path, text in sections().items():
        assert main([*path.split()[1:], "--help"]) == 0
        shown = set(re.findall(r"(?<![\w-])--?[a-z][a-z-]*", capsys.readouterr().out))
        for row in (line for line in text.splitlines() if line.startswith("| `-")):
            for option in re.findall(r"`(-{1,2}[a-z][a-z-]*)", row.split(" | ")[0]):
                assert option in shown, (path, option)


def run(*words: str, **environment: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "recsys", *words]
    return subprocess.run(command, capture_output=True, text=True, check=False, env={**os.environ, **environment})


def test_help_is_there_in_half_a_second() -> None:
    seconds = []
    for _ in range(2):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        assert "Usage: recsys" in run("--help").stdout
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        seconds.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    assert min(seconds) < 0.5


def test_the_shell_can_complete_a_command() -> None:
    done = run(_RECSYS_COMPLETE="complete_bash", COMP_WORDS="recsys tr", COMP_CWORD="1")
    assert done.stdout.split() == ["train"]


def test_the_version_is_the_packages(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"recsys {recsys.__version__}\n"
    assert result(capsys, "--version") == {"version": recsys.__version__}


def test_a_run_through_the_command_line_leaves_everything(place: Path) -> None:
    names = {path.name for path in (place / "runs" / "first").iterdir()}
    assert {"run.json", "log.jsonl", "checkpoints", "bundle", "curves.png", "tracking.json"} <= names
    assert {path.name for path in (place / "runs").iterdir()} == {"first", "mlflow.db", "mlartifacts"}
    cursor = TrackingCursor.read(place / "runs" / "first")
    assert cursor is not None
    assert (cursor.model["name"], cursor.model["version"]) == ("circle", "1")


def test_train_answers_in_json_and_a_finished_run_is_not_trained_again(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = str(place / "sasrec.yaml")
    found = result(capsys, "train", config, "--data", "data", "--out", "runs/first")
    assert found["epochs"] == 2
    assert found["registered"] == "models:/circle/1"
    assert found["bundle"] == "runs/first/bundle"
    assert 0 < found["validation"]["ndcg@10"] <= 1


def test_prepare_takes_protocol_and_settings(place: Path, circle_csv: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["prepare", "--source", str(circle_csv), "--out", str(place / "long")]
    found = result(capsys, *words, "--protocol", "ratio", "--set", "filters.min_user_events=10")
    dataset = PreparedDataset.open(place / "long")
    assert (found["protocol"], found["users"]) == ("ratio", dataset.num_users)
    lengths = pl.read_csv(circle_csv).group_by("user_id").len()["len"]
    assert dataset.num_users == (lengths >= 10).sum() < 150
    (place / "prepare.yaml").write_text("split:\n  protocol: time\nfilters:\n  min_user_events: 2\n")
    again = result(capsys, *words[:3], "--out", str(place / "timed"), "--config", str(place / "prepare.yaml"))
    assert (again["protocol"], again["users"]) == ("time", 150)


def test_evaluate_prints_the_model_beside_its_floors_and_writes_and_tracks_the_figures(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    capsys.readouterr()
    assert main(["evaluate", "runs/first"]) == 0
    out = capsys.readouterr().out
    assert all(word in out for word in ("popularity", "transition-knn", "sasrec", "ndcg@10", "protocol: loo/next/"))
    found = result(capsys, "evaluate", "runs/first/bundle", "--data", "data", "--split", "valid", "--seen", "keep")
    assert (found["split"], found["seen"]) == ("valid", "keep")
    stored = json.loads((place / "runs/first/evaluation.valid.keep.json").read_text())
    assert stored["metrics"] == found["metrics"]
    cursor = TrackingCursor.read(place / "runs/first")
    assert cursor is not None
    assert {"evaluation.json", "evaluation.valid.keep.json"} <= set(cursor.sent)
    (listed,) = [run for run in result(capsys, "runs", "list")["runs"] if run["run"] == "first"]
    tested = json.loads((place / "runs/first/evaluation.json").read_text())["metrics"]["sasrec"]["ndcg@10"]["mean"]
    assert listed["test ndcg@10"] == round(tested, 4)


def test_recommend_answers_a_sequence_and_names_what_it_does_not_know(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    del place
    found = result(capsys, "recommend", "--bundle", "runs/first", "--sequence", "i1 i2 i99", "-k", "3")
    assert [row["rank"] for row in found["items"]] == [1, 2, 3]
    assert {"i1", "i2"}.isdisjoint(row["item_id"] for row in found["items"])
    assert (found["source"], found["unknown"]) == ("model", ["i99"])
    words = ["recommend", "--bundle", "models:/circle@challenger", "--tracking", "sqlite:///runs/mlflow.db"]
    again = result(capsys, *words, "--sequence", "i1 i2 i99", "-k", "3")
    assert again == found


def test_recommend_writes_the_lists_of_users_it_never_saw_too(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (place / "users.txt").write_text("u1\n\n stranger \nu2\n")
    words = ["recommend", "--bundle", "runs/first", "--users", "users.txt", "-k", "2", "--out", "lists.csv"]
    assert result(capsys, *words, "--data", "data")["users"] == 3
    lists = pl.read_csv(place / "lists.csv")
    assert lists["user_id"].unique(maintain_order=True).to_list() == ["u1", "stranger", "u2"]
    assert set(lists.filter(pl.col("user_id") == "stranger")["source"]) == {"popularity"}


def test_ingest_counts_what_it_stored_and_what_was_there(
    place: Path, circle_csv: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["ingest", "--source", str(circle_csv), "--journal", str(place / "journal")]
    first, second = result(capsys, *words), result(capsys, *words)
    assert first["accepted"] == second["duplicates"] == len(circle_csv.read_text().splitlines()) - 1
    assert second["accepted"] == 0
    lists = ["recommend", "--bundle", "runs/first", "--journal", "journal", "--out", "all.parquet"]
    assert result(capsys, *lists)["users"] == 150


def test_runs_are_listed_with_their_figures_and_synced(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (row,) = result(capsys, "runs", "list")["runs"]
    assert (row["run"], row["model"], row["state"]) == ("first", "sasrec", "finished")
    assert row["validation ndcg@10"] > 0
    (sent,) = result(capsys, "runs", "sync", str(place / "runs"))["runs"]
    assert (sent["points"], sent["model"]) == (0, "models:/circle/1")


def test_an_untracked_run_is_delivered_by_sync(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["train", str(place / "sasrec.yaml"), "--data", "data", "--out", "later/run", "--no-tracking"]
    assert result(capsys, *words, "--set", "train.epochs=1")["registered"] is None
    assert not (place / "later/run/tracking.json").exists()
    (sent,) = result(capsys, "runs", "sync", "later/run", "--tracking", "sqlite:///runs/mlflow.db")["runs"]
    assert sent["points"] > 0
    assert sent["model"] == "models:/sasrec/1"


def test_a_dead_tracking_server_does_not_stop_a_run(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["train", str(place / "sasrec.yaml"), "--data", "data", "--out", "dead/run", "--set", "train.epochs=1"]
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        capsys.readouterr()
        assert main([*words, "--tracking", f"http://127.0.0.1:{taken.getsockname()[1]}"]) == 0
    warnings = [line for line in capsys.readouterr().err.splitlines() if line.startswith("warning: ")]
    assert len(warnings) == 1
    assert "recsys runs sync dead/run" in warnings[0]
    assert (place / "dead/run/bundle/weights.safetensors").is_file()


def test_config_show_fills_in_the_defaults_and_schema_names_the_settings(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = str(place / "sasrec.yaml")
    shown = result(capsys, "config", "show", config, "--set", "data=data", "--set", "train.lr=1e-4")
    assert (shown["train"]["lr"], shown["train"]["epochs"], shown["model"]["d_model"]) == (1e-4, 2, 8)
    assert "dropout" in shown["model"]
    for what, key in (("train", "seed"), ("prepare", "filters"), ("shop", "users"), ("bert4rec", "d_model")):
        assert key in result(capsys, "config", "schema", what)["properties"]


def test_a_resolved_config_is_plain_json_that_trains_the_same(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from recsys.pipelines.training.__main__ import main as train_bare

    found = result(
        capsys, "train", str(place / "sasrec.yaml"), "--data", "data", "--resolve", str(place / "plain.json")
    )
    assert found["command"].startswith("python -m recsys.pipelines.training ")
    assert train_bare([str(place / "plain.json"), str(place / "bare")]) == 0
    first, second = (place / f"{run}/bundle/weights.safetensors" for run in ("runs/first", "bare"))
    assert first.read_bytes() == second.read_bytes()


def test_the_shop_is_simulated_small(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    knobs = ["--set", "users=40", "--set", "items=120", "--set", "events_per_user=8"]
    found = result(capsys, "data", "simulate", "shop", "--out", str(tmp_path / "world"), *knobs)
    assert pl.read_parquet(found["interactions"])["user_id"].n_unique() <= 40
    assert Path(found["items"]).is_file()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["trian"], "error: No such command 'trian'. Did you mean 'train'?; see recsys --help"),
        (["train"], "error: Missing argument 'config'; see recsys train --help"),
        (["prepare", "--source", "x"], "error: Missing option '--out'; see recsys prepare --help"),
        (
            ["serve", "--bundle", "b", "--journal", "j", "--port", "99999"],
            "'--port': 99999 is not in the range 0<=x<=65535",
        ),
        (["train", "absent.yaml", "--out", "r"], "error: absent.yaml: no such file; name a .yaml or .json file"),
        (["train", "sasrec.yaml", "--data", "data"], "error: --out is missing: name the run folder"),
        (["train", "sasrec.yaml", "--data", "absent", "--out", "r", "--no-tracking"], "error: absent: "),
        (
            ["train", "sasrec.yaml", "--data", "data", "--out", "r", "--set", "train.learning=1"],
            "error: sasrec.yaml: train.learning: unknown key; ",
        ),
        (
            ["train", "sasrec.yaml", "--data", "data", "--out", "r", "--set", "model.name=sasrek"],
            "error: model.name='sasrek': no such model; did you mean 'sasrec'?",
        ),
        (
            ["train", "sasrec.yaml", "--data", "data", "--out", "r", "--set", "model.max_length=3"],
            "error: sasrec.yaml: model.max_length: unknown key; did you mean 'max_len'?",
        ),
        (
            ["train", "sasrec.yaml", "--data", "data", "--out", "r", "--tracking", "file:///tmp/runs"],
            "error: tracking URI file:///tmp/runs: wanted sqlite:///PATH",
        ),
        (["evaluate", "absent"], "error: absent: no bundle there; name a bundle folder"),
        (["evaluate", "runs/first", "--split", "tset"], "see recsys evaluate --help"),
        (["recommend", "--bundle", "runs/first"], 'error: name --sequence "i1 i2", or --data DIR or --journal DIR'),
        (
            ["recommend", "--bundle", "runs/first", "--sequence", "i1", "--data", "data", "--out", "x.csv"],
            "error: --sequence is answered on stdout and goes without --data and --out",
        ),
        (["recommend", "--bundle", "runs/first", "--data", "data"], "error: --out is missing"),
        (
            ["recommend", "--bundle", "runs/first", "--data", "data", "--out", "x.csv", "--users", "absent.txt"],
            "error: absent.txt: cannot be read",
        ),
        (["runs", "list", "absent"], "error: absent: no such folder"),
        (["runs", "sync", "data"], "error: data: no run there; name a run folder"),
        (["config", "schema", "sasrek"], "did you mean 'sasrec'?"),
        (["prepare", "--source", "absent.csv", "--out", "o"], "error: absent.csv: no such file"),
        (
            ["prepare", "--source", "sasrec.yaml", "--out", "o", "--set", "filters=3"],
            "error: filters=3: wanted a group",
        ),
        (["data", "simulate", "shop", "--out", "w", "--set", "user=3"], "unknown key; did you mean 'users'?"),
    ],
)
def test_the_callers_fault_is_one_line_and_exit_code_two(
    place: Path, capsys: pytest.CaptureFixture[str], words: list[str], message: str
) -> None:
    del place
    assert message in error(capsys, *words)


def test_a_failure_in_json_is_one_object_too(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    del place
    found = result(capsys, "evaluate", "absent", code=2)
    assert found["exit_code"] == 2
    assert found["error"].startswith("absent: no bundle there")


def test_a_bundle_with_one_flipped_byte_is_refused(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import shutil

    shutil.copytree(place / "runs/first/bundle", place / "flipped")
    weights = place / "flipped/weights.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    line = error(capsys, "recommend", "--bundle", "flipped", "--sequence", "i1")
    assert line.endswith("flipped/weights.safetensors: its bytes differ from manifest.json; copy the bundle again")


def test_a_port_in_use_is_refused(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    del place
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        assert port in error(capsys, "serve", "--bundle", "runs/first", "--journal", "other", "--port", port)


def test_our_fault_is_one_line_exit_code_one_and_a_trace_with_debug(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def explode() -> None:
        raise KeyError("two\nlines")

    monkeypatch.setattr("recsys.doctor.examine", explode)
    line = error(capsys, "doctor", code=1)
    assert line.startswith("error: KeyError: ")
    assert line.endswith("this is a bug: --debug shows where")
    with pytest.raises(KeyError):
        main(["doctor", "--debug"])


def test_a_reader_that_leaves_early_is_no_failure_to_talk_about(place: Path) -> None:
    command = f"{sys.executable} -m recsys config schema shop | true"
    done = subprocess.run(["bash", "-c", command], cwd=place, capture_output=True, text=True, check=False)
    assert done.stderr == ""


def test_ctrl_c_saves_says_how_to_go_on_and_the_same_command_ends_with_the_same_weights(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = write_config(place / "long.yaml", epochs=15, patience=None)
    words = ["train", str(config), "--data", "data", "--no-tracking", "--out"]
    child = subprocess.Popen([sys.executable, "-m", "recsys", *words, "parts"], stderr=subprocess.PIPE, text=True)
    wait_for(lambda: (place / "parts/checkpoints").is_dir(), child)
    child.send_signal(signal.SIGINT)
    said = child.communicate(timeout=60)[1].splitlines()
    assert child.returncode == 130
    assert re.match(r"interrupted; stopped at step \d+; .*parts", said[-1])
    assert main([*words, "parts"]) == 0
    assert "goes on at step" in capsys.readouterr().err
    assert main([*words, "whole"]) == 0
    weights = [(place / run / "bundle/weights.safetensors").read_bytes() for run in ("whole", "parts")]
    assert weights[0] == weights[1]


def test_ctrl_c_ends_a_server_in_one_line(place: Path) -> None:
    words = ["serve", "--bundle", "runs/first", "--journal", "served", "--port", "0"]
    child = subprocess.Popen([sys.executable, "-m", "recsys", *words], cwd=place, stderr=subprocess.PIPE, text=True)
    assert child.stderr is not None
    for line in child.stderr:
        if line.startswith("Ready on"):
            break
    child.send_signal(signal.SIGINT)
    said = child.communicate(timeout=60)[1]
    assert child.returncode == 130
    assert said == "interrupted; the journal holds every event that was answered; the same command serves on\n"


def wait_for(is_so: Any, child: "subprocess.Popen[str]") -> None:
    until = time.monotonic() + 60
    while not is_so():
        assert child.poll() is None
        assert time.monotonic() < until
        time.sleep(0.01)
