"""From DATA_DIR to prepared images and the one folds file, for the stages that need them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from kernel_lib import storage
from kernel_lib.artifacts import fold_run, folds_file
from kernel_lib.artifacts.filenames import FOLDS
from kernel_lib.artifacts.folds_file import LeftOut
from kernel_lib.config import TrainParameters
from kernel_lib.data import cache, fingerprint, folds, images, label_checks, rle, table
from kernel_lib.data.labels import read_groups
from kernel_lib.errors import InputError
from kernel_lib.kaggle import paths
from kernel_lib.plan import TrainPlan
from kernel_lib.stages import leaks, nih


@dataclass(frozen=True)
class TrainingSet:
    """Prepared images and what is known of each, for the folds of one run."""

    prepared: cache.Prepared
    # by cache row: image_id, fold, group, rle, height, width, positive (has a pneumothorax)
    truth: pd.DataFrame
    folds_digest: str
    fingerprints: tuple[str, ...] = ()  # by cache row, as `data.fingerprint` gives them
    test: leaks.ImageSet = leaks.NONE  # the test images, of which none is to be trained on
    past_known: bool = True  # False: some images may show patients that the fold holds out


def training_images(plan: TrainPlan, roots: Sequence[Path]) -> TrainingSet:
    """Return the images that a run trains on, decoded, with their folds.

    For a run on NIH's images the competition's are read too: their patients and folds decide which
    NIH images a fold may not see.
    """
    parameters, size = plan.parameters, plan.experiment.size
    source = table.discover(paths.data_dir(parameters.data_dir))
    for problem in source.problems:
        print(f"note: {problem}")
    test = leaks.test_images(source, size, parameters)
    prepared = prepare_training(source, parameters, size, roots[0], test)
    fold_table = settle_folds(prepared, parameters, roots)
    if plan.experiment.images == "nih":
        here = leaks.ImageSet(prepared.table["image_id"].tolist(), fingerprint.codes(prepared))
        nih_images = nih.prepare(parameters, size, roots[0], fold_table, source, here)
        return TrainingSet(
            nih_images.prepared,
            nih_images.truth,
            folds_file.digest(fold_table),
            nih_images.fingerprints,
            test,
            nih_images.past_known,
        )
    truth = prepared.table[["image_id"]].merge(fold_table, on="image_id", how="left")
    truth["positive"] = truth["area_px"] > 0
    codes = fingerprint.codes(prepared)
    leaks.note_copies_across_folds(truth, codes)
    return TrainingSet(prepared, truth, folds_file.digest(fold_table), codes, test)


def prepare_training(
    source: table.Source,
    parameters: TrainParameters,
    size: int,
    work: Path,
    test: leaks.ImageSet = leaks.NONE,
) -> cache.Prepared:
    """Decode the labelled images of DATA_DIR at `size`, each once.

    Images without a label, unreadable ones and those that are test images too are left out, and
    listed in the working folder for the report.

    Raises: InputError where many are unreadable, or where the labels together cannot be right.
    """
    if source.train.empty:
        known = "".join(f"; {problem}" for problem in source.problems)
        raise InputError(
            f"{source.root} holds no labelled images, and training needs their table{known}"
        )
    prepared = cache.prepare(
        source.train,
        source.root,
        size,
        paths.cache_dir(parameters.cache_dir),
        "train",
        workers=parameters.workers or None,
        on_bad_file=parameters.on_bad_file,
        masks_are=parameters.masks_are,
    )
    _check_labels(source, prepared, parameters.masks_are)
    skipped = prepared.skipped
    for note in prepared.notes:
        print(f"note: {note}")
    prepared, in_test = leaks.without_test_images(prepared, test)
    positive = int((prepared.table["area_px"] > 0).sum())
    print(f"{len(prepared)} images ({source.layout}), {positive} with pneumothorax, at {size} px")
    unlabelled = (images.Skipped(name, "", "no label") for name in source.unlabelled)
    left_out = [*skipped, *in_test, *unlabelled]
    for image in left_out:
        print(f"left out: {image}")
    LeftOut(tuple(map(str, left_out))).save(work)
    return prepared


def _check_labels(source: table.Source, prepared: cache.Prepared, masks_are: str | None) -> None:
    """Refuse labels that were left out in number, or that look wrong together."""
    images_read = prepared.table
    positive = set(images_read["image_id"][images_read["area_px"] > 0])
    left_out = source.train[
        source.train["image_id"].isin([image.image_id for image in prepared.skipped])
    ]
    positive |= {row.image_id for row in left_out.itertuples() if _may_have_mask(row)}
    cache.check_skipped(prepared, len(source.train), positive)
    shapes = zip(images_read["height"], images_read["width"], strict=True)
    labels = list(zip(map(rle.parse, images_read["rle"]), shapes, strict=True))
    doubt = label_checks.doubt(labels) if masks_are != "right" else None
    if doubt:
        raise InputError(f"{source.labels or source.root}: {doubt}")
    large = label_checks.doubt_of_large(list(zip(images_read["image_id"], labels, strict=True)))
    if large:
        print(f"note: {large}")


def _may_have_mask(row: tuple) -> bool:
    """Return whether the label of an image that was left out has a mask, as far as is known."""
    if not row.mask_path:
        return row.rle != rle.EMPTY
    try:
        return bool(images.read_mask(row.mask_path).any())
    except InputError:
        return True


def settle_folds(
    prepared: cache.Prepared, parameters: TrainParameters, roots: Sequence[Path]
) -> pd.DataFrame:
    """Return the folds file of the working folder: the existing one, an earlier kernel's, or new.

    Trainings that start together in one folder draw folds once: the others wait for them.

    Raises: InputError where the existing one is of other images, labels or N_FOLDS.
    """
    with storage.folder_lock(roots[0] / FOLDS, wait=True):
        return _settle_locked(prepared, parameters, roots)


def _settle_locked(
    prepared: cache.Prepared, parameters: TrainParameters, roots: Sequence[Path]
) -> pd.DataFrame:
    target = roots[0] / FOLDS
    existing = next((r / FOLDS for r in roots if (r / FOLDS).is_file()), None)
    if existing is None:
        refuse_lost_folds(roots)
        fold_table = _draw(prepared, parameters)
    else:
        fold_table = folds_file.load(existing)
        _refuse_other_file(fold_table, existing, roots[0])
        _refuse_other_images(fold_table, prepared.table, existing)
        _refuse_missing_images(fold_table, prepared.table, existing, roots[0])
        n_folds = int(fold_table["fold"].max()) + 1
        _refuse_other_groups(fold_table, prepared, parameters.groups, existing)
        if n_folds != parameters.n_folds:
            raise InputError(
                f"{existing} has {n_folds} folds, N_FOLDS is {parameters.n_folds}: "
                f"-p N_FOLDS {n_folds}, or another WORK_DIR"
            )
    if existing != target:
        folds_file.save(fold_table, target)
    return fold_table


def refuse_lost_folds(roots: Sequence[Path]) -> None:
    """Refuse to draw new folds if runs exist whose folds file is missing.

    If images or labels changed since, new folds could hold out images that those runs have seen.
    """
    # First: a training that begins writes the folds file before its run.
    begun = fold_run.run_names(roots)
    if begun and not any((root / FOLDS).is_file() for root in roots):
        raise InputError(f"{folds_file.missing(roots)} (runs: {', '.join(begun)})")


def _refuse_other_file(fold_table: pd.DataFrame, path: Path, work: Path) -> None:
    """Refuse a folds file that runs in the working folder were not trained on."""
    digest = folds_file.digest(fold_table)
    for folder in fold_run.folds_with_training(work):
        if folder.config.is_file() and folder.read_config().folds_digest != digest:
            raise InputError(
                f"{path} is not the folds file that {folder.path} was trained on: "
                f"{folds_file.RESTORE}"
            )


def _draw(prepared: cache.Prepared, parameters: TrainParameters) -> pd.DataFrame:
    fold_table = prepared.table[["image_id", "height", "width", "area_px", "rle"]].copy()
    fold_table["group"] = _with_copies(_groups(prepared.table, parameters.groups), prepared)
    fold_table["fold"] = folds.draw(fold_table, parameters.n_folds)
    print(folds.balance(fold_table).to_string())
    return fold_table


def _groups(prepared: pd.DataFrame, given: str | None) -> pd.Series:
    """Return the patient of each image: by the table given, else by the DICOMs, else unknown ('').

    An image that the table lacks stays unknown: DICOMs name patients in another way.
    """
    groups = prepared["patient"] if given is None else _given_groups(prepared, given)
    groups, notes = folds.known_patients(groups)
    for note in [*notes, *folds.note_unknown_patients(prepared["image_id"], groups)]:
        print(f"note: {note}")
    return groups


def _with_copies(groups: pd.Series, prepared: cache.Prepared) -> pd.Series:
    """Return the groups, patients united whose images are copies of each other; note them."""
    codes, ids = fingerprint.codes(prepared), prepared.table["image_id"].tolist()
    copies = [(i, j) for i, j in fingerprint.matches(codes, codes).tolist() if i < j]
    if copies:
        i, j = copies[0]
        print(
            f"note: {len(copies)} pairs of images show the same radiograph ({ids[i]} and {ids[j]} "
            "first): both of a pair are assigned to one patient"
        )
    return folds.united_patients(groups, ids, copies)


def _given_groups(prepared: pd.DataFrame, given: str) -> pd.Series:
    groups = prepared["image_id"].map(read_groups(paths.from_root(given)))
    if groups.isna().all():
        raise InputError(f"GROUPS {given} names none of the images: it must map image ids")
    if groups.isna().any():
        first = prepared["image_id"][groups.isna()].iloc[0]
        print(f"note: {int(groups.isna().sum())} images have no patient in {given}, {first} first")
    return groups


def _refuse_other_groups(
    fold_table: pd.DataFrame, prepared: cache.Prepared, given: str | None, path: Path
) -> None:
    """Refuse GROUPS that differ from the patients at the draw: one could be in two folds."""
    if given is None:
        return
    ids = prepared.table["image_id"]
    had = folds.known_patients(ids.map(fold_table.set_index("image_id")["group"]))[0]
    wanted = _groups(prepared.table, given)
    differ = had != wanted
    if differ.any():
        differ &= had != _with_copies(wanted, prepared)
    other = differ.to_numpy().nonzero()[0]
    if len(other):
        first = other[0]
        raise InputError(
            f"{path} was drawn with other patients than GROUPS {given} says "
            f"({ids.iloc[first]}: {had.iloc[first]!r}, here "
            f"{wanted.iloc[first]!r}; {len(other)} images): choose another WORK_DIR, or delete it "
            "with its runs"
        )


def _refuse_missing_images(
    fold_table: pd.DataFrame, prepared: pd.DataFrame, path: Path, work: Path
) -> None:
    """Refuse folds that hold images which are not here and were not left out by name.

    A run without them would be scored on fewer images than the others.
    """
    left_out, here = LeftOut.load([work]), frozenset(prepared["image_id"])
    lacking = fold_table[[i not in here and i not in left_out for i in fold_table["image_id"]]]
    if len(lacking):
        raise InputError(
            f"{path} has {len(lacking)} images that DATA_DIR lacks, {lacking['image_id'].iloc[0]} "
            "first: restore them, or choose another WORK_DIR, or delete folds.csv and its runs"
        )


def _refuse_other_images(fold_table: pd.DataFrame, prepared: pd.DataFrame, path: Path) -> None:
    both = prepared.merge(fold_table, on="image_id", how="left", suffixes=("", "_drawn"))
    new = both[both["fold"].isna()]
    if len(new):
        raise InputError(
            f"{path} does not know {len(new)} of the images, {new['image_id'].iloc[0]} first: it "
            "was drawn over other data; choose another WORK_DIR, or delete folds.csv and its runs"
        )
    changed = both[both["rle"] != both["rle_drawn"]]
    if len(changed):
        raise InputError(
            f"the mask of {changed['image_id'].iloc[0]} and {len(changed) - 1} others is not the "
            f"one in {path}: choose another WORK_DIR, or delete folds.csv and its runs"
        )
