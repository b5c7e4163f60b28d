"""Gradients of the ops have no gradient of their own: whoever asks for one is told."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from recsys.kernels.attention import jagged_attention
from recsys.kernels.jagged import JaggedMeta
from recsys.kernels.jagged_embedding import jagged_embedding
from recsys.kernels.linear_cross_entropy import linear_cross_entropy
from recsys.kernels.sampled_loss import sampled_loss

META = JaggedMeta.from_lengths([3])
PLACES = torch.tensor([0, 1, 2])
NEGATIVES = torch.tensor([0, 2])
OPS: dict[str, Callable[[Tensor], Any]] = {
    "jagged_attention": lambda x: jagged_attention(x[:, None], x[:, None], x[:, None], META).sum(),
    "linear_cross_entropy": lambda x: linear_cross_entropy(x, x.detach(), PLACES),
    "sampled_loss": lambda x: sampled_loss(x, x.detach(), PLACES, NEGATIVES),
    "jagged_embedding": lambda x: jagged_embedding(x, PLACES).sum(),
}


@pytest.mark.parametrize("op", list(OPS))
def test_a_second_derivative_is_refused(op: str) -> None:
    x = torch.randn(3, 4, requires_grad=True)
    torch.autograd.grad(OPS[op](x), x)
    with pytest.raises(RuntimeError, match=f"{op} has no second derivative; wanted its gradient without create_graph"):
        torch.autograd.grad(OPS[op](x), x, create_graph=True)
