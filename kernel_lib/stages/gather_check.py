"""What `gather` may copy: every fold is opened as later stages will, and compared to the others."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from kernel_lib import checkpoints
from kernel_lib.artifacts import fold_statistics, folds_file
from kernel_lib.artifacts.filenames import FOLDS
from kernel_lib.artifacts.fold_run import FoldConfig, FoldRun
from kernel_lib.artifacts.fold_statistics import FoldStatistics
from kernel_lib.artifacts.lineage import Lineage, check_lineage
from kernel_lib.artifacts.maps import Maps
from kernel_lib.errors import InputError
from kernel_lib.training.job import Position

Stamp = tuple[int, int]  # bytes, and when it was written, ns
ONE_FILE = "an ensemble needs one folds file: gather each with its like into a folder of its own"


@dataclass(frozen=True)
class Fold:
    """One fold of one run in one place, its files opened and checked."""

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
        """How far it is trained, to be compared; all that have ended are equal."""
        at = self.position
        return (1,) if at.ended else (0, at.epoch, at.step)

    @property
    def further(self) -> tuple:
        """How far it is trained, and whether its held-out images are predicted."""
        return self.stands, self.finished

    @property
    def progress(self) -> str:
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
    """Read and check every file of a fold; InputError names what is damaged, and the fix."""
    config = _config(folder)
    files = [folder.config, folder.log, folder.last, *folder.kept()]
    files += [folder.oof, folder.oof_last, folder.test]
    there = {path: stamp for path in files if (stamp := stamped(path)) is not None}
    if folder.last not in there:
        if folder.oof in there or folder.oof_last in there:
            raise InputError(
                f"{folder.path} has maps and no last.pt: copy all of it again, or leave it out"
            )
        return Fold(root, folder, config, {folder.config: there[folder.config]})
    state, past = checkpoints.load(folder.last)
    position, kept = _position(state, folder)
    weights = {folder.last.name: checkpoints.digest_of(state, folder.last)}
    del state
    for path in kept:
        if path not in there:
            raise InputError(
                f"{path}, which last.pt names, is missing: copy all of {folder.path} again, or "
                "leave it out"
            )
        weights[path.name] = checkpoints.digest(path)
    _check_maps(folder, weights, past)
    # Checkpoints that last.pt does not name are left from a kill; training removes them.
    own = {p: s for p, s in there.items() if p.suffix != ".pt" or p.name in weights}
    fold = Fold(root, folder, config, own, position, weights)
    n_logged = len(folder.read_log())
    if fold.finished and n_logged != position.epoch:
        raise InputError(
            f"{folder.log} has {n_logged} epochs, last.pt {position.epoch}: run the train stage "
            "there, which writes it again"
        )
    return fold


def stamped(path: Path) -> Stamp | None:
    """Return what changes when a file is written again; None for a missing file."""
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
                f"({'; '.join(differs)}): train one of them again as the other, or gather them "
                "into folders of their own"
            )


def statistics(roots: Sequence[Path]) -> dict[Path, FoldStatistics]:
    """Return the statistics below the roots by file, those of the first root first, checked."""
    by_name: dict[str, dict[Path, FoldStatistics]] = {}
    for root in roots:
        for name, path in fold_statistics.paths_below(root):
            by_name.setdefault(name, {})[path] = FoldStatistics.load(path)
    for found in by_name.values():
        fold_statistics.refuse_mixed(found)
    return {path: each for found in by_name.values() for path, each in found.items()}


def one_table(
    roots: Sequence[Path], found: Sequence[Fold], counted: Mapping[Path, FoldStatistics]
) -> tuple[Path, pd.DataFrame]:
    """Return the path and table of the folds file of all folds, and of all statistics."""
    there = [path for root in roots if (path := root / FOLDS).is_file()]
    if not there:
        places = ", ".join(map(str, roots))
        raise InputError(
            f"no folds.csv in {places}: the train stage writes it beside runs/; give its folder too"
        )
    path = there[0]
    fold_table = folds_file.load(path)
    for other in there[1:]:
        if differs := folds_file.difference(fold_table, folds_file.load(other)):
            raise InputError(f"{other} is not {path} ({differs}): {ONE_FILE}")
    digest = folds_file.digest(fold_table)
    digests = {str(fold.folder.path): fold.config.folds_digest for fold in found}
    for file, each in counted.items():
        digests[f"a member of {file}"] = each.origin.ensemble.folds_digest
    for its, other in digests.items():
        if other != digest:
            raise InputError(
                f"{its} was trained on another folds file than {path} (digest {other[:12]} there, "
                f"{digest[:12]} here): {ONE_FILE}"
            )
    return path, fold_table


def furthest(places: Sequence[Fold]) -> Fold:
    """Return the fold that is trained furthest, else the first, of one fold in several places.

    Raises InputError where two are trained equally far to other weights.
    """
    # Maps of test images are worth keeping too.
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
    """Return how far a training got, and the checkpoints that it keeps."""
    try:
        position = Position(**state["position"])
        return position, [folder.best(one["epoch"]) for one in position.kept]
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(
            f"{folder.last} holds no training of this version of the package "
            f"({type(error).__name__}: {error}): gather it with the version that made it"
        ) from error


def _check_maps(folder: FoldRun, weights: Mapping[str, str], past: Lineage) -> None:
    """Refuse damaged maps, and held-out ones of other checkpoints or another past than here."""
    last = {k: v for k, v in weights.items() if k == folder.last.name}
    kept = {k: v for k, v in weights.items() if k not in last}
    for path, by in ((folder.oof, kept), (folder.oof_last, last), (folder.test, None)):
        if not path.exists():
            continue
        archive = Maps(path)
        archive.check()
        if by is None:
            continue  # inference predicts test images again with other checkpoints
        if archive.meta.get("checkpoints") != by:
            raise InputError(
                f"{path} was predicted by other checkpoints than lie beside it: run the train "
                "stage there to its end, which predicts again"
            )
        check_lineage(archive.meta, path, past.digest())
