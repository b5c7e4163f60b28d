"""Which path an op takes: Triton on a GPU, torch elsewhere, unless RECSYS_KERNELS forces one.

    auto       triton for CUDA tensors in float32, float16 and bfloat16, torch for all else
    triton     the Triton kernels; without a GPU they need TRITON_INTERPRET=1, which is slow and knows no bfloat16
    torch      plain torch, fast on the CPU
    reference  the definition, slow

The first time an op takes a path, one line of the log `recsys.kernels` (INFO) says so.
"""

import importlib.util
import logging
import os
from functools import cache
from typing import Literal, cast

import torch
from torch import Tensor

from recsys.kernels.launch import compile_target

Backend = Literal["triton", "torch", "reference"]
BACKENDS = ("auto", "triton", "torch", "reference")
MIN_CAPABILITY = (8, 0)
SMALL_SHARED_MEMORY = ((8, 6), (8, 9), (12, 0), (12, 1))  # consumer and inference cards: 99 KB a block, not 163 or 227

_log = logging.getLogger("recsys.kernels")


def choose_backend(op: str, x: Tensor) -> Backend:
    """The path of `op` for tensors like `x`.

    Raises:
        ValueError: RECSYS_KERNELS names no path.
        RuntimeError: triton is forced where it cannot run, or could give a wrong result.
    """
    named = named_backend()
    if named == "triton":
        _check_triton(x)
        chosen: Backend = "triton"
    elif named == "auto":
        chosen = "triton" if _suits_triton(x) else "torch"
    else:
        chosen = cast(Backend, named)
    _say_once(op, chosen, x.device.type, named)
    return chosen


def takes_triton(op: str, x: Tensor) -> bool:
    """Whether `op` takes the Triton path for tensors like `x`, for ops whose other paths are not chosen by name.

    Raises:
        ValueError, RuntimeError: as `choose_backend`.
    """
    if x.device.type == "cpu" and named_backend() != "triton":
        return False
    return choose_backend(op, x) == "triton"


def named_backend() -> str:
    """The value of RECSYS_KERNELS, `auto` where it is not set.

    Raises:
        ValueError: it names no path.
    """
    name = os.environ.get("RECSYS_KERNELS") or "auto"
    if name not in BACKENDS:
        raise ValueError(f"RECSYS_KERNELS={name}: wanted one of {', '.join(BACKENDS)}; unset it to use auto")
    return name


def has_triton() -> bool:
    """Whether the package can be imported."""
    return importlib.util.find_spec("triton") is not None


def suits_capability(capability: tuple[int, int]) -> bool:
    """Whether the launch tables fit a GPU: sm_80 and newer, but for those with 99 KB of shared memory a block."""
    return capability >= MIN_CAPABILITY and capability not in SMALL_SHARED_MEMORY


def is_interpreting() -> bool:
    """Whether Triton's kernels run in its interpreter, on the CPU."""
    return os.environ.get("TRITON_INTERPRET") == "1"


def _suits_triton(x: Tensor) -> bool:
    if not x.is_cuda or x.dtype == torch.float64:
        return False
    if not has_triton():
        _warn_once("triton is not installed, so kernels run in plain torch on the GPU; pip install -e '.[triton]'")
        return False
    if not suits_capability(torch.cuda.get_device_capability(x.device)):
        _warn_once(
            f"{torch.cuda.get_device_name(x.device)} is older than sm_80 or has too little shared memory for the "
            "Triton kernels, so they run in plain torch on it"
        )
        return False
    return True


def _check_triton(x: Tensor) -> None:
    if not has_triton():
        raise RuntimeError("RECSYS_KERNELS=triton: triton is not installed; pip install -e '.[triton]'")
    if compile_target() is not None:
        return
    if is_interpreting():
        if x.dtype == torch.bfloat16:
            raise RuntimeError(
                "RECSYS_KERNELS=triton with TRITON_INTERPRET=1: the interpreter computes bfloat16 wrongly; "
                "use float32, or RECSYS_KERNELS=torch"
            )
        return
    if not x.is_cuda:
        raise RuntimeError(
            f"RECSYS_KERNELS=triton: the tensors are on {x.device}; wanted a CUDA device, or TRITON_INTERPRET=1 "
            "before Python starts; unset RECSYS_KERNELS to use the torch path"
        )
    if x.dtype == torch.float64:
        raise RuntimeError("RECSYS_KERNELS=triton: float64 on a GPU is not built; use float32, or RECSYS_KERNELS=torch")


@cache
def _say_once(op: str, chosen: str, device: str, named: str) -> None:
    _log.info("%s: %s path on %s (RECSYS_KERNELS=%s)", op, chosen, device, named)


@cache
def _warn_once(message: str) -> None:
    _log.warning(message)
