import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kernel_lib.errors import InputError
from kernel_lib.postprocess import metrics
from tools.ablation import paired
from tools.ablation.paired import MEASURES, SUBSETS, Draws

AREA = [0.0, 0.0, 100.0, 200.0, 300.0]
NAMES = ["a", "a", "b", "c", "d"]


def columns(**changes) -> dict:
    return {
        "dice": [1.0, 0.0, 0.5, 0.25, 0.75],
        "area_px": [0.0, 10.0, 0.0, 20.0, 30.0],
        "sum_prob": [1.0, 4.0, 3.0, 5.0, 5.0],
    } | changes


def value(name: str) -> float:
    return float(Draws(NAMES, AREA, 10).value(columns(), name)[0])


def test_measures_by_hand():
    assert value("dice") == 0.5
    assert value("dice_nonempty") == 0.5
    assert value("share") == 3 / 5
    assert value("true_share") == 3 / 5
    assert value("area") == 12.0
    assert value("missed") == 1 / 3
    assert value("false_alarms") == 1 / 2
    # A third of three masks: 100 px lies below the quantile, 166.7, the others above.
    assert (value("missed_small"), value("missed_larger")) == (1.0, 0.0)
    # Of six pairs only (3, 4) stands in the wrong order.
    assert value("auc_sum") == 5 / 6


def test_every_subset_divides_the_images():
    area = np.array(AREA)
    assert (SUBSETS["small"](area) ^ SUBSETS["larger"](area) == (area > 0)).all()
    assert (SUBSETS["empty"](area) ^ SUBSETS["nonempty"](area)).all()
    assert not SUBSETS["larger"](np.zeros(3)).any()


def test_an_unknown_measure_is_refused_with_those_there_are():
    with pytest.raises(InputError, match="dice_nonempty"):
        paired.measure_named("dise")


def test_patients_come_whole_and_the_first_row_is_no_draw():
    draws = Draws(NAMES, AREA, 200)
    assert (draws.counts[0] == 1).all()
    assert (draws.counts[:, 0] == draws.counts[:, 1]).all()  # both of patient a
    by_patient = draws.counts[1:, 1:]
    assert (by_patient.sum(axis=1) == 4).all()
    assert by_patient.max() > 1


def test_draws_of_an_auc_are_those_of_the_images_repeated():
    draws = Draws(NAMES, AREA, 20)
    values = draws.value(columns(), "auc_sum")
    for counts, value_of in zip(draws.counts, values, strict=True):
        scores = np.repeat(columns()["sum_prob"], counts)
        labels = np.repeat(np.array(AREA) > 0, counts)
        assert metrics.auc(scores, labels) == pytest.approx(value_of, nan_ok=True)


def test_a_constant_difference_has_no_width_and_none_without_a_seed():
    draws = Draws(NAMES, AREA, 50)
    a = draws.value(columns(), "dice")
    b = draws.value(columns(dice=[d - 0.125 for d in columns()["dice"]]), "dice")
    assert tuple(draws.difference([(a, b)] * 3)) == pytest.approx((0.125, 0.125, 0.125, 3))
    *interval, n_seeds = draws.difference([])
    assert n_seeds == 0
    assert np.isnan(interval).all()


def test_seeds_are_drawn_too():
    """Images alike, three seeds apart by 0, 3 and 6: each third of the draws of one seed."""
    draws = Draws(NAMES, AREA, 4000)
    zero = np.zeros(4001)
    gaps = draws.difference([(zero + gap, zero) for gap in (0.0, 3.0, 6.0)])
    # All three the same has a chance of 1/27 = 3.7 %, so 2.5 % lies at the extremes themselves.
    assert gaps == (3.0, 0.0, 6.0, 3)


SCORES = st.lists(st.floats(0, 1), min_size=5, max_size=5)


@given(SCORES, SCORES)
def test_the_other_way_round_the_interval_turns(a, b):
    draws = Draws(NAMES, AREA, 40)
    mine, theirs = (draws.value({"dice": side}, "dice") for side in (a, b))
    there, back = draws.difference([(mine, theirs)]), draws.difference([(theirs, mine)])
    assert there[:3] == pytest.approx((-back.value, -back.high, -back.low))
    assert there.value == pytest.approx(np.mean(a) - np.mean(b))


def test_pairing_shows_what_single_scores_do_not():
    """Images differ much, the arms by little in every one: the interval is of the little."""
    dice = np.random.default_rng(0).random(60)
    draws = Draws([str(i) for i in range(60)], np.ones(60), 500)
    a, b = (draws.value({"dice": list(dice + more)}, "dice") for more in (0.01, 0))
    gap = draws.difference([(a, b)])
    assert 0.0099 < gap.low <= gap.high < 0.0101
    assert np.ptp(a) > 0.1


def test_every_measure_has_a_subset_that_exists():
    assert {measure.among for measure in MEASURES.values()} <= set(SUBSETS)
