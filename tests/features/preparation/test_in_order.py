import threading
import time
from pathlib import Path

import pytest

from recsys.features.leakage import report
from recsys.features.preparation import in_order as module
from recsys.features.preparation.in_order import in_order
from recsys.features.prepare import PrepareConfig, SplitConfig, prepare


def test_the_answers_stand_in_order_and_two_run_at_once() -> None:
    both = threading.Barrier(2, timeout=20)

    def late_first(number: int) -> int:
        both.wait()
        time.sleep(0.05 if number % 2 == 0 else 0)
        return number

    assert list(in_order(late_first, range(6))) == list(range(6))


def test_the_first_failure_is_raised_and_nothing_more_is_begun() -> None:
    begun: list[int] = []

    def fail(number: int) -> int:
        begun.append(number)
        raise OSError(str(number))

    with pytest.raises(OSError, match="^0$"):
        list(in_order(fail, range(100)))
    assert len(begun) == 2


@pytest.mark.parametrize("protocol", ["time", "loo"])
def test_one_worker_and_two_write_the_same_bytes(
    protocol: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [f"{u},{(u * 7 + n) % 30},{1_500_000_000 + 50 * n + u}" for n in range(12) for u in range(40)]
    (tmp_path / "log.csv").write_text("\n".join(["user,item,ts", *rows]))
    config = PrepareConfig(split=SplitConfig(protocol=protocol), shards=5)  # type: ignore[arg-type]  # names of protocols
    made = []
    for workers in (1, 2):
        monkeypatch.setattr(module, "WORKERS", workers)
        monkeypatch.setattr(report, "WORKERS", workers)
        out = prepare(tmp_path / "log.csv", tmp_path / str(workers), config).path
        made.append({path.relative_to(out): path.read_bytes() for path in out.rglob("*") if path.is_file()})
    assert made[0] == made[1]
