"""The report's sections with scores of the held-out masks in every definition, and by subgroup."""

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
    """Return the sections on definitions and subgroups; by view, sex and age only with a source.

    No mask is decoded: counts and distances are those that the thresholds stage stored.
    """
    scored = data.decision.scores
    kept, images = scored.kept, images_of(data)
    traits, notes = _traits(images, source)
    images = subgroups.with_traits(images, traits)
    parts = subgroups.subgroups(images, traits)
    text = (
        f"Scores of the masks that scored the rule, {scores.claim(scored, scored.kept_selected)}: "
        "each image's mask is by the rule chosen without it. Different definitions do not "
        f"compare. The 95 % intervals are bootstrap intervals over {kept.resampled}; those of "
        "sensitivity, specificity, PPV and NPV are Wilson's, which treat images as independent."
    )
    if by := _auc_of(data.per_image)[1]:
        text += f" The AUC is of {by}."
    if data.distances is None:
        text += " Boundary distances are missing: run the thresholds stage, which computes them."
    rows = score_definitions.scores(images, Resampler(kept.n_bootstrap, kept.seed))
    doubts = [*notes, *subgroups.warnings(parts)]
    return [
        Section("Scores in every published definition", (text, score_definitions.as_table(rows))),
        Section("Subgroups", (subgroups.as_table(parts), *([doubts] if doubts else []))),
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
    """Return the score of which the AUC is computed, and its name; nan and "" if there is none."""
    if "label" in rows and rows["label"].notna().all():
        return rows["label"], "the classification probability"
    if "sum_prob" in rows:
        return rows["sum_prob"], "the sum of the probability map"
    return pd.Series(math.nan, rows.index), ""


def _traits(images: pd.DataFrame, source: Source | None) -> tuple[pd.DataFrame | None, list[str]]:
    """Return view, sex, age and spacing by image id (None without any), and notes on faults.

    From metadata.csv in the data folder, else from the DICOM headers. A faulty table is noted and
    not used: it was found there, not asked for, and must not stop a stage.
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
    # Patients are taken from the folds file.
    return None if traits is None else traits.drop(columns="patient", errors="ignore"), []
