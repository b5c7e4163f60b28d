"""`make bench`: which modules run, and with which arguments."""

import runpy
import sys
from importlib.util import find_spec

import pytest

from benchmarks import run


def test_every_module_runs_with_its_arguments(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    ran: list[tuple[str, list[str]]] = []
    monkeypatch.setattr(runpy, "run_module", lambda module, run_name: ran.append((module, sys.argv[1:])))  # noqa: ARG005  # the signature of run_module
    monkeypatch.setattr(sys, "argv", ["run"])
    monkeypatch.delenv("RECSYS_DATA", raising=False)
    run.main()
    assert ("benchmarks.attention", []) in ran
    assert ("benchmarks.attention", ["--padded"]) in ran
    assert ("benchmarks.linear_cross_entropy", ["--large"]) in ran
    assert all(find_spec(module) for module, _ in ran)
    assert {module.removeprefix("benchmarks.") for module, _ in ran} == set(run.WITHOUT_DATA)
    assert "== path: skipped, RECSYS_DATA is not set" in capsys.readouterr().out
