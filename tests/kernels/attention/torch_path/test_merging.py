import torch

from recsys.kernels.attention.torch_path.merging import merge


def _softmax(scores: torch.Tensor, v: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.softmax(scores, -1) @ v, torch.logsumexp(scores, -1)


def test_two_parts_of_the_keys_merge_to_the_softmax_over_all() -> None:
    generator = torch.Generator().manual_seed(0)
    scores, v = (torch.randn(*shape, generator=generator, dtype=torch.float64) for shape in ((4, 9), (9, 3)))
    scores = scores * 50
    parts = *_softmax(scores[:, :2], v[:2]), *_softmax(scores[:, 2:], v[2:])
    for found, expected in zip(merge(*parts), _softmax(scores, v), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


def test_a_part_in_which_all_is_hidden_changes_no_bit() -> None:
    out, lse = torch.randn(5, 3, generator=torch.Generator().manual_seed(0)), torch.tensor([0.0, 3.0, -40.0, 80.0, 1e4])
    hidden = torch.full_like(out, 7.0), torch.full_like(lse, -1e30)
    for parts in ((out, lse, *hidden), (*hidden, out, lse)):
        merged_out, merged_lse = merge(*parts)
        assert torch.equal(merged_out, out)
        assert torch.equal(merged_lse, lse)
