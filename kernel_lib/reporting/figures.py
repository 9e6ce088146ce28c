"""Charts of training, thresholds, scores and mask areas, each with a sentence of its numbers."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from kernel_lib.data.folds import balance
from kernel_lib.postprocess.metrics import Interval
from kernel_lib.postprocess.nested_cv_report import AREA_EDGES, NestedCVReport, TestSummary
from kernel_lib.postprocess.search import SearchResult
from kernel_lib.postprocess.units import AREA_UNIT
from kernel_lib.reporting.picture import (
    DARK,
    DASHES,
    INK,
    LIGHT,
    MARKERS,
    MIDDLE,
    Picture,
    counted,
    escape_dollars,
    label_axes,
    legend,
    panels,
    shades,
)

LOG_COLUMNS = ["epoch", "lr", "train_loss", "val_loss", "dice", "dice_half", "dice_nonempty",
               "images_per_second", "best"]  # fmt: skip
AREA_LABEL = f"mask area, {AREA_UNIT}"
SMALL_PX = 3500  # of 1024², the limit below which false negatives are counted apart


def learning_curves(logs: Mapping[str, Sequence[Mapping[str, Any]]]) -> Picture:
    """Plot losses, held-out Dice (0–1) and learning rate by epoch, a line for each run.

    `logs` holds the log lines of each run or fold, with the keys `LOG_COLUMNS`; missing values are
    not drawn. Kept checkpoints are ringed.
    """
    tables = {
        name: pd.DataFrame(list(lines), columns=LOG_COLUMNS).astype(float)
        for name, lines in logs.items()
        if len(lines)
    }
    if not tables:
        return Picture(None, "No learning curves: no epoch has finished yet.")
    figure, grid = panels(2, 2, height=2.9)
    (loss, score), (positive, rate) = grid
    for k, (name, log) in enumerate(tables.items()):
        look = {"color": shades(len(tables))[k], "marker": ".", "markersize": 6}
        if len(tables) > 1:  # dashes first, then markers: no two runs differ in colour alone
            look["linestyle"] = DASHES[k % len(DASHES)]
        if len(tables) > len(DASHES):
            look |= {"marker": MARKERS[k // len(DASHES) % len(MARKERS)], "markersize": 4}
        thin = {**look, "linewidth": 0.9, "markersize": 3, "alpha": 0.75}
        loss.plot(log.epoch, log.train_loss, **thin)
        loss.plot(log.epoch, log.val_loss, linewidth=2, label=escape_dollars(name), **look)
        kept = log[log.best == 1]
        for axes, key in ((score, "dice"), (positive, "dice_nonempty")):
            axes.plot(log.epoch, log[key], linewidth=2, **look)
            ring = {"s": 60, "facecolors": "none", "edgecolors": INK, "linewidths": 1.3}
            label = "checkpoint kept" if axes is score and k == 0 else None
            axes.scatter(kept.epoch, kept[key], zorder=3, label=label, **ring)
        half = "probability > 0.5" if k == 0 else None
        score.plot(log.epoch, log.dice_half, label=half, **thin)
        rate.plot(log.epoch, log.lr, linewidth=1.5, **look)
    label_axes(loss, "Loss: held out (thick), training (thin)", x="epoch", y="loss")
    label_axes(score, "Held-out Dice at its best threshold (thick)", x="epoch", y="mean Dice")
    label_axes(positive, "Held-out Dice of positive images", x="epoch", y="mean Dice")
    label_axes(rate, "Learning rate", x="epoch", y="rate")
    for axes in grid.flat:
        axes.xaxis.get_major_locator().set_params(integer=True)
    if len(tables) <= len(DASHES):
        legend(loss)
    elif len(tables) <= 3 * len(DASHES):  # more names would fill the picture
        figure.legend(*loss.get_legend_handles_labels(), loc="outside lower center", ncols=2,
                      frameon=False, fontsize=7.5)  # fmt: skip
    legend(score, loc="lower right")
    return Picture(figure, " ".join(_describe_log(name, log) for name, log in tables.items()))


def _describe_log(name: str, log: pd.DataFrame) -> str:
    text = f"{name}: {counted(len(log), 'epoch')}"
    if log.dice.notna().any():
        best = log.loc[log.dice.idxmax()]
        text += f", best held-out Dice {best.dice:.4f} in epoch {best.epoch:.0f}"
        if math.isfinite(best.dice_half):
            text += f" ({best.dice_half:.4f} at probability > 0.5)"
        if math.isfinite(best.dice_nonempty):
            text += f", {best.dice_nonempty:.4f} on positive images"
    last = log.iloc[-1]
    if math.isfinite(last.train_loss) and math.isfinite(last.val_loss):
        text += f"; last loss {last.train_loss:.4f} in training, {last.val_loss:.4f} held out"
    if log.images_per_second.notna().any():
        text += f"; {log.images_per_second.median():.1f} images/s"
    return text + "."


def threshold_surface(result: SearchResult) -> Picture:
    """Plot mean Dice (0–1) over all pairs bottom ≤ top, each with its best minimum area.

    The peak and the chosen rule are marked; a search of one threshold is drawn as a line.
    """
    surface = np.asarray(result.surface, dtype=np.float64)
    if not np.isfinite(surface).any():
        return Picture(None, "No threshold surface: nothing was searched.")
    figure, grid = panels(1, 1, width=7.2, height=5.2)
    axes = grid[0, 0]
    rules = (("peak", result.triplet, "*", 190), ("chosen", result.chosen, "o", 90))
    if np.isfinite(surface[~np.eye(len(surface), dtype=bool)]).any():
        _draw_surface(axes, surface, result.plateau)
        for name, rule, marker, area in rules:
            mark = {"marker": marker, "s": area, "edgecolors": "white", "facecolors": INK}
            axes.scatter(rule.bottom, rule.top, label=name, zorder=3, **mark)
        label_axes(axes, "Mean Dice in sample",
                   x="mask threshold (bottom)", y="detection threshold (top)")  # fmt: skip
        legend(axes, loc="lower right")
    else:
        thresholds = (np.arange(len(surface)) + 0.5) / 255
        axes.plot(thresholds, np.diag(surface), color=DARK, linewidth=2)
        values = (result.score, result.chosen_score)
        for (name, rule, marker, area), value in zip(rules, values, strict=True):
            axes.scatter(rule.top, value, marker=marker, s=area, color=INK, label=name, zorder=3)
        title = "Mean Dice in sample, at the best minimum area of each threshold"
        label_axes(axes, title, x="threshold", y="mean Dice")
        legend(axes)
    text = (
        f"The peak, mean Dice {result.score:.4f}, is at {result.triplet}; the rule chosen from the "
        f"plateau around it is {result.chosen}, with {result.chosen_score:.4f}."
    )
    return Picture(figure, f"{text} {_describe_plateau(result.plateau)}".rstrip())


def _draw_surface(axes: Axes, surface: np.ndarray, plateau: Mapping[str, Any] | None) -> None:
    peak = float(np.nanmax(surface))
    # Colours cover the upper part only: the slopes towards an all-positive rule would use them up.
    floor = min(max(float(np.nanmin(surface)), peak - 0.06), peak - 1e-6)
    image = axes.imshow(surface, origin="lower", extent=(0, 1, 0, 1), aspect="equal",
                        cmap="cividis", vmin=floor, vmax=peak)  # fmt: skip
    axes.figure.colorbar(image, ax=axes, label="mean Dice", extend="min", shrink=0.9)
    within = (plateau or {}).get("within")
    if within and np.nanmin(surface) < peak - within:
        at = (np.arange(len(surface)) + 0.5) / len(surface)
        look = {"colors": "white", "linewidths": 1.1, "linestyles": "--"}
        axes.contour(at, at, np.nan_to_num(surface, nan=-1.0), [peak - within], **look)
    axes.grid(False)


def _describe_plateau(plateau: Mapping[str, Any] | None) -> str:
    if not plateau:
        return ""
    (top_low, top_high), (low, high) = plateau["top"], plateau["bottom"]
    smallest, largest = plateau["min_area_px"]
    return (
        f"Rules within {plateau['within']:.4f} of the peak (dashed line) have detection thresholds "
        f"(top) of {top_low:.2f} to {top_high:.2f}, mask thresholds (bottom) of {low:.2f} to "
        f"{high:.2f} and minimum areas of {smallest:,} to {largest:,} {AREA_UNIT}."
    )


def share_nonempty(oof: NestedCVReport, test: TestSummary | None = None) -> Picture:
    """Plot shares (0–1) of positive images: ground truth, predicted out of fold and on test."""
    rows = [
        ("ground truth, out of fold", oof.share_true, None),
        ("predicted, out of fold", oof.share_predicted, _finite(oof.share_interval)),
    ]
    if test is not None:
        rows.append(("predicted, test", test.share_predicted, None))
        if expected := _finite(test.share_expected):
            rows.append(("expected on test", math.nan, expected))
    figure, grid = panels(1, 1, height=0.9 + 0.45 * len(rows))
    _draw_points(grid[0, 0], rows)
    label_axes(grid[0, 0], "Share of images with a mask", x="share of images")
    text = "; ".join(
        f"{name}: {value:.1%}" + (f" ({interval[0]:.1%} to {interval[1]:.1%})" if interval else "")
        for name, value, interval in rows
        if name != "expected on test"
    )
    warnings = () if test is None else test.warnings
    return Picture(figure, " ".join([f"Images with a mask: {text}.", *warnings]))


def scores(report: NestedCVReport, is_honest: bool = True) -> Picture:
    """Plot mean Dice (0–1) of the empty baseline, probability > 0.5 and the post-processing rule.

    The rule has two scores: in sample, and nested cross-validated ("honest"); the figure states
    that the latter is not honest unless `is_honest`.
    """
    rows = {
        "empty baseline": report.all_empty,
        "probability > 0.5": report.above_half,
        "rule, in sample": report.in_sample,
        f"rule, nested CV{' (honest)' if is_honest else ', NOT HONEST'}": report.honest,
    }
    interval = _finite(report.interval)
    figure, grid = panels(1, 2, height=2.6)
    everything, positive = grid[0]
    points = [(name, score.dice, None) for name, score in rows.items()]
    _draw_points(everything, [*points[:-1], (*points[-1][:2], interval)])
    _draw_points(positive, [(name, score.dice_nonempty, None) for name, score in rows.items()])
    positive.set_yticklabels([])
    label_axes(everything, "All images", x="mean Dice")
    label_axes(positive, "Positive images", x="mean Dice")
    listed = [f"{name} {s.dice:.4f} ({_format(s.dice_nonempty)})" for name, s in rows.items()]
    text = f"Mean Dice of all images (of positive images): {', '.join(listed)}."
    if interval:
        text += f" The 95 % interval of the last is {interval[0]:.4f} to {interval[1]:.4f}."
    return Picture(figure, text)


def folds(table: pd.DataFrame) -> Picture:
    """Plot images, share of positives and median mask area of each fold.

    Shapes: table as `data.folds.load` returns it.
    """
    if table.empty:
        return Picture(None, "No folds: the table of folds is empty.")
    summary = balance(table)
    figure, grid = panels(1, 3, height=2.7)
    columns = (
        ("images", "Images", "{:,.0f}"),
        ("positive_share", "Share with a mask", "{:.1%}"),
        ("median_area_px_1024", f"Median mask area, {AREA_UNIT}", "{:,.0f}"),
    )
    names = [str(fold) for fold in summary.index]
    for axes, (key, title, form) in zip(grid[0], columns, strict=True):
        values = summary[key].to_numpy(float)
        bars = axes.bar(names, np.nan_to_num(values), color=DARK, width=0.65)
        texts = [form.format(value) if math.isfinite(value) else "none" for value in values]
        axes.bar_label(bars, texts, padding=2, fontsize=8)
        axes.margins(y=0.12)
        label_axes(axes, title, x="fold")
    shares, median = summary["positive_share"], summary["median_area_px_1024"]
    return Picture(
        figure,
        f"{counted(len(table), 'image')} of {counted(int(summary['groups'].sum()), 'group')} in "
        f"{counted(len(summary), 'fold')} of {summary['images'].min():,} to "
        f"{summary['images'].max():,} images; {shares.min():.1%} to {shares.max():.1%} have a mask,"
        f" of a median area of {_format(median.min(), ',.0f')} to {_format(median.max(), ',.0f')} "
        f"{AREA_UNIT}.",
    )


def dice_against_area(table: pd.DataFrame) -> Picture:
    """Plot Dice (0–1) of each positive image against its mask area, and the median by size.

    Shapes: table with truth_px, predicted_px (of 1024²) and dice, a row for each image.
    """
    area, dice, empty = _positives(table[table["dice"].notna()])
    if not len(area):
        return Picture(None, "No Dice against area: no image has a ground-truth mask.")
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
    text = f"{counted(len(area), 'positive image')}, mean Dice {dice.mean():.3f}"
    small = area < np.median(area)
    if small.any():
        text += (
            f"; {dice[small].mean():.3f} in the smaller half of the masks, "
            f"{dice[~small].mean():.3f} in the larger"
        )
    return Picture(figure, f"{text}; {counted(int(empty.sum()), 'false negative')}.")


def false_negatives_by_size(table: pd.DataFrame) -> Picture:
    """Plot the share of positive images predicted empty, by ground-truth mask area.

    Shapes: table as for `dice_against_area`.
    """
    area, _, empty = _positives(table[table["predicted_px"].notna()])
    if not len(area):
        return Picture(None, "No false negatives by size: no image has a ground-truth mask.")
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
    text = f"{int(empty.sum())} of {counted(len(area), 'positive image')} are false negatives"
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


def _positives(table: pd.DataFrame) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return mask area, Dice, and whether the prediction is empty, of each positive image."""
    positive = table[table["truth_px"] > 0]
    area, dice, predicted = positive[["truth_px", "dice", "predicted_px"]].to_numpy(float).T
    return area, dice, predicted <= 0


def _bins(area: np.ndarray) -> Iterator[tuple[int, int, np.ndarray]]:
    """Yield the bounds of each bin and a mask of the areas within; the first bin has no minimum."""
    for low, high in itertools.pairwise(AREA_EDGES):
        yield low, high, (area < high) & ((area >= low) | (low == AREA_EDGES[0]))


def _draw_points(axes: Axes, rows: Sequence[tuple[str, float, Interval | None]]) -> None:
    """Draw a row for each (name, value, interval) from the top; one of NaN has no point."""
    for k, (_, value, interval) in enumerate(rows):
        y = len(rows) - 1 - k
        if interval:
            axes.plot(interval, [y, y], color=MIDDLE, linewidth=5, solid_capstyle="butt")
        if math.isfinite(value):
            axes.plot(value, y, MARKERS[k % len(MARKERS)], color=DARK, markersize=8)
            style = {"textcoords": "offset points", "xytext": (0, 8), "ha": "center"}
            axes.annotate(f"{value:.3f}", (value, y), fontsize=8.5, color=INK, **style)
    names = [escape_dollars(name) for name, _, _ in reversed(rows)]
    axes.set_yticks(range(len(rows)), names)
    axes.set_ylim(-0.6, len(rows) - 0.3)
    axes.margins(x=0.15)


def _finite(interval: Interval) -> Interval | None:
    return interval if all(map(math.isfinite, interval)) else None


def _format(value: float, form: str = ".4f") -> str:
    return format(value, form) if math.isfinite(value) else "none"
