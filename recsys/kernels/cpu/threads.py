"""Kernels that let go of the interpreter's lock, on several threads: nobody spins, and callers may be on any thread."""

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import TypeVar

import torch

LEAST_PART = 2048  # ids for which it is worth to wake another thread

T = TypeVar("T")


def in_parts(work: Callable[[int, int], object], size: int) -> None:
    """Call work(start, stop) for parts of range(size), each on its own thread."""
    parts = num_parts(size)
    on_threads(lambda part: work(size * part // parts, size * (part + 1) // parts), parts)


def on_threads(work: Callable[[int], T], parts: int) -> list[T]:
    """work(0), work(1), ... each on its own thread; `work` lets go of the interpreter's lock."""
    others = [_pool(os.getpid(), parts - 1).submit(work, part) for part in range(1, parts)]
    first = work(0)
    return [first, *(other.result() for other in others)]


def num_parts(size: int) -> int:
    """On how many threads so many ids are worked on: at most as many as torch uses."""
    return max(1, min(torch.get_num_threads(), size // LEAST_PART))


@cache
def _pool(_process: int, threads: int) -> ThreadPoolExecutor:  # a forked process has none of its parent's threads
    return ThreadPoolExecutor(threads, thread_name_prefix="recsys-kernels")
