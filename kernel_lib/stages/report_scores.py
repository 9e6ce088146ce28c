"""The report's scores in every definition, and of subgroups, of the held-out masks."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from kernel_lib.data import metadata
from kernel_lib.data.table import Source
from kernel_lib.errors import InputError
from kernel_lib.postprocess import score_definitions, subgroups
from kernel_lib.postprocess.metrics import Resampler
from kernel_lib.postprocess.units import FULL_AREA
from kernel_lib.reporting.report import Section
from kernel_lib.stages import scores

if TYPE_CHECKING:
    from kernel_lib.stages.report import ReportData


def sections(data: ReportData, source: Source | None) -> list[Section]:
    """Return the table of definitions and that of subgroups; of those of metadata with a source.

    No masks are drawn: counts and distances are those that the thresholds stage kept.
    """
    scored = data.decision.scores
    kept, images = scored.kept, images_of(data)
    traits, notes = _traits(images, source)
    images = subgroups.with_traits(images, traits)
    found = subgroups.subgroups(images, traits)
    text = (
        f"Of the masks that scored the rule, {scores.claim(scored, scored.kept_selected)}: each "
        "image's is of the rule chosen without it. Scores in different definitions do not compare. "
        f"Intervals are 95 %, drawn over {kept.resampled}; of sensitivity, specificity, PPV and "
        "NPV they are Wilson's, which take images as independent."
    )
    if by := _auc_of(data.per_image)[1]:
        text += f" The AUC is that of {by}."
    if data.distances is None:
        text += " Distances between boundaries are missing: the thresholds stage writes them."
    rows = score_definitions.scores(images, Resampler(kept.n_bootstrap, kept.seed))
    doubts = [*notes, *subgroups.warnings(found)]
    return [
        Section("Scores in every published definition", (text, score_definitions.as_table(rows))),
        Section("Subgroups", (subgroups.as_table(found), *([doubts] if doubts else []))),
    ]


def images_of(data: ReportData) -> pd.DataFrame:
    """Return the scored images as a table of `score_definitions`, counts in pixels of the image."""
    rows, shapes = data.per_image.reset_index(drop=True), data.folds.set_index("image_id")
    shapes = shapes.loc[rows["image_id"]]
    n_px = (shapes["height"] * shapes["width"]).to_numpy()
    predicted, truth = (
        np.rint(rows[name] * (n_px / FULL_AREA)).astype(np.int64)
        for name in ("predicted_px", "truth_px")
    )
    images = pd.DataFrame(
        {
            "image_id": rows["image_id"],
            "group": rows["group"] if "group" in rows else rows["image_id"],
            "shared_px": np.rint(rows["dice"] * (predicted + truth) / 2).astype(np.int64),
            "predicted_px": predicted,
            "truth_px": truth,
            "n_px": n_px,
            "probability": _auc_of(rows)[0],
            "mm_per_px": math.nan,
        }
    )
    if data.distances is None:
        return images.assign(hd95_px=math.nan, assd_px=math.nan)
    return images.merge(data.distances, on="image_id", how="left")


def _auc_of(rows: pd.DataFrame) -> tuple[pd.Series, str]:
    """Return what separates images with a mask from those without, and its name, "" without any."""
    if "label" in rows and rows["label"].notna().all():
        return rows["label"], "the classification probability"
    if "sum_prob" in rows:
        return rows["sum_prob"], "the sum of the probability map"
    return pd.Series(math.nan, rows.index), ""


def _traits(images: pd.DataFrame, source: Source | None) -> tuple[pd.DataFrame | None, list[str]]:
    """Return view, sex, age and spacing by image id, None without any, and notes on faults.

    Of metadata.csv in the data folder, else of the headers. A fault of a table that nobody asked
    for does not end a stage.
    """
    if source is None:
        return None, []
    csv = metadata.beside(source.root)
    if csv is None:
        paths = dict(zip(source.train["image_id"], source.train["path"], strict=True))
        here = [image_id for image_id in images["image_id"] if image_id in paths]
        traits = metadata.of_headers(here, [paths[image_id] for image_id in here])
    else:
        try:
            traits = metadata.read(csv)
            metadata.check_ids(csv, traits, images["image_id"])
        except InputError as error:
            return None, [f"not used: {error}"]
    # Patients are those of the folds.
    return None if traits is None else traits.drop(columns="patient", errors="ignore"), []
