import logging

import pytest
import torch

from recsys.kernels import backend
from recsys.kernels.backend import choose_backend
from recsys.kernels.launch import compiling_for


@pytest.fixture(autouse=True)
def _nothing_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RECSYS_KERNELS", raising=False)
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    backend._say_once.cache_clear()


@pytest.mark.parametrize("name", ["", "auto", "torch"])
def test_the_cpu_runs_torch(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RECSYS_KERNELS", name)
    assert choose_backend("op", torch.zeros(1)) == "torch"


def test_a_named_path_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RECSYS_KERNELS", "reference")
    assert choose_backend("op", torch.zeros(1)) == "reference"


def test_a_name_that_is_no_path_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RECSYS_KERNELS", "fast")
    with pytest.raises(ValueError, match="RECSYS_KERNELS=fast: wanted one of auto, triton, torch, reference"):
        choose_backend("op", torch.zeros(1))


def test_triton_needs_a_gpu_or_its_interpreter(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RECSYS_KERNELS", "triton")
    with pytest.raises(RuntimeError, match="the tensors are on cpu; wanted a CUDA device, or TRITON_INTERPRET=1"):
        choose_backend("op", torch.zeros(1))
    with compiling_for("sm_90"):
        assert choose_backend("op", torch.zeros(1)) == "triton"
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert choose_backend("op", torch.zeros(1)) == "triton"
    with pytest.raises(RuntimeError, match="the interpreter computes bfloat16 wrongly; use float32"):
        choose_backend("op", torch.zeros(1, dtype=torch.bfloat16))


def test_triton_that_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RECSYS_KERNELS", "triton")
    monkeypatch.setattr(backend, "has_triton", lambda: False)
    with pytest.raises(RuntimeError, match=r"triton is not installed; pip install -e '.\[triton\]'"):
        choose_backend("op", torch.zeros(1))


def test_cards_with_little_shared_memory_run_torch() -> None:
    suited = [(8, 0), (9, 0), (10, 0)]
    unsuited = [(7, 5), (8, 6), (8, 9), (12, 0)]
    assert all(map(backend.suits_capability, suited))
    assert not any(map(backend.suits_capability, unsuited))


def test_each_op_says_its_path_once(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="recsys.kernels"):
        for _ in range(3):
            choose_backend("op", torch.zeros(1))
        choose_backend("another", torch.zeros(1))
    assert [record.message for record in caplog.records] == [
        "op: torch path on cpu (RECSYS_KERNELS=auto)",
        "another: torch path on cpu (RECSYS_KERNELS=auto)",
    ]
