"""A page to look at masks: all images' numbers, the most telling ones' pictures, in one file.

Works in a live notebook, in a saved one without a kernel, and as a file sent to a colleague.
"""

from __future__ import annotations

import base64
import difflib
import html
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from kernel_lib import storage
from kernel_lib.data import images, rle
from kernel_lib.data.folder import Images, survey
from kernel_lib.data.table import discover
from kernel_lib.errors import InputError
from kernel_lib.kaggle import paths
from kernel_lib.progress import bar
from kernel_lib.reporting.picture import Picture
from kernel_lib.viewer import viewer_data
from kernel_lib.viewer.page import pack, page
from kernel_lib.viewer.ranking import most_telling
from kernel_lib.viewer.viewer_data import Viewed

MB = 1_000_000
IMAGES = 200  # that are embedded where nothing else is asked for
SIDE_PX = 512  # of an embedded picture's longer side
JPEG_QUALITY = 85
FRAME_HEIGHT = 760  # of the viewer in a notebook, CSS px


@dataclass(frozen=True, repr=False)
class Viewer:
    """A viewer's page; shown in a notebook as the last value of a cell."""

    html: str
    n_images: int
    n_embedded: int
    n_radiographs: int  # of those embedded, shown with their radiograph

    def save(self, path: Path | str) -> Path:
        """Write the page, whole or not at all."""
        storage.write_text(Path(path), self.html)
        return Path(path)

    def __str__(self) -> str:
        size = len(self.html.encode()) / MB
        with_masks_alone = self.n_embedded - self.n_radiographs
        part = f" ({with_masks_alone} without their radiograph)" if with_masks_alone else ""
        return f"{self.n_embedded} of {self.n_images} images embedded{part}, {size:.1f} MB"

    def __repr__(self) -> str:
        return f"Viewer: {self}"  # what a log shows of it

    def _repr_html_(self) -> str:
        # A frame of its own: neither the notebook's style nor another viewer's names get in.
        return (
            f'<iframe srcdoc="{html.escape(self.html)}" title="Masks" '
            f'style="width:100%;height:{FRAME_HEIGHT}px;border:0"></iframe>'
        )


def viewer(
    folder: Path | str,
    *,
    test: bool = False,
    data_dir: Path | str | None = None,
    ids: Sequence[str] | str | None = None,
    count: int = IMAGES,
    size: int = SIDE_PX,
    max_mb: float = 25.0,
    roots: Sequence[Path] | None = None,
) -> Viewer:
    """A viewer of an ensemble's folder: its held-out images, or with `test` those to be submitted.

    data_dir: the radiographs; without it masks and maps stand alone, except on Kaggle, whose mounts
    are looked through. ids: the images to embed, a list or comma-separated, all of them; else up to
    `count`, the most telling first. size: an embedded picture's longer side, px. max_mb: the page's
    limit. roots: where runs and folds.csv lie, else in the working folder around `folder` and on
    Kaggle's mounts.
    Raises InputError where a stage's output is missing, an id is unknown, or max_mb cannot hold it.
    """
    return show(view(folder, test=test, data_dir=data_dir, roots=roots), ids, count, size, max_mb)


def viewer_or_why(folder: Path | str, **how: Any) -> Viewer | Picture:
    """As `viewer`; where there cannot be one, a sentence why: a stage's work is done by then."""
    try:
        return viewer(folder, **how)
    except InputError as error:
        return Picture(None, f"No viewer: {error}")


def view(
    folder: Path | str,
    *,
    test: bool = False,
    data_dir: Path | str | None = None,
    roots: Sequence[Path] | None = None,
) -> Viewed:
    """What a viewer of that folder shows, measured once for any number of pages; see `viewer`."""
    folder = Path(folder).resolve()
    roots = roots or paths.artefact_roots(folder.parent.parent)
    data = None
    if data_dir is not None or paths.on_kaggle():
        data = paths.data_dir(None if data_dir is None else str(data_dir))
    if test:
        source = None if data is None else discover(data, for_inference=True)
        return viewer_data.of_test(folder, roots, source)
    # Radiographs alone: labels and splits are the ensemble's own.
    radiographs = None if data is None else Images.of(survey(data, by_content=True))
    return viewer_data.held_out(folder, roots, radiographs)


def show(
    seen: Viewed,
    ids: Sequence[str] | str | None = None,
    count: int = IMAGES,
    size: int = SIDE_PX,
    max_mb: float = 25.0,
) -> Viewer:
    """A page of what was measured; see `viewer`."""
    if isinstance(ids, str):
        ids = [one.strip() for one in ids.split(",") if one.strip()]
    if size < 1 or count < 0:
        raise InputError(f"size is {size} px, count {count}: give at least 1 px, and 0 images")
    payload = _numbers(seen)
    fixed = len(page(payload)) + 500  # and what the first note says
    left = int(max_mb * MB) - fixed
    if left < 0 and seen.vote is None and len(seen.voices) > 1:
        return show(_without_members(seen, fixed), ids, count, size, max_mb)
    if left < 0:
        raise InputError(
            f"max_mb is {max_mb}, but the numbers of {len(seen.table):,} images alone take "
            f"{fixed / MB:.1f} MB: give more, for pictures several more"
        )
    rows = most_telling(seen.stats[0], seen.voices[0].rule)[:count] if ids is None else [
        _row_of(seen, image_id) for image_id in dict.fromkeys(ids)
    ]  # fmt: skip
    for row in bar(rows, desc="pictures", unit="image", leave=False):
        picture = _picture(seen, row, size)
        left -= len(json.dumps(picture)) + 2
        if left < 0:
            break
        payload["pictures"].append(picture)
    embedded = len(payload["pictures"])
    if ids is not None and embedded < len(rows):
        raise InputError(
            f"max_mb is {max_mb}, which holds {embedded} of the {len(rows)} images asked for at "
            f"{size} px: give more, fewer ids, or a smaller size"
        )
    payload["notes"] = [_what_is_embedded(seen, embedded, ids, size), *payload["notes"]]
    shown = sum(picture["image"] is not None for picture in payload["pictures"])
    return Viewer(page(payload), len(seen.table), embedded, shown)


def _without_members(seen: Viewed, size: int) -> Viewed:
    note = (
        f"The {len(seen.voices) - 1} members beside their mean are left out: with their numbers "
        f"the page would take {size / MB:.1f} MB, so give max_mb more."
    )
    first = {"voices": seen.voices[:1], "stats": seen.stats[:1]}
    return replace(seen, **first, notes=(*seen.notes, note))


def _numbers(seen: Viewed) -> dict[str, Any]:
    """The payload without pictures: every image's facts and, packed, its histograms."""
    table = seen.table
    arrays = []
    for stats in seen.stats:
        arrays += [stats.hist_all, stats.hist_true] if seen.truth else [stats.hist_all]
        arrays.append(stats.label)
    vote = None
    if seen.vote is not None:
        kinds = {"member_vote": False, "member_union": True}
        arrays.append(seen.vote.counts[:, :, 1])
        if seen.truth:
            arrays.append(seen.vote.counts[:, :, 0])
        vote = {
            "name": f"vote of {len(seen.vote.voices)}",
            "voices": list(seen.vote.voices),
            "at_least": seen.vote.at_least,
            "union": kinds[seen.vote.combine],
        }
    remarks = [] if seen.radiographs else ["No radiographs: give the data folder to see them."]
    remarks += [f"{one.name}: {one.rule}." for one in seen.voices if one.rule.keeps_none]
    if not seen.truth:
        remarks.append("The true masks of these images are not known: there is no dice.")
    return {
        "title": seen.title,
        "notes": [*seen.notes, *remarks],
        "images": {
            "id": table["image_id"].tolist(),
            "fold": [None if fold is None else int(fold) for fold in table["fold"]],
            "height": table["height"].astype(int).tolist(),
            "width": table["width"].astype(int).tolist(),
        },
        "truth": seen.truth,
        "voices": [
            {
                "name": voice.name,
                "labels": stats.has_labels,
                "rule": {"label": None} | voice.rule.to_json(),
            }
            for voice, stats in zip(seen.voices, seen.stats, strict=True)
        ],
        "one_rule": len({voice.rule for voice in seen.voices}) == 1,
        "vote": vote,
        "packed": pack([np.asarray(array).ravel() for array in arrays]),
        "pictures": [],
    }


def _what_is_embedded(seen: Viewed, embedded: int, ids: Sequence[str] | None, size: int) -> str:
    which = "those asked for" if ids is not None else (
        "the most telling ones: worst, missed, false alarms, border cases, best"
        if seen.truth else "the largest and smallest masks, border cases, empty ones"
    )  # fmt: skip
    return (
        f"Pictures of {embedded:,} of {len(seen.table):,} images are embedded, at up to {size} px "
        f"({which}); the numbers hold for all."
    )


def _row_of(seen: Viewed, image_id: str) -> int:
    found = np.flatnonzero(seen.table["image_id"] == image_id)
    if not len(found):
        near = difflib.get_close_matches(image_id, seen.table["image_id"], 1, 0.0)
        raise InputError(
            f"image {image_id} is none of the {len(seen.table):,} of {seen.title}"
            + (f"; the nearest is {near[0]}" if near else "")
        )
    return int(found[0])


def _picture(seen: Viewed, row: int, size: int) -> Mapping[str, Any]:
    """One embedded image: radiograph, true mask and every voice's map, none larger than `size`."""
    image_id, height, width = seen.table.loc[seen.table.index[row], ["image_id", "height", "width"]]
    scale = min(1.0, size / max(height, width))
    shape = max(1, round(height * scale)), max(1, round(width * scale))
    truth = seen.table["rle"].iloc[row]
    path = seen.radiographs.get(image_id)
    return {
        "row": row,
        "size": [shape[1], shape[0]],
        "image": None if path is None else _radiograph(path, shape),
        "truth": None if truth is None else _png(rle.decode(truth, (height, width)) * 255, shape),
        "maps": [_png(level_map, shape) for level_map in seen.maps(row)],
    }


def _radiograph(path: Path, shape: tuple[int, int]) -> str | None:
    """Return the radiograph to embed; None where only the file's header could be read."""
    try:
        return _jpeg(images.read(path), shape)
    except images.ImageError:
        return None


def _jpeg(pixels: np.ndarray, shape: tuple[int, int]) -> str:
    small = cv2.resize(pixels, shape[::-1], interpolation=cv2.INTER_AREA)
    return _encoded(".jpg", small, [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])


def _png(pixels: np.ndarray, shape: tuple[int, int]) -> str:
    """Made smaller by leaving pixels out: areas stay unbiased, where a mean would blur edges."""
    small = cv2.resize(pixels, shape[::-1], interpolation=cv2.INTER_NEAREST)
    return _encoded(".png", small, [cv2.IMWRITE_PNG_COMPRESSION, 9])


def _encoded(kind: str, pixels: np.ndarray, how: list[int]) -> str:
    done, data = cv2.imencode(kind, pixels, how)
    if not done:
        raise RuntimeError(f"OpenCV could not encode a picture of {pixels.shape} as {kind}")
    return base64.b64encode(data.tobytes()).decode("ascii")
