"""Ensembles (`members.json`): which runs and folds predict together, and how they are combined.

One run is the ensemble of one member. Out of fold, each member predicts an image by the model that
held it out; a test image is predicted by every fold of every member.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, model_validator

from kernel_lib import storage
from kernel_lib.artifacts import fold_run
from kernel_lib.artifacts.filenames import ENSEMBLES, MEMBERS, THRESHOLDS
from kernel_lib.config import Combine, Frozen
from kernel_lib.errors import InputError


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
    # Classifiers whose label gates the masks; if empty, the members' own label heads do.
    gate_members: tuple[Member, ...] = Field((), strict=False)
    folds_digest: str  # of the folds file that all runs were trained on

    @model_validator(mode="after")
    def _each_once(self) -> Self:
        for group in (self.members, self.gate_members):
            names = [member.run for member in group]
            if len(set(names)) < len(names):
                raise ValueError(f"a run is named twice: {', '.join(names)}")
        return self

    @property
    def folds(self) -> tuple[int, ...]:
        """The folds that all members and gate members have."""
        common = set.intersection(*(set(m.folds) for m in self.all_members))
        return tuple(sorted(common))

    @property
    def all_members(self) -> tuple[Member, ...]:
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
        """Return a copy with these weights and the common folds, without weights of 0."""
        kept = tuple(
            Member(run=m.run, folds=self.folds, weight=float(weight))
            for m, weight in zip(self.members, weights, strict=True)
            if weight
        )
        return self.model_copy(update={"members": kept})

    def to_json(self) -> dict[str, Any]:
        # Earlier versions had no gate: leave it out where it is not used, as they did.
        without = {"gate", "gate_members"} if self.gate == "none" else set()
        return self.model_dump(mode="json", exclude=without)

    def save(self, folder: Path) -> None:
        storage.write_json(folder / MEMBERS, self.to_json())

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Read members.json. Raises: InputError where it is missing or damaged."""
        path = folder / MEMBERS
        with named_if_damaged(path):
            return cls.model_validate_json(path.read_text(encoding="utf-8"))


@contextmanager
def named_if_damaged(path: Path) -> Iterator[None]:
    """Raise an InputError naming a file of the thresholds stage where reading it fails."""
    try:
        yield
    except FileNotFoundError:
        raise InputError(_missing(path)) from None
    except (*storage.DAMAGED_FILE_ERRORS, AttributeError, IndexError, TypeError) as error:
        what = f"it lacks {error}" if isinstance(error, KeyError) else error
        raise InputError(
            f"{path} is damaged ({str(what) or type(error).__name__}): run the thresholds stage"
        ) from error


def _missing(path: Path) -> str:
    """Return the message for a missing file, or for a folder that is not an ensemble's."""
    folder, kind = path.parent, ""
    work = next((p.parent for p in (folder, *folder.parents) if p.name == "runs"), None)
    if work is not None:
        kind = " but a run's"
    elif (folder / ENSEMBLES).is_dir():
        work = folder
    elif folder.name == ENSEMBLES:
        work = folder.parent
    elif any((folder / name).is_file() for name in (MEMBERS, THRESHOLDS)):
        return f"{path} is missing: the thresholds stage makes it"
    others = [] if work is None else sorted(work.glob(f"{ENSEMBLES}/*/{THRESHOLDS}"))
    give = " or ".join(str(path.parent) for path in others)
    return f"{folder} is no ensemble's folder{kind}: give " + (
        give or f"WORK_DIR/{ENSEMBLES}/NAME, which the thresholds stage makes"
    )


def find(roots: Sequence[Path], name: str | None) -> Path:
    """Return the folder of an ensemble, or of the only one there is.

    Raises: InputError where the thresholds stage has not made it, or several are there.
    """
    complete, begun = (  # by name; of several roots the first counts
        {p.parent.name: p.parent for root in reversed(roots) for p in sorted(root.glob(pattern))}
        for pattern in (f"{ENSEMBLES}/*/{THRESHOLDS}", f"{ENSEMBLES}/*/{MEMBERS}")
    )
    incomplete = begun.keys() - complete.keys()
    if name in incomplete or (name is None and not complete and len(incomplete) == 1):
        raise InputError(_missing(begun[name or min(incomplete)] / THRESHOLDS))
    if name is None and len(complete) == 1:
        return next(iter(complete.values()))
    if name in complete:
        return complete[name]
    places = ", ".join(str(root) for root in roots)
    trained = fold_run.run_names(roots)
    if not complete and not trained:
        raise InputError(
            f"no runs and no thresholds under {places}: run the train stage, then the thresholds "
            "stage first"
        )
    if not complete:
        raise InputError(
            f"no thresholds under {places}: run the thresholds stage first, with -p RUNS one or "
            f"several of {', '.join(trained)}"
        )
    if name is None:
        raise InputError(
            f"there are several ensembles; name one with -p ENSEMBLE: {', '.join(complete)}"
        )
    fix = f"run the thresholds stage first, -p RUNS {name}" if name in trained else "name one"
    raise InputError(
        f"ENSEMBLE {name} has no thresholds under {places}; there are {', '.join(complete)}: {fix}"
    )
