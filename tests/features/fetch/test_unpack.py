import gzip
import io
import stat
import zipfile
from pathlib import Path
from typing import Any

import pytest

from recsys.errors import DataError
from recsys.features.fetch.unpack import unpack_gz, unpack_zip


def zip_of(path: Path, members: dict[str, bytes], **attributes: Any) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members.items():
            info = zipfile.ZipInfo(name)
            info.compress_type = zipfile.ZIP_DEFLATED
            for key, value in attributes.items():
                setattr(info, key, value)
            archive.writestr(info, data)
    return path


def test_a_folder_that_holds_everything_is_left_out(tmp_path: Path) -> None:
    archive = zip_of(tmp_path / "a.zip", {"ml/": b"", "ml/ratings.csv": b"u,i\n", "ml/more/links.csv": b"x\n"})
    files = unpack_zip(archive, tmp_path / "out")
    assert files == [tmp_path / "out/ratings.csv", tmp_path / "out/more/links.csv"]
    assert files[0].read_bytes() == b"u,i\n"


def test_two_folders_are_kept(tmp_path: Path) -> None:
    archive = zip_of(tmp_path / "a.zip", {"a/x": b"1", "b/x": b"2"})
    assert [path.read_bytes() for path in unpack_zip(archive, tmp_path / "out")] == [b"1", b"2"]


@pytest.mark.parametrize("name", ["../evil", "/etc/evil", "a/../../evil", "..\\evil", "C:evil"])
def test_no_member_leaves_the_folder(tmp_path: Path, name: str) -> None:
    archive = zip_of(tmp_path / "a.zip", {"good": b"1", name: b"2"})
    with pytest.raises(DataError, match="would lie outside the folder; not unpacked"):
        unpack_zip(archive, tmp_path / "deep" / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.zip"]


def test_a_link_is_not_unpacked(tmp_path: Path) -> None:
    archive = zip_of(tmp_path / "a.zip", {"link": b"/etc/passwd"}, external_attr=(stat.S_IFLNK | 0o777) << 16)
    with pytest.raises(DataError, match="is a link or a device"):
        unpack_zip(archive, tmp_path / "out")


def test_two_members_of_one_name_are_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("x", b"1")
        with pytest.warns(UserWarning, match="Duplicate name"):
            archive.writestr("x", b"2")
    with pytest.raises(DataError, match="two files of one name"):
        unpack_zip(tmp_path / "a.zip", tmp_path / "out")


def test_an_encrypted_member_is_refused(tmp_path: Path) -> None:
    archive = zip_of(tmp_path / "a.zip", {"x": b"1"})
    data = bytearray(archive.read_bytes())
    for signature, place in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        data[data.find(signature) + place] |= 1
    archive.write_bytes(data)
    with pytest.raises(DataError, match="is encrypted; unpack it by hand"):
        unpack_zip(archive, tmp_path / "out")


def test_a_bomb_is_refused_by_what_it_tells_of_itself(tmp_path: Path) -> None:
    archive = zip_of(tmp_path / "a.zip", {"zeros": bytes(40 * 2**20)})
    with pytest.raises(DataError, match="more than 200-fold"):
        unpack_zip(archive, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_gz_bomb_is_stopped_while_it_grows(tmp_path: Path) -> None:
    (tmp_path / "zeros.gz").write_bytes(gzip.compress(bytes(40 * 2**20)))
    with pytest.raises(DataError, match="more than 200-fold"):
        unpack_gz(tmp_path / "zeros.gz", tmp_path / "out")
    assert (tmp_path / "out" / "zeros").stat().st_size <= 16 * 2**20


def test_a_gz_file_is_unpacked_under_its_name(tmp_path: Path) -> None:
    (tmp_path / "log.csv.gz").write_bytes(gzip.compress(b"u,i\n"))
    (file,) = unpack_gz(tmp_path / "log.csv.gz", tmp_path / "out")
    assert (file.name, file.read_bytes()) == ("log.csv", b"u,i\n")


@pytest.mark.parametrize("cut", [0, 10, 40])
def test_a_damaged_archive_is_told_in_one_line(tmp_path: Path, cut: int) -> None:
    buffer = io.BytesIO(gzip.compress(bytes(range(256)) * 4))
    (tmp_path / "a.gz").write_bytes(buffer.getvalue()[:cut] + b"no more")
    (tmp_path / "a.zip").write_bytes(zip_of(tmp_path / "whole.zip", {"x": b"1" * 99}).read_bytes()[:cut] + b"no more")
    with pytest.raises(DataError, match=r"a\.gz: is no gzip file or a damaged one"):
        unpack_gz(tmp_path / "a.gz", tmp_path / "out")
    with pytest.raises(DataError, match=r"a\.zip: is no zip file or a damaged one"):
        unpack_zip(tmp_path / "a.zip", tmp_path / "out")


def test_a_flipped_byte_in_a_member_is_found(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("x", b"0123456789" * 20)
    data = bytearray((tmp_path / "a.zip").read_bytes())
    data[60] ^= 1
    (tmp_path / "a.zip").write_bytes(data)
    with pytest.raises(DataError, match="damaged one"):
        unpack_zip(tmp_path / "a.zip", tmp_path / "out")
