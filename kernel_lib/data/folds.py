"""Folds: drawn once, even in mask areas, no patient in two of them, kept in one file.

The folds file is the one table of labels and folds that later stages read. It does not depend on
a model's seed, nor on the order in which the images were found.
"""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from kernel_lib.data import cells, patients, rle
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
# Another seed is another split, and then scores no longer compare: hence fixed here.
SEED = 20190904
N_AREA_CLASSES = 20
# A fold with so many times its share of the images is named.
OVERFULL = 1.5
REDRAW = "delete it and run `prepare` again"
NAME = "folds.csv"  # in the working folder
RESTORE = (
    "restore it from a copy, or from the output of another kernel or machine that trained them, "
    "which holds the same; or train in another WORK_DIR; drawn again it may hold out other images"
)


def draw(table: pd.DataFrame, n_folds: int, seed: int = SEED) -> pd.Series:
    """Fold of each row, 0 … n_folds − 1: even in images, in positives and in mask areas.

    Whole groups go to one fold; an image whose group is "", missing or that of nobody
    (`patients.known`) is its own group. Positives fall into up to 20 classes of equal count by
    area, empty images into one of their own. Groups with the most positives are placed first, then
    those with the most images, ties in the order of a hash; each goes to the fold where it least
    raises the sum, over classes, positives and images, of (the fold's share of the total)². The
    result does not depend on the order of rows.

    Shapes: table with image_id, area_px and perhaps group → int64 Series with the table's index.
    Raises: InputError for fewer than 2 folds, fewer groups than folds, an id twice, a bad area.
    Warns: UserWarning when a fold has no positive image, as when there are fewer than folds, when
    one has far more than its share of the images, and for groups that name nobody.
    Source: greedy placement as in scikit-learn's StratifiedGroupKFold, with the classes above.
    """
    table = _drawable(table, n_folds)
    ordered = table.reset_index(drop=True).sort_values("image_id")
    group, names = pd.factorize(_group_keys(ordered))
    if len(names) < n_folds:
        raise InputError(
            f"{len(names)} groups (patients) cannot fill {n_folds} folds, one group to a fold at "
            f"most: set N_FOLDS to {len(names)} or less"
            + ("" if len(names) > 1 else ", which takes at least 2 groups: add images")
            + f"; or, where these are not the patients, {patients.WAY_OUT}"
        )
    members = _count(ordered["area_px"].to_numpy(), group, len(names), n_folds)
    fold_of_group = _place(members, [_tie_order(seed, name) for name in names], n_folds)
    folds = np.empty(len(table), dtype=np.int64)
    folds[ordered.index] = fold_of_group[group]
    _warn_of_folds_without_positives(folds[table["area_px"] > 0], n_folds)
    _warn_of_overfull_fold(folds, _groups(table))
    return pd.Series(folds, index=table.index, name="fold")


def balance(table: pd.DataFrame) -> pd.DataFrame:
    """What each fold holds: images, groups, positives, their share (0–1), median area.

    That is in px of 1024², whatever the images' sizes; area_px is in their own.
    Shapes: table with image_id, height, width, area_px, fold and perhaps group → a row a fold, fold
    as index.
    """
    positive = table["area_px"] > 0
    scaled = table["area_px"] * 1024**2 / (table["height"] * table["width"])
    by_fold = table["fold"]
    return pd.DataFrame(
        {
            "images": by_fold.groupby(by_fold).size(),
            "groups": _group_keys(table).groupby(by_fold).nunique(),
            "positives": positive.groupby(by_fold).sum(),
            "positive_share": positive.groupby(by_fold).mean(),
            "median_area_px_1024": scaled.where(positive).groupby(by_fold).median(),
        }
    )


def save(table: pd.DataFrame, path: Path) -> None:
    """Write the folds file, rows sorted by image_id, whole or not at all; other columns are left.

    Raises: InputError for a table that `load` would refuse.
    """
    path = Path(path)
    missing = [name for name in COLUMNS if name not in table.columns]
    if missing:
        raise InputError(f"the table of folds lacks the columns {missing}: it needs {COLUMNS}")
    text = table[list(COLUMNS)].assign(group=_groups(table)).astype(str)
    _checked(text.reset_index(drop=True), f"the table for {path.name}", "correct the table")
    content = text.sort_values("image_id").to_csv(index=False, lineterminator="\n")
    write_text(path, content)


def find(roots: Sequence[Path], digest_wanted: str | None = None) -> pd.DataFrame:
    """The folds file under these folders (the one with that digest); InputError where none is."""
    there = [root / NAME for root in roots if (root / NAME).is_file()]
    for path in there:
        drawn = load(path)
        if digest_wanted is None or digest(drawn) == digest_wanted:
            return drawn
    if not there:
        raise InputError(missing(roots))
    raise InputError(
        f"{', '.join(map(str, there))} is not the folds file that the runs were trained on: "
        f"{RESTORE}"
    )


def missing(roots: Sequence[Path]) -> str:
    """What to say where runs lie under these folders, the working folder first, and no file."""
    return f"{roots[0] / NAME} is missing, by which the runs there were trained: {RESTORE}"


def load(path: Path) -> pd.DataFrame:
    """The folds file as a table of `COLUMNS`; fold, height, width and area_px as int64.

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
    """SHA-256 (hex) of image_id, fold and group, whatever the order of the rows.

    Two tables with the same digest hold out the same images of the same patients.
    """
    groups = _groups(table)
    rows = sorted(zip(table["image_id"], table["fold"], groups, strict=True))
    lines = "".join(f"{image_id}\t{int(fold)}\t{group}\n" for image_id, fold, group in rows)
    return hashlib.sha256(lines.encode()).hexdigest()


def difference(there: pd.DataFrame, here: pd.DataFrame) -> str:
    """How two folds files differ, with the first image and both values; "" where they do not."""
    there, here = (table.set_index("image_id").sort_index() for table in (there, here))
    lone = there.index.symmetric_difference(here.index)
    if len(lone):
        return f"{len(lone)} images stand in one of them alone, {lone[0]} first"
    other = there != here
    differs = other.any(axis=1)
    if not differs.any():
        return ""
    first = differs.idxmax()
    column = other.loc[first].idxmax()
    a, b = (str(table.at[first, column])[:60] for table in (there, here))
    return f"{first}: {column} {a} there, {b} here; {differs.sum()} of {len(here)} images differ"


def _groups(table: pd.DataFrame) -> pd.Series:
    if "group" not in table.columns:
        return pd.Series("", index=table.index, dtype=object)
    return table["group"].astype(object).where(table["group"].notna(), "")


def _group_keys(table: pd.DataFrame) -> pd.Series:
    """A name for each row's group, no image's own ever equal to a patient's."""
    groups = _groups(table)
    own = "image " + table["image_id"].astype(object)
    return ("group " + groups.astype(str)).where(groups != "", own)


def _drawable(table: pd.DataFrame, n_folds: int) -> pd.DataFrame:
    if n_folds != int(n_folds) or n_folds < 2:
        raise InputError(
            f"N_FOLDS is {n_folds}: at least 2 folds are needed, so that each image "
            "is held out from some model; to train one of them only, set FOLD"
        )
    repeated = table["image_id"][table["image_id"].duplicated()]
    if len(repeated):
        raise InputError(
            f"the image {repeated.iloc[0]} stands twice in the table: "
            "unite its rows into one mask first"
        )
    areas = pd.to_numeric(table["area_px"], errors="coerce")
    bad = ~(areas >= 0)
    if bad.any():
        row = table[bad].iloc[0]
        raise InputError(
            f"the image {row['image_id']} has a mask area of {row['area_px']!r} px: "
            "give 0 for an empty mask, else the number of its pixels"
        )
    groups, notes = patients.known(_groups(table))
    for note in notes:
        warnings.warn(note, stacklevel=3)
    return table.assign(area_px=areas, group=groups)


def _count(areas: np.ndarray, group: np.ndarray, n_groups: int, n_folds: int) -> np.ndarray:
    """Images of each group by kind: (n_groups, empty, area classes …, positives, images)."""
    positive = areas > 0
    n_positive = int(positive.sum())
    # A class with fewer images than folds could not be even anyway.
    n_classes = max(1, min(N_AREA_CLASSES, n_positive // n_folds))
    rank = np.empty(n_positive, dtype=np.int64)
    rank[np.argsort(areas[positive], kind="stable")] = np.arange(n_positive)
    kind = np.zeros(len(areas), dtype=np.int64)
    kind[positive] = 1 + rank * n_classes // max(n_positive, 1)
    members = np.zeros((n_groups, n_classes + 3), dtype=np.int64)
    np.add.at(members, (group, kind), 1)
    members[:, -2] = members[:, 1:-2].sum(axis=1)
    members[:, -1] = members[:, :-2].sum(axis=1)
    return members


def _place(members: np.ndarray, ties: list[str], n_folds: int) -> np.ndarray:
    """Fold of each group, by greedy placement; members (n_groups, kinds) as `_count` gives it."""
    # Placing a group g in fold f raises the sum of squares by 2 · Σ held[f] g / total² + Σ g² /
    # total², whose second part is the same for every fold.
    total = np.maximum(members.sum(axis=0), 1)
    weighted = members / total.astype(np.float64) ** 2
    held = np.zeros((n_folds, members.shape[1]))
    folds = np.empty(len(members), dtype=np.int64)
    order = sorted(range(len(members)), key=lambda g: (-members[g, -2], -members[g, -1], ties[g]))
    for g in order:
        folds[g] = int(np.argmin(held @ weighted[g]))
        held[folds[g]] += members[g]
    return folds


def _tie_order(seed: int, name: str) -> str:
    """A random order that no version of NumPy changes, and no other group either."""
    return hashlib.sha256(f"{seed}\t{name}".encode()).hexdigest()


def _warn_of_folds_without_positives(folds_of_positives: np.ndarray, n_folds: int) -> None:
    bare = sorted(set(range(n_folds)) - set(folds_of_positives.tolist()))
    if bare:
        warnings.warn(
            f"no positive image in fold(s) {bare} of {n_folds}: {len(folds_of_positives)} positive "
            "images, by whole patients, do not reach all; set N_FOLDS lower or add images",
            stacklevel=3,
        )


def _warn_of_overfull_fold(folds: np.ndarray, groups: pd.Series) -> None:
    images = np.bincount(folds)
    fullest = int(images.argmax())
    inside = groups[(folds == fullest) & (groups != "").to_numpy()].value_counts()
    if images[fullest] >= OVERFULL * len(folds) / len(images) and inside.max() > 1:
        warnings.warn(
            f"fold {fullest} holds {images[fullest]:,} of {len(folds):,} images, of which "
            f"{inside.iloc[0]:,} of the patient {inside.index[0]}: if that is no patient, "
            f"{patients.WAY_OUT}",
            stacklevel=3,
        )


def _checked(text: pd.DataFrame, name: str, fix: str) -> pd.DataFrame:
    """A table of `COLUMNS` as text, checked, its whole numbers as int64; its index names rows."""

    def refuse(bad: pd.Series, complaint: str) -> None:
        if bad.any():
            at = int(np.argmax(bad.to_numpy()))
            row = text.iloc[at].to_dict()
            raise InputError(f"{name}, row {text.index[at]}: {complaint.format(**row)}: {fix}")

    if text.empty:
        raise InputError(f"{name} has no rows: {fix}")
    refuse(text["rle"].str.strip() == "", "the rle is missing, as in a row cut short")
    refuse(text["image_id"].str.strip() == "", "the image id is empty")
    refuse(text["image_id"].duplicated(), "the image {image_id} stands there a second time")
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
