from pathlib import Path
from typing import Any

import numpy as np

from recsys.features.fetch.download import download

DATA = np.random.default_rng(1).bytes(90_000)


def test_a_line_that_breaks_often_but_gets_further_each_time_is_never_given_up(server: Any, tmp_path: Path) -> None:
    url, told, waits = server.put("/log.csv", DATA), [], []  # type: ignore[var-annotated]  # of what is told
    server.faults += [lambda request, end=end: request.send_file(end=end) for end in range(10_000, 90_000, 10_000)]
    found = download(url, tmp_path / "log.csv", say=told.append, observe=told.append, sleep=waits.append, attempts=2)
    assert found.read_bytes() == DATA
    assert waits == [1.0] * 8
