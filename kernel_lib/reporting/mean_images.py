"""The mean radiograph and the mean mask, which reveal masks decoded by rows instead of columns."""

from __future__ import annotations

import cv2
import numpy as np
from matplotlib.axes import Axes

from kernel_lib.reporting.picture import INK, TRUTH, Picture, counted, label_axes, panels

MEAN_PX = 128  # side of the mean images
ENOUGH_MASKS = 50  # of real ones; 98.5 % of such samples are more alike left to right


class RunningMean:
    """The running mean of images, each resized to (S, S)."""

    def __init__(self, size: int = MEAN_PX) -> None:
        self.total = np.zeros((size, size), dtype=np.float64)
        self.n = 0

    def add(self, pixels: np.ndarray) -> None:
        """Add an image, (H, W) uint8."""
        shape, resize = self.total.shape, cv2.INTER_AREA
        self.total += cv2.resize(pixels.astype(np.float32), shape, interpolation=resize)
        self.n += 1

    @property
    def image(self) -> np.ndarray:
        """The mean (S, S) float64; zeros while there is no image."""
        return self.total / max(self.n, 1)


def plot_means(images: RunningMean, masks: RunningMean) -> Picture:
    """Draw the mean of non-empty masks over the mean radiograph, and the same transposed."""
    if not images.n:
        return Picture(None, "No mean radiograph: no image could be opened.")
    text = f"The mean of {counted(images.n, 'radiograph')}"
    if not masks.n:
        figure, grid = panels(1, 1, width=3.6, height=3.7)
        _draw_radiograph(grid[0, 0], images.image, "Mean radiograph")
        return Picture(figure, f"{text}; no mask is known.")
    figure, grid = panels(1, 3, width=10.5, height=3.9)
    overlay, heatmap, transposed = grid[0]
    mean = masks.image
    _draw_radiograph(overlay, images.image, "Mean radiograph with mean mask")
    _draw_contours(overlay, mean)
    shares = heatmap.imshow(mean, cmap="cividis", vmin=0)
    figure.colorbar(shares, ax=heatmap, shrink=0.75, label="share of the masks")
    label_axes(heatmap, "Mean mask")
    heatmap.set_axis_off()
    _draw_radiograph(transposed, images.image, "Wrong: transposed masks")
    _draw_contours(transposed, mean.T)
    return Picture(
        figure,
        f"{text} with that of {counted(masks.n, 'non-empty mask')} (lines at 25, 50 and 75 % of "
        f"its peak), which should lie on the lungs. {_describe_symmetry(mean, masks.n)}",
    )


def symmetry(mean: np.ndarray) -> tuple[float, float]:
    """Return the correlation (−1 to 1) of a mean mask (S, S) with its left-right, top-bottom flip.

    Lungs lie side by side: real masks give 0.82 and −0.06, transposed ones the reverse.
    """
    smooth = cv2.GaussianBlur(mean, (0, 0), len(mean) / 32)
    if smooth.std() == 0:
        return 0.0, 0.0
    left_right, top_bottom = (
        float(np.corrcoef(smooth.ravel(), flipped.ravel())[0, 1])
        for flipped in (smooth[:, ::-1], smooth[::-1])
    )
    return left_right, top_bottom


def _describe_symmetry(mean: np.ndarray, n_masks: int) -> str:
    if n_masks < ENOUGH_MASKS:
        return f"Too few masks to test symmetry ({n_masks}; needs {ENOUGH_MASKS})."
    left_right, top_bottom = symmetry(mean)
    text = f"Its mirror symmetry is {left_right:.2f} left to right, {top_bottom:.2f} top to bottom"
    if top_bottom > left_right:
        return f"{text}: LOOK, rows may have been read as columns, since lungs lie side by side."
    return f"{text} (correlation), as expected of lungs that lie side by side."


def _draw_radiograph(axes: Axes, image: np.ndarray, title: str) -> None:
    axes.imshow(image, cmap="gray", vmin=0, vmax=255)
    axes.set_axis_off()
    label_axes(axes, title)


def _draw_contours(axes: Axes, mean: np.ndarray) -> None:
    smooth = cv2.GaussianBlur(mean, (0, 0), len(mean) / 64)
    levels, widths = smooth.max() * np.array([0.25, 0.5, 0.75]), (0.8, 1.4, 2.0)
    axes.contour(smooth, levels, colors=[INK], linewidths=[w + 1.2 for w in widths])
    axes.contour(smooth, levels, colors=[TRUTH], linewidths=widths)
