"""A kernel is compiled once for a model, whatever its batches and seeds are."""

import pytest
import torch

from benchmarks.support.compiled import compile_launch, recorded_launches
from recsys.kernels.attention import jagged_attention
from recsys.kernels.attention.dropout import row_state
from recsys.kernels.jagged import JaggedMeta


@pytest.mark.aot
def test_neither_seed_nor_batch_changes_what_attention_is_compiled_for() -> None:
    even = next(seed for seed in range(10_000) if row_state(seed) % 16 == 0)
    odd = next(seed for seed in range(10_000) if row_state(seed) % 16 == 1)
    signatures = []
    for seed, lengths in ((even, [32, 16]), (odd, [33, 8, 2])):
        meta = JaggedMeta.from_lengths(lengths)
        q = torch.zeros(meta.total, 2, 16, dtype=torch.bfloat16)
        with recorded_launches("sm_90") as recording:
            jagged_attention(q, q, q, meta, dropout_p=0.1, seed=seed)
        ttir = compile_launch(recording.launches[0], "sm_90").ttir
        head = next(line for line in ttir.splitlines() if "tt.func public" in line)
        signatures.append([argument.split(" loc(")[0] for argument in head.split("%")])
    assert signatures[0] == signatures[1]
