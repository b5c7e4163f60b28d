"""Kernels compiled for GPUs that are not there: a few by `make test`, all by `make test-kernels`."""

import importlib.util
import os

import pytest


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    reason = None
    if importlib.util.find_spec("triton") is None:
        reason = "triton is not installed; pip install -e '.[triton]'"
    elif os.environ.get("TRITON_INTERPRET") == "1":
        reason = "TRITON_INTERPRET=1: the interpreter compiles nothing; unset it"
    for item in items:
        if reason and "aot" in item.path.parts:
            item.add_marker(pytest.mark.skip(reason=reason))
