import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from recsys.models.encoder import Encoder, EncoderConfig, init_weights


@pytest.mark.parametrize(("norm", "block"), [("pre", "transformer"), ("post", "transformer"), ("pre", "ligr")])
@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("num_layers", [1, 3])
def test_the_last_states_are_those_of_the_whole_pass(norm: str, block: str, causal: bool, num_layers: int) -> None:
    torch.manual_seed(0)
    config = EncoderConfig(d_model=16, num_heads=4, num_layers=num_layers, norm=norm, block=block)  # type: ignore[arg-type]  # of the known ones
    encoder = Encoder(config, max_len=9, causal=causal).eval()
    lengths = (1, 9, 4, 4, 2)
    x = torch.randn(sum(lengths), 16)
    whole = encoder(x, lengths)[torch.tensor(lengths).cumsum(0) - 1]
    torch.testing.assert_close(encoder.last_states(x, lengths), whole, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(("norm", "block"), [("pre", "transformer"), ("post", "transformer"), ("pre", "ligr")])
@pytest.mark.parametrize("num_layers", [1, 3])
def test_states_and_gradients_at_chosen_tokens_are_those_of_the_whole_pass(
    norm: str, block: str, num_layers: int
) -> None:
    torch.manual_seed(0)
    config = EncoderConfig(d_model=16, num_heads=4, num_layers=num_layers, norm=norm, block=block)  # type: ignore[arg-type]  # of the known ones
    encoder = Encoder(config, max_len=9, causal=False).eval().double()
    lengths = (0, 1, 9, 4, 0, 4, 2)
    x = torch.randn(sum(lengths), 16, dtype=torch.float64, requires_grad=True)
    is_chosen = torch.zeros(len(x), dtype=torch.bool)
    is_chosen[[0, 2, 3, 9, 12, 13, 19]] = True  # none of the fourth sequence, the last token of the fifth
    found, whole = encoder.states_at(x, lengths, is_chosen.nonzero().squeeze(1)), encoder(x, lengths)[is_chosen]
    torch.testing.assert_close(found, whole)
    weights = torch.randn_like(whole)
    inputs = [x, *encoder.parameters()]
    gradients = (torch.autograd.grad((states * weights).sum(), inputs) for states in (found, whole))
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other)


def test_states_at_chosen_tokens_are_refused_where_each_token_sees_other_keys() -> None:
    encoder = Encoder(EncoderConfig(d_model=8, num_heads=2, num_layers=1), max_len=5, causal=True)
    with pytest.raises(ValueError, match="take forward, or last_states"):
        encoder.states_at(torch.randn(3, 8), (3,), torch.arange(3))


def test_attention_dropout_falls_on_the_last_block_of_chosen_tokens_too() -> None:
    torch.manual_seed(0)
    config = EncoderConfig(d_model=8, num_heads=2, num_layers=1, dropout=0.0, attention_dropout=0.5)
    encoder = Encoder(config, max_len=5, causal=False).train()
    x, places = torch.randn(8, 8), torch.tensor([0, 3, 6])

    def states(seed: int) -> Tensor:
        return encoder.states_at(x, (5, 3), places, torch.Generator().manual_seed(seed))

    assert torch.equal(states(1), states(1))
    assert not torch.allclose(states(1), states(2))


@pytest.mark.parametrize("norm", ["pre", "post"])
def test_scaled_inputs_are_the_token_vectors_times_the_root_of_the_width(norm: str) -> None:
    torch.manual_seed(0)
    shape: dict[str, Any] = {"d_model": 16, "num_heads": 2, "num_layers": 2, "norm": norm}
    plain, scaled = (Encoder(EncoderConfig(**shape, scale_inputs=on), max_len=5, causal=False) for on in (False, True))
    scaled.load_state_dict(plain.state_dict())
    x, lengths, places = torch.randn(7, 16), (5, 2), torch.tensor([1, 6])
    for way in ("forward", "last_states"):
        found, wanted = (getattr(encoder.eval(), way) for encoder in (scaled, plain))
        torch.testing.assert_close(found(x, lengths), wanted(4 * x, lengths))
    torch.testing.assert_close(scaled.states_at(x, lengths, places), plain.states_at(4 * x, lengths, places))


def test_a_gradient_reaches_every_weight_by_the_last_states() -> None:
    encoder = Encoder(EncoderConfig(d_model=8, num_heads=2, num_layers=2), max_len=5, causal=True).eval()
    total = encoder.last_states(torch.randn(7, 8), (5, 2)).square().sum()
    assert all(gradient is not None for gradient in torch.autograd.grad(total, list(encoder.parameters())))


def test_no_state_stands_after_nothing_or_after_too_much() -> None:
    encoder = Encoder(EncoderConfig(d_model=8, num_heads=2, num_layers=1), max_len=5, causal=True)
    with pytest.raises(ValueError, match="sequence 1 is empty"):
        encoder.last_states(torch.randn(3, 8), (3, 0))
    with pytest.raises(ValueError, match="6 tokens exceeds max_len=5"):
        encoder.last_states(torch.randn(6, 8), (6,))


def ligr_reference(encoder: Encoder, x: Tensor) -> Tensor:
    """States (L, D) of one causal sequence of token vectors (L, D), written out with torch's own attention."""
    L, D = x.shape
    x = x + encoder.position.weight[:L]
    for part in encoder.blocks:
        block: Any = part
        normed = F.layer_norm(x, (D,), block.norm_attention.weight, block.norm_attention.bias)
        q, k, v = (y.view(L, 2, D // 2).transpose(0, 1) for y in block.qkv(normed).chunk(3, dim=1))  # each (H, L, D/H)
        attended = F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(0, 1).reshape(L, D)
        x = x + torch.sigmoid(x @ block.gate_attention.weight.T + block.gate_attention.bias) * block.out(attended)
        normed = F.layer_norm(x, (D,), block.norm_ff.weight, block.norm_ff.bias)
        gate, up = normed @ block.up.weight[:24].T, normed @ block.up.weight[24:].T
        swiglu = (gate * torch.sigmoid(gate) * up) @ block.down.weight.T
        x = x + torch.sigmoid(x @ block.gate_ff.weight.T + block.gate_ff.bias) * swiglu
    return F.layer_norm(x, (D,), encoder.norm.weight, encoder.norm.bias)


def ligr() -> Encoder:
    torch.manual_seed(0)
    config = EncoderConfig(
        d_model=16, num_heads=2, num_layers=2, d_ff=24, positions="absolute", block="ligr", dropout=0.5
    )
    return Encoder(config, max_len=9, causal=True).double()


def test_a_ligr_encoder_is_the_one_of_its_formula() -> None:
    encoder = ligr().eval()
    for norm in (part for part in encoder.modules() if isinstance(part, nn.LayerNorm)):
        nn.init.normal_(norm.weight)
        nn.init.normal_(norm.bias)
    x = torch.randn(11, 16, dtype=torch.float64)
    wanted = torch.cat([ligr_reference(encoder, part) for part in torch.split(x, [7, 4])])
    torch.testing.assert_close(encoder(x, (7, 4)), wanted, rtol=0, atol=1e-12)


@pytest.mark.parametrize("opened", ["gate_attention", "gate_ff", ""])
def test_dropout_of_a_ligr_block_falls_on_each_path_that_its_gate_lets_through(opened: str) -> None:
    encoder = ligr().train()
    encoder.dropout.p = 0.0
    for part in encoder.blocks:
        for name in {"gate_attention", "gate_ff"} - {opened}:
            nn.init.constant_(getattr(part, name).bias, -1e4)
    x = torch.randn(9, 16, dtype=torch.float64)
    difference = float((encoder(x, (9,)) - encoder.eval()(x, (9,))).detach().abs().max())
    assert difference > 0.01 if opened else difference == 0.0


def test_the_parameters_of_a_block_are_counted() -> None:
    def count(**keys: Any) -> int:
        encoder = Encoder(EncoderConfig(d_model=16, num_heads=2, num_layers=3, d_ff=24, **keys), max_len=5, causal=True)
        return sum(parameter.numel() for parameter in encoder.blocks.parameters())

    attention, norms = 4 * 16 * 16 + 4 * 16, 4 * 16
    assert count() == 3 * (attention + norms + 2 * 16 * 24 + 24 + 16)
    assert count(block="ligr") == 3 * (attention + norms + 3 * 16 * 24 + 2 * (16 * 16 + 16))


@pytest.mark.parametrize("keys", [{"norm": "post"}, {"activation": "relu"}])
def test_a_ligr_block_with_another_norm_or_activation_is_refused(keys: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="with block=ligr, which is pre-norm with SwiGLU"):
        EncoderConfig(block="ligr", **keys)


def test_truncated_weights_stay_within_two_deviations() -> None:
    torch.manual_seed(0)
    layer = nn.Linear(200, 200)
    init_weights(layer)
    assert layer.weight.detach().abs().max() > 0.06
    assert float(layer.weight.detach().std()) == pytest.approx(0.02, rel=0.02)
    init_weights(layer, "truncated")
    assert layer.weight.detach().abs().max() <= 0.04
    # Of a normal cut at two deviations the deviation is .8796.
    assert float(layer.weight.detach().std()) == pytest.approx(0.02 * 0.8796, rel=0.02)


def test_the_eps_of_a_norm_is_the_configured_one() -> None:
    x = torch.full((1, 8), 1e-4)
    x[0, 0] = -1e-4
    states = []
    for eps in (1e-5, 1e-12):
        config = EncoderConfig(d_model=8, num_heads=1, num_layers=1, norm="post", norm_eps=eps, dropout=0.0)
        encoder = Encoder(config, max_len=1, causal=True)
        assert all(part.eps == eps for part in encoder.modules() if isinstance(part, nn.LayerNorm))
        nn.init.zeros_(encoder.position.weight)
        states.append(encoder._embed(x, (1,))[0])
    spread = [float(state.detach().std(correction=0)) for state in states]
    assert spread[1] == pytest.approx(1.0, abs=1e-3)
    assert spread[0] == pytest.approx(math.sqrt(4.375e-9 / (4.375e-9 + 1e-5)), rel=1e-3)
