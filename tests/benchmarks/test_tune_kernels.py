"""The tuner without a GPU: what it tries, what it refuses, and how it writes a table."""

import argparse
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from benchmarks import tune_kernels
from benchmarks.support.launch_candidates import Row, candidates
from benchmarks.tune_kernels import Key, Tried, Tuner, asked_rows, guessed_table, table_of, try_row, with_row
from recsys.kernels.backend import is_interpreting
from recsys.kernels.launch import LAUNCHES, as_text, table, tables_in
from tests.benchmarks.support.gram_cases import ROW, ROWS, gram_case, write_table

pytest.importorskip("triton", reason="kernels are compiled by triton")
pytestmark = pytest.mark.skipif(is_interpreting(), reason="the interpreter compiles nothing")


@pytest.fixture
def options(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> argparse.Namespace:
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path / "cache"))
    write_table(tmp_path / "tables")
    return argparse.Namespace(
        budget_s=None, rounds=2, changes=1, repeats=3, only="", kernels=None, out=tmp_path / "out", workers=0
    )


def test_it_refuses_to_run_without_a_gpu_in_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    assert tune_kernels.main([]) == tune_kernels.REFUSED
    assert capsys.readouterr().err == (
        "error: there is no GPU to time on; --dry-run --target sm_90 lists what compiles\n"
    )
    assert tune_kernels.main(["--dry-run"]) == tune_kernels.REFUSED
    assert capsys.readouterr().err == "error: --dry-run needs --target, one of sm_80, sm_90\n"


@pytest.mark.aot_full
def test_a_dry_run_lists_what_compiles_and_writes_nothing(
    options: argparse.Namespace, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = (tmp_path / "tables" / "gram.json").read_text()
    with tables_in(tmp_path / "tables"):
        assert Tuner(options, "sm_90", None, None).run("gram", [gram_case(32), gram_case(32, torch.float16)])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "[1/1] gram forward width=32"
    assert lines[1].split()[0] == "yes"
    assert lines[1].endswith(f"  {ROW}")
    assert len(lines) == 1 + len(candidates(ROW, 1))
    assert (tmp_path / "tables" / "gram.json").read_text() == before
    assert not options.out.exists()


@pytest.mark.aot_full
def test_a_launch_that_spills_is_not_legal() -> None:
    key = Key("gram", "forward", "width=64", gram_case(64))
    content = {"sm_90": {"forward": dict(ROWS)}}
    spilling = try_row(key, "sm_90", content, ROW | {"BLOCK_M": 128, "BLOCK_N": 256})
    assert any("spills" in fault for fault in spilling.faults)
    sound = try_row(key, "sm_90", content, ROW)
    assert sound.faults == ()
    assert sound.kernels == ("gram_kernel",)


@pytest.mark.aot_full
def test_what_the_compiler_refuses_is_not_legal() -> None:
    key = Key("gram", "forward", "width=64", gram_case(64))
    tried = try_row(key, "sm_90", {"sm_90": {"forward": dict(ROWS)}}, ROW | {"BLOCK_M": 48})
    assert tried.faults


def test_rows_that_the_table_lacks_are_found_and_guessed(tmp_path: Path) -> None:
    (tmp_path / "gram.json").write_text(json.dumps({"interpret": {"forward": {"*": {"BLOCK_M": 16, "BLOCK_N": 16}}}}))
    with tables_in(tmp_path):
        content = guessed_table("gram", "sm_90")
    assert content["sm_90"]["forward"]["*"] == {"BLOCK_M": 64, "BLOCK_N": 64, "num_warps": 4, "num_stages": 2}
    (tmp_path / "gram.json").write_text(json.dumps({"sm_90": {"forward": dict.fromkeys(("width=8", "width=32"), ROW)}}))
    with tables_in(tmp_path):
        (key,) = asked_rows("gram", "sm_90", [gram_case(32), gram_case(32, torch.float16)])
    assert str(key) == "gram forward width=32"


@pytest.mark.aot_full
def test_the_fastest_goes_into_the_table_and_is_not_timed_again(
    options: argparse.Namespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    timed: list[Row] = []

    def pretend(self: Tuner, key: Key, content: dict[str, Any], item: Tried) -> float:  # noqa: ARG001  # the signature of the method
        timed.append(item.row)
        return float(item.row["BLOCK_N"] + item.row["num_stages"])

    def results(self: Tuner, key: Key, content: dict[str, Any], row: Row | None) -> list[Tensor]:  # noqa: ARG001  # the signature of the method
        return [torch.full((3,), 1.0 if row is None or row["num_stages"] != 1 else 1.5)]

    monkeypatch.setattr(Tuner, "_results", results)
    monkeypatch.setattr(Tuner, "_time", pretend)
    monkeypatch.setattr(Tuner, "_gpu", lambda self: "a GPU")  # noqa: ARG005  # the signature of the method
    with tables_in(tmp_path / "tables"):
        Tuner(options, "sm_90", torch.device("cpu"), None).run("gram", [gram_case(32)])
        best = table("gram")["sm_90"]["forward"]["width=32"]
        assert best == ROW | {"BLOCK_N": 16}  # two rounds of one change, 64 to 32 to 16
        assert table("gram")["sm_90"]["forward"]["width=64"] == ROWS["width=64"]
        assert table("gram")["sm_80"] == {"forward": ROWS}
        number = len(timed)
        Tuner(options, "sm_90", torch.device("cpu"), None).run("gram", [gram_case(32)])
    assert len(timed) == number
    said = capsys.readouterr().out
    assert "[1/1] gram forward width=32: finished before" in said
    assert f"differs, dropped  {ROW | {'num_stages': 1}}  tensor 0: off by" in said
    assert all(row["num_stages"] != 1 for row in timed)
    done = json.loads((options.out / "gram-sm_90.json").read_text())
    assert done["forward width=32"]["best"] == best
    assert json.dumps(ROW | {"num_stages": 1}) in done["forward width=32"]["differing"]


def test_a_spent_budget_leaves_the_rest(
    options: argparse.Namespace, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options.budget_s = -1.0
    with tables_in(tmp_path / "tables"):
        assert not Tuner(options, "sm_90", None, None).run("gram", [gram_case(32), gram_case(64)])
    assert "2 rows are left" in capsys.readouterr().out


def test_a_replaced_row_leaves_the_others_and_the_file_as_it_was() -> None:
    key = Key("gram", "forward", "width=32", gram_case(32))
    content = {"sm_90": {"forward": dict(ROWS), "backward": {"*": ROW}}, "interpret": {"forward": {"*": ROW}}}
    changed = with_row(content, "sm_90", key, ROW | {"num_stages": 4})
    assert changed["sm_90"]["forward"]["width=64"] == ROWS["width=64"]
    assert content["sm_90"]["forward"]["width=32"]["num_stages"] == 2
    assert json.loads(as_text(changed)) == changed
    before = LAUNCHES
    with table_of("gram", changed):
        assert table("gram") == changed
        assert table("search_topk")["sm_90"], "the other ops keep their tables"
    from recsys.kernels import launch

    assert before == launch.LAUNCHES
