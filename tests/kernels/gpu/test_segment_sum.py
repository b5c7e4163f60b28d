import pytest
import torch

from recsys.kernels.segment_sum import segment_sum, segment_sum_reference

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("size", [(0, 1, 3, 4), (1, 1, 1, 1), (1000, 3, 63, 50), (700, 17, 40, 200)])
def test_the_kernels_equal_the_definition(size: tuple[int, int, int, int], dtype: torch.dtype) -> None:
    (R, K, S, D), generator = size, torch.Generator().manual_seed(0)
    x = torch.randn(R, D, generator=generator).to("cuda", dtype)
    ids = torch.randint(-1, S + 1, (R, K), generator=generator).cuda()
    weights = torch.randn(R, K, generator=generator).cuda()
    found = segment_sum(x, ids, S, weights=weights, out_dtype=torch.float32)
    expected = segment_sum_reference(x.double(), ids, S, weights=weights.double())
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=2e-4)


def test_every_run_gives_the_same_bits_however_long_a_segment_is() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(300_000, 64, generator=generator).cuda()
    ids = (torch.rand(300_000, generator=generator) ** 8 * 5_000).long().cuda()
    first = segment_sum(x, ids, 5_000)
    for _ in range(20):
        assert torch.equal(segment_sum(x, ids, 5_000), first)
