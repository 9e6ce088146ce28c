"""A figure with the sentence that reads it, and the one style that all figures share.

Nothing here goes through pyplot: figures are made and drawn without a display and without state.
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
TRUTH, PREDICTION = "#ffb000", "#4fc3f7"  # told apart in any colour vision, and by their dashes
DARK, MIDDLE, LIGHT = "#00336f", "#7c7b78", "#e8d24f"  # of cividis: told apart in grey as well
DASHES = ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)), (0, (8, 2)))
MARKERS = ("o", "s", "^", "D", "v", "P")
DPI = 120
RESEARCH_ONLY = "Research only, not a medical device."


@dataclass(frozen=True, repr=False)
class Picture:
    """A figure, or None where there is nothing to draw, and what is to be read off it."""

    figure: Figure | None
    sentence: str

    def png(self, dpi: int = DPI) -> bytes | None:
        """The figure as a PNG file, None where there is none."""
        if self.figure is None:
            return None
        buffer = io.BytesIO()
        self.figure.savefig(buffer, format="png", dpi=dpi, facecolor="white")
        return buffer.getvalue()

    def to_html(self) -> str:
        """The sentence, and below it the figure inside the text as a data URI."""
        words = html.escape(self.sentence)
        text = f'<p class="sentence">{words}</p>'
        png = self.png()
        if png is None:
            return text
        data = base64.b64encode(png).decode("ascii")
        return f'{text}<img alt="{words}" src="data:image/png;base64,{data}">'

    def __repr__(self) -> str:
        return self.sentence  # what a log shows of it

    def _repr_html_(self) -> str:
        return self.to_html()


def panels(
    rows: int, columns: int, *, width: float = 9.0, height: float = 3.4
) -> tuple[Figure, np.ndarray]:
    """A figure of `width` by rows · `height` inches, and its (rows, columns) axes in our style."""
    figure = Figure(figsize=(width, rows * height), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False)
    for one in axes.flat:
        one.spines[["top", "right"]].set_visible(False)
        one.spines[["left", "bottom"]].set_color(MIDDLE)
        one.tick_params(colors=INK, labelsize=9)
        one.grid(True, color=PALE, linewidth=0.6)
        one.set_axisbelow(True)
    return figure, axes


def title(axes: Axes, text: str, *, x: str = "", y: str = "") -> None:
    """A left-aligned title and the axes' labels."""
    axes.set_title(plain(text), loc="left", fontsize=10.5, color=INK)
    axes.set_xlabel(plain(x), fontsize=9.5, color=INK)
    axes.set_ylabel(plain(y), fontsize=9.5, color=INK)


def plain(text: object) -> str:
    """Text from files as it stands: without it, a dollar sign would start a formula."""
    return str(text).replace("$", r"\$")


def legend(axes: Axes, **options: object) -> None:
    """A legend without a frame, if there is anything to explain."""
    if axes.get_legend_handles_labels()[0]:
        axes.legend(frameon=False, fontsize=8.5, **options)


def shades(n: int) -> list:
    """n colours of viridis, dark to light, that also differ in grey; none so light as to vanish."""
    return [matplotlib.colormaps["viridis"](v) for v in np.linspace(0.0, 0.82, max(n, 1))[:n]]


def counted(n: int, one: str, many: str | None = None) -> str:
    """'1 image', '1,204 images'."""
    return f"{n:,} {one if n == 1 else many or one + 's'}"
