"""The competition whose data the library reads, and the file names and layouts it comes in.

Another competition is another `Competition`. Only the form of its RLE (relative, down the columns)
is elsewhere, in `data/rle.py`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Competition:
    """What one competition's data is called, and the size of its images."""

    slug: str  # of its data on Kaggle
    id_column: str  # of label tables, sample and submission
    rle_column: str
    id_pattern: str  # regular expression of an image id
    label_files: tuple[str, ...]  # names of label tables, the latest stage's first
    test_folders: tuple[str, ...]  # of a stage; a later stage's labels may name their images
    side_px: int  # of every image; areas are stated in px of a square of this side


COMPETITION = Competition(
    slug="siim-acr-pneumothorax-segmentation",
    id_column="ImageId",
    rle_column="EncodedPixels",
    id_pattern=r"ID_[0-9a-f]+|\d+(\.\d+){5,}",
    label_files=("stage_2_train.csv", "train-rle.csv"),
    test_folders=("dicom-images-test", "stage_2_images"),
    side_px=1024,
)

DICOM_SUFFIXES = (".dcm", ".dicom")
PICTURE_SUFFIXES = (".png", ".jpg", ".jpeg")
SUFFIXES = DICOM_SUFFIXES + PICTURE_SUFFIXES
LABEL_FILES = COMPETITION.label_files
PACKINGS = ("", ".zip", ".gz")  # in which a table may lie, as it was downloaded
_COPIED = re.compile(r"[-_ ]|\(\d+\)")  # train_rle (1).csv


def label_rank(name: str) -> int:
    """Return the place of a table's name in `LABEL_FILES`, its length for other names.

    Packed or not, in any case, and as browsers name a second copy.
    """
    wanted, *known = (_COPIED.sub("", each).lower() for each in (name, *LABEL_FILES))
    ranks = (n for n, other in enumerate(known) if wanted in [other + p for p in PACKINGS])
    return next(ranks, len(LABEL_FILES))


def no_folder(path: Path, name: str) -> str:
    """Return the message on a file that is given where a folder is wanted."""
    kind, fix = path.suffix.lower(), f"give its folder, {path.parent}"
    if kind in (*PACKINGS[1:], ".tar", ".tgz", ".7z", ".rar"):
        fix = "unpack it and give the folder"
    elif kind in SUFFIXES:  # which may lie deep in it
        fix = "give the folder of all images and labels"
    return f"{name} {path} is a file: {fix}"


# NIH ChestX-ray14, its tables of labels by preference, and how they lie.
NIH_TABLES = ("Data_Entry_2017_v2020.csv", "Data_Entry_2017.csv")
NIH_LAYOUT = (
    f"NIH ChestX-ray14 is one folder with {NIH_TABLES[1]} (or {NIH_TABLES[0]}) and, in it or in "
    "any folders of it, the PNGs that the table lists: images_001/images/00000001_000.png …"
)
LAYOUTS = f"""The layouts that are recognised under DATA_DIR (or in a folder in it):
  nested DICOM    dicom-images-train/<study>/<series>/<id>.dcm, dicom-images-test/…
  flat DICOM      <folder>/<id>.dcm
  images and RLE  <folder>/<id>.png or .jpg
      each with {" or ".join(LABEL_FILES[::-1])} (or .zip, .gz of it), and sample_submission.csv
      for test images
  images + masks  images/<id>.png and masks/<id>.png (.jpg too); the folder of masks may be called
      anything that ends in mask or masks, or labels, annotations, segmentations, labelsTr; masks
      also <id>_mask.png or <id>-mask.png, then in the images' own folder too
Images in folders called test, val, valid or validation (test_set, imagesVal, … too), and those
whose file names (3_test_1.png) or a column of the label table say so, are not trained on.
Without data, `make demo` draws some and runs everything on it."""
