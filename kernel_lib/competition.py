"""The competition whose images, labels and submissions the library reads and writes.

Another competition is another `Competition`. Only the form of its RLE (relative, down the columns)
is elsewhere, in `data/rle.py`.
"""

from __future__ import annotations

from dataclasses import dataclass


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
