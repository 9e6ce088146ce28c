"""The CSV tables that come with the images: labels as RLE, sample submissions, groups."""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from kernel_lib.data import cells, patients, rle
from kernel_lib.data.images import image_id
from kernel_lib.errors import InputError

ID_COLUMN, RLE_COLUMN = "ImageId", "EncodedPixels"
# What others call the columns, in lower case and without punctuation.
_MEANT = {
    **dict.fromkeys(("imageid", "image", "id", "imagename", "filename", "file"), ID_COLUMN),
    **dict.fromkeys(("encodedpixels", "pixels", "rle", "rlemask", "maskrle", "mask"), RLE_COLUMN),
}
# Where spreadsheets cut a cell; the blank that may have stood at either end is stripped by then.
SPREADSHEET_LIMIT = 32_767
COMPETITION_ID = re.compile(r"ID_[0-9a-f]+|\d+(\.\d+){5,}")


def read_labels(csv: Path | str, problems: list[str] | None = None) -> pd.DataFrame:
    """One row an image, in the file's order: image_id, rle (union of its rows), label_at.

    Either header (with a leading space or without), values with a leading space or without; "-1"
    and nothing mean empty. label_at names file and rows, for later complaints. `problems` is given
    a line where images have empty rows beside a mask.
    Errors: InputError naming file and row (the header is row 1).
    """
    csv = Path(csv)
    table = _read(csv, [ID_COLUMN, RLE_COLUMN])
    runs_of_image: dict[str, list[rle.Runs]] = {}
    rows_of_image: dict[str, list[int]] = {}
    for row, name, text in zip(table.index, table[ID_COLUMN], table[RLE_COLUMN], strict=True):
        try:
            runs = parse_cell(text)
        except rle.RleError as error:
            hint = "" if " " in text else f"; {rle.EMPTY} or nothing means an empty mask"
            raise InputError(f"{csv} row {row}, image {name}: {error}{hint}") from error
        runs_of_image.setdefault(name, []).append(runs)
        rows_of_image.setdefault(name, []).append(row)
    both = [
        n for n, each in runs_of_image.items() if 0 < sum(map(bool, map(len, each))) < len(each)
    ]
    if both and problems is not None:
        problems.append(
            f"{csv}: {len(both)} images have an empty row ({rle.EMPTY}) beside a mask, which is "
            f"taken; {both[0]} in rows {', '.join(map(str, rows_of_image[both[0]]))}"
        )
    return pd.DataFrame(
        {
            "image_id": list(runs_of_image),
            "rle": [rle.to_string(rle.union(runs)) for runs in runs_of_image.values()],
            "label_at": [
                f"{csv} row{'s' * (len(rows) > 1)} {', '.join(map(str, rows))}"
                for rows in rows_of_image.values()
            ],
        },
        dtype=object,
    )


def parse_cell(text: str, shape: tuple[int, int] | None = None) -> rle.Runs:
    """Return the runs of a table's cell as `rle.parse` does, unless a spreadsheet may have cut it.

    Raises: RleError.
    """
    n_chars = len(text.strip())
    if SPREADSHEET_LIMIT - 1 <= n_chars <= SPREADSHEET_LIMIT:
        raise rle.RleError(
            f"its RLE is {n_chars:,} characters long, where spreadsheets cut a cell: give the "
            "table as it was before one saved it"
        )
    return rle.parse(text, shape)


@dataclass(frozen=True)
class Sample:
    """A sample submission as it stands: the one reading from which a submission is written.

    cells: its columns, in its order, one row an image; the index is the row in the file.
    """

    cells: pd.DataFrame
    has_masks: bool  # its rows differ in their RLE, as those of a table of labels do

    @property
    def image_id(self) -> list[str]:
        """The ids as the sample writes them, and as a submission must."""
        return self.cells[ID_COLUMN].tolist()

    @property
    def names(self) -> list[str]:
        """The ids by which images are found: `names_of` those of the sample."""
        return names_of(self.image_id)

    def rows(self, rles: Sequence[str]) -> list[list[str]]:
        """The header and rows of a submission of these masks, in the sample's own form."""
        filled = self.cells.assign(**{RLE_COLUMN: list(rles)})
        return [filled.columns.tolist(), *filled.to_numpy().tolist()]


def read_sample(csv: Path | str) -> Sample:
    """The images that a submission must list, and how.

    Its ids may be paths or end as files do, its columns be more than two and in any order. The
    first stage's sample has a row a mask, hence several of some images: the first counts.
    Errors: InputError, also where the columns are another competition's, or an image is written in
    two ways.
    """
    csv = Path(csv)
    try:
        table = read_cells(csv, None)
        _check_columns(csv, table.columns.tolist(), [ID_COLUMN, RLE_COLUMN])
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
    """The image ids that a table means: without folders and endings, as NFC.

    Folders stay where images of several folders share a name.
    """
    paths = [unicodedata.normalize("NFC", text).replace("\\", "/").strip("/") for text in written]
    folders: dict[str, set[str]] = {}
    for path in paths:
        folders.setdefault(image_id(path), set()).add(path.rpartition("/")[0])
    found = []
    for path in paths:
        name, folder = image_id(path), path.rpartition("/")[0]
        found.append(f"{folder}/{name}" if folder and len(folders[name]) > 1 else name)
    return found


def read_groups(csv: Path | str) -> dict[str, str | float]:
    """Group (patient) of each image, from a table of two columns: image id, group.

    NIH file names as groups (00028864_007.png) are cut to the patient before the underscore. A
    blank, or a word for nobody (`patients.is_nobody`), is NaN, which equals no other image's.
    Errors: InputError naming file and row; an id with two groups is one.
    """
    csv = Path(csv)
    table = _read(csv, None)
    if len(table.columns) != 2 or COMPETITION_ID.fullmatch(table.columns[0]):
        raise InputError(
            f"{csv} has the columns {list(table.columns)}: a table of groups has two, image id and "
            "group, under a header"
        )
    groups: dict[str, str | float] = {}
    names, given = names_of(table.iloc[:, 0]), table.iloc[:, 1]
    for row, name, group in zip(table.index, names, given, strict=True):
        nih = patients.NIH_NAME.fullmatch(group)
        group = nih[1] if nih else group
        if not name:
            raise InputError(f"{csv} row {row}: the group {group!r} has no image id")
        if patients.is_nobody(group):
            group = math.nan
        first = groups.setdefault(name, group)
        if first is not group and first != group:
            raise InputError(
                f"{csv} row {row}: image {name} is in group {group} and, further up, in {first}; "
                "keep one"
            )
    return groups


def columns_of(csv: Path | str) -> list[str]:
    """The column names of a CSV, stripped; none where it cannot be read."""
    try:
        return cells.read(csv)[0].cells
    except (InputError, IndexError):
        return []


def _read(csv: Path, wanted: list[str] | None) -> pd.DataFrame:
    """As `read_cells`; of wanted columns the first is the id's, and no row may lack it."""
    table = read_cells(csv, wanted)
    if wanted:
        _check_ids(csv, table)
        table = table.assign(**{ID_COLUMN: names_of(table[ID_COLUMN])})
    return table


def _check_ids(csv: Path, table: pd.DataFrame) -> None:
    if (table[ID_COLUMN] == "").any():
        row = table.index[table[ID_COLUMN] == ""][0]
        raise InputError(f"{csv} row {row} has no {ID_COLUMN}")


def _check_columns(csv: Path, header: list[str], wanted: list[str], hint: str = "") -> None:
    missing = [name for name in wanted if name not in header]
    if missing:
        meant = {_MEANT.get(re.sub(r"[\W_]", "", name.lower())): name for name in reversed(header)}
        if meant.keys() >= set(missing):
            renamed = (f"{meant[name]!r} to {name}" for name in missing)
            hint = f": rename {', '.join(renamed)}{hint}"
        raise InputError(f"{csv} has the columns {header}, not {' and '.join(missing)}{hint}")


def read_cells(
    csv: Path, wanted: list[str] | None, *, ragged: bool = False, hint: str = ""
) -> pd.DataFrame:
    """All cells as stripped text, indexed by row in the file; only the wanted columns, if given.

    Rows without a word are left out. `ragged` lets rows have a cell more than the header; `hint`
    ends the words on missing columns. Errors: InputError naming the file, and the row.
    """
    (_, header), *rows = cells.read(csv) or [cells.Row(1, [])]
    if not any(header):
        if any(map(any, (row for _, row in rows))):
            raise InputError(f"{csv} row 1 is blank: remove the blank line, its header comes first")
        raise InputError(f"{csv} is empty: fetch it again")
    _check_columns(csv, header, wanted or [], hint)
    for name in wanted or header:
        if header.count(name) > 1:
            raise InputError(f"{csv} has the column {name!r} twice: rename or remove one")
    for line, row in rows:
        if len(row) != len(header) and not (ragged and len(row) == len(header) + 1):
            raise InputError(
                f"{csv} row {line} has {len(row)} cells under a header of {len(header)}: this is "
                "no table with commas between its cells, or cut short; fetch the table again"
            )
    whole = [(line, row[: len(header)]) for line, row in rows if any(row)]
    if not whole:
        raise InputError(f"{csv} has a header and no rows: fetch it again")
    table = pd.DataFrame(
        [row for _, row in whole], columns=header, index=[line for line, _ in whole], dtype=str
    )
    return table[wanted] if wanted else table
