"""Charts by mask area, each with a sentence that gives its numbers."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence

import numpy as np
import pandas as pd

from kernel_lib.postprocess.nested_cv_report import AREA_EDGES
from kernel_lib.postprocess.units import AREA_UNIT
from kernel_lib.reporting.picture import (
    DARK,
    INK,
    LIGHT,
    Picture,
    counted,
    label_axes,
    legend,
    panels,
)

AREA_LABEL = f"mask area, {AREA_UNIT}"
SMALL_PX = 3500  # of 1024², the limit below which false negatives are counted apart


def dice_against_area(table: pd.DataFrame) -> Picture:
    """Plot Dice (0–1) of each positive image against its mask area, and the median by size.

    Shapes: table with truth_px, predicted_px (of 1024²) and dice, a row for each image.
    """
    positive = table[(table["truth_px"] > 0) & table["dice"].notna()]
    if positive.empty:
        return Picture(None, "No Dice against area: no image has a ground-truth mask.")
    area, dice = positive["truth_px"].to_numpy(float), positive["dice"].to_numpy(float)
    empty = positive["predicted_px"].to_numpy(float) <= 0
    figure, grid = panels(1, 1, height=3.8)
    axes = grid[0, 0]
    dots = {"s": 18, "linewidths": 0.8}
    hollow = {"facecolors": "none", "edgecolors": DARK, "marker": "o"}
    cross = {"color": INK, "marker": "x"}
    for rows, label, look in ((~empty, "true positive", hollow), (empty, "false negative", cross)):
        if rows.any():
            axes.scatter(area[rows], dice[rows], label=label, **dots, **look)
    bins = [inside for _, _, inside in _bins(area) if inside.any()]
    axes.plot([np.median(area[inside]) for inside in bins],
              [np.median(dice[inside]) for inside in bins], label="median by size",
              color=LIGHT, markeredgecolor=INK, marker="D", linewidth=2.2)  # fmt: skip
    axes.set_xscale("log")
    axes.set_ylim(-0.04, 1.04)
    label_axes(axes, "Dice of positive images", x=AREA_LABEL, y="Dice")
    legend(axes, loc="upper left", bbox_to_anchor=(1.0, 1.0))
    text = f"{counted(len(positive), 'positive image')}, mean Dice {dice.mean():.3f}"
    small = area < np.median(area)
    if small.any():
        text += (
            f"; {dice[small].mean():.3f} in the smaller half of the masks, "
            f"{dice[~small].mean():.3f} in the larger"
        )
    return Picture(figure, f"{text}; {counted(int(empty.sum()), 'false negative')}.")


def false_negatives_by_size(table: pd.DataFrame) -> Picture:
    """Plot the share of positive images predicted empty, by ground-truth mask area.

    Shapes: table with truth_px and predicted_px (of 1024²), a row for each image.
    """
    positive = table[(table["truth_px"] > 0) & table["predicted_px"].notna()]
    if positive.empty:
        return Picture(None, "No false negatives by size: no image has a ground-truth mask.")
    area = positive["truth_px"].to_numpy(float)
    empty = positive["predicted_px"].to_numpy(float) <= 0
    figure, grid = panels(1, 1, height=3.4)
    axes, names = grid[0, 0], []
    for k, (low, high, inside) in enumerate(_bins(area)):
        n, share = int(inside.sum()), empty[inside].mean() if inside.any() else 0.0
        axes.bar(k, share, color=DARK, width=0.7)
        text = f"{int(empty[inside].sum())} of {n}" if n else "none"
        axes.annotate(text, (k, share + 0.02), ha="center", fontsize=8.5, color=INK)
        last, first = high == AREA_EDGES[-1], low == AREA_EDGES[0]
        names.append(f"≥ {low:,}" if last else f"< {high:,}" if first else f"{low:,}–{high:,}")
    axes.set_ylim(0, 1.12)
    axes.set_xticks(range(len(names)), names)
    label_axes(
        axes, "False negatives by ground-truth size", x=AREA_LABEL, y="share predicted empty"
    )
    text = f"{int(empty.sum())} of {counted(len(positive), 'positive image')} are false negatives"
    small = area < SMALL_PX
    if small.any():
        text += (
            f", {int(empty[small].sum())} of them among the {int(small.sum())} with masks under "
            f"{SMALL_PX:,} {AREA_UNIT}"
        )
    return Picture(figure, text + ".")


def mask_areas(
    oof_areas: Sequence[float],
    test_areas: Sequence[float] | None = None,
    names: tuple[str, str] = ("out of fold", "test"),
) -> Picture:
    """Plot a histogram of mask areas in px of 1024², of one or two sets, without empty masks."""
    sets = {
        name: np.asarray(areas, dtype=float)
        for name, areas in zip(names, (oof_areas, test_areas), strict=True)
        if areas is not None
    }
    sets = {name: areas[areas > 0] for name, areas in sets.items()}
    if not any(map(len, sets.values())):
        return Picture(None, "No histogram of mask areas: every mask is empty.")
    pooled = np.concatenate(list(sets.values()))
    low, high = pooled.min() / 1.1, pooled.max() * 1.1
    edges = np.geomspace(low, high, 4 + min(26, 2 * round(len(pooled) ** 0.5)))
    figure, grid = panels(1, 1, height=3.4)
    axes = grid[0, 0]
    looks = iter(({"color": DARK, "alpha": 0.85},
                  {"fill": False, "edgecolor": INK, "hatch": "////"}))  # fmt: skip
    texts = []
    for name, areas in sets.items():
        if not len(areas):
            texts.append(f"{name}: every mask is empty")
            continue
        weights = np.full(len(areas), 1 / len(areas))
        axes.hist(areas, edges, weights=weights, label=name, **next(looks))
        texts.append(
            f"{name}: {counted(len(areas), 'mask')}, mean {areas.mean():,.0f}, median "
            f"{np.median(areas):,.0f} {AREA_UNIT}"
        )
    axes.set_xscale("log")
    middle = math.sqrt(low * high)
    axes.set_xlim(min(low, middle / 4), max(high, middle * 4))  # else few masks get odd ticks
    label_axes(axes, "Areas of non-empty masks", x=AREA_LABEL, y="share of the masks")
    legend(axes)
    text = "; ".join(texts)
    return Picture(figure, text[0].upper() + text[1:] + ".")


def _bins(area: np.ndarray) -> Iterator[tuple[int, int, np.ndarray]]:
    """Yield the bounds of each bin and a mask of the areas within; the first bin has no minimum."""
    for low, high in itertools.pairwise(AREA_EDGES):
        yield low, high, (area < high) & ((area >= low) | (low == AREA_EDGES[0]))
