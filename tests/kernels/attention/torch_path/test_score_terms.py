"""The biases of one piece against a plain look-up in the table and its gradient by autograd."""

import pytest
import torch
from torch import Tensor

from recsys.kernels.attention.bias import PosBias, TimeBias
from recsys.kernels.attention.torch_path.plan import Cut, make_plan
from recsys.kernels.attention.torch_path.score_terms import ScoreTables
from recsys.kernels.attention.visibility import Visibility
from recsys.kernels.jagged import JaggedMeta

LENGTHS_Q, LENGTHS_K = [9, 14, 14], [12, 14, 8]
NUM_HEADS = 2


def _tables(rows: int) -> tuple[TimeBias, PosBias]:
    generator = torch.Generator().manual_seed(0)
    ts_q, ts_k = (torch.randint(0, 500, (sum(n),), generator=generator).int() for n in (LENGTHS_Q, LENGTHS_K))
    time, pos = (torch.randn(rows, n, generator=generator, dtype=torch.float64, requires_grad=True) for n in (12, 7))
    return TimeBias(table=time, ts_q=ts_q, ts_k=ts_k), PosBias(table=pos)


def _definition(time: TimeBias, pos: PosBias, b: int) -> Tensor:
    (nq, nk), (start_q, start_k) = (LENGTHS_Q[b], LENGTHS_K[b]), (sum(LENGTHS_Q[:b]), sum(LENGTHS_K[:b]))
    places = torch.arange(nq) + nk - nq
    return time.scores(slice(start_q, start_q + nq), slice(start_k, start_k + nk)) + pos.scores(
        places, torch.arange(nk), False
    )


@pytest.mark.parametrize("rows", [1, NUM_HEADS])
@pytest.mark.parametrize("cut", [Cut(True, 10_000, 128, 512), Cut(True, 30, 5, 4)], ids=["whole", "small"])
def test_terms_are_the_tables_entries_and_take_their_gradient(rows: int, cut: Cut) -> None:
    time, pos = _tables(rows)
    metas = JaggedMeta.from_lengths(LENGTHS_Q), JaggedMeta.from_lengths(LENGTHS_K)
    plan = make_plan(*metas, Visibility(), None, cut)
    tables = ScoreTables.of(plan, time, pos, False)
    expected = [_definition(time, pos, b).expand(NUM_HEADS, -1, -1) for b in range(3)]
    shares = [torch.randn(x.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64) for x in expected]
    with torch.no_grad():
        for tile in plan.tiles:
            sequences = plan.queries.sequences[tile.slots_q].view(tile.n, tile.len_q)[:, 0].tolist()
            for piece in tile.pieces:
                scores, grads = (
                    torch.zeros(tile.n, NUM_HEADS, tile.len_q, tile.len_k, dtype=torch.float64) for _ in range(2)
                )
                of_piece = (piece.items, slice(None), piece.queries, piece.keys)
                for i, b in enumerate(sequences):
                    grads[i, :, : LENGTHS_Q[b], : LENGTHS_K[b]] = shares[b]
                for term in tables.terms(tile, piece):
                    term.add_to(scores[of_piece], 2.0)
                    term.add_gradient(grads[of_piece])
                for i, b in list(enumerate(sequences))[piece.items]:
                    part = piece.queries, piece.keys
                    is_real = torch.zeros(tile.len_q, tile.len_k, dtype=torch.bool)
                    is_real[: LENGTHS_Q[b], : LENGTHS_K[b]] = True
                    wanted = torch.zeros(NUM_HEADS, tile.len_q, tile.len_k, dtype=torch.float64)
                    wanted[:, : LENGTHS_Q[b], : LENGTHS_K[b]] = 2.0 * expected[b]
                    found = scores[i][:, *part] * is_real[part]
                    torch.testing.assert_close(found, wanted[:, *part], rtol=1e-12, atol=1e-12)
    loss = torch.stack([(x * share).sum() for x, share in zip(expected, shares, strict=True)]).sum()
    for grad, wanted_grad in zip(tables.grads, torch.autograd.grad(loss, (time.table, pos.table)), strict=True):
        torch.testing.assert_close(grad, wanted_grad, rtol=1e-12, atol=1e-12)
