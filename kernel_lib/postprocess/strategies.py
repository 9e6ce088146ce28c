"""Strategies: fit rules, weights or votes on the true masks of some images, apply them to others.

All of them are scored by the same nested cross-validation: a rule for a single map (`OneRule`),
members of a mean and its rule (`Greedy`), a rule for each member and the number of members that
must agree (`MemberVote`). Rows are indices of images.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple, Protocol

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

MOST_DRAWS = 30  # of members with replacement; far beyond where the score stops rising
TIE = 2.0**-42  # means closer than this are equal, as in the search

# From one rule per member, and rows: (N, n, 2) int64; for each k in 1…n the pixels that the vote
# shares with the truth, and its area.
VoteCounts = Callable[[Sequence[Triplet], np.ndarray], np.ndarray]


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
    """A robust choice, the top-scoring one, and their searches: one, or one per member."""

    choice: Choice
    peak: Choice
    searches: tuple[SearchResult, ...]


class Strategy(Protocol):
    """What chooses on some rows and is applied to others."""

    @property
    def description(self) -> str:
        """What is chosen besides a rule, to append to the method's description; or ""."""

    def fit(self, rows: np.ndarray, progress: bool = False) -> Fitted:
        """Choose by the truth of these rows, and of no others."""

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

    def fit(self, rows: np.ndarray, progress: bool = False) -> Fitted:
        result = search(self.stats.take(rows), self.options, progress=progress)
        return Fitted(Choice(result.chosen), Choice(result.triplet), (result,))

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
        stats_of: Callable[[tuple[int, ...]], Stacked],
        n_members: int,
        options: SearchOptions = DEFAULT_OPTIONS,
    ) -> None:
        """`stats_of` gives the statistics of all images under integer weights of the members."""
        self.stats_of, self.n_members, self.options = stats_of, n_members, options

    @property
    def description(self) -> str:
        text = " Members and weights of the mean were chosen with it, greedily."
        return text + _label_description(self.options)

    def fit(self, rows: np.ndarray, progress: bool = False) -> Fitted:
        weights, best = (0,) * self.n_members, -math.inf
        for _ in range(MOST_DRAWS):
            scores = {}
            members = range(self.n_members)
            title = f"greedy, draw {sum(weights) + 1}"
            for member in (
                bar(members, desc=title, unit="member", leave=False) if progress else members
            ):
                more = tuple(w + (m == member) for m, w in enumerate(weights))
                scores[more] = best_score(self._stats(more, rows), self.options)
            more = max(scores, key=scores.__getitem__)  # of equals the first
            if scores[more] <= best + TIE:
                break
            weights, best = more, scores[more]
        weights = in_least_terms(weights)
        result = search(self._stats(weights, rows), self.options)
        return Fitted(Choice(result.chosen, weights), Choice(result.triplet, weights), (result,))

    def apply(self, choice: Choice, rows: np.ndarray) -> Outcome:
        return _by_rule(self._stats(choice.weights, rows), choice.triplet)

    def _stats(self, weights: Sequence[int], rows: np.ndarray) -> Stacked:
        return self.stats_of(in_least_terms(weights)).take(rows)


class MemberVote:
    """A mask of each member by its own rule, and a vote of those masks."""

    def __init__(
        self,
        members: Sequence[Stacked],
        counts: VoteCounts,
        at_least: int | None = None,
        options: SearchOptions = DEFAULT_OPTIONS,
    ) -> None:
        """`members` are each member's statistics of all images; `at_least` None is fitted."""
        self.members = [OneRule(stats, options) for stats in members]
        self.counts, self.at_least = counts, at_least

    @property
    def description(self) -> str:
        agreeing = "how many must agree was chosen with it"
        if self.at_least:
            agreeing = f"{self.at_least} must agree, as given"
        return f" Each member has a rule of its own, and {agreeing}." + self.members[0].description

    def fit(self, rows: np.ndarray, progress: bool = False) -> Fitted:
        fitted = [member.fit(rows, progress) for member in self.members]
        rules = tuple(each.choice.triplet for each in fitted)
        choice = Choice(rules=rules, at_least=self.at_least or self._best_k(rules, rows))
        return Fitted(choice, choice, tuple(each.searches[0] for each in fitted))

    def apply(self, choice: Choice, rows: np.ndarray) -> Outcome:
        shared, area = self.counts(choice.rules, rows)[:, choice.at_least - 1].T
        above_tops = [
            areas_above(member.stats.take(rows), rule.top)
            for member, rule in zip(self.members, choice.rules, strict=True)
        ]
        dice = dice_of_counts(shared, area, self._true_px(rows))
        return Outcome(dice, area, np.mean(above_tops, axis=0))

    def _best_k(self, rules: Sequence[Triplet], rows: np.ndarray) -> int:
        """Return the k that scores best on these rows; on a tie the largest (smallest masks)."""
        counts, true_px = self.counts(rules, rows), self._true_px(rows)
        shared, area = counts[:, :, 0].T, counts[:, :, 1].T  # (n, N)
        scores = [mean_dice(dice) for dice in dice_of_counts(shared, area, true_px)]
        return max(k for k, score in enumerate(scores, 1) if score >= max(scores) - TIE)

    def _true_px(self, rows: np.ndarray) -> np.ndarray:
        return self.members[0].stats.take(rows).true_px


def in_least_terms(weights: Sequence[int]) -> tuple[int, ...]:
    """Return integer weights of the same mean without a common factor: (2, 0) is (1, 0)."""
    common = math.gcd(*weights) or 1
    return tuple(weight // common for weight in weights)


def _by_rule(stats: Stacked, rule: Triplet) -> Outcome:
    return Outcome(per_image_dice(stats, rule), areas(stats, rule), areas_above(stats, rule.top))


def _label_description(options: SearchOptions) -> str:
    text = " The label's threshold is part of each rule and was chosen with it."
    return text if options.label else ""
