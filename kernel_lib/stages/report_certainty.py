"""The report's sections on calibration, and on which images to refer to a radiologist."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from kernel_lib.postprocess import calibration, referral
from kernel_lib.postprocess.calibration import Calibration
from kernel_lib.postprocess.metrics import Resampler
from kernel_lib.postprocess.nested_cv import held_out
from kernel_lib.postprocess.referral import Referral
from kernel_lib.reporting import certainty
from kernel_lib.reporting.agreement import Agreement
from kernel_lib.reporting.report import Section

if TYPE_CHECKING:
    from kernel_lib.stages.report import ReportData

NOT_HONEST = (
    "NOT HONEST: labels of these images selected an epoch, or a member may have been trained on "
    "them. The results below are too good."
)


def sections(data: ReportData, agreement: Agreement | None = None) -> list[Section]:
    """Return both sections, or those for which the ensemble's files hold enough.

    `agreement` is that of the members, if there are several: their disagreement is known only for
    the images compared there.
    """
    scored, found = data.decision.scores, []
    caveat = () if scored.is_honest(scored.kept_selected) else (NOT_HONEST,)
    if calibrations := calibrated(data.per_image):
        parts = (certainty.reliability(calibrations), *certainty.calibration_tables(calibrations))
        found.append(Section("Calibration of the image-level probability", (*caveat, *parts)))
    if referred := referrals(data, agreement):
        picture = certainty.risk_coverage(referred, len(data.per_image))
        tables = certainty.referral_tables(referred)
        found.append(Section("When to ask a radiologist", (*caveat, picture, *tables)))
    return found


def calibrated(per_image: pd.DataFrame) -> list[Calibration]:
    """Return the calibration of each score that all images of `load_per_image` have."""
    truth, part, groups = _known(per_image)
    if groups is None:
        return []
    known = _scores(per_image)
    found = (calibration.calibrate(k, v, truth, part, groups) for k, v in known.items())
    return [one for one in found if one is not None]


def referrals(data: ReportData, agreement: Agreement | None = None) -> Referral | None:
    """Return what referring the least certain images gains; None if its inputs are missing.

    Measures are the entropy of each image-level probability, how far the image is from gaining or
    losing its mask, the disagreement of the views if all images have it and, for the images
    compared, the disagreement of the members.
    """
    per_image = data.per_image
    truth, part, groups = _known(per_image)
    if groups is None or not len(per_image):
        return None
    measures = _entropies(per_image, truth, part, groups)
    margins = _margins(data, part)
    if margins is not None:
        measures[certainty.MARGIN] = -np.abs(margins)
    rows, n_parts = np.ones(len(per_image), dtype=bool), len(np.unique(part))
    if "view_disagreement" in per_image and per_image["view_disagreement"].notna().all():
        measures[certainty.VIEWS] = np.tile(per_image["view_disagreement"], (n_parts, 1))
    if agreement is not None and agreement.image_ids:
        at = pd.Index(agreement.image_ids).get_indexer(per_image["image_id"])
        n, rows = len(agreement.names), at >= 0
        between = referral.disagreement(agreement.dice[:, :n])
        measures[certainty.DISAGREEMENT] = np.tile(between[at], (n_parts, 1))
    if not measures or not rows.any():
        return None
    kept = np.isin(np.unique(part), part[rows])
    measures = {name: values[kept][:, rows] for name, values in measures.items()}
    report = data.decision.scores.kept
    return referral.measure(
        per_image["dice"].to_numpy()[rows],
        truth[rows],
        measures,
        part[rows],
        groups[rows],
        Resampler(report.n_bootstrap, report.seed),
    )


def _known(per_image: pd.DataFrame) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """Return truth, part and group (N,) of the images; no group in files of earlier versions."""
    groups = per_image["group"].to_numpy() if "group" in per_image else None
    return (per_image["truth_px"] > 0).to_numpy(), per_image["part"].to_numpy(), groups


def _scores(per_image: pd.DataFrame) -> dict[str, np.ndarray]:
    """Return the scores (N,) that all images have."""
    there = [k for k in calibration.FEATURES if k in per_image and per_image[k].notna().all()]
    return {name: per_image[name].to_numpy() for name in there}


def _entropies(
    per_image: pd.DataFrame, truth: np.ndarray, part: np.ndarray, groups: np.ndarray
) -> dict[str, np.ndarray]:
    """Return (parts, N) entropies of all images for each score, calibrated without each part."""
    known = _scores(per_image)
    found: dict[str, list[np.ndarray]] = {name: [] for name in known}
    for _, _, outside in held_out(part, groups):
        if not outside.any():
            return {}
        for name, values in known.items():
            curve = calibration.fit(name, values[outside], truth[outside])
            found[name].append(calibration.entropy(curve(values)))
    return {certainty.entropy_by(name): np.array(rows) for name, rows in found.items()}


def _margins(data: ReportData, part: np.ndarray) -> np.ndarray | None:
    """Return (parts, N) margins of all images by each part's rule, or None.

    The maps are those of the final choice: if members and weights are chosen too, a part's own
    choice may have other maps.
    """
    at = pd.Index(data.statistics.image_ids).get_indexer(data.per_image["image_id"])
    choices: Mapping[int, object] = {r.fold: r.choice for r in data.decision.scores.kept.rules}
    if (at < 0).any():
        return None
    members = [stats.take(at) for stats in data.statistics.searched]
    found = []
    for k in np.unique(part):
        choice = choices[int(k)]
        rules = choice.rules or (choice.triplet,)
        found.append(referral.vote_margin(members, rules, choice.at_least or 1))
    return np.array(found)
