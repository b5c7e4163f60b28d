"""How the attention kernels are launched for these tensors: a row of the launch table of the device."""

from collections.abc import Mapping

from torch import Tensor

from recsys.kernels.attention.arguments import Arguments
from recsys.kernels.bundles import block_of
from recsys.kernels.launch import find_launch, launch_of

OP = "attention"
LONG = 512  # tokens: batches with a longer sequence have launches of their own
SHORT_KEYS = (64, 128, 256)  # sizes of the one-kernel backward pass


def launch_for(kernel: str, q: Tensor, v: Tensor, arguments: Arguments) -> Mapping[str, int]:
    """Sizes of blocks and options of the launch."""
    is_long = {"is_long": _longest(arguments) > LONG} if kernel == "forward" else {}
    return launch_of(OP, kernel, q.device, **_launch_key(q, v, arguments), **is_long)


def short_launch(q: Tensor, v: Tensor, arguments: Arguments) -> Mapping[str, int] | None:
    """How the one-kernel backward is launched; None where the sequences are too long or too wide for it."""
    longest = _longest(arguments)
    if longest > SHORT_KEYS[-1]:
        return None
    keys = next(size for size in SHORT_KEYS if size >= longest)
    row = find_launch(OP, "backward_short", q.device, **_launch_key(q, v, arguments), keys=keys)
    return None if row is None else {**row, "BLOCK_N": keys}


def _launch_key(q: Tensor, v: Tensor, arguments: Arguments) -> dict[str, int]:
    return {
        "width": max(block_of(q.shape[2]), block_of(v.shape[2])),
        "bits": q.element_size() * 8,
        "has_bias": arguments.time_bias is not None or arguments.pos_bias is not None,
    }


def _longest(arguments: Arguments) -> int:
    return max(arguments.meta_q.max_len, arguments.meta_k.max_len)
