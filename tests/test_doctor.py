import dataclasses
import os
import stat
import sys
from pathlib import Path

import pytest

from recsys import doctor
from recsys.doctor import Check, examine


@pytest.fixture(scope="module")
def checks() -> dict[str, Check]:
    return {check.name: check for check in examine()}


def test_this_machine_is_well_and_every_part_is_looked_at(checks: dict[str, Check]) -> None:
    assert [check for check in checks.values() if check.is_needed and not check.is_well] == []
    parts = {"python", "CPU", "memory", "disk", "sqlite", "RECSYS_DATA", "GPU", "kernels", "model"}
    assert set(checks) == {*parts, *doctor.NEEDED, *doctor.EXTRAS}


def test_versions_are_those_of_the_packages(checks: dict[str, Check]) -> None:
    import polars
    import torch

    assert checks["torch"].found == torch.__version__
    assert checks["polars"].found == polars.__version__


def test_the_small_model_agrees_with_the_definition(checks: dict[str, Check]) -> None:
    assert checks["model"].found.startswith("sasrec forward, ")
    assert "RECSYS_KERNELS" not in os.environ


def test_a_missing_extra_is_no_harm_and_a_missing_need_is(monkeypatch: pytest.MonkeyPatch) -> None:
    extra = doctor._package("no-such-package", "serve")
    assert (extra.mark, extra.remedy) == ("absent", "pip install -e '.[serve]'")
    need = doctor._package("no-such-package", None)
    assert (need.mark, need.is_needed) == ("BROKEN", True)
    monkeypatch.setitem(sys.modules, "polars", None)
    broken = doctor._package("polars", None)
    assert broken.mark == "BROKEN"
    assert "does not import: " in broken.found


def test_a_package_that_does_not_import_in_its_own_process_is_broken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "torchrec.py").write_text("raise OSError('Could not load this library: fbgemm_gpu_config.so')\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    found = doctor._package("torchrec", "torchrec")
    assert "does not import: ImportError: OSError: Could not load this library: fbgemm_gpu_config.so" in found.found
    assert (found.mark, found.is_needed) == ("absent", False)


def test_an_old_python_is_broken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "OLDEST_PYTHON", (3, 99))
    found = doctor._python()
    assert (found.mark, found.remedy) == ("BROKEN", "use Python 3.11 to 3.13: make PYTHON=python3.12")


@pytest.mark.parametrize(
    ("oldest", "has_caveat"), [((3, 0, 0), False), ((99, 0, 0), True)], ids=["mended", "with the bug"]
)
def test_the_caveat_of_sqlite_stands_where_it_applies(
    monkeypatch: pytest.MonkeyPatch, oldest: tuple[int, int, int], has_caveat: bool
) -> None:
    monkeypatch.setattr(doctor, "SQLITE_WAL_MENDED", oldest)
    assert ("one process at a time" in doctor._sqlite().found) is has_caveat


def test_a_folder_that_cannot_be_written_is_broken(tmp_path: Path) -> None:
    absent = doctor._disk(tmp_path / "absent")
    assert (absent.mark, absent.remedy) == ("BROKEN", "work in a folder you may write to")
    if os.geteuid() != 0:
        tmp_path.chmod(stat.S_IRUSR | stat.S_IXUSR)
        assert doctor._disk(tmp_path).mark == "BROKEN"


def test_data_is_counted_or_missed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "ml-1m").mkdir()
    monkeypatch.setenv("RECSYS_DATA", str(tmp_path))
    assert doctor._data().found == f"{tmp_path}: 1 datasets"
    monkeypatch.setenv("RECSYS_DATA", str(tmp_path / "absent"))
    assert doctor._data().mark == "absent"
    monkeypatch.delenv("RECSYS_DATA")
    assert doctor._data().found == "not set"


def test_the_kernel_backend_is_named_with_its_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RECSYS_KERNELS", raising=False)
    assert doctor._kernels().found.startswith("torch on cpu: RECSYS_KERNELS is not set")
    monkeypatch.setenv("RECSYS_KERNELS", "reference")
    assert doctor._kernels().found == "reference on cpu: RECSYS_KERNELS says so"
    monkeypatch.setenv("RECSYS_KERNELS", "cuda9")
    assert doctor._kernels().mark == "BROKEN"


def test_a_check_that_fails_by_surprise_is_a_finding() -> None:
    def explode() -> Check:
        raise RuntimeError("two\nlines")

    found = doctor._guarded("model", explode)
    assert (found.mark, found.found) == ("BROKEN", "RuntimeError: two lines")
    assert dataclasses.asdict(found)["is_well"] is False
