"""The GPU benchmark tried on the CPU with tiny inputs: parts run to their end, and one failure is not another's."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import kernels, kernels_plot
from benchmarks.kernels import Suite, attention_part, attention_shapes, has_failed, main, parts

CPU = torch.device("cpu")
ABSENT_ON_A_BARE_MACHINE = ("polars", "pyarrow", "pydantic", "yaml", "rich", "typer", "pandas", "safetensors", "mlflow")


def test_a_part_times_all_rivals_that_can_run_and_names_why_others_cannot(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    only = "^attention, 200 ragged d64$"
    assert main(["--suite", "cpu", "--tiny", "--out", str(tmp_path), "--only", only]) == 0
    report = json.loads((tmp_path / "kernels.json").read_text())
    (part,) = report["parts"].values()
    assert part["tokens"] >= 100
    assert 0.3 < part["fill"] < 0.5
    assert part["rivals"]["varlen_attn"]["error"] == "NotImplementedError: varlen_attn runs on CUDA alone"
    for rival in ("ours", "padded SDPA"):
        row = part["rivals"][rival]
        for which in ("forward", "backward", "both"):
            assert 0.0 < row[which]["p10"] <= row[which]["median"]
        assert max(row["max_error"].values()) < 1e-5
        assert row["max_error"].keys() == part["definition_error"].keys()
    assert "varlen_attn runs on CUDA alone" in capsys.readouterr().out
    assert main(["--suite", "cpu", "--tiny", "--out", str(tmp_path), "--only", only]) == 0
    assert "stands in" in capsys.readouterr().out


def test_every_shape_of_the_suite_is_drawn_and_checked() -> None:
    names = [shape.name for shape in attention_shapes()]
    assert len(set(names)) == len(names)
    assert any(shape.bias for shape in attention_shapes())
    found = parts(CPU, 2, is_tiny=True)
    for op in (
        "linear_cross_entropy",
        "sampled_loss",
        "search_topk",
        "topk_attend",
        "jagged_embedding",
        "bert4rec",
        "hash_table",
    ):
        assert any(name.startswith(op) for name in found)


@pytest.mark.parametrize("name", ["linear_cross_entropy, V 50000, D 64", "sampled_loss, V 1000000, 256 shared"])
def test_an_op_is_measured_against_plain_torch(name: str) -> None:
    (part,) = (part for found, part in parts(CPU, 2, is_tiny=True).items() if found.startswith(name))
    rivals = part()["rivals"]
    assert all(max(row["max_error"].values()) < 1e-4 for row in rivals.values() if "error" not in row)
    assert "error" not in rivals["ours"]


def test_a_step_of_bert4rec_is_timed_by_both_paths() -> None:
    part = parts(CPU, 2, is_tiny=True)["bert4rec on ml-1m's shape"]()
    assert part["events_per_s"].keys() == {"auto path", "torch path"}
    assert min(part["events_per_s"].values()) > 0


def test_the_hash_table_is_timed_beside_what_memory_gives() -> None:
    part = parts(CPU, 2, is_tiny=True)["hash_table, 64000000 slots, load 0.75"]()
    rates = part["g_keys_s"]
    assert {
        "find",
        "insert",
        "random lines",
        "sorted ids",
        "find, rows of 64",
        "find, update rows of 8",
    } <= rates.keys()
    assert min(rates.values()) > 0
    assert part["ids"] == part["fill"]["ids"] == part["grown"]["ids"] > 10_000, "what was inserted was erased again"
    assert part["grown"]["longest_call_ms"] >= part["grown"]["median_call_ms"] > 0


def test_a_part_that_fails_is_an_error_line_and_is_tried_again(tmp_path: Path) -> None:
    def fails() -> dict[str, Any]:
        raise RuntimeError("too small a GPU")

    suite = Suite(tmp_path, CPU)
    suite.run("part", fails)
    suite.run("other", lambda: {"figure": 1})
    suite = Suite(tmp_path, CPU)
    assert suite.report["parts"]["part"]["error"] == "RuntimeError: too small a GPU"
    suite.run("part", lambda: {"figure": 2})
    suite.run("other", fails)
    written = json.loads((tmp_path / "kernels.json").read_text())["parts"]
    assert written["part"]["figure"] == 2
    assert written["other"]["figure"] == 1


def test_a_part_has_failed_where_ours_has_and_not_where_a_rival_has() -> None:
    assert not has_failed({"rivals": {"ours": {"forward": {}}, "varlen_attn": {"error": "none"}}})
    for kind in ("error", "backward_error", "after_error"):
        assert has_failed({"rivals": {"ours": {kind: "none"}}})
    assert has_failed({"error": "none"})
    assert not has_failed({"events_per_s": {}})


def test_a_spent_budget_names_the_parts_that_are_left(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    only = ["--suite", "cpu", "--tiny", "--out", str(tmp_path), "--only", "^sampled_loss"]
    assert main([*only, "--budget-s", "-1"]) == 1
    assert "the budget is spent, 2 parts are left" in capsys.readouterr().out
    assert len(json.loads((tmp_path / "kernels.json").read_text())["not_run"]) == 2
    assert main(only) == 0
    assert main([*only, "--budget-s", "-1"]) == 0
    written = json.loads((tmp_path / "kernels.json").read_text())
    assert written["not_run"] == written["failed"] == []


def test_it_refuses_a_gpu_suite_without_a_gpu(capsys: pytest.CaptureFixture[str]) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    assert main([]) == 2
    assert "--suite h200 needs a GPU" in capsys.readouterr().err


def test_a_bare_machine_suffices() -> None:
    absent = "; ".join(f"sys.modules[{name!r}] = None" for name in ABSENT_ON_A_BARE_MACHINE)
    program = f"import sys; {absent}; import benchmarks.kernels, benchmarks.tune_kernels, benchmarks.gpu"
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr


def test_the_picture_shows_ours_and_the_rivals(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("matplotlib")
    rates = {"forward": {"tflop_s": 300.0, "gb_s": 900.0}, "backward": {"tflop_s": 200.0, "gb_s": 500.0}}
    rivals = {"ours": rates, "varlen_attn": rates, "padded SDPA": {"error": "none"}, "HSTU port": {"forward": {}}}
    named = {"gpu": "a GPU", "cpu": "a CPU", "torch": "2", "triton": "3"}
    found = {"attention, 8192 causal d64": {"rivals": rivals}, "sampled_loss": {"rivals": {"ours": rates}}}
    report = tmp_path / "kernels.json"
    report.write_text(json.dumps({"machine": named, "parts": found}))
    picture = tmp_path / "roofline.svg"
    assert kernels_plot.main([str(report), "--picture", str(picture)]) == 0
    assert capsys.readouterr().out == f"4 points in {picture}\n"
    text = picture.read_text()
    assert text.count("<svg") == 1
    report.write_text(json.dumps({"machine": named, "parts": {}}))
    assert kernels_plot.main([str(report), "--picture", str(picture)]) == 2


def test_a_convention_counts_flop_and_bytes() -> None:
    shape = next(shape for shape in attention_shapes() if shape.name == "200 d64")
    part = attention_part(kernels._tiny(shape, CPU), CPU, 2)
    forward = part["rivals"]["ours"]["forward"]
    flop = 4 * part["heads"] * part["width"] * part["tokens"] * part["max_len"]
    assert forward["tflop_s"] == pytest.approx(flop / forward["p10"] / 1e9, abs=0.01)
