"""Rows in pages, by the kernels of `numba_rows.py` on the threads of the hash table."""

import numpy as np
import torch
from torch import Tensor

from recsys.kernels.cpu.threads import in_parts, num_parts, on_threads
from recsys.kernels.row_pages import numba_rows as kernels
from recsys.kernels.row_pages.optimizers import NAMES, RowOptimizer

KINDS = {name: kind for kind, name in enumerate(NAMES)}


def gather(rows: Tensor, addresses: kernels.Ids, log_page: int, width: int) -> Tensor:
    """(N, width) the rows (N,) int64, zeros where one is below 0."""
    numbers, out = rows.contiguous().numpy(), np.empty((len(rows), width), dtype=np.float32)
    in_parts(lambda start, stop: kernels.gather(numbers, start, stop, addresses[0], log_page, out), len(numbers))
    return torch.from_numpy(out)


def update(
    rows: Tensor,
    gradients: Tensor,
    addresses: kernels.Ids,
    log_page: int,
    optimizer: RowOptimizer,
    lr: float,
    tick: int,
) -> None:
    """One step of the optimizer for every row, by the sum of its gradients in the order of the call."""
    numbers, values = rows.contiguous().numpy(), gradients.contiguous().numpy()
    order = kernels.ordered(numbers, addresses.shape[1] << log_page)
    starts = kernels.segments(numbers, order)
    constants = np.array([lr, optimizer.weight_decay, optimizer.eps, optimizer.beta1, optimizer.beta2])
    kind, state_width = KINDS[optimizer.name], optimizer.state_width(values.shape[1])
    parts = num_parts(len(order))
    # Each part has about as many gradients, and whole rows.
    cuts = np.searchsorted(starts[:-1], [len(order) * part // parts for part in range(parts)])
    cuts = np.append(cuts, len(starts) - 1)

    def work(part: int) -> None:
        kernels.update(
            numbers,
            values,
            order,
            starts,
            cuts[part],
            cuts[part + 1],
            *addresses,
            log_page,
            state_width,
            kind,
            constants,
            tick,
        )

    on_threads(work, parts)
