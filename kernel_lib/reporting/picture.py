"""A figure with the sentence that describes it, and the style that all figures share.

Figures are made without pyplot, so they need no display and leave no global state.
"""

from __future__ import annotations

import base64
import html
import io
from dataclasses import dataclass

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

INK, PALE = "#222222", "#d9d9d9"
TRUTH, PREDICTION = "#ffb000", "#4fc3f7"  # distinct in any colour vision, and by their dashes
DARK, MIDDLE, LIGHT = "#00336f", "#7c7b78", "#e8d24f"  # of cividis: distinct in grey as well
DASHES = ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)), (0, (8, 2)))
MARKERS = ("o", "s", "^", "D", "v", "P")
RESEARCH_ONLY = "Research only, not a medical device."


@dataclass(frozen=True, repr=False)
class Picture:
    """A figure, or None where there is nothing to draw, and the sentence that describes it."""

    figure: Figure | None
    sentence: str

    def png(self, dpi: int = 120) -> bytes | None:
        """Return the figure as a PNG file, None where there is no figure."""
        if self.figure is None:
            return None
        buffer = io.BytesIO()
        self.figure.savefig(buffer, format="png", dpi=dpi, facecolor="white")
        return buffer.getvalue()

    def to_html(self) -> str:
        """Return the sentence and, below it, the figure as a data URI."""
        sentence, png = html.escape(self.sentence), self.png()
        text = f'<p class="sentence">{sentence}</p>'
        if png is None:
            return text
        data = base64.b64encode(png).decode("ascii")
        return f'{text}<img alt="{sentence}" src="data:image/png;base64,{data}">'

    _repr_html_ = to_html

    def __repr__(self) -> str:
        return self.sentence


def panels(
    rows: int, columns: int, *, width: float = 9.0, height: float = 3.4
) -> tuple[Figure, np.ndarray]:
    """Return a figure of `width` by rows · `height` inches and its styled axes (rows, columns)."""
    figure = Figure(figsize=(width, rows * height), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False)
    for axes in grid.flat:
        axes.spines[["top", "right"]].set_visible(False)
        axes.spines[["left", "bottom"]].set_color(MIDDLE)
        axes.tick_params(colors=INK, labelsize=9)
        axes.grid(True, color=PALE, linewidth=0.6)
        axes.set_axisbelow(True)
    return figure, grid


def label_axes(axes: Axes, title: str, *, x: str = "", y: str = "") -> None:
    """Set a left-aligned title and the labels of both axes."""
    axes.set_title(escape_dollars(title), loc="left", fontsize=10.5, color=INK)
    axes.set_xlabel(escape_dollars(x), fontsize=9.5, color=INK)
    axes.set_ylabel(escape_dollars(y), fontsize=9.5, color=INK)


def escape_dollars(text: object) -> str:
    """Return text that matplotlib draws literally: a bare dollar sign would start a formula."""
    return str(text).replace("$", r"\$")


def legend(axes: Axes, **options: object) -> None:
    """Add a legend without a frame if any artist has a label."""
    if axes.get_legend_handles_labels()[0]:
        axes.legend(frameon=False, fontsize=8.5, **options)


def shades(n: int) -> list:
    """Return n colours of viridis, dark to light; they differ in grey and none is too light."""
    return [matplotlib.colormaps["viridis"](v) for v in np.linspace(0.0, 0.82, max(n, 1))[:n]]


def counted(n: int, singular: str, plural: str | None = None) -> str:
    """Return a count with its noun: '1 image', '1,204 images'."""
    return f"{n:,} {singular if n == 1 else plural or singular + 's'}"
