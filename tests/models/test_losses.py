from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from kernel_lib.config import Experiment
from kernel_lib.errors import InputError
from kernel_lib.models import losses
from kernel_lib.models.base import Logits

LN2 = math.log(2)
MASK = torch.tensor([1.0, 0.0, 1.0, 0.0]).view(1, 1, 2, 2)
PROB = torch.tensor([0.5, 0.25, 0.8, 0.1]).view(1, 1, 2, 2)
EMPTY, FULL = torch.zeros(1, 1, 2, 2), torch.ones(1, 1, 2, 2)
PER_IMAGE = [name for name in losses.LOSSES if name != "weighted_bce"]


def experiment(**fields) -> Experiment:
    return Experiment(name="x", **fields)


def image(*values: float) -> torch.Tensor:
    return torch.tensor(values).view(1, 1, 2, 2)


def softplus(z: float) -> float:
    return math.log1p(math.exp(z))


# Each by hand

Z = image(1.0, -1.0, 2.0, 0.0)
LOGITS, LIKELY = torch.logit(PROB), torch.logit(torch.full((1, 1, 2, 2), 0.2))
OF_POSITIVES, OF_NEGATIVES = (LN2 - math.log(0.8)) / 2, -(math.log(0.75) + math.log(0.9)) / 2
FOCAL = [0.25 * LN2, 0.0625 * -math.log(0.75), 0.04 * -math.log(0.8), 0.01 * -math.log(0.9)]


@pytest.mark.parametrize(
    ("name", "logits", "masks", "options", "expected"),
    [
        ("bce", LOGITS, MASK, {}, (OF_POSITIVES + OF_NEGATIVES) / 2),
        ("bce", EMPTY, MASK, {}, LN2),
        ("bce", Z, EMPTY, {}, (softplus(1) + softplus(-1) + softplus(2) + LN2) / 4),
        ("bce", Z, FULL, {}, (softplus(-1) + softplus(1) + softplus(-2) + LN2) / 4),
        # Σpy = 1.3, Σp = 1.65, Σy = 2
        ("dice", LOGITS, MASK, {}, 1 - 3.6 / 4.65),
        ("dice", LOGITS, MASK, {"smooth": 10.0}, 1 - 12.6 / 13.65),
        ("dice", LOGITS, EMPTY, {}, 1.65 / 2.65),
        ("dice", LOGITS, FULL, {}, 2.35 / 6.65),
        ("dice", EMPTY - 200, EMPTY, {}, 0),
        # p_t: 0.5, 0.75, 0.8, 0.9
        ("focal", LOGITS, MASK, {}, sum(FOCAL) / 4),
        ("focal", EMPTY, MASK, {}, LN2 / 4),
        ("focal", EMPTY, MASK, {"gamma": 3.0}, LN2 / 8),
        ("focal", LIKELY, EMPTY, {}, 0.04 * -math.log(0.8)),
        ("focal", LIKELY, FULL, {}, 0.64 * -math.log(0.2)),
        ("weighted_bce", LOGITS, MASK, {}, 0.25 * OF_POSITIVES + 0.75 * OF_NEGATIVES),
        ("weighted_bce", LOGITS, MASK, {"positive": 3.0, "negative": 2.0},
         3 * OF_POSITIVES + 2 * OF_NEGATIVES),
        ("weighted_bce", EMPTY, MASK, {}, LN2),
        # 1 + z = 2, −2, 3, 1; 1 − z = 0, 4, −1, 1
        ("lovasz", image(1.0, -3.0, 2.0, 0.0), EMPTY, {}, (3 + 6 / 4) / 2),
        ("lovasz", image(1.0, -3.0, 2.0, 0.0), FULL, {}, (4 + 5 / 4) / 2),
        *(("lovasz", EMPTY, masks, {}, 1) for masks in (EMPTY, FULL, MASK)),
    ],
)  # fmt: skip
def test_values_by_hand(name, logits, masks, options, expected):
    assert losses.LOSSES[name](logits, masks, **options).item() == pytest.approx(expected, rel=1e-6)


def test_focal_without_focus_is_bce():
    z = torch.linspace(-30, 30, 16).view(1, 1, 4, 4)
    for masks in (torch.zeros_like(z), torch.ones_like(z), (z > 3).float()):
        torch.testing.assert_close(losses.focal(z, masks, gamma=0.0), losses.bce(z, masks))


def test_weighted_bce_gives_nothing_for_a_class_that_is_not_there():
    assert losses.weighted_bce(Z, EMPTY) == 0.75 * losses.bce(Z, EMPTY)
    assert losses.weighted_bce(Z, FULL) == 0.25 * losses.bce(Z, FULL)


def test_weighted_bce_takes_its_means_over_the_batch():
    logits = torch.cat([image(1.0, -1.0, 2.0, 0.0), image(3.0, 0.0, 0.0, -2.0)])
    masks = torch.cat([image(1.0, 1.0, 1.0, 0.0), image(0.0, 0.0, 1.0, 0.0)])
    positives = (softplus(-1) + softplus(1) + softplus(-2) + LN2) / 4
    negatives = (LN2 + softplus(3) + LN2 + softplus(-2)) / 4
    value = losses.weighted_bce(logits, masks).item()
    assert value == pytest.approx(0.25 * positives + 0.75 * negatives)


def test_lovasz_by_hand():
    # Errors 1 − z(2y − 1) = 3, 1.5, 0.5, −1. As these pixels go wrong in turn, the Jaccard loss of
    # the mask (pixels 0 and 2) is 1/2, 2/3, 1, 1, that of the background 1/3, 2/3, 3/4, 1.
    of_mask = 3 * (1 / 2) + 1.5 * (2 / 3 - 1 / 2) + 0.5 * (1 - 2 / 3)
    of_background = 3 * (1 / 3) + 1.5 * (2 / 3 - 1 / 3) + 0.5 * (3 / 4 - 2 / 3)
    value = losses.lovasz(image(-2.0, 0.5, 0.5, -2.0), MASK).item()
    assert value == pytest.approx((of_mask + of_background) / 2)
    assert value == pytest.approx(83 / 48)


def test_half_of_lovasz_s_gradient_on_an_empty_mask_falls_on_the_highest_pixel():
    z = image(1.0, -3.0, 2.0, 0.0).requires_grad_()
    losses.lovasz(z, EMPTY).backward()
    assert z.grad.flatten().tolist() == [0.125, 0, 0.625, 0.125]


# Against another way


def jaccard_loss(wrong: np.ndarray, of_class: np.ndarray) -> float:
    """1 − intersection / union of a class and of what is predicted when these pixels are wrong."""
    predicted = of_class ^ wrong
    union = (predicted | of_class).sum()
    return 1 - (predicted & of_class).sum() / union if union else 0.0


def choquet(errors: np.ndarray, of_class: np.ndarray) -> float:
    """The Lovász extension by its integral: ∫ loss({errors ≥ t}) dt over t > 0."""
    levels = np.unique(np.append(errors[errors > 0], 0.0))
    return sum(
        (high - low) * jaccard_loss(errors >= high, of_class)
        for low, high in itertools.pairwise(levels)
    )


def symmetric_lovasz(logits: np.ndarray, truth: np.ndarray) -> float:
    errors = 1 - logits * np.where(truth, 1.0, -1.0)
    return (choquet(errors, truth) + choquet(errors, ~truth)) / 2


pixels = st.integers(1, 12).flatmap(
    lambda n: st.tuples(
        # coarse steps, so that many errors are equal
        hnp.arrays(np.float64, n, elements=st.integers(-12, 12).map(lambda k: k / 4)),
        hnp.arrays(bool, n),
    )
)


@given(pixels)
def test_lovasz_is_the_integral_of_the_jaccard_loss_over_levels(case):
    logits, truth = case
    z = torch.from_numpy(logits).float().view(1, 1, 1, -1)
    y = torch.from_numpy(truth).float().view(1, 1, 1, -1)
    expected = symmetric_lovasz(logits, truth)
    assert losses.lovasz(z, y).item() == pytest.approx(expected, rel=1e-5, abs=1e-6)
    torch.testing.assert_close(losses.lovasz(-z, 1 - y), losses.lovasz(z, y))


@given(hnp.arrays(bool, (2, 9)), st.sampled_from([1.0, 3.0, 1000.0]))
def test_lovasz_of_sure_logits_is_the_jaccard_loss(case, margin):
    predicted, truth = case
    z = torch.from_numpy(np.where(predicted, margin, -margin)).float().view(1, 1, 3, 3)
    y = torch.from_numpy(truth).float().view(1, 1, 3, 3)
    wrong = predicted ^ truth
    both = jaccard_loss(wrong, truth) + jaccard_loss(wrong, ~truth)
    expected = pytest.approx((1 + margin) / 2 * both, rel=1e-5)
    assert losses.lovasz(z, y).item() == expected


def test_lovasz_keeps_its_digits_at_1024():
    generator = torch.Generator().manual_seed(0)
    n = 1024 * 1024
    z = torch.randn(n, generator=generator)
    y = (torch.rand(n, generator=generator) < 0.01).float()
    leaf = z.view(1, 1, 1024, 1024).clone().requires_grad_()
    value = losses.lovasz(leaf, y.view_as(leaf))
    value.backward()

    errors, truth = (1 - z * (2 * y - 1)).numpy(), y.numpy() > 0
    order = np.argsort(-errors, kind="stable")
    steps = np.zeros(n)
    for of_class in (truth, ~truth):
        missed, added = np.cumsum(of_class[order]), np.cumsum(~of_class[order])
        jaccard = 1 - (of_class.sum() - missed) / (of_class.sum() + added)
        steps[order] += np.diff(jaccard, prepend=0.0) / 2
    assert steps.sum() == pytest.approx(1)
    assert value.item() == pytest.approx((np.maximum(errors, 0) * steps).sum(), rel=1e-5)
    expected = np.where(errors > 0, steps, 0) * np.where(truth, -1, 1)
    np.testing.assert_allclose(leaf.grad.flatten().numpy(), expected, rtol=1e-5, atol=1e-13)


@pytest.mark.parametrize("name", losses.LOSSES)
@pytest.mark.parametrize("share", [0.0, 0.4, 1.0])
def test_gradients_are_those_of_finite_differences(name, share):
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(2, 1, 3, 4, generator=generator, dtype=torch.float64).requires_grad_()
    y = (torch.rand(2, 1, 3, 4, generator=generator) < share).double()
    torch.autograd.gradcheck(lambda t: losses.LOSSES[name](t, y), z, atol=1e-6, rtol=1e-4)


# Of every loss


@pytest.mark.parametrize("name", losses.LOSSES)
def test_good_is_less_than_bad_and_perfect_is_next_to_nothing(name):
    loss = losses.LOSSES[name]
    for masks in (MASK, EMPTY, FULL):
        good, bad = (masks * 2 - 1) * 2, (1 - masks * 2) * 2
        assert loss(good, masks) < loss(good * 0.1, masks) < loss(bad, masks)
        assert loss(good * 50, masks).item() == pytest.approx(0, abs=1e-4)


@pytest.mark.parametrize("name", PER_IMAGE)
def test_a_batch_is_the_mean_of_its_images(name):
    torch.manual_seed(0)
    logits = torch.randn(3, 1, 4, 4)
    masks = (torch.rand(3, 1, 4, 4) > 0.5).float()
    single = [losses.LOSSES[name](logits[i : i + 1], masks[i : i + 1]) for i in range(3)]
    torch.testing.assert_close(losses.LOSSES[name](logits, masks), torch.stack(single).mean())


@pytest.mark.parametrize("name", losses.LOSSES)
@pytest.mark.parametrize("masks", [EMPTY, FULL, MASK], ids=["empty", "full", "both"])
@pytest.mark.parametrize("level", [-60000.0, -20.0, 0.0, 20.0, 60000.0])
def test_it_is_finite_with_finite_gradients_from_float16(name, masks, level):
    logits = torch.full((1, 1, 2, 2), level, dtype=torch.float16, requires_grad=True)
    value = losses.build(experiment(loss={name: 1.0}))(Logits(logits), masks, torch.ones(1))
    value.backward()
    assert value.dtype == torch.float32
    assert math.isfinite(value.item())
    assert torch.isfinite(logits.grad).all()


def test_a_focus_below_one_has_gradients_everywhere():
    logits = image(-60000.0, 60000.0, 60000.0, -60000.0).requires_grad_()
    for masks in (MASK, 1 - MASK):
        losses.focal(logits, masks, gamma=0.5).backward()
        assert torch.isfinite(logits.grad).all()


# Of an experiment


def test_the_sum_is_weighted_and_takes_masks_as_they_lie_in_the_cache():
    output = Logits(mask=torch.logit(PROB).to(torch.bfloat16))
    value = losses.build(experiment(loss={"bce": 2.5}))(output, MASK.to(torch.uint8), torch.ones(1))
    assert value.dtype == torch.float32
    expected = 2.5 * losses.bce(torch.logit(PROB).to(torch.bfloat16).float(), MASK)
    torch.testing.assert_close(value, expected)


def test_several_losses_add_up_each_with_its_own_options():
    options = {"dice": {"smooth": 10.0}, "weighted_bce": {"positive": 0.5, "negative": 0.5}}
    weights = {"bce": 3.0, "dice": 1.0, "weighted_bce": 4.0}
    z = torch.logit(PROB)
    value = losses.build(experiment(loss=weights, loss_options=options))(
        Logits(z), MASK, torch.ones(1)
    )
    expected = (
        3 * losses.bce(z, MASK)
        + losses.dice(z, MASK, smooth=10.0)
        + 4 * losses.weighted_bce(z, MASK, positive=0.5, negative=0.5)
    )
    torch.testing.assert_close(value, expected)


BATCH = torch.cat([image(1.0, -1.0, 2.0, 0.0), image(3.0, 0.0, 0.0, -2.0), image(1.0, 2.0, 3.0, 4)])
MASKS = torch.cat([MASK, EMPTY, EMPTY])
LABELS = torch.tensor([1.0, 0.0, 1.0])  # the third's mask was lost when it was resized
NONEMPTY = [0, 2]


def test_mask_terms_can_count_non_empty_images_alone_and_labels_say_which_these_are():
    logits = BATCH.clone().requires_grad_()
    loss = losses.build(experiment(loss={"bce": 2.0, "lovasz": 1.0}, mask_loss_images="nonempty"))
    value = loss(Logits(logits), MASKS, LABELS)
    chosen = BATCH[NONEMPTY], MASKS[NONEMPTY]
    torch.testing.assert_close(value, 2 * losses.bce(*chosen) + losses.lovasz(*chosen))
    value.backward()
    assert not logits.grad[1].any()
    assert logits.grad[NONEMPTY].any(dim=(1, 2, 3)).all()


def test_what_is_left_out_may_be_infinite():
    logits = BATCH.clone()
    logits[1] = math.inf
    logits.requires_grad_()
    value = losses.build(experiment(mask_loss_images="nonempty"))(Logits(logits), MASKS, LABELS)
    value.backward()
    torch.testing.assert_close(value, losses.bce(BATCH[NONEMPTY], MASKS[NONEMPTY]))
    assert torch.isfinite(logits.grad).all()
    assert not logits.grad[1].any()


def test_the_three_terms_of_deep_supervision_by_hand():
    label, sides = torch.tensor([0.0, 2.0, -1.0]), (BATCH * 2, -BATCH)
    loss = losses.build(experiment(loss={"bce": 1.0}, label_weight=0.05, side_weight=0.1))
    value = loss(Logits(BATCH, label, sides), MASKS, LABELS)
    of_label = (LN2 + softplus(2) + softplus(1)) / 3
    of_sides = [losses.bce(side[NONEMPTY], MASKS[NONEMPTY]).item() for side in sides]
    expected = losses.bce(BATCH, MASKS).item() + 0.05 * of_label + 0.1 * sum(of_sides)
    assert value.item() == pytest.approx(expected)


def test_terms_without_a_weight_or_an_output_are_left_out():
    broken, expected = torch.full_like(BATCH, math.nan), losses.bce(BATCH, MASKS)
    output = Logits(BATCH, broken[:, 0, 0, 0], (broken,))
    torch.testing.assert_close(losses.build(experiment())(output, MASKS, LABELS), expected)
    loss = losses.build(experiment(side_weight=0.1))
    torch.testing.assert_close(loss(Logits(BATCH), MASKS, LABELS), expected)


@pytest.mark.parametrize("name", losses.LOSSES)
def test_a_batch_without_a_non_empty_image_gives_zeros_that_still_reach_every_parameter(name):
    logits = torch.full((2, 1, 2, 2), math.inf, dtype=torch.float16, requires_grad=True)
    side = torch.full((2, 1, 2, 2), -60000.0, dtype=torch.float16, requires_grad=True)
    fields = {"loss": {name: 1.0}, "mask_loss_images": "nonempty", "side_weight": 0.1}
    loss = losses.build(experiment(**fields))
    value = loss(Logits(logits, None, (side,)), torch.zeros(2, 1, 2, 2), torch.zeros(2))
    value.backward()
    assert value.item() == 0
    for leaf in (logits, side):
        assert leaf.grad.tolist() == torch.zeros(2, 1, 2, 2).tolist()


@pytest.mark.parametrize("images", ["all", "nonempty"])
@pytest.mark.parametrize("label", [-60000.0, 0.0, 60000.0])
def test_a_classifier_has_the_label_s_term_alone(images, label):
    logits = torch.full((3,), label, dtype=torch.float16, requires_grad=True)
    loss = losses.build(experiment(label_weight=2.0, mask_loss_images=images))
    value = loss(Logits(mask=None, label=logits), MASKS, LABELS.to(torch.uint8))
    bce = {-60000.0: 2 * 60000 / 3, 0.0: LN2, 60000.0: 60000 / 3}[label]
    assert value.item() == pytest.approx(2 * bce)
    assert value.dtype == torch.float32
    value.backward()
    assert torch.isfinite(logits.grad).all()


@pytest.mark.parametrize("name", PER_IMAGE)
def test_batches_weighted_by_their_shares_have_the_loss_of_all_images(name):
    label = torch.tensor([0.5, 2.0, -1.0])
    loss = losses.build(experiment(loss={name: 1.5}, label_weight=0.3))
    complete = loss(Logits(BATCH, label), MASKS, LABELS)
    parts = [
        len(BATCH[part]) / 3 * loss(Logits(BATCH[part], label[part]), MASKS[part], LABELS[part])
        for part in (slice(0, 2), slice(2, 3))
    ]
    torch.testing.assert_close(sum(parts), complete)


# What is refused


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"loss": {"bce": 1.0, "dise": 1.0}}, "loss 'dise' is unknown; nearest: dice"),
        ({"loss": {"zzz": 1.0}}, "nearest: bce, dice, focal, lovasz, weighted_bce"),
        ({"loss": {"bce": 0.0}}, "loss 'bce' weighs 0.0"),
        ({"loss": {"bce": -1.0}}, "loss 'bce' weighs -1.0"),
        ({"loss_options": {"dice": {"smooth": 1.0}}}, "'dice', which the experiment does not use"),
        ({"loss_options": {"bce": {"smooth": 1.0}}}, "'bce' has no option 'smooth'; it has none"),
        ({"loss": {"weighted_bce": 1.0}, "loss_options": {"weighted_bce": {"positiv": 1.0}}},
         "'weighted_bce' has no option 'positiv'; it has positive, negative"),
        ({"loss": {"dice": 1.0}, "loss_options": {"dice": {"smooth": 0.0}}},
         "'dice': smooth is 0.0: .*; the default is 1.0"),
        ({"loss": {"focal": 1.0}, "loss_options": {"focal": {"gamma": -1.0}}},
         "'focal': gamma is -1.0"),
    ],
)  # fmt: skip
def test_what_cannot_be_trained_with_is_refused_before_any_data(fields, message):
    with pytest.raises(InputError, match=message):
        losses.build(experiment(**fields))


def test_an_experiment_that_weighs_nothing_is_refused():
    nothing = experiment().model_copy(update={"loss": {}})
    with pytest.raises(InputError, match="neither a mask loss nor a label"):
        losses.build(nothing)
    losses.build(nothing.model_copy(update={"label_weight": 1.0}))


def test_a_network_that_does_not_give_what_the_row_weighs_is_refused():
    with pytest.raises(InputError, match=r"label_weight is 0\.05, but UNet gives no label"):
        losses.build(experiment(label_weight=0.05))(Logits(BATCH), MASKS, LABELS)
    with pytest.raises(InputError, match="UNet gives no mask: set label_weight above 0"):
        losses.build(experiment())(Logits(None, LABELS), MASKS, LABELS)


@pytest.mark.parametrize("name", losses.LOSSES)
def test_defaults_obey_their_own_bounds(name):
    defaults = losses.LOSSES[name].__kwdefaults__ or {}
    losses.build(experiment(loss={name: 1.0}, loss_options={name: defaults}))
