"""Blocks of queries, or of keys, of the sequences of a batch: what a program takes.

The list of all chunks is made on the host once a batch, those with most work first, so that no program is without work
and the last ones to run are short.
"""

import numpy as np
import torch
from torch import Tensor

from recsys.kernels.jagged import JaggedMeta

SPLIT_PROGRAMS = 264  # fewer programs than two for each processor of an H100 or H200: the keys are split
SPLIT_KEYS = 1024  # a part has at least so many keys


def chunks_of(meta: JaggedMeta, block: int, causal: bool) -> Tensor:
    """(C, 2) int32: number of the sequence and of the block in it, those with most work first."""
    return meta.cached(("chunks", block, causal), lambda: _make_chunks(meta, block, causal))


def num_splits(programs: int, longest: int) -> int:
    """Parts of the keys, a power of two, so that the programs fill the processors."""
    splits = 1
    while programs * splits < SPLIT_PROGRAMS and longest >= 2 * splits * SPLIT_KEYS:
        splits *= 2
    return splits


def _make_chunks(meta: JaggedMeta, block: int, causal: bool) -> Tensor:
    counts = -(-meta.lengths // block)
    sequences = np.repeat(np.arange(len(counts)), counts)
    blocks = np.arange(len(sequences)) - np.repeat(np.cumsum(counts) - counts, counts)
    work = blocks if causal else counts[sequences]
    order = np.argsort(-work, kind="stable")
    chunks = np.stack([sequences[order], blocks[order]], axis=1).astype(np.int32)
    return torch.from_numpy(chunks).to(meta.offsets.device, non_blocking=True)
