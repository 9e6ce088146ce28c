"""The report's radiographs with masks, and how far members' masks agree."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from kernel_lib.data import images, rle
from kernel_lib.data.table import Source
from kernel_lib.inference.ensemble_maps import combined_mask
from kernel_lib.notebook import bar
from kernel_lib.postprocess.units import AREA_UNIT, FULL_AREA
from kernel_lib.reporting import agreement, overlays
from kernel_lib.reporting.agreement import Agreement
from kernel_lib.reporting.picture import Picture
from kernel_lib.reporting.report import Section
from kernel_lib.workers import each

if TYPE_CHECKING:
    from kernel_lib.stages.report import ReportData

SHOWN = 6  # images of a kind
# Each mask is a map enlarged to its image's size, some 2 ms: ten seconds at the most.
MOST_IMAGES, MOST_MASKS = 1000, 4000


def out_of_fold(data: ReportData, source: Source) -> list[Section]:
    """Return sections of radiographs: false negatives, lowest and highest Dice, false positives.

    Each mask is that of the choice which scored the image, made without it; beside it the map of
    the members' mean.
    """
    sections, per_image = [], data.per_image
    candidates, scored = data.decision.candidates, data.decision.scores.kept
    choice_of_part = {rule.fold: rule.choice for rule in scored.rules}
    paths = dict(zip(source.train["image_id"], source.train["path"], strict=True))
    positive = per_image[per_image["truth_px"] > 0]
    kinds = {
        "Largest false negatives": positive[positive["predicted_px"] == 0].nlargest(
            SHOWN, "truth_px"
        ),
        "Lowest-Dice predictions": positive[positive["predicted_px"] > 0].nsmallest(SHOWN, "dice"),
        "Highest-Dice predictions": positive[positive["predicted_px"] > 0].nlargest(SHOWN, "dice"),
        "Largest false positives": per_image[
            (per_image["truth_px"] == 0) & (per_image["predicted_px"] > 0)
        ].nlargest(SHOWN, "predicted_px"),
    }
    truth = data.folds.set_index("image_id")
    for title, rows in kinds.items():
        shown = []
        for row in rows[rows["image_id"].isin(paths)].itertuples():
            label = truth.loc[row.image_id]
            shape = (int(label["height"]), int(label["width"]))
            ensemble_maps, choice = data.candidate_maps[row.fold], choice_of_part[row.part]
            weights = choice.weights or candidates.weights
            prob, _ = ensemble_maps.full_map(row.image_id, shape, weights)
            shown.append(
                overlays.Example(
                    image_id=row.image_id,
                    image=images.read(paths[row.image_id]),
                    truth=rle.decode(label["rle"], shape),
                    prob=prob,
                    mask=combined_mask(ensemble_maps, row.image_id, shape, choice, weights),
                    caption=f"Dice {row.dice:.2f}, ground truth {row.truth_px:,.0f} {AREA_UNIT}",
                )
            )
        sections.append(Section(title, overlays.examples(shown)))
    return sections


def on_test(submitted: Mapping[str, str], source: Source) -> Picture:
    """Draw the first test images with a mask; `submitted` holds the RLE of each image."""
    shown = []
    for image_id, path in source.test[["image_id", "path"]].itertuples(index=False):
        if len(shown) < SHOWN and submitted.get(image_id, rle.EMPTY) != rle.EMPTY:
            image = images.read(path)
            mask = rle.decode(submitted[image_id], image.shape)
            area = f"{mask.sum() * FULL_AREA / mask.size:,.0f} {AREA_UNIT}"
            shown.append(overlays.Example(image_id, image, None, None, mask, area))
    return overlays.examples(shown)


def member_agreement(data: ReportData, most: int = MOST_IMAGES) -> Agreement:
    """Compare the members' own masks of at most `most` held-out images; of one member nothing.

    Each member's rule is its own where members have rules, else the one of their mean.
    """
    members = data.decision.ensemble.members
    n, choice, folds = len(members), data.decision.choice, data.folds
    if n < 2:
        return agreement.measure([members[0].run], [], 0, "its rule")
    held = {fold: set(maps.archives[0].ids) for fold, maps in data.maps.items()}
    is_held = [
        image_id in held.get(fold, ())
        for image_id, fold in zip(folds["image_id"], folds["fold"], strict=True)
    ]
    held_out = folds[is_held]
    rows = evenly(len(held_out), max(1, min(most, MOST_MASKS // n)))
    rules = choice.rules or (choice.triplet,) * n

    def masks(image: Any) -> tuple[list[rle.Runs], rle.Runs]:
        shape = (image.height, image.width)
        of_members = data.maps[image.fold].member_mask_runs(image.image_id, shape, rules)
        return of_members, rle.parse(image.rle, shape)

    compared = list(held_out.iloc[rows].itertuples(index=False))
    done = bar(each(masks, compared), total=len(compared), desc="agreement", unit="image")
    how = "its own rule" if choice.rules else "the rule of their mean"
    found = agreement.measure([m.run for m in members], done, len(held_out), how)
    return replace(found, image_ids=tuple(image.image_id for image in compared))


def evenly(n: int, most: int) -> np.ndarray:
    """Return at most `most` of n places, evenly spread, the first and the last among them."""
    return np.unique(np.linspace(0, n - 1, min(n, most)).round().astype(int))
