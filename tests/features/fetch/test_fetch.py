import gzip
import hashlib
import io
import json
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from recsys.errors import DataError, InputError, RecsysError
from recsys.features.fetch.catalogue import all_sets, find
from recsys.features.fetch.fetch import Fetched, fetch
from recsys.features.fetch.public_set import PublicSet

LOG = b"".join(b"%d\t%d\t%d\t%d\n" % (u, i, 3, 874_965_758 + u + i) for u in range(1, 9) for i in range(1, 9))


def zipped(log: bytes = LOG) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("ml-100k/u.data", log)
        archive.writestr("ml-100k/README", b"terms")
    return buffer.getvalue()


@pytest.fixture
def small(server: Any) -> PublicSet:
    """ml-100k as this test's server has it: its address and checksum, all else as in the catalogue."""
    data = zipped()
    url = server.put("/ml-100k.zip", data)
    return replace(find("ml-100k"), url=url, md5=hashlib.md5(data, usedforsecurity=False).hexdigest())


@pytest.fixture
def unsigned(small: PublicSet) -> PublicSet:
    """The same without a published checksum."""
    return replace(small, md5=None)


def get(wanted: PublicSet, out: Path, **more: Any) -> tuple[Fetched, list[str]]:
    lines: list[str] = []
    found = fetch(wanted, out, **{"accept_terms": True, "say": lines.append, "sleep": lambda _: None, **more})
    return found, lines


def test_a_set_is_fetched_checked_and_unpacked(small: PublicSet, tmp_path: Path) -> None:
    found, lines = get(small, tmp_path / "ml")
    assert (found.origin, found.trust) == ("fetched", "published")
    assert found.source == tmp_path / "ml" / "u.data"
    assert found.source.read_bytes() == LOG
    assert sorted(path.name for path in found.folder.iterdir()) == [".fetch.lock", "README", "fetch.json", "u.data"]
    assert "GroupLens" in lines[0]
    record = json.loads((tmp_path / "ml" / "fetch.json").read_text())
    assert record["file"]["sha256"] == found.sha256
    assert record["files"]["u.data"] == {"bytes": len(LOG), "sha256": hashlib.sha256(LOG).hexdigest()}


def test_what_stands_there_whole_is_not_fetched_again(small: PublicSet, server: Any, tmp_path: Path) -> None:
    get(small, tmp_path / "ml")
    num_asked = len(server.asked)
    found, lines = get(small, tmp_path / "ml", accept_terms=False)
    assert (found.origin, len(server.asked)) == ("kept", num_asked)
    assert "up to date" in lines[0]
    (tmp_path / "ml" / "u.data").write_bytes(LOG[:-1] + b"x")
    found, _ = get(small, tmp_path / "ml")
    assert (found.origin, len(server.asked)) == ("fetched", num_asked + 1)
    assert (tmp_path / "ml" / "u.data").read_bytes() == LOG


def test_terms_are_shown_and_must_be_accepted(small: PublicSet, server: Any, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=rf"its terms are not accepted: .*; read {small.terms_url} and add --accept-"):
        get(small, tmp_path / "ml", accept_terms=False)
    assert server.asked == []
    assert not (tmp_path / "ml").exists()


def test_a_wrong_file_is_kept_aside_and_both_sums_are_named(small: PublicSet, server: Any, tmp_path: Path) -> None:
    wrong = zipped(LOG[:-2])
    server.put("/ml-100k.zip", wrong)
    sum_of_it = hashlib.md5(wrong, usedforsecurity=False).hexdigest()
    with pytest.raises(DataError, match=rf"md5 is {sum_of_it}, wanted {small.md5}; kept as .*ml-100k\.zip\.wrong"):
        get(small, tmp_path / "ml")
    assert (tmp_path / "ml" / "ml-100k.zip.wrong").read_bytes() == wrong
    assert not (tmp_path / "ml" / "u.data").exists()
    server.put("/ml-100k.zip", zipped())
    assert get(small, tmp_path / "ml")[0].origin == "fetched"


def test_without_a_published_sum_the_first_fetch_is_trusted_and_later_ones_compared(
    unsigned: PublicSet, server: Any, tmp_path: Path
) -> None:
    found, lines = get(unsigned, tmp_path / "ml")
    assert found.trust == "first use"
    assert any(f"trusted at this first fetch: sha256 {found.sha256}" in line for line in lines)
    (tmp_path / "ml" / "u.data").unlink()
    assert any("as at the first fetch" in line for line in get(unsigned, tmp_path / "ml")[1])
    (tmp_path / "ml" / "u.data").unlink()
    server.put("/ml-100k.zip", zipped(LOG * 2))
    with pytest.raises(DataError, match=rf"wanted {found.sha256}; kept as .*; the publisher has changed it .* remove"):
        get(unsigned, tmp_path / "ml")
    (tmp_path / "ml" / "fetch.json").unlink()
    assert get(unsigned, tmp_path / "ml")[0].sha256 != found.sha256


def test_a_torn_archive_is_resumed_and_passes_its_checksum(small: PublicSet, server: Any, tmp_path: Path) -> None:
    server.faults += [lambda request: request.send_file(end=100)]
    assert get(small, tmp_path / "ml")[0].trust == "published"
    assert server.asked[1]["Range"] == "bytes=100-"


def zip_of(**members: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (zip_of(**{"other.txt": b"?"}), r"does not hold u\.data, found other\.txt"),
        (zip_of(**{"u.data": LOG, "../../evil": b"?"}), "would lie outside the folder"),
        (
            zip_of(**{"u.data": b"no log\n", "README": b"terms"}),
            r"ml-100k\.zip: u\.data:.*; it is not the log of ml-100k",
        ),
        (zipped()[:-30], "is no zip file or a damaged one"),
        (zipped().replace(LOG[:40], LOG[:39] + b"x"), "is no zip file or a damaged one"),
    ],
    ids=["other content", "leaves the folder", "no log", "torn", "damaged"],
)
def test_every_wrong_archive_is_kept_aside_and_nothing_of_it_unpacked(
    data: bytes, message: str, unsigned: PublicSet, server: Any, tmp_path: Path
) -> None:
    server.put("/ml-100k.zip", data)
    with pytest.raises(DataError, match=rf"{message}.*; kept as .*ml-100k\.zip\.wrong; name a mirror by --url"):
        get(unsigned, tmp_path / "ml")
    assert sorted(path.name for path in (tmp_path / "ml").iterdir()) == [".fetch.lock", "ml-100k.zip.wrong"]
    assert (tmp_path / "ml" / "ml-100k.zip.wrong").read_bytes() == data
    assert not (tmp_path / "evil").exists()
    server.put("/ml-100k.zip", zipped())
    assert get(unsigned, tmp_path / "ml")[0].origin == "fetched"


def test_a_mirror_is_asked_in_place_of_the_address(small: PublicSet, server: Any, tmp_path: Path) -> None:
    mirror = server.put("/mirror/ml.zip", zipped())
    server.files.pop("/ml-100k.zip")
    assert get(small, tmp_path / "ml", url=mirror)[0].trust == "published"


def test_a_folder_of_recsys_data_is_used_and_nothing_is_fetched(small: PublicSet, server: Any, tmp_path: Path) -> None:
    folder = tmp_path / "all" / "ml-100k"
    folder.mkdir(parents=True)
    (folder / "interactions.parquet").write_bytes(b"PAR1")
    found, lines = get(small, tmp_path / "ml", data_folder=tmp_path / "all", accept_terms=False)
    assert (found.origin, found.source, found.settings) == ("data folder", folder / "interactions.parquet", ())
    assert server.asked == []
    assert "nothing is fetched" in lines[0]
    (folder / "u.data").write_bytes(LOG)
    found, _ = get(small, tmp_path / "ml", data_folder=tmp_path / "all")
    assert found.source == folder / "u.data"
    assert found.settings == find("ml-100k").settings


def test_an_empty_folder_of_recsys_data_is_passed_over(small: PublicSet, tmp_path: Path) -> None:
    (tmp_path / "all" / "ml-100k").mkdir(parents=True)
    assert get(small, tmp_path / "ml", data_folder=tmp_path / "all")[0].origin == "fetched"


def test_a_folder_of_another_set_is_not_written_over(small: PublicSet, tmp_path: Path) -> None:
    get(small, tmp_path / "ml")
    with pytest.raises(InputError, match="holds the data set ml-100k; name another --out for ml-1m"):
        fetch("ml-1m", tmp_path / "ml", accept_terms=True)


def test_a_damaged_record_is_refused_by_name(small: PublicSet, tmp_path: Path) -> None:
    get(small, tmp_path / "ml")
    (tmp_path / "ml" / "fetch.json").write_text("{")
    with pytest.raises(DataError, match=r"fetch\.json: damaged .*; remove it"):
        get(small, tmp_path / "ml")


def test_a_gz_set_is_unpacked(server: Any, tmp_path: Path) -> None:
    chosen = find("amazon-2023-video-games")
    url = server.put("/Video_Games.csv.gz", gzip.compress(b"user_id,parent_asin,rating,timestamp\na,b,1,2\n"))
    found, _ = get(replace(chosen, url=url), tmp_path / "games")
    assert found.source == tmp_path / "games" / "Video_Games.csv"
    assert found.source.read_text().startswith("user_id,parent_asin")


def test_an_unknown_name_names_the_nearest() -> None:
    with pytest.raises(DataError, match="did you mean 'ml-100k'"):
        find("ml100k")


@pytest.mark.parametrize(
    ("said", "meant"),
    [
        ("ML 1M", "ml-1m"),
        ("amazon_2014_Beauty", "amazon-2014-beauty"),
        ("amazon-games", "amazon-2014-video-games"),
        ("amazon-2018-toys", "amazon-2018-toys-and-games"),
        ("amazon-2023-sports", "amazon-2023-sports-and-outdoors"),
        ("amazon-2018-beauty", "amazon-2018-all-beauty"),
    ],
)
def test_names_are_found_however_they_are_written(said: str, meant: str) -> None:
    assert find(said).name == meant


def test_every_entry_of_the_catalogue_is_whole() -> None:
    sets = all_sets()
    assert len({one.name for one in sets}) == len(sets) > 80
    for one in sets:
        assert one.url.startswith("https://")
        assert one.terms_url.startswith("https://")
        assert one.md5 is None or len(one.md5) == 32
        assert find(one.name) is one
        assert one.unpack == {"zip": "zip", "gz": "gz"}.get(one.file_name.rpartition(".")[2], "none")
        assert one.unpack != "none" or one.source == one.file_name


def test_a_dead_server_leaves_nothing_that_looks_whole(small: PublicSet, server: Any, tmp_path: Path) -> None:
    server.faults += [lambda request: request.send_file(end=10)] + [lambda request: request.send_text(503, b"")] * 9
    with pytest.raises(RecsysError, match="is kept and gone on with"):
        get(small, tmp_path / "ml")
    assert not (tmp_path / "ml" / "fetch.json").exists()
    assert get(small, tmp_path / "ml")[0].origin == "fetched"


def sequences(server: Any, data: bytes) -> PublicSet:
    """amazon-toys, a plain text without a published checksum, as this test's server has it."""
    return replace(find("amazon-toys"), url=server.put("/Toys_and_Games.txt", data))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (zipped(), r"Toys_and_Games\.txt: is packed by zip"),
        (b"one\ntwo\n", r"Toys_and_Games\.txt: none of its first 2 lines is an event"),
        (bytes(5000), r"Toys_and_Games\.txt: looks binary"),
    ],
)
def test_what_is_no_log_is_kept_aside_and_not_trusted(data: bytes, message: str, server: Any, tmp_path: Path) -> None:
    chosen = sequences(server, data)
    with pytest.raises(DataError, match=rf"{message}.*; it is not the log of amazon-toys; kept as .*\.txt\.wrong"):
        get(chosen, tmp_path / "toys")
    assert sorted(path.name for path in (tmp_path / "toys").iterdir()) == [".fetch.lock", "Toys_and_Games.txt.wrong"]
    sequences(server, b"1 2 3\n2 3\n")
    assert get(chosen, tmp_path / "toys")[0].trust == "first use"


def test_a_log_whose_columns_its_settings_do_not_name_is_refused(server: Any, tmp_path: Path) -> None:
    url = server.put("/Video_Games.csv.gz", gzip.compress(b"who,what\na,b\n"))
    with pytest.raises(
        DataError, match=r"Video_Games\.csv: no column for user_id.*kept as .*Video_Games\.csv\.gz\.wrong"
    ):
        get(replace(find("amazon-2023-video-games"), url=url), tmp_path / "games")
    assert not (tmp_path / "games" / "fetch.json").exists()


def test_a_log_of_mixed_ids_is_one(server: Any, tmp_path: Path) -> None:
    chosen = sequences(server, b"12345678901234567 123456789012345678\n" * 9_000 + b"x 2\n")
    assert get(chosen, tmp_path / "toys")[0].trust == "first use"


def test_an_answer_without_an_end_is_not_trusted_at_first_use(server: Any, tmp_path: Path) -> None:
    def endless(request: Any) -> None:
        request.send_response(200)
        request.end_headers()
        request.wfile.write(b"1 2 3\n2 3\n")
        request.close_connection = True

    chosen = sequences(server, b"1 2 3\n2 3\n")
    server.faults += [endless]
    with pytest.raises(DataError, match="whether the file is whole can not be told"):
        get(chosen, tmp_path / "toys")
    assert not (tmp_path / "toys").exists()
    get(chosen, tmp_path / "toys")
    (tmp_path / "toys" / "Toys_and_Games.txt").unlink()
    server.faults += [endless]
    assert get(chosen, tmp_path / "toys")[0].origin == "fetched"  # now there is a sum to compare with


def test_a_fetch_that_brought_nothing_leaves_nothing(small: PublicSet, server: Any, tmp_path: Path) -> None:
    server.files.clear()
    with pytest.raises(DataError, match="404"):
        get(small, tmp_path / "ml")
    assert not (tmp_path / "ml").exists()
    (tmp_path / "ml").mkdir()
    with pytest.raises(DataError, match="404"):
        get(small, tmp_path / "ml")
    assert list((tmp_path / "ml").iterdir()) == []


def test_an_archive_unpacked_by_hand_is_found_with_its_settings(small: PublicSet, server: Any, tmp_path: Path) -> None:
    inner = tmp_path / "all" / "ml-100k" / "ml-100k"
    inner.mkdir(parents=True)
    (inner / "u.data").write_bytes(LOG)
    found, _ = get(small, tmp_path / "ml", data_folder=tmp_path / "all")
    assert (found.source, found.settings) == (inner / "u.data", small.settings)
    assert server.asked == []


def test_a_folder_of_recsys_data_without_a_log_is_told_and_passed_over(small: PublicSet, tmp_path: Path) -> None:
    (tmp_path / "all" / "ml-100k").mkdir(parents=True)
    (tmp_path / "all" / "ml-100k" / "README.md").write_text("see elsewhere")
    found, lines = get(small, tmp_path / "ml", data_folder=tmp_path / "all")
    assert found.origin == "fetched"
    assert "ml-100k: holds no u.data or interactions.parquet or sequences.parquet; passed over" in lines[0]


def test_a_set_of_recsys_data_that_no_catalogue_lists_is_found(tmp_path: Path) -> None:
    folder = tmp_path / "all" / "yelp-text"
    folder.mkdir(parents=True)
    (folder / "sequences.parquet").write_bytes(b"PAR1")
    found = fetch("Yelp text", data_folder=tmp_path / "all")
    assert (found.name, found.source) == ("yelp-text", folder / "sequences.parquet")
    for name in ("nope", "..", ".", "", "../all/yelp-text"):
        with pytest.raises(DataError, match="no data set of this name"):
            fetch(name, data_folder=tmp_path / "all")


def test_a_name_like_no_other_gets_no_guess() -> None:
    with pytest.raises(DataError, match="^nope: no data set of this name; recsys data fetch --list shows all$"):
        find("nope")
