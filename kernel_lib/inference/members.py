"""From a recipe to an ensemble: whose folds are there, what gates, and who may not take part."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from kernel_lib.artifacts import fold_run, maps
from kernel_lib.artifacts.ensemble import Ensemble, Member
from kernel_lib.artifacts.fold_run import FoldRun
from kernel_lib.config import Experiment
from kernel_lib.errors import InputError
from kernel_lib.inference.recipes import Recipe, require

LONGEST_NAME = 200  # file systems take 255 bytes


def gather(roots: Sequence[Path], recipe: Recipe, name: str | None = None) -> Ensemble:
    """The ensemble of a recipe's runs, with every fold whose held-out images are predicted.

    Raises InputError where a run is not there, is none that draws masks of the competition's
    images, has no such fold, or folds files differ: a fold of one run would then hold images that
    another has trained on. Also where a gate is asked for and nothing says a label.
    """
    require(recipe, roots)
    names = [member.name for member in recipe.members]
    found = {run: _predicted(roots, run) for run in names}
    experiments = {
        run: next(iter(folders.values())).read_config().experiment for run, folders in found.items()
    }
    for run, experiment in experiments.items():
        _refuse_maskless(run, experiment, found[run])
    gate, gate_runs = _gate(recipe.gate, experiments)
    gates = {run: _gate_folds(roots, run, experiments) for run in gate_runs}
    weights = [member.weight for member in recipe.members]
    name = name or "+".join(names)
    if len(name) > LONGEST_NAME:
        raise InputError(
            f"the runs' names joined have {len(name)} characters, too many for a folder: "
            "name the ensemble with -p ENSEMBLE"
        )
    ensemble = Ensemble(
        name=name,
        members=tuple(
            Member(run=run, folds=tuple(found[run]), weight=weight)
            for run, weight in zip(names, weights, strict=True)
        ),
        combine=recipe.combine,
        gate=gate,
        gate_members=tuple(Member(run=run, folds=tuple(gates[run])) for run in gates),
        folds_digest=_one_digest(found | gates),
    )
    if not ensemble.folds:
        raise InputError(f"the runs {', '.join([*names, *gates])} have no fold in common")
    for member in ensemble.everyone:
        if alone := sorted(set(member.folds) - set(ensemble.folds)):
            print(f"note: folds {alone} of {member.run} stay out: not every run has them")
    return ensemble


def _predicted(roots: Sequence[Path], run: str) -> dict[int, FoldRun]:
    """The folds of a run whose held-out images are predicted, with a note on the others.

    Raises InputError where there is none, and where those of a finished fold are gone.
    """
    begun = fold_run.find(roots, run)
    folds = {k: folder for k, folder in begun.items() if folder.is_predicted()}
    if not folds:
        raise InputError(
            f"run {run} has no held-out predictions yet: finish its training, which "
            "writes runs/<run>/fold<k>/oof.zip"
        )
    n_folds = next(iter(folds.values())).read_config().n_folds
    for state, some in (
        ("not trained to the end", set(begun) - set(folds)),
        ("not trained", set(range(n_folds)) - set(begun)),
    ):
        if some:
            print(f"note: folds {sorted(some)} of {run} are {state} and stay out")
    return folds


def _one_digest(found: Mapping[str, Mapping[int, FoldRun]]) -> str:
    """The digest of the folds file that all were trained on; InputError where there are two."""
    digests: dict[str, str] = {}
    for folds in found.values():
        for folder in folds.values():
            digests.setdefault(folder.read_config().folds_digest, folder.name)
    if len(digests) > 1:
        raise InputError(
            f"{' and '.join(digests.values())} were trained on different folds files: an "
            "ensemble needs one; train them again in one WORK_DIR"
        )
    return next(iter(digests))


def _refuse_maskless(run: str, experiment: Experiment, folders: Mapping[int, FoldRun]) -> None:
    """Refuse a run that draws no masks of the competition's images."""
    if experiment.images == "nih":
        raise InputError(
            f"run {run} was trained on NIH images and predicts none of the competition's: name the "
            "run of masks that starts from it"
        )
    if not maps.Maps(next(iter(folders.values())).oof).has_maps:
        raise InputError(
            f"run {run} is a classifier and draws no masks: name the run of masks whose experiment "
            "has it as its gate, and its label gates them"
        )


def _gate(asked: str, experiments: Mapping[str, Experiment]) -> tuple[str, tuple[str, ...]]:
    """What gates, and the classifiers' runs whose label it is: none where it is the members' own.

    `auto` gates by the label where a member's experiment names a classifier, or was scored by a
    dice in which its own label gates the mask.
    """
    named = tuple(dict.fromkeys(e.gate for e in experiments.values() if e.gate))
    without_label = [run for run, e in experiments.items() if not e.label_weight]
    gated = [run for run, e in experiments.items() if e.monitor == "dice_gated"]
    if asked == "auto":
        asked = "label" if named or (gated and not without_label) else "none"
        if asked == "none" and gated:
            print(
                f"note: {gated[0]} was scored with its label as a gate, but {without_label[0]} has "
                "none: no gate; -p GATE sum gates by the maps' own sums"
            )
    if asked != "label":
        return asked, ()
    if not named and without_label:
        raise InputError(
            f"GATE label, but {without_label[0]} has no label head and its experiment names no "
            "classifier: leave it out, or -p GATE sum, or -p GATE none"
        )
    return asked, named


def _gate_folds(
    roots: Sequence[Path], run: str, experiments: Mapping[str, Experiment]
) -> dict[int, FoldRun]:
    """The predicted folds of a classifier's run; InputError saying who needs it and the fix."""
    if not fold_run.find(roots, run):
        needs = next(name for name, e in experiments.items() if e.gate == run)
        raise InputError(
            f"{needs} is gated by the run {run}, which is not there: train it, or {needs} again "
            "with -p WITH_PARENTS True, which trains what is missing; or -p GATE none"
        )
    return _predicted(roots, run)
