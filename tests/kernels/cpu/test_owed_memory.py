"""Memory that is zero, and begins where a large page does."""

import subprocess
import sys

import numpy as np
import pytest

from benchmarks.table_soak import resident_bytes
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


@pytest.mark.parametrize("rest", [0, 100_000, LARGE_PAGE_BYTES - 4096])
def test_what_is_written_takes_no_more_memory_than_it_is(rest: int) -> None:
    size, times = LARGE_PAGE_BYTES + rest, 32
    before = resident_bytes()
    held = [owed_memory(size) for _ in range(times)]
    for part in held:
        part[:] = 1
    assert resident_bytes() - before < times * size + (8 << 20)
    assert np.all([part[-1] for part in held])


def test_memory_that_is_not_to_be_had_is_a_memory_error() -> None:
    code = (
        "import resource; from recsys.kernels.cpu.owed_memory import owed_memory\n"
        f"resource.setrlimit(resource.RLIMIT_AS, ({4 << 30}, {4 << 30}))\n"
        "try:\n    owed_memory(1 << 40)\n"
        "except MemoryError as error:\n    print(error)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("1,099,511,627,776 bytes of memory are wanted, and not to be had: ")
