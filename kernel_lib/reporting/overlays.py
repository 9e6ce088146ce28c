"""Radiographs with the true and the predicted masks drawn around what they cover."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from kernel_lib.postprocess.metrics import dice
from kernel_lib.postprocess.units import AREA_UNIT, FULL_AREA
from kernel_lib.reporting.picture import INK, PREDICTION, TRUTH, Picture, counted, panels, plain

COLUMNS = 4
MAX_SIDE_PX = 512  # more is not seen at the size of a grid's cell, and costs time


@dataclass(frozen=True)
class Example:
    """An image to be shown, with what is known of it."""

    image_id: str
    image: np.ndarray  # (H, W) uint8
    truth: np.ndarray | None = None  # (H, W), nonzero = pneumothorax; None: not known
    prob: np.ndarray | None = None  # (H, W) uint8, round(255 · p)
    mask: np.ndarray | None = None  # (H, W), the predicted mask
    caption: str = ""


def examples(shown: Sequence[Example]) -> Picture:
    """A grid of images: truth in a solid line, prediction dashed, probability as a veil."""
    shown = list(shown)
    if not shown:
        return Picture(None, "No examples: there is no image to show.")
    cells = _grid(len(shown))
    for axes, one in zip(cells.axes, shown, strict=False):
        _show(axes, one.image, f"{_shortened(one.image_id)}\n{one.caption}".strip())
        if one.prob is not None:
            _veil(axes, one.prob)
        _contour(axes, one.truth, TRUTH, "-")
        _contour(axes, one.mask, PREDICTION, "--")
    drawn = (("truth", TRUTH, "-"), ("prediction", PREDICTION, "--"))
    known = (any(e.truth is not None for e in shown), any(e.mask is not None for e in shown))
    handles = [
        Line2D([], [], color=colour, linestyle=dashes, linewidth=2, label=label)
        for (label, colour, dashes), there in zip(drawn, known, strict=True)
        if there
    ]
    box = {"facecolor": "#555555", "labelcolor": "white", "framealpha": 1, "fontsize": 9}
    if handles:
        cells.figure.legend(handles=handles, loc="outside lower center", ncols=2, **box)
    return Picture(cells.figure, _reading(shown))


def augmentations(
    image: np.ndarray,
    mask: np.ndarray | None,
    variants: Sequence[tuple[np.ndarray, np.ndarray | None]],
) -> Picture:
    """An image beside what augmentation makes of it, masks drawn along."""
    variants = list(variants)
    if not variants:
        return Picture(None, "No augmentation: there is no variant of the image to show.")
    cells = _grid(len(variants) + 1)
    names = ["as it is", *(f"variant {number}" for number in range(1, len(variants) + 1))]
    pairs = [(image, mask), *variants]
    for axes, name, (pixels, outline) in zip(cells.axes, names, pairs, strict=False):
        _show(axes, pixels, name)
        _contour(axes, outline, TRUTH, "-")
    sentence = f"The image as it is, and {counted(len(variants), 'variant')} as training sees it"
    if mask is None or not np.any(mask):
        return Picture(cells.figure, f"{sentence}; it has no mask.")
    areas = [_area(outline) for _, outline in variants if outline is not None]
    if not areas:
        return Picture(cells.figure, f"{sentence}; the variants come without their masks.")
    return Picture(
        cells.figure,
        f"{sentence}; the mask of {_area(mask):,.0f} {AREA_UNIT} moves along and keeps "
        f"{min(areas):,.0f} to {max(areas):,.0f}.",
    )


def _area(mask: np.ndarray) -> float:
    return np.count_nonzero(mask) * FULL_AREA / np.size(mask)


def outlined(image: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Return the radiograph with the mask's contour in colour, (H, W, 3) uint8 BGR.

    Shapes: image (H, W) uint8, mask (H, W) 0/1.
    """
    canvas = cv2.cvtColor(image, cv2.COLOR_GRAY2BGR)
    contours, _ = cv2.findContours(mask, cv2.RETR_LIST, cv2.CHAIN_APPROX_NONE)
    colour = tuple(int(PREDICTION[at : at + 2], 16) for at in (5, 3, 1))
    width = max(1, round(max(image.shape) / 512))  # px, as it looks at a screen's size
    return cv2.drawContours(canvas, contours, -1, colour, width)


@dataclass(frozen=True)
class _Grid:
    figure: matplotlib.figure.Figure
    axes: list[Axes]


def _grid(n: int) -> _Grid:
    columns = min(n, COLUMNS)
    rows = -(-n // columns)
    figure, axes = panels(rows, columns, width=2.6 * columns + 0.2, height=2.95)
    for one in axes.flat:
        one.set_axis_off()
    return _Grid(figure, list(axes.flat))


def _show(axes: Axes, image: np.ndarray, caption: str) -> None:
    axes.imshow(_smaller(image, cv2.INTER_AREA), cmap="gray", vmin=0, vmax=255)
    axes.set_title(plain(caption), fontsize=7.5, color=INK, loc="left")


def _veil(axes: Axes, prob: np.ndarray) -> None:
    """Probability as colour, the clearer the lower."""
    share = _smaller(prob, cv2.INTER_AREA).astype(np.float32) / 255
    veil = matplotlib.colormaps["viridis"](share)
    veil[..., 3] = 0.45 * np.clip(share * 1.5, 0, 1)
    axes.imshow(veil)


def _contour(axes: Axes, mask: np.ndarray | None, colour: str, dashes: str) -> None:
    if mask is None or not np.any(mask):
        return
    # A rim of zeros closes the line where the mask meets the border; the greatest value keeps a
    # mask of few pixels when the image is shown smaller.
    small = _smaller((np.asarray(mask) != 0).astype(np.float32), cv2.INTER_AREA)
    framed = np.pad(small, 1)
    level = min(0.5, float(framed.max()) / 2)
    rows, columns = np.arange(framed.shape[0]) - 1, np.arange(framed.shape[1]) - 1
    axes.contour(
        columns, rows, framed, [level], colors=[colour], linestyles=[dashes], linewidths=1.2
    )


def _smaller(pixels: np.ndarray, interpolation: int) -> np.ndarray:
    pixels = np.ascontiguousarray(pixels)
    shrink = MAX_SIDE_PX / max(pixels.shape)
    if shrink >= 1:
        return pixels
    height, width = (max(1, round(side * shrink)) for side in pixels.shape)
    return cv2.resize(pixels, (width, height), interpolation=interpolation)


def _shortened(image_id: str) -> str:
    """The end of a long id: ids of one source start alike."""
    return image_id if len(image_id) <= 34 else "…" + image_id[-33:]


def _reading(shown: list[Example]) -> str:
    known = [one for one in shown if one.truth is not None]
    positive = [one for one in known if np.any(one.truth)]
    judged = [one for one in known if one.mask is not None]
    text = counted(len(shown), "image")
    if not known:
        drawn = [one for one in shown if one.mask is not None]
        if not drawn:
            return f"{text} without known truth."
        marked = sum(bool(np.any(one.mask)) for one in drawn)
        return f"{text} without known truth, of which {marked} got a mask (dashed)."
    text += f", {len(positive)} with a true mask (solid)"
    if not judged:
        return f"{text}."
    missed = sum(bool(np.any(one.truth)) and not np.any(one.mask) for one in judged)
    false = sum(not np.any(one.truth) and bool(np.any(one.mask)) for one in judged)
    scores = [dice(one.mask, one.truth) for one in judged]
    return (
        f"{text}: {missed} of those got no prediction (dashed), {false} empty ones got one; "
        f"the dice of these images runs from {min(scores):.3f} to {max(scores):.3f}."
    )
