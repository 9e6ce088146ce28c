from __future__ import annotations

import pytest
import torch
from torch import nn

from kernel_lib.training.ema import Ema


def test_the_average_is_the_recursion_by_hand():
    model = nn.Linear(1, 1, bias=False)
    model.weight.data.fill_(1.0)
    ema = Ema(model, decay=0.5)
    expected = 1.0
    for n, value in enumerate((2.0, 4.0, -1.0), start=1):
        model.weight.data.fill_(value)
        ema.update(model)
        keep = min(0.5, (1 + n) / (10 + n))
        expected = keep * expected + (1 - keep) * value
        assert ema.model.weight.item() == pytest.approx(expected)


def test_statistics_are_averaged_and_counters_copied():
    model = nn.BatchNorm2d(2).train()
    ema = Ema(model, decay=0.9)
    model(torch.randn(4, 2, 3, 3) + 5)
    ema.update(model)
    assert ema.model.num_batches_tracked == 1
    assert 0 < ema.model.running_mean[0] < 0.9 * 5


def test_decay_zero_is_a_copy():
    model = nn.Linear(2, 2)
    ema = Ema(model, decay=0.0)
    model.weight.data.mul_(3)
    ema.update(model)
    assert torch.equal(ema.model.weight, model.weight)
