"""Patient ids, and folds grouped by patient and stratified by mask area.

Folds do not depend on a model's seed, nor on the order in which the images were found.
"""

from __future__ import annotations

import hashlib
import re
import warnings
from collections import Counter
from collections.abc import Iterable, Sequence

import numpy as np
import pandas as pd

from kernel_lib.competition import COMPETITION
from kernel_lib.errors import InputError

# Values that stand for a missing or removed id, in lower case and without punctuation.
PLACEHOLDER = re.compile(
    r"|0+|x+|nan|na|nil|none|null|nothing|unk|unknown|undefined|missing|notavailable|noname|nobody"
    r"|anon|anonym|anonymous|anonymi[sz]ed|deidentified|removed|redacted|hidden"
)
# An id of so many images, and of more than half of all, is a placeholder.
MIN_PLACEHOLDER_IMAGES = 10
# NIH ChestX-ray14 names a file patient_number.png; CheXpert has a folder for each patient.
NIH_NAME = re.compile(r"(\d{8})_\d{3}(\.png)?")
_IN_ID = re.compile(rf"{NIH_NAME.pattern}|(?:.*[/_-])?(patient[-_]?\d+)[/_-].*", re.IGNORECASE)
GROUPS_HINT = "give -p GROUPS FILE, a table of image and patient ids"


def is_placeholder(patient: str) -> bool:
    """Return whether an id is blank or a word such as "unknown"."""
    return PLACEHOLDER.fullmatch(re.sub(r"[\W_]+", "", patient.lower())) is not None


def known_patients(patient: pd.Series) -> tuple[pd.Series, list[str]]:
    """Return the patients of images with "" for placeholders, and a note for each of these.

    Those are words such as "unknown", and an id that more than half of the images share.
    """
    text = patient.astype(object).where(patient.notna(), "")
    notes = []
    for name, count in text[text != ""].value_counts().items():
        is_shared = count >= MIN_PLACEHOLDER_IMAGES and 2 * count > len(text)
        if is_shared or is_placeholder(str(name)):
            text = text.where(text != name, "")
            notes.append(
                f"{count:,} of {len(text):,} images have the patient {str(name)!r}, which names no "
                f"one: each is taken as a patient of its own; {GROUPS_HINT}"
            )
    return text, notes


def united_patients(
    patient: pd.Series, ids: Sequence[str], copies: Sequence[tuple[int, int]]
) -> pd.Series:
    """Return each image's patient, merging the patients of copies (pairs of positions).

    Copies may have two patients' ids, or none.
    """
    same: dict[str | int, str | int] = {}

    def root(key: str | int) -> str | int:
        while key in same:
            key = same[key]
        return key

    keys = [name or at for at, name in enumerate(patient)]
    for i, j in copies:
        a, b = sorted((root(keys[i]), root(keys[j])), key=lambda key: (type(key) is int, key))
        if a != b:
            same[b] = a
    copied = {root(keys[at]) for pair in copies for at in pair}

    def name(key: str | int) -> str:
        if isinstance(key, str):
            return key
        return f"same picture as {ids[key]}" if key in copied else ""

    return pd.Series(map(name, map(root, keys)), index=patient.index, dtype=object)


def note_unknown_patients(ids: Iterable[str], patient: pd.Series) -> list[str]:
    """Return a note where no image has a patient; it counts images whose ids state a shared one."""
    if (patient != "").any():
        return []
    stated = [m[1] or m[3] for m in map(_IN_ID.fullmatch, ids) if m]
    shared = {name: n for name, n in Counter(stated).items() if n > 1}
    shared_note = (
        f" but by their ids {sum(shared.values()):,} images share a patient with others, "
        f"such as {next(iter(shared))}, who may be in two folds, which inflates scores;"
        if shared
        else ""
    )
    return [
        f"no image has a patient: each is taken as a patient of its own;{shared_note} {GROUPS_HINT}"
    ]


# --- folds ---

# Another seed is another split, and then scores no longer compare: hence fixed here.
SEED = 20190904
N_AREA_CLASSES = 20
# A fold with so many times its share of the images is named.
OVERFULL = 1.5


def draw(table: pd.DataFrame, n_folds: int) -> pd.Series:
    """Return the fold of each row, 0 … n_folds − 1: even in images, positives and mask areas.

    A group goes to one fold; an image whose group is "", missing or a placeholder
    (`known_patients`) is its own group. Positives are divided into up to 20 classes of equal count
    by area, empty images are one class. Groups are placed in descending order of positives, then of
    images, ties by a hash; each goes to the fold where it least raises the sum of (fold's share of
    the total)² over classes, positives and images. The order of rows has no influence.

    Shapes: table with image_id, area_px and perhaps group → int64 Series with the table's index.
    Raises: InputError for fewer than 2 folds, fewer groups than folds, an id twice, a bad area.
    Warns: UserWarning for a fold without a positive image or with far more than its share of the
    images, and for groups that are placeholders.
    Source: greedy placement as in scikit-learn's StratifiedGroupKFold, with the classes above.
    """
    table = _checked(table, n_folds)
    ordered = table.reset_index(drop=True).sort_values("image_id")
    group, names = pd.factorize(_group_keys(ordered))
    if len(names) < n_folds:
        fix = f"set N_FOLDS to {len(names)} or less" if len(names) > 1 else "add images"
        raise InputError(
            f"{len(names)} groups (patients) cannot fill {n_folds} folds (at least 2 groups, one "
            f"to a fold at most): {fix}; or, if these are not the patients, {GROUPS_HINT}"
        )
    counts = _count(ordered["area_px"].to_numpy(), group, len(names), n_folds)
    # A pseudo-random order that depends on neither NumPy's version nor the other groups.
    ties = [hashlib.sha256(f"{SEED}\t{name}".encode()).hexdigest() for name in names]
    folds = np.empty(len(table), dtype=np.int64)
    folds[ordered.index] = _place(counts, ties, n_folds)[group]
    _warn_of_uneven(folds, (table["area_px"] > 0).to_numpy(), groups_of(table))
    return pd.Series(folds, index=table.index, name="fold")


def balance(table: pd.DataFrame) -> pd.DataFrame:
    """Return images, groups, positives, their share (0–1) and median area (px of 1024²) per fold.

    Shapes: table with image_id, height, width, area_px, fold and perhaps group → index fold.
    """
    positive = table["area_px"] > 0
    scaled = table["area_px"] * COMPETITION.side_px**2 / (table["height"] * table["width"])
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


def groups_of(table: pd.DataFrame) -> pd.Series:
    """Return each row's group as text, "" where the table has none."""
    if "group" not in table.columns:
        return pd.Series("", index=table.index, dtype=object)
    return table["group"].astype(object).where(table["group"].notna(), "")


def _group_keys(table: pd.DataFrame) -> pd.Series:
    """Return a name for each row's group, no image's own ever equal to a patient's."""
    groups = groups_of(table)
    own = "image " + table["image_id"].astype(object)
    return ("group " + groups.astype(str)).where(groups != "", own)


def _checked(table: pd.DataFrame, n_folds: int) -> pd.DataFrame:
    if n_folds != int(n_folds) or n_folds < 2:
        raise InputError(
            f"N_FOLDS is {n_folds}: at least 2 folds are needed; to train one of them, set FOLD"
        )
    repeated = table["image_id"][table["image_id"].duplicated()]
    if len(repeated):
        raise InputError(f"image {repeated.iloc[0]} is in the table twice: merge its rows")
    areas = pd.to_numeric(table["area_px"], errors="coerce")
    bad = ~(areas >= 0)
    if bad.any():
        row = table[bad].iloc[0]
        raise InputError(
            f"image {row['image_id']} has a mask area of {row['area_px']!r} px: give its number of "
            "pixels, 0 for an empty mask"
        )
    groups, notes = known_patients(groups_of(table))
    for note in notes:
        warnings.warn(note, stacklevel=3)
    return table.assign(area_px=areas, group=groups)


def _count(areas: np.ndarray, group: np.ndarray, n_groups: int, n_folds: int) -> np.ndarray:
    """Return counts (n_groups, n_classes + 3): empty, area classes, positives, all images."""
    positive = areas > 0
    n_positive = int(positive.sum())
    # A class with fewer images than folds could not be even anyway.
    n_classes = max(1, min(N_AREA_CLASSES, n_positive // n_folds))
    rank = np.empty(n_positive, dtype=np.int64)
    rank[np.argsort(areas[positive], kind="stable")] = np.arange(n_positive)
    kind = np.zeros(len(areas), dtype=np.int64)
    kind[positive] = 1 + rank * n_classes // max(n_positive, 1)
    counts = np.zeros((n_groups, n_classes + 3), dtype=np.int64)
    np.add.at(counts, (group, kind), 1)
    counts[:, -2] = counts[:, 1:-2].sum(axis=1)
    counts[:, -1] = counts[:, :-2].sum(axis=1)
    return counts


def _place(counts: np.ndarray, ties: list[str], n_folds: int) -> np.ndarray:
    """Return the fold of each group, by greedy placement; counts (n_groups, kinds) of `_count`."""
    # Placing a group g in fold f raises the sum of squares by 2 · Σ held[f] g / total² + Σ g² /
    # total², whose second part is the same for every fold.
    total = np.maximum(counts.sum(axis=0), 1)
    weighted = counts / total.astype(np.float64) ** 2
    held = np.zeros((n_folds, counts.shape[1]))
    folds = np.empty(len(counts), dtype=np.int64)
    order = sorted(range(len(counts)), key=lambda g: (-counts[g, -2], -counts[g, -1], ties[g]))
    for g in order:
        folds[g] = int(np.argmin(held @ weighted[g]))
        held[folds[g]] += counts[g]
    return folds


def _warn_of_uneven(folds: np.ndarray, is_positive: np.ndarray, groups: pd.Series) -> None:
    images = np.bincount(folds)
    bare = sorted(set(range(len(images))) - set(folds[is_positive].tolist()))
    if bare:
        warnings.warn(
            f"no positive image in fold(s) {bare} of {len(images)}: {is_positive.sum()} positive "
            "images, grouped by patient, cannot fill all; set N_FOLDS lower or add images",
            stacklevel=3,
        )
    fullest = int(images.argmax())
    inside = groups[(folds == fullest) & (groups != "").to_numpy()].value_counts()
    if images[fullest] >= OVERFULL * len(folds) / len(images) and inside.max() > 1:
        warnings.warn(
            f"fold {fullest} holds {images[fullest]:,} of {len(folds):,} images, "
            f"{inside.iloc[0]:,} of them of patient {inside.index[0]}: if that is a placeholder, "
            f"{GROUPS_HINT}",
            stacklevel=3,
        )
