"""`folds.csv`, the one table of labels and folds that later stages read, and `left_out.json`."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Self

import numpy as np
import pandas as pd

from kernel_lib import storage
from kernel_lib.artifacts.filenames import FOLDS, LEFT_OUT
from kernel_lib.data import cells, rle
from kernel_lib.data.folds import groups_of
from kernel_lib.errors import InputError
from kernel_lib.storage import write_text

COLUMNS = ("image_id", "fold", "group", "height", "width", "area_px", "rle")
# Column → smallest and largest value. A side above 65,535 px is a slip: DICOM itself ends there.
WHOLE_NUMBERS = {
    "fold": (0, 999),
    "height": (1, 65_535),
    "width": (1, 65_535),
    "area_px": (0, 65_535**2),
}
REDRAW = "delete it and run `prepare` again"
RESTORE = (
    "restore it from a copy, or from the output of another kernel or machine that trained them, "
    "which holds the same; or train in another WORK_DIR; drawn again it may hold out other images"
)


def save(table: pd.DataFrame, path: Path) -> None:
    """Write the folds file atomically, rows sorted by image_id, without other columns.

    Raises: InputError for a table that `load` would refuse.
    """
    path = Path(path)
    missing = [name for name in COLUMNS if name not in table.columns]
    if missing:
        raise InputError(f"the table of folds lacks the columns {missing}: it needs {COLUMNS}")
    text = table[list(COLUMNS)].assign(group=groups_of(table)).astype(str)
    _checked(text.reset_index(drop=True), f"the table for {path.name}", "correct the table")
    content = text.sort_values("image_id").to_csv(index=False, lineterminator="\n")
    write_text(path, content)


def find(roots: Sequence[Path], digest_wanted: str | None = None) -> pd.DataFrame:
    """Return the first folds file under these folders, or that with the digest.

    Raises: InputError where there is none.
    """
    files = [root / FOLDS for root in roots if (root / FOLDS).is_file()]
    for path in files:
        fold_table = load(path)
        if digest_wanted is None or digest(fold_table) == digest_wanted:
            return fold_table
    if not files:
        raise InputError(missing(roots))
    raise InputError(
        f"{', '.join(map(str, files))} is not the folds file that the runs were trained on: "
        f"{RESTORE}"
    )


def missing(roots: Sequence[Path]) -> str:
    """Return the message for runs under these folders, the working folder first, without a file."""
    return f"{roots[0] / FOLDS} is missing, by which the runs there were trained: {RESTORE}"


def load(path: Path) -> pd.DataFrame:
    """Return the folds file as a table of `COLUMNS`; fold, height, width and area_px as int64.

    Raises: InputError naming file, row (as a text editor counts, the header being 1) and fix.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"there is no folds file {path}: `prepare` makes it")
    try:
        (_, header), *rows = cells.read(path)
    except (InputError, ValueError) as error:  # an empty file has no header to unpack
        raise InputError(f"{path} is not a folds file ({error}): {REDRAW}") from error
    missing = [name for name in COLUMNS if header.count(name) != 1]
    if missing:
        raise InputError(f"{path} lacks the columns {missing}, or has them twice: {REDRAW}")
    for line, row in rows:
        if len(row) != len(header):
            raise InputError(
                f"{path}, row {line}: {len(row)} cells under a header of {len(header)}, as in a "
                f"row cut short: {REDRAW}"
            )
    text = pd.DataFrame(
        [row for _, row in rows], columns=header, index=[line for line, _ in rows], dtype=str
    )
    return _checked(text[list(COLUMNS)], str(path), REDRAW)


def digest(table: pd.DataFrame) -> str:
    """Return the SHA-256 (hex) of image_id, fold and group, whatever the order of the rows.

    Two tables with the same digest hold out the same images of the same patients.
    """
    groups = groups_of(table)
    rows = sorted(zip(table["image_id"], table["fold"], groups, strict=True))
    lines = "".join(f"{image_id}\t{int(fold)}\t{group}\n" for image_id, fold, group in rows)
    return hashlib.sha256(lines.encode()).hexdigest()


def difference(there: pd.DataFrame, here: pd.DataFrame) -> str:
    """Describe how two folds files differ, with the first image and both values; "" if equal."""
    there, here = (table.set_index("image_id").sort_index() for table in (there, here))
    unmatched = there.index.symmetric_difference(here.index)
    if len(unmatched):
        return f"{len(unmatched)} images are in only one of them, {unmatched[0]} first"
    other = there != here
    differs = other.any(axis=1)
    if not differs.any():
        return ""
    first = differs.idxmax()
    column = other.loc[first].idxmax()
    a, b = (str(table.at[first, column])[:60] for table in (there, here))
    return f"{first}: {column} {a} there, {b} here; {differs.sum()} of {len(here)} images differ"


def _checked(text: pd.DataFrame, name: str, fix: str) -> pd.DataFrame:
    """Return a table of text, checked, its whole numbers as int64; the index names its rows."""

    def refuse(bad: pd.Series, complaint: str) -> None:
        if bad.any():
            at = int(np.argmax(bad.to_numpy()))
            row = text.iloc[at].to_dict()
            raise InputError(f"{name}, row {text.index[at]}: {complaint.format(**row)}: {fix}")

    if text.empty:
        raise InputError(f"{name} has no rows: {fix}")
    refuse(text["rle"].str.strip() == "", "the rle is missing, as in a row cut short")
    refuse(text["image_id"].str.strip() == "", "the image id is empty")
    refuse(text["image_id"].duplicated(), "the image {image_id} is listed twice")
    table = text.reset_index(drop=True)
    for column, (least, most) in WHOLE_NUMBERS.items():
        is_number = text[column].str.fullmatch(r"[0-9]{1,15}")
        refuse(~is_number.astype(bool), f"{column} is {{{column}!r}}, not a whole number")
        table[column] = text[column].astype(np.int64).to_numpy()
        refuse(table[column] < least, f"{column} is {{{column}}}, below {least}")
        refuse(table[column] > most, f"{column} is {{{column}}}, above {most:,}")
    n_folds = int(table["fold"].max()) + 1
    absent = sorted(set(range(n_folds)) - set(table["fold"]))
    if absent or n_folds < 2:
        raise InputError(f"{name} holds the folds {sorted(set(table['fold']))}, not 0, 1 …: {fix}")
    _check_groups(table, name, fix)
    areas = [
        _area(row, f"{name}, row {at}", fix)
        for at, row in zip(text.index, table.itertuples(index=False), strict=True)
    ]
    refuse(table["area_px"] != areas, "area_px is {area_px}, which is not the area of its rle")
    return table


def _check_groups(table: pd.DataFrame, name: str, fix: str) -> None:
    known = table[table["group"] != ""]
    in_folds = known.groupby("group")["fold"].nunique()
    if (in_folds > 1).any():
        group = in_folds[in_folds > 1].index[0]
        folds = sorted(set(known["fold"][known["group"] == group]))
        raise InputError(
            f"{name}: the group (patient) {group} has images in the folds {folds}, "
            f"so that a model would be scored on a patient it knows: {fix}"
        )


def _area(row, where: str, fix: str) -> int:
    try:
        return rle.area(rle.parse(row.rle, (row.height, row.width)))
    except rle.RleError as error:
        raise InputError(f"{where}: the rle of {row.image_id}: {error} ({fix})") from error


_COLON = re.compile(": ")


@dataclass(frozen=True)
class LeftOut:
    """A line "id: reason" for each image that training left out."""

    lines: tuple[str, ...] = ()

    @cached_property
    def _beginnings(self) -> frozenset[str]:
        # An id, and a reason, may hold colons: every beginning that could be the id.
        return frozenset(line[: at.start()] for line in self.lines for at in _COLON.finditer(line))

    def __contains__(self, image_id: str) -> bool:
        return image_id in self._beginnings

    def save(self, work: Path, name: str = LEFT_OUT) -> None:
        storage.write_json(work / name, list(self.lines))

    @classmethod
    def load(cls, roots: Sequence[Path]) -> Self:
        """Return the list of the first root that holds one, else an empty list.

        Raises: InputError where the file is damaged.
        """
        path = next((root / LEFT_OUT for root in roots if (root / LEFT_OUT).is_file()), None)
        if path is None:
            return cls()
        try:
            lines = json.loads(path.read_text(encoding="utf-8"))
            if not isinstance(lines, list) or not all(isinstance(line, str) for line in lines):
                raise ValueError("it is no list of lines")
        except (OSError, ValueError, RecursionError) as error:
            raise InputError(
                f"{path} is damaged ({error}): delete it (reports then omit it), or run the "
                "train stage, which writes it again"
            ) from error
        return cls(tuple(lines))
