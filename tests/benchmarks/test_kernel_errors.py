"""The table of errors: every op is in it, an error is relative, and one that is too large ends the run."""

import math
import os

import pytest
import torch
from torch import Tensor

from benchmarks import kernel_errors
from benchmarks.kernel_errors import Case, cases, errors_of, main, relative_error


def _off_by(error: float, op: str = "op") -> Case:
    """Of triton the output alone is wrong, by `error` of its value."""

    def call(x: Tensor) -> list[Tensor]:
        return [x + x.detach() * (error if os.environ["RECSYS_KERNELS"] == "triton" else 0.0)]

    return Case(op, "case", {"x": torch.full((3,), 1e-6, dtype=torch.float64)}, call)


@pytest.fixture(autouse=True)
def _restored(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RECSYS_KERNELS", "auto")
    monkeypatch.setenv("TRITON_INTERPRET", os.environ.get("TRITON_INTERPRET", "0"))


def test_an_error_is_relative_to_the_largest_value_however_small_it_is() -> None:
    assert relative_error(torch.tensor([1e-6, 2.5e-6]), torch.tensor([1e-6, 2e-6]).double()) == pytest.approx(0.25)
    assert relative_error(torch.tensor([100.0, 2.0]), torch.tensor([100.0, 1.0]).double()) == pytest.approx(0.01)
    assert relative_error(torch.tensor([0.0, 3e-9]), torch.zeros(2).double()) == pytest.approx(3e-9)


def test_what_is_not_finite_must_be_the_same() -> None:
    exact = torch.tensor([1.0, -math.inf]).double()
    assert relative_error(exact, exact) == relative_error(exact[1:], exact[1:]) == 0.0
    for wrong in ([1.0, 0.0], [1.0, math.inf], [1.0, math.nan], [math.nan, -math.inf]):
        assert relative_error(torch.tensor(wrong), exact) == math.inf


def test_outputs_and_gradients_have_an_error_each() -> None:
    errors = errors_of(_off_by(1e-3), torch.float64)
    assert errors == {"output": pytest.approx(1e-3), "dx": 0.0}


def test_every_op_and_gradient_is_measured() -> None:
    inputs: dict[str, set[str]] = {}
    names = []
    for case in cases():
        inputs.setdefault(case.op, set()).update(case.inputs)
        names.append((case.op, case.name))
    assert len(set(names)) == len(names)
    assert inputs == {
        "attention": {"q", "k", "v", "time_table", "pos_table"},
        "linear_cross_entropy": {"x", "w", "bias"},
        "sampled_loss": {"x", "w", "bias"},
        "segment_sum": {"x", "weights", "add_to"},
        "jagged_embedding": {"w", "pos"},
        "search_topk": {"q", "k", "q2", "k2", "k_bias"},
        "topk_attend": {"q", "k", "v", "q2", "k2", "k_bias"},
    }


def test_no_gradient_of_the_definitions_is_tiny() -> None:
    """Of attention the cases are the tests' own."""
    for case in cases():
        if case.op != "attention":
            for name, x in kernel_errors._values(case, list(case.inputs.values()), "reference").items():
                assert float(x.abs().max()) > 0.1, f"{case.op}, {case.name}: {name}"


@pytest.mark.parametrize("error", [0.9e-12, 1.1e-12, math.nan])
def test_a_run_fails_beyond_the_limit_of_float64(
    error: float, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(kernel_errors, "cases", lambda: iter([_off_by(error), _off_by(0.0), _off_by(1.0, "other")]))
    given = ["--op", "op", "--no-page"]
    if error < kernel_errors.LIMIT:
        main(given)
    else:
        with pytest.raises(SystemExit, match="further than 1e-12 from its definition"):
            main(given)
    assert len(capsys.readouterr().out.splitlines()) == 2
