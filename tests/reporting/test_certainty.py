"""Pictures and tables of calibration and referral state the numbers that they are given."""

from __future__ import annotations

import numpy as np
import pytest

from kernel_lib.postprocess import calibration, referral
from kernel_lib.postprocess.metrics import Resampler
from kernel_lib.reporting import certainty


def images(n: int) -> dict[str, np.ndarray]:
    random = np.random.default_rng(0)
    prob = random.random(n)
    return {
        "truth": random.random(n) < prob, "part": np.arange(n) % 3, "groups": np.arange(n),
        "label": prob**2, "sum_prob": 1e4 * prob, "dice": random.random(n),
    }  # fmt: skip


def calibrations(n: int, *scores: str) -> list[calibration.Calibration]:
    given = images(n)
    by_row = given["truth"], given["part"], given["groups"]
    return [calibration.calibrate(score, given[score], *by_row) for score in scores]


@pytest.mark.parametrize("n", [300, 6])
def test_the_reliability_diagram_states_errors_and_the_prevalence(n):
    label, total = found = calibrations(n, "label", "sum_prob")
    picture = certainty.reliability(found)
    assert picture.png(dpi=40).startswith(b"\x89PNG")
    for one in (label.before, label.after, total.after):
        assert f"{one.ece:.4f} and {one.brier:.4f}" in picture.sentence
    share = images(n)["truth"].mean()
    assert f"{n} held-out images" in picture.sentence
    assert f"{share * (1 - share):.4f}" in picture.sentence
    scores, bins = certainty.calibration_tables(found)
    assert scores["ECE"].tolist() == [label.before.ece, label.after.ece, total.after.ece]
    assert scores["Brier score"].tolist() == [
        label.before.brier, label.after.brier, total.after.brier,
    ]  # fmt: skip
    best = calibration.best(found)
    assert bins["images"].tolist() == best.after.n.tolist()
    assert certainty.SCORES[best.score] in bins.columns[1]
    assert certainty.reliability([]).png() is None


@pytest.mark.parametrize("n", [200, 6])
def test_the_risk_coverage_curve_states_shares_and_areas(n):
    given = images(n)
    measures = {
        "<b>$": np.tile(1 - given["dice"], (3, 1)),
        "other": np.tile(given["label"], (3, 1)),
    }
    truth, part, groups = (given[name] for name in ("truth", "part", "groups"))
    found = referral.measure(given["dice"], truth, measures, part, groups, Resampler(30))
    picture = certainty.risk_coverage(found, n)
    assert picture.png(dpi=40).startswith(b"\x89PNG")
    assert picture.sentence.startswith(f"{n} images, mean Dice {given['dice'].mean():.4f}")
    assert certainty.risk_coverage(found, 999).sentence.startswith(f"{n} images sampled from 999")
    assert f"is {found.aurc_chosen:.4f}, at random {found.aurc_random:.4f}" in picture.sentence
    assert "<b>$ for 3 of 3" in picture.sentence
    shares, areas = certainty.referral_tables(found)
    for one, row in zip(found.at, shares.itertuples(index=False), strict=True):
        interval = f"{one.interval.low:.4f} to {one.interval.high:.4f}"
        assert f"{one.share:.0%} referred: {one.dice:.4f} ({interval};" in picture.sentence
        assert row[:3] == (f"{one.share:.0%}", one.n_kept, round(one.dice, 4))
    assert areas["AURC"].tolist() == [*found.aurc.values(), found.aurc_chosen]
    assert areas["chosen for folds"].tolist() == [3, 0, 3]
