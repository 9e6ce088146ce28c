"""Recipes: JSON files that name an ensemble's members, how to combine them and what to choose.

Shipped recipes are in `kernel_lib/ensembles/<name>.json`; a user's own may be anywhere.
`build_ensemble` makes a recipe's ensemble from the folds trained so far.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

from pydantic import Field, ValidationError, model_validator

from kernel_lib.artifacts import fold_run
from kernel_lib.artifacts.ensemble import Ensemble, Member
from kernel_lib.artifacts.fold_run import FoldRun
from kernel_lib.artifacts.maps import Maps
from kernel_lib.config import Choose, Combine, Experiment, Frozen, Gate, TrainParameters
from kernel_lib.errors import InputError
from kernel_lib.experiments import EXPERIMENTS
from kernel_lib.inference.ensemble_maps import one_hot
from kernel_lib.inference.out_of_fold import OutOfFold
from kernel_lib.plan import find_experiment, plan_training
from kernel_lib.postprocess.search import SearchOptions
from kernel_lib.postprocess.strategies import Greedy, MemberVote, OneRule, Record, Strategy

SHIPPED = Path(__file__).parent.parent / "ensembles"
LONGEST_NAME = 200  # file systems take 255 bytes


class RecipeMember(Frozen):
    """A run, given by experiment and seed or by its name, and its weight in the mean."""

    experiment: str | None = None
    seed: int | None = Field(None, ge=0)
    run: str | None = None
    weight: float = Field(1.0, gt=0, allow_inf_nan=False)

    @model_validator(mode="after")
    def _named_in_one_way(self) -> Self:
        given = {name for name in ("experiment", "seed", "run") if getattr(self, name) is not None}
        if given not in ({"experiment", "seed"}, {"run"}):
            raise ValueError('a member is {"experiment": name, "seed": n} or {"run": name}')
        if self.experiment is not None:
            find_experiment(self.experiment, EXPERIMENTS)
        return self

    @property
    def name(self) -> str:
        """The run's name."""
        return self.run if self.run is not None else self._plan().run

    def how_to_train(self) -> str:
        """Return how to train it, for an error message."""
        if self.run is not None:
            return "train it, or correct the name"
        parents = " -p WITH_PARENTS True" if self._plan().needs() else ""
        return f"train it with -p EXPERIMENT {self.experiment} -p SEED {self.seed}{parents}"

    def _plan(self):
        return plan_training(
            TrainParameters(experiment=self.experiment, seed=self.seed), EXPERIMENTS
        )


class Recipe(Frozen):
    """What a recipe's file holds."""

    says: str = ""  # what it is, in one line
    members: tuple[RecipeMember, ...] = Field(strict=False, min_length=1)
    combine: Combine = "mean"
    choose: Choose = "none"
    at_least: int | None = None  # how many members must agree; None: chosen by the search
    gate: Gate = "auto"
    leaderboard: str | None = None  # score that the reference solution reports, not ours

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        names = [member.name for member in self.members]
        weighted = " with weights" if any(member.weight != 1 for member in self.members) else ""
        by_members = self.combine in ("member_vote", "member_union")
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"{name} is named twice: name it once, with the sum as its weight")
        if self.choose == "greedy" and (self.combine != "mean" or weighted):
            raise ValueError(
                f"choose greedy does not fit combine {self.combine}{weighted}: it chooses members "
                "and weights of a mean; take combine mean, without weights"
            )
        if self.at_least is not None and not by_members:
            raise ValueError(
                f"at_least {self.at_least}, with combine {self.combine}: it counts members that "
                "agree; take combine member_vote or member_union, or leave it out"
            )
        if self.at_least is not None and not 1 <= self.at_least <= len(names):
            raise ValueError(
                f"at_least {self.at_least} of {len(names)} members: give 1 to {len(names)}"
            )
        if by_members and (weighted or len(names) < 2):
            raise ValueError(
                f"combine {self.combine} of {len(names)} members{weighted}: name two or more, "
                "without weights, or take combine mean"
            )
        return self

    def differing(self, **changes: Any) -> Recipe:
        """Return this recipe with the changes that are not None.

        Another `combine` resets `choose` and `at_least`, which belonged to the recipe's own. Raises
        InputError where the changes do not fit together.
        """
        given = {name: value for name, value in changes.items() if value is not None}
        values = self.model_dump()
        if given.get("combine", self.combine) != self.combine:
            values |= {"choose": "none", "at_least": None}
        return _checked(values | given, "the ensemble")


def of_runs(names: Sequence[str]) -> Recipe:
    """Return the recipe of these runs' mean."""
    return _checked({"members": [{"run": name} for name in names]}, "the runs")


def shipped() -> tuple[str, ...]:
    """Return the names of the recipes that come with the library."""
    return tuple(sorted(path.stem for path in SHIPPED.glob("*.json")))


def read(path: Path) -> Recipe:
    """Read a recipe's file. Raises: InputError naming it, each wrong field, and the fix."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path} cannot be read ({error}): give a recipe's JSON") from None
    return _checked(text, str(path))


def _checked(values: str | Mapping[str, Any], where: str) -> Recipe:
    try:
        if isinstance(values, str):
            return Recipe.model_validate_json(values)
        return Recipe.model_validate(values)
    except ValidationError as error:
        faults = []
        for fault in error.errors():
            place = ".".join(str(part) for part in fault["loc"])
            message = fault["msg"].removeprefix("Value error, ")
            faults.append(f"{place}: {message}" if place else message)
        raise InputError(f"{where}: {'; '.join(faults)}") from None


def make_strategy(
    predicted: OutOfFold, recipe: Recipe, *, single: bool = False, record: Record | None = None
) -> Strategy:
    """Return the strategy that chooses, on the ground truth, what the recipe does not fix.

    `single`: search only rules with top == bottom. `record` holds what a stopped search found.
    """
    ensemble = predicted.ensemble
    options = SearchOptions(single=single, label=ensemble.gate != "none")
    n_members = len(ensemble.members)
    if ensemble.by_members:
        weightings = [one_hot(n_members, at) for at in range(n_members)]
        # The mean's statistics, of which a vote reports AUCs, in the same pass.
        *members, _ = predicted.gated_of([*weightings, ensemble.weights])
        return MemberVote(members, predicted.vote_counts, recipe.at_least, options, record)
    if recipe.choose == "greedy":
        of = predicted.gated_of, n_members, options, predicted.candidates
        return Greedy(*of, record)
    return OneRule(predicted.gated(ensemble.weights), options)


def build_ensemble(roots: Sequence[Path], recipe: Recipe, name: str | None = None) -> Ensemble:
    """Return the ensemble of a recipe, with every fold whose held-out images all runs predicted.

    Raises: InputError if a run is missing or predicts no masks of the competition's images, the
    runs have no fold in common or were trained on different folds files (a fold of one run would
    then hold images that another has trained on), or GATE is label and no model predicts a label.
    """
    require(recipe, roots)
    weights = {member.name: member.weight for member in recipe.members}
    folds = {run: _predicted(roots, run) for run in weights}
    experiments = {
        run: next(iter(folders.values())).read_config().experiment for run, folders in folds.items()
    }
    for run, experiment in experiments.items():
        _refuse_maskless(run, experiment, folds[run])
    gate, gate_runs = resolved_gate(recipe.gate, experiments)
    gate_folds = {run: _gate_folds(roots, run, experiments) for run in gate_runs}
    name = name or "+".join(weights)
    if len(name) > LONGEST_NAME:
        raise InputError(
            f"the runs' names joined have {len(name)} characters, too many for a folder: "
            "name the ensemble with -p ENSEMBLE"
        )
    ensemble = Ensemble(
        name=name,
        members=tuple(
            Member(run=run, folds=tuple(folds[run]), weight=weight)
            for run, weight in weights.items()
        ),
        combine=recipe.combine,
        gate=gate,
        gate_members=tuple(Member(run=run, folds=tuple(gate_folds[run])) for run in gate_runs),
        folds_digest=_common_digest(folds | gate_folds),
    )
    if not ensemble.folds:
        raise InputError(f"the runs {', '.join([*weights, *gate_runs])} have no fold in common")
    for member in ensemble.all_members:
        if excluded := sorted(set(member.folds) - set(ensemble.folds)):
            print(f"note: folds {excluded} of {member.run} are not used: not every run has them")
    return ensemble


def require(recipe: Recipe, roots: Sequence[Path]) -> None:
    """Raise InputError if runs of a recipe are missing, with each and how to train it."""
    present = set(fold_run.run_names(roots))
    if missing := [member for member in recipe.members if member.name not in present]:
        listed = "; ".join(f"{member.name}: {member.how_to_train()}" for member in missing)
        raise InputError(
            f"{len(missing)} of {len(recipe.members)} members are not under "
            f"{', '.join(map(str, roots))}: {listed}"
        )


def _predicted(roots: Sequence[Path], run: str) -> dict[int, FoldRun]:
    """Return the folds of a run whose held-out images are predicted, and note the others."""
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
            print(f"note: folds {sorted(some)} of {run} are {state} and not used")
    return folds


def _common_digest(runs: Mapping[str, Mapping[int, FoldRun]]) -> str:
    """Return the digest of the folds file that all were trained on."""
    digests: dict[str, str] = {}
    for folds in runs.values():
        for folder in folds.values():
            digests.setdefault(folder.read_config().folds_digest, folder.name)
    if len(digests) > 1:
        raise InputError(
            f"{' and '.join(digests.values())} were trained on different folds files: train them "
            "again in one WORK_DIR"
        )
    return next(iter(digests))


def _refuse_maskless(run: str, experiment: Experiment, folders: Mapping[int, FoldRun]) -> None:
    if experiment.images == "nih":
        raise InputError(
            f"run {run} was trained on NIH images and predicts none of the competition's: name the "
            "segmentation run that starts from it"
        )
    if not Maps(next(iter(folders.values())).oof).has_maps:
        raise InputError(
            f"run {run} is a classifier and predicts no masks: name the segmentation run that it "
            "gates"
        )


def resolved_gate(asked: str, experiments: Mapping[str, Experiment]) -> tuple[str, tuple[str, ...]]:
    """Return the gate (none, label or sum), and the runs of separate classifiers that gate.

    Without such runs a label gate uses the members' own labels. `auto` is `label` if a member's
    experiment names a classifier, or if one was scored by gated dice and every member has a label
    head; else `none`.
    """
    named = tuple(dict.fromkeys(each.gate for each in experiments.values() if each.gate))
    without_label = [run for run, each in experiments.items() if not each.label_weight]
    gated = [run for run, each in experiments.items() if each.monitor == "dice_gated"]
    if asked == "auto":
        asked = "label" if named or (gated and not without_label) else "none"
        if asked == "none" and gated:
            print(
                f"note: {gated[0]} was scored with its label as a gate, but {without_label[0]} has "
                "none: no gate; -p GATE sum gates by the maps' own sums"
            )
    if asked == "label" and not named and without_label:
        raise InputError(
            f"GATE label, but {without_label[0]} has no label head and its experiment names no "
            "classifier: leave it out, or -p GATE sum, or -p GATE none"
        )
    return asked, named if asked == "label" else ()


def _gate_folds(
    roots: Sequence[Path], run: str, experiments: Mapping[str, Experiment]
) -> dict[int, FoldRun]:
    """Return the predicted folds of a classifier's run."""
    if not fold_run.find(roots, run):
        needs = next(name for name, each in experiments.items() if each.gate == run)
        raise InputError(
            f"{needs} is gated by the run {run}, which is not there: train it, or {needs} again "
            "with -p WITH_PARENTS True, which trains what is missing; or -p GATE none"
        )
    return _predicted(roots, run)
