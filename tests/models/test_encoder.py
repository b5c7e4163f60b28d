import pytest
import torch

from recsys.models.encoder import Encoder, EncoderConfig


@pytest.mark.parametrize("norm", ["pre", "post"])
@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("num_layers", [1, 3])
def test_the_last_states_are_those_of_the_whole_pass(norm: str, causal: bool, num_layers: int) -> None:
    torch.manual_seed(0)
    config = EncoderConfig(d_model=16, num_heads=4, num_layers=num_layers, norm=norm)  # type: ignore[arg-type]  # one of the two
    encoder = Encoder(config, max_len=9, causal=causal).eval()
    lengths = (1, 9, 4, 4, 2)
    x = torch.randn(sum(lengths), 16)
    whole = encoder(x, lengths)[torch.tensor(lengths).cumsum(0) - 1]
    torch.testing.assert_close(encoder.last_states(x, lengths), whole, rtol=1e-6, atol=1e-6)


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
