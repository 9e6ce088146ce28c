from __future__ import annotations

import math

import pytest
import torch

from kernel_lib.errors import InputError
from kernel_lib.models import losses
from kernel_lib.models.networks import Logits

MASK = torch.tensor([1.0, 0.0, 1.0, 0.0]).view(1, 1, 2, 2)
PROB = torch.tensor([0.5, 0.25, 0.8, 0.1]).view(1, 1, 2, 2)


def test_bce_by_hand():
    expected = -(math.log(0.5) + math.log(0.75) + math.log(0.8) + math.log(0.9)) / 4
    assert losses.bce(torch.logit(PROB), MASK).item() == pytest.approx(expected, rel=1e-6)
    assert losses.bce(torch.zeros(1, 1, 2, 2), MASK).item() == pytest.approx(math.log(2))


def test_bce_stays_finite_for_extreme_logits():
    logits = torch.tensor([-200.0, 200.0, 200.0, -200.0]).view(1, 1, 2, 2)
    assert losses.bce(logits, MASK).item() == pytest.approx(100.0)


@pytest.mark.parametrize("name", losses.LOSSES)
def test_good_is_less_than_bad_and_perfect_is_next_to_nothing(name):
    loss = losses.LOSSES[name]
    good, bad = (MASK * 2 - 1) * 2, (1 - MASK * 2) * 2
    assert loss(good, MASK) < loss(good * 0.1, MASK) < loss(bad, MASK)
    assert loss(good * 50, MASK).item() == pytest.approx(0, abs=1e-4)


@pytest.mark.parametrize("name", losses.LOSSES)
def test_a_batch_is_the_mean_of_its_images(name):
    torch.manual_seed(0)
    logits = torch.randn(3, 1, 4, 4)
    masks = (torch.rand(3, 1, 4, 4) > 0.5).float()
    alone = [losses.LOSSES[name](logits[i : i + 1], masks[i : i + 1]) for i in range(3)]
    torch.testing.assert_close(losses.LOSSES[name](logits, masks), torch.stack(alone).mean())


def test_the_sum_is_weighted_and_takes_masks_as_they_lie_in_the_cache():
    output = Logits(mask=torch.logit(PROB).to(torch.bfloat16))
    value = losses.weighted_sum({"bce": 2.5})(output, MASK.to(torch.uint8))
    assert value.dtype == torch.float32
    expected = 2.5 * losses.bce(torch.logit(PROB).to(torch.bfloat16).float(), MASK)
    torch.testing.assert_close(value, expected)


def test_several_losses_add_up(monkeypatch):
    monkeypatch.setitem(losses.LOSSES, "area", lambda logits, masks: masks.mean())
    value = losses.weighted_sum({"bce": 1.0, "area": 4.0})(Logits(mask=torch.logit(PROB)), MASK)
    torch.testing.assert_close(value, losses.bce(torch.logit(PROB), MASK) + 4 * 0.5)


def test_an_unknown_loss_is_refused_with_the_known_ones():
    with pytest.raises(InputError, match="loss 'dise' is none of bce"):
        losses.weighted_sum({"bce": 1.0, "dise": 1.0})
