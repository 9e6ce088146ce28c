"""Charts by the size of a mask, each with a sentence that gives its numbers."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence

import numpy as np
import pandas as pd

from kernel_lib.postprocess.nested_cv_report import AREA_EDGES
from kernel_lib.postprocess.units import AREA_UNIT
from kernel_lib.reporting.picture import DARK, INK, LIGHT, Picture, counted, legend, panels, title

AREA_LABEL = f"mask area, {AREA_UNIT}"


def dice_against_area(table: pd.DataFrame) -> Picture:
    """Dice (0–1) of each image that has a true mask, by its area, and the median by size.

    Shapes: table with truth_px, predicted_px (of 1024²) and dice, a row an image.
    """
    seen = table[(table["truth_px"] > 0) & table["dice"].notna()]
    if seen.empty:
        return Picture(None, "No dice by area: no image has a true mask.")
    area, dice = seen["truth_px"].to_numpy(float), seen["dice"].to_numpy(float)
    missed = seen["predicted_px"].to_numpy(float) <= 0
    figure, axes = panels(1, 1, height=3.8)
    one = axes[0, 0]
    dots = {"s": 18, "linewidths": 0.8}
    if (~missed).any():
        look = {"facecolors": "none", "edgecolors": DARK, "marker": "o", **dots}
        one.scatter(area[~missed], dice[~missed], label="got a mask", **look)
    if missed.any():
        one.scatter(
            area[missed], dice[missed], color=INK, marker="x", label="predicted empty", **dots
        )
    medians = []
    for _, _, inside in _bins(area):
        if inside.any():
            medians.append((np.median(area[inside]), np.median(dice[inside])))
    x, y = zip(*medians, strict=True)
    line = {"color": LIGHT, "markeredgecolor": INK, "marker": "D", "linewidth": 2.2}
    one.plot(x, y, label="median by size", **line)
    one.set_xscale("log")
    one.set_ylim(-0.04, 1.04)
    title(one, "Dice of images with a true mask", x=AREA_LABEL, y="dice")
    legend(one, loc="upper left", bbox_to_anchor=(1.0, 1.0))
    small, large = area < np.median(area), area >= np.median(area)
    halves = (
        ""
        if not small.any()
        else (
            f"; {dice[small].mean():.3f} in the smaller half of the masks, "
            f"{dice[large].mean():.3f} in the larger"
        )
    )
    return Picture(
        figure,
        f"{counted(len(seen), 'image')} with a true mask, mean dice {dice.mean():.3f}{halves}; "
        f"{int(missed.sum())} were predicted empty.",
    )


def false_negatives_by_size(table: pd.DataFrame) -> Picture:
    """Share of masks that were missed altogether, by their true area.

    Shapes: table with truth_px and predicted_px (of 1024²), a row an image.
    """
    seen = table[(table["truth_px"] > 0) & table["predicted_px"].notna()]
    if seen.empty:
        return Picture(None, "No false negatives by size: no image has a true mask.")
    area, missed = seen["truth_px"].to_numpy(float), seen["predicted_px"].to_numpy(float) <= 0
    counts, shares, names = [], [], []
    for low, high, inside in _bins(area):
        counts.append(int(inside.sum()))
        shares.append(float(missed[inside].mean()) if inside.any() else math.nan)
        last, first = high > AREA_EDGES[-2] * 2, low <= AREA_EDGES[0]
        names.append(f"≥ {low:,}" if last else f"< {high:,}" if first else f"{low:,}–{high:,}")
    figure, axes = panels(1, 1, height=3.4)
    one = axes[0, 0]
    one.bar(range(len(names)), np.nan_to_num(shares), color=DARK, width=0.7)
    for place, (n, share) in enumerate(zip(counts, shares, strict=True)):
        height = 0.0 if math.isnan(share) else share
        text = f"{round(height * n)} of {n}" if n else "none"
        one.annotate(text, (place, height + 0.02), ha="center", fontsize=8.5, color=INK)
    one.set_ylim(0, 1.12)
    one.set_xticks(range(len(names)), names)
    title(one, "Masks missed altogether, by true size", x=AREA_LABEL, y="share predicted empty")
    small = area < 3500
    text = f"{int(missed.sum())} of {counted(len(seen), 'true mask')} were missed"
    if small.any():
        text += f", {int(missed[small].sum())} of them under 3,500 {AREA_UNIT}, where "
        text += f"{int(small.sum())} lie"
    return Picture(figure, text + ".")


def mask_areas(
    oof_areas: Sequence[float],
    test_areas: Sequence[float] | None = None,
    names: tuple[str, str] = ("out of fold", "test"),
) -> Picture:
    """Histogram of mask areas in px of 1024², of one or two sets; empty masks are left out."""
    given = (oof_areas, test_areas)
    kinds = [pair for pair in zip(names, given, strict=True) if pair[1] is not None]
    sizes = [(name, np.asarray(areas, dtype=float)) for name, areas in kinds]
    sizes = [(name, areas[areas > 0]) for name, areas in sizes]
    drawn = [(name, areas) for name, areas in sizes if len(areas)]
    if not drawn:
        return Picture(None, "No histogram of mask areas: every mask is empty.")
    everything = np.concatenate([areas for _, areas in drawn])
    low, high = everything.min() / 1.1, everything.max() * 1.1
    edges = np.geomspace(low, high, 4 + min(26, 2 * round(len(everything) ** 0.5)))
    figure, axes = panels(1, 1, height=3.4)
    one = axes[0, 0]
    looks = ({"color": DARK, "alpha": 0.85}, {"fill": False, "edgecolor": INK, "hatch": "////"})
    for place, (name, areas) in enumerate(drawn):
        weights = np.full(len(areas), 1 / len(areas))
        one.hist(areas, edges, weights=weights, label=name, **looks[place])
    one.set_xscale("log")
    middle = (low * high) ** 0.5
    one.set_xlim(min(low, middle / 4), max(high, middle * 4))  # else few masks get odd ticks
    title(one, "Areas of masks that are not empty", x=AREA_LABEL, y="share of the masks")
    legend(one)
    text = "; ".join(
        f"{name}: {counted(len(areas), 'mask')}, mean {areas.mean():,.0f}, median "
        f"{np.median(areas):,.0f} {AREA_UNIT}"
        if len(areas)
        else f"{name}: every mask is empty"
        for name, areas in sizes
    )
    return Picture(figure, text[0].upper() + text[1:] + ".")


def _bins(area: np.ndarray) -> Iterator[tuple[int, int, np.ndarray]]:
    """Bounds of each bin and who lies in it; a lone pixel of a larger image is in the first."""
    for low, high in itertools.pairwise(AREA_EDGES):
        yield low, high, (area < high) & ((area >= low) | (low == AREA_EDGES[0]))
