"""Numbers on a benchmark's command line: one out of range ends in one line and exit code 2, before anything runs."""

import argparse
import math
import os
from collections.abc import Callable

MOST = 1 << 31  # rows of a table are below it
MOST_WIDTH = 1 << 16
MOST_THREADS = 1024
MOST_REPEATS = 100_000


def whole(least: int = 1, most: int = MOST) -> Callable[[str], int]:
    """A `type` of argparse: whole numbers from `least` to `most`."""

    def read(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            value = least - 1
        if not least <= value <= most:
            raise argparse.ArgumentTypeError(f"{text}; wanted a whole number from {least} to {most}")
        return value

    return read


def real(least: float, most: float) -> Callable[[str], float]:
    """A `type` of argparse: numbers from `least` to `most`."""

    def read(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not least <= value <= most:
            raise argparse.ArgumentTypeError(f"{text}; wanted a number from {least:g} to {most:g}")
        return value

    return read


def refuse_beyond_memory(parser: argparse.ArgumentParser, num_bytes: float, of: str) -> None:
    """End where a run needs more bytes than this machine's memory; `of` names the arguments that say so."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if num_bytes > memory:
        parser.error(f"{of}: about {num_bytes / 1e9:,.0f} GB, and this machine has {memory / 1e9:,.0f}; lower them")
