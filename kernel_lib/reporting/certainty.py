"""Figures and tables on calibration, and on which images to refer to a radiologist."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from kernel_lib.postprocess.calibration import Calibration, best
from kernel_lib.postprocess.referral import Referral
from kernel_lib.reporting.picture import (
    DARK,
    DASHES,
    INK,
    LIGHT,
    MIDDLE,
    Picture,
    counted,
    label_axes,
    legend,
    panels,
    shades,
)

SCORES = {
    "label": "classification probability",
    "max_prob": "largest probability of the map",
    "sum_prob": "sum of the probability map",
}
SHOWN = 0.9  # share of the curve that is drawn: beyond, the mean of few images is mostly chance
MARGIN, DISAGREEMENT = "distance to the detection threshold", "disagreement of the members"
VIEWS = "disagreement of the views"


def reliability(calibrations: Sequence[Calibration]) -> Picture:
    """Plot the share of positive images against the predicted probability, one panel per score.

    Hollow markers before, filled ones after recalibration, the latter with 95 % intervals.
    """
    if not calibrations:
        return Picture(None, "No reliability diagram: no score is known for all images.")
    figure, grid = panels(1, len(calibrations), width=1.0 + 3.4 * len(calibrations), height=3.6)
    for axes, one in zip(grid[0], calibrations, strict=True):
        _draw_reliability(axes, one)
        label_axes(axes, SCORES[one.score].capitalize(), x="mean probability of a bin")
    grid[0, 0].set_ylabel("share of positive images")
    legend(grid[0, 0], loc="upper left")
    after = calibrations[0].after
    n = int(after.n.sum())
    prevalence = float(after.observed @ after.n / n)
    text = "; ".join(_described(one) for one in calibrations)
    return Picture(
        figure,
        f"{counted(n, 'held-out image')} in at most {_most_bins(calibrations)} bins of equal count "
        "by probability: a calibrated probability lies on the diagonal. Recalibration is by a "
        "logistic curve fitted on other folds or parts. Expected calibration error (ECE, the mean "
        f"distance from the diagonal, over images) and Brier score: {text}. The same probability "
        f"for all images, {prevalence:.3f}, has a Brier score of "
        f"{prevalence * (1 - prevalence):.4f}.",
    )


def calibration_tables(calibrations: Sequence[Calibration]) -> tuple[pd.DataFrame, ...]:
    """Return ECE and Brier score of each score, and the bins of the best one recalibrated."""
    rows = [
        (SCORES[one.score], when, measured.ece, measured.brier)
        for one in calibrations
        for when, measured in (("as it is", one.before), ("recalibrated", one.after))
        if measured is not None
    ]
    winner = best(calibrations)
    bins = winner.after
    intervals = [f"{a:.3f}–{b:.3f}" for a, b in zip(bins.low, bins.high, strict=True)]
    name = f"{SCORES[winner.score]}, recalibrated"
    columns = {"images": bins.n, name: bins.predicted.round(4)}
    columns |= {"share of positives": bins.observed.round(4), "95 %": intervals}
    scores = pd.DataFrame(rows, columns=["score", "probability", "ECE", "Brier score"])
    return scores, pd.DataFrame(columns)


def risk_coverage(referred: Referral, n_images: int) -> Picture:
    """Plot the mean Dice of the images kept against the share referred.

    `n_images` is the ensemble's number of images; the curves may be of a sample of them.
    """
    n = len(referred.dice_chosen)
    drawn = slice(max(int(SHOWN * n), 1))
    figure, grid = panels(1, 1, height=3.8)
    axes, shares = grid[0, 0], (np.arange(n) / n)[drawn]
    oracle = {"color": MIDDLE, "linewidth": 1.2, "label": "by the true Dice"}
    axes.plot(shares, referred.dice_oracle[drawn], **oracle)
    for k, name in enumerate(referred.measures):
        look = {"color": shades(len(referred.measures))[k], "linestyle": DASHES[1 + k % 4]}
        axes.plot(shares, referred.dice[name][drawn], linewidth=1.1, label=name, **look)
    chosen = {"color": DARK, "linewidth": 2.2, "label": "chosen on other folds"}
    axes.plot(shares, referred.dice_chosen[drawn], **chosen)
    axes.axhline(1 - referred.aurc_random, color=INK, linestyle=":", label="at random")
    for one in referred.at:
        axes.plot([one.share] * 2, one.interval, color=LIGHT, linewidth=4, zorder=1)
    label_axes(axes, "Images kept by the ensemble", x="share referred", y="mean Dice of the others")
    legend(axes, loc="upper left", bbox_to_anchor=(1.0, 1.0))
    of = counted(n, "image") if n == n_images else f"{n:,} images sampled from {n_images:,}"
    listed = "; ".join(
        f"{one.share:.0%} referred: {one.dice:.4f} ({one.interval.low:.4f} to "
        f"{one.interval.high:.4f}; {one.empty:.4f} without any mask, {one.oracle:.4f} if referred "
        "by their true Dice)"
        for one in referred.at
    )
    return Picture(
        figure,
        f"{of}, mean Dice {1 - referred.aurc_random:.4f}, which random referral does not change. "
        "The least certain images are referred to a radiologist. Mean Dice of the others (95 % "
        f"interval over {referred.resampled}), with {listed}. The area under the risk-coverage "
        f"curve (AURC, mean 1 − Dice over all shares) is {referred.aurc_chosen:.4f}, at random "
        f"{referred.aurc_random:.4f}, by the true Dice {referred.aurc_oracle:.4f}. The measure of "
        f"uncertainty and its scale are chosen on other folds or parts: {_chosen(referred)}.",
    )


def referral_tables(referred: Referral) -> tuple[pd.DataFrame, ...]:
    """Return the Dice of the images kept for each share referred, and the AURC of each measure."""
    rows = [
        (
            f"{one.share:.0%}", one.n_kept, round(one.dice, 4),
            f"{one.interval.low:.4f}–{one.interval.high:.4f}", round(one.random, 4),
            round(one.oracle, 4), round(one.empty, 4),
            "–" if math.isnan(one.positives) else f"{one.positives:.0%}",
        )
        for one in referred.at
    ]  # fmt: skip
    columns = ["referred", "images kept", "their Dice", "95 %", "at random", "by the true Dice",
               "their empty baseline", "positives referred"]  # fmt: skip
    taken = Counter(referred.chosen)
    areas = [(name, referred.aurc[name], taken[name]) for name in referred.measures]
    areas += [("chosen on other folds", referred.aurc_chosen, len(referred.chosen))]
    kinds = ["measure of uncertainty", "AURC", "chosen for folds"]
    return pd.DataFrame(rows, columns=columns), pd.DataFrame(areas, columns=kinds)


def entropy_by(score: str) -> str:
    """Return the name of a measure of uncertainty: entropy of the score, calibrated."""
    return f"entropy from the {SCORES[score]}"


def _draw_reliability(axes: Axes, one: Calibration) -> None:
    axes.plot([0, 1], [0, 1], color=MIDDLE, linewidth=1, linestyle=":")
    if one.before is not None:
        look = {"color": INK, "marker": "o", "markerfacecolor": "none", "linestyle": "--"}
        axes.plot(one.before.predicted, one.before.observed, label="as it is", linewidth=1, **look)
    after = one.after
    ends = np.maximum([after.observed - after.low, after.high - after.observed], 0)
    look = {"color": DARK, "marker": "s", "markersize": 5, "linewidth": 1.6, "capsize": 2}
    axes.errorbar(after.predicted, after.observed, ends, label="recalibrated", **look)
    axes.set_xlim(-0.03, 1.03)
    axes.set_ylim(-0.03, 1.03)


def _described(one: Calibration) -> str:
    before = "" if one.before is None else f"{one.before.ece:.4f} and {one.before.brier:.4f}, "
    after = f"{one.after.ece:.4f} and {one.after.brier:.4f}"
    return f"{SCORES[one.score]} {before}recalibrated {after}"


def _most_bins(calibrations: Sequence[Calibration]) -> int:
    kinds = [kind for one in calibrations for kind in (one.before, one.after) if kind is not None]
    return max(len(kind.n) for kind in kinds)


def _chosen(referred: Referral) -> str:
    n = len(referred.chosen)
    return ", ".join(f"{name} for {k} of {n}" for name, k in Counter(referred.chosen).most_common())
