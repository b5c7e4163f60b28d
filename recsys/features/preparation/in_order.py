"""One function over the shards, two at a time in threads: numpy and polars run beside each other."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

WORKERS = 2

Given = TypeVar("Given")
Found = TypeVar("Found")


def in_order(function: Callable[[Given], Found], given: Iterable[Given]) -> Iterator[Found]:
    """What the function gives for each, in this order; at most `WORKERS` are begun and not yet taken.

    Args:
        function: safe to run in two threads at once.
        given: taken one by one.

    Raises:
        Exception: what the function raised, of the first that failed; nothing more is begun.
    """
    running: deque[Future[Found]] = deque()
    with ThreadPoolExecutor(WORKERS) as pool:
        for each in given:
            if len(running) == WORKERS:
                yield running.popleft().result()
            running.append(pool.submit(function, each))
        while running:
            yield running.popleft().result()
