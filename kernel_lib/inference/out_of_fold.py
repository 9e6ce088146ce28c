"""Predictions of held-out images by members that never saw them, as input of every search."""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from kernel_lib.artifacts import fold_run, maps
from kernel_lib.artifacts.decision import Decision
from kernel_lib.artifacts.ensemble import Ensemble
from kernel_lib.artifacts.folds_file import LeftOut
from kernel_lib.artifacts.lineage import stated_lineage
from kernel_lib.data import rle
from kernel_lib.errors import InputError
from kernel_lib.inference.ensemble_maps import (
    EnsembleMaps,
    combined_mask,
    open_maps,
    vote_function,
)
from kernel_lib.notebook import bar
from kernel_lib.postprocess.histograms import Stacked, Statistics, gate_by_sum, stack
from kernel_lib.postprocess.nested_cv_report import NestedCVReport
from kernel_lib.postprocess.strategies import Choice
from kernel_lib.postprocess.surface_distance import SurfaceDistance, surface_distance
from kernel_lib.postprocess.triplet import Triplet


@dataclass(frozen=True, eq=False)
class OutOfFold:
    """Predictions of all held-out images by the members of their fold; rows as in `table`."""

    ensemble: Ensemble
    table: pd.DataFrame  # image_id, fold, group, height, width, area_px, rle
    ensemble_maps: Mapping[int, EnsembleMaps]  # by fold
    past_known: bool  # False: some member's lineage is not fully known
    selected: bool  # whether the labels of these images selected a member's epoch
    _kept: dict[tuple[float, ...], Stacked] = field(default_factory=dict, init=False, repr=False)

    @property
    def stats(self) -> Stacked:
        """Statistics of all images under the ensemble's weights, with the predicted label."""
        return self.statistics(self.ensemble.weights)

    def statistics(self, weights: Sequence[float]) -> Stacked:
        """Return `stats` under other weights, 0 to leave a member out; each is computed once."""
        weights = tuple(weights)
        if weights not in self._kept:

            def one(image: Any) -> Statistics:
                ensemble_maps = self.ensemble_maps[image.fold]
                level_map = ensemble_maps.level_map(image.image_id, weights)
                label = ensemble_maps.label(image.image_id, weights)
                shape = (image.height, image.width)
                return maps.statistics(level_map, image.rle, shape, label)

            stats = stack(self._each(range(len(self.table)), one, "maps"))
            # int32 halves memory: greedy search keeps one for each set of weights that it tries.
            self._kept[weights] = _with_counts(stats, np.int32)
        return _with_counts(self._kept[weights], np.int64)

    def gated(self, weights: Sequence[float]) -> Stacked:
        """Return `statistics` with the gating label: for GATE sum, the level of the map's sum."""
        stats = self.statistics(weights)
        return gate_by_sum(stats) if self.ensemble.gate == "sum" else stats

    def view_disagreements(self) -> np.ndarray:
        """Return how much each image's views differ (N,) 0–1; NaN where it is not known."""
        rows = self.table[["image_id", "fold"]].itertuples(index=False, name=None)
        weights = self.ensemble.weights
        values = [self.ensemble_maps[k].view_disagreement(i, weights) for i, k in rows]
        return np.array(values, dtype=np.float64)  # None as NaN

    def vote_counts(self, rules: Sequence[Triplet], rows: np.ndarray) -> np.ndarray:
        """Count the pixels of each k-vote mask, k = 1…n members: true positives, and all.

        Shapes: rows (N,); one rule per member; the result (N, n, 2) int64 px.
        """
        draw = vote_function(self.ensemble.combine)

        def one(image: Any) -> list[tuple[int, int]]:
            shape = (image.height, image.width)
            ensemble_maps, truth = self.ensemble_maps[image.fold], rle.parse(image.rle, shape)
            many = ensemble_maps.member_mask_runs(image.image_id, shape, rules)
            voted = [draw(many, k) for k in range(1, len(rules) + 1)]
            return [(rle.shared_px(mask, truth), rle.area(mask)) for mask in voted]

        counts = self._each(rows, one, "votes", leave=False)
        return np.array(counts, dtype=np.int64).reshape(len(rows), len(rules), 2)

    def mask_by(
        self, choice: Choice, image_id: str, fold: int, shape: tuple[int, int]
    ) -> np.ndarray:
        """Return the mask (H, W) 0/1 of an image of that fold, at its own size, by a choice."""
        weights = choice.weights or self.ensemble.weights
        return combined_mask(self.ensemble_maps[fold], image_id, shape, choice, weights)

    def distances(self, scored: NestedCVReport) -> pd.DataFrame:
        """Return how far the boundaries of masks are from those of the truth.

        Of images with both masks: each mask is of the choice that scored the image.
        Returns: DataFrame[image_id, hd95_px, assd_px] in pixels of the image.
        """
        choices = {rule.fold: rule.choice for rule in scored.rules}
        table = scored.per_image
        both = ((table["true_area_px"] > 0) & (table["area_px"] > 0)).to_numpy()
        part_of = dict(zip(table["image_id"], table["part"], strict=True))

        def one(image: Any) -> SurfaceDistance:
            shape, choice = (image.height, image.width), choices[part_of[image.image_id]]
            mask = self.mask_by(choice, image.image_id, image.fold, shape)
            return surface_distance(mask, rle.decode(image.rle, shape))

        rows = both.nonzero()[0]
        found = pd.DataFrame(self._each(rows, one, "boundaries"), columns=SurfaceDistance._fields)
        found.insert(0, "image_id", table["image_id"].to_numpy()[rows])
        return found

    def _each(self, rows: Iterable[int], work: Callable, title: str, **how: Any) -> list:
        images = list(self.table.iloc[list(rows)].itertuples(index=False))
        with ThreadPoolExecutor(2) as pool:  # OpenCV works outside the interpreter's lock
            done = pool.map(work, images)
            return list(bar(done, total=len(images), desc=title, unit="image", **how))


def out_of_fold(
    ensemble: Ensemble,
    roots: Sequence[Path],
    table: pd.DataFrame,
    *,
    allow_unknown_past: bool = False,
    last: bool = False,
) -> OutOfFold:
    """Return the predictions of an ensemble's folds by models that never saw the images.

    `table` is the folds file. `last` takes the last EMA weights instead of the kept ones.
    Raises: InputError where an archive lacks an image of its fold that training did not leave out
    by name, and as `refuse_seen` does.
    """
    past_known, selected, parts, ensemble_maps = True, False, [], {}
    ids, left_out = frozenset(table["image_id"]), LeftOut.load(roots)
    for fold in ensemble.folds:
        fold_maps = open_maps(ensemble, roots, [fold], "oof_last" if last else "oof")
        rows = _predicted(table[table["fold"] == fold], fold_maps.archives, left_out)
        for archive in fold_maps.archives:
            past_known &= refuse_seen(archive, rows, allow_unknown_past, ids)
            lineage = stated_lineage(archive.meta, archive.path)
            selected |= lineage.selected_by(rows["image_id"])
        parts.append(rows)
        ensemble_maps[fold] = fold_maps
    table = pd.concat(parts, ignore_index=True)
    return OutOfFold(ensemble, table, ensemble_maps, past_known, selected)


def predicted_by(parts: Iterable[OutOfFold]) -> dict[str, Any]:
    """Return the checkpoints behind these predictions, by run/fold/archive."""
    return {
        f"{archive.meta['run']}/fold{archive.meta['fold']}/{archive.path.name}": archive.meta.get(
            "checkpoints"
        )
        for part in parts
        for fold_maps in part.ensemble_maps.values()
        for archive in fold_maps.archives
    }


def check_predicted_by(decision: Decision, roots: Sequence[Path]) -> None:
    """Refuse archives whose checkpoints have changed since the decision was made."""
    ensemble = decision.ensemble
    for name, checkpoints in decision.predicted_by.items():
        run, fold, file = name.split("/")
        folder = fold_run.find(roots, run).get(int(fold.removeprefix("fold")))
        used = run in {member.run for member in ensemble.everyone}
        if not used or folder is None or not (folder.path / file).exists():
            continue
        if maps.Maps(folder.path / file).meta.get("checkpoints") != checkpoints:
            raise InputError(
                f"{folder.path} was trained again after the rule of {ensemble.name} was searched: "
                "run the thresholds stage"
            )


def _with_counts(stats: Stacked, dtype: type) -> Stacked:
    hist_all, hist_true = stats.hist_all.astype(dtype), stats.hist_true.astype(dtype)
    return replace(stats, hist_all=hist_all, hist_true=hist_true)


def _predicted(
    rows: pd.DataFrame, archives: Sequence[maps.Maps], left_out: LeftOut
) -> pd.DataFrame:
    """Return the fold's rows, except those that left_out.json lists and no archive predicts.

    Raises: InputError, before hours of work, where an archive lacks one of the returned rows.
    """
    absent = [i for i in rows["image_id"] if i in left_out and not any(i in a for a in archives)]
    rows = rows[~rows["image_id"].isin(absent)]
    for archive in archives:
        lacking = [image_id for image_id in rows["image_id"] if image_id not in archive]
        if lacking:
            what = "map" if archive.has_maps else "label"
            raise InputError(
                f"{archive.path} holds no {what} of image {lacking[0]}, which folds.csv has in "
                f"its fold ({len(lacking)} of {len(rows)} images): its training lacked them; train "
                "that run again on all images of folds.csv, or leave it out"
            )
    return rows


def refuse_seen(
    archive: maps.Maps,
    rows: pd.DataFrame,
    allow_unknown_past: bool,
    known_ids: Container[str] | None = None,
) -> bool:
    """Refuse images that the archive's model has seen; return whether its lineage is fully known.

    It is not fully known if an ancestor's training images are unknown, or if it saw an image that
    is neither in the folds file (`known_ids`) nor has a fingerprint to compare with those that are.
    Raises: InputError naming an image that the model has seen, itself or another of its patient; or
    for a lineage that is not fully known, unless `allow_unknown_past`.
    """
    lineage = stated_lineage(archive.meta, archive.path)
    member = f"{archive.meta['run']}/fold{archive.meta['fold']}"
    ancestors = ", ".join(lineage.ancestors)
    for image_id, group in zip(rows["image_id"], rows["group"], strict=True):
        if lineage.saw(image_id, group):
            via = f", or descends from {ancestors}, trained on it" if ancestors else ""
            raise InputError(
                f"{member} was trained on image {image_id} or its patient{via}: "
                "it cannot be scored on it; leave that run out, or train it on this folds file"
            )
    foreign = []
    if known_ids is not None:
        foreign = [i for i, code in lineage.pairs if not code and i not in known_ids]
    known = lineage.known and not foreign
    if not known and not allow_unknown_past:
        of = f": image {foreign[0]} is not in folds.csv" if foreign else ""
        raise InputError(
            f"what {member} descends from ({ancestors}{of}) may have seen these images: its score "
            "would not be honest; -p ALLOW_UNKNOWN_PAST True prints it, marked NOT HONEST"
        )
    return known
