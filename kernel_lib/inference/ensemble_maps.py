"""What an ensemble's archives say together of one image: a map, a label, each member's mask."""

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
    """The archives that speak for an image: out of fold those of one fold, on test of several.

    Weights are the members', 0 for who is to be silent; all folds of a member speak alike.
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
        return maps.mean(*_voices(self.members, weights, lambda archive: archive[image_id]))

    def label(self, image_id: str, weights: Sequence[float]) -> float | None:
        """The image's probability of a pneumothorax; None where who speaks has no label head.

        It is that of the classifiers where they gate, else of the members. Raises InputError where
        the label gates and an archive lacks it.
        """
        folds, voices = (self.members, weights)
        if self.gates:
            folds, voices = self.gates, [m.weight for m in self.ensemble.gate_members]
        labels, weights = _voices(folds, voices, lambda archive: archive.label(image_id))
        if any(label is None for label in labels):
            if self.ensemble.gate == "label":
                mute = _voices(folds, voices, lambda archive: archive)[0][labels.index(None)]
                raise InputError(
                    f"{mute.path} holds no label of image {image_id}, which is to gate its mask: "
                    "delete it and run its stage, or -p GATE none in the thresholds stage"
                )
            return None
        return float(np.average(labels, weights=weights))

    def seen(
        self, image_id: str, shape: tuple[int, int], weights: Sequence[float]
    ) -> tuple[np.ndarray, int | None]:
        """The (H, W) map at the image's own size, and the level that gates it, if any does."""
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
        prob, level = self.seen(image_id, shape, weights)
        return apply_rule(prob, rule, level)

    def member_runs(
        self, image_id: str, shape: tuple[int, int], rules: Sequence[Triplet]
    ) -> list[rle.Runs]:
        """Runs of each member's own mask under its own rule."""
        return [
            rle.runs_of(self.mask(image_id, shape, rule, alone(len(rules), at)))
            for at, rule in enumerate(rules)
        ]


def alone(n_members: int, at: int) -> tuple[int, ...]:
    """Weights with which one member speaks and the others are silent."""
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


def _voices(folds: Sequence[Sequence[Maps]], weights: Sequence[float], ask) -> tuple[list, list]:
    """What each archive that is not silent answers, and its weight."""
    spoken = [
        (ask(archive), weight)
        for archives in folds
        for archive, weight in zip(archives, weights, strict=True)
        if weight
    ]
    answers, weights = zip(*spoken, strict=True)
    return list(answers), list(weights)
