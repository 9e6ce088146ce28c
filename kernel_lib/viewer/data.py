"""The data of a viewer: an ensemble's images, and the order in which to look at them."""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from kernel_lib.artifacts import fold_run, folds_file
from kernel_lib.artifacts.decision import Decision
from kernel_lib.artifacts.ensemble import Ensemble
from kernel_lib.artifacts.filenames import STATISTICS
from kernel_lib.artifacts.lineage import stated_lineage
from kernel_lib.artifacts.oof import OofStatistics
from kernel_lib.data import fingerprint, images, rle
from kernel_lib.data.folder import Images, survey
from kernel_lib.data.table import Source, discover
from kernel_lib.errors import InputError
from kernel_lib.inference.ensemble_maps import (
    EnsembleMaps,
    check_predicted_by,
    one_hot,
    open_maps,
    vote_function,
)
from kernel_lib.inference.out_of_fold import OutOfFold, out_of_fold
from kernel_lib.kaggle import paths
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
from kernel_lib.workers import each

MAX_COMPARED = 20  # radiographs compared with the fingerprints of the training images


@dataclass(frozen=True)
class ModelView:
    """One source of a probability map per image: the ensemble's mean, a member, or a fold."""

    name: str
    rule: Triplet
    ensemble_maps: Mapping[int | None, EnsembleMaps]  # by the image's fold; key None: one for all
    weights: tuple[float, ...]

    def predict(self, image: Any) -> tuple[np.ndarray, int | None]:
        """Return the (H, W) uint8 map of an image at its own size, and the gate's level or None.

        `image` is a row of `ViewerData.table`, as `ViewerData.image` returns it.
        """
        ensemble_maps = self.ensemble_maps[None if None in self.ensemble_maps else image.fold]
        return ensemble_maps.full_map(image.image_id, (image.height, image.width), self.weights)


@dataclass(frozen=True)
class Vote:
    """A vote of the masks of some models, each under its own rule."""

    models: tuple[int, ...]  # indices into `ViewerData.models`
    at_least: int
    combine: str  # member_vote or member_union
    # (N, n, 2) int64 px of the mask with at least k of n votes, k = 1…n: [true positives, area].
    counts: np.ndarray = field(repr=False)


@dataclass(frozen=True)
class ViewerData:
    """Tables and statistics of all images; maps and radiographs are read on demand."""

    title: str
    table: pd.DataFrame  # image_id, fold, height, width, rle (None: no ground truth is known)
    models: tuple[ModelView, ...]
    stats: tuple[Stacked, ...]  # of each model
    vote: Vote | None
    radiographs: Mapping[str, Path]  # by image id; empty without a data folder
    notes: tuple[str, ...]
    has_maps: bool = True  # False: only their statistics are known

    @property
    def has_truth(self) -> bool:
        return bool(self.stats[0].has_truth.all())

    def image(self, row: int) -> Any:
        """Return a row of the table, with its columns as attributes."""
        return next(self.table.iloc[[row]].itertuples(index=False))

    def maps(self, row: int) -> list[np.ndarray]:
        """Return each model's (H, W) uint8 map of the image in this row, at its own size."""
        return [model.predict(self.image(row))[0] for model in self.models]


def load_viewer_data(
    folder: Path | str,
    *,
    test: bool = False,
    data_dir: Path | str | None = None,
    roots: Sequence[Path] | None = None,
) -> ViewerData:
    """Return what a viewer of an ensemble's folder shows, for any number of pages.

    Parameters and errors are those of `document.viewer`.
    """
    folder = Path(folder).resolve()
    roots = roots or paths.artefact_roots(folder.parent.parent)
    data = None
    if data_dir is not None or paths.on_kaggle():
        data = paths.data_dir(None if data_dir is None else str(data_dir))
    if test:
        return _load_test(folder, roots, discover(data, for_inference=True) if data else None)
    # Only the files: labels and splits come from the ensemble.
    return load_held_out(folder, roots, Images.of(survey(data, by_content=True)) if data else None)


def load_held_out(folder: Path, roots: Sequence[Path], data: Images | None = None) -> ViewerData:
    """Return the images of an ensemble's folds, predicted by members not trained on them.

    `data` holds their radiographs. Raises InputError where the thresholds stage has not run, where
    a file that it read is gone, and where the radiographs differ from those trained on.
    """
    decision = Decision.load(folder)
    ensemble, choice, scores = decision.ensemble, decision.choice, decision.scores
    check_predicted_by(decision, roots)
    fold_table = folds_file.find(roots, ensemble.folds_digest)
    low, high = scores.first.interval
    score = f"{scores.first.honest.dice:.4f} (95 % {low:.4f} to {high:.4f})"
    coverage = f", of {scores.coverage}" if scores.coverage else ""
    caveat = "" if scores.first_is_honest else ", NOT HONEST"
    note = (
        "Means over all images are in sample, since the rule was chosen on these images; "
        f'the nested cross-validated ("honest") score{caveat}: {score}{coverage}.'
    )
    title = f"{ensemble.name}, out of fold"
    runs = [member.run for member in ensemble.all_members]
    if decision.from_statistics and not fold_run.folds_with_maps(roots, runs) >= {*ensemble.folds}:
        return _of_statistics(folder, decision, fold_table, title, note)
    part = out_of_fold(ensemble, roots, fold_table, allow_unknown_past=True)
    radiographs, notes = {}, ()
    if data is not None:
        radiographs, notes = match_radiographs(ensemble.name, part, data)
    models = model_views(ensemble, choice, part.ensemble_maps)
    stats, vote = _measure_held_out(folder, decision, part, models)
    return ViewerData(title, part.table, models, stats, vote, radiographs, (note, *notes))


def _measure_held_out(
    folder: Path, decision: Decision, part: OutOfFold, models: Sequence[ModelView]
) -> tuple[tuple[Stacked, ...], Vote | None]:
    """Return what `measure` does for held-out images, with what the search has counted."""
    ensemble, choice = decision.ensemble, decision.choice
    n = len(ensemble.members)
    if ensemble.gate == "none" and (folder / STATISTICS).exists():  # else counted again
        known = OofStatistics.load(folder, decision)
        if known.image_ids == tuple(part.table["image_id"]):
            own = [one_hot(n, at) for at in range(n)] if choice.rules else [ensemble.weights]
            for weights, stats in zip(own, known.searched, strict=True):
                part.remember(weights, stats)
    found = part.gated_of([model.weights for model in models])
    if ensemble.gate == "none":
        found = [replace(stats, label=None) for stats in found]
    if choice.rules is None:
        return tuple(found), None
    counts = part.vote_counts([choice.rules])[0]
    return tuple(found), Vote(tuple(range(n)), choice.at_least, ensemble.combine, counts)


def _of_statistics(
    folder: Path, decision: Decision, fold_table: pd.DataFrame, title: str, note: str
) -> ViewerData:
    """Return the numbers of the held-out images, whose maps are elsewhere."""
    known = OofStatistics.load(folder, decision)
    rows = fold_table.set_index("image_id", drop=False).loc[list(known.image_ids)]
    (stats,) = known.searched
    if decision.ensemble.gate == "none":
        stats = replace(stats, label=None)
    models = model_views(decision.ensemble, decision.choice, {})[:1]
    elsewhere = "The maps of these images are elsewhere: no pictures, and no members by themselves."
    notes = (note, elsewhere)
    table = rows.reset_index(drop=True)
    return ViewerData(title, table, models, (stats,), None, {}, notes, has_maps=False)


def _load_test(folder: Path, roots: Sequence[Path], source: Source | None) -> ViewerData:
    """Return the test images as the inference stage predicted them, without ground truth.

    Raises InputError if that stage has not run here, or without a data folder, since the sizes of
    images are read from it.
    """
    if source is None:
        raise InputError(
            "test images are shown at their own sizes, which are read from their files: give the "
            "data folder, --data DIR or data_dir=…"
        )
    decision = Decision.load(folder)
    ensemble, choice = decision.ensemble, decision.choice
    maps = open_maps(ensemble, roots, ensemble.folds, "test")
    models = model_views(ensemble, choice, {None: maps})
    if ensemble.combine == "vote":  # of the folds, not of the members
        of_fold = {k: open_maps(ensemble, roots, [k], "test") for k in ensemble.folds}
        models = models[:1] + tuple(
            ModelView(f"fold {k}", choice.triplet, {None: fold_maps}, ensemble.weights)
            for k, fold_maps in of_fold.items()
        )
    predicted = set(maps.archives[0].ids)
    table, unreadable = _read_sizes(source.test[source.test["image_id"].isin(predicted)])
    if table.empty:
        raise InputError(
            f"none of the {len(source.test)} test images in the data folder was predicted: give "
            "the folder that the inference stage had"
        )
    notes = [f"Left out, since it cannot be read: {problem}." for problem in unreadable]
    n_here = len(table) + len(unreadable)
    if n_here < len(predicted):
        notes.append(f"{source.root} holds {n_here:,} of {len(predicted):,} test images predicted.")
    radiographs = {i: Path(p) for i, p in source.test.set_index("image_id")["path"].items()}
    stats, vote = measure(ensemble, choice, table, models)
    title = f"{ensemble.name}, test images"
    return ViewerData(title, table, models, stats, vote, radiographs, tuple(notes))


def _read_sizes(listed: pd.DataFrame) -> tuple[pd.DataFrame, list[str]]:
    """Return the images with the sizes that their files state, and why others are unreadable."""
    rows, unreadable = [], []
    for image_id, path in listed[["image_id", "path"]].itertuples(index=False):
        try:
            rows.append((image_id, None, *images.size_of(path), None))
        except images.ImageError as problem:
            unreadable.append(str(problem))
    return pd.DataFrame(rows, columns=["image_id", "fold", "height", "width", "rle"]), unreadable


def match_radiographs(
    name: str, part: OutOfFold, data: Images
) -> tuple[dict[str, Path], tuple[str, ...]]:
    """Return the files of an ensemble's images in a data folder, and notes on missing ones.

    Raises InputError if it has none of them, or different radiographs under the same ids: a mask
    over a wrong image would look like a wrong mask.
    """
    wanted = part.table["image_id"].tolist()
    # None: not in the folder, or ambiguous there.
    ids_in_folder = {image_id: data.meant(image_id) for image_id in wanted}
    files = {image_id: data.path(own) for image_id, own in ids_in_folder.items() if own is not None}
    which, notes = f"{len(wanted):,} images of {name}", []
    if not files:
        raise InputError(
            f"{data.root} holds none of the {which} (first: {wanted[0]}): give the data folder "
            "of the training, or none, for masks without radiographs"
        )
    if len(files) < len(wanted):
        notes.append(
            f"{data.root} holds {len(files):,} of the {which}: the others are shown without "
            "their radiograph."
        )
    n_compared, different = _compare_radiographs(part, files)
    if different and 2 * len(different) >= n_compared:
        raise InputError(
            f"{data.root} has other radiographs under the ids of {name}: {len(different)} of "
            f"{n_compared} compared are not those trained on (first: {different[0]}); give the "
            "data folder of the training"
        )
    if different:
        notes.append(
            f"{len(different)} of {n_compared} radiographs compared are not those trained on: "
            f"{', '.join(different)}."
        )
    return files, tuple(notes)


def _compare_radiographs(part: OutOfFold, files: Mapping[str, Path]) -> tuple[int, list[str]]:
    """Return how many radiographs were compared with those trained on, and ids that differ.

    They are sampled evenly, by id, from the images whose fingerprint a member of another fold has
    stored.
    """
    archives = {a.path: a for maps in part.ensemble_maps.values() for a in maps.archives}
    known: dict[str, set[str]] = defaultdict(set)
    for path, archive in archives.items():
        for image_id, code in stated_lineage(archive.meta, path).pairs:
            if image_id in files and fingerprint.shows(code):
                known[image_id].add(code)
    n_compared, other = 0, []
    for image_id in sorted(known)[:: max(1, len(known) // MAX_COMPARED)][:MAX_COMPARED]:
        try:
            code = fingerprint.code(images.read(files[image_id]))
        except images.ImageError:
            continue
        if fingerprint.shows(code):
            n_compared += 1
            if not len(fingerprint.matches([code], sorted(known[image_id]))):
                other.append(image_id)
    return n_compared, other


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

    measured = each(measure_image, list(table.itertuples(index=False)))
    shown = {"total": len(table), "desc": "images to view", "unit": "image", "leave": False}
    stats, counts = zip(*bar(measured, **shown), strict=True)
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
        largest, smallest = _ordered(predicted, -area), _ordered(predicted, area)
        kinds = [largest, borderline, smallest, _ordered(~predicted, distance)]
    in_turn = itertools.chain.from_iterable(itertools.zip_longest(*kinds))
    return list(dict.fromkeys(row for row in in_turn if row is not None))


def _ordered(which: np.ndarray, key: np.ndarray) -> list[int]:
    """Return the rows where `which` holds, smallest key first, ties in the table's order."""
    rows = np.flatnonzero(which)
    return rows[np.argsort(key[rows], kind="stable")].tolist()
