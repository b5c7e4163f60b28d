"""A machine that has too little memory for a run: one line in place of the allocator's."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from recsys.errors import OutOfMemory

_REMEDY = (
    "what was saved is kept; lower train.tokens_per_batch (train.accumulate keeps the step as large), "
    "model.max_len or model.d_model, and name another --out"
)
# What torch says in a plain RuntimeError: its allocator of the CPU, CUDA itself, and CUDA's matrix products.
_IN_PLAIN_ERRORS = ("DefaultCPUAllocator", "CUDA error: out of memory", "CUBLAS_STATUS_ALLOC_FAILED")


@contextmanager
def memory_errors(out: Path) -> Iterator[None]:
    """Turns an allocation that failed inside, of Python, numpy or torch, into one line about the run in `out`.

    Raises:
        OutOfMemory: memory, or the GPU's, is spent.
    """
    try:
        yield
    except (MemoryError, torch.OutOfMemoryError) as error:
        raise _of(error, out) from error
    except RuntimeError as error:
        if not any(words in str(error) for words in _IN_PLAIN_ERRORS):
            raise
        raise _of(error, out) from error


def _of(error: Exception, out: Path) -> OutOfMemory:
    reason = " ".join(str(error).partition("\n")[0].split()) or "no allocation could be made"
    return OutOfMemory(f"{out}: out of memory ({reason}); {_REMEDY}")
