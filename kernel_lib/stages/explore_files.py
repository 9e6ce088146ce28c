"""What a look into a data folder gathers: files, rows of labels, masks."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd

from kernel_lib.data import cells, images, label_checks, labels, rle
from kernel_lib.data.table import Source
from kernel_lib.errors import InputError
from kernel_lib.notebook import bar
from kernel_lib.postprocess.units import FULL_AREA
from kernel_lib.reporting.mean_images import RunningMean


@dataclass
class Opened:
    """Files that were opened, and what turned out to be wrong."""

    mean: RunningMean = field(default_factory=RunningMean)
    shapes: dict[str, tuple[int, int]] = field(default_factory=dict)  # of the readable ones
    kinds: dict[str, str] = field(default_factory=dict)
    patients: dict[str, str] = field(default_factory=dict)  # that DICOMs name, by image id
    notes: dict[str, tuple[str, ...]] = field(default_factory=dict)  # by path
    bad: list[tuple[str, str, str]] = field(default_factory=list)  # image_id, what is wrong, path

    @property
    def one_shape(self) -> tuple[int, int] | None:
        """The size of all that were opened; None where they differ, or none could be read."""
        shapes = set(self.shapes.values())
        return shapes.pop() if len(shapes) == 1 else None


@dataclass(frozen=True)
class LabelRows:
    """How the rows of an RLE table share images."""

    n_rows: int
    n_images: int
    of_image: dict[str, int]  # rows of each image that has several
    overlapping: dict[str, int]  # rows of an image that share a pixel with an earlier one


@dataclass(frozen=True)
class Masked:
    """An image with a mask."""

    image_id: str
    path: str
    runs: rle.Runs
    shape: tuple[int, int]

    @property
    def area_px(self) -> float:
        """Of 1024²."""
        return rle.area(self.runs) * FULL_AREA / (self.shape[0] * self.shape[1])


def open_some(source: Source, n: int, seed: int) -> Opened:
    """Decode n random training and test images, and look for files of 0 bytes among all."""
    every = pd.concat([source.train, source.test])[["image_id", "path"]]
    every = every.drop_duplicates("image_id").reset_index(drop=True)
    order = np.random.default_rng(seed).permutation(len(every))[:n]
    opened = Opened()
    for name, path in bar(
        every.iloc[np.sort(order)].itertuples(index=False, name=None),
        total=len(order), desc="images", unit="image",
    ):  # fmt: skip
        _open(opened, name, Path(path))
    seen = {name for name, _, _ in opened.bad}
    for name, path in every.itertuples(index=False, name=None):
        if name not in seen and not (os.path.isfile(path) and os.path.getsize(path)):
            opened.bad.append((name, "is empty (0 bytes), or gone: fetch it, or remove it", path))
    return opened


def _open(opened: Opened, name: str, path: Path) -> None:
    try:
        found = images.open_radiograph(path)
        kind = path.suffix[1:].upper() if images.is_picture(path) else "DICOM"
    except InputError as error:
        opened.bad.append((name, _without(str(path), error), str(path)))
        return
    opened.shapes[name], opened.kinds[name] = found.pixels.shape, kind
    opened.mean.add(found.pixels)
    opened.notes[str(path)] = found.notes
    if found.patient:
        opened.patients[name] = found.patient


def label_rows(csv: Path) -> LabelRows:
    """Count the rows of each image, and those that overlap an earlier one of the same image."""
    table = cells.read_table(csv, [cells.ID_COLUMN, cells.RLE_COLUMN])
    names = pd.Series(labels.names_of(table[cells.ID_COLUMN]), index=table.index)
    several = names.duplicated(keep=False)
    of_image, overlapping = {}, {}
    for name, rows in table[several].groupby(names[several], sort=False):
        of_image[name], drawn, over = len(rows), rle.union([]), 0
        for runs in map(rle.parse, rows[cells.RLE_COLUMN]):
            over += rle.shared_px(runs, drawn) > 0
            drawn = rle.union([drawn, runs])
        if over:
            overlapping[name] = over
    return LabelRows(len(table), names.nunique(), of_image, overlapping)


def masked(source: Source, opened: Opened, masks_are: str | None) -> list[Masked]:
    """Return every image with a mask if all opened ones have one size, else of the opened ones.

    Mask images are read for opened images alone. What does not fit is added to `opened.bad`.
    """
    found = []
    for row in source.train.itertuples(index=False):
        shape = opened.shapes.get(row.image_id)
        if shape is None and not row.mask_path:
            shape = opened.one_shape
        if shape is None:
            continue
        try:
            runs = label_checks.runs_of(row, shape, masks_are)
        except InputError as error:
            where = row.mask_path or row.label_at
            opened.bad.append((row.image_id, _without(where, error), where))
            continue
        if len(runs):
            found.append(Masked(row.image_id, row.path, runs, shape))
    return found


def samples(found: list[Masked], rows: LabelRows | None, each: int) -> Iterator[tuple[str, Masked]]:
    """Yield a few masks of each kind, none twice: largest, median, smallest, of several rows."""
    by_area = sorted(found, key=lambda one: (-one.area_px, one.image_id))
    middle = max(0, (len(by_area) - each) // 2)
    several = rows.of_image if rows else {}
    kinds = {
        "largest": by_area[:each],
        "median": by_area[middle : middle + each],
        "smallest": by_area[::-1][:each],
        "several rows": sorted(
            (one for one in by_area if one.image_id in several),
            key=lambda one: (-rows.overlapping.get(one.image_id, 0), -several[one.image_id]),
        ),
    }
    shown = set()
    for kind, of_kind in kinds.items():
        fresh = [one for one in of_kind if one.image_id not in shown][:each]
        shown |= {one.image_id for one in fresh}
        yield from ((kind, one) for one in fresh)


def pixels(masked: Masked, opened: Opened) -> np.ndarray | None:
    """Return the image (H, W) of a mask; None, and a line in `opened.bad`, if it does not fit."""
    try:
        found = images.read(masked.path)
    except InputError as error:
        what = _without(masked.path, error)
    else:
        if found.shape == masked.shape:
            return found
        (height, width), (others_height, others_width) = found.shape, masked.shape
        what = f"is {width}×{height}, and those that were opened are {others_width}×{others_height}"
    if masked.image_id not in {name for name, _, _ in opened.bad}:
        opened.bad.append((masked.image_id, what, masked.path))
    return None


def _without(path: str, error: InputError) -> str:
    """Return an error's message without the path that it begins with."""
    return str(error).removeprefix(path).strip(", ")
