"""NIH images to train a classifier on, without the competition's held-out and test images."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from kernel_lib.artifacts.filenames import NIH_LEFT_OUT
from kernel_lib.artifacts.folds_file import LeftOut
from kernel_lib.config import TrainParameters
from kernel_lib.data import cache, fingerprint, folds, nih, table
from kernel_lib.data.cache import Prepared
from kernel_lib.data.images import Skipped
from kernel_lib.errors import InputError
from kernel_lib.kaggle import paths
from kernel_lib.stages import leaks

ALWAYS_TRAINS = -1  # the fold of patients that the competition does not have


@dataclass(frozen=True)
class NihImages:
    """NIH images at one size, each with the fold whose classifier must not see it.

    truth: DataFrame[image_id, fold, group, rle, height, width, area_px, positive], a row for each
    of `prepared`, in its order. group is the patient; fold is the fold of the competition's images
    of that patient, −1 where it has none; rle "-1" and area_px 0 stand for the masks NIH lacks.
    fingerprints: a code for each row.
    past_known: whether every competition image has an NIH patient in folds.csv; if not, any of
    these images may be one that fold k holds out, and no score that descends from them is honest.
    excluded: each NIH image that is left out.
    """

    prepared: Prepared
    truth: pd.DataFrame
    fingerprints: tuple[str, ...]
    past_known: bool
    excluded: list[Skipped]


def prepare(
    parameters: TrainParameters,
    size: int,
    work: Path,
    fold_table: pd.DataFrame,
    source: table.Source,
    here: leaks.ImageSet = leaks.NONE,
) -> NihImages:
    """Decode NIH's images at `size`, each once, and decide which fold may not see which.

    All images of a patient are left out where one is a test image, by its pixels. Goes on where it
    was stopped. fold_table: folds.csv, its groups NIH's patients where GROUPS gave them. here: its
    images, by whose pixels NIH's copies of them, and so their patients, are found as well.

    Raises: InputError where NIH_DIR is missing or holds something else.
    """
    root = paths.nih_dir(parameters.nih_dir)
    excluded: list[Skipped] = []
    listed = nih.read(root, excluded)
    everything = cache.prepare(
        listed.assign(rle="-1"),
        root,
        size,
        paths.cache_dir(parameters.cache_dir),
        "nih",
        workers=parameters.workers or None,
        on_bad_file=parameters.on_bad_file,
    )
    cache.check_skipped(everything, len(listed), set(listed["image_id"][listed["positive"]]))
    excluded += everything.skipped
    for note in everything.notes:
        print(f"note: {note}")
    facts = everything.table[["image_id"]].merge(listed, on="image_id", how="left")
    codes = fingerprint.codes(everything)
    because = _test_patients(everything, facts["patient"], source, size, parameters)
    folds_of = _folds_of_patients(fold_table, facts["patient"], codes, here)
    for patient, several in folds_of.items():
        if len(several) > 1:
            because.setdefault(patient, f"images are in the folds {sorted(several)}")
    taken = facts["patient"].isin(because.keys()).to_numpy()
    for row in facts[taken].itertuples():
        excluded.append(Skipped(row.image_id, row.path, f"its patient's {because[row.patient]}"))
    if taken.all():
        raise InputError(f"NIH_DIR {root} holds no image of a patient without test images")
    kept = np.flatnonzero(~taken)
    prepared, facts = everything.subset(kept), facts.iloc[kept].reset_index(drop=True)
    past_known = _past_known(fold_table, listed["patient"])
    truth = prepared.table[["image_id", "rle", "height", "width", "area_px"]].assign(
        group=facts["patient"], positive=facts["positive"]
    )
    truth.insert(1, "fold", _folds(truth, fold_table, folds_of))
    truth.insert(2, "group", truth.pop("group"))
    LeftOut(tuple(map(str, excluded))).save(work, NIH_LEFT_OUT)
    _say(truth, size, past_known, excluded)
    return NihImages(prepared, truth, tuple(codes[i] for i in kept), past_known, excluded)


def _test_patients(
    everything: Prepared,
    patients: pd.Series,
    source: table.Source,
    size: int,
    parameters: TrainParameters,
) -> dict[str, str]:
    """Return each patient with an image that is a test image, and which image it is."""
    if source.test.empty:
        print(
            f"note: {source.root} holds no test images, so NIH's copies of them can't be found and "
            "left out: predict no test images with what descends from this training"
        )
        return {}
    test = leaks.test_images(source, size, parameters)
    because: dict[str, str] = {}
    for i, j in fingerprint.matches(fingerprint.codes(everything), test.codes):
        name = everything.table["image_id"].iat[i]
        reason = f"{name} has the pixels of the test image {test.ids[j]}"
        because.setdefault(patients.iat[i], reason)
    return because


def _folds_of_patients(
    fold_table: pd.DataFrame, patients: pd.Series, codes: Sequence[str], here: leaks.ImageSet
) -> dict[str, set[int]]:
    """Return the folds that hold each patient's images, by name or by pixels.

    patients: of NIH's images, whose codes these are.
    """
    folds_of: dict[str, set[int]] = defaultdict(set)
    for patient, fold in zip(fold_table["group"], fold_table["fold"], strict=True):
        folds_of[patient].add(fold)
    folds_of.pop("", None)  # unknown patients are many
    fold_of = dict(zip(fold_table["image_id"], fold_table["fold"], strict=True))
    for i, j in fingerprint.matches(codes, here.codes):
        folds_of[patients.iat[i]].add(fold_of[here.ids[j]])
    return dict(folds_of)


def _past_known(fold_table: pd.DataFrame, patients: pd.Series) -> bool:
    """Return whether every competition image has a patient, named as NIH names them.

    A DICOM's own PatientID is another naming, under which no patient would match.
    """
    groups = fold_table["group"].astype(str)
    named = groups.str.fullmatch(rf"\d{{{nih.PATIENT_DIGITS}}}")
    return bool(named.all() and groups.isin(set(patients)).any())


def _folds(
    truth: pd.DataFrame, fold_table: pd.DataFrame, folds_of: Mapping[str, set[int]]
) -> np.ndarray:
    """Return the fold of each row's patient, by `_folds_of_patients`; −1 where it has none.

    Where folds.csv has none of NIH's patients at all, there would be nothing to validate on: the
    patients are then drawn into as many folds, by `folds.draw`, whose seed is fixed.
    """
    fold_of_patient = {patient: min(some) for patient, some in folds_of.items()}
    fold = truth["group"].map(fold_of_patient)
    if fold.notna().any():
        return fold.fillna(ALWAYS_TRAINS).to_numpy(np.int64)
    n_folds = int(fold_table["fold"].max()) + 1
    return folds.draw(truth.assign(area_px=truth["positive"].astype(int)), n_folds).to_numpy()


def _say(truth: pd.DataFrame, size: int, past_known: bool, excluded: list[Skipped]) -> None:
    print(
        f"{len(truth)} NIH images of {truth['group'].nunique()} patients, "
        f"{int(truth['positive'].sum())} with pneumothorax, at {size} px"
    )
    for fold, rows in truth.groupby("fold"):
        what = "held out by no fold" if fold == ALWAYS_TRAINS else f"held out by fold {fold}"
        print(f"  {what}: {len(rows)}, {int(rows['positive'].sum())} with pneumothorax")
    if excluded:
        print(f"  left out: {len(excluded)}, see {NIH_LEFT_OUT}; {excluded[0]}")
    if not past_known:
        print(
            "warning: not every competition image has an NIH patient, so these images may hold "
            "what a fold holds out: no score that descends from them is honest. "
            "-p GROUPS nih_id.csv, with a new WORK_DIR, avoids that"
        )
