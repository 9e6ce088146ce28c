"""Combine an ensemble's archives into maps, labels and masks of images."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from kernel_lib.artifacts import fold_run, maps
from kernel_lib.artifacts.decision import Decision
from kernel_lib.artifacts.ensemble import Ensemble, Member
from kernel_lib.artifacts.lineage import check_lineage
from kernel_lib.artifacts.maps import Maps
from kernel_lib.data import rle
from kernel_lib.data.images import Skipped
from kernel_lib.errors import InputError
from kernel_lib.notebook import bar
from kernel_lib.postprocess import votes
from kernel_lib.postprocess.histograms import statistics
from kernel_lib.postprocess.strategies import Choice
from kernel_lib.postprocess.triplet import Triplet, apply_rule, sum_level


@dataclass(frozen=True)
class Predicted:
    """The test images, after every fold of every member has predicted them."""

    images: pd.DataFrame  # image_id, height, width
    skipped: list[Skipped]  # those that cannot be read
    notes: list[str]  # corrections made while reading images, and doubts about them

    @property
    def unreadable(self) -> tuple[str, ...]:
        """The ids of the images that cannot be read, sorted."""
        return tuple(sorted(image.image_id for image in self.skipped))

    def to_json(self) -> dict:
        """The result of one of several processes, for the process that started it."""
        return {"images": len(self.images), "unreadable": self.unreadable}


@dataclass(frozen=True)
class EnsembleMaps:
    """The archives used for an image: of one fold if it is held out, of several if a test image.

    Weights are one per member, 0 to leave it out, and the same for all folds of that member.
    """

    ensemble: Ensemble
    members: Sequence[Sequence[Maps]]  # fold by fold, an archive a member in the ensemble's order
    gates: Sequence[Sequence[Maps]]  # the same of the gating classifiers; empty without any

    @property
    def archives(self) -> list[Maps]:
        """All of them, of masks and of labels."""
        return [archive for fold in (*self.members, *self.gates) for archive in fold]

    def level_map(self, image_id: str, weights: Sequence[float]) -> np.ndarray:
        """Return the (S, S) uint8 map of an image, averaged as probabilities."""
        archives, weights = _used(self.members, weights)
        return maps.mean([archive[image_id] for archive in archives], weights)

    def label(self, image_id: str, weights: Sequence[float]) -> float | None:
        """Return the image's probability of a pneumothorax; None if an archive in use has no label.

        It comes from the gating classifiers if there are any, else from the members. Raises
        InputError if the gate is the label and an archive lacks it.
        """
        folds = self.members
        if self.gates:
            folds, weights = self.gates, [m.weight for m in self.ensemble.gate_members]
        archives, weights = _used(folds, weights)
        labels = [archive.label(image_id) for archive in archives]
        if None not in labels:
            return float(np.average(labels, weights=weights))
        if self.ensemble.gate == "label":
            raise InputError(
                f"{archives[labels.index(None)].path} holds no label of image {image_id}, needed "
                "to gate its mask: delete it and run its stage, or -p GATE none in the thresholds "
                "stage"
            )
        return None

    def view_disagreement(self, image_id: str, weights: Sequence[float]) -> float | None:
        """Return the members' mean disagreement of views, 0–1; None if it is not known of one."""
        archives, weights = _used(self.members, weights)
        values = [archive.disagreement(image_id) for archive in archives]
        return None if None in values else float(np.average(values, weights=weights))

    def full_map(
        self, image_id: str, shape: tuple[int, int], weights: Sequence[float]
    ) -> tuple[np.ndarray, int | None]:
        """Return the (H, W) uint8 map at the image's own size, and the gate's level or None."""
        prob = maps.at_shape(self.level_map(image_id, weights), shape)
        if self.ensemble.gate == "sum":
            return prob, sum_level(statistics(prob, None).hist_all, prob.size)
        if self.ensemble.gate == "label":
            return prob, int(maps.quantise(self.label(image_id, weights)))
        return prob, None

    def mask(
        self, image_id: str, shape: tuple[int, int], rule: Triplet, weights: Sequence[float]
    ) -> np.ndarray:
        """Return the mask (H, W) uint8 0/1 of the members' mean under one rule."""
        prob, level = self.full_map(image_id, shape, weights)
        return apply_rule(prob, rule, level)

    def member_mask_runs(
        self, image_id: str, shape: tuple[int, int], rules: Sequence[Triplet]
    ) -> list[rle.Runs]:
        """Return RLE runs (not training runs) of each member's own mask under its own rule."""
        return [
            rle.runs_of(self.mask(image_id, shape, rule, one_hot(len(rules), at)))
            for at, rule in enumerate(rules)
        ]


def one_hot(n_members: int, at: int) -> tuple[int, ...]:
    """Return weights that select one member: 1 for it, 0 for the others."""
    return tuple(int(m == at) for m in range(n_members))


def open_maps(
    ensemble: Ensemble, roots: Sequence[Path], folds: Sequence[int], kind: str
) -> EnsembleMaps:
    """Open the archives of these folds: `oof`, `oof_last` or `test`; InputError where one lacks."""

    def archives(members: Sequence[Member]) -> list[list[Maps]]:
        return [[_open(member, roots, fold, kind) for member in members] for fold in folds]

    members = archives(ensemble.members)
    return EnsembleMaps(
        ensemble, members, archives(ensemble.gate_members) if ensemble.gate_members else []
    )


def _open(member: Member, roots: Sequence[Path], fold: int, kind: str) -> Maps:
    folder = fold_run.find(roots, member.run).get(fold)
    if kind == "test":  # which this machine made, wherever the checkpoints came from
        folder = fold_run.fold_folder(roots[0], member.run, fold)
    if folder is None:
        raise InputError(
            f"{member.run} has no fold {fold} under {', '.join(map(str, roots))}: bring its "
            "folder, with its maps, by `python -m kernel_lib gather`"
        )
    archive = Maps(getattr(folder, kind))
    made_as = f"{archive.meta.get('run')}/fold{archive.meta.get('fold')}"
    if made_as != folder.name:
        raise InputError(
            f"{archive.path} is of {made_as}, not of {folder.name}: give the folder its own name "
            "again, or delete it and run its stage"
        )
    if kind != "test":
        check_lineage(archive.meta, archive.path, folder.read_config().lineage_digest)
    return archive


def _used(
    folds: Sequence[Sequence[Maps]], weights: Sequence[float]
) -> tuple[list[Maps], list[float]]:
    """Return the archives whose weight is not 0, and those weights."""
    weighted = [pair for archives in folds for pair in zip(archives, weights, strict=True)]
    used = [(archive, weight) for archive, weight in weighted if weight]
    return [archive for archive, _ in used], [weight for _, weight in used]


def check_predicted_by(decision: Decision, roots: Sequence[Path]) -> None:
    """Refuse archives whose checkpoints have changed since the decision was made."""
    ensemble = decision.ensemble
    if changed := trained_again(decision.predicted_by, ensemble, roots):
        raise InputError(
            f"{changed} was trained again after the rule of {ensemble.name} was searched: "
            "run the thresholds stage"
        )


def trained_again(
    predicted_by: Mapping[str, Any], ensemble: Ensemble, roots: Sequence[Path]
) -> Path | None:
    """Return the folder of the first archive here that other checkpoints predicted, if any."""
    runs = {member.run for member in ensemble.all_members}
    for name, checkpoints in predicted_by.items():
        run, fold, file = name.split("/")
        folder = fold_run.find(roots, run).get(int(fold.removeprefix("fold")))
        if run not in runs or folder is None or not (folder.path / file).exists():
            continue
        if Maps(folder.path / file).meta.get("checkpoints") != checkpoints:
            return folder.path
    return None


def vote_function(combine: str) -> Callable[[Sequence[rle.Runs], int], rle.Runs]:
    """Return the function on RLE runs that performs `member_vote` or `member_union`."""
    return {"member_vote": votes.at_least, "member_union": votes.union_of_agreeing}[combine]


def combined_mask(
    ensemble_maps: EnsembleMaps,
    image_id: str,
    shape: tuple[int, int],
    choice: Choice,
    weights: Sequence[float],
) -> np.ndarray:
    """Return an image's mask (H, W) uint8 0/1: the mean under one rule, or a vote of members."""
    if choice.rules is None:
        return ensemble_maps.mask(image_id, shape, choice.triplet, weights)
    many = ensemble_maps.member_mask_runs(image_id, shape, choice.rules)
    return rle.mask_of(vote_function(ensemble_maps.ensemble.combine)(many, choice.at_least), shape)


def test_masks(
    ensemble: Ensemble, roots: Sequence[Path], images: pd.DataFrame, choice: Choice
) -> Iterator[tuple[str, np.ndarray]]:
    """Yield (image_id, (H, W) mask 0/1) of each test image, at the image's own size.

    `images` holds image_id, height and width. `mean`: one map and label of all folds and members,
    then the rule. `vote`: each fold's own map, label and mask, a pixel kept where more than half
    the folds agree. Votes of members: each member's folds averaged, its own rule, then the vote;
    no rule afterwards.
    """
    folds = [[fold] for fold in ensemble.folds] if ensemble.combine == "vote" else [ensemble.folds]
    all_maps = [open_maps(ensemble, roots, some, "test") for some in folds]

    def mask_of(image: tuple[str, int, int]) -> tuple[str, np.ndarray]:
        image_id, *shape = image
        masks = [
            combined_mask(m, image_id, tuple(shape), choice, ensemble.weights) for m in all_maps
        ]
        if len(masks) == 1:
            return image_id, masks[0]
        runs = votes.at_least([rle.runs_of(m) for m in masks], len(masks) // 2 + 1)
        return image_id, rle.mask_of(runs, tuple(shape))

    rows = images[["image_id", "height", "width"]].itertuples(index=False, name=None)
    with ThreadPoolExecutor(2) as pool:
        masks = _windowed(pool, mask_of, rows)
        yield from bar(masks, total=len(images), desc="masks", unit="image")


test_masks.__test__ = False  # not a test case of pytest


def _windowed(pool: ThreadPoolExecutor, work, items: Iterable, ahead: int = 16) -> Iterator:
    """`pool.map` that runs only a little ahead: full-size maps of all images would fill memory."""
    waiting = []
    for item in items:
        waiting.append(pool.submit(work, item))
        if len(waiting) > ahead:
            yield waiting.pop(0).result()
    for future in waiting:
        yield future.result()
