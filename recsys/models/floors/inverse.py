"""The inverse of a large symmetric positive definite matrix, in its own memory and half as much again.

    A = L L^T      P = A^-1 = L^-T L^-1

Both triangular steps split the matrix in halves and leave the work to matrix products: several times faster than the
LAPACK routine for the inverse from a Cholesky factor.
"""

import torch
from torch import Tensor

_SMALL = 512


def spd_inverse(matrix: Tensor) -> Tensor:
    """The inverse of (n, n) float `matrix`, whose memory it overwrites with scratch.

    Raises:
        torch.linalg.LinAlgError: it is not positive definite.
    """
    factor = torch.linalg.cholesky(matrix)
    _invert_lower(factor)
    _transposed_times_itself(factor, matrix)
    return matrix


def _invert_lower(L: Tensor) -> None:
    """L <- L^-1, in place; only its lower triangle is read and written, above it stand zeros."""
    n = len(L)
    if n <= _SMALL:
        L.copy_(torch.linalg.solve_triangular(L, torch.eye(n, dtype=L.dtype), upper=False))
        return
    h = n // 2
    _invert_lower(L[:h, :h])
    _invert_lower(L[h:, h:])
    L[h:, :h] = -_lower_times(L[h:, h:], _times_lower(L[h:, :h], L[:h, :h]))


def _lower_times(L: Tensor, right: Tensor) -> Tensor:
    """L @ right for lower triangular L."""
    n = len(L)
    if n <= _SMALL:
        return L @ right
    h = n // 2
    bottom = L[h:, :h] @ right[:h]
    bottom += _lower_times(L[h:, h:], right[h:])
    return torch.cat([_lower_times(L[:h, :h], right[:h]), bottom])


def _times_lower(left: Tensor, L: Tensor) -> Tensor:
    """left @ L for lower triangular L."""
    n = len(L)
    if n <= _SMALL:
        return left @ L
    h = n // 2
    first = left[:, h:] @ L[h:, :h]
    first += _times_lower(left[:, :h], L[:h, :h])
    return torch.cat([first, _times_lower(left[:, h:], L[h:, h:])], dim=1)


def _transposed_times_itself(M: Tensor, out: Tensor) -> None:
    """out <- M^T M for lower triangular M, symmetric; M is left as it is."""
    n = len(M)
    if n <= _SMALL:
        torch.mm(M.T, M, out=out)
        return
    h = n // 2
    _transposed_times_itself(M[:h, :h], out[:h, :h])
    _transposed_times_itself(M[h:, h:], out[h:, h:])
    for first in range(0, h, _SMALL):
        columns = slice(first, min(first + _SMALL, h))
        out[:h, columns] += M[h:, :h].T @ M[h:, columns]
    out[h:, :h] = M[h:, h:].T @ M[h:, :h]
    out[:h, h:] = out[h:, :h].T
