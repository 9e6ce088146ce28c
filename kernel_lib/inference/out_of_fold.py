"""Predictions of held-out images by members that never saw them, as input of every search."""

from __future__ import annotations

from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from tqdm import tqdm

from kernel_lib.artifacts import maps
from kernel_lib.artifacts.ensemble import Ensemble
from kernel_lib.artifacts.folds_file import LeftOut
from kernel_lib.artifacts.lineage import stated_lineage
from kernel_lib.data import rle
from kernel_lib.errors import InputError
from kernel_lib.inference.ensemble_maps import (
    EnsembleMaps,
    combined_mask,
    one_hot,
    open_maps,
    vote_function,
)
from kernel_lib.inference.weightings import Packed, Store, Weights, histograms, pack
from kernel_lib.notebook import bar
from kernel_lib.postprocess.histograms import Stacked, areas, gate_by_sum
from kernel_lib.postprocess.nested_cv_report import NestedCVReport
from kernel_lib.postprocess.strategies import Choice
from kernel_lib.postprocess.surface_distance import SurfaceDistance, surface_distance
from kernel_lib.postprocess.triplet import NO_LABEL, Triplet, first_level
from kernel_lib.workers import each

AT_ONCE = 48  # weightings of one pass: 25 MB each for 12,047 images


@dataclass(frozen=True, eq=False)
class OutOfFold:
    """Predictions of all held-out images by the members of their fold; rows as in `table`."""

    ensemble: Ensemble
    table: pd.DataFrame  # image_id, fold, group, height, width, area_px, rle
    ensemble_maps: Mapping[int, EnsembleMaps]  # by fold
    past_known: bool  # False: some member's lineage is not fully known
    selected: bool  # whether the labels of these images selected a member's epoch
    # Exact statistics by weights, and the packed maps where weightings are ranked.
    _kept: dict[Weights, Stacked] = field(default_factory=dict, init=False, repr=False)
    _store: Store = field(default_factory=Store, init=False, repr=False)

    @property
    def stats(self) -> Stacked:
        """Statistics of all images under the ensemble's weights, with the predicted label."""
        return self.statistics(self.ensemble.weights)

    def statistics(self, weights: Sequence[float]) -> Stacked:
        """Return `stats` under other weights, 0 to leave a member out; each is computed once."""
        (found,) = self.statistics_of([weights])
        return found

    def statistics_of(self, weightings: Sequence[Sequence[float]]) -> list[Stacked]:
        """Return `statistics` under several weightings, in one pass over the images."""
        weightings = [tuple(weights) for weights in weightings]
        new = [weights for weights in dict.fromkeys(weightings) if weights not in self._kept]
        if new:
            title = f"maps of {np.any(new, axis=0).sum()} members"
            with bar(total=len(self.table), desc=title, unit="image") as progress:
                self._kept.update(zip(new, self._computed(new, progress), strict=True))
        return [self._kept[weights] for weights in weightings]

    def remember(self, weights: Sequence[float], stats: Stacked) -> None:
        """Take `statistics` under some weights as they were computed before."""
        self._kept[tuple(weights)] = stats

    def gated(self, weights: Sequence[float]) -> Stacked:
        """Return `statistics` with the gating label: for GATE sum, the level of the map's sum."""
        (found,) = self.gated_of([weights])
        return found

    def gated_of(self, weightings: Sequence[Sequence[float]]) -> list[Stacked]:
        """Return `gated` under several weightings, in one pass over the images."""
        return [self._gate(stats) for stats in self.statistics_of(weightings)]

    @contextmanager
    def packed(self) -> Iterator[None]:
        """Keep each image's maps of all members in a temporary file, without what is 0 in all.

        Within this block they are decoded once, however many weightings are asked for.
        """
        self._store.open()
        try:
            yield
        finally:
            self._store.close()

    def candidates(
        self, weightings: Sequence[Sequence[float]], title: str | None = None
    ) -> Iterator[Stacked]:
        """Yield `gated` under many weightings, which are not kept.

        `title` is that of one progress bar for all passes over the images; None: no bar.
        """
        weightings = [tuple(weights) for weights in weightings]
        passes = [weightings[at : at + AT_ONCE] for at in range(0, len(weightings), AT_ONCE)]
        total = len(passes) * len(self.table)
        shown = {"desc": title, "unit": "image", "leave": False, "disable": title is None}
        with bar(total=total, **shown) as progress:
            for some in passes:
                yield from map(self._gate, self._computed(some, progress))

    def _gate(self, stats: Stacked) -> Stacked:
        return gate_by_sum(stats) if self.ensemble.gate == "sum" else stats

    def _computed(self, weightings: Sequence[Weights], progress: tqdm) -> list[Stacked]:
        """Return the statistics of all images under each weighting, in one pass over them."""
        used = np.flatnonzero(np.any(weightings, axis=0))
        labels = [self.labels(weights) for weights in weightings]  # first, as one may be missing
        hists = np.zeros((len(weightings), len(self.table), 2, 256), np.int32)

        def one(image: Any) -> tuple[np.ndarray, Mapping]:
            truth = rle.parse(image.rle, (image.height, image.width))
            members, packed = self._packed(image, used)
            some = [tuple(weights[m] for m in members) for weights in weightings]
            return histograms(packed, some, truth), self._store.take_new()

        rows = range(len(self.table))
        for row, (of_image, stored) in zip(rows, self._each(rows, one), strict=True):
            hists[:, row] = of_image
            self._store.add(stored)
            progress.update()
        n_px = (self.table["height"] * self.table["width"]).to_numpy(np.int64)
        has_truth = np.ones(len(self.table), dtype=bool)
        return [
            Stacked(hist[:, 0], hist[:, 1], n_px, has_truth, label)
            for hist, label in zip(hists, labels, strict=True)
        ]

    def _packed(self, image: Any, used: Sequence[int]) -> tuple[Sequence[int], Packed]:
        """Return the packed maps of an image, and of which members: all of them if it is kept."""
        members = range(len(self.ensemble.members)) if self._store.is_open else used
        if kept := self._store.get(image.Index):
            return members, kept
        (archives,) = self.ensemble_maps[image.fold].members
        levels = [archives[member][image.image_id] for member in members]
        packed = pack(levels, (image.height, image.width))
        self._store.put(image.Index, packed)
        return members, packed

    def labels(self, weights: Weights) -> np.ndarray:
        """Return the level (N,) int16 of each image's label, -1 where it has none."""
        table = self._label_table
        if self.ensemble.gate_members:
            weights = tuple(member.weight for member in self.ensemble.gate_members)
        used = np.flatnonzero(weights)
        labels = np.average(table[:, used], axis=1, weights=np.array(weights)[used])
        known = ~np.isnan(labels)
        if not known.all() and self.ensemble.gate == "label":
            lacking = self.table.iloc[int(np.argmin(known))]
            self.ensemble_maps[lacking["fold"]].label(lacking["image_id"], weights)  # its error
        levels = np.full(len(labels), NO_LABEL, np.int16)
        levels[known] = maps.quantise(labels[known])
        return levels

    @cached_property
    def _label_table(self) -> np.ndarray:
        """The labels (N, M) of the images by each member, or gating classifier; nan without one."""
        rows = self.table[["image_id", "fold"]].itertuples(index=False, name=None)
        labels = []
        for image_id, fold in rows:
            fold_maps = self.ensemble_maps[fold]
            (archives,) = fold_maps.gates or fold_maps.members
            labels.append([archive.label(image_id) for archive in archives])
        return np.array(labels, np.float64)  # None as nan

    def view_disagreements(self) -> np.ndarray:
        """Return how much each image's views differ (N,) 0–1; NaN where it is not known."""
        rows = self.table[["image_id", "fold"]].itertuples(index=False, name=None)
        weights = self.ensemble.weights
        values = [self.ensemble_maps[k].view_disagreement(i, weights) for i, k in rows]
        return np.array(values, dtype=np.float64)  # None as NaN

    @property
    def predicted_by(self) -> dict[str, Any]:
        """The checkpoints behind these predictions, by run/fold/archive."""
        return {
            f"{archive.meta['run']}/fold{archive.meta['fold']}/{archive.path.name}": (
                archive.meta.get("checkpoints")
            )
            for fold_maps in self.ensemble_maps.values()
            for archive in fold_maps.archives
        }

    def vote_counts(self, rule_sets: Sequence[Sequence[Triplet]]) -> np.ndarray:
        """Count the pixels of each k-vote mask, k = 1…n members: true positives, and all.

        `rule_sets` are R times one rule per member. Only the masks that a rule keeps are drawn.
        Shape: (R, N, n, 2) int64 px.
        """
        n, draw = len(self.ensemble.members), vote_function(self.ensemble.combine)
        stats = self.gated_of([one_hot(n, member) for member in range(n)])
        has_mask = np.array(
            [[areas(*of) > 0 for of in zip(stats, rules, strict=True)] for rules in rule_sets]
        )  # (R, n, N)
        counts = np.zeros((len(rule_sets), len(self.table), n, 2), np.int64)

        def one(image: Any) -> np.ndarray:
            shape, wanted = (image.height, image.width), has_mask[..., image.Index]
            (archives,) = self.ensemble_maps[image.fold].members
            many = [[rle.NO_RUNS] * n for _ in rule_sets]
            for member in np.flatnonzero(wanted.any(axis=0)):
                prob = maps.at_shape(archives[member][image.image_id], shape)
                at_bottom = cache(lambda level, prob=prob: rle.runs_of(prob >= level))
                for at in np.flatnonzero(wanted[:, member]):
                    many[at][member] = at_bottom(first_level(rule_sets[at][member].bottom))
            truth, found = rle.parse(image.rle, shape), np.zeros((len(rule_sets), n, 2), np.int64)
            for at in np.flatnonzero(wanted.any(axis=1)):
                for k in range(1, n + 1):
                    mask = draw(many[at], k)
                    found[at, k - 1] = rle.shared_px(mask, truth), rle.area(mask)
            return found

        rows = has_mask.any(axis=(0, 1)).nonzero()[0]
        shown = bar(rows, desc="votes", unit="image", leave=False)
        for row, found in zip(shown, self._each(rows, one), strict=True):
            counts[:, row] = found
        return counts

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
        shown = bar(self._each(rows, one), total=len(rows), desc="boundaries", unit="image")
        found = pd.DataFrame(shown, columns=SurfaceDistance._fields)
        found.insert(0, "image_id", table["image_id"].to_numpy()[rows])
        return found

    def _each(self, rows: Sequence[int], work: Callable) -> Iterator:
        """Yield what `work` returns for these images, each with its row of the table as Index."""
        return each(work, list(self.table.iloc[list(rows)].itertuples()))


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
