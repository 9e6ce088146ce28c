"""CSV files: one reader of cells as an editor shows them, and of tables under a header."""

from __future__ import annotations

import codecs
import csv
import gzip
import io
import re
import sys
import zlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import pandas as pd

from kernel_lib import storage
from kernel_lib.competition import COMPETITION
from kernel_lib.errors import InputError

MAX_BYTES = 1 << 29  # of a packed table
GZIP, ZIP = b"\x1f\x8b", b"PK\x03\x04"  # how packed files begin
UTF_16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
AS_CSV = 'save it as "CSV UTF-8", with commas'  # as spreadsheets call it
ID_COLUMN, RLE_COLUMN = COMPETITION.id_column, COMPETITION.rle_column
# What others call the columns, in lower case and without punctuation.
_MEANT = {
    **dict.fromkeys(("imageid", "image", "id", "imagename", "filename", "file"), ID_COLUMN),
    **dict.fromkeys(("encodedpixels", "pixels", "rle", "rlemask", "maskrle", "mask"), RLE_COLUMN),
}


class Row(NamedTuple):
    """A row that is not blank, and the line where it starts, the header's being 1."""

    line: int
    cells: list[str]  # stripped


def read(path: Path | str) -> list[Row]:
    """Return all rows, the header (blank or not) first; UTF-8, with a byte order mark or without.

    A table packed as .gz, or as the only file of a .zip, is unpacked, whatever its name.
    Raises: InputError naming the file and row, also for an open quote and content that is no text.
    """
    content = _unpacked(Path(path))
    if content.startswith(UTF_16):
        raise InputError(f"{path} is text in UTF-16: {AS_CSV}")
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is no text (byte {error.start}): give a CSV in UTF-8") from None
    if "\0" in text:
        raise InputError(f"{path} is no text (it holds zeros): give a CSV in UTF-8")
    # An RLE may be longer than the module's own limit; no cell is longer than its file.
    csv.field_size_limit(sys.maxsize)
    reader = csv.reader(io.StringIO(text, newline=""), strict=True, skipinitialspace=True)
    rows, line = [], 1
    try:
        for row in reader:
            cells = [cell.strip() for cell in row]
            if line == 1 or len(cells) > 1 or any(cells):
                rows.append(Row(line, cells))
            line = reader.line_num + 1
    except csv.Error as error:
        raise InputError(
            f"{path} row {line} is no table with commas ({error}): correct its quotes"
        ) from None
    _check_separator(path, rows)
    return rows


def read_parts(path: Path | str) -> tuple[list[str], list[Row]]:
    """Return the header, empty where the file is, and the other rows."""
    (_, header), *rows = read(path) or [Row(1, [])]
    return header, rows


def read_table(
    path: Path | str, wanted: Sequence[str] = (), *, ragged: bool = False, hint: str = ""
) -> pd.DataFrame:
    """Return all cells as stripped text, indexed by row in the file; of `wanted` columns if given.

    Blank rows are left out. `ragged` lets rows have a cell more than the header; `hint` ends the
    message on missing columns. Raises: InputError naming the file, and the row.
    """
    header, rows = read_parts(path)
    if not any(header):
        is_empty = not any(any(row.cells) for row in rows)
        fault = "is empty: fetch it again" if is_empty else "row 1 is blank: remove the blank line"
        raise InputError(f"{path} {fault}")
    check_columns(path, header, wanted, hint)
    for name in wanted or header:
        if header.count(name) > 1:
            raise InputError(f"{path} has the column {name!r} twice: rename or remove one")
    n = len(header)
    for line, row in rows:
        if len(row) not in (n, n + ragged):
            raise InputError(
                f"{path} row {line} has {len(row)} cells under a header of {n}, so it is no table "
                "with commas, or cut short: fetch the table again"
            )
    lines = {line: row[:n] for line, row in rows if any(row)}
    if not lines:
        raise InputError(f"{path} has a header and no rows: fetch it again")
    table = pd.DataFrame(list(lines.values()), columns=header, index=list(lines), dtype=str)
    return table[list(wanted)] if wanted else table


def check_columns(
    path: Path | str, header: Sequence[str], wanted: Sequence[str], hint: str = ""
) -> None:
    """Raise InputError where a wanted column is missing, naming those that may be meant by it."""
    missing = [name for name in wanted if name not in header]
    if missing:
        meant = {_MEANT.get(re.sub(r"[\W_]", "", name.lower())): name for name in reversed(header)}
        if meant.keys() >= set(missing):
            renamed = ", ".join(f"{meant[name]!r} to {name}" for name in missing)
            hint = f": rename {renamed}{hint}"
        wanted_names = " and ".join(missing)
        raise InputError(f"{path} has the columns {list(header)}, not {wanted_names}{hint}")


def _check_separator(path: Path | str, rows: Sequence[Row]) -> None:
    """Raise InputError where a spreadsheet wrote what separates cells, or no commas."""
    header = rows[0].cells if rows else []
    if header and header[0].lower().startswith("sep="):
        raise InputError(f"{path} begins with {header[0]!r}, a spreadsheet's own line: remove it")
    if len(header) == 1 and (by := re.search("[;\t|]", header[0])):
        raise InputError(f"{path} has {by[0]!r} between its cells, not commas: {AS_CSV}")


def as_text(rows: Iterable[Sequence[object]]) -> str:
    """Return rows as the text of a CSV file that `read` reads back: quoted where they need it."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue()


def _unpacked(path: Path) -> bytes:
    """Return a file's content, unpacked."""
    try:
        content = path.read_bytes()
    except OSError as error:
        reason = error.strerror or error
        raise InputError(f"{path} can't be read: {reason}; check the path") from error
    try:
        if content.startswith(GZIP):
            content = gzip.GzipFile(fileobj=io.BytesIO(content)).read(MAX_BYTES + 1)
        elif content.startswith(ZIP):
            archive = storage.open_archive(io.BytesIO(content))
            if "[Content_Types].xml" in archive.namelist():
                raise InputError(f"{path} is a spreadsheet's workbook, not a CSV: {AS_CSV}")
            names = [n for n in archive.namelist() if not n.startswith("__") and n[-1] != "/"]
            if len(names) != 1:
                raise InputError(f"{path} is a zip of {len(names)} files: unpack it")
            content = storage.read_member(archive, names[0], MAX_BYTES)
    except (OSError, EOFError, zlib.error, storage.ArchiveError) as error:
        raise InputError(
            f"{path} can't be unpacked ({error}): fetch it again, or unpack it"
        ) from error
    if len(content) > MAX_BYTES:
        raise InputError(f"{path} unpacks to more than {MAX_BYTES:,} bytes: unpack it")
    return content
