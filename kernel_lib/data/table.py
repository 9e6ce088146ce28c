"""A data folder as one table: one row an image, with its file and its label."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd

from kernel_lib.data import labels as csv_tables
from kernel_lib.data.folder import Listing, one_path_an_id, survey
from kernel_lib.data.images import PICTURE_SUFFIXES, image_id
from kernel_lib.data.labels import read_groups, read_labels, read_sample
from kernel_lib.data.layouts import LABEL_FILES, LAYOUTS
from kernel_lib.errors import InputError

__all__ = ["Source", "discover", "read_groups", "read_labels", "read_sample"]

MAX_UNLABELLED_SHARE = 0.05
TRAIN_COLUMNS = ("image_id", "path", "rle", "mask_path", "label_at")


@dataclass(frozen=True)
class Source:
    """What `discover` found.

    train: DataFrame[image_id, path, rle, mask_path, label_at], by image_id; rle is the union of an
    image's rows ("-1" if empty), or "" in the masks layout, where mask_path holds the mask and
    `prepare` makes the RLE; label_at says where the label stands. test: DataFrame[image_id, path],
    in the sample's order. unlabelled: images among the training images without a label, left out.
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


def discover(
    data_dir: Path | str, *, for_inference: bool = False, sample: Path | None = None
) -> Source:
    """Recognise the layout under a folder and pair images with labels; opens no image.

    Training images are those with a label, wherever they lie. Test images are those that the
    sample submission names, else those in a folder for test images (dicom-images-test,
    stage_2_images, …); they may be training images too, as where a stage's labels are known.
    One file an image: DICOM before PNG before JPEG.

    With `for_inference` files are also recognised by their content, images without a label are no
    fault, and a folder of images alone, without labels, sample and test folder, is all test images.
    A `sample` given, from anywhere, takes the place of the one in the folder.
    Errors: InputError, for all that would otherwise turn up hours later.
    """
    listing = survey(Path(data_dir), by_content=for_inference)
    if not listing.images:
        raise InputError(f"no images under DATA_DIR {data_dir}. {_archive_hint(listing)}{LAYOUTS}")
    images, in_two_formats = one_path_an_id(listing.images)
    problems = []
    if in_two_formats:
        problems.append(f"{in_two_formats} images have files of two formats: DICOM, PNG, JPEG win")
    labels, train = _training(listing, images, problems)
    sample, test = _test(listing, images, train, problems, sample)
    if for_inference and sample is None and train.empty and test.empty:
        test = _test_frame(images, images)
    if train.empty and test.empty:
        raise InputError(
            f"{len(images)} images under DATA_DIR {data_dir}, and neither labels nor a sample "
            f"submission for them. {_table_hint(listing)}{LAYOUTS}"
        )
    return Source(
        root=Path(data_dir).resolve(),
        layout=_layout(listing, images, bool(len(train) and labels is None)),
        train=train,
        test=test,
        sample=sample,
        labels=labels,
        unlabelled=_unlabelled(listing, images, train, test, problems, for_inference),
        problems=problems,
    )


def _training(listing: Listing, images: dict[str, Path], problems: list[str]):
    """The label table (None where masks are the labels, or nothing is) and the training rows."""
    tables = [path for path in listing.tables if path.name in LABEL_FILES]
    if not tables:
        return None, _from_masks(listing, images)
    if listing.masks:
        problems.append(f"{len(listing.masks)} mask images are not used: {tables[0].name} labels")
    # Of several label tables the one that labels most of what is here, then the later one.
    read = {path: read_labels(path, problems) for path in tables}
    present = {
        path: int(table["image_id"].isin(images.keys()).sum()) for path, table in read.items()
    }
    labels = max(tables, key=lambda path: (present[path], -LABEL_FILES.index(path.name)))
    table = read[labels]
    if len(tables) > 1:
        problems.append(f"of {len(tables)} label tables {labels} is used, which labels most images")
    if not present[labels]:
        problems.append(f"{labels} labels {len(table)} images, none of which is here")
        return labels, _train_frame([], images)
    missing = table[~table["image_id"].isin(images.keys())]
    if len(missing):
        first = missing.iloc[0]
        raise InputError(
            f"{first.label_at}: image {first.image_id} has a label and no file under "
            f"{listing.root} ({len(missing)} of {len(table)} labelled images have none): "
            "fetch the images, or delete their rows"
        )
    rows = [(i, rle, "", at) for i, rle, at in table.itertuples(index=False)]
    return labels, _train_frame(rows, images)


def _from_masks(listing: Listing, images: dict[str, Path]) -> pd.DataFrame:
    """Training rows of mask images named as their images are, or with _mask at the end."""

    def id_of(path: Path) -> str:
        name = image_id(path)
        return name if name in images else name.removesuffix("_mask")

    masks, _ = one_path_an_id(listing.masks, id_of)
    for name, path in masks.items():
        if name not in images:
            raise InputError(
                f"mask {path} has no image {name} under {listing.root}: "
                "fetch the image, or remove the mask"
            )
    return _train_frame([(name, "", str(path), str(path)) for name, path in masks.items()], images)


def _train_frame(rows: list[tuple[str, str, str, str]], images: dict[str, Path]) -> pd.DataFrame:
    full = [(name, str(images[name]), *label) for name, *label in sorted(rows)]
    return pd.DataFrame(full, columns=list(TRAIN_COLUMNS), dtype=object)


def _test(
    listing: Listing,
    images: dict[str, Path],
    train: pd.DataFrame,
    problems: list[str],
    given: Path | None,
):
    """The sample, the one given first (None without one), and the test rows."""
    in_folder = [name for name, path in images.items() if listing.is_test(path)]
    samples = [given] if given else [p for p in listing.tables if "sample" in p.name.lower()]
    if not samples:
        return None, _test_frame(in_folder, images)
    read = {path: read_sample(path) for path in samples}
    present = {path: int(t["image_id"].isin(images.keys()).sum()) for path, t in read.items()}
    # Later stages come last by name, and win where both have their images.
    sample = max(samples, key=lambda path: (present[path], path.name))
    table = read[sample]
    absent = table[~table["image_id"].isin(images.keys())]
    if absent.empty:
        return sample, _test_frame(table["image_id"], images)
    unclaimed = set(in_folder) - set(train["image_id"])
    if not given and not present[sample] and len(train) and not unclaimed:
        problems.append(f"{sample} names {len(table)} test images, none of which is here")
        return sample, _test_frame([], images)
    name, row = absent.iloc[0]
    raise InputError(
        f"{sample} row {row}: test image {name} has no file under {listing.root} ({len(absent)} "
        f"of {len(table)} have none): fetch the images, or is it another competition's sample "
        "(-p SAMPLE FILE)?"
    )


def _test_frame(ids: Iterable[str], images: dict[str, Path]) -> pd.DataFrame:
    rows = [(name, str(images[name])) for name in ids]
    return pd.DataFrame(rows, columns=["image_id", "path"], dtype=object)


def _unlabelled(listing, images, train, test, problems, for_inference) -> list[str]:
    """Images that are neither labelled nor test images. Errors: InputError above 5 %."""
    known = set(train["image_id"]) | set(test["image_id"])
    rest = [n for n, path in images.items() if n not in known and not listing.is_test(path)]
    if not rest:
        return []
    if train.empty or for_inference:  # nobody's concern there: the sample names what is wanted
        problems.append(f"{len(rest)} images stand in no table and are not used")
        return []
    share = len(rest) / (len(rest) + len(train))
    if share > MAX_UNLABELLED_SHARE:
        raise InputError(
            f"{len(rest)} of {len(rest) + len(train)} training images under {listing.root} have no "
            f"label ({share:.0%}, at most {MAX_UNLABELLED_SHARE:.0%} is normal), {images[rest[0]]} "
            "first: give the labels that belong to these images, or move the others away"
        )
    problems.append(f"{len(rest)} training images have no label and are left out")
    return rest


def _layout(listing: Listing, images: dict[str, Path], by_masks: bool) -> str:
    if by_masks:
        return "images+masks"
    dicoms = [path for path in images.values() if path.suffix.lower() not in PICTURE_SUFFIXES]
    if 2 * len(dicoms) <= len(images):
        return "images+rle"
    folders = {path.parent for path in dicoms}
    return "nested-dicom" if 2 * len(folders) > len(dicoms) else "flat-dicom"


def _archive_hint(listing: Listing) -> str:
    archives = [p for p in listing.root.iterdir() if p.suffix in (".zip", ".gz", ".tar", ".7z")]
    return f"Unpack {archives[0].name} first. " if archives else ""


def _table_hint(listing: Listing) -> str:
    for path in listing.tables:
        if {csv_tables.ID_COLUMN, csv_tables.RLE_COLUMN} <= set(csv_tables.columns_of(path)):
            return f"{path.name} looks like labels: name it train-rle.csv. "
    return ""
