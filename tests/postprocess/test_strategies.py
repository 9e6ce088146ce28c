"""What is chosen on labels, by brute force, and that it never sees what it is scored on."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import cache, partial
from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kernel_lib.postprocess import metrics, nested_cv
from kernel_lib.postprocess.histograms import Stacked, stack, statistics
from kernel_lib.postprocess.metrics import Resampler
from kernel_lib.postprocess.search import SearchOptions, search
from kernel_lib.postprocess.strategies import (
    Choice,
    Fitted,
    Greedy,
    MemberVote,
    OneRule,
    StatsOf,
    Strategy,
    Weights,
    in_lowest_terms,
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
    """Counts of votes on bitmaps, and the sets of rules they were asked for."""

    def __init__(self, maps: np.ndarray, masks: np.ndarray, union: bool = False) -> None:
        self.maps, self.masks, self.union, self.asked = maps, masks, union, []

    def __call__(self, rule_sets: Sequence[Sequence[Triplet]]) -> np.ndarray:
        self.asked.append(list(rule_sets))
        n_members, n_images = len(self.maps), len(self.masks)
        counts = np.empty((len(rule_sets), n_images, n_members, 2), np.int64)
        for (at, rules), row, k in product(
            enumerate(rule_sets), range(n_images), range(1, n_members + 1)
        ):
            voters = np.array(
                [apply_rule(m[row], rule) for m, rule in zip(self.maps, rules, strict=True)]
            )
            voted = drawn_by(voters, k, self.union)
            counts[at, row, k - 1] = (voted & (self.masks[row] > 0)).sum(), voted.sum()
        return counts


def drawn_by(voters: np.ndarray, k: int, union: bool) -> np.ndarray:
    """Return the pixels (h, w) bool of k votes or more, or of masks that k or more overlap."""
    if not union:
        return voters.sum(axis=0) >= k
    flat = voters.reshape(len(voters), -1).astype(int)
    agreeing = (flat @ flat.T > 0).sum(axis=1) >= k
    return voters[agreeing].any(axis=0)


def stats_of(maps: np.ndarray, masks: np.ndarray) -> StatsOf:
    of_one = cache(partial(mixture, maps, masks))
    return lambda weightings: map(of_one, weightings)


def greedy(maps: np.ndarray, masks: np.ndarray) -> Greedy:
    return Greedy(stats_of(maps, masks), len(maps), SINGLE)


def vote(
    maps: np.ndarray, masks: np.ndarray, at_least: int | None = None, union: bool = False
) -> MemberVote:
    members = [stats(each, masks) for each in maps]
    return MemberVote(members, Counts(maps, masks, union), at_least, SINGLE)


union = partial(vote, union=True)


def fit(strategy: Strategy, rows: np.ndarray = EVERY) -> Fitted:
    (fitted,) = strategy.fit([rows])
    return fitted


def scored(strategy: Strategy, masks: np.ndarray, maps: np.ndarray) -> nested_cv.NestedCVReport:
    mean = stats(np.rint(maps.mean(axis=0)).astype(np.uint8), masks)
    ids, folds = [str(row) for row in range(len(masks))], np.arange(len(masks)) % 3
    return nested_cv.score_strategy(strategy, mean, ids, folds, None, Resampler(50))[1]


@pytest.mark.parametrize("seed", [0, 1])
def test_greedy_takes_each_step_that_raises_the_score_most(seed: int) -> None:
    masks = truth(seed)
    maps = members(masks, [150, 150, 250], seed)
    fitted = fit(greedy(maps, masks))
    # Step by step by hand, each step over all members.
    weights, best = np.zeros(3, int), -1.0
    while True:
        steps = [weights + np.eye(3, dtype=int)[m] for m in range(3)]
        scores = [search(mixture(maps, masks, step), SINGLE).score for step in steps]
        if max(scores) <= best + 1e-12:
            break
        best, weights = max(scores), steps[int(np.argmax(scores))]
    assert fitted.choice.weights == in_lowest_terms(weights)
    assert fitted.searches[0].score == pytest.approx(best, abs=1e-12)


def test_of_equal_members_greedy_takes_the_first_alone() -> None:
    masks = truth()
    maps = np.repeat(members(masks, [150]), 3, axis=0)
    asked = []

    def of(weightings: Sequence[Weights]) -> list[Stacked]:
        asked.extend(weightings)
        return [mixture(maps, masks, weights) for weights in weightings]

    assert fit(Greedy(of, 3, SINGLE)).choice.weights == (1, 0, 0)
    assert set(asked) == {(1, 0, 0), (0, 1, 0), (0, 0, 1), (1, 1, 0), (1, 0, 1)}


def test_weights_have_no_common_factor() -> None:
    assert in_lowest_terms((4, 0, 6)) == (2, 0, 3)
    assert in_lowest_terms((0, 3)) == (0, 1)
    assert in_lowest_terms((2, 1)) == (2, 1)


@pytest.mark.parametrize(("kind", "fold"), [(greedy, 0), (vote, 2), (union, 1)])
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


@pytest.mark.parametrize("kind", [vote, union])
def test_the_votes_of_a_fold_are_not_read_where_k_is_chosen_for_it(kind) -> None:
    masks = truth()
    maps = members(masks, [180, 200, 220])
    row_sets = [EVERY, *(EVERY[fold != FOLDS] for fold in range(3))]
    strategy, of_members = kind(maps, masks), [stats(each, masks) for each in maps]
    expected = strategy.fit(row_sets)
    (asked,) = strategy.counts.asked  # all sets of rules in one pass
    assert set(asked) == {each.choice.rules for each in expected}
    true_px = stats(maps[0], masks).true_px
    for fold in range(3):
        inside, k = fold == FOLDS, expected[1 + fold].choice.at_least

        def turned(rule_sets, inside=inside, k=k) -> np.ndarray:
            """Count what makes any other k perfect on the fold's images."""
            counts = Counts(maps, masks, strategy.counts.union)(rule_sets)
            counts[:, inside] = true_px[inside, None, None]
            counts[:, inside, k - 1] = 0, SIZE * SIZE
            return counts

        again = MemberVote(of_members, turned, None, SINGLE).fit(row_sets)
        assert again[1 + fold].choice == expected[1 + fold].choice
        assert again[0].choice.at_least != k, "which does read it"
    for fold in range(3):
        strategy.apply(expected[1 + fold].choice, EVERY[fold == FOLDS])
    assert len(strategy.counts.asked) == 1, "what was counted is not counted again"
    given = kind(maps, masks, at_least=2)
    assert {each.choice.at_least for each in given.fit(row_sets)} == {2}


@pytest.mark.parametrize("kind", [greedy, vote, union])
def test_sets_of_rows_are_chosen_for_together_as_each_by_itself(kind) -> None:
    masks = truth()
    maps = members(masks, [180, 200, 220])
    row_sets = [EVERY, *(EVERY[fold != FOLDS] for fold in range(3))]
    for rows, together in zip(row_sets, kind(maps, masks).fit(row_sets), strict=True):
        alone = fit(kind(maps, masks), rows)
        assert (alone.choice, alone.peak) == (together.choice, together.peak)
    together = kind(maps, masks).fit(row_sets)
    assert together[0].searches == fit(kind(maps, masks)).searches


@pytest.mark.parametrize("seed", range(3))
def test_k_is_the_best_of_all_and_of_equals_the_largest(seed: int) -> None:
    masks = truth(seed)
    maps = members(masks, [200, 220, 250], seed)
    choice = fit(vote(maps, masks)).choice
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
    choice = fit(strategy).choice
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


class Candidates:
    """Statistics of weightings that are only ranked, and for which they were asked."""

    def __init__(self, of: StatsOf) -> None:
        self.of, self.asked = of, []

    def __call__(self, weightings: Sequence[Weights], title: str | None) -> list[Stacked]:
        self.asked += weightings
        return self.of(weightings)


ROW_SETS = [EVERY, *(EVERY[fold != FOLDS] for fold in range(3))]


@cache
def greedy_found() -> tuple[np.ndarray, np.ndarray, list[Fitted], dict]:
    masks, record = truth(1), {}
    maps = members(masks, [150, 180, 250], 1)
    of = stats_of(maps, masks)
    fitted = Greedy(of, 3, SINGLE, Candidates(of), record).fit(ROW_SETS)
    return maps, masks, fitted, record


@settings(max_examples=8)
@given(st.data())
def test_greedy_goes_on_from_any_part_of_its_record(data) -> None:
    maps, masks, expected, record = greedy_found()
    kept = data.draw(st.sets(st.sampled_from(sorted(record))))
    rest = json.loads(json.dumps({name: record[name] for name in record if name in kept}))
    lacking = {name.split(": ")[1] for name in record if name not in kept}
    candidates = Candidates(stats_of(maps, masks))
    again = Greedy(candidates.of, 3, SINGLE, candidates, rest).fit(ROW_SETS)
    assert [each.choice for each in again] == [each.choice for each in expected]
    assert again[0].searches == expected[0].searches
    assert {" ".join(map(str, weights)) for weights in candidates.asked} == lacking
    assert rest == record


def test_greedy_asks_for_nothing_that_is_recorded() -> None:
    maps, masks, expected, record = greedy_found()
    candidates = Candidates(stats_of(maps, masks))
    again = Greedy(candidates.of, 3, SINGLE, candidates, dict(record)).fit(ROW_SETS)
    assert [each.choice for each in again] == [each.choice for each in expected]
    assert candidates.asked == []


@cache
def votes_found() -> tuple[np.ndarray, np.ndarray, list[Fitted], dict]:
    masks, record = truth(), {}
    maps = members(masks, [180, 200, 220])
    strategy = vote(maps, masks)
    strategy.record = record
    return maps, masks, strategy.fit(ROW_SETS), record


@settings(max_examples=8)
@given(st.data())
def test_votes_go_on_from_any_part_of_their_record(data) -> None:
    maps, masks, expected, record = votes_found()
    kept = data.draw(st.sets(st.sampled_from(sorted(record))) | st.just(set(record)))
    strategy, searched = vote(maps, masks), []
    strategy.record = json.loads(json.dumps({name: record[name] for name in kept}))
    for member in strategy.members:

        def counted(row_sets, fit=member.fit) -> list[Fitted]:
            searched.append(len(row_sets[0]))
            return fit(row_sets)

        member.fit = counted
    again = strategy.fit(ROW_SETS)
    assert [each.choice for each in again] == [each.choice for each in expected]
    assert again[0].searches == expected[0].searches
    assert len(searched) == 3 + len(record) - len(kept), "the first set's, and what is lacking"
    assert strategy.record == record
