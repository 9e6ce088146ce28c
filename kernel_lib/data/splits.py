"""The images that tables and texts of a data folder call test or validation images."""

from __future__ import annotations

import json
from collections.abc import Iterator, Set
from itertools import compress, zip_longest
from pathlib import Path

from kernel_lib.data import cells
from kernel_lib.data.folder import Images, Listing, split_word, splits_in
from kernel_lib.data.labels import ID_COLUMN, names_of
from kernel_lib.errors import InputError

HELD_OUT = {"test", "validation"}
MAX_BYTES = 1 << 26  # of a JSON; one with more holds the labels too


def of_table(csv: Path) -> dict[str, str]:
    """Return the split of each image by a label table's column of splits, {} without one.

    Of several rows of an image, those that hold it out count.
    """
    header, columns = _read(csv)
    split = _column(columns)
    pairs = zip(columns[header.index(ID_COLUMN)], split, strict=True) if split else ()
    return dict(sorted(pairs, key=lambda pair: pair[1] in HELD_OUT))


def noted(listing: Listing, images: Images, train: Set[str]) -> list[str]:
    """Return a note for each file that calls some training images test or validation images."""
    notes = []
    lists = (path for path in listing.lists if path.stem not in images.files)  # not of an image
    for path in [*listing.tables, *lists]:
        held = [train & set(map(images.meant, names_of(names))) for names in _held_out(path)]
        most = max(held, key=len, default=())
        if 0 < len(most) < len(train):  # all, in lists of cross-validation
            notes.append(
                f"{path} calls {len(most)} training images test or validation images, {min(most)} "
                "first: they are trained on, since only folders, file names and a column of the "
                "label table are read; move them into a folder test where they are not to be"
            )
    return notes


def _held_out(path: Path) -> list[list[str]]:
    """Return the names of test and validation images that a table or text states, by column.

    By its own name, a column of splits, or keys of a JSON; empty for a file that can't be read.
    """
    by_name = not HELD_OUT.isdisjoint(splits_in(path.stem))
    try:
        if path.suffix.lower() == ".txt":
            return [path.read_text("utf-8").splitlines()] if by_name else []
        if path.suffix.lower() == ".json":
            small = path.stat().st_size <= MAX_BYTES
            return [list(_below(json.loads(path.read_text("utf-8")), by_name))] if small else []
        columns = _read(path)[1]
    except (InputError, OSError, ValueError, RecursionError):
        return []
    rows = [word in HELD_OUT for word in _column(columns) or ()]
    return columns if by_name else [list(compress(column, rows)) for column in columns]


def _read(csv: Path) -> tuple[list[str], list[list[str]]]:
    """Return a table's header and columns; rows that are cut short end in blanks."""
    header, rows = cells.read_parts(csv)
    filled = (row for _, row in rows if any(row))
    return header, list(map(list, zip_longest(*filled, fillvalue="")))


def _column(columns: list[list[str]]) -> list[str] | None:
    """Return the first column that holds nothing but words for splits, as splits."""
    words = (list(map(split_word, column)) for column in columns)
    return next((each for each in words if any(each) and None not in each), None)


def _below(node: object, held: bool) -> Iterator[str]:
    """Yield the texts of a JSON under keys that are words for test or validation."""
    if isinstance(node, dict):
        for key, inner in node.items():
            yield from _below(inner, held or split_word(key) in HELD_OUT)
    elif isinstance(node, list):
        for inner in node:
            yield from _below(inner, held)
    elif held and isinstance(node, str):
        yield node
