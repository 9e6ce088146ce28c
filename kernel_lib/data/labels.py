"""The tables that come with the images: labels as RLE, sample submissions, groups, splits."""

from __future__ import annotations

import json
import math
import re
import unicodedata
from collections.abc import Iterator, Sequence, Set
from dataclasses import dataclass
from itertools import compress, zip_longest
from pathlib import Path

import pandas as pd

from kernel_lib.competition import COMPETITION
from kernel_lib.data import cells, folds, rle
from kernel_lib.data.cells import ID_COLUMN, RLE_COLUMN
from kernel_lib.data.folder import Images, Listing, split_word, splits_in
from kernel_lib.data.images import image_id
from kernel_lib.errors import InputError

# Where spreadsheets cut a cell, with a blank at either end that is stripped by then.
SPREADSHEET_LIMIT = 32_767
IMAGE_ID = re.compile(COMPETITION.id_pattern)


def read_labels(csv: Path | str, problems: list[str] | None = None) -> pd.DataFrame:
    """Return image_id, rle (union of its rows) and label_at of each image, in the file's order.

    "-1" and nothing mean empty. label_at names file and rows, for later errors. A note is added to
    `problems` where images have empty rows beside a mask.
    Raises: InputError naming file and row (the header is row 1).
    """
    table = cells.read_table(csv, [ID_COLUMN, RLE_COLUMN])
    _check_ids(csv, table)
    rows_of: dict[str, dict[int, rle.Runs]] = {}  # by image, then by row
    for row, name, text in zip(
        table.index, names_of(table[ID_COLUMN]), table[RLE_COLUMN], strict=True
    ):
        try:
            rows_of.setdefault(name, {})[row] = parse_cell(text)
        except rle.RleError as error:
            hint = "" if " " in text else f"; {rle.EMPTY} or nothing means an empty mask"
            raise InputError(f"{csv} row {row}, image {name}: {error}{hint}") from error
    labels, both = [], []
    for name, rows in rows_of.items():
        numbers = ", ".join(map(str, rows))
        at = f"{csv} row{'s' * (len(rows) > 1)} {numbers}"
        labels.append((name, rle.to_string(rle.union(rows.values())), at))
        if 0 < sum(len(runs) > 0 for runs in rows.values()) < len(rows):
            both.append(f"{name} in rows {numbers}")
    if both and problems is not None:
        problems.append(
            f"{csv}: {len(both)} images have an empty row ({rle.EMPTY}) beside a mask, which is "
            f"taken; {both[0]}"
        )
    return pd.DataFrame(labels, columns=["image_id", "rle", "label_at"], dtype=object)


def parse_cell(text: str, shape: tuple[int, int] | None = None) -> rle.Runs:
    """Return the runs of a table's cell as `rle.parse` does, unless a spreadsheet may have cut it.

    Raises: RleError.
    """
    n_chars = len(text.strip())
    if SPREADSHEET_LIMIT - 1 <= n_chars <= SPREADSHEET_LIMIT:
        raise rle.RleError(
            f"its RLE is {n_chars:,} characters long, where spreadsheets cut a cell: give the "
            "original table"
        )
    return rle.parse(text, shape)


@dataclass(frozen=True)
class Sample:
    """A sample submission as it stands, from which a submission is written.

    cells: its columns, in its order, one row an image; the index is the row in the file.
    """

    cells: pd.DataFrame
    has_masks: bool  # its rows differ in their RLE, as those of a table of labels do

    @property
    def image_id(self) -> list[str]:
        """Return the ids as the sample writes them, and a submission has to."""
        return self.cells[ID_COLUMN].tolist()

    @property
    def names(self) -> list[str]:
        """Return the ids by which images are looked up."""
        return names_of(self.image_id)

    def rows(self, rles: Sequence[str]) -> list[list[str]]:
        """Return header and rows of a submission of these masks, in the sample's own form."""
        filled = self.cells.assign(**{RLE_COLUMN: list(rles)})
        return [filled.columns.tolist(), *filled.to_numpy().tolist()]


def read_sample(csv: Path | str) -> Sample:
    """Return the images that a submission must list, and how it writes them.

    Its ids may be paths or file names, and it may have further columns, in any order. Of several
    rows of an image, as in the first stage's sample, the first counts.
    Raises: InputError, also for another competition's columns and an image written in two ways.
    """
    try:
        table = cells.read_table(csv)
        cells.check_columns(csv, table.columns, [ID_COLUMN, RLE_COLUMN])
    except InputError as error:
        raise InputError(f"{error}; is this the sample of another competition?") from error
    _check_ids(csv, table)
    first = table.drop_duplicates(ID_COLUMN)
    names = pd.Series(names_of(first[ID_COLUMN]), index=first.index)
    if names.duplicated().any():
        row = names.index[names.duplicated()][0]
        raise InputError(f"{csv} row {row}: image {names[row]} is written in two ways: keep one")
    return Sample(first, has_masks=table[RLE_COLUMN].nunique() > 1)


def names_of(written: Sequence[str]) -> list[str]:
    """Return the image ids that a table means: without folders and endings, as NFC.

    Folders stay where images of several folders share a name.
    """
    paths = [unicodedata.normalize("NFC", text).replace("\\", "/").strip("/") for text in written]
    parts = [(path.rpartition("/")[0], image_id(path)) for path in paths]
    folders: dict[str, set[str]] = {}
    for folder, name in parts:
        folders.setdefault(name, set()).add(folder)
    return [
        f"{folder}/{name}" if folder and len(folders[name]) > 1 else name for folder, name in parts
    ]


def read_groups(csv: Path | str) -> dict[str, str | float]:
    """Return the group (patient) of each image, from a table of two columns: image id, group.

    NIH file names as groups (00028864_007.png) are cut to the patient before the underscore. A
    blank, or a placeholder (`folds.is_placeholder`), is NaN, which equals no other image's.
    Raises: InputError naming file and row, also for an id with two groups.
    """
    table = cells.read_table(csv)
    if len(table.columns) != 2 or IMAGE_ID.fullmatch(table.columns[0]):
        raise InputError(
            f"{csv} has the columns {list(table.columns)}: a table of groups has two, image id and "
            "group, under a header"
        )
    groups: dict[str, str | float] = {}
    names, given = names_of(table.iloc[:, 0]), table.iloc[:, 1]
    for row, name, group in zip(table.index, names, given, strict=True):
        if nih := folds.NIH_NAME.fullmatch(group):
            group = nih[1]
        if not name:
            raise InputError(f"{csv} row {row}: the group {group!r} has no image id")
        if folds.is_placeholder(group):
            group = math.nan
        first = groups.setdefault(name, group)
        if first is not group and first != group:
            raise InputError(
                f"{csv} row {row}: image {name} is in group {group} and, further up, in {first}; "
                "keep one"
            )
    return groups


def _check_ids(csv: Path | str, table: pd.DataFrame) -> None:
    blank = table.index[table[ID_COLUMN] == ""]
    if len(blank):
        raise InputError(f"{csv} row {blank[0]} has no {ID_COLUMN}")


HELD_OUT = {"test", "validation"}
LONGEST_LIST = 1 << 26  # of a JSON; one with more holds the labels too


def stated_splits(csv: Path) -> dict[str, str]:
    """Return the split of each image by a label table's column of splits, {} without one.

    Of several rows of an image, those that hold it out count.
    """
    header, columns = _read_text(csv)
    split = _column(columns)
    pairs = zip(columns[header.index(ID_COLUMN)], split, strict=True) if split else ()
    return dict(sorted(pairs, key=lambda pair: pair[1] in HELD_OUT))


def held_out_notes(listing: Listing, images: Images, train: Set[str]) -> list[str]:
    """Return a note for each file that calls some training images test or validation images."""
    notes = []
    lists = (path for path in listing.lists if path.stem not in images.files)  # not of an image
    for path in [*listing.tables, *lists]:
        held = [train & set(map(images.meant, names_of(names))) for names in _held_out(path)]
        most = max(held, key=len, default=())
        if 0 < len(most) < len(train):  # all, in lists of cross-validation
            notes.append(
                f"{path} calls {len(most)} training images test or validation images, {min(most)} "
                "first; they are trained on, since only folders, file names and the label table "
                "decide that: move them into a folder test to hold them out"
            )
    return notes


def _held_out(path: Path) -> list[list[str]]:
    """Return the names of test and validation images that a table or text states, by column.

    That is by its own name, a column of splits, or keys of a JSON.
    """
    by_name = not HELD_OUT.isdisjoint(splits_in(path.stem))
    try:
        if path.suffix.lower() == ".txt":
            return [path.read_text("utf-8").splitlines()] if by_name else []
        if path.suffix.lower() == ".json":
            small = path.stat().st_size <= LONGEST_LIST
            return [list(_below(json.loads(path.read_text("utf-8")), by_name))] if small else []
        columns = _read_text(path)[1]
    except (InputError, OSError, ValueError, RecursionError):
        return []
    rows = [word in HELD_OUT for word in _column(columns) or ()]
    return columns if by_name else [list(compress(column, rows)) for column in columns]


def _read_text(csv: Path) -> tuple[list[str], list[list[str]]]:
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
