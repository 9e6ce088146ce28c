"""A data folder as one table: one row an image, with its file and its label."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd

from kernel_lib.data import labels as csv_tables
from kernel_lib.data import rle, splits
from kernel_lib.data.folder import (
    INSTANCE_FOLDER,
    Images,
    Listing,
    mask_name,
    preference,
    same_picture,
    splits_in,
    survey,
)
from kernel_lib.data.images import read_mask
from kernel_lib.data.labels import Sample, read_groups, read_labels, read_sample
from kernel_lib.data.layouts import LABEL_FILES, LAYOUTS, PICTURE_SUFFIXES, label_rank
from kernel_lib.errors import InputError

__all__ = ["Source", "discover", "read_groups", "read_labels", "read_sample"]

MAX_UNLABELLED_SHARE = 0.05
MAX_COMPARED = 20  # masks that are opened of each kind, with and without a pneumothorax
TRAIN_COLUMNS = ("image_id", "path", "rle", "mask_path", "label_at")


@dataclass(frozen=True)
class Source:
    """What `discover` found.

    train: DataFrame[image_id, path, rle, mask_path, label_at], by image_id; rle is the union of an
    image's rows ("-1" if empty), or "" in the masks layout, where mask_path holds the mask and
    `prepare` makes the RLE; label_at says where the label stands. test: DataFrame[image_id, path],
    in the sample's order. test_labels: of the test images that have a label, columns as train.
    unlabelled: images among the training images without a label, left out.
    problems: what a person should know, and can live with.
    """

    root: Path
    layout: str
    train: pd.DataFrame
    test: pd.DataFrame
    sample: Path | None = None
    labels: Path | None = None
    unlabelled: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    test_labels: pd.DataFrame = field(
        default_factory=lambda: pd.DataFrame(columns=list(TRAIN_COLUMNS), dtype=object)
    )


def discover(
    data_dir: Path | str, *, for_inference: bool = False, sample: Path | None = None
) -> Source:
    """Recognise the layout under a folder and pair images with labels; opens no image.

    Test images are those that the sample submission names, else those that a column of the label
    table, their file's name or a folder calls so (test, dicom-images-test, stage_2_images, …), else
    validation images (val, valid, …).
    Training images are the others with a label, wherever they lie; where no others have one, as
    where a stage's labels are known, test images are training images too, which is noted.
    One file an image: DICOM before PNG before JPEG. Of masks a few are read where a table looks
    like labels too.

    With `for_inference` files are also recognised by their content, images without a label are no
    fault, and a folder of images alone, without labels, sample and test folder, is all test images.
    A `sample` given, from anywhere, takes the place of the one in the folder, and takes no image
    from those for training.
    Errors: InputError, for all that would otherwise turn up hours later.
    """
    listing = survey(Path(data_dir), by_content=for_inference)
    problems = []
    if listing.dangling:
        problems.append(f"{len(listing.dangling)} links lead nowhere, {listing.dangling[0]} first")
    if listing.deep:
        problems.append(f"{listing.deep[0]} lies too deep to be read: move it to {listing.root}")
    if not listing.images:
        raise InputError(
            f"no images under DATA_DIR {data_dir}. {_sentences(problems)}"
            f"{_unread_hint(listing)}{_archive_hint(listing)}{LAYOUTS}"
        )
    images = Images.of(listing)
    if images.in_two_formats:
        problems.append(
            f"{images.in_two_formats} images have files of two formats: DICOM, PNG, JPEG win"
        )
    given = sample
    labels, labelled = _labelled(listing, images, problems)
    sample, test = _test(listing, images, labelled, labels, problems, given)
    if for_inference and sample is None and labelled.empty and test.empty:
        test = _test_frame(images.files, images)
    if labelled.empty and test.empty:
        raise InputError(
            f"{len(images)} images under DATA_DIR {data_dir}, and neither labels nor a sample "
            f"submission for them. {_sentences(problems)}"
            f"{_table_hint(listing)}{_unread_hint(listing)}{_archive_hint(listing)}"
            f"{_masks_hint(images)}{LAYOUTS}"
        )
    in_test = labelled["image_id"].isin(test["image_id"])
    taken = in_test & (given is None)
    train = _kept_for_training(listing, images, labelled, taken, problems)
    if not for_inference:
        problems += splits.noted(listing, images, set(train["image_id"]))
        if labels is None:
            _compare_with_tables(listing, images, train, problems)
    return Source(
        root=Path(data_dir).resolve(),
        layout=_layout(images, bool(len(labelled) and labels is None)),
        train=train,
        test=test,
        sample=sample,
        labels=labels,
        unlabelled=_unlabelled(listing, images, labels, labelled, test, problems, for_inference),
        problems=problems,
        test_labels=labelled[in_test].reset_index(drop=True),
    )


def _labelled(
    listing: Listing, images: Images, problems: list[str]
) -> tuple[Path | None, pd.DataFrame]:
    """The label table (None where masks are the labels, or nothing is), and all labelled images."""
    tables = _label_tables(listing)
    if not tables:
        return None, _from_masks(listing, images, problems)
    if listing.masks:
        problems.append(f"{len(listing.masks)} mask images are not used: {tables[0].name} labels")
    # Of several label tables the one that labels most of what is here, then the later one.
    read = {path: read_labels(path, problems) for path in tables}
    found = {path: table["image_id"].map(images.find) for path, table in read.items()}
    present = {path: int(ids.notna().sum()) for path, ids in found.items()}
    labels = max(tables, key=lambda path: (present[path], -label_rank(path.name), -len(path.name)))
    table = read[labels]
    if len(tables) > 1:
        problems.append(f"of {len(tables)} label tables {labels} is used, which labels most images")
    if not present[labels]:
        problems.append(
            f"{labels} labels {len(table)} images, none of which is here: it names "
            f"{table['image_id'].iloc[0]}, the files are {next(iter(images.files))} …"
            f"{_zeros_hint(table['image_id'], images)}"
        )
        return labels, _train_frame([], images)
    missing = table[found[labels].isna()]
    if len(missing):
        first = missing.iloc[0]
        lost = _zeros_hint(missing["image_id"], images)
        raise InputError(
            f"{first.label_at}: image {first.image_id} has a label and no file under "
            f"{listing.root} ({len(missing)} of {len(table)} labelled images have none"
            f"{_dangling(listing)}){lost or ': fetch the images, or delete their rows'}"
        )
    _take_stated(listing, images, labels, problems)
    rows = zip(found[labels], table["rle"], table["label_at"], strict=True)
    return labels, _train_frame([(one, rle, "", at) for one, rle, at in rows], images)


def _take_stated(listing: Listing, images: Images, labels: Path, problems: list[str]) -> None:
    """Take the splits that a column of the label table states, before any folder's."""
    stated = splits.of_table(labels)
    for written, name in zip(stated, csv_tables.names_of(list(stated)), strict=True):
        if stated[written]:
            files = images.files[images.find(name)]
            listing.stated |= dict.fromkeys(files, stated[written])
    if stated:
        problems.append(f"{labels}: one of its columns says which images are of which split")


def _label_tables(listing: Listing) -> list[Path]:
    """Tables called as the competition's labels are; of packed and unpacked ones the latter."""
    found: dict[Path, Path] = {}
    for path in listing.tables:  # in order of name, hence unpacked first
        if label_rank(path.name) < len(LABEL_FILES):
            found.setdefault(path.parent / path.name[: path.name.lower().index(".csv")], path)
    return list(found.values())


def _from_masks(listing: Listing, images: Images, problems: list[str]) -> pd.DataFrame:
    """Labelled images of mask images named as their images are, or with _mask at the end."""
    masks: dict[str, Path] = {}
    found = listing.masks
    of_instances = [path for path in found if INSTANCE_FOLDER.fullmatch(path.parent.name)]
    if 0 < len(of_instances) < len(found):
        found = sorted(set(found) - set(of_instances))
        problems.append(
            f"{len(of_instances)} masks of instances are not used, {of_instances[0]} first: the "
            "masks of classes are"
        )
    for path in sorted(found, key=preference):
        one = images.of_mask(path)
        if one is None:
            raise InputError(
                f"mask {path} has no image {mask_name(path)} under {listing.root}, where images "
                f"are called {next(iter(images.files))} …{_dangling(listing)}: fetch the image, or "
                "name both alike"
            )
        if not same_picture(masks.setdefault(one, path), path):
            raise InputError(
                f"image {one} has two masks, {masks[one]} and {path}: "
                + (
                    "unite them into one picture"
                    if masks[one].parent == path.parent
                    else "keep the folder with masks of pneumothorax, and move the other away"
                )
            )
    return _train_frame([(one, "", str(path), str(path)) for one, path in masks.items()], images)


def _compare_with_tables(
    listing: Listing, images: Images, train: pd.DataFrame, problems: list[str]
) -> None:
    """Note tables that look like labels of images whose labels are masks.

    Errors: InputError where some masks say otherwise than the table: of lungs, perhaps.
    """
    masks = dict(zip(train["image_id"], train["mask_path"], strict=True))
    way_out = f"name the table {LABEL_FILES[-1]} if it holds the labels, else move it away"
    for path in _like_labels(listing):
        try:
            table = read_labels(path)
        except InputError as error:
            problems.append(f"not used: {error}")
            continue
        table["mask"] = table["image_id"].map(images.meant).map(masks)
        table = table.dropna()
        positive = table["rle"] != rle.EMPTY
        for row in table.groupby(positive).head(MAX_COMPARED).itertuples():
            if _has_area(row.mask) not in (None, positive[row.Index]):
                raise InputError(f"{row.label_at} and the mask {row.mask} differ: {way_out}")
        if len(table):
            problems.append(f"{path} is not used, {len(table)} masks are: {way_out}")


def _has_area(mask: str) -> bool | None:
    """Whether a mask is not empty; None where it is in doubt, which `prepare` reports."""
    try:
        return bool(read_mask(mask).any())
    except InputError:
        return None


def _train_frame(rows: list[tuple[str, str, str, str]], images: Images) -> pd.DataFrame:
    full = [(name, str(images.path(name)), *label) for name, *label in sorted(rows)]
    return pd.DataFrame(full, columns=list(TRAIN_COLUMNS), dtype=object)


def _kept_for_training(
    listing: Listing,
    images: Images,
    labelled: pd.DataFrame,
    in_test: pd.Series,
    problems: list[str],
) -> pd.DataFrame:
    """The labelled images that are neither test nor validation images, as far as there are any."""
    set_aside = (
        labelled["image_id"]
        .map(lambda one: any(map(listing.held_out, images.files[one])))
        .astype(bool)
    )
    _note_unmarked(listing, images, labelled[~(in_test | set_aside)], problems)
    for held in (in_test | set_aside, in_test):
        if held.any() and not held.all():
            problems.append(
                f"{int(held.sum())} labelled images are test or validation images and not trained "
                f"on, {labelled.loc[held, 'path'].iloc[0]} first; `score --split test` uses the "
                "labels of test images"
            )
            return labelled[~held].reset_index(drop=True)
    if in_test.any():
        problems.append(
            f"all {len(labelled)} labelled images are test images too: what is trained on them is "
            "not honestly scored on these"
        )
    return labelled


def _note_unmarked(
    listing: Listing, images: Images, train: pd.DataFrame, problems: list[str]
) -> None:
    """Note images that nothing calls training images where others are: a test set's, perhaps."""
    split = train["image_id"].map(lambda one: "".join(map(listing.split, images.files[one])))
    by_name = train["path"].map(lambda path: " ".join(splits_in(Path(path).stem)))
    is_train = split.str.contains("train") | by_name.str.contains("train")
    others = train[(split == "") & ~is_train]
    if len(others) and is_train.any():
        problems.append(
            f"{len(others)} labelled images are trained on that no folder and no file name calls "
            f"training images, as is said of the rest, {others['path'].iloc[0]} first; where they "
            "are test images, call their folder test"
        )


def _test(
    listing: Listing,
    images: Images,
    labelled: pd.DataFrame,
    labels: Path | None,
    problems: list[str],
    given: Path | None,
) -> tuple[Path | None, pd.DataFrame]:
    """The sample, the one given first (None without one), and the test rows."""
    in_folder = _in_test_folders(listing, images, labelled, labels)
    read = {given: read_sample(given)} if given else _samples(listing, problems)
    if not read:
        return None, _test_frame(in_folder, images)
    found = {path: [images.find(name) for name in table.names] for path, table in read.items()}
    present = {path: sum(one is not None for one in ids) for path, ids in found.items()}
    # Later stages come last by name, and win where both have their images.
    sample = max(read, key=lambda path: (present[path], path.name))
    ids, cells = found[sample], read[sample].cells
    if None not in ids:
        return sample, _test_frame(ids, images)
    unclaimed = set(in_folder) - set(labelled["image_id"])
    if not given and not present[sample] and len(labelled) and not unclaimed:
        problems.append(f"{sample} names {len(ids)} test images, none of which is here")
        return sample, _test_frame([], images)
    at = ids.index(None)
    raise InputError(
        f"{sample} row {cells.index[at]}: test image {read[sample].names[at]} has no file under "
        f"{listing.root} ({ids.count(None)} of {len(ids)} have none{_dangling(listing)}; the files "
        f"are {next(iter(images.files))} …)"
        + (
            _zeros_hint(read[sample].names, images)
            or ": fetch the images, or is it another competition's sample (-p SAMPLE FILE)?"
        )
    )


def _samples(listing: Listing, problems: list[str]) -> dict[Path, Sample]:
    """Tables called samples that are: a submission's columns, and no masks that differ.

    Errors: InputError for what is called a sample submission and has other columns.
    """
    found = {}
    for path in listing.tables:
        name = path.name.lower()
        if "sample" not in name:
            continue
        try:
            table = read_sample(path)
        except InputError as error:
            if "submission" in name:
                raise
            problems.append(f"not used: {error}")
            continue
        if table.has_masks:
            problems.append(f"not used: {path} holds masks, so that it is no sample submission")
        else:
            found[path] = table
    # A sample of a table of labels may hold no mask.
    return {p: t for p, t in found.items() if "submission" in p.name.lower()} or found


def _in_test_folders(
    listing: Listing, images: Images, labelled: pd.DataFrame, labels: Path | None
) -> list[str]:
    """Images in folders for test images, else in those for validation images.

    A table may label images of an earlier stage's test set, which are then for training.
    """
    of_split: dict[str, list[str]] = defaultdict(list)
    for one, paths in images.files.items():
        for split in set(map(listing.split, paths)):
            of_split[split].append(one)
    found = of_split["test"] or of_split["validation"]
    known = set(labelled["image_id"])
    if labels is None or known.issuperset(found):
        return found
    return [
        one
        for one in found
        if one not in known or not any(map(listing.is_of_a_stage, images.files[one]))
    ]


def _test_frame(ids: Iterable[str], images: Images) -> pd.DataFrame:
    rows = [(name, str(images.path(name))) for name in ids]
    return pd.DataFrame(rows, columns=["image_id", "path"], dtype=object)


def _unlabelled(listing, images, labels, labelled, test, problems, for_inference) -> list[str]:
    """Images that are neither labelled nor test images. Errors: InputError above 5 %."""
    known = set(labelled["image_id"]) | set(test["image_id"])
    rest = [
        one
        for one, paths in images.files.items()
        if one not in known and {"", "train"}.issuperset(map(listing.split, paths))
    ]
    if not rest:
        return []
    if labelled.empty or for_inference:  # nobody's concern there: the sample names what is wanted
        problems.append(f"{len(rest)} images stand in no table and are not used")
        return []
    n = len(rest) + len(labelled)
    share = len(rest) / n
    if share > MAX_UNLABELLED_SHARE:
        raise InputError(
            f"{_unread_hint(listing)}{len(rest)} of {n} training images under {listing.root} have "
            f"no label ({share:.0%}, at most {MAX_UNLABELLED_SHARE:.0%} is normal), "
            f"{images.path(rest[0])} first. {_sentences(problems)}Where they have no "
            f"pneumothorax, say so: {_how_to_say_empty(labels, labelled, rest[0])}; else give "
            "their labels, or move them out of DATA_DIR if they have none"
        )
    problems.append(f"{len(rest)} training images have no label and are left out")
    return rest


def _how_to_say_empty(labels: Path | None, labelled: pd.DataFrame, image_id: str) -> str:
    if labels:
        return f"a row {image_id},{rle.EMPTY} for each in {labels}"
    folder = Path(labelled["mask_path"].iloc[0]).parent
    return f"a mask for each that is black all over, as {folder / image_id}.png"


def _layout(images: Images, by_masks: bool) -> str:
    if by_masks:
        return "images+masks"
    paths = map(images.path, images.files)
    dicoms = [path for path in paths if path.suffix.lower() not in PICTURE_SUFFIXES]
    if 2 * len(dicoms) <= len(images):
        return "images+rle"
    folders = {path.parent for path in dicoms}
    return "nested-dicom" if 2 * len(folders) > len(dicoms) else "flat-dicom"


def _sentences(problems: list[str]) -> str:
    return "".join(f"{problem}. " for problem in problems)


def _dangling(listing: Listing) -> str:
    return f"; {listing.dangling[0]} is a link that leads nowhere" if listing.dangling else ""


def _zeros_hint(missing: Iterable[str], images: Images) -> str:
    """Words on ids that lack the zeros of a file's name, as a spreadsheet leaves them."""
    full = {one.lstrip("0"): one for one in images.files if one.startswith("0")}
    lost = (n for n in missing if n not in images.files and n.lstrip("0") in full)
    short = next(lost, None)
    if short is None:
        return ""
    return (
        f"; {short} may be {full[short.lstrip('0')]} that lost its zeros in a spreadsheet: give "
        "the table as it was"
    )


def _archive_hint(listing: Listing) -> str:
    archives = [p for p in listing.root.iterdir() if p.suffix in (".zip", ".gz", ".tar", ".7z")]
    return f"Unpack {archives[0].name} first. " if archives else ""


def _unread_hint(listing: Listing) -> str:
    """Words on files of other kinds, which may be what is missing."""
    if not listing.unread:
        return ""
    kinds = ", ".join(f"{n} {end or 'without ending'}" for end, n in listing.unread.most_common(3))
    return f"Not read: {kinds} (images and masks are PNG, JPEG or DICOM; labels CSV). "


def _like_labels(listing: Listing) -> list[Path]:
    """Tables with the columns of labels that are called neither labels nor a sample."""
    columns = {csv_tables.ID_COLUMN, csv_tables.RLE_COLUMN}
    return [
        path
        for path in listing.tables
        if label_rank(path.name) == len(LABEL_FILES)
        and "sample" not in path.name.lower()
        and columns.issubset(csv_tables.columns_of(path))
    ]


def _table_hint(listing: Listing) -> str:
    for path in _like_labels(listing):
        return f"{path.name} looks like labels: name it {LABEL_FILES[-1]}. "
    return ""


def _masks_hint(images: Images) -> str:
    """Words on folders whose files share their names, as images and their masks do."""
    folders = images.folders_of_shared_names()
    if len(folders) != 2:
        return ""
    return (
        f"{folders[0]} and {folders[1]} hold files of the same names: where one of them holds "
        "masks, call that folder masks. "
    )
