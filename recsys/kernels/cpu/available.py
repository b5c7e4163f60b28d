"""Whether numba is there, for the ops that have a slower path without it."""

import logging
from functools import cache
from importlib.util import find_spec

_log = logging.getLogger("recsys.kernels")


@cache
def has_numba() -> bool:
    """Whether ids and rows on a CPU are worked on by kernels that numba compiles."""
    found = find_spec("numba") is not None
    _log.info("id tables: %s", "numba" if found else "torch, since numba is not installed: slower")
    return found
