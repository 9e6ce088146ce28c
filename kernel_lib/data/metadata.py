"""View, sex, age, patient and pixel spacing of images, from a table or DICOM headers."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pandas as pd

from kernel_lib.data import cells, dicom, folds, images
from kernel_lib.data.labels import names_of
from kernel_lib.errors import InputError

FILE = "metadata.csv"
# Accepted column names of a table, in lower case and without punctuation.
_COLUMN_NAMES = {
    "view": ("view", "viewposition"),
    "sex": ("sex", "patientsex", "gender", "patientgender"),
    "age": ("age", "patientage"),
    "patient": ("patient", "patientid"),
    "mm_per_px": ("mmperpx", "pixelspacing"),
}
_UNKNOWN = ("", "U", "UNKNOWN", "NAN", "NA", "NONE")
READERS = 8  # threads that read headers, mostly waiting for the disk


def read(csv: Path | str) -> pd.DataFrame:
    """Return the known columns of a table of metadata, by image id.

    Returns: DataFrame indexed by image_id, with those of the columns view, sex, patient (text, ""
    unknown), age (years) and mm_per_px (float, nan unknown) that the table has.
    Raises: InputError naming file and row (the header is row 1).
    """
    table = cells.read_table(csv)
    cells.check_columns(csv, table.columns, [cells.ID_COLUMN])
    present = {re.sub(r"[\W_]", "", name.lower()): name for name in reversed(table.columns)}
    names = {
        column: present[alias] for column, aliases in _COLUMN_NAMES.items() for alias in aliases
        if alias in present
    }  # fmt: skip
    if not names:
        raise InputError(
            f"{csv} has the columns {list(table.columns)}, none of view, sex, age, patient or "
            "mm_per_px: rename at least one to that"
        )
    ids = names_of(table[cells.ID_COLUMN])
    _check_ids(csv, table.index, ids)
    traits = pd.DataFrame(index=pd.Index(ids, name="image_id"))
    for column, name in names.items():
        to_value = {"age": _age, "mm_per_px": _mm}.get(column, _text)
        values = []
        for row, cell in zip(table.index, table[name], strict=True):
            try:
                values.append(to_value(cell))
            except ValueError as error:
                raise InputError(f"{csv} row {row}: the {name} {error}") from None
        traits[column] = values
    return _with_known_patients(traits)


def of_headers(ids: Sequence[str], paths: Sequence[str]) -> pd.DataFrame | None:
    """Return what the headers of DICOM files state, as `read` does; None if no file is DICOM.

    Values of a file that is not DICOM, or that cannot be read, are unknown.
    """
    with ThreadPoolExecutor(READERS) as pool:
        stated = list(pool.map(_of_header, paths))
    if not any(stated):
        return None
    table = pd.DataFrame([row or {} for row in stated], index=pd.Index(ids, name="image_id"))
    for column in ("view", "sex", "patient"):
        table[column] = table[column].fillna("").map(_text)
    return _with_known_patients(table)


def beside(path: Path) -> Path | None:
    """Return the path of metadata.csv in a data folder, or beside a table of labels; else None."""
    csv = (path if path.is_dir() else path.parent) / FILE
    return csv if csv.is_file() else None


def check_ids(csv: Path | str, table: pd.DataFrame, ids: Iterable[str]) -> int:
    """Return how many of these images a table of metadata lacks; InputError if it lacks all."""
    ids = list(ids)
    lacking = sum(image_id not in table.index for image_id in ids)
    if lacking == len(ids):
        raise InputError(
            f"{csv} names none of the {len(ids):,} images (it begins with {table.index[0]}, they "
            f"with {ids[0]}): give the metadata of these images, with their ids"
        )
    return lacking


def _check_ids(csv: Path | str, rows: pd.Index, ids: Sequence[str]) -> None:
    seen: set[str] = set()
    for row, image_id in zip(rows, ids, strict=True):
        if not image_id:
            raise InputError(f"{csv} row {row} has no {cells.ID_COLUMN}")
        if image_id in seen:
            raise InputError(f"{csv} row {row}: image {image_id} is there twice: keep one row")
        seen.add(image_id)


def _of_header(path: str) -> dict[str, object] | None:
    try:
        return images.traits_of(path)
    except images.ImageError:
        return None


def _with_known_patients(table: pd.DataFrame) -> pd.DataFrame:
    if "patient" in table:
        table["patient"], _ = folds.known_patients(table["patient"])
    return table


def _text(cell: str) -> str:
    text = cell.strip()
    return "" if text.upper() in _UNKNOWN else text


def _age(cell: str) -> float:
    """Return an age in years as `dicom.years` does, nan for a blank; ValueError for other texts."""
    years = dicom.years(cell)
    if math.isnan(years) and _text(cell):
        raise ValueError(f"{cell!r} is no age in years: write a number such as 57, or nothing")
    return years


def _mm(cell: str) -> float:
    if not _text(cell):
        return math.nan
    try:
        value = float(cell)
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise ValueError(f"{cell!r} is no spacing: write the size of a pixel in mm, such as 0.143")
    return value
