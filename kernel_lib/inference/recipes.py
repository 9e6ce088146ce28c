"""Ensembles as data: a file that names members, how they are combined, and how that is chosen.

Shipped ones lie in `kernel_lib/ensembles/<name>.json`; a user's own may lie anywhere.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

from pydantic import Field, ValidationError, field_validator, model_validator

from kernel_lib.artifacts import fold_run
from kernel_lib.config import Choose, Combine, Frozen, Gate, TrainParameters
from kernel_lib.errors import InputError
from kernel_lib.experiments import EXPERIMENTS
from kernel_lib.inference.ensemble_maps import one_hot
from kernel_lib.inference.out_of_fold import OutOfFold
from kernel_lib.plan import find_experiment, plan_training
from kernel_lib.postprocess.search import SearchOptions
from kernel_lib.postprocess.strategies import Greedy, MemberVote, OneRule, Strategy

SHIPPED = Path(__file__).parent.parent / "ensembles"


class RecipeMember(Frozen):
    """A run by its row and seed, or by its name, and its weight in a mean."""

    experiment: str | None = None
    seed: int | None = Field(None, ge=0)
    run: str | None = None
    weight: float = 1.0

    @field_validator("weight")
    @classmethod
    def _weight_counts(cls, weight: float) -> float:
        if not 0 < weight < float("inf"):
            raise ValueError(f"{weight} is no weight: give one above 0, or leave the member out")
        return weight

    @model_validator(mode="after")
    def _named_in_one_way(self) -> Self:
        by_row = (self.experiment is not None, self.seed is not None)
        if by_row not in ((True, True), (False, False)) or any(by_row) == (self.run is not None):
            raise ValueError('a member is {"experiment": row, "seed": n} or {"run": name}')
        if self.experiment is not None:
            find_experiment(self.experiment, EXPERIMENTS)
        return self

    @property
    def name(self) -> str:
        """The run's name."""
        return self.run if self.run is not None else self._plan().run

    def how_to_train(self) -> str:
        """The words of a command that trains it."""
        if self.run is not None:
            return "train it, or correct the name"
        chain = " -p WITH_PARENTS True" if self._plan().needs() else ""
        return f"train it with -p EXPERIMENT {self.experiment} -p SEED {self.seed}{chain}"

    def _plan(self):
        return plan_training(
            TrainParameters(experiment=self.experiment, seed=self.seed), EXPERIMENTS
        )


class Recipe(Frozen):
    """What a recipe's file holds."""

    says: str = ""
    members: tuple[RecipeMember, ...] = Field(strict=False, min_length=1)
    combine: Combine = "mean"
    choose: Choose = "none"
    at_least: int | None = None  # members that must agree; None: chosen
    gate: Gate = "auto"
    leaderboard: str | None = None  # the notes' figure, never ours

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        names = [member.name for member in self.members]
        weighted = any(member.weight != 1 for member in self.members)
        by_members = self.combine in ("member_vote", "member_union")
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"{name} is named twice: name it once, with the sum as its weight")
        if self.choose == "greedy" and (self.combine != "mean" or weighted):
            raise ValueError(
                f"choose greedy, with combine {self.combine}{' and weights' * weighted}: greedy "
                "finds members and weights of a mean; take combine mean, and leave weights out"
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
                f"combine {self.combine} of {len(names)} members{' with weights' * weighted}: each "
                "has one voice; name two or more, without weights, or take combine mean"
            )
        return self

    def differing(self, **changes: Any) -> Recipe:
        """This recipe with what is given and not None; InputError where it does not fit together.

        Another way to combine leaves behind what belongs to the recipe's own.
        """
        given = {name: value for name, value in changes.items() if value is not None}
        values = self.model_dump()
        if given.get("combine", self.combine) != self.combine:
            values |= {"choose": "none", "at_least": None}
        return _checked(values | given, "the ensemble")


def of_runs(names: Sequence[str]) -> Recipe:
    """The mean of these runs."""
    return _checked({"members": [{"run": name} for name in names]}, "the runs")


def shipped() -> tuple[str, ...]:
    """Names of the recipes that come with the library."""
    return tuple(sorted(path.stem for path in SHIPPED.glob("*.json")))


def read(path: Path) -> Recipe:
    """A recipe's file; InputError naming it, each field at fault, and the fix."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path} cannot be read ({error}): give a recipe's JSON") from None
    return _checked(text, str(path))


def require(recipe: Recipe, roots: Sequence[Path]) -> None:
    """Refuse a recipe whose runs are not all there, naming each and how to train it."""
    there = set(fold_run.run_names(roots))
    if missing := [member for member in recipe.members if member.name not in there]:
        listed = "; ".join(f"{member.name}: {member.how_to_train()}" for member in missing)
        raise InputError(
            f"{len(missing)} of {len(recipe.members)} members are not under "
            f"{', '.join(map(str, roots))}: {listed}"
        )


def _checked(values: str | Mapping[str, Any], where: str) -> Recipe:
    try:
        if isinstance(values, str):
            return Recipe.model_validate_json(values)
        return Recipe.model_validate(values)
    except ValidationError as error:
        faults = []
        for fault in error.errors():
            place = ".".join(str(part) for part in fault["loc"])
            faults.append(f"{place}: " * bool(place) + fault["msg"].removeprefix("Value error, "))
        raise InputError(f"{where}: {'; '.join(faults)}") from None


def strategy_of(held: OutOfFold, recipe: Recipe, *, single: bool = False) -> Strategy:
    """What a recipe leaves to be chosen on labels: a rule, members and weights, or rules and k.

    `single` holds top == bottom in every rule.
    """
    ensemble = held.ensemble
    options = SearchOptions(single=single, label=ensemble.gate != "none")
    n_members = len(ensemble.members)
    if ensemble.by_members:
        members = [held.gated(one_hot(n_members, at)) for at in range(n_members)]
        return MemberVote(members, held.vote_counts, recipe.at_least, options)
    if recipe.choose == "greedy":
        return Greedy(held.gated, n_members, options)
    return OneRule(held.gated(ensemble.weights), options)
