"""Held-out maps → statistics a fold, by which the thresholds stage scores a mean elsewhere."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from kernel_lib import storage
from kernel_lib.artifacts import fold_run, fold_statistics, folds_file
from kernel_lib.artifacts.ensemble import Ensemble
from kernel_lib.artifacts.filenames import ENSEMBLES
from kernel_lib.artifacts.fold_statistics import KINDS, FoldStatistics, Origin
from kernel_lib.config import StatisticsParameters, ThresholdsParameters
from kernel_lib.inference import from_statistics, recipes
from kernel_lib.inference.out_of_fold import OutOfFold, out_of_fold
from kernel_lib.kaggle import paths
from kernel_lib.notebook import Signals
from kernel_lib.stages import thresholds


@dataclass(frozen=True)
class StatisticsResult:
    """The files written, by fold."""

    ensemble: Ensemble
    files: tuple[Path, ...]

    def __str__(self) -> str:
        lines = [f"written: {path} ({path.stat().st_size / 1e6:.1f} MB)" for path in self.files]
        work = self.files[0].parents[3]
        return "\n".join(
            [
                *lines,
                f"next: copy {self.files[0].parent} and folds.csv below {work}, as they lie there, "
                "and `python -m kernel_lib gather FOLDER … --into WORK_DIR`; then thresholds with "
                f"-p ENSEMBLE {self.ensemble.name}",
            ]
        )


def run(parameters: StatisticsParameters) -> StatisticsResult:
    """Write, for each fold that is predicted here, the statistics of an ensemble's mean.

    Raises: InputError as the thresholds stage does; for a recipe that needs maps; and where the
        folder holds statistics of another ensemble.
    """
    work = paths.work_dir(parameters.work_dir)
    storage.check_writable(work, "WORK_DIR")
    roots = paths.artefact_roots(work)
    asked = ThresholdsParameters(**parameters.model_dump())
    recipe, name = thresholds.asked_recipe(asked, roots)
    from_statistics.refuse_strategy(recipe, "statistics are of a mean with fixed weights")
    ensemble = recipes.build_ensemble(roots, recipe, name)
    table = folds_file.find(roots, ensemble.folds_digest)
    folder, files = work / ENSEMBLES / ensemble.name, []
    with Signals().caught(), storage.folder_lock(folder):
        for fold in ensemble.folds:
            of_fold = _of_fold(ensemble, fold)
            allow = {"allow_unknown_past": parameters.allow_unknown_past}
            kept = out_of_fold(of_fold, roots, table, **allow)
            last = out_of_fold(of_fold, roots, table, last=True, **allow)
            found = _statistics(of_fold, {"kept": kept, "last": last}, roots)
            others = (path for of, path in fold_statistics.paths_below(work) if of == folder.name)
            there = {p: FoldStatistics.load(p) for p in others if p.stem != f"fold{fold}"}
            fold_statistics.refuse_mixed({Path(f"fold {fold}"): found} | there)
            files.append(found.save(folder))
    result = StatisticsResult(ensemble, tuple(files))
    print(result)
    return result


def _of_fold(ensemble: Ensemble, fold: int) -> Ensemble:
    """Return the ensemble of one fold, without what does not change its statistics."""
    members, gates = (
        tuple(member.model_copy(update={"folds": (fold,)}) for member in some)
        for some in (ensemble.members, ensemble.gate_members)
    )
    gate = "label" if gates else "none"
    update = {"members": members, "gate_members": gates, "gate": gate, "combine": "mean"}
    return ensemble.model_copy(update=update)


def _statistics(
    ensemble: Ensemble, parts: dict[str, OutOfFold], roots: Sequence[Path]
) -> FoldStatistics:
    fold = ensemble.folds[0]
    folders = [fold_run.find(roots, member.run)[fold] for member in ensemble.all_members]
    origin = Origin(
        fold=fold,
        ensemble=ensemble,
        configs=tuple(folder.read_config() for folder in folders),
        predicted_by={kind: parts[kind].predicted_by for kind in KINDS},
        past_known=all(part.past_known for part in parts.values()),
        selected={kind: parts[kind].selected for kind in KINDS},
    )
    weights = ensemble.weights
    stats = {kind: part.stats for kind, part in parts.items()}
    own = {kind: _ungated(part).labels(weights) for kind, part in parts.items()}
    return FoldStatistics.of(
        origin,
        parts["kept"].table["image_id"].tolist(),
        {kind: replace(stats[kind], label=own[kind]) for kind in KINDS},
        {kind: stats[kind].label for kind in KINDS},
        parts["kept"].view_disagreements(),
    )


def _ungated(part: OutOfFold) -> OutOfFold:
    """Return the same predictions, labelled by the members and not by gating classifiers."""
    ensemble = part.ensemble.model_copy(update={"gate": "none", "gate_members": ()})
    of_folds = part.ensemble_maps.items()
    maps = {fold: replace(of_fold, ensemble=ensemble, gates=()) for fold, of_fold in of_folds}
    return replace(part, ensemble=ensemble, ensemble_maps=maps)
