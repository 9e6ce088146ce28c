"""Combine an ensemble's archives into a map, a label, or each member's mask of an image."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from kernel_lib.artifacts import fold_run, maps
from kernel_lib.artifacts.ensemble import Ensemble, Member
from kernel_lib.artifacts.lineage import check_lineage
from kernel_lib.artifacts.maps import Maps
from kernel_lib.data import rle
from kernel_lib.errors import InputError
from kernel_lib.postprocess.gate import sum_level
from kernel_lib.postprocess.histograms import statistics
from kernel_lib.postprocess.triplet import Triplet, apply_rule


class EnsembleMaps:
    """The archives used for an image: of one fold if it is held out, of several if a test image.

    Weights are one per member, 0 to leave it out, and the same for all folds of that member.
    """

    def __init__(
        self, ensemble: Ensemble, members: Sequence[Sequence[Maps]], gates: Sequence[Sequence[Maps]]
    ) -> None:
        """`members` and `gates` hold, fold by fold, an archive a member in the ensemble's order."""
        self.ensemble, self.members, self.gates = ensemble, members, gates

    @property
    def archives(self) -> list[Maps]:
        """All of them, of masks and of labels."""
        return [archive for fold in (*self.members, *self.gates) for archive in fold]

    def level_map(self, image_id: str, weights: Sequence[float]) -> np.ndarray:
        """The (S, S) uint8 map of an image, averaged as probabilities."""
        return maps.mean(*_answers(self.members, weights, lambda archive: archive[image_id]))

    def label(self, image_id: str, weights: Sequence[float]) -> float | None:
        """The image's probability of a pneumothorax; None if an archive in use has no label.

        It comes from the gating classifiers if there are any, else from the members. Raises
        InputError if the gate is the label and an archive lacks it.
        """
        folds, member_weights = (self.members, weights)
        if self.gates:
            folds, member_weights = self.gates, [m.weight for m in self.ensemble.gate_members]
        labels, weights = _answers(folds, member_weights, lambda archive: archive.label(image_id))
        if any(label is None for label in labels):
            if self.ensemble.gate == "label":
                lacking = _answers(folds, member_weights, lambda archive: archive)[0][
                    labels.index(None)
                ]
                raise InputError(
                    f"{lacking.path} holds no label of image {image_id}, needed to gate its mask: "
                    "delete it and run its stage, or -p GATE none in the thresholds stage"
                )
            return None
        return float(np.average(labels, weights=weights))

    def full_map(
        self, image_id: str, shape: tuple[int, int], weights: Sequence[float]
    ) -> tuple[np.ndarray, int | None]:
        """The (H, W) uint8 map at the image's own size, and the gate's level or None."""
        prob = maps.at_shape(self.level_map(image_id, weights), shape)
        if self.ensemble.gate == "sum":
            return prob, sum_level(statistics(prob, None).hist_all, prob.size)
        if self.ensemble.gate == "label":
            return prob, int(maps.quantise(self.label(image_id, weights)))
        return prob, None

    def mask(
        self, image_id: str, shape: tuple[int, int], rule: Triplet, weights: Sequence[float]
    ) -> np.ndarray:
        """Mask (H, W) uint8 0/1 of the members' mean under one rule."""
        prob, level = self.full_map(image_id, shape, weights)
        return apply_rule(prob, rule, level)

    def member_mask_runs(
        self, image_id: str, shape: tuple[int, int], rules: Sequence[Triplet]
    ) -> list[rle.Runs]:
        """RLE runs (not training runs) of each member's own mask under its own rule."""
        return [
            rle.runs_of(self.mask(image_id, shape, rule, one_hot(len(rules), at)))
            for at, rule in enumerate(rules)
        ]


def one_hot(n_members: int, at: int) -> tuple[int, ...]:
    """Weights that select one member: 1 for it, 0 for the others."""
    return tuple(int(m == at) for m in range(n_members))


def open_maps(
    ensemble: Ensemble, roots: Sequence[Path], folds: Sequence[int], kind: str
) -> EnsembleMaps:
    """The archives of these folds: `oof`, `oof_last` or `test`; InputError where one lacks."""
    members = [[_open(m, roots, fold, kind) for m in ensemble.members] for fold in folds]
    gates = [[_open(m, roots, fold, kind) for m in ensemble.gate_members] for fold in folds]
    return EnsembleMaps(ensemble, members, gates if ensemble.gate_members else [])


def _open(member: Member, roots: Sequence[Path], fold: int, kind: str) -> Maps:
    folder = fold_run.find(roots, member.run).get(fold)
    if kind == "test":  # which this machine made, wherever the checkpoints came from
        folder = fold_run.fold_folder(roots[0], member.run, fold)
    if folder is None:
        raise InputError(f"{member.run} has no fold {fold} under {', '.join(map(str, roots))}")
    archive = Maps(getattr(folder, kind))
    made_as = f"{archive.meta.get('run')}/fold{archive.meta.get('fold')}"
    if made_as != folder.name:
        raise InputError(
            f"{archive.path} is of {made_as}, not of {folder.name}: give the folder its own name "
            "again, or delete it and run its stage"
        )
    if kind != "test":
        check_lineage(archive.meta, archive.path, folder.read_config().get(fold_run.LINEAGE))
    return archive


def _answers(folds: Sequence[Sequence[Maps]], weights: Sequence[float], ask) -> tuple[list, list]:
    """The result of `ask` for each archive whose weight is not 0, and those weights."""
    answered = [
        (ask(archive), weight)
        for archives in folds
        for archive, weight in zip(archives, weights, strict=True)
        if weight
    ]
    answers, weights = zip(*answered, strict=True)
    return list(answers), list(weights)
