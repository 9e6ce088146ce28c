"""Pictures of data as found: where masks lie on the whole, to see a wrong decoding at once."""

from __future__ import annotations

import cv2
import numpy as np
from matplotlib.axes import Axes

from kernel_lib.reporting.picture import INK, TRUTH, Picture, counted, panels, title

MEAN_PX = 128  # side of the mean pictures
ENOUGH_MASKS = 50  # of real ones, 98.5 % of such draws are more alike left to right than otherwise


class Mean:
    """The running mean of pictures, each stretched to one (S, S)."""

    def __init__(self, size: int = MEAN_PX) -> None:
        self.total = np.zeros((size, size), dtype=np.float64)
        self.n = 0

    def add(self, pixels: np.ndarray) -> None:
        """Take in one picture, (H, W) uint8."""
        resized = cv2.resize(
            pixels.astype(np.float32), self.total.shape, interpolation=cv2.INTER_AREA
        )
        self.total += resized
        self.n += 1

    @property
    def picture(self) -> np.ndarray:
        """The mean (S, S) float64; zeros of nothing."""
        return self.total / max(self.n, 1)


def means(images: Mean, masks: Mean) -> Picture:
    """The mean of masks that are not empty over the mean radiograph, and the same transposed."""
    if not images.n:
        return Picture(None, "No mean radiograph: no image could be opened.")
    if not masks.n:
        figure, axes = panels(1, 1, width=3.6, height=3.7)
        _ground(axes[0, 0], images.picture, "Mean radiograph")
        return Picture(figure, f"The mean of {counted(images.n, 'radiograph')}; no mask is known.")
    figure, axes = panels(1, 3, width=10.5, height=3.9)
    over, alone, turned = axes[0]
    mean = masks.picture
    _ground(over, images.picture, "Mean radiograph, masks over it")
    _lines(over, mean)
    shown = alone.imshow(mean, cmap="cividis", vmin=0)
    figure.colorbar(shown, ax=alone, shrink=0.75, label="share of the masks")
    title(alone, "Mean of the masks")
    _ground(turned, images.picture, "Wrong: if they were transposed")
    _lines(turned, mean.T)
    for one in axes[0]:
        one.set_axis_off()
    return Picture(
        figure,
        f"The mean of {counted(images.n, 'radiograph')}, and over it that of "
        f"{counted(masks.n, 'mask')} that {'are' if masks.n > 1 else 'is'} not empty (lines at 25, "
        f"50 and 75 % of its peak): they belong on the lungs. {_symmetry_read(mean, masks.n)}",
    )


def symmetry(mean: np.ndarray) -> tuple[float, float]:
    """Correlation (−1 to 1) of a mean mask (S, S) with its mirror image: left-right, top-bottom.

    Two lungs stand side by side: real masks give 0.82 and −0.06, and transposed ones the reverse.
    """
    smooth = cv2.GaussianBlur(mean, (0, 0), len(mean) / 32)
    if smooth.std() == 0:
        return 0.0, 0.0
    mirrored = (smooth[:, ::-1], smooth[::-1])
    sideways, upside = (np.corrcoef(smooth.ravel(), one.ravel())[0, 1] for one in mirrored)
    return float(sideways), float(upside)


def _symmetry_read(mean: np.ndarray, n_masks: int) -> str:
    if n_masks < ENOUGH_MASKS:
        return f"Of {n_masks} no symmetry can be told; {ENOUGH_MASKS} would do."
    sideways, upside = symmetry(mean)
    text = f"They mirror themselves left to right by {sideways:.2f}, top to bottom by {upside:.2f}"
    if upside > sideways:
        return f"{text}: LOOK, as if rows had been taken for columns, since lungs stand abreast."
    return f"{text} (correlation), as two lungs that stand abreast do."


def _ground(axes: Axes, image: np.ndarray, text: str) -> None:
    axes.imshow(image, cmap="gray", vmin=0, vmax=255)
    axes.set_axis_off()
    title(axes, text)


def _lines(axes: Axes, mean: np.ndarray) -> None:
    smooth = cv2.GaussianBlur(mean, (0, 0), len(mean) / 64)
    levels, widths = smooth.max() * np.array([0.25, 0.5, 0.75]), (0.8, 1.4, 2.0)
    axes.contour(smooth, levels, colors=[INK], linewidths=[w + 1.2 for w in widths])
    axes.contour(smooth, levels, colors=[TRUTH], linewidths=widths)
