"""A page to look at masks: the numbers of all images and the pictures of some, in one HTML file.

It works in a live notebook, in a saved one without a kernel, and as a file sent to a colleague.
"""

from __future__ import annotations

import base64
import difflib
import html
import json
import re
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from kernel_lib import storage
from kernel_lib.data import images, rle
from kernel_lib.errors import InputError
from kernel_lib.notebook import bar
from kernel_lib.postprocess.histograms import areas, per_image_dice
from kernel_lib.postprocess.units import AREA_UNIT, FULL_AREA
from kernel_lib.reporting.picture import RESEARCH_ONLY, Picture
from kernel_lib.viewer.data import ViewerData, load_viewer_data, rank_images
from kernel_lib.workers import each

MB = 1_000_000
IMAGES = 200  # embedded by default
SIDE_PX = 512  # of an embedded picture's longer side
JPEG_QUALITY = 85
FRAME_HEIGHT = 760  # of the viewer in a notebook, CSS px


@dataclass(frozen=True, repr=False)
class Viewer:
    """A viewer's page, which a notebook shows as the last value of a cell."""

    html: str
    n_images: int
    n_embedded: int
    n_radiographs: int  # of those embedded, shown with their radiograph

    def save(self, path: Path | str) -> Path:
        """Write the page atomically."""
        storage.write_text(Path(path), self.html)
        return Path(path)

    def __str__(self) -> str:
        n_bare = self.n_embedded - self.n_radiographs
        bare = f" ({n_bare} without their radiograph)" if n_bare else ""
        size = len(self.html.encode()) / MB
        return f"{self.n_embedded} of {self.n_images} images embedded{bare}, {size:.1f} MB"

    def __repr__(self) -> str:
        return f"Viewer: {self}"

    def _repr_html_(self) -> str:
        # A frame isolates it from the notebook's style and from the names of other viewers.
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
    """Return a viewer of an ensemble's folder: its held-out images, or with `test` the test images.

    data_dir: the folder of radiographs; without it only masks and maps are shown, except on Kaggle,
    where mounts are searched. ids: the images to embed, a list or comma-separated, all of them;
    else up to `count` in the order of `rank_images`. size: the longer side of an embedded picture,
    px. max_mb: the limit of the page. roots: folders with runs and folds.csv, by default the
    working folder around `folder` and Kaggle's mounts.

    Raises: InputError where a stage's output is missing, an id is unknown, or max_mb is too small.
    """
    data = load_viewer_data(folder, test=test, data_dir=data_dir, roots=roots)
    return render(data, ids, count, size, max_mb)


def viewer_or_why(folder: Path | str, **options: Any) -> Viewer | Picture:
    """Return `viewer(folder, …)`, or a sentence with its error: a finished stage must not fail."""
    try:
        return viewer(folder, **options)
    except InputError as error:
        return Picture(None, f"No viewer: {error}")


def render(
    data: ViewerData,
    ids: Sequence[str] | str | None = None,
    count: int = IMAGES,
    size: int = SIDE_PX,
    max_mb: float = 25.0,
) -> Viewer:
    """Return the page of loaded data; parameters and errors are those of `viewer`."""
    if isinstance(ids, str):
        ids = [text.strip() for text in ids.split(",") if text.strip()]
    if size < 1 or count < 0:
        raise InputError(f"size is {size} px, count {count}: give at least 1 px, and 0 images")
    payload = _payload(data)
    fixed = len(page(payload)) + 500  # the first note comes later
    left = int(max_mb * MB) - fixed
    if left < 0 and data.vote is None and len(data.models) > 1:
        note = (
            f"The {len(data.models) - 1} members beside their mean are left out: with their "
            f"numbers the page would take {fixed / MB:.1f} MB, so give max_mb more."
        )
        only_mean = {"models": data.models[:1], "stats": data.stats[:1]}
        data = replace(data, **only_mean, notes=(*data.notes, note))
        return render(data, ids, count, size, max_mb)
    if left < 0:
        raise InputError(
            f"max_mb is {max_mb}, but the numbers of {len(data.table):,} images alone take "
            f"{fixed / MB:.1f} MB: give more, for pictures several more"
        )
    if ids is None:
        rows = rank_images(data.stats[0], data.models[0].rule)[: count if data.has_maps else 0]
        which = "the largest and smallest masks, borderline and empty ones"
        if data.has_truth:
            which = "lowest Dice, false negatives, false positives, borderline and highest Dice"
    elif not data.has_maps:
        raise InputError(
            f"{data.title}: the maps are elsewhere, so no image can be shown; leave ids out for "
            "the numbers alone, or bring the runs' folders by `python -m kernel_lib gather`"
        )
    else:
        rows = [_row_of(data, image_id) for image_id in dict.fromkeys(ids)]
        which = "those asked for"
    pictures = payload["pictures"]
    drawn = each(lambda row: _picture(data, row, size), rows)
    for picture in bar(drawn, total=len(rows), desc="pictures", unit="image", leave=False):
        left -= len(json.dumps(picture)) + 2
        if left < 0:
            break
        pictures.append(picture)
    if ids is not None and len(pictures) < len(rows):
        raise InputError(
            f"max_mb is {max_mb}, which holds {len(pictures)} of the {len(rows)} images asked for "
            f"at {size} px: give more, fewer ids, or a smaller size"
        )
    note = (
        f"Pictures of {len(pictures):,} of {len(data.table):,} images are embedded, at up to "
        f"{size} px ({which}); the metrics cover all images."
    )
    payload["notes"].insert(0, note)
    n_radiographs = sum(picture["image"] is not None for picture in pictures)
    return Viewer(page(payload), len(data.table), len(pictures), n_radiographs)


def picker(
    folder: Path | str,
    *,
    test: bool = False,
    data_dir: Path | str | None = None,
    size: int = SIDE_PX,
) -> Any:
    """Return a list of all images in the order of `rank_images`, and the viewer of the chosen one.

    Without ipywidgets it is `viewer(folder, …)`, whose `ids=[…]` embeds the images asked for;
    raises as that does.
    """
    try:
        import ipywidgets
    except ImportError:
        return viewer(folder, test=test, data_dir=data_dir, size=size)
    data = load_viewer_data(folder, test=test, data_dir=data_dir)
    ids, labels = data.table["image_id"], _labels(data)
    rows = rank_images(data.stats[0], data.models[0].rule)
    id_of_label = {labels[row]: ids.iloc[row] for row in rows}
    combobox = ipywidgets.Combobox(
        options=list(id_of_label),
        value=next(iter(id_of_label)),
        description="image",
        ensure_option=False,
        layout=ipywidgets.Layout(width="100%"),
    )
    frame = ipywidgets.HTML()

    def draw(change: dict) -> None:
        image_id = id_of_label.get(change["new"])
        if image_id is not None:  # None while a label is being typed
            made = render(data, ids=[image_id], size=size, max_mb=1000)
            frame.value = made._repr_html_()

    combobox.observe(draw, "value")
    draw({"new": combobox.value})
    return ipywidgets.VBox([combobox, frame])


def _payload(data: ViewerData) -> dict[str, Any]:
    """Return the page's JSON without pictures: facts of every image and packed histograms."""
    table, truth, arrays = data.table, data.has_truth, []
    for stats in data.stats:
        arrays += [stats.hist_all, *([stats.hist_true] if truth else []), stats.label]
    vote = None
    if data.vote is not None:
        arrays += [data.vote.counts[:, :, k] for k in ((1, 0) if truth else (1,))]
        vote = {
            "name": f"vote of {len(data.vote.models)}",
            "models": list(data.vote.models),
            "at_least": data.vote.at_least,
            "union": data.vote.combine == "member_union",
        }
    notes = [*data.notes]
    if not data.radiographs:
        notes.append("No radiographs: give the data folder to see them.")
    notes += [f"{model.name}: {model.rule}." for model in data.models if model.rule.keeps_none]
    if not truth:
        notes.append("The ground truth of these images is unknown, so there is no Dice.")
    return {
        "title": data.title,
        "notes": notes,
        "images": {
            "id": table["image_id"].tolist(),
            "fold": [None if fold is None else int(fold) for fold in table["fold"]],
            "height": table["height"].astype(int).tolist(),
            "width": table["width"].astype(int).tolist(),
        },
        "truth": truth,
        "models": [
            {
                "name": model.name,
                "labels": stats.has_labels,
                "rule": {"label": None} | model.rule.to_json(),
            }
            for model, stats in zip(data.models, data.stats, strict=True)
        ],
        "one_rule": len({model.rule for model in data.models}) == 1,
        "vote": vote,
        "packed": pack(arrays),
        "pictures": [],
    }


def _row_of(data: ViewerData, image_id: str) -> int:
    ids = data.table["image_id"].tolist()
    if image_id not in ids:
        near = difflib.get_close_matches(image_id, ids, 1, 0.0)
        nearest = f"; the nearest is {near[0]}" if near else ""
        raise InputError(f"image {image_id} is none of the {len(ids):,} of {data.title}{nearest}")
    return ids.index(image_id)


def _picture(data: ViewerData, row: int, size: int) -> dict[str, Any]:
    """Return an image to embed: radiograph, true mask and each model's map, up to `size` px."""
    image = data.image(row)
    full = image.height, image.width
    shape = tuple(max(1, round(side * min(1.0, size / max(full)))) for side in full)
    known = image.rle is not None
    return {
        "row": row,
        "size": [shape[1], shape[0]],
        "image": _jpeg(data.radiographs.get(image.image_id), shape),
        "truth": _png(rle.decode(image.rle, full) * 255, shape) if known else None,
        "maps": [_png(level_map, shape) for level_map in data.maps(row)],
    }


def _jpeg(path: Path | None, shape: tuple[int, int]) -> str | None:
    """Return a radiograph, None where there is no file or only its header can be read."""
    if path is None:
        return None
    try:
        pixels = images.read(path)
    except images.ImageError:
        return None
    small = cv2.resize(pixels, shape[::-1], interpolation=cv2.INTER_AREA)
    return _encoded(".jpg", small, [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])


def _png(pixels: np.ndarray, shape: tuple[int, int]) -> str:
    """Return a map or mask; nearest neighbours keep areas unbiased, where a mean blurs edges."""
    small = cv2.resize(pixels, shape[::-1], interpolation=cv2.INTER_NEAREST)
    return _encoded(".png", small, [cv2.IMWRITE_PNG_COMPRESSION, 9])


def _encoded(suffix: str, pixels: np.ndarray, options: list[int]) -> str:
    return base64.b64encode(cv2.imencode(suffix, pixels, options)[1].tobytes()).decode("ascii")


def _labels(data: ViewerData) -> list[str]:
    """Return each image's id with the Dice, or the area, of its mask."""
    stats, rule, ids = data.stats[0], data.models[0].rule, data.table["image_id"]
    if data.has_truth:
        dice = per_image_dice(stats, rule)
        return [f"{i} · Dice {value:.3f}" for i, value in zip(ids, dice, strict=True)]
    area_px = areas(stats, rule) * FULL_AREA / stats.n_px
    return [f"{i} · {area:,.0f} {AREA_UNIT}" for i, area in zip(ids, area_px, strict=True)]


# Concatenated in this order, in one function scope.
SCRIPTS = (
    "viewer_metrics.js",
    "viewer_picture.js",
    "viewer_texts.js",
    "viewer_list.js",
    "viewer_panes.js",
    "viewer_panel.js",
    "viewer.js",
    "viewer_build.js",
)


def page(payload: dict[str, Any]) -> str:
    """Return the complete HTML page of a payload of JSON values; it loads nothing from elsewhere.

    All text of the payload is escaped; its numbers come from `pack`.

    Raises: InputError for a number that JSON lacks, nan or infinite.
    """
    try:
        data = json.dumps(payload, allow_nan=False, separators=(",", ":"))
    except ValueError as error:
        raise InputError(f"the page's data are no JSON ({error}): give null instead") from None
    units = f"const FULL_AREA = {FULL_AREA}, AREA_UNIT = {json.dumps(AREA_UNIT)};"
    scripts = "\n".join([units, *map(_asset, SCRIPTS)])
    parts = {
        "style": _asset("viewer.css"),
        "about": RESEARCH_ONLY,
        "unit": AREA_UNIT,
        "payload": data.replace("<", "\\u003c"),  # rules out </script> and <!--
        "script": f'"use strict";\n(() => {{\n{scripts}}})();',
    }
    template = _asset("viewer.html").replace(
        "<title>Viewer</title>", f"<title>{html.escape(str(payload['title']))}</title>"
    )
    # In one pass, so that inserted text is not searched again.
    return re.sub(r"<!-- (\w+) -->", lambda match: parts[match[1]], template)


def pack(arrays: Sequence[np.ndarray]) -> str:
    """Return integers, one array after the other, as the payload's `packed`.

    Base64 of a zlib stream of int32, little-endian, as four planes: all lowest bytes first, then
    all second bytes, and so on, since most counts are small and so most planes are zeros.

    Raises: InputError for a number beyond int32.
    """
    flat = np.concatenate([np.ravel(array) for array in arrays])
    bounds = np.iinfo(np.int32)
    if flat.size and (flat.min() < bounds.min or flat.max() > bounds.max):
        raise InputError(
            f"a count of {max(flat.max(), -flat.min())} is beyond {bounds.max}: the viewer takes "
            "images of fewer pixels"
        )
    planes = flat.astype("<i4").view(np.uint8).reshape(-1, 4).T
    return base64.b64encode(zlib.compress(planes.tobytes(), 6)).decode("ascii")


def _asset(name: str) -> str:
    return Path(__file__).with_name(name).read_text(encoding="utf-8")
