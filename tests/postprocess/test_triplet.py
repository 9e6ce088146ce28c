"""A rule in words."""

from __future__ import annotations

import numpy as np
import pytest

from kernel_lib.artifacts.ensemble import Ensemble, Member
from kernel_lib.errors import InputError
from kernel_lib.postprocess.strategies import Choice
from kernel_lib.postprocess.triplet import Triplet
from kernel_lib.stages import scores

NOTHING = Triplet(0.998, 1024 * 1024 + 1, 0.998)


@pytest.mark.parametrize(
    ("rule", "keeps_none"),
    [(NOTHING, True), (Triplet(0.5, 1024 * 1024, 0.5), False), (Triplet(0.5, 0, 0.5), False)],
)
def test_a_rule_that_predicts_nothing_is_named_as_that(rule, keeps_none):
    assert rule.keeps_none == keeps_none
    assert ("predicts nothing" in str(rule)) == keeps_none
    assert str(rule.min_area_px) in str(rule)


def test_a_label_threshold_comes_first():
    assert str(Triplet(0.5, 10, 0.25, 0.125)).startswith("label 0.1250, top 0.5000")
    assert "label" not in str(NOTHING)


def test_each_member_s_rule_that_predicts_nothing_is_named():
    members = (Member(run="a", folds=(0,)), Member(run="b", folds=(0,)))
    both = Ensemble(name="x", members=members, combine="member_vote", folds_digest="")
    some = Choice(rules=(Triplet(0.5, 10, 0.5), NOTHING), at_least=1)
    first, second, vote = scores.rule_lines(both, some)
    assert "predicts nothing" not in first
    assert "predicts nothing" in second
    assert "at least 1 of 2" in vote


@pytest.mark.parametrize("area", [-1, 0.5, "x", None, True, np.bool_(True), 10**30])
def test_an_area_that_no_image_can_have_is_refused(area):
    with pytest.raises(InputError, match="min_area_px"):
        Triplet(0.5, area, 0.5)
