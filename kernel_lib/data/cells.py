"""The cells of a CSV file, as an editor shows them: one reading for every table."""

from __future__ import annotations

import csv
import io
import sys
from pathlib import Path
from typing import NamedTuple

from kernel_lib.errors import InputError


class Row(NamedTuple):
    """A row that is not blank, and the line where it starts, the header's being 1."""

    line: int
    cells: list[str]  # stripped


def read(path: Path | str) -> list[Row]:
    """All rows, the header (blank or not) first; UTF-8, with a byte order mark or without.

    Nothing is guessed: what opens a quote and does not close it, or is no text, is refused.
    Raises: InputError naming the file, and the row where there is one.
    """
    try:
        text = Path(path).read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise InputError(
            f"{path} can't be read: {error.strerror or error}; check the path"
        ) from error
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
            f"{path} is no table with commas between its cells: row {line}, {error}; mend its "
            "quotes, or fetch it again"
        ) from None
    return rows
