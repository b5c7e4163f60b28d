"""Memory that is zero, and begins where a large page does."""

import pytest

from recsys.kernels.cpu.owed_memory import LARGE_PAGE_BYTES, owed_memory


@pytest.mark.parametrize("num_bytes", [0, 1, LARGE_PAGE_BYTES - 1, LARGE_PAGE_BYTES, 3 * LARGE_PAGE_BYTES + 64])
def test_it_is_zeros_that_can_be_written(num_bytes: int) -> None:
    memory = owed_memory(num_bytes)
    assert memory.shape == (num_bytes,)
    assert not memory.any()
    memory[:] = 7
    assert (memory == 7).all()
    assert not owed_memory(num_bytes).any()
    if num_bytes >= LARGE_PAGE_BYTES:
        assert memory.ctypes.data % LARGE_PAGE_BYTES == 0


def test_it_stays_while_a_part_of_it_is_held() -> None:
    part = owed_memory(2 * LARGE_PAGE_BYTES)[LARGE_PAGE_BYTES:]
    others = [owed_memory(2 * LARGE_PAGE_BYTES) for _ in range(8)]
    part[:] = 1
    assert not any(other.any() for other in others)
    assert part.all()
