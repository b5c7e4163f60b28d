"""Factors of the ops: numbers, finite, without a gradient."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from recsys.kernels.attention import jagged_attention
from recsys.kernels.factors import as_factor
from recsys.kernels.jagged import JaggedMeta
from recsys.kernels.jagged_embedding import jagged_embedding
from recsys.kernels.linear_cross_entropy import linear_cross_entropy
from recsys.kernels.search import search_topk

META = JaggedMeta.from_lengths([3])
X, ROWS = torch.randn(3, 1, 4), torch.randn(3, 4)
PLACES = torch.tensor([0, 1, 2])
OPS: dict[str, tuple[str, Callable[[Any], object]]] = {
    "attention": ("scale", lambda value: jagged_attention(X, X, X, META, scale=value)),
    "search": ("scale", lambda value: search_topk(X, X, META, META, 1, scale=value)),
    "cross entropy": ("logit_scale", lambda value: linear_cross_entropy(ROWS, ROWS, PLACES, logit_scale=value)),
    "embedding": ("scale", lambda value: jagged_embedding(ROWS, PLACES, scale=value)),
}


@pytest.mark.parametrize("value", [2, 2.0, np.float32(2), np.int64(2), torch.tensor(2.0)])
def test_any_number_is_a_factor(value: object) -> None:
    assert as_factor("scale", value) == 2.0


@pytest.mark.parametrize("op", list(OPS))
@pytest.mark.parametrize(
    ("value", "error", "message"),
    [
        (float("inf"), ValueError, "=inf; wanted a finite number"),
        (float("nan"), ValueError, "=nan; wanted a finite number"),
        ("a", TypeError, "='a'; wanted a number"),
        (True, TypeError, "=True; wanted a number"),
        (torch.ones(2), TypeError, r" has the shape \(2,\); wanted a number"),
        (torch.nn.Parameter(torch.tensor(2.0)), ValueError, " requires a gradient, and has none; wanted a number"),
    ],
)
def test_what_is_no_factor_is_refused_by_name(op: str, value: object, error: type[Exception], message: str) -> None:
    name, call = OPS[op]
    with pytest.raises(error, match=f"^{name}{message}"):
        call(value)
