"""What an ensemble's thresholds and inference cost, by hand, and where they do not fit."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kernel_build import ensemble_costs
from kernel_build.ensemble_costs import Runs
from kernel_lib.config import ThresholdsParameters
from kernel_lib.inference import out_of_fold, weightings
from kernel_lib.kaggle import quota

MEAN = ThresholdsParameters()
GREEDY = ThresholdsParameters(choose="greedy")
VOTE = ThresholdsParameters(combine="member_vote")
UNION = ThresholdsParameters(combine="member_union", at_least=1)


@pytest.fixture
def simple_figures(monkeypatch) -> None:
    """Figures by which one sees in a sum what it is of."""
    figures = {"PACK": 1, "RANK": 10, "VOTE": 100, "DISTANCE": 1000, "BEST_RULE": 0.1,
               "SEARCH": 1e4, "REPORT": 0.001, "DRAWS_PER_RUN": 1, "DISTINCT": 0.5, "MASKED": 0.5,
               "PROCESSES": 1, "LIBRARIES": 7, "INDEX": 11, "AVERAGE": 10, "MASK": 3,
               "PREDICTING": 7}  # fmt: skip
    for name, value in figures.items():
        monkeypatch.setattr(ensemble_costs, name, value)


@pytest.mark.usefixtures("simple_figures")
def test_a_mean_by_hand():
    cost = ensemble_costs.thresholds(Runs(3, 5, 512, MEAN), start=0, images=4)
    # Twice: 3 maps an image, 1 weighting, 6 selections; distances of 2 images, once.
    seconds = 2 * 4 * (3 + 10 + 6e4) + 2 * 3 * 1000 + 0.001
    assert cost.hours == pytest.approx(seconds / 3600)
    assert (cost.memory, cost.output, cost.scratch) == (
        7 + 4 * (3 * 11 + 2048 * (1 + 3.5)),
        4 * 2048,
        0,
    )
    larger = ensemble_costs.thresholds(Runs(3, 5, 1024, MEAN), start=1, images=4)
    of_maps = 2 * 4 * (3 + 10) + 2 * 3 * 1000
    assert larger.hours == pytest.approx(1 + (seconds + 3 * of_maps) / 3600)


@pytest.mark.usefixtures("simple_figures")
@pytest.mark.parametrize("decided", [VOTE, UNION])
def test_a_vote_by_hand(decided: ThresholdsParameters):
    cost = ensemble_costs.thresholds(Runs(3, 5, 512, decided), start=0, images=4)
    # Two passes over 3 maps, 3 members and the mean, a search a member and selection, 2 drawn.
    each = 4 * (3 + 4 * 10 + 3 * 6 * 1e4) + 2 * 3 * 100
    assert cost.hours == pytest.approx((2 * each + 2 * 3 * 1000 + 0.001) / 3600)
    assert cost.memory == 7 + 4 * (3 * 11 + 2048 * (4 + 3 * 3.5))
    assert (cost.output, cost.scratch) == (4 * 2048 * 3, 0)


@pytest.mark.usefixtures("simple_figures")
def test_a_greedy_choice_by_hand(monkeypatch):
    runs = Runs(3, 5, 512, GREEDY)
    cost = ensemble_costs.thresholds(runs, start=0, images=4)
    # 3 draws × 3 runs × 6 selections are 54 scores of 27 weightings; 6 chosen ones and the mean.
    each = 4 * (3 + (27 + 7) * 10 + 54 * 0.1 + 6 * 1e4)
    assert cost.hours == pytest.approx((2 * each + 2 * 3 * 1000 + 0.001) / 3600)
    assert cost.memory == 7 + 4 * (3 * 11 + 2048 * (out_of_fold.AT_ONCE + 2 * 7))
    assert (cost.output, cost.scratch) == (4 * 2048, 4 * 3 * 13_000)
    # Where a third of the maps has no place, it is packed again for all 48 weightings.
    monkeypatch.setattr(weightings, "STORE_BYTES", 4 * 2 * 13_000)
    fuller = ensemble_costs.thresholds(runs, start=0, images=4)
    assert fuller.scratch == 4 * 2 * 13_000
    assert fuller.hours - cost.hours == pytest.approx(2 * 4 * 3 / 3 * 27 / 48 / 3600)


@pytest.mark.usefixtures("simple_figures")
@pytest.mark.parametrize(
    ("decided", "masks"), [(MEAN, 1), (ThresholdsParameters(combine="vote"), 5), (VOTE, 3)]
)
def test_inference_by_hand(decided: ThresholdsParameters, masks: int):
    """One mask of the mean, or one a fold, or one a member."""
    cost = ensemble_costs.inference(Runs(3, 5, 1024, decided), start=0.5, predicting=2)
    assert cost.hours == pytest.approx(0.5 + 2 * 3 + 3205 * (15 * 10 * 4 + masks * 3) / 3600)
    assert cost.memory == 7 + 15 * 1024**2
    assert cost.output == pytest.approx(0.04 * 1024**2 * 3205 * 15)


@given(
    st.integers(1, 40), st.integers(2, 10), st.sampled_from([256, 512, 768, 1024]),
    st.sampled_from([MEAN, VOTE, UNION, GREEDY]), st.integers(1, 20_000),
)  # fmt: skip
def test_costs_rise_with_runs_images_and_size(n, folds, size, decided, images):
    runs = Runs(n, folds, size, decided)

    def cost(n_images: int = images, **changes) -> ensemble_costs.StageCost:
        return ensemble_costs.thresholds(replace(runs, **changes), 0.1, n_images)

    assert cost().hours < min(cost(n=n + 1).hours, cost(size=2 * size).hours)
    assert cost().hours < min(cost(images + 1).hours, cost(folds=folds + 1).hours)
    for more in (cost(n=n + 1), cost(images + 1)):
        assert (cost().memory, cost().output) <= (more.memory, more.output)
    inferred = [ensemble_costs.inference(replace(runs, n=k), 0.1, 0.5) for k in (n, n + 1)]
    assert inferred[0].hours < inferred[1].hours
    assert inferred[0].output < inferred[1].output


@given(st.integers(2, 40), st.sampled_from([512, 768, 1024]))
def test_a_greedy_choice_costs_more_than_a_vote_and_a_vote_more_than_a_mean(n, size):
    hours = [
        ensemble_costs.thresholds(Runs(n, 5, size, decided), 0.0).hours
        for decided in (MEAN, VOTE, GREEDY)
    ]
    assert hours == sorted(set(hours))


@pytest.mark.parametrize("decided", [MEAN, VOTE, GREEDY])
@pytest.mark.parametrize("size", [512, 1024])
def test_twenty_runs_fit_kaggle_s_machine(decided: ThresholdsParameters, size: int):
    runs = Runs(20, 5, size, decided)
    assert not advice(runs, 11.5)


def advice(runs: Runs, max_hours: float) -> list[str]:
    return ensemble_costs.advice(
        "thresholds", of_thresholds, runs, max_hours, lambda n: f"--seeds {n}"
    )


def of_thresholds(runs: Runs) -> ensemble_costs.StageCost:
    return ensemble_costs.thresholds(runs, 0.5)


@pytest.mark.parametrize(
    ("runs", "limit", "below"),
    [
        (Runs(20, 5, 1024, GREEDY), "hours", ["--choose none", "SIZE"]),
        (Runs(20, 5, 512, VOTE), "hours", ["--combine mean", "SIZE"]),
        (Runs(20, 5, 512, VOTE), "memory", ["--combine mean"]),
        (Runs(20, 5, 512, UNION), "output", ["--combine mean"]),
    ],
)
def test_advice_comes_just_beyond_a_limit_and_says_how_many_seeds_fit(
    runs: Runs, limit: str, below: list[str], monkeypatch
):
    cost = of_thresholds(runs)
    hours = cost.hours if limit == "hours" else 12

    def lines(part: float) -> list[str]:
        for name, value in (("MEMORY_BYTES", cost.memory), ("OUTPUT_BYTES", cost.output)):
            if name.startswith(limit.upper()):
                monkeypatch.setattr(quota, name, value * part)
        at_most = hours * part if limit == "hours" else hours
        return advice(runs, at_most)

    assert lines(1) == []
    (line,) = lines(1 - 1e-6)
    assert line.startswith("thresholds ")
    assert "--seeds 19" in line
    assert all(way in line for way in below)


def test_a_vote_is_not_advised_of_one_run():
    (line,) = advice(Runs(5, 5, 512, VOTE), 0.1)
    assert "--seeds" not in line
    assert "--combine mean" in line
