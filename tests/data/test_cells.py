"""Tables as they were downloaded or written: packed, quoted, damaged."""

from __future__ import annotations

import gzip
import zipfile
from pathlib import Path

import pytest

from kernel_lib.data import cells
from kernel_lib.errors import InputError

TEXT = b"ImageId,EncodedPixels\na,-1\n"
ROWS = [(1, ["ImageId", "EncodedPixels"]), (2, ["a", "-1"])]


def zipped(path: Path, members: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return path


def test_a_packed_table_is_read_whatever_its_name(tmp_path):
    members = {"in/": b"", "in/t.csv": TEXT, "__MACOSX/._t.csv": b"\0"}
    (tmp_path / "t.gz").write_bytes(gzip.compress(TEXT))
    for path in (zipped(tmp_path / "t.csv", members), zipped(tmp_path / "t.zip", members)):
        assert cells.read(path) == ROWS
    assert cells.read(tmp_path / "t.gz") == ROWS


def test_a_zip_of_something_else_is_named(tmp_path):
    with pytest.raises(InputError, match=r"t\.csv is a zip of 2 files"):
        cells.read(zipped(tmp_path / "t.csv", {"a.csv": TEXT, "b.csv": TEXT}))
    workbook = {"[Content_Types].xml": b"<Types/>", "xl/workbook.xml": b"<workbook/>"}
    with pytest.raises(InputError, match=r"t\.csv is .*workbook"):
        cells.read(zipped(tmp_path / "t.csv", workbook))


@pytest.mark.parametrize(
    ("content", "word"),
    [
        (TEXT.replace(b",", b";"), "';'"),
        (TEXT.replace(b",", b"\t"), "t' between"),
        (b"sep=,\n" + TEXT, "sep="),
        (b"sep=;\n" + TEXT.replace(b",", b";"), "sep="),
        (TEXT.decode().encode("utf-16"), "UTF-16"),
        (b"\xfe\xff" + TEXT.decode().encode("utf-16-be"), "UTF-16"),
    ],
)
def test_a_table_in_a_spreadsheet_s_own_form_is_named(tmp_path, content, word):
    (tmp_path / "t.csv").write_bytes(content)
    with pytest.raises(InputError, match=rf"t\.csv .*{word}"):
        cells.read(tmp_path / "t.csv")


@pytest.mark.parametrize("header", ["a;b,c", "'a'", ""])
def test_other_headers_are_left_to_who_reads_them(tmp_path, header):
    (tmp_path / "t.csv").write_text(f"{header}\n")
    assert cells.read(tmp_path / "t.csv") == [(1, header.split(",") if header else [])]


@pytest.mark.parametrize("cut", [3, 20])
def test_a_damaged_archive_is_named(tmp_path, cut):
    complete = zipped(tmp_path / "w.zip", {"a.csv": TEXT}).read_bytes()
    for name, content in (("t.zip", complete[:-cut]), ("t.gz", gzip.compress(TEXT)[:-cut])):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(InputError, match=rf"{name} can.t be unpacked"):
            cells.read(tmp_path / name)


def test_a_packed_table_is_unpacked_within_bounds(tmp_path, monkeypatch):
    monkeypatch.setattr(cells, "MAX_BYTES", len(TEXT) - 1)
    (tmp_path / "t.gz").write_bytes(gzip.compress(TEXT))
    zipped(tmp_path / "t.zip", {"t.csv": TEXT})
    for name in ("t.gz", "t.zip"):
        with pytest.raises(InputError, match=f"{name} .*unpacks to more"):
            cells.read(tmp_path / name)


def test_what_is_written_is_read_back(tmp_path):
    rows = [["id", "rle"], ['a, "b"', "1 2"], ["c 'd'", ""], ["two\nlines", "-1"], ["#;", "é"]]
    (tmp_path / "t.csv").write_text(cells.as_text(rows), encoding="utf-8")
    assert [row.cells for row in cells.read(tmp_path / "t.csv")] == rows
    assert cells.as_text([["a", "-1"]]) == "a,-1\n"
