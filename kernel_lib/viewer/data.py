"""What a viewer shows: an ensemble's images in the order in which they are worth a look."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd

from kernel_lib.artifacts.ensemble import Ensemble
from kernel_lib.data import rle
from kernel_lib.inference.ensemble_maps import EnsembleMaps, one_hot, vote_function
from kernel_lib.notebook import bar
from kernel_lib.postprocess.histograms import (
    Stacked,
    areas,
    areas_above,
    per_image_dice,
    stack,
    statistics,
)
from kernel_lib.postprocess.strategies import Choice
from kernel_lib.postprocess.triplet import Triplet, apply_rule
from kernel_lib.postprocess.units import FULL_AREA


@dataclass(frozen=True)
class ModelView:
    """One map of each image: of the ensemble's mean, of a member, or of a fold."""

    name: str
    rule: Triplet
    ensemble_maps: Mapping[int | None, EnsembleMaps]  # by the image's fold; None: all folds
    weights: tuple[float, ...]

    def predict(self, image: tuple) -> tuple[np.ndarray, int | None]:
        """Return the (H, W) uint8 map at the image's own size, and the level that gates it."""
        ensemble_maps = self.ensemble_maps[None if None in self.ensemble_maps else image.fold]
        return ensemble_maps.full_map(image.image_id, (image.height, image.width), self.weights)


@dataclass(frozen=True)
class Vote:
    """A vote of the masks of some models, each under its own rule."""

    models: tuple[int, ...]
    at_least: int
    combine: str  # member_vote or member_union
    counts: np.ndarray = field(repr=False)  # (N, n, 2) int64 px for k = 1…n: shared with truth, all


@dataclass(frozen=True)
class ViewerData:
    """Numbers of all images in memory; maps and radiographs are read on demand."""

    title: str
    table: pd.DataFrame  # image_id, fold, height, width, rle (None: no ground truth is known)
    models: tuple[ModelView, ...]
    stats: tuple[Stacked, ...]  # of each model
    vote: Vote | None
    radiographs: Mapping[str, Path]  # by image id; empty without a data folder
    notes: tuple[str, ...]

    @property
    def has_truth(self) -> bool:
        return bool(self.stats[0].has_truth.all())

    def maps(self, row: int) -> list[np.ndarray]:
        """Return each model's (H, W) uint8 map of the image in this row, at its own size."""
        image = next(self.table.iloc[[row]].itertuples(index=False))
        return [model.predict(image)[0] for model in self.models]


def model_views(
    ensemble: Ensemble, choice: Choice, ensemble_maps: Mapping[int | None, EnsembleMaps]
) -> tuple[ModelView, ...]:
    """Return the mean and each of several members; the members only where they vote."""
    n = len(ensemble.members)
    rules = choice.rules or [choice.triplet] * n
    members = tuple(
        ModelView(member.run, rule, ensemble_maps, one_hot(n, at))
        for at, (member, rule) in enumerate(zip(ensemble.members, rules, strict=True))
    )
    if n == 1 or choice.rules is not None:
        return members
    mean = ModelView(f"mean of {n} runs", choice.triplet, ensemble_maps, ensemble.weights)
    return (mean, *members)


def measure(
    ensemble: Ensemble, choice: Choice, table: pd.DataFrame, models: Sequence[ModelView]
) -> tuple[tuple[Stacked, ...], Vote | None]:
    """Return the statistics of every image for each model, and the areas of a vote for each k."""
    kind, voters, at_least = ensemble.combine, (), 0
    if choice.rules is not None:
        voters, at_least = tuple(range(len(models))), choice.at_least
    elif kind == "vote" and len(models) > 1 and None in models[0].ensemble_maps:
        kind, voters = "member_vote", tuple(range(1, len(models)))
        at_least = len(voters) // 2 + 1
    vote = vote_function(kind) if voters else None

    def measure_image(image: tuple) -> tuple[list, np.ndarray]:
        shape = (image.height, image.width)
        truth = None if image.rle is None else rle.parse(image.rle, shape)
        true_mask = None if truth is None else rle.mask_of(truth, shape)
        predictions = [model.predict(image) for model in models]
        stats = [statistics(prob, true_mask, level) for prob, level in predictions]
        masks = [
            rle.runs_of(apply_rule(predictions[m][0], models[m].rule, predictions[m][1]))
            for m in voters
        ]
        counts = np.zeros((len(voters), 2), dtype=np.int64)
        for k in range(len(voters)):
            mask = vote(masks, k + 1)
            counts[k] = 0 if truth is None else rle.shared_px(mask, truth), rle.area(mask)
        return stats, counts

    rows = list(table.itertuples(index=False))
    with ThreadPoolExecutor(2) as pool:  # OpenCV releases the interpreter's lock
        measured = pool.map(measure_image, rows)
        stats, counts = zip(
            *bar(measured, total=len(rows), desc="images to view", unit="image", leave=False),
            strict=True,
        )
    stacked = tuple(stack(of_model) for of_model in zip(*stats, strict=True))
    return stacked, Vote(voters, at_least, kind, np.stack(counts)) if voters else None


def rank_images(stats: Stacked, rule: Triplet) -> list[int]:
    """Return the rows of all N images, one of each kind in turn.

    With ground truth: lowest Dice, largest false negatives, largest false positives, borderline
    (area above `top` nearest to the minimum area), highest Dice, and true negatives. Without:
    the largest masks, borderline, the smallest masks, and empty ones.
    """
    scale = FULL_AREA / stats.n_px
    area, above = areas(stats, rule) * scale, areas_above(stats, rule.top) * scale
    predicted = area > 0
    distance = np.abs(np.log((above + 1) / (rule.min_area_px + 1)))  # from the minimum area
    borderline = _ordered(above > 0, distance)
    if stats.has_truth.all():
        dice, true_area = per_image_dice(stats, rule), stats.true_px * scale
        positive = true_area > 0
        kinds = [
            _ordered(predicted & positive, dice),
            _ordered(~predicted & positive, -true_area),
            _ordered(predicted & ~positive, -area),
            borderline,
            _ordered(predicted & positive, -dice),
            _ordered(~predicted & ~positive, distance),
        ]
    else:
        kinds = [
            _ordered(predicted, -area),
            borderline,
            _ordered(predicted, area),
            _ordered(~predicted, distance),
        ]
    in_turn = itertools.chain.from_iterable(itertools.zip_longest(*kinds))
    return list(dict.fromkeys(row for row in in_turn if row is not None))


def _ordered(which: np.ndarray, key: np.ndarray) -> list[int]:
    """Return the rows where `which` holds, smallest key first, ties in the table's order."""
    rows = np.flatnonzero(which)
    return rows[np.argsort(key[rows], kind="stable")].tolist()
