"""`.npy` files: memory-mapped, with one clear line when a file is missing, cut short or of another kind."""

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from recsys.errors import DataError


def load_array(path: Path, dtype: npt.DTypeLike, rank: int = 1) -> npt.NDArray[Any]:
    """The array of this rank stored at `path`, read-only and memory-mapped.

    Args:
        path: a `.npy` file.
        dtype: the type that is wanted.
        rank: the number of dimensions that is wanted.

    Raises:
        DataError: the file is missing, cut short, no `.npy` file, or of another type or rank.
    """
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except FileNotFoundError as error:
        raise DataError(f"{path}: missing; prepare the dataset again") from error
    except (OSError, ValueError, EOFError) as error:
        array = _load_empty(path, error)
    if array.ndim != rank or array.dtype != np.dtype(dtype):
        raise DataError(f"{path}: holds {array.dtype} of rank {array.ndim}, wanted {np.dtype(dtype)} of rank {rank}")
    return np.asarray(array) if array.size == 0 else array


def _load_empty(path: Path, cause: Exception) -> npt.NDArray[Any]:
    """An array without elements cannot be mapped; any other failure is damage."""
    try:
        array: npt.NDArray[Any] = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError):
        array = np.zeros(1)
    if array.size:
        raise DataError(f"{path}: damaged or cut short ({cause}); prepare the dataset again") from cause
    return array
