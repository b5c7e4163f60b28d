"""A small log for the tests of preparation, and what a dataset holds byte for byte."""

import random
from pathlib import Path

START = 1_500_000_000


def write_log(path: Path, num_users: int = 20, seed: int = 0) -> Path:
    """Twelve events a user at random times, in any order."""
    rng = random.Random(seed)
    rows = [(f"u{u}", rng.randrange(30), START + rng.randrange(5000)) for u in range(num_users) for _ in range(12)]
    rng.shuffle(rows)
    path.write_text("user,item,ts\n" + "".join(f"{u},{i},{t}\n" for u, i, t in rows))
    return path


def bytes_of(folder: Path) -> dict[str, bytes]:
    """The arrays and the JSON of a dataset, by relative path."""
    names = [path for path in folder.rglob("*") if path.suffix in (".npy", ".json")]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in names}
