"""Strategies: fit rules, weights or votes on the true masks of some images, apply them to others.

All of them are scored by the same nested cross-validation: a rule for a single map (`OneRule`),
members of a mean and its rule (`Greedy`), a rule for each member and the number of members that
must agree (`MemberVote`). Rows are indices of images.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, MutableMapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, Protocol

import numpy as np

from kernel_lib.notebook import bar
from kernel_lib.postprocess.histograms import Stacked, areas, areas_above, per_image_dice
from kernel_lib.postprocess.metrics import dice_of_counts, mean_dice
from kernel_lib.postprocess.search import (
    DEFAULT_OPTIONS,
    SearchOptions,
    SearchResult,
    best_score,
    search,
    searches_label,
)
from kernel_lib.postprocess.triplet import Triplet

MAX_DRAWS = 30  # of members, with replacement; scores stop rising far earlier
TIE = 2.0**-42  # means closer than this are equal, as in the search

Weights = tuple[int, ...]
# From K weightings of the members, the statistics of all images under each.
StatsOf = Callable[[Sequence[Weights]], Iterable[Stacked]]
# The same; the text is the title of a progress bar, None for no bar.
CandidatesOf = Callable[[Sequence[Weights], str | None], Iterable[Stacked]]
# From R sets of a rule per member, (R, N images, n members, 2) int64: [..., k - 1, :] are the
# intersection with the truth and the area, in px, of the mask by at least k votes.
VoteCounts = Callable[[Sequence[Sequence[Triplet]]], np.ndarray]
# Names and JSON values: what a search has found, and need not find again after a stop.
Record = MutableMapping[str, Any]


@dataclass(frozen=True)
class Choice:
    """What a strategy chose on true masks; None for what it does not choose."""

    triplet: Triplet | None = None  # of the mean map
    weights: tuple[int, ...] | None = None  # of the members in that map, 0 = left out
    rules: tuple[Triplet, ...] | None = None  # of each member's own map
    at_least: int | None = None  # members that must agree


class Outcome(NamedTuple):
    """The masks that a choice makes of N images, in the images' own pixels."""

    dice: np.ndarray  # (N,) 0–1
    area_px: np.ndarray  # (N,)
    above_top_px: np.ndarray  # (N,) pixels above the rule's `top`, whether the mask is kept or not


@dataclass(frozen=True)
class Fitted:
    """The choice from the plateau, the best-scoring one (of a vote the same), and their searches.

    One search, or one per member; a vote keeps those of its first set of rows only.
    """

    choice: Choice
    peak: Choice
    searches: tuple[SearchResult, ...]


class Strategy(Protocol):
    """What chooses on some rows and is applied to others, each set of rows by itself."""

    @property
    def description(self) -> str:
        """What is chosen besides a rule, to append to the method's description; or ""."""

    def fit(self, row_sets: Sequence[np.ndarray], progress: bool = False) -> list[Fitted]:
        """Choose for each set of rows by its own truth only; the first set is what is reported."""

    def apply(self, choice: Choice, rows: np.ndarray) -> Outcome:
        """Return what the choice makes of these rows."""


class OneRule:
    """One map an image, one rule for all of them."""

    def __init__(self, stats: Stacked, options: SearchOptions = DEFAULT_OPTIONS) -> None:
        """Raises InputError where `options.label` is True and an image has none."""
        self.stats = stats
        self.options = replace(options, label=searches_label(stats, options.label))

    @property
    def description(self) -> str:
        return _label_description(self.options)

    def fit(self, row_sets: Sequence[np.ndarray], progress: bool = False) -> list[Fitted]:
        results = [
            search(self.stats.take(rows), self.options, progress=progress and at == 0)
            for at, rows in enumerate(row_sets)
        ]
        return [Fitted(Choice(each.chosen), Choice(each.triplet), (each,)) for each in results]

    def apply(self, choice: Choice, rows: np.ndarray) -> Outcome:
        return _by_rule(self.stats.take(rows), choice.triplet)


class Greedy:
    """Members drawn with replacement into the mean that scores best, and its rule.

    The best member comes first; then, again and again, the one whose addition raises the score of
    the best rule most, until none does. The number of times a member was drawn is its weight.

    Source: Caruana et al. 2004, "Ensemble selection from libraries of models".
    """

    def __init__(
        self,
        stats_of: StatsOf,
        n_members: int,
        options: SearchOptions = DEFAULT_OPTIONS,
        candidates_of: CandidatesOf | None = None,
        record: Record | None = None,
    ) -> None:
        """`stats_of` takes integer weights of the members.

        `candidates_of` does the same for those of a draw, which need not be kept.
        """
        self.stats_of, self.n_members, self.options = stats_of, n_members, options
        self.candidates_of = candidates_of or (lambda weightings, title: stats_of(weightings))
        self.record = {} if record is None else record
        self._chosen: dict[Weights, Stacked] = {}

    @property
    def description(self) -> str:
        text = " Members and weights of the mean were chosen with it, greedily."
        return text + _label_description(self.options)

    def fit(self, row_sets: Sequence[np.ndarray], progress: bool = False) -> list[Fitted]:
        nothing = (0,) * self.n_members
        selections = [_Selection(at, rows, nothing) for at, rows in enumerate(row_sets)]
        for draw in range(1, MAX_DRAWS + 1):
            growing = [each for each in selections if not each.ended]
            if not growing:
                break
            began = time.monotonic()
            self._draw(growing, f"greedy, draw {draw}" if progress else None)
            if progress:
                print(_progress(draw, selections, time.monotonic() - began))
        chosen = dict.fromkeys(in_lowest_terms(each.weights) for each in selections)
        self._chosen = dict(zip(chosen, self.stats_of(list(chosen)), strict=True))
        return [self._fitted(each) for each in selections]

    def apply(self, choice: Choice, rows: np.ndarray) -> Outcome:
        if choice.weights not in self._chosen:
            (self._chosen[choice.weights],) = self.stats_of([choice.weights])
        return _by_rule(self._chosen[choice.weights].take(rows), choice.triplet)

    def _fitted(self, selection: _Selection) -> Fitted:
        weights = in_lowest_terms(selection.weights)
        result = search(self._chosen[weights].take(selection.rows), self.options)
        return Fitted(Choice(result.chosen, weights), Choice(result.triplet, weights), (result,))

    def _draw(self, selections: Sequence[_Selection], title: str | None) -> None:
        """Add to each selection the member that raises its score most, or end it."""
        wanted: dict[Weights, list[_Selection]] = {}
        for selection in selections:
            for more in selection.candidates():
                weights = in_lowest_terms(more)
                if selection.name(weights) not in self.record:
                    wanted.setdefault(weights, []).append(selection)
        shown = title and f"{title}, weightings: {len(wanted)}"
        found = iter(self.candidates_of(list(wanted), shown) if wanted else ())
        for weights, by in wanted.items():
            stats = next(found)
            for selection in by:
                score = best_score(stats.take(selection.rows), self.options)
                self.record[selection.name(weights)] = score
            del stats  # which keeps all of its pass in memory, when the next pass begins
        for selection in selections:
            selection.grow(self.record)


@dataclass
class _Selection:
    """The members drawn so far for one set of rows."""

    index: int  # of the set of rows
    rows: np.ndarray
    weights: Weights
    score: float = -math.inf
    ended: bool = False  # no member raises the score

    def candidates(self) -> list[Weights]:
        """Return the weights with one draw more, of each member."""
        members = range(len(self.weights))
        return [tuple(w + (m == more) for m, w in enumerate(self.weights)) for more in members]

    def name(self, weights: Weights) -> str:
        """Return the name under which the score of a weighting is recorded."""
        return f"{self.index}: {' '.join(map(str, weights))}"

    def grow(self, record: Record) -> None:
        scores = {more: record[self.name(in_lowest_terms(more))] for more in self.candidates()}
        more = max(scores, key=scores.__getitem__)  # of equals the first
        if scores[more] <= self.score + TIE:
            self.ended = True
        else:
            self.weights, self.score = more, scores[more]


def _progress(draw: int, selections: Sequence[_Selection], seconds: float) -> str:
    n = sum(not each.ended for each in selections)
    return (
        f"greedy, draw {draw}: score in sample {selections[0].score:.4f}, {seconds:.0f} s; {n} of "
        f"{len(selections)} selections go on, for at most {MAX_DRAWS - draw} draws"
    )


class MemberVote:
    """A mask of each member by its own rule, and a vote of those masks."""

    def __init__(
        self,
        members: Sequence[Stacked],
        counts: VoteCounts,
        at_least: int | None = None,
        options: SearchOptions = DEFAULT_OPTIONS,
        record: Record | None = None,
    ) -> None:
        """`members` are each member's statistics of all images; `at_least` None is fitted.

        Rules in `record` are not searched again, but for those of the first set of rows, whose
        searches a report shows.
        """
        self.members = [OneRule(stats, options) for stats in members]
        self.counts, self.at_least = counts, at_least
        self.record = {} if record is None else record
        self._counted: dict[tuple[Triplet, ...], np.ndarray] = {}

    @property
    def description(self) -> str:
        agreeing = "how many must agree was chosen with it"
        if self.at_least:
            agreeing = f"{self.at_least} must agree, as given"
        return f" Each member has a rule of its own, and {agreeing}." + self.members[0].description

    def fit(self, row_sets: Sequence[np.ndarray], progress: bool = False) -> list[Fitted]:
        searches, rules = [], []
        searched = [(at, m) for at in range(len(row_sets)) for m in range(len(self.members))]
        for at, m in bar(searched, desc="members' rules", unit="search", disable=not progress):
            if at == 0:
                (fitted,) = self.members[m].fit(row_sets[:1])
                searches += fitted.searches
                rules.append(fitted.choice.triplet)
            else:
                rules.append(self._rule(at, m, row_sets[at]))
        n = len(self.members)
        rule_sets = [tuple(rules[i : i + n]) for i in range(0, len(rules), n)]
        self._count(rule_sets)
        choices = [
            Choice(rules=each, at_least=self.at_least or self._best_k(each, rows))
            for each, rows in zip(rule_sets, row_sets, strict=True)
        ]
        first, *others = (Fitted(choice, choice, ()) for choice in choices)
        return [replace(first, searches=tuple(searches)), *others]

    def apply(self, choice: Choice, rows: np.ndarray) -> Outcome:
        self._count([choice.rules])
        shared, area = self._counted[choice.rules][rows, choice.at_least - 1].T
        above_tops = [
            areas_above(member.stats.take(rows), rule.top)
            for member, rule in zip(self.members, choice.rules, strict=True)
        ]
        dice = dice_of_counts(shared, area, self._true_px(rows))
        return Outcome(dice, area, np.mean(above_tops, axis=0))

    def _rule(self, at: int, member: int, rows: np.ndarray) -> Triplet:
        """Return the rule of a member for a set of rows, from the record if it is there."""
        name = f"{at}: {member}"
        if name not in self.record:
            (fitted,) = self.members[member].fit([rows])
            self.record[name] = fitted.choice.triplet.to_json()
        return Triplet.from_json(self.record[name])

    def _count(self, rule_sets: Sequence[tuple[Triplet, ...]]) -> None:
        """Count the votes of all images by rules that were not counted yet, in one pass."""
        new = [rules for rules in dict.fromkeys(rule_sets) if rules not in self._counted]
        if new:
            self._counted.update(zip(new, self.counts(new), strict=True))

    def _best_k(self, rules: tuple[Triplet, ...], rows: np.ndarray) -> int:
        """Return the k that scores best on these rows; on a tie the largest (smallest masks)."""
        counts, true_px = self._counted[rules][rows], self._true_px(rows)
        shared, area = counts[:, :, 0].T, counts[:, :, 1].T  # (n, N)
        scores = [mean_dice(dice) for dice in dice_of_counts(shared, area, true_px)]
        return max(k for k, score in enumerate(scores, 1) if score >= max(scores) - TIE)

    def _true_px(self, rows: np.ndarray) -> np.ndarray:
        return self.members[0].stats.take(rows).true_px


def in_lowest_terms(weights: Sequence[int]) -> tuple[int, ...]:
    """Return integer weights of the same mean without a common factor: (2, 0) is (1, 0)."""
    common = math.gcd(*weights) or 1
    return tuple(weight // common for weight in weights)


def _by_rule(stats: Stacked, rule: Triplet) -> Outcome:
    return Outcome(per_image_dice(stats, rule), areas(stats, rule), areas_above(stats, rule.top))


def _label_description(options: SearchOptions) -> str:
    text = " The label's threshold is part of each rule and was chosen with it."
    return text if options.label else ""
