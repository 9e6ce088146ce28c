"""The report's radiographs with masks, out of fold and on test."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from kernel_lib.data import images, rle
from kernel_lib.data.table import Source
from kernel_lib.inference.ensemble_maps import combined_mask as mask_of
from kernel_lib.inference.ensemble_maps import open_maps
from kernel_lib.postprocess import submission
from kernel_lib.postprocess.units import AREA_UNIT, FULL_AREA
from kernel_lib.reporting import overlays
from kernel_lib.reporting.picture import Picture
from kernel_lib.reporting.report import Section

if TYPE_CHECKING:
    from kernel_lib.stages.report import ReportData

SHOWN = 6  # images of a kind


def out_of_fold(data: ReportData, source: Source) -> list[Section]:
    """Return sections of radiographs: false negatives, lowest and highest Dice, false positives.

    Each mask is that of the choice which scored the image, made without it; beside it the map of
    the members' mean.
    """
    found, per_image = [], data.per_image
    ensemble, scored = data.decision.candidates, data.decision.scores.kept
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
    maps_of_fold = {fold: open_maps(ensemble, data.roots, [fold], "oof") for fold in ensemble.folds}
    for title, rows in kinds.items():
        shown = []
        for row in rows[rows["image_id"].isin(paths)].itertuples():
            label = truth.loc[row.image_id]
            shape = (int(label["height"]), int(label["width"]))
            ensemble_maps, choice = maps_of_fold[row.fold], choice_of_part[row.part]
            weights = choice.weights or ensemble.weights
            prob, _ = ensemble_maps.full_map(row.image_id, shape, weights)
            shown.append(
                overlays.Example(
                    image_id=row.image_id,
                    image=images.read(paths[row.image_id]),
                    truth=rle.decode(label["rle"], shape),
                    prob=prob,
                    mask=mask_of(ensemble_maps, row.image_id, shape, choice, weights),
                    caption=f"Dice {row.dice:.2f}, ground truth {row.truth_px:,.0f} {AREA_UNIT}",
                )
            )
        found.append(Section(title, overlays.examples(shown)))
    return found


def on_test(path: Path, source: Source) -> Picture:
    """The first test images with a mask in the submission."""
    table = submission.by_image(path)
    shown = []
    for image_id, path in source.test[["image_id", "path"]].itertuples(index=False):
        if len(shown) < SHOWN and table.get(image_id, "-1") != "-1":
            image = images.read(path)
            mask = rle.decode(table[image_id], image.shape)
            shown.append(
                overlays.Example(
                    image_id,
                    image,
                    None,
                    None,
                    mask,
                    f"{mask.sum() * FULL_AREA / mask.size:,.0f} {AREA_UNIT}",
                )
            )
    return overlays.examples(shown)
