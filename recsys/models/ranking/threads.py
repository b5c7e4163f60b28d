"""A function over many parts at once, each part on one thread.

Parts run without waiting for each other, where torch would share out each small operation and wait at its end. What a
part gives does not depend on its neighbours, so neither the number of threads nor their order changes a result.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

import torch

MOST_WORKERS = 8

Part = TypeVar("Part")
Result = TypeVar("Result")


def in_threads(
    function: Callable[[Part], Result], parts: Iterable[Part], device: torch.device | None = None
) -> Iterator[Result]:
    """The results of all parts, in their order, without gradients.

    Args:
        function: called on other threads, several at a time; it must change nothing that another call reads.
        parts: taken on this thread, a few ahead of what is asked for.
        device: where the function computes; other than on the CPU it is called here, one part after the other.
    """
    threads = torch.get_num_threads()
    workers = min(threads, MOST_WORKERS)
    if workers == 1 or (device is not None and device.type != "cpu"):
        for part in parts:
            with torch.no_grad():
                result = function(part)
            yield result
        return
    waiting: deque[Future[Result]] = deque()
    pool = ThreadPoolExecutor(workers, initializer=torch.set_num_threads, initargs=(max(1, threads // workers),))
    try:
        for part in parts:
            waiting.append(pool.submit(_without_gradient, function, part))
            if len(waiting) > 2 * workers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)
        torch.set_num_threads(threads)


def _without_gradient(function: Callable[[Part], Result], part: Part) -> Result:
    with torch.no_grad():  # a thread has its own
        return function(part)
