"""Charts of training, thresholds and scores, each with a sentence that gives its numbers."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from kernel_lib.data.folds import balance
from kernel_lib.postprocess.units import AREA_UNIT
from kernel_lib.reporting.overlays import Example, augmentations, examples
from kernel_lib.reporting.picture import (
    DARK,
    DASHES,
    INK,
    MARKERS,
    MIDDLE,
    Picture,
    counted,
    legend,
    panels,
    plain,
    shades,
    title,
)
from kernel_lib.reporting.sizes import dice_against_area, false_negatives_by_size, mask_areas

__all__ = [
    "Example",
    "Picture",
    "augmentations",
    "dice_against_area",
    "examples",
    "false_negatives_by_size",
    "folds",
    "learning_curves",
    "mask_areas",
    "scores",
    "share_nonempty",
    "threshold_surface",
]


def learning_curves(logs: Mapping[str, Sequence[Mapping[str, Any]]]) -> Picture:
    """Losses, held-out dice (0–1) and rate by epoch, a line a run; kept epochs are marked.

    `logs` holds the lines of each run's or fold's log: epoch, lr, train_loss, val_loss, dice,
    dice_half, dice_nonempty, images_per_second, best. What a line lacks is not drawn.
    """
    logs = {name: list(lines) for name, lines in logs.items() if len(lines)}
    if not logs:
        return Picture(None, "No learning curve: no epoch has ended yet.")
    figure, axes = panels(2, 2, height=2.9)
    (loss, score), (nonempty, rate) = axes
    for place, (name, lines) in enumerate(logs.items()):
        look = {"color": shades(len(logs))[place], "marker": ".", "markersize": 6}
        if len(logs) > 1:  # dashes first, then markers: no two runs differ in colour alone
            look["linestyle"] = DASHES[place % len(DASHES)]
        if len(logs) > len(DASHES):
            marker = MARKERS[place // len(DASHES) % len(MARKERS)]
            look |= {"marker": marker, "markersize": 4}
        epochs = _column(lines, "epoch")
        faint = {**look, "linewidth": 0.9, "markersize": 3, "alpha": 0.75}
        loss.plot(epochs, _column(lines, "train_loss"), **faint)
        loss.plot(epochs, _column(lines, "val_loss"), linewidth=2, label=plain(name), **look)
        kept = np.array([bool(line.get("best")) for line in lines])
        for one, key in ((score, "dice"), (nonempty, "dice_nonempty")):
            values = _column(lines, key)
            one.plot(epochs, values, linewidth=2, **look)
            ring = {"s": 60, "facecolors": "none", "edgecolors": INK, "linewidths": 1.3}
            label = "kept at its end" if one is score and not place else None
            one.scatter(epochs[kept], values[kept], zorder=3, label=label, **ring)
        half = "probability > 0.5" if not place else None
        score.plot(epochs, _column(lines, "dice_half"), label=half, **faint)
        rate.plot(epochs, _column(lines, "lr"), linewidth=1.5, **look)
    title(loss, "Loss: held out (thick), training (thin)", x="epoch", y="loss")
    title(score, "Held-out dice at its best threshold (thick)", x="epoch", y="mean dice")
    title(nonempty, "Held-out dice of non-empty images", x="epoch", y="mean dice")
    title(rate, "Learning rate", x="epoch", y="rate")
    for one in axes.flat:
        one.xaxis.get_major_locator().set_params(integer=True)
    if len(logs) <= len(DASHES):
        legend(loss)
    elif len(logs) <= 3 * len(DASHES):  # of more the names would fill the picture
        figure.legend(*loss.get_legend_handles_labels(), loc="outside lower center", ncols=2,
                      frameon=False, fontsize=7.5)  # fmt: skip
    legend(score, loc="lower right")
    return Picture(figure, " ".join(_epochs_read(name, lines) for name, lines in logs.items()))


def _epochs_read(name: str, lines: Sequence[Mapping[str, Any]]) -> str:
    epochs, dice = _column(lines, "epoch"), _column(lines, "dice")
    text = f"{name}: {counted(len(lines), 'epoch')}"
    if np.isfinite(dice).any():
        at = int(np.nanargmax(dice))
        text += f", best held-out dice {dice[at]:.4f} in epoch {epochs[at]:.0f}"
        half, nonempty = (_column(lines, key)[at] for key in ("dice_half", "dice_nonempty"))
        if np.isfinite(half):
            text += f" ({half:.4f} at probability > 0.5)"
        if np.isfinite(nonempty):
            text += f", {nonempty:.4f} on non-empty images"
    losses = [_column(lines, key)[-1] for key in ("train_loss", "val_loss")]
    if all(np.isfinite(losses)):
        text += f"; last loss {losses[0]:.4f} in training, {losses[1]:.4f} held out"
    speed = _column(lines, "images_per_second")
    if np.isfinite(speed).any():
        text += f"; {np.nanmedian(speed):.1f} images/s"
    return text + "."


def threshold_surface(result: Any) -> Picture:
    """Mean dice (0–1) over all pairs bottom ≤ top, each with its best area; peak and choice marked.

    Takes a SearchResult of `postprocess.thresholds`; a search of one threshold is drawn as a line.
    """
    surface = np.asarray(result.surface, dtype=np.float64)
    if not np.isfinite(surface).any():
        return Picture(None, "No surface of thresholds: nothing was searched.")
    figure, axes = panels(1, 1, width=7.2, height=5.2)
    one = axes[0, 0]
    rules = (("peak", result.triplet, "*", 190), ("chosen", result.chosen, "o", 90))
    if np.isfinite(surface[~np.eye(len(surface), dtype=bool)]).any():
        _draw_surface(figure, one, surface, result)
        for name, rule, marker, area in rules:
            mark = {"marker": marker, "s": area, "edgecolors": "white", "facecolors": INK}
            one.scatter(rule.bottom, rule.top, label=name, zorder=3, **mark)
        title(one, "Mean dice in sample", x="bottom: the mask", y="top: the decision")
        legend(one, loc="lower right")
    else:
        thresholds = (np.arange(len(surface)) + 0.5) / 255
        one.plot(thresholds, np.diag(surface), color=DARK, linewidth=2)
        values = (result.score, result.chosen_score)
        for (name, rule, marker, area), value in zip(rules, values, strict=True):
            one.scatter(rule.top, value, marker=marker, s=area, color=INK, label=name, zorder=3)
        title(one, "Mean dice in sample, at each threshold's best area", x="threshold", y="dice")
        legend(one)
    return Picture(
        figure,
        f"The peak, {result.score:.4f}, lies at {result.triplet}; chosen from the plateau "
        f"around it is {result.chosen}, with {result.chosen_score:.4f}. "
        + _plateau_read(result.plateau),
    )


def _draw_surface(figure: Any, axes: Axes, surface: np.ndarray, result: Any) -> None:
    top = float(np.nanmax(surface))
    # Only the upper part is told apart: the slopes towards "everything" would eat all the colours.
    floor = max(float(np.nanmin(surface)), top - 0.06)
    seen = {"cmap": "cividis", "vmin": min(floor, top - 1e-6), "vmax": top}
    image = axes.imshow(surface, origin="lower", extent=(0, 1, 0, 1), aspect="equal", **seen)
    figure.colorbar(image, ax=axes, label="mean dice", extend="min", shrink=0.9)
    within = (result.plateau or {}).get("within")
    if within and np.nanmin(surface) < top - within:
        at = (np.arange(len(surface)) + 0.5) / len(surface)
        look = {"colors": "white", "linewidths": 1.1, "linestyles": "--"}
        axes.contour(at, at, np.nan_to_num(surface, nan=-1.0), [top - within], **look)
    axes.grid(False)


def _plateau_read(plateau: Mapping[str, Any] | None) -> str:
    if not plateau:
        return "Nothing is known of the plateau."
    (top, bottom), (low, high) = plateau["top"], plateau["bottom"]
    area = plateau["min_area_px"]
    return (
        f"Within {plateau['within']:.4f} of the peak (dashed) lie rules with top {top:.2f} to "
        f"{bottom:.2f}, bottom {low:.2f} to {high:.2f} and areas of {area[0]:,} to {area[1]:,} "
        f"{AREA_UNIT}."
    )


def share_nonempty(oof: Any, test: Any = None) -> Picture:
    """Shares (0–1) of images with a mask: true, predicted out of fold, predicted on test.

    `oof` is an HonestReport and `test` a TestSummary of `postprocess`, or mappings with their
    fields: share_true, share_predicted, share_interval; share_predicted, share_expected, warnings.
    """
    rows = [
        ("truth, out of fold", _number(oof, "share_true"), None),
        ("predicted, out of fold", _number(oof, "share_predicted"), _pair(oof, "share_interval")),
    ]
    if test is not None:
        expected = _pair(test, "share_expected")
        rows.append(("predicted, test", _number(test, "share_predicted"), None))
        if expected:
            rows.append(("expected on test", sum(expected) / 2, expected))
    rows = [row for row in rows if math.isfinite(row[1])]
    if not rows:
        return Picture(None, "No shares of non-empty images: nothing was predicted yet.")
    figure, axes = panels(1, 1, height=0.9 + 0.45 * len(rows))
    _points(axes[0, 0], rows, hollow={"expected on test"})
    title(axes[0, 0], "Share of images with a mask", x="share of images")
    text = "; ".join(
        f"{name}: {value:.1%}" + (f" ({low_high[0]:.1%} to {low_high[1]:.1%})" if low_high else "")
        for name, value, low_high in rows
        if name != "expected on test"
    )
    warnings = [str(one) for one in (_field(test, "warnings") or ())] if test is not None else []
    return Picture(figure, " ".join([f"Images with a mask: {text}.", *warnings]))


def scores(honest: Any, is_honest: bool = True) -> Picture:
    """Mean dice (0–1) of all-empty, probability > 0.5, the rule in sample, and the honest score.

    `honest` is a HonestReport of `postprocess`, or a mapping with its fields, whose honest
    score is said not to be that unless `is_honest`.
    """
    kinds = (
        ("all empty", "all_empty"),
        ("probability > 0.5", "above_half"),
        ("searched rule, in sample", "in_sample"),
        ("searched rule, honest" if is_honest else "searched rule, NOT HONEST", "honest"),
    )
    found = [(name, _field(honest, key)) for name, key in kinds]
    rows = [(name, _number(s, "dice"), _number(s, "dice_nonempty")) for name, s in found if s]
    rows = [row for row in rows if math.isfinite(row[1])]
    if not rows:
        return Picture(None, "No scores: nothing was predicted out of fold yet.")
    interval = _pair(honest, "interval")
    figure, axes = panels(1, 2, height=2.6)
    left, right = axes[0]
    bars = [(name, dice, interval if "honest" in name.lower() else None) for name, dice, _ in rows]
    _points(left, bars)
    _points(right, [(name, nonempty, None) for name, _, nonempty in rows])
    right.set_yticklabels([])
    title(left, "All images", x="mean dice")
    title(right, "Images with a true mask", x="mean dice")
    parts = [f"{name} {dice:.4f} ({_as_text(nonempty)})" for name, dice, nonempty in rows]
    text = f"Mean dice, and beside it that of non-empty images: {', '.join(parts)}."
    if interval:
        text += f" Its 95 % interval is {interval[0]:.4f} to {interval[1]:.4f}."
    return Picture(figure, text)


def folds(table: pd.DataFrame) -> Picture:
    """Images, share of positives and median mask area of each fold, to show that they are even.

    Shapes: table as `data.folds.load` gives it.
    """
    if table.empty:
        return Picture(None, "No folds: the table of folds is empty.")
    even = balance(table)
    figure, axes = panels(1, 3, height=2.7)
    kinds = (
        ("images", "Images", "{:,.0f}"),
        ("positive_share", "Share with a mask", "{:.1%}"),
        ("median_area_px_1024", f"Median mask area, {AREA_UNIT}", "{:,.0f}"),
    )
    names = [str(fold) for fold in even.index]
    for one, (key, text, form) in zip(axes[0], kinds, strict=True):
        values = even[key].to_numpy(float)
        one.bar(names, np.nan_to_num(values), color=DARK, width=0.65)
        for place, value in enumerate(values):
            shown = form.format(value) if math.isfinite(value) else "none"
            at = (place, value if math.isfinite(value) else 0)
            style = {"textcoords": "offset points", "xytext": (0, 2), "ha": "center"}
            one.annotate(shown, at, fontsize=8, **style)
        one.margins(y=0.12)
        title(one, text, x="fold")
    shares, median = even["positive_share"], even["median_area_px_1024"]
    return Picture(
        figure,
        f"{counted(len(table), 'image')} of {counted(int(even['groups'].sum()), 'group')} in "
        f"{counted(len(even), 'fold')} of {even['images'].min():,} to {even['images'].max():,} "
        f"images; {shares.min():.1%} to {shares.max():.1%} have a mask, of a median area of "
        f"{_as_text(median.min(), ',.0f')} to {_as_text(median.max(), ',.0f')} {AREA_UNIT}.",
    )


def _points(
    axes: Axes, rows: Sequence[tuple[str, float, tuple | None]], hollow: set[str] | None = None
) -> None:
    """A row a value, told apart by marker, with its interval as a bar; the first on top."""
    for place, (name, value, interval) in enumerate(rows):
        y = len(rows) - 1 - place
        if interval:
            axes.plot(interval, [y, y], color=MIDDLE, linewidth=5, solid_capstyle="butt")
        if name in (hollow or ()) or not math.isfinite(value):
            continue
        axes.plot(value, y, MARKERS[place % len(MARKERS)], color=DARK, markersize=8)
        style = {"textcoords": "offset points", "xytext": (0, 8), "ha": "center"}
        axes.annotate(f"{value:.3f}", (value, y), fontsize=8.5, color=INK, **style)
    names = [plain(name) for name, _, _ in rows]
    axes.set_yticks(range(len(rows) - 1, -1, -1), names)
    axes.set_ylim(-0.6, len(rows) - 0.3)
    axes.margins(x=0.15)


def _column(lines: Sequence[Mapping[str, Any]], key: str) -> np.ndarray:
    values = (line.get(key) for line in lines)
    return np.array([math.nan if value is None else float(value) for value in values])


def _field(source: Any, name: str) -> Any:
    return source.get(name) if isinstance(source, Mapping) else getattr(source, name, None)


def _number(source: Any, name: str) -> float:
    value = _field(source, name)
    return math.nan if value is None else float(value)


def _pair(source: Any, name: str) -> tuple[float, float] | None:
    """Both ends of an interval, None where it is missing or not finite."""
    value = _field(source, name)
    if value is None or any(end is None or not math.isfinite(end) for end in value):
        return None
    return float(value[0]), float(value[1])


def _as_text(value: float, form: str = ".4f") -> str:
    return format(value, form) if math.isfinite(value) else "none"
