"""Decisions (`thresholds.json`): the rule that an ensemble submits with, and its scores."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Self

from kernel_lib import storage
from kernel_lib.artifacts.ensemble import Ensemble, Member, named_if_damaged
from kernel_lib.artifacts.filenames import MEMBERS, THRESHOLDS
from kernel_lib.errors import InputError
from kernel_lib.postprocess.calibration import Logistic
from kernel_lib.postprocess.nested_cv_report import NestedCVReport
from kernel_lib.postprocess.search import SearchResult
from kernel_lib.postprocess.strategies import Choice
from kernel_lib.postprocess.triplet import Triplet


@dataclass(frozen=True)
class Scores:
    """The nested cross-validated scores in a thresholds.json, and what they may claim."""

    kept: NestedCVReport  # of the kept checkpoints, by whose rule is submitted
    last: NestedCVReport  # of the last EMA weights
    past_known: bool  # False: a member may have been trained on these images
    kept_selected: bool  # whether the labels of these images selected an epoch, or may have
    last_selected: bool
    of_images: int | None = None  # in the folds file, where folds of it are not in these scores

    @property
    def coverage(self) -> str:
        """The number of images scored, where that is not all of them; else ""."""
        if self.of_images is None:
            return ""
        return f"{self.kept.n_images:,} of {self.of_images:,} images"

    @property
    def first(self) -> NestedCVReport:
        """The score to show first: the one in which no label selected an epoch, if any."""
        return self.last if self.kept_selected else self.kept

    @property
    def first_is_honest(self) -> bool:
        """Whether the first score is honest, which early stopping by these labels prevents."""
        return self.is_honest(self.kept_selected and self.last_selected)

    def is_honest(self, selected: bool) -> bool:
        """Return whether a score is of images that neither trained a member nor selected it."""
        return self.past_known and not selected

    def to_json(self) -> dict[str, Any]:
        """Return all but `of_images`, which is at the end of a thresholds.json."""
        return {
            "past_known": self.past_known,
            "epochs_selected": {"honest": self.kept_selected, "last": self.last_selected},
            "honest": self.kept.to_json(),
            "last": self.last.to_json(),
        }

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> Self:
        """Return the scores of a thresholds.json; what earlier versions wrote may be selected.

        Raises an error of `storage.DAMAGED_FILE_ERRORS`, TypeError or AttributeError for a wrong
        document.
        """
        kept, last = (NestedCVReport.from_json(document[name]) for name in ("honest", "last"))
        selected = document.get("epochs_selected", {"honest": True, "last": True})
        past_known, of_images = document["past_known"], document.get("of_images")
        scores = cls(kept, last, past_known, selected["honest"], selected["last"], of_images)
        for report in (kept, last):
            if type(report.n_images) is not int:
                raise ValueError(f"n_images is {report.n_images!r}")
        if type(of_images) not in (int, type(None)):
            raise ValueError(f"of_images is {of_images!r}")
        for name in ("past_known", "kept_selected", "last_selected"):
            if not isinstance(getattr(scores, name), bool):
                raise ValueError(f"{name} is {getattr(scores, name)!r}")
        return scores


class Searched(NamedTuple):
    """The options of a search, by which it can be repeated."""

    single: bool  # top and bottom are one threshold
    label_swept: bool  # the classification threshold was searched too


@dataclass(frozen=True)
class Decision:
    """What the thresholds stage decided for an ensemble.

    Archives are named run/fold/file in `predicted_by`, each with the digests of the checkpoints
    that predicted it.
    """

    ensemble: Ensemble  # as it goes on to the test images
    candidates: Ensemble  # the members among which a selection chose, in its weights' order
    choice: Choice
    scores: Scores
    searches: Mapping[str, Searched]  # by member where each has a rule, else of the ensemble
    predicted_by: Mapping[str, Any]
    calibration: Logistic | None = None  # image-level probability; earlier versions had none
    from_statistics: bool = False  # of held-out images whose maps were elsewhere

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Read `thresholds.json` and `members.json` of an ensemble's folder.

        Raises InputError where one is missing or lacks anything that is read of it, and where
        members.json is not the ensemble that the rule was searched for.
        """
        path = folder / THRESHOLDS
        with named_if_damaged(path):
            document = json.loads(path.read_text(encoding="utf-8"))
            by_members = "rules" in document
            choice = None if by_members else Choice(Triplet.from_json(document["rule"]))
            scores = Scores.from_json(document)
            searches = _searches(document)
            selected = document.get("selection", {}).get("candidates")
            candidates = selected and tuple(map(Member.model_validate, selected))
            curve = document.get("calibration")
            calibration = curve and Logistic.from_json(curve)
            searched_for = document.get("ensemble")  # earlier versions did not write it
            from_statistics = document.get("from_statistics", False) is True
        ensemble = Ensemble.load(folder)
        if searched_for is not None and searched_for != ensemble.to_json():
            raise InputError(
                f"{folder / MEMBERS} is not the ensemble that the rule of {path} was searched "
                "for: run the thresholds stage"
            )
        if choice is None:
            with named_if_damaged(path):
                choice = _rules_of_members(document, ensemble)
        return cls(
            ensemble=ensemble,
            candidates=ensemble.model_copy(update={"members": candidates or ensemble.members}),
            choice=choice,
            scores=scores,
            searches=searches,
            predicted_by=document.get("predicted_by", {}),
            calibration=calibration,
            from_statistics=from_statistics,
        )

    def save(self, folder: Path, searches: Mapping[str, SearchResult]) -> None:
        """Write both files; `searches` are what `self.searches` summarises."""
        document: dict[str, Any] = {}
        results = {name: result.to_json() for name, result in searches.items()}
        if self.choice.rules is None:
            document["rule"] = self.choice.triplet.to_json()
            (document["search"],) = results.values()
        else:
            rules = zip(results, self.choice.rules, strict=True)
            document["rules"] = {name: rule.to_json() for name, rule in rules}
            document["at_least"] = self.choice.at_least
            document["searches"] = results
        if self.choice.weights is not None:
            document["selection"] = {
                "choose": "greedy",
                "candidates": [m.model_dump(mode="json") for m in self.candidates.members],
                "weights": list(self.choice.weights),
            }
        if self.ensemble.gate != "none":
            by = [m.run for m in self.candidates.gate_members or self.candidates.members]
            document["gate"] = {"by": self.ensemble.gate, "runs": by}
        document |= self.scores.to_json()
        document |= {"ensemble": self.ensemble.to_json(), "predicted_by": dict(self.predicted_by)}
        if self.calibration is not None:
            document["calibration"] = self.calibration.to_json()
        if self.from_statistics:
            document["from_statistics"] = True
        if self.scores.of_images is not None:
            document["of_images"] = self.scores.of_images
        self.ensemble.save(folder)
        storage.write_json(folder / THRESHOLDS, document)


def _searches(document: Mapping[str, Any]) -> dict[str, Searched]:
    given = document["searches"] if "searches" in document else {"": document["search"]}
    for values in given.values():
        if not isinstance(values["single"], bool):
            raise ValueError(f"single is {values['single']!r}")
    return {
        name: Searched(values["single"], values.get("label_swept", False))
        for name, values in given.items()
    }


def _rules_of_members(document: Mapping[str, Any], ensemble: Ensemble) -> Choice:
    rules = tuple(Triplet.from_json(document["rules"][m.run]) for m in ensemble.members)
    choice = Choice(rules=rules, at_least=document["at_least"])
    if choice.at_least not in range(1, len(rules) + 1):
        raise ValueError(f"at_least is {choice.at_least!r} of {len(rules)}")
    return choice
