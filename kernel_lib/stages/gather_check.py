"""What `gather` may bring: every fold opened as later stages will, and compared with the others."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from kernel_lib import checkpoints
from kernel_lib.artifacts import folds_file
from kernel_lib.artifacts.filenames import FOLDS
from kernel_lib.artifacts.fold_run import FoldConfig, FoldRun
from kernel_lib.artifacts.lineage import Lineage, check_lineage
from kernel_lib.artifacts.maps import Maps
from kernel_lib.errors import InputError
from kernel_lib.training.job import Position

Stamp = tuple[int, int]  # bytes, and when it was written, ns
ONE_FILE = "an ensemble needs one folds file: gather each with its like into a folder of its own"


@dataclass(frozen=True)
class Fold:
    """One fold of one run as it lies in one place, its files opened and found whole."""

    root: Path  # the folder that holds runs/
    folder: FoldRun
    config: FoldConfig
    stamps: Mapping[Path, Stamp]  # its files as they were before they were opened
    position: Position = field(default_factory=Position)
    weights: Mapping[str, str] = field(default_factory=dict)  # digest by the checkpoint's name

    @property
    def key(self) -> tuple[str, int]:
        return self.folder.run, self.folder.fold

    @property
    def finished(self) -> bool:
        """Trained to its end and predicted, as the thresholds stage needs it."""
        maps = (self.folder.oof, self.folder.oof_last)
        return bool(self.position.ended) and all(path in self.stamps for path in maps)

    @property
    def stands(self) -> tuple[int, ...]:
        """Where its training stands, to be compared; all that have ended stand alike."""
        at = self.position
        return (1,) if at.ended else (0, at.epoch, at.step)

    @property
    def further(self) -> tuple:
        """The same, then whether its held-out images are predicted."""
        return self.stands, self.finished

    @property
    def progress(self) -> str:
        """Where it stands, in words."""
        at = self.position
        if self.finished:
            return f"finished after {at.ended}"
        if at.ended:
            return f"trained to its end ({at.ended}), not predicted"
        if not self.weights:
            return "nothing saved yet"
        epochs = self.config.experiment.epochs
        return f"{at.epoch} of {epochs} epochs and {at.step} steps done"


def opened(root: Path, folder: FoldRun) -> Fold:
    """A fold, every file of it read and checked; InputError naming what is damaged and the fix."""
    config = _config(folder)
    there = {path: stamp for path in _files(folder) if (stamp := stamped(path)) is not None}
    if folder.last not in there:
        if folder.oof in there or folder.oof_last in there:
            raise InputError(
                f"{folder.path} has maps and no last.pt, as in a copy that was cut short: copy it "
                "whole, or leave it out"
            )
        return Fold(root, folder, config, {folder.config: there[folder.config]})
    state, past = checkpoints.load(folder.last)
    position, kept = _position(state, folder)
    weights = {folder.last.name: checkpoints.digest_of(state, folder.last)}
    del state
    for path in kept:
        if path not in there:
            raise InputError(
                f"{path}, which last.pt names, is missing, as in a copy that was cut short: "
                f"copy {folder.path} whole, or leave it out"
            )
        weights[path.name] = checkpoints.digest(path)
    _check_maps(folder, weights, past)
    # Checkpoints that last.pt does not name are left-overs of a kill; training removes them.
    own = {p: s for p, s in there.items() if p.suffix != ".pt" or p.name in weights}
    fold = Fold(root, folder, config, own, position, weights)
    n_logged = len(folder.read_log())
    if fold.finished and n_logged != position.epoch:
        raise InputError(
            f"{folder.log} has {n_logged} epochs, last.pt {position.epoch}: run the train stage "
            "there, which writes it anew"
        )
    return fold


def stamped(path: Path) -> Stamp | None:
    """What changes when a file is written anew; None where there is none."""
    try:
        stat = path.stat()
    except FileNotFoundError:
        return None
    return stat.st_size, stat.st_mtime_ns


def refuse_mixed(found: Sequence[Fold]) -> None:
    """Refuse folds of one run that were not trained by one configuration, naming the fields."""
    first: dict[str, Fold] = {}
    for fold in found:
        other = first.setdefault(fold.folder.run, fold)
        there = other.config.model_copy(update={"fold": fold.config.fold})
        if differs := there.differences(fold.config):
            raise InputError(
                f"{fold.folder.path} is of another configuration than {other.folder.path} "
                f"({'; '.join(differs)}): one run has one; train one of them again as the other, "
                "or gather them into folders of their own"
            )


def one_table(roots: Sequence[Path], found: Sequence[Fold]) -> tuple[Path, pd.DataFrame]:
    """The folds file that all places share and all folds were trained on, and where it lies."""
    there = [path for root in roots if (path := root / FOLDS).is_file()]
    if not there:
        places = ", ".join(map(str, roots))
        raise InputError(
            f"no folds.csv in {places}: the train stage writes it beside runs/; give the folder "
            "that holds it too"
        )
    path = there[0]
    fold_table = folds_file.load(path)
    for other in there[1:]:
        if differs := folds_file.difference(fold_table, folds_file.load(other)):
            raise InputError(f"{other} is not {path} ({differs}): {ONE_FILE}")
    digest = folds_file.digest(fold_table)
    for fold in found:
        if fold.config.folds_digest != digest:
            raise InputError(
                f"{fold.folder.path} was trained on another folds file than {path} (digest "
                f"{fold.config.folds_digest[:12]} there, {digest[:12]} here): {ONE_FILE}"
            )
    return path, fold_table


def furthest(places: Sequence[Fold]) -> Fold:
    """Of the same fold in several places the one that is trained furthest, else the first.

    Raises InputError where two stand alike with other weights: which of them counts?
    """
    # Maps of test images took time too.
    best = max(places, key=lambda fold: (fold.further, fold.folder.test in fold.stamps))
    for other in places:
        if other.stands == best.stands and other.weights != best.weights:
            names = sorted({*other.weights, *best.weights})
            name = next(n for n in names if other.weights.get(n) != best.weights.get(n))
            a, b = ((one.weights.get(name) or "none")[:12] for one in (best, other))
            raise InputError(
                f"{best.folder.path} and {other.folder.path} are the same fold, trained as far "
                f"({best.progress}), with other weights ({name}: {a} and {b}): it was trained "
                "twice; leave one of them out"
            )
    return best


def _config(folder: FoldRun) -> FoldConfig:
    config = folder.read_config()
    said = f"{config.run}/fold{config.fold}"
    if said != folder.name:
        raise InputError(
            f"{folder.path} is {said} by its config.json: give the folder its own name again"
        )
    return config


def _position(state: Mapping[str, Any], folder: FoldRun) -> tuple[Position, list[Path]]:
    """Where a training stands, and the checkpoints that it keeps."""
    try:
        position = Position(**state["position"])
        return position, [folder.best(one["epoch"]) for one in position.kept]
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(
            f"{folder.last} holds no training of this version of the package "
            f"({type(error).__name__}: {error}): gather it with the version that made it"
        ) from error


def _check_maps(folder: FoldRun, weights: Mapping[str, str], past: Lineage) -> None:
    """Refuse damaged maps, and held-out ones of other checkpoints than lie beside them.

    Also those that state another past than these checkpoints have.
    """
    last = {k: v for k, v in weights.items() if k == folder.last.name}
    kept = {k: v for k, v in weights.items() if k not in last}
    # Maps of test images are made anew where they are not of these checkpoints.
    for path, by in ((folder.oof, kept), (folder.oof_last, last), (folder.test, None)):
        if not path.exists():
            continue
        archive = Maps(path)
        archive.check()
        if by is not None and archive.meta.get("checkpoints") != by:
            raise InputError(
                f"{path} was predicted by other checkpoints than lie beside it: run the train "
                "stage there to its end, which predicts anew"
            )
        if by is not None:
            check_lineage(archive.meta, path, past.digest())


def _files(folder: FoldRun) -> Iterable[Path]:
    yield from (folder.config, folder.log, folder.last, *folder.kept())
    yield from (folder.oof, folder.oof_last, folder.test)
