"""When to ask a radiologist: uncertainty of an image's mask, and the dice of the images kept.

The least certain images are referred to a person; the others keep the ensemble's mask. The scale of
a measure of uncertainty, and which of several is used, are determined on other folds.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from kernel_lib.postprocess.histograms import Stacked
from kernel_lib.postprocess.metrics import LEVEL, Interval, Resampler
from kernel_lib.postprocess.nested_cv import held_out
from kernel_lib.postprocess.triplet import Triplet, first_level
from kernel_lib.postprocess.units import FULL_AREA

SHARES = (0.05, 0.1, 0.2, 0.3)  # of the images, referred


@dataclass(frozen=True)
class Referred:
    """A share of the images referred: mean dice (0–1) of those kept, compared with baselines."""

    share: float
    n_kept: int
    dice: float
    interval: Interval  # of `dice`, over patients
    random: float  # the same if images are referred at random
    oracle: float  # and by their true dice, which is unknown in practice
    empty: float  # mean dice of those kept without any mask
    positives: float  # share of the positive images that is referred, 0–1


@dataclass(frozen=True)
class Referral:
    """Risk-coverage curves of N images: entry k is the mean dice of the N − k most certain ones."""

    measures: tuple[str, ...]
    chosen: tuple[str, ...]  # the measure of each part, chosen on the others
    dice: Mapping[str, np.ndarray]  # (N,) by each measure
    dice_chosen: np.ndarray  # (N,) by the measure of each part
    dice_oracle: np.ndarray
    aurc: Mapping[str, float]  # area under the risk-coverage curve, by each measure
    aurc_chosen: float
    aurc_oracle: float
    aurc_random: float  # the mean risk of all images
    at: tuple[Referred, ...]  # by SHARES
    resampled: str  # what the intervals draw, 'patients' or 'images'


def measure(
    dice: np.ndarray,
    positive: np.ndarray,
    uncertainty: Mapping[str, np.ndarray],
    part: np.ndarray,
    groups: np.ndarray,
    resampler: Resampler | None = None,
) -> Referral | None:
    """Return what referring the least certain images gains, by one or several measures.

    Row p of a measure holds the uncertainty of all images as determined without the p-th part:
    recalibrated, or by a rule chosen, on the others. It is scaled to the share of those others that
    are more certain. Each part uses the measure with the lowest AURC on the others. None if a part
    has no others.

    Shapes: dice (N,) nested cross-validated, positive (N,) bool, uncertainty (parts, N) each with
    parts ascending, part and groups (N,).
    """
    names = tuple(uncertainty)
    scaled = {name: np.empty(len(dice)) for name in names}
    chosen, by_chosen = [], np.empty(len(dice))
    for at, (_, inside, outside) in enumerate(held_out(part, groups)):
        if not outside.any():
            return None
        area = {}
        for name in names:
            known = uncertainty[name][at]
            scaled[name][inside] = share_below(known[outside], known[inside])
            area[name] = aurc(1 - dice[outside], known[outside])
        chosen.append(min(names, key=area.__getitem__))  # the first of equal ones
        by_chosen[inside] = scaled[chosen[-1]][inside]
    curves = {name: 1 - risk_coverage(1 - dice, scaled[name])[::-1] for name in names}
    oracle = 1 - risk_coverage(1 - dice, 1 - dice)[::-1]
    return Referral(
        measures=names,
        chosen=tuple(chosen),
        dice=curves,
        dice_chosen=1 - risk_coverage(1 - dice, by_chosen)[::-1],
        dice_oracle=oracle,
        aurc={name: float(1 - curve.mean()) for name, curve in curves.items()},
        aurc_chosen=aurc(1 - dice, by_chosen),
        aurc_oracle=float(1 - oracle.mean()),
        aurc_random=float(1 - dice.mean()),
        at=_at_shares(dice, positive, by_chosen, groups, resampler or Resampler()),
        resampled="patients" if len(np.unique(groups.astype(str))) < len(dice) else "images",
    )


def risk_coverage(risk: np.ndarray, uncertainty: np.ndarray) -> np.ndarray:
    """Return the mean risk (N,) of the 1, 2 … N most certain images.

    Images of equal uncertainty count with their mean risk, the expectation over their orders, so
    the order of rows does not matter.

    Shapes: risk and uncertainty (N,).
    Source: Geifman & El-Yaniv 2017, "Selective classification for deep neural networks".
    """
    _, tie = np.unique(uncertainty, return_inverse=True)
    n = np.bincount(tie)
    each = np.repeat(np.bincount(tie, risk) / n, n)
    return np.cumsum(each) / np.arange(1, len(risk) + 1)


def aurc(risk: np.ndarray, uncertainty: np.ndarray) -> float:
    """Return the area under the risk-coverage curve, the mean over 1 … N images; lower is better.

    Shapes: risk and uncertainty (N,).
    """
    return float(risk_coverage(risk, uncertainty).mean())


def share_below(known: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Return the share (M,) 0–1 of known values (N,) below each value (M,); ties count half."""
    known = np.sort(known)
    return (np.searchsorted(known, values) + np.searchsorted(known, values, "right")) / (
        2 * len(known)
    )


def margin(stats: Stacked, rule: Triplet) -> np.ndarray:
    """Return the distance (N,), in probability, of each image from gaining or losing its mask.

    It is above 0 if and only if the image has a mask: the highest level at which the image would
    still have one, minus the rule's threshold, or the label minus its threshold if that is smaller.

    Raises: ValueError if the rule has a label threshold and an image no label.
    """
    area, threshold = rule.min_area_px, rule.top
    if area == 0:  # then `top` decides nothing
        threshold = rule.bottom
    enough = np.maximum(-(-area * stats.n_px // FULL_AREA), 1)
    above = stats.hist_all[:, ::-1].cumsum(axis=1)[:, ::-1]  # pixels of a level or a higher one
    level = (above >= enough[:, None]).sum(axis=1) - 1  # −1: more area than the image has
    found = level - (first_level(threshold) - 0.5)
    if rule.label is not None:
        if not stats.has_labels:
            raise ValueError("the rule has a label threshold and an image no label")
        found = np.minimum(found, stats.label - (first_level(rule.label) - 0.5))
    return found / 255


def vote_margin(
    members: Sequence[Stacked], rules: Sequence[Triplet], at_least: int = 1
) -> np.ndarray:
    """Return the margin (N,) of the member that decides a vote: the k-th largest, k = `at_least`.

    With one member this is its `margin`.
    """
    margins = [margin(stats, rule) for stats, rule in zip(members, rules, strict=True)]
    return np.sort(margins, axis=0)[len(margins) - at_least]


def disagreement(pairs: np.ndarray) -> np.ndarray:
    """Return 1 − the mean dice (0–1) of all pairs of n members' masks, for each of N images.

    Shapes: pairs (N, n, n), dice of every two members, n above 1 → (N,).
    """
    n = pairs.shape[1]
    return 1 - (pairs.sum(axis=(1, 2)) - n) / (n * (n - 1))


def _at_shares(
    dice: np.ndarray,
    positive: np.ndarray,
    uncertainty: np.ndarray,
    groups: np.ndarray,
    resampler: Resampler,
) -> tuple[Referred, ...]:
    _, tie = np.unique(uncertainty, return_inverse=True)
    _, by_dice = np.unique(1 - dice, return_inverse=True)
    _, patient = np.unique(groups.astype(str), return_inverse=True)
    random, ones = np.random.default_rng(resampler.seed), np.ones(len(dice))
    draws = np.empty((resampler.n_bootstrap, len(SHARES)))
    n_patients = patient.max() + 1
    for at in range(resampler.n_bootstrap):
        drawn = np.bincount(random.integers(n_patients, size=n_patients), minlength=n_patients)
        draws[at] = _mean_kept(dice, tie, drawn[patient])
    low, high = np.quantile(draws, [(1 - LEVEL) / 2, (1 + LEVEL) / 2], axis=0)
    kept, oracle = _mean_kept(dice, tie, ones), _mean_kept(dice, by_dice, ones)
    n_kept, share_positive = _n_kept(len(dice)), _mean_kept(positive.astype(float), tie, ones)
    n_positive = positive.sum() or math.nan  # of none no share is known
    positives_kept = share_positive * n_kept / n_positive
    return tuple(
        Referred(
            share, int(n_kept[k]), float(kept[k]), Interval(float(low[k]), float(high[k])),
            float(dice.mean()), float(oracle[k]), float(1 - share_positive[k]),
            float(1 - positives_kept[k]),
        )
        for k, share in enumerate(SHARES)
    )  # fmt: skip


def _n_kept(n: float) -> np.ndarray:
    """Return how many of n images are kept for each of SHARES; at least one."""
    return np.maximum(n - np.rint(n * np.array(SHARES)), 1)


def _mean_kept(values: np.ndarray, tie: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Return the mean over the images kept, for each of SHARES, each image counted `counts` times.

    Shapes: values and counts (N,), tie (N,) ranks of uncertainty. Images of a rank that is kept
    only in part count by that part.
    """
    n = np.concatenate([[0], np.bincount(tie, counts).cumsum()])
    total = np.concatenate([[0], np.bincount(tie, counts * values).cumsum()])
    n_kept = _n_kept(n[-1])
    return np.interp(n_kept, n, total) / n_kept
