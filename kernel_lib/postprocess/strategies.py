"""Ways to come from held-out images to masks: what is chosen on labels, and what that decides.

A way chooses on some rows and decides on others, so that one cross-fit (`honest`) serves them all:
one rule for one map (`OneRule`), members of a mean and its rule (`Greedy`), a rule for each member
and the number that must agree (`MemberVote`). Rows are indices of images.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np

from kernel_lib.postprocess.histograms import Stacked, areas, areas_above, per_image_dice
from kernel_lib.postprocess.metrics import dice_of_counts, mean_dice
from kernel_lib.postprocess.plateau import Chooser
from kernel_lib.postprocess.search import SearchResult, best_score, search, sweeps_label
from kernel_lib.postprocess.triplet import Triplet
from kernel_lib.progress import bar

MOST_DRAWS = 30  # of members with replacement; far beyond where it has stopped gaining
TIE = 2.0**-42  # means closer than this are one, as in the search

# Of rules, one a member, and rows: (N, n, 2) int64, for each k of 1…n the pixels that the vote
# shares with the truth, and its area.
VoteCounts = Callable[[Sequence[Triplet], np.ndarray], np.ndarray]


@dataclass(frozen=True)
class Choice:
    """What was chosen on labels; what a way does not choose is None."""

    triplet: Triplet | None = None  # of the one map
    weights: tuple[int, ...] | None = None  # of the members in that map, 0 = left out
    rules: tuple[Triplet, ...] | None = None  # of each member's own map
    at_least: int | None = None  # members that must agree


class Outcome(NamedTuple):
    """The masks that a choice makes of N images, by their figures in the images' own pixels."""

    dice: np.ndarray  # (N,) 0–1
    area_px: np.ndarray  # (N,)
    above_top_px: np.ndarray  # (N,) pixels above the rule's `top`, whether the mask is kept or not


@dataclass(frozen=True)
class Fitted:
    """A choice, the peak beside it, and the searches behind both: one, or one a member."""

    choice: Choice
    peak: Choice
    searches: tuple[SearchResult, ...]


class Strategy(Protocol):
    """Chooses on rows, decides on rows."""

    @property
    def description(self) -> str:
        """What else than a rule was chosen: sentences that go on the method's, or ""."""

    def fit(self, rows: np.ndarray, progress: bool = False) -> Fitted:
        """What is chosen by the truth of these rows, and of no others."""

    def apply(self, choice: Choice, rows: np.ndarray) -> Outcome:
        """What that choice makes of these rows."""


class OneRule:
    """One map an image, one rule for all of them."""

    def __init__(
        self,
        stats: Stacked,
        *,
        single: bool = False,
        chooser: Chooser | None = None,
        label: bool | None = None,
    ) -> None:
        """Raises InputError where `label` is True and an image has none."""
        self.stats = stats
        self.how = {"single": single, "chooser": chooser, "label": sweeps_label(stats, label)}

    @property
    def description(self) -> str:
        return _label_says(self.how["label"])

    def fit(self, rows: np.ndarray, progress: bool = False) -> Fitted:
        result = search(self.stats.take(rows), progress=progress, **self.how)
        return Fitted(Choice(result.chosen), Choice(result.triplet), (result,))

    def apply(self, choice: Choice, rows: np.ndarray) -> Outcome:
        return _by_rule(self.stats.take(rows), choice.triplet)


class Greedy:
    """Members drawn one by one, with replacement, into the mean that scores best, and its rule.

    The best member comes first; then, again and again, the one whose addition raises the score of
    the best rule most, until none does. How often a member was drawn is its weight.

    Source: Caruana et al. 2004, "Ensemble selection from libraries of models".
    """

    def __init__(
        self,
        stats_of: Callable[[tuple[int, ...]], Stacked],
        n_members: int,
        *,
        single: bool = False,
        chooser: Chooser | None = None,
        label: bool | None = None,
    ) -> None:
        """`stats_of` gives the statistics of all images under integer weights of the members."""
        self.stats_of, self.n_members = stats_of, n_members
        self.score_how = {"single": single, "label": label}
        self.how = self.score_how | {"chooser": chooser}

    @property
    def description(self) -> str:
        found = " Members and weights of the mean were chosen with it, greedily."
        return found + _label_says(bool(self.how["label"]))

    def fit(self, rows: np.ndarray, progress: bool = False) -> Fitted:
        weights, best = (0,) * self.n_members, -math.inf
        for _ in range(MOST_DRAWS):
            tried = {}
            added = range(self.n_members)
            title = f"greedy, draw {sum(weights) + 1}"
            for at in bar(added, desc=title, unit="member", leave=False) if progress else added:
                more = tuple(w + (at == m) for m, w in enumerate(weights))
                tried[more] = best_score(self._stats(more, rows), **self.score_how)
            more = max(tried, key=tried.__getitem__)  # of equals the first
            if tried[more] <= best + TIE:
                break
            weights, best = more, tried[more]
        weights = in_least_terms(weights)
        result = search(self._stats(weights, rows), **self.how)
        return Fitted(Choice(result.chosen, weights), Choice(result.triplet, weights), (result,))

    def _stats(self, weights: Sequence[int], rows: np.ndarray) -> Stacked:
        return self.stats_of(in_least_terms(weights)).take(rows)

    def apply(self, choice: Choice, rows: np.ndarray) -> Outcome:
        return _by_rule(self.stats_of(choice.weights).take(rows), choice.triplet)


class MemberVote:
    """Each member makes its own mask by its own rule; a mask of those on which enough agree."""

    def __init__(
        self,
        members: Sequence[Stacked],
        counts: VoteCounts,
        at_least: int | None = None,
        *,
        single: bool = False,
        chooser: Chooser | None = None,
        label: bool | None = None,
    ) -> None:
        """`members` are the statistics of all images by each; `at_least` None is chosen as well."""
        self.alone = [OneRule(one, single=single, chooser=chooser, label=label) for one in members]
        self.counts, self.at_least = counts, at_least

    @property
    def description(self) -> str:
        if self.at_least:
            found = f" Each member has a rule of its own, and {self.at_least} must agree, as given."
        else:
            found = (
                " Each member has a rule of its own, and how many must agree was chosen with it."
            )
        return found + self.alone[0].description

    def fit(self, rows: np.ndarray, progress: bool = False) -> Fitted:
        alone = [one.fit(rows, progress) for one in self.alone]
        rules = tuple(one.choice.triplet for one in alone)
        at_least = self.at_least or self._best_k(rules, rows)
        choice = Choice(rules=rules, at_least=at_least)
        return Fitted(choice, choice, tuple(one.searches[0] for one in alone))

    def apply(self, choice: Choice, rows: np.ndarray) -> Outcome:
        shared, area = self.counts(choice.rules, rows)[:, choice.at_least - 1].T
        tops = [
            areas_above(one.stats.take(rows), rule.top)
            for one, rule in zip(self.alone, choice.rules, strict=True)
        ]
        dice = dice_of_counts(shared, area, self._true_px(rows))
        return Outcome(dice, area, np.mean(tops, axis=0))

    def _best_k(self, rules: Sequence[Triplet], rows: np.ndarray) -> int:
        """The k that scores best on these rows; of equals the largest, which draws least."""
        counts, true_px = self.counts(rules, rows), self._true_px(rows)
        scores = [
            mean_dice(dice_of_counts(counts[:, k, 0], counts[:, k, 1], true_px))
            for k in range(counts.shape[1])
        ]
        return max(k for k, score in enumerate(scores, 1) if score >= max(scores) - TIE)

    def _true_px(self, rows: np.ndarray) -> np.ndarray:
        return self.alone[0].stats.take(rows).true_px


def in_least_terms(weights: Sequence[int]) -> tuple[int, ...]:
    """Integer weights of the same mean without a common factor: (2, 0) is (1, 0)."""
    common = math.gcd(*weights) or 1
    return tuple(weight // common for weight in weights)


def _by_rule(stats: Stacked, rule: Triplet) -> Outcome:
    above_top = areas_above(stats, rule.top)
    return Outcome(per_image_dice(stats, rule), areas(stats, rule), above_top)


def _label_says(swept: bool) -> str:
    return " The label's threshold is part of each rule and was chosen with it." if swept else ""
