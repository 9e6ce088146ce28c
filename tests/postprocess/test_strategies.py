"""What is chosen on labels, by brute force, and that it never sees what it is scored on."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache, partial

import numpy as np
import pytest

from kernel_lib.postprocess import metrics, nested_cv
from kernel_lib.postprocess.histograms import Stacked, stack, statistics
from kernel_lib.postprocess.metrics import Resampler
from kernel_lib.postprocess.search import SearchOptions, search
from kernel_lib.postprocess.strategies import (
    Choice,
    Greedy,
    MemberVote,
    OneRule,
    Strategy,
    in_least_terms,
)
from kernel_lib.postprocess.triplet import Triplet, apply_rule

SIZE = 12
N = 24
EVERY = np.arange(N)
FOLDS = EVERY % 3
SINGLE = SearchOptions(single=True)


def truth(seed: int = 0, n: int = N) -> np.ndarray:
    """(n, SIZE, SIZE) masks, a block on about half."""
    random, masks = np.random.default_rng(seed), np.zeros((n, SIZE, SIZE), np.uint8)
    for mask in masks:
        if random.random() < 0.5:
            top, left = random.integers(0, 6, 2)
            mask[top : top + 5, left : left + 6] = 1
    return masks


def members(masks: np.ndarray, noises: Sequence[int], seed: int = 1) -> np.ndarray:
    """(M, n, SIZE, SIZE) uint8 maps: the truth under noise of each member's own strength."""
    random = np.random.default_rng(seed)
    maps = [
        np.clip(masks * 100.0 + random.integers(0, noise, masks.shape), 0, 255) for noise in noises
    ]
    return np.array(maps).astype(np.uint8)


def stats(maps: np.ndarray, masks: np.ndarray) -> Stacked:
    return stack(statistics(*pair) for pair in zip(maps, masks, strict=True))


def mixture(maps: np.ndarray, masks: np.ndarray, weights: Sequence[int]) -> Stacked:
    """Statistics of a weighted mean."""
    return stats(np.rint(np.average(maps, axis=0, weights=weights)).astype(np.uint8), masks)


class Counts:
    """Counts of votes on bitmaps, and for which rows they were asked."""

    def __init__(self, maps: np.ndarray, masks: np.ndarray) -> None:
        self.maps, self.masks, self.rows = maps, masks, []

    def __call__(self, rules: Sequence[Triplet], rows: np.ndarray) -> np.ndarray:
        self.rows.append(rows)
        counts = np.empty((len(rows), len(rules), 2), np.int64)
        for at, row in enumerate(rows):
            voters = [apply_rule(m[row], rule) for m, rule in zip(self.maps, rules, strict=True)]
            for k in range(1, len(rules) + 1):
                voted = np.sum(voters, axis=0) >= k
                counts[at, k - 1] = (voted & (self.masks[row] > 0)).sum(), voted.sum()
        return counts


def greedy(maps: np.ndarray, masks: np.ndarray) -> Greedy:
    return Greedy(cache(partial(mixture, maps, masks)), len(maps), SINGLE)


def vote(maps: np.ndarray, masks: np.ndarray, at_least: int | None = None) -> MemberVote:
    members = [stats(each, masks) for each in maps]
    return MemberVote(members, Counts(maps, masks), at_least, SINGLE)


def scored(strategy: Strategy, masks: np.ndarray, maps: np.ndarray) -> nested_cv.NestedCVReport:
    mean = stats(np.rint(maps.mean(axis=0)).astype(np.uint8), masks)
    ids, folds = [str(row) for row in range(len(masks))], np.arange(len(masks)) % 3
    fitted = strategy.fit(np.arange(len(masks)))
    return nested_cv.score_strategy(strategy, fitted, mean, ids, folds, None, Resampler(50))


@pytest.mark.parametrize("seed", [0, 1])
def test_greedy_takes_each_step_that_raises_the_score_most(seed: int) -> None:
    masks = truth(seed)
    maps = members(masks, [150, 150, 250], seed)
    fitted = greedy(maps, masks).fit(EVERY)
    # Step by step by hand, each step over all members.
    weights, best = np.zeros(3, int), -1.0
    while True:
        steps = [weights + np.eye(3, dtype=int)[m] for m in range(3)]
        scores = [search(mixture(maps, masks, step), SINGLE).score for step in steps]
        if max(scores) <= best + 1e-12:
            break
        best, weights = max(scores), steps[int(np.argmax(scores))]
    assert fitted.choice.weights == in_least_terms(weights)
    assert fitted.searches[0].score == pytest.approx(best, abs=1e-12)


def test_of_equal_members_greedy_takes_the_first_alone() -> None:
    masks = truth()
    maps = np.repeat(members(masks, [150]), 3, axis=0)
    asked = []

    def stats_of(weights: tuple[int, ...]) -> Stacked:
        asked.append(weights)
        return mixture(maps, masks, weights)

    assert Greedy(stats_of, 3, SINGLE).fit(EVERY).choice.weights == (1, 0, 0)
    assert set(asked) == {(1, 0, 0), (0, 1, 0), (0, 0, 1), (1, 1, 0), (1, 0, 1)}


def test_weights_have_no_common_factor() -> None:
    assert in_least_terms((4, 0, 6)) == (2, 0, 3)
    assert in_least_terms((0, 3)) == (0, 1)
    assert in_least_terms((2, 1)) == (2, 1)


@pytest.mark.parametrize(("kind", "fold"), [(greedy, 0), (vote, 2)])
def test_the_truth_of_a_fold_moves_nothing_that_is_chosen_for_it(kind, fold: int) -> None:
    masks = truth()
    maps = members(masks, [180, 220])
    scrambled = masks.copy()
    scrambled[fold == FOLDS] = 1 - masks[fold == FOLDS][::-1]
    first, again = (scored(kind(maps, some), some, maps) for some in (masks, scrambled))
    chosen, chosen_again = (
        next(r.choice for r in report.rules if r.fold == fold) for report in (first, again)
    )
    assert chosen == chosen_again
    assert first.rules[fold].score != again.rules[fold].score
    others = [rule.choice for rule in first.rules if rule.fold != fold]
    assert others != [rule.choice for rule in again.rules if rule.fold != fold], "which do read it"


def test_votes_are_counted_on_no_row_of_the_fold_they_are_chosen_for() -> None:
    masks = truth()
    strategy = vote(members(masks, [180, 200, 220]), masks)
    strategy.fit(EVERY[FOLDS != 1])
    (rows,) = strategy.counts.rows
    assert not (FOLDS[rows] == 1).any()
    given = vote(members(masks, [180, 200, 220]), masks, at_least=2)
    assert given.fit(EVERY).choice.at_least == 2
    assert given.counts.rows == [], "nothing to choose, nothing to count"


@pytest.mark.parametrize("seed", range(3))
def test_k_is_the_best_of_all_and_of_equals_the_largest(seed: int) -> None:
    masks = truth(seed)
    maps = members(masks, [200, 220, 250], seed)
    choice = vote(maps, masks).fit(EVERY).choice
    rules = tuple(search(stats(m, masks), SINGLE).chosen for m in maps)
    assert choice.rules == rules
    voters = [[apply_rule(m, r) for m in each] for each, r in zip(maps, rules, strict=True)]
    n_agree = np.sum(voters, axis=0)
    scores = {
        k: metrics.mean_dice(
            [metrics.dice(*pair) for pair in zip(n_agree >= k, masks, strict=True)]
        )
        for k in (1, 2, 3)
    }
    best = max(scores.values())
    assert choice.at_least == max(k for k in scores if scores[k] >= best - 1e-12)
    outcome = vote(maps, masks).apply(choice, EVERY)
    assert metrics.mean_dice(outcome.dice) == pytest.approx(best, abs=1e-12)


def test_votes_of_equal_members_draw_what_one_draws() -> None:
    masks = truth()
    maps = np.repeat(members(masks, [200]), 3, axis=0)
    strategy = vote(maps, masks)
    choice = strategy.fit(EVERY).choice
    assert choice.at_least == 3
    rule = OneRule(stats(maps[0], masks), SINGLE)
    single = rule.apply(Choice(choice.rules[0]), EVERY)
    for got, wanted in zip(strategy.apply(choice, EVERY), single, strict=True):
        np.testing.assert_array_equal(got, wanted)


def test_members_of_mere_noise_look_better_in_sample_than_they_are() -> None:
    """Four blind members: whichever fits the truth by chance is taken, and fails elsewhere."""
    masks = truth(4, 30)
    blind = np.random.default_rng(9).integers(0, 256, (4, 30), dtype=np.uint8)
    maps = np.broadcast_to(blind[:, :, None, None], (4, 30, SIZE, SIZE)).copy()
    for kind in (greedy, vote):
        report = scored(kind(maps, masks), masks, maps)
        assert report.in_sample.dice > report.all_empty.dice
        assert report.honest.dice < report.in_sample.dice - 0.03
