"""Archives of maps to numbers an image: everything that a claim may compare."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
import pandas as pd

from kernel_lib.artifacts import maps
from kernel_lib.artifacts.maps import Maps
from kernel_lib.data import rle
from kernel_lib.inference import out_of_fold
from kernel_lib.postprocess import votes
from kernel_lib.postprocess.histograms import Stacked, gate_by_sum, per_image_dice, stack
from kernel_lib.postprocess.metrics import Resampler, dice_of_counts
from kernel_lib.postprocess.nested_cv import ABOVE_HALF, NestedCVReport, score_rule
from kernel_lib.postprocess.search import SearchOptions
from kernel_lib.postprocess.triplet import apply_rule
from kernel_lib.postprocess.units import FULL_AREA

Columns = dict[str, list[float]]  # by name, one value an evaluation image, in the table's order
Gate = Literal["none", "label", "sum"]


def refuse_seen(archives: Sequence[Maps], truth: pd.DataFrame) -> None:
    """Refuse a member that saw an evaluation image, or another one of its patient."""
    for archive in archives:
        out_of_fold.refuse_seen(archive, truth, allow_unknown_past=False)


def of_mean(
    archives: Sequence[Maps],
    truth: pd.DataFrame,
    gate: Gate = "none",
    labels: Maps | None = None,
    *,
    single: bool = False,
) -> Columns:
    """Return numbers of the mean of archives; of a classifier, only those of its label.

    `dice`, `area_px` and `rle_length` are of masks by rules that were chosen on other patients'
    images (`single`: rules of one threshold and one area), `half` by p > 0.5. `labels` is the
    archive whose labels gate the masks, where it is not the first.
    """
    labels = labels or archives[0]
    columns: Columns = {}
    if labels.has_labels:
        columns["label"] = [labels.label(image_id) for image_id in truth["image_id"]]
    if not archives[0].has_maps:
        return columns
    levels = mean_levels(archives, truth)
    stats = statistics(levels, truth, columns.get("label") if gate == "label" else None)
    if gate == "sum":
        stats = gate_by_sum(stats)
    report = _honest(stats, truth, gated=gate != "none", single=single)
    columns |= {
        "dice": report.per_image["dice"].tolist(),
        "half": per_image_dice(stats, ABOVE_HALF).tolist(),
        "area_px": report.per_image["area_px"].tolist(),
        "sum_prob": report.per_image["sum_prob"].tolist(),
    }
    masks = _masks(levels, stats, report)
    columns["rle_length"] = [len(rle.encode(mask)) for mask in masks]
    return columns


def of_vote(archives: Sequence[Maps], truth: pd.DataFrame) -> Columns:
    """Return numbers of a majority vote of masks, each by its member's own rules."""
    many = []
    for archive in archives:
        levels = mean_levels([archive], truth)
        stats = statistics(levels, truth)
        masks = _masks(levels, stats, _honest(stats, truth, gated=False, single=False))
        many.append([rle.runs_of(mask) for mask in masks])
    columns: Columns = {"dice": [], "area_px": [], "rle_length": []}
    for mine, image in zip(zip(*many, strict=True), truth.itertuples(), strict=True):
        kept = votes.at_least(mine, len(mine) // 2 + 1)
        columns["dice"].append(votes.dice(kept, rle.parse(image.rle)))
        columns["area_px"].append(rle.area(kept) * FULL_AREA / (image.height * image.width))
        columns["rle_length"].append(len(rle.to_string(kept)))
    return columns


def of_truth(truth: pd.DataFrame) -> Columns:
    """Return the true areas in px at 1024², and dice of predicting nothing anywhere."""
    px = np.array([rle.area(rle.parse(text)) for text in truth["rle"]])
    full = px * (FULL_AREA / (truth["height"] * truth["width"]).to_numpy())
    return {"true_area_px": full.tolist(), "dice": dice_of_counts(0, 0, px).tolist()}


def mean_levels(archives: Sequence[Maps], truth: pd.DataFrame) -> list[np.ndarray]:
    """Return the mean map of every image, each (H, W) uint8 at the image's own size."""
    rows = truth[["image_id", "height", "width"]].itertuples(index=False, name=None)
    return [
        maps.at_shape(maps.mean([archive[name] for archive in archives]), (height, width))
        for name, height, width in rows
    ]


def statistics(
    levels: Sequence[np.ndarray], truth: pd.DataFrame, labels: Sequence[float] | None = None
) -> Stacked:
    """Return the histograms of the maps, with labels (0–1) where there are any."""
    each = [None] * len(levels) if labels is None else labels
    rows = zip(levels, truth["rle"], each, strict=True)
    return stack(
        maps.statistics(level_map, text, level_map.shape, p) for level_map, text, p in rows
    )


def _honest(stats: Stacked, truth: pd.DataFrame, gated: bool, single: bool) -> NestedCVReport:
    """Score every image by a rule that was chosen on four fifths of the other patients."""
    return score_rule(
        stats,
        truth["image_id"].tolist(),
        np.zeros(len(truth), int),
        truth["group"].tolist(),
        SearchOptions(single=single, label=gated),
        Resampler(n_bootstrap=1),  # intervals are of differences, and made elsewhere
    )


def _masks(
    levels: Sequence[np.ndarray], stats: Stacked, report: NestedCVReport
) -> list[np.ndarray]:
    """Return each image's mask (H, W) 0/1 by the rule of its part."""
    rules = {rule.fold: rule.triplet for rule in report.rules}
    rows = zip(levels, stats.label, report.per_image["part"], strict=True)
    masks = []
    for level_map, label, part in rows:
        rule = rules[part]
        label = None if rule.label is None else int(label)
        masks.append(apply_rule(level_map, rule, label))
    return masks
