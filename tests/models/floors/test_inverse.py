import pytest
import torch

from recsys.models.floors.inverse import spd_inverse


@pytest.mark.parametrize("n", [1, 2, 63, 700])
def test_the_inverse_is_that_of_float64(n: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("recsys.models.floors.inverse._SMALL", 16)
    A = torch.randn(n, 2 * n, generator=torch.Generator().manual_seed(n))
    matrix = A @ A.T / n + torch.eye(n)
    wanted = torch.linalg.inv(matrix.double())
    found = spd_inverse(matrix.clone())
    torch.testing.assert_close(found.double(), wanted, rtol=0, atol=1e-5)
    assert torch.equal(found, found.T) or (found - found.T).abs().max() < 1e-6


def test_a_matrix_that_is_not_positive_definite_is_refused() -> None:
    with pytest.raises(RuntimeError, match="not positive-definite"):
        spd_inverse(-torch.eye(3))
