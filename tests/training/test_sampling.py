from __future__ import annotations

from collections import Counter
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from kernel_lib.errors import InputError
from kernel_lib.models.base import Logits
from kernel_lib.postprocess import metrics
from kernel_lib.training import sampling
from kernel_lib.training.sampling import FALSE_ALARM_PX, EpochContext, epoch_order, hardness_of


def shown(
    positive, hardness=None, epoch: int = 0, epochs: int = 5, first_row: int = 100
) -> EpochContext:
    positive = np.asarray(positive, dtype=bool)
    if hardness is None:
        hardness = np.full(len(positive), sampling.UNSEEN)
    rows = np.arange(len(positive)) + first_row
    return EpochContext(rows, positive, np.asarray(hardness, dtype=float), epoch, epochs)


@st.composite
def any_shown(draw) -> EpochContext:
    n = draw(st.integers(2, 40))
    positive = draw(
        st.lists(st.booleans(), min_size=n, max_size=n).filter(lambda p: 0 < sum(p) < n)
    )
    hardness = draw(st.lists(st.floats(0, 1), min_size=n, max_size=n))
    epochs = draw(st.integers(1, 6))
    return shown(positive, hardness, draw(st.integers(0, epochs - 1)), epochs)


HALF = [True] * 10 + [False] * 40
shares = st.floats(0, 1)


@given(st.integers(1, 70), st.integers(1, 9), st.integers(1, 5), st.booleans())
def test_every_draw_is_in_one_batch_of_one_group(n, batch_size, accumulate, repeats):
    order = np.random.default_rng(n).permutation(n) // (2 if repeats else 1)
    batches = sampling.batches(order, batch_size)
    assert np.concatenate(batches).tolist() == order.tolist()
    assert max(map(len, batches)) <= (3 if batch_size == 2 else batch_size)
    if n > 1 and batch_size > 1:
        assert min(map(len, batches)) >= 2  # batch norm needs company
    groups = sampling.steps(batches, accumulate)
    assert [len(b) for g in groups for b in g] == [len(b) for b in batches]
    assert all(len(g) == accumulate for g in groups[:-1])


@pytest.mark.parametrize("name", sampling.SAMPLERS)
def test_the_order_depends_on_seed_and_epoch_and_what_is_shown_alone(name):
    hardness = np.linspace(0, 1, 50)
    first = epoch_order(name, {}, shown(HALF, hardness, epoch=4), seed=3).tolist()
    np.random.rand(7)
    assert epoch_order(name, {}, shown(HALF, hardness, epoch=4), 3).tolist() == first
    assert epoch_order(name, {}, shown(HALF, hardness, epoch=4), 4).tolist() != first
    assert epoch_order(name, {}, shown(HALF, hardness, epoch=3), 3).tolist() != first
    harder = epoch_order(name, {}, shown(HALF, hardness[::-1], epoch=4), 3).tolist()
    assert (harder != first) == (name == "hard")


@pytest.mark.parametrize("name", sampling.SAMPLERS)
@given(what=any_shown(), seed=st.integers(0, 2**32))
def test_an_order_holds_training_rows_and_changes_nothing(name, what, seed):
    before = [a.copy() for a in (what.rows, what.positive, what.hardness)]
    order = epoch_order(name, {}, what, seed)
    assert order.dtype == what.rows.dtype
    assert set(order) <= set(what.rows)
    assert len(order) > 0
    for now, then in zip((what.rows, what.positive, what.hardness), before, strict=True):
        assert now.tolist() == then.tolist()


def test_all_is_the_order_that_runs_so_far_had():
    """Frozen: an old run that is resumed goes on with the order that it began with."""
    order = epoch_order("all", {}, shown([False] * 8, epoch=4, first_row=0), 3)
    assert order.tolist() == [7, 2, 4, 3, 6, 0, 1, 5]


@given(any_shown(), st.integers(0, 99))
def test_all_and_nonempty_show_each_of_their_images_once(what, seed):
    assert sorted(epoch_order("all", {}, what, seed)) == what.rows.tolist()
    with_masks = what.rows[what.positive].tolist()
    assert sorted(epoch_order("nonempty", {}, what, seed)) == with_masks


def test_nonempty_without_a_mask_is_refused():
    with pytest.raises(InputError, match=r"no mask among 3 .*samples 'all'"):
        epoch_order("nonempty", {}, shown([False] * 3), 0)


@pytest.mark.parametrize(("epoch", "positives"), [(0, 80), (1, 70), (2, 60), (3, 50), (4, 40)])
def test_the_share_falls_in_a_line(epoch, positives):
    what = shown([True] * 22 + [False] * 78, epoch=epoch, epochs=5)
    order = epoch_order("positive_share", {"start": 0.8, "end": 0.4}, what, 1)
    assert len(order) == 100
    assert what.positive[order - 100].sum() == positives
    assert epoch_order("positive_share", {}, what, 1).tolist() == order.tolist()  # the defaults


def test_a_single_epoch_has_the_first_share():
    assert (epoch_order("positive_share", {}, shown(HALF, epochs=1), 1) < 110).sum() == 40


@given(any_shown(), shares, shares, st.integers(0, 99))
def test_the_share_is_exact_and_draws_are_spread_evenly(what, start, end, seed):
    order = epoch_order("positive_share", {"start": start, "end": end}, what, seed)
    total = len(what.rows)
    assert len(order) == total
    progress = what.epoch / max(what.epochs - 1, 1)
    share = start + (end - start) * progress
    is_positive = what.positive[order - 100]
    assert abs(is_positive.sum() - share * total) <= 0.5 + 1e-9
    for has in (True, False):
        of_class, drawn = what.rows[what.positive == has], order[is_positive == has]
        counts = Counter(drawn.tolist())
        times = [counts[r] for r in of_class]
        assert max(times) - min(times) <= 1
        # In order too: none comes again before each was there.
        for turn in range(0, len(drawn), len(of_class)):
            part = drawn[turn : turn + len(of_class)]
            assert len(set(part)) == len(part)
    # In every beginning of the epoch within one image.
    ideal = np.arange(1, total + 1) * is_positive.sum() / total
    assert np.abs(np.cumsum(is_positive) - ideal).max() <= 1 + 1e-9


def test_negatives_of_the_first_epochs_differ():
    """A share of 0.8 shows few negatives; other epochs must show others."""
    empty = [
        {r for r in epoch_order("positive_share", {}, shown(HALF, epoch=e), 1) if r >= 110}
        for e in (0, 1)
    ]
    assert len(empty[0]) == 10
    assert empty[0] - empty[1]


@pytest.mark.parametrize(("has", "lacks"), [(True, "without"), (False, "with")])
def test_a_share_without_one_class_is_refused_in_every_epoch(has, lacks):
    for epoch in range(2):
        what = shown([has] * 4, epoch=epoch, epochs=2)
        with pytest.raises(InputError, match=f"none of 4 training images is {lacks} one"):
            epoch_order("positive_share", {"start": 0.0, "end": 1.0}, what, 0)


def test_hard_images_come_again_as_often_as_they_are_hard():
    hardness = [1.0] * 4 + [0.5] * 4 + [0.0] * 32
    order = Counter(epoch_order("hard", {"factor": 3.0}, shown([False] * 40, hardness), 2).tolist())
    # (3 − 1) · (4 · 1 + 4 · 0.5) = 12 extra draws: 2 for each of hardness 1, 1 for each of 0.5.
    assert [order[100 + i] for i in range(40)] == [3] * 4 + [2] * 4 + [1] * 32


def test_extra_draws_stop_at_their_share():
    what = shown([False] * 40, [1.0] * 20 + [0.0] * 20)
    order = Counter(epoch_order("hard", {"factor": 9.0, "share": 0.25}, what, 2).tolist())
    assert sum(order.values()) == 50
    assert {order[100 + i] for i in range(20)} <= {1, 2}
    assert all(order[100 + i] == 1 for i in range(20, 40))
    assert len(epoch_order("hard", {"share": 0.0}, what, 2)) == 40


def test_before_the_first_look_hard_is_all():
    what = shown(HALF)
    assert epoch_order("hard", {}, what, 7).tolist() == epoch_order("all", {}, what, 7).tolist()


@given(any_shown(), st.floats(1.01, 20), shares, st.integers(0, 99))
def test_hard_epochs_have_the_stated_length_and_counts(what, factor, share, seed):
    order = epoch_order("hard", {"factor": factor, "share": share}, what, seed)
    n, wanted = len(what.rows), (factor - 1) * what.hardness
    extra = len(order) - n
    assert abs(extra - min(wanted.sum(), share * n)) <= 0.5 + 1e-6
    shrunk = wanted * (extra / max(wanted.sum(), 1e-300)) if extra else 0 * wanted
    counts = Counter(order.tolist())
    for row, expected in zip(what.rows, shrunk, strict=True):
        more = counts[row] - 1
        assert np.floor(expected - 1e-6) <= more <= np.ceil(expected + 1e-6)


def test_which_hard_image_is_rounded_up_is_chance():
    """Over many seeds each image has its mean, and any two may come again together."""
    uneven, even = shown([False] * 2, [0.9, 0.1]), shown([False] * 8, [0.5] * 8)
    mild, together = 0, np.zeros((8, 8))
    for seed in range(400):
        mild += Counter(epoch_order("hard", {}, uneven, seed).tolist())[101] - 1
        extra = np.bincount(epoch_order("hard", {}, even, seed) - 100, minlength=8) - 1
        together += np.outer(extra, extra)
    assert 15 < mild < 65  # 40 of 400, standard deviation 6
    assert np.abs(np.diag(together) - 200).max() < 45  # 4 of 8 each time: 200, deviation 10
    assert together.min() > 40  # 200 · 3/7 in the mean


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("nonemtpy", {}, "sampling 'nonemtpy' is unknown; nearest: nonempty$"),
        ("zzz", {}, "'zzz' is unknown; nearest: all, nonempty, positive_share, hard"),
        ("all", {"share": 0.5}, "sampling 'all' has no option 'share'; it has none"),
        ("hard", {"shares": 0.5}, "'hard' has no option 'shares'; it has factor, share"),
        ("hard", {"factor": 1.0}, "'hard': factor is 1.0.*greater than 1; the default is 2.0"),
        ("hard", {"factor": 1e9}, "'hard': factor is 1000000000.0.*less than or equal to 100"),
        ("hard", {"share": float("nan")}, "'hard': share is nan"),
        ("positive_share", {"start": 1.5}, "'positive_share': start is 1.5.*less than or equal"),
        ("positive_share", {"end": -0.1}, "'positive_share': end is -0.1.*default is 0.4"),
        ("positive_share", {"end": "0.2"}, "'positive_share': end is '0.2'"),
    ],
)
def test_what_does_not_exist_is_refused_before_any_data(name, options, message):
    with pytest.raises(InputError, match=message):
        sampling.check(name, options)
    with pytest.raises(InputError, match=message):
        epoch_order(name, options, shown(HALF), 0)


def test_options_at_their_bounds_pass():
    sampling.check("positive_share", {"start": 1, "end": 0.22})
    sampling.check("hard", {"factor": 100.0, "share": 1.0})


@given(st.lists(st.integers(0, 5), max_size=40))
def test_turns_count_what_came_before(rows):
    order = np.array(rows, dtype=np.int64)
    assert sampling.occurrence_numbers(order).tolist() == [
        rows[:i].count(r) for i, r in enumerate(rows)
    ]


def hardness(predicted, truth) -> float:
    """Hardness of one image from its mask at p > 0.5 and its true mask, each (H, W)."""
    logits = torch.where(torch.as_tensor(predicted) > 0, 0.1, -0.1)[None, None]
    values = hardness_of(Logits(mask=logits), torch.as_tensor(truth)[None, None], torch.zeros(1))
    assert values.shape == (1,)
    assert values.dtype == torch.float32
    return float(values)


def rectangle(height: int, width: int, size: int = 32) -> np.ndarray:
    mask = np.zeros((size, size), dtype=np.uint8)
    mask[:height, :width] = 1
    return mask


EMPTY = rectangle(0, 0)


def test_by_hand():
    assert hardness(EMPTY, EMPTY) == 0
    assert hardness(EMPTY, rectangle(4, 4)) == 1  # a false negative
    assert hardness(rectangle(4, 4), rectangle(4, 4)) == 0
    assert hardness(rectangle(4, 8), rectangle(4, 4)) == pytest.approx(1 / 3)  # dice 2·16 / 48
    assert hardness(rectangle(4, 4)[::-1].copy(), rectangle(4, 4)) == 1  # elsewhere


def test_a_false_alarm_counts_by_its_area_at_1024():
    # A pixel of 512² is four of 1024².
    half = rectangle(1, FALSE_ALARM_PX // 8, size=512)
    empty = np.zeros_like(half)
    assert hardness(half, empty) == pytest.approx(0.5)
    assert hardness(half | half[::-1], empty) == 1.0
    assert hardness(rectangle(9, 9), EMPTY) == 1.0  # and never more
    assert hardness(rectangle(1, 1), EMPTY) == 1.0  # at 32² a pixel is more than that already


@given(st.integers(0, 2**32 - 1), st.floats(0, 1), st.floats(0, 1))
def test_with_a_mask_it_is_one_minus_the_score(seed, dense_prediction, dense_truth):
    generator = np.random.default_rng(seed)
    predicted = generator.random((8, 8)) < dense_prediction
    truth = generator.random((8, 8)) < dense_truth
    truth[0, 0] = True
    expected = 1 - metrics.dice(predicted, truth)
    assert hardness(predicted, truth) == pytest.approx(expected, abs=1e-6)


@given(st.integers(0, 2**32 - 1), st.sampled_from([torch.float16, torch.bfloat16, torch.float32]))
def test_images_of_a_batch_do_not_meet(seed, dtype):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn((5, 1, 16, 16), generator=generator).to(dtype)
    masks = (torch.rand((5, 1, 16, 16), generator=generator) > 0.7).to(torch.uint8)
    masks[::2] = 0
    labels = masks.flatten(1).any(dim=1).float()
    together = hardness_of(Logits(mask=logits), masks, labels)
    single = [
        hardness_of(Logits(mask=logits[i : i + 1]), masks[i : i + 1], labels[i : i + 1])
        for i in range(5)
    ]
    assert torch.equal(together, torch.cat(single))
    assert ((together >= 0) & (together <= 1)).all()


def test_a_classifier_is_as_wrong_as_its_probability():
    label = torch.tensor([0.0, 30.0, 30.0, np.log(3.0)], requires_grad=True)
    classifier = SimpleNamespace(mask=None, label=label)
    labels = torch.tensor([1.0, 1.0, 0.0, 0.0])
    values = hardness_of(classifier, torch.zeros((4, 1, 2, 2)), labels)
    torch.testing.assert_close(values, torch.tensor([0.5, 0.0, 1.0, 0.75]))
    assert not values.requires_grad  # it takes no part in the training
