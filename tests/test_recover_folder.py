from pathlib import Path

from recsys.files import recover_folder


def folder(path: Path, text: str) -> None:
    path.mkdir()
    (path / "file").write_text(text)


def test_a_folder_that_was_set_aside_comes_back_and_drafts_go(tmp_path: Path) -> None:
    folder(tmp_path / ".bundle.7.old", "older")
    folder(tmp_path / ".bundle.7.tmp", "draft")
    folder(tmp_path / ".another.7.tmp", "not ours")
    recover_folder(tmp_path / "bundle")
    assert (tmp_path / "bundle" / "file").read_text() == "older"
    assert sorted(path.name for path in tmp_path.iterdir()) == [".another.7.tmp", "bundle"]


def test_a_folder_that_stands_is_newer_than_what_was_set_aside(tmp_path: Path) -> None:
    folder(tmp_path / "bundle", "newer")
    folder(tmp_path / ".bundle.7.old", "older")
    recover_folder(tmp_path / "bundle")
    assert [path.name for path in tmp_path.iterdir()] == ["bundle"]
    assert (tmp_path / "bundle" / "file").read_text() == "newer"
