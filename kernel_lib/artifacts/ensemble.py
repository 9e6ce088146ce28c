"""Ensembles: which runs and folds speak together, in what voice, and how they are kept on the disk.

One run is the ensemble of one member. Out of fold an image is predicted by its own fold of each
member; a test image by every fold of every member. No torch in this file.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, model_validator

from kernel_lib import archives, storage
from kernel_lib.artifacts import fold_run
from kernel_lib.config import Combine, Frozen
from kernel_lib.errors import InputError
from kernel_lib.postprocess.nested_cv_report import HonestReport
from kernel_lib.postprocess.strategies import Choice
from kernel_lib.postprocess.triplet import Triplet


class Member(Frozen):
    """One run, the folds of it that take part, and its weight in the mean."""

    run: str
    folds: tuple[int, ...] = Field(strict=False, min_length=1)
    weight: float = Field(1.0, gt=0, allow_inf_nan=False)


class Ensemble(Frozen):
    """What `members.json` holds."""

    name: str
    members: tuple[Member, ...] = Field(strict=False, min_length=1)
    combine: Combine = "mean"
    gate: Literal["none", "label", "sum"] = "none"
    # Classifiers whose label gates the masks; without any it is the members' own label heads'.
    gate_members: tuple[Member, ...] = Field((), strict=False)
    folds_digest: str

    @model_validator(mode="after")
    def _each_once(self) -> Self:
        for group in (self.members, self.gate_members):
            names = [member.run for member in group]
            if len(set(names)) < len(names):
                raise ValueError(f"a run is named twice: {', '.join(names)}")
        return self

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

    def to_json(self) -> dict[str, Any]:
        # A gate stands there only where there is one, as in what was written before there were any.
        without = {"gate", "gate_members"} if self.gate == "none" else set()
        return self.model_dump(mode="json", exclude=without)

    def save(self, folder: Path) -> None:
        storage.write_json(folder / "members.json", self.to_json())

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Raises InputError where members.json is missing or wrong."""
        path = folder / "members.json"
        with named_if_damaged(path):
            return cls.model_validate_json(path.read_text(encoding="utf-8"))


@contextmanager
def named_if_damaged(path: Path) -> Iterator[None]:
    """InputError that names a file of the thresholds stage, where reading it meanwhile fails."""
    try:
        yield
    except FileNotFoundError:
        raise InputError(_missing(path)) from None
    except (*archives.FAULTS, AttributeError, IndexError, TypeError) as error:
        what = f"it lacks {error}" if isinstance(error, KeyError) else error
        raise InputError(
            f"{path} is damaged ({str(what) or type(error).__name__}): run the thresholds stage"
        ) from error


_FILES = ("members.json", "thresholds.json")


def _missing(path: Path) -> str:
    """What to say where a file of an ensemble's folder is not there; is it another folder?"""
    folder, kind = path.parent, ""
    work = next((p.parent for p in (folder, *folder.parents) if p.name == "runs"), None)
    if work is not None:
        kind = " but a run's"
    elif (folder / "ensembles").is_dir():
        work = folder
    elif folder.name == "ensembles":
        work = folder.parent
    elif any((folder / name).is_file() for name in _FILES):
        return f"{path} is missing: the thresholds stage makes it"
    there = [] if work is None else sorted(work.glob("ensembles/*/thresholds.json"))
    give = " or ".join(str(one.parent) for one in there)
    return f"{folder} is no ensemble's folder{kind}: give " + (
        give or "WORK_DIR/ensembles/NAME, which the thresholds stage makes"
    )


def find(roots: Sequence[Path], name: str | None) -> Path:
    """Return the folder of an ensemble, or of the only one there is.

    Raises: InputError where the thresholds stage has not made it, or several are there.
    """
    found, begun = (
        {p.parent.name: p.parent for root in reversed(roots) for p in sorted(root.glob(pattern))}
        for pattern in ("ensembles/*/thresholds.json", "ensembles/*/members.json")
    )
    lost = begun.keys() - found.keys()
    if name in lost or (name is None and not found and len(lost) == 1):
        raise InputError(_missing(begun[name or min(lost)] / "thresholds.json"))
    if name is None and len(found) == 1:
        return next(iter(found.values()))
    if name in found:
        return found[name]
    places = ", ".join(str(root) for root in roots)
    trained = fold_run.names(roots)
    if not found and not trained:
        raise InputError(
            f"no runs and no thresholds under {places}: run the train stage, then the thresholds "
            "stage first"
        )
    if not found:
        raise InputError(
            f"no thresholds under {places}: run the thresholds stage first, with -p RUNS one or "
            f"several of {', '.join(trained)}"
        )
    if name is None:
        raise InputError(
            f"several ensembles are there; name one with -p ENSEMBLE: {', '.join(found)}"
        )
    fix = f"run the thresholds stage first, -p RUNS {name}" if name in trained else "name one"
    raise InputError(
        f"ENSEMBLE {name} has no thresholds under {places}; there are {', '.join(found)}: {fix}"
    )


@dataclass(frozen=True)
class Scores:
    """The nested cross-validated scores in a thresholds.json, and what they may claim."""

    kept: HonestReport  # of the kept checkpoints, by whose rule is submitted
    last: HonestReport  # of the last EMA weights
    past_known: bool  # False: a member may have been trained on these images
    kept_selected: bool  # whether the labels of these images selected an epoch, or may have
    last_selected: bool
    of_images: int | None = None  # in the folds file, where folds of it are not in these scores

    @property
    def coverage(self) -> str:
        """Of how many images the scores are, where that is not all of them; else ""."""
        if self.of_images is None:
            return ""
        return f"{self.kept.n_images:,} of {self.of_images:,} images"

    @property
    def first(self) -> HonestReport:
        """The score that comes first: the one in which no label selected an epoch, if any."""
        return self.last if self.kept_selected else self.kept

    @property
    def first_is_honest(self) -> bool:
        """Whether the first score is, which early stopping by these labels prevents, too."""
        return self.is_honest(self.kept_selected and self.last_selected)

    def is_honest(self, selected: bool) -> bool:
        """Return whether a score is of images that neither trained a member nor selected it."""
        return self.past_known and not selected

    @classmethod
    def of(cls, document: dict) -> Self:
        """Return the scores of a thresholds.json; what earlier versions wrote may be selected."""
        kept, last = (HonestReport.from_json(document[name]) for name in ("honest", "last"))
        selected = document.get("epochs_selected", {"honest": True, "last": True})
        return cls(
            kept,
            last,
            document["past_known"],
            selected["honest"],
            selected["last"],
            document.get("of_images"),
        )


def read_choice(folder: Path) -> tuple[Choice, dict]:
    """What an ensemble submits with, one rule or one a member, and its whole thresholds.json.

    Raises InputError where that is missing, or lacks anything that is read of it, and where
    members.json is not the ensemble that it was searched for.
    """
    path = folder / "thresholds.json"
    with named_if_damaged(path):
        document = json.loads(path.read_text(encoding="utf-8"))
        by_members = "rules" in document
        choice = None if by_members else Choice(Triplet.from_json(document["rule"]))
        _check_scores(document)
        searched = document.get("ensemble")  # earlier versions did not write it
    if searched is not None and searched != Ensemble.load(folder).to_json():
        raise InputError(
            f"{folder / 'members.json'} is not the ensemble that the rule of {path} was searched "
            "for: run the thresholds stage"
        )
    if choice is None:
        members = Ensemble.load(folder).members
        with named_if_damaged(path):
            rules = tuple(Triplet.from_json(document["rules"][m.run]) for m in members)
            choice = Choice(rules=rules, at_least=document["at_least"])
            if choice.at_least not in range(1, len(rules) + 1):
                raise ValueError(f"at_least is {choice.at_least!r} of {len(rules)}")
    return choice, document


def _check_scores(document: dict) -> None:
    """Fail where a thresholds.json lacks what reports read beside the rule."""
    scores = Scores.of(document)
    for report in (scores.kept, scores.last):
        if type(report.n_images) is not int:
            raise ValueError(f"n_images is {report.n_images!r}")
    if type(scores.of_images) not in (int, type(None)):
        raise ValueError(f"of_images is {scores.of_images!r}")
    for name in ("past_known", "kept_selected", "last_selected"):
        if not isinstance(getattr(scores, name), bool):
            raise ValueError(f"{name} is {getattr(scores, name)!r}")
    for made in searches(document).values():
        if not isinstance(made["single"], bool):
            raise ValueError(f"single is {made['single']!r}")
    for one in document.get("selection", {}).get("candidates", ()):
        Member.model_validate(one)


def searches(document: dict) -> dict[str, dict]:
    """What thresholds.json says of each search, by its member's name where there are several."""
    return document["searches"] if "searches" in document else {"": document["search"]}


def candidates(ensemble: Ensemble, document: dict) -> Ensemble:
    """The members among which a selection chose, in the order of its weights; or all there are."""
    given = document.get("selection", {}).get("candidates")
    if given is None:
        return ensemble
    members = tuple(Member.model_validate(one) for one in given)
    return ensemble.model_copy(update={"members": members})
