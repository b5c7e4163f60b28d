"""The faithful network against the authors' definition, written out with padding in float64.

Sequences are padded on the right; a key that is padding gets -10000 added to its score, which in float64 is a weight of
exactly 0. Dropout is off. The authors divide the loss by the number of masks + 1e-5; the mean here is exact.
"""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from recsys.features.batches import JaggedBatch
from recsys.models.bert4rec import BERT4Rec, BERT4RecConfig
from recsys.models.masking import static_masks

FAITHFUL: dict[str, Any] = {
    "d_model": 16,
    "num_layers": 2,
    "num_heads": 2,
    "d_ff": 32,
    "max_len": 10,
    "dropout": 0.5,
    "attention_dropout": 0.2,
    "norm": "post",
    "norm_eps": 1e-12,
    "positions": "absolute",
    "token_type": True,
    "init": "truncated",
    "masking": "static",
    "mask_share": 0.6,
    "max_predictions": 3,
    "copies": 10,
}
V = 12
SEQUENCES = [[1, 2, 3, 4, 5, 6, 7, 8, 9, 10], [11, 12], [5], [3, 3, 9, 1, 12, 7, 2]]
INSTANCES = [4, 11 + 10, 22, 33 + 9]  # the second sequence is masked at its last event


@pytest.fixture
def model() -> BERT4Rec:
    torch.manual_seed(0)
    model = BERT4Rec(BERT4RecConfig(**FAITHFUL), V).double().eval()
    with torch.no_grad():
        for parameter in model.parameters():  # biases of 0 and weights of .02 would hide what is left out
            parameter.normal_(std=0.5)
        model.get_parameter("item.weight")[0] = 0.0
    return model


def padded(rows: list[list[int]], length: int) -> tuple[Tensor, Tensor]:
    """(B, L) int64 ids, 0 where padded; (B, L) bool, True where real."""
    ids = torch.tensor([row + [0] * (length - len(row)) for row in rows])
    lengths = torch.tensor([len(row) for row in rows])
    return ids, torch.arange(length) < lengths[:, None]


def encoded(model: BERT4Rec, ids: Tensor, is_real: Tensor, is_masked: Tensor) -> Tensor:
    """(B, L, D) states of a post-norm BERT encoder over padded ids."""
    B, L = ids.shape
    D, heads = 16, 2
    assert model.token_type is not None
    x = torch.where(is_masked[..., None], model.mask, model.get_parameter("item.weight")[ids])
    x = normed(model.encoder.norm, x + model.encoder.position.weight[:L] + model.token_type)
    penalty = (~is_real).double()[:, None, None, :] * -10_000.0  # (B, 1, 1, L), of keys
    for part in model.encoder.blocks:
        block: Any = part
        weights, biases = block.qkv.weight.chunk(3), block.qkv.bias.chunk(3)
        q, k, v = (
            (x @ w.T + b).view(B, L, heads, D // heads).transpose(1, 2) for w, b in zip(weights, biases, strict=True)
        )
        scores = q @ k.transpose(-1, -2) / (D // heads) ** 0.5 + penalty  # (B, H, L, L)
        attended = (scores.softmax(-1) @ v).transpose(1, 2).reshape(B, L, D)
        x = normed(block.norm_attention, x + attended @ block.out.weight.T + block.out.bias)
        hidden = exact_gelu(x @ block.up.weight.T + block.up.bias)
        x = normed(block.norm_ff, x + hidden @ block.down.weight.T + block.down.bias)
    return x


def head(model: BERT4Rec, states: Tensor) -> Tensor:
    """(n, V) logits of states (n, D), column j is item j + 1."""
    z = normed(model.norm, exact_gelu(states @ model.transform.weight.T + model.transform.bias))
    return z @ model.get_parameter("item.weight")[1:].T + model.get_parameter("bias")[1:]


def normed(norm: Any, x: Tensor) -> Tensor:
    centred = x - x.mean(-1, keepdim=True)
    return centred / (centred.square().mean(-1, keepdim=True) + 1e-12).sqrt() * norm.weight + norm.bias


def exact_gelu(x: Tensor) -> Tensor:
    return 0.5 * x * (1.0 + torch.erf(x / 2**0.5))


def test_states_and_loss_are_those_of_the_padded_definition(model: BERT4Rec) -> None:
    lengths = tuple(len(sequence) for sequence in SEQUENCES)
    instances = torch.tensor(INSTANCES)
    is_masked = static_masks(lengths, instances, 0.6, 10, 0, 3)
    assert [int(part.sum()) for part in torch.split(is_masked, list(lengths))] == [3, 1, 1, 3]
    ids, is_real = padded(SEQUENCES, 10)
    placed = torch.zeros_like(is_real)
    placed[is_real] = is_masked
    wanted = encoded(model, ids, is_real, placed)

    seen: list[Tensor] = []
    model.transform.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    batch = replace(JaggedBatch.from_sequences(SEQUENCES), instances=instances)
    loss = model.loss(batch, torch.Generator())
    torch.testing.assert_close(seen[0], wanted[placed], rtol=0, atol=1e-10)
    wanted_loss = F.cross_entropy(head(model, wanted[placed]), ids[placed] - 1)
    torch.testing.assert_close(loss, wanted_loss, rtol=0, atol=1e-10)


def test_gradients_are_those_of_the_padded_definition(model: BERT4Rec) -> None:
    lengths, instances = tuple(len(sequence) for sequence in SEQUENCES), torch.tensor(INSTANCES)
    ids, is_real = padded(SEQUENCES, 10)
    placed = torch.zeros_like(is_real)
    placed[is_real] = static_masks(lengths, instances, 0.6, 10, 0, 3)
    wanted = F.cross_entropy(head(model, encoded(model, ids, is_real, placed)[placed]), ids[placed] - 1)
    loss = model.loss(replace(JaggedBatch.from_sequences(SEQUENCES), instances=instances), torch.Generator())
    named = dict(model.named_parameters())
    found, reference = (torch.autograd.grad(value, list(named.values())) for value in (loss, wanted))
    for name, mine, theirs in zip(named, found, reference, strict=True):
        rows = slice(1, None) if name == "item.weight" else slice(None)  # row 0 stands in padding, and never moves
        torch.testing.assert_close(mine[rows], theirs[rows], rtol=0, atol=1e-10, msg=name)


def test_scores_are_those_of_a_mask_after_the_history(model: BERT4Rec) -> None:
    """The authors put the mask in place of the last of at most max_len events: the history before it is read."""
    histories = [sequence[: model.max_len] for sequence in SEQUENCES]
    assert max(map(len, histories)) == 9
    ids, is_real = padded([[*history, 1] for history in histories], 10)
    at = torch.tensor([len(history) for history in histories])
    placed = torch.arange(10) == at[:, None]
    states = encoded(model, ids, is_real, placed)[placed]
    scores = model.encode(JaggedBatch.from_sequences(histories)) @ model.item_vectors().T
    torch.testing.assert_close(scores[:, 1:], head(model, states), rtol=0, atol=1e-10)
