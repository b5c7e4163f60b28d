import threading
from collections.abc import Iterator

import pytest
import torch

from recsys.models.ranking.threads import in_threads


@pytest.fixture
def two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("two_threads")
def test_results_come_in_the_order_of_their_parts() -> None:
    assert list(in_threads(lambda n: n * n, range(100))) == [n * n for n in range(100)]
    assert torch.get_num_threads() == 2


@pytest.mark.usefixtures("two_threads")
def test_several_threads_work_without_gradients() -> None:
    meet = threading.Barrier(2, timeout=30)

    def work(_: int) -> tuple[str, bool, int]:
        meet.wait()  # passes only if two of them run at once
        return threading.current_thread().name, torch.is_grad_enabled(), torch.get_num_threads()

    found = list(in_threads(work, range(4)))
    assert {grad for _, grad, _ in found} == {False}
    assert {threads for *_, threads in found} == {1}
    assert len({name for name, *_ in found}) == 2


@pytest.mark.usefixtures("two_threads")
def test_one_thread_works_here_and_a_failure_is_the_callers() -> None:
    def fail(n: int) -> int:
        raise ValueError(f"part {n}")

    with pytest.raises(ValueError, match="part 0"):
        list(in_threads(fail, range(9)))
    assert torch.get_num_threads() == 2
    torch.set_num_threads(1)
    names = set(in_threads(lambda _: threading.current_thread().name, range(3)))
    assert names == {threading.current_thread().name}
