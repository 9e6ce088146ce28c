"""Patients of images, and ids that name nobody."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence

import pandas as pd

# What de-identification and missing cells leave in an id's place, without case and punctuation.
NOBODY = re.compile(
    r"|0+|x+|nan|na|nil|none|null|nothing|unk|unknown|undefined|missing|notavailable|noname|nobody"
    r"|anon|anonym|anonymous|anonymi[sz]ed|deidentified|removed|redacted|hidden"
)
# A patient with as many images as this, who makes up most of the data, is a placeholder.
MIN_SHARED = 10
# NIH ChestX-ray14 names a file patient_number.png; CheXpert has a folder for each patient.
NIH_NAME = re.compile(r"(\d{8})_\d{3}(\.png)?")
_IN_ID = re.compile(rf"{NIH_NAME.pattern}|(?:.*[/_-])?(patient[-_]?\d+)[/_-].*", re.IGNORECASE)
WAY_OUT = "-p GROUPS FILE, a table of image and patient, says who is who"


def is_nobody(patient: str) -> bool:
    """Return whether an id is blank or a word such as "unknown"."""
    return NOBODY.fullmatch(re.sub(r"[\W_]+", "", patient.lower())) is not None


def known(patient: pd.Series) -> tuple[pd.Series, list[str]]:
    """Return the patients of images with "" for ids that name nobody, and a note for each such id.

    Those are words for nobody, and an id that more than half of the images share. An image of an
    unknown patient counts as a patient of its own.
    """
    text = patient.astype(object).where(patient.notna(), "")
    notes = []
    for name, count in text[text != ""].value_counts().items():
        is_shared = count >= MIN_SHARED and 2 * count > len(text)
        if is_shared or is_nobody(str(name)):
            text = text.where(text != name, "")
            notes.append(
                f"{count:,} of {len(text):,} images have the patient {str(name)!r}, which names no "
                f"one: each is taken as a patient of its own; {WAY_OUT}"
            )
    return text, notes


def united(patient: pd.Series, ids: Sequence[str], copies: Sequence[tuple[int, int]]) -> pd.Series:
    """Return the patients with images that are copies of each other as one patient's.

    Copies, pairs of positions, may have two patients' ids or none.
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


def note_unknown(ids: Iterable[str], patient: pd.Series) -> list[str]:
    """Return a note where no image has a patient; it counts images whose ids state a shared one."""
    if (patient != "").any():
        return []
    stated = [m[1] or m[3] for m in map(_IN_ID.fullmatch, ids) if m]
    shared = {name: n for name, n in Counter(stated).items() if n > 1}
    shared_note = (
        f" but by their ids {sum(shared.values()):,} images share a patient with others, "
        f"{next(iter(shared))} first, who may be in two folds and make scores too good;"
        if shared
        else ""
    )
    return [
        f"no image has a patient: each is taken as a patient of its own;{shared_note} {WAY_OUT}"
    ]
