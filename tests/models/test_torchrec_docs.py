"""The code of docs/torchrec.md runs as it stands."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("torchrec", reason="torchrec is not installed: pip install -e '.[torchrec]'")

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "torchrec.md").read_text(encoding="utf-8")
ALONE, SHARDED = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_the_example_of_one_process_runs() -> None:
    exec(compile(ALONE, "docs/torchrec.md", "exec"), {})


@pytest.mark.slow
def test_the_example_of_two_processes_runs(tmp_path: Path) -> None:
    (tmp_path / "this_file.py").write_text(SHARDED)
    command = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(tmp_path / "this_file.py")]
    done = subprocess.run(
        [sys.executable, *command], cwd=ROOT, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    found = re.findall(r"process (\d): (\d+) vectors, (\d+) ids held", done.stdout)
    assert sorted(process for process, _, _ in found) == ["0", "1"]
    assert [int(vectors) for _, vectors, _ in found] == [8, 8]
    held = [int(ids) for _, _, ids in found]
    assert sum(held) == 12  # 0 to 11, of which both bring 4 to 7
    assert min(held) > 0
