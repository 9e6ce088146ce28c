"""Radiographs with the contours of ground-truth and predicted masks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from kernel_lib.postprocess.metrics import dice
from kernel_lib.postprocess.units import AREA_UNIT, FULL_AREA
from kernel_lib.reporting.picture import (
    INK,
    PREDICTION,
    TRUTH,
    Picture,
    counted,
    escape_dollars,
    panels,
)

COLUMNS = 4
MAX_SIDE_PX = 512  # more is not visible in a cell of the grid, and costs time
LONGEST_ID = 34
COLOUR = tuple(int(PREDICTION[at : at + 2], 16) for at in (5, 3, 1))  # BGR, of a mask's contour


@dataclass(frozen=True)
class Example:
    """An image to show, with its masks and probability map where they are known."""

    image_id: str
    image: np.ndarray  # (H, W) uint8
    truth: np.ndarray | None = None  # (H, W), nonzero = pneumothorax; None: unknown
    prob: np.ndarray | None = None  # (H, W) uint8, round(255 · p)
    mask: np.ndarray | None = None  # (H, W), the predicted mask
    caption: str = ""


def examples(shown: Sequence[Example]) -> Picture:
    """Draw a grid of images: ground truth solid, prediction dashed, probability as an overlay."""
    if not shown:
        return Picture(None, "No examples: there is no image to show.")
    figure, cells = _grid(len(shown))
    for axes, example in zip(cells, shown, strict=False):
        image_id = example.image_id  # ids of one source start alike, so a long one keeps its end
        if len(image_id) > LONGEST_ID:
            image_id = f"…{image_id[1 - LONGEST_ID :]}"
        _draw_image(axes, example.image, f"{image_id}\n{example.caption}".strip())
        if example.prob is not None:
            share = _shrunk(example.prob).astype(np.float32) / 255
            overlay = matplotlib.colormaps["viridis"](share)
            overlay[..., 3] = 0.45 * np.clip(share * 1.5, 0, 1)  # low probabilities are transparent
            axes.imshow(overlay)
        _draw_contour(axes, example.truth, TRUTH, "-")
        _draw_contour(axes, example.mask, PREDICTION, "--")
    handles = [
        Line2D([], [], color=colour, linestyle=dashes, linewidth=2, label=label)
        for label, field, colour, dashes in (
            ("ground truth", "truth", TRUTH, "-"),
            ("prediction", "mask", PREDICTION, "--"),
        )
        if any(getattr(example, field) is not None for example in shown)
    ]
    if handles:
        box = {"facecolor": "#555555", "labelcolor": "white", "framealpha": 1, "fontsize": 9}
        figure.legend(handles=handles, loc="outside lower center", ncols=2, **box)
    return Picture(figure, _describe(shown))


def augmentations(
    image: np.ndarray,
    mask: np.ndarray | None,
    variants: Sequence[tuple[np.ndarray, np.ndarray | None]],
) -> Picture:
    """Draw an image beside its augmented variants, each with its mask."""
    if not variants:
        return Picture(None, "No augmentation: there is no variant of the image to show.")
    figure, cells = _grid(len(variants) + 1)
    for k, (pixels, outline) in enumerate([(image, mask), *variants]):
        _draw_image(cells[k], pixels, f"variant {k}" if k else "original")
        _draw_contour(cells[k], outline, TRUTH, "-")
    text = f"The original image and {counted(len(variants), 'augmented variant')} as in training"
    areas = [_scaled_area(outline) for _, outline in variants if outline is not None]
    if mask is None or not np.any(mask):
        text += "; it has no mask"
    elif not areas:
        text += "; the variants have no masks"
    else:
        text += (
            f"; the mask of {_scaled_area(mask):,.0f} {AREA_UNIT} follows and keeps "
            f"{min(areas):,.0f} to {max(areas):,.0f}"
        )
    return Picture(figure, text + ".")


def outlined(image: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Return the radiograph with the mask's contour in colour, (H, W, 3) uint8 BGR.

    Shapes: image (H, W) uint8, mask (H, W) 0/1.
    """
    canvas = cv2.cvtColor(image, cv2.COLOR_GRAY2BGR)
    contours, _ = cv2.findContours(mask, cv2.RETR_LIST, cv2.CHAIN_APPROX_NONE)
    width = max(1, round(max(image.shape) / 512))  # px, visible at the size of a screen
    return cv2.drawContours(canvas, contours, -1, COLOUR, width)


def _scaled_area(mask: np.ndarray) -> float:
    return np.count_nonzero(mask) * FULL_AREA / np.size(mask)


def _grid(n: int) -> tuple[Figure, list[Axes]]:
    columns = min(n, COLUMNS)
    figure, grid = panels(-(-n // columns), columns, width=2.6 * columns + 0.2, height=2.95)
    for axes in grid.flat:
        axes.set_axis_off()
    return figure, list(grid.flat)


def _draw_image(axes: Axes, image: np.ndarray, caption: str) -> None:
    axes.imshow(_shrunk(image), cmap="gray", vmin=0, vmax=255)
    axes.set_title(escape_dollars(caption), fontsize=7.5, color=INK, loc="left")


def _draw_contour(axes: Axes, mask: np.ndarray | None, colour: str, dashes: str) -> None:
    if mask is None or not np.any(mask):
        return
    # A rim of zeros closes the line where the mask meets the border; the greatest value keeps a
    # mask of few pixels when the image is shown smaller.
    framed = np.pad(_shrunk((np.asarray(mask) != 0).astype(np.float32)), 1)
    level = min(0.5, float(framed.max()) / 2)
    rows, columns = (np.arange(side) - 1 for side in framed.shape)
    style = {"colors": [colour], "linestyles": [dashes], "linewidths": 1.2}
    axes.contour(columns, rows, framed, [level], **style)


def _shrunk(pixels: np.ndarray) -> np.ndarray:
    pixels = np.ascontiguousarray(pixels)
    shrink = MAX_SIDE_PX / max(pixels.shape)
    if shrink >= 1:
        return pixels
    height, width = (max(1, round(side * shrink)) for side in pixels.shape)
    return cv2.resize(pixels, (width, height), interpolation=cv2.INTER_AREA)


def _describe(shown: Sequence[Example]) -> str:
    text = counted(len(shown), "image")
    known = [example for example in shown if example.truth is not None]
    if not known:
        predicted = [bool(np.any(e.mask)) for e in shown if e.mask is not None]
        text += " without known ground truth"
        return f"{text}, {sum(predicted)} predicted positive (dashed)." if predicted else f"{text}."
    text += f", {sum(bool(np.any(e.truth)) for e in known)} with a ground-truth mask (solid)"
    scored = [(e.mask, e.truth) for e in known if e.mask is not None]
    if not scored:
        return f"{text}."
    pairs = [(bool(np.any(mask)), bool(np.any(truth))) for mask, truth in scored]
    values = [dice(mask, truth) for mask, truth in scored]
    return (
        f"{text}: {counted(pairs.count((False, True)), 'false negative')} and "
        f"{counted(pairs.count((True, False)), 'false positive')} (prediction dashed); the Dice of "
        f"these images runs from {min(values):.3f} to {max(values):.3f}."
    )
