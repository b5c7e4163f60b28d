import pytest
import torch

from recsys.models.dropout import Dropout


@pytest.mark.parametrize("p", [0.001, 0.1, 0.2, 0.5])
def test_it_drops_the_share_asked_for_and_keeps_the_mean(p: float) -> None:
    torch.manual_seed(0)
    y = Dropout(p)(torch.ones(1003, 997))
    assert float((y == 0).float().mean()) == pytest.approx(p, abs=0.004)
    assert float(y.mean()) == pytest.approx(1.0, abs=0.004)
    assert len(y.unique()) == 2


def test_neighbours_are_dropped_independently() -> None:
    torch.manual_seed(0)
    is_kept = (Dropout(0.5)(torch.ones(200_000, 8)) > 0).float()
    correlation = torch.corrcoef(is_kept.T)
    assert (correlation - torch.eye(8)).abs().max() < 0.01
    assert (is_kept.mean(0) - 0.5).abs().max() < 0.005


def test_the_seed_alone_decides_and_the_gradient_sees_the_same_mask() -> None:
    x = torch.ones(37, 5, requires_grad=True)
    torch.manual_seed(3)
    y = Dropout(0.3)(x)
    y.sum().backward()
    assert x.grad is not None
    assert torch.equal(x.grad, y.detach())
    torch.manual_seed(3)
    assert torch.equal(Dropout(0.3)(x), y)
    assert not torch.equal(Dropout(0.3)(x), y)


def test_evaluation_and_zero_change_nothing() -> None:
    x = torch.randn(4, 4)
    assert Dropout(0.0)(x) is x
    assert Dropout(0.9).eval()(x) is x
    assert Dropout(0.5)(torch.empty(0, 4)).shape == (0, 4)
