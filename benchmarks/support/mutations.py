"""Ways to break each Triton kernel that a test of its op must notice: text of its file, and what takes its place."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Mutation:
    """One change.

    Attributes:
        file: below recsys/kernels.
        what: in a few words, for the table.
        old: text that stands in the file exactly once.
        new: what takes its place.
        tests: files or folders below tests/kernels/interp that must fail, space between.
        chosen: of those tests, only the ones whose name fits (pytest's -k).
    """

    file: str
    what: str
    old: str
    new: str
    tests: str
    chosen: str = ""


MUTATIONS: tuple[Mutation, ...] = ()
