"""Ensembles: which runs and folds speak together, in what voice, and how they are kept on the disk.

One run is the ensemble of one member. Out of fold an image is predicted by its own fold of each
member; a test image by every fold of every member. No torch in this file.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, Self

from pydantic import Field, ValidationError

from kernel_lib import files
from kernel_lib.config import Combine, Frozen
from kernel_lib.errors import InputError
from kernel_lib.postprocess.thresholds import Triplet
from kernel_lib.postprocess.ways import Choice


class Member(Frozen):
    """One run, the folds of it that take part, and its weight in the mean."""

    run: str
    folds: tuple[int, ...] = Field(strict=False, min_length=1)
    weight: float = Field(1.0, gt=0)


class Ensemble(Frozen):
    """What `members.json` holds."""

    name: str
    members: tuple[Member, ...] = Field(strict=False, min_length=1)
    combine: Combine = "mean"
    gate: Literal["none", "label", "sum"] = "none"
    # Classifiers whose label gates the masks; without any it is the members' own label heads'.
    gate_members: tuple[Member, ...] = Field((), strict=False)
    folds_digest: str

    @property
    def folds(self) -> tuple[int, ...]:
        """The folds that every member has, of masks and of labels."""
        common = set.intersection(*(set(m.folds) for m in self.everyone))
        return tuple(sorted(common))

    @property
    def everyone(self) -> tuple[Member, ...]:
        """All runs that predict: members, and those whose label gates."""
        return (*self.members, *self.gate_members)

    @property
    def weights(self) -> tuple[float, ...]:
        return tuple(m.weight for m in self.members)

    @property
    def by_members(self) -> bool:
        """Whether each member makes a mask of its own, by a rule of its own."""
        return self.combine in ("member_vote", "member_union")

    def taking(self, weights: Sequence[int]) -> Self:
        """The same folds of the members whose weight is above 0, with those weights."""
        kept = tuple(
            Member(run=m.run, folds=self.folds, weight=float(weight))
            for m, weight in zip(self.members, weights, strict=True)
            if weight
        )
        return self.model_copy(update={"members": kept})

    def save(self, folder: Path) -> None:
        # A gate stands there only where there is one, as in what was written before there were any.
        without = {"gate", "gate_members"} if self.gate == "none" else set()
        files.write_json(folder / "members.json", self.model_dump(mode="json", exclude=without))

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Raises InputError where members.json is missing or wrong."""
        path = folder / "members.json"
        try:
            return cls.model_validate_json(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise InputError(f"{path} is missing: the thresholds stage makes it") from None
        except (ValidationError, ValueError) as error:
            raise InputError(f"{path} is damaged ({error}): run the thresholds stage") from None


def find(roots: Sequence[Path], name: str | None) -> Path:
    """The folder of an ensemble, or of the only one there is; InputError otherwise."""
    found: dict[str, Path] = {}
    for root in roots:
        for path in sorted(root.glob("ensembles/*/thresholds.json")):
            found.setdefault(path.parent.name, path.parent)
    if name is None and len(found) == 1:
        return next(iter(found.values()))
    if name in found:
        return found[name]
    there = ", ".join(found) or "none"
    wanted = "name one with -p ENSEMBLE" if name is None else f"{name!r} is not among them"
    raise InputError(
        f"ensembles with thresholds: {there}; {wanted}. The thresholds stage makes them"
    )


def read_choice(folder: Path) -> tuple[Choice, dict]:
    """What an ensemble submits with, one rule or one a member, and its whole thresholds.json."""
    path = folder / "thresholds.json"
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        if "rules" not in document:
            return Choice(Triplet.from_json(document["rule"])), document
        members = Ensemble.load(folder).members
        rules = tuple(Triplet.from_json(document["rules"][m.run]) for m in members)
        return Choice(rules=rules, at_least=int(document["at_least"])), document
    except FileNotFoundError:
        raise InputError(f"{path} is missing: the thresholds stage makes it") from None
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path} is damaged ({error}): run the thresholds stage") from error


def candidates(ensemble: Ensemble, document: dict) -> Ensemble:
    """The members among which a selection chose, in the order of its weights; or all there are."""
    given = document.get("selection", {}).get("candidates")
    if given is None:
        return ensemble
    members = tuple(Member.model_validate(one) for one in given)
    return ensemble.model_copy(update={"members": members})
