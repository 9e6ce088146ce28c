"""Simulated sets: what is drawn, kept and put into the table."""

from __future__ import annotations

import json
from itertools import product

import numpy as np
import pytest

from kernel_lib.postprocess import search
from kernel_lib.postprocess.histograms import statistics
from kernel_lib.postprocess.triplet import Triplet, apply_rule
from tools.ablation import honesty


def sample(informative: bool = True, n: int = 60, members: int = 3) -> honesty.Sample:
    return honesty.draw(np.random.default_rng(3), n, members, informative)


def test_statistics_are_those_of_each_image_s_mean_map():
    drawn = sample()
    stats = drawn.stats([2, 0, 1], labelled=True)
    mean = np.rint((2.0 * drawn.levels[0] + drawn.levels[2]) / 3).astype(np.uint8)
    for row in (0, 17, 59):
        expected = statistics(mean[row].reshape(16, 16), drawn.truth[row].reshape(16, 16))
        assert np.array_equal(stats.hist_all[row], expected.hist_all)
        assert np.array_equal(stats.hist_true[row], expected.hist_true)
        assert stats.label[row] == drawn.labels[row]


def test_votes_are_counted_as_on_masks():
    drawn = sample()
    first = Triplet(0.5, 30000, 0.3), Triplet(0.2, 0, 0.2), Triplet(0.9, 0, 0.1)
    rule_sets = [first, first[::-1]]
    counts = drawn.vote_counts(rule_sets)
    assert counts.shape == (2, 60, 3, 2)
    for (at, rules), row in product(enumerate(rule_sets), range(60)):
        masks = [
            apply_rule(levels[row].reshape(16, 16), rule).ravel()
            for levels, rule in zip(drawn.levels, rules, strict=True)
        ]
        for k in (1, 2, 3):
            voted = np.sum(masks, axis=0) >= k
            expected = [(voted & drawn.truth[row]).sum(), voted.sum()]
            assert counts[at, row, k - 1].tolist() == expected


def test_informative_maps_find_masks_and_random_ones_do_not():
    assert search.best_score(sample(True, 600).stats([1, 1, 1])) > 0.83
    drawn = sample(False, 600)
    assert search.best_score(drawn.stats([1, 1, 1])) - (~drawn.truth.any(axis=1)).mean() < 0.01


@pytest.mark.parametrize("cell", [*honesty.STRATEGIES, *honesty.EPOCH_CELLS])
def test_a_set_is_the_same_when_it_is_simulated_again(cell, monkeypatch):
    monkeypatch.setattr(honesty, "_N_FIXED", 100)
    honesty._fixed.cache_clear()
    line = honesty.simulate(cell, True, 0, 50)
    assert -1 < line["gap"] < 1
    assert line == honesty.simulate(cell, True, 0, 50)
    assert line["gap"] != honesty.simulate(cell, True, 1, 50)["gap"]
    honesty._fixed.cache_clear()


@pytest.mark.slow
def test_selecting_an_epoch_on_the_images_that_score_it_is_optimistic():
    gaps = {
        cell: np.mean([honesty.simulate(cell, True, k, 100)["gap"] for k in range(12)])
        for cell in honesty.EPOCH_CELLS
    }
    assert gaps["epoch_dice"] > gaps["epoch_last"] + 0.01


def test_what_is_done_is_not_done_again_and_half_a_line_is_dropped(tmp_path, monkeypatch):
    lines = [
        {"cell": cell, "informative": informative, "set": k, "gap": 0.01 * k, "in_sample": 0.1}
        for cell in (*honesty.STRATEGIES, *honesty.EPOCH_CELLS)
        for informative in (True, False)
        for k in range(3)
    ]
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (tmp_path / "sets_50.jsonl").write_text(text + '{"cell": "one"')
    monkeypatch.setattr(honesty, "simulate", None)  # nothing is left to do
    table = honesty.run(tmp_path, 3, 50, 1)
    assert (tmp_path / "sets_50.jsonl").read_text() == text
    row = "| one run: threshold and area | informative | 3 | +0.0100 | 0.0058 | +0.1000 |"
    assert row in table.splitlines()  # 0.01 / √3
    assert len(table.splitlines()) == 2 + 14
