"""The real Triton kernels, run by Triton's interpreter on the CPU: `make test` starts a process of its own for them."""

import os

import pytest


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if os.environ.get("TRITON_INTERPRET") == "1":
        return
    reason = "needs TRITON_INTERPRET=1 before Python starts: make test runs it so"
    for item in items:
        if "interp" in item.path.parts:
            item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture(autouse=True)
def _by_triton(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RECSYS_KERNELS", "triton")
