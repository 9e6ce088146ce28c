"""NIH ChestX-ray14 (Wang et al. 2017): its table of findings, and its images wherever they lie."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from kernel_lib.competition import NIH_LAYOUT, NIH_TABLES
from kernel_lib.data import cells
from kernel_lib.data.folder import entries, same_content
from kernel_lib.data.images import Skipped, image_id
from kernel_lib.errors import InputError

FINDING = "Pneumothorax"
NAME_COLUMN, LABEL_COLUMN, PATIENT_COLUMN = "Image Index", "Finding Labels", "Patient ID"
PATIENT_DIGITS = 8
FILE_NAME = r"\d{8}_\d{3}\.png"
MAX_MISSING_SHARE = 0.05
MAX_DEPTH = 6  # images_001/images/, and a folder or two around it


def read(folder: Path | str, left_out: list[Skipped] | None = None) -> pd.DataFrame:
    """Return the images of an NIH folder with patients and labels, by image_id; opens no image.

    Shapes: DataFrame[image_id, path, patient, positive]: image_id is the file's stem, patient its
    first 8 digits, positive whether Pneumothorax is among the findings. Listed images without a
    file are added to `left_out`; images that are not listed are ignored.
    Raises: InputError naming file, row and fix, also for two differing files of one name and for
    more than 5 % of the images missing.
    """
    folder = Path(folder)
    tables, pictures = _scan(folder)
    if not tables:
        raise InputError(f"NIH_DIR {folder} holds neither of {', '.join(NIH_TABLES)}. {NIH_LAYOUT}")
    if not pictures:
        raise InputError(f"NIH_DIR {folder} holds no PNG: unpack the images there. {NIH_LAYOUT}")
    csv = min(tables, key=lambda path: (NIH_TABLES.index(path.name), len(path.parts), path))
    listed = _read_table(csv)
    path_of: dict[str, str] = {}
    for each in pictures:
        first = path_of.setdefault(image_id(each), each)
        if first != each and not same_content(Path(first), Path(each)):
            raise InputError(
                f"image {image_id(each)} has two files: {first} and {each}; remove one"
            )
    path = listed["image_id"].map(path_of)
    missing = listed[path.isna()]
    share = len(missing) / len(listed)
    if share > MAX_MISSING_SHARE:
        raise InputError(
            f"{csv} row {missing.index[0]}: {missing['image_id'].iloc[0]}.png has no file under "
            f"{folder}, nor have {len(missing)} of the {len(listed)} listed images ({share:.0%}, "
            f"at most {MAX_MISSING_SHARE:.0%} may be missing): unpack all archives there, or "
            "delete their rows"
        )
    if left_out is not None:
        reason = f"no file under {folder}"
        left_out += [Skipped(name, f"{name}.png", reason) for name in missing["image_id"]]
    present = listed.assign(path=path)[path.notna()].sort_values("image_id", ignore_index=True)
    return present[["image_id", "path", "patient", "positive"]]


def _scan(folder: Path) -> tuple[list[Path], list[str]]:
    """Return the tables and the PNGs under a folder, listing each folder once."""
    tables: list[Path] = []
    pictures: list[str] = []
    waiting = [(str(folder), 0)]
    while waiting:
        inside, depth = waiting.pop()
        for entry in entries(inside, "NIH_DIR: "):
            if entry.name.lower().endswith(".png"):
                pictures.append(entry.path)
            elif entry.name in NIH_TABLES:
                tables.append(Path(entry.path))
            elif depth < MAX_DEPTH and entry.is_dir():
                waiting.append((entry.path, depth + 1))
    return tables, sorted(pictures)


def _read_table(csv: Path) -> pd.DataFrame:
    """Return image_id, patient and positive of each row, checked, indexed by row in the file."""
    wanted = [NAME_COLUMN, LABEL_COLUMN, PATIENT_COLUMN]
    # Its rows end in a comma, and in some copies the header does not.
    text = cells.read_table(csv, wanted, ragged=True, hint=": is it NIH's table?")
    names, labels, patients = (text[column] for column in wanted)

    def refuse(bad: pd.Series, complaint: str) -> None:
        if bad.any():
            row = bad.index[bad.to_numpy().argmax()]
            raise InputError(
                f"{csv} row {row}: {complaint.format(*text.loc[row])} ({int(bad.sum())} such rows);"
                " fetch the table again"
            )

    refuse(~names.str.fullmatch(FILE_NAME), f"{NAME_COLUMN} {{0!r}} is not like 00000001_000.png")
    refuse(names.duplicated(), "the image {0} is listed a second time")
    refuse(labels == "", "the image {0} has no " + LABEL_COLUMN)
    refuse(~patients.str.fullmatch(r"\d{1,8}"), f"{PATIENT_COLUMN} {{2!r}} is no whole number")
    patient = patients.str.zfill(PATIENT_DIGITS)
    is_another = names.str[:PATIENT_DIGITS] != patient
    refuse(is_another, f"the image {{0}} is not of {PATIENT_COLUMN} {{2}}")
    positive = labels.str.split("|").map(lambda findings: FINDING in findings).astype(bool)
    return pd.DataFrame({"image_id": names.map(image_id), "patient": patient, "positive": positive})
