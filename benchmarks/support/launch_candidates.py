"""Which launches of a kernel are worth a try: those near a known one."""

from collections.abc import Iterator, Mapping
from itertools import combinations, product

BLOCKS = (16, 32, 64, 128, 256)
WARPS = (1, 2, 4, 8)
WARP_GROUP = 4
PRODUCT_BLOCK = 64  # with a block of this size there may be matrix products, which take a whole warp group
STAGES = (1, 2, 3, 4)
GUESS = {"num_warps": 4, "num_stages": 2}
GUESSED_BLOCK = 64

Row = dict[str, int]


def first_guess(other: Mapping[str, int]) -> Row:
    """A row to begin with for a kernel that has rows for another device alone."""
    return {**other, **{name: GUESSED_BLOCK for name in other if name.startswith("BLOCK")}, **GUESS}


def candidates(row: Mapping[str, int], max_changes: int = 2) -> list[Row]:
    """The row, then all that change at most `max_changes` of its settings by a step, fewest changes first."""
    known = {**row, **{name: value for name, value in GUESS.items() if name not in row}}
    steps = {name: list(_steps(name, value)) for name, value in known.items()}
    if known["num_warps"] == WARP_GROUP and any(known[name] >= PRODUCT_BLOCK for name in known if name[:5] == "BLOCK"):
        steps["num_warps"].remove(WARP_GROUP // 2)
    found = [dict(known)]
    for number in range(1, max_changes + 1):
        for names in combinations(known, number):
            found += [
                {**known, **dict(zip(names, values, strict=True))} for values in product(*(steps[n] for n in names))
            ]
    return found


def _steps(name: str, value: int) -> Iterator[int]:
    """The neighbours of a setting's value; none for settings that are not known here."""
    if name == "num_warps":
        yield from (warps for warps in (value // 2, value * 2) if warps in WARPS)
        return
    if name == "num_stages":
        yield from (stages for stages in STAGES if abs(stages - value) == 1)
        return
    if name.startswith("BLOCK"):
        yield from (block for block in (value // 2, value * 2) if block in BLOCKS)
