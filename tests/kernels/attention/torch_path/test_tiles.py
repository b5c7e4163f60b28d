import torch

from recsys.kernels.attention.torch_path.plan import Cut, make_plan
from recsys.kernels.attention.visibility import Visibility
from recsys.kernels.jagged import JaggedMeta


def test_a_tile_is_a_view_of_its_slots_with_heads_before_rows() -> None:
    meta = JaggedMeta.from_lengths([3, 7, 8, 40])
    plan = make_plan(meta, meta, Visibility(), None, Cut(False, 1 << 20))
    slots = torch.arange(plan.queries.num_slots * 2 * 5.0).view(-1, 2, 5)
    for x in (slots, slots[..., :3], slots[:, :, 0]):
        for tile in plan.tiles:
            part = x[tile.start_q : tile.start_q + tile.n * tile.len_q]
            expected = part.reshape(tile.n, tile.len_q, *x.shape[1:]).transpose(1, 2)
            assert torch.equal(tile.queries_of(x), expected)
            assert tile.queries_of(x).data_ptr() == part.data_ptr()


def test_a_mask_that_all_queries_share_is_made_once() -> None:
    meta = JaggedMeta.from_lengths([3, 4])
    for causal, is_shared in ((False, True), (True, False)):
        (tile,) = make_plan(
            meta, meta, Visibility(causal=causal, window=(-1 if is_shared else 2, -1)), None, Cut(False, 1 << 20)
        ).tiles
        (piece,) = tile.pieces
        first, again = piece.bias(torch.float32), piece.bias(torch.float32)
        assert first is not None
        assert again is not None
        assert torch.equal(first, again)
        assert (first is again) == is_shared
        assert piece.bias(torch.float64) is not first
