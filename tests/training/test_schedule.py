from __future__ import annotations

import pytest
import torch
from torch import nn

from kernel_lib.config import Experiment
from kernel_lib.errors import InputError
from kernel_lib.training import schedule
from kernel_lib.training.schedule import Ema

EXPERIMENT = Experiment(name="x", epochs=10, min_epochs=1, lr=0.02, lr_end_factor=0.1)


@pytest.mark.parametrize(
    ("fields", "rates"),
    [
        ({}, {0: 0.02, 5: 0.011, 10: 0.002}),
        ({"schedule": "poly", "lr_end_factor": 0.0}, {5: 0.02 * 0.5**0.9, 10: 0}),
        ({"schedule": "constant"}, {0: 0.02, 5: 0.02, 10: 0.02}),
        ({"warmup_epochs": 2.0}, {0: 0.0002, 1: 0.01, 2: 0.02, 10: 0.002}),
    ],
)
def test_rates_by_hand(fields, rates):
    experiment = EXPERIMENT.differing(name="y", **fields)
    assert {e: schedule.rate(experiment, e) for e in rates} == pytest.approx(rates)


def test_cosine_falls_throughout():
    rates = [schedule.rate(EXPERIMENT, e / 10) for e in range(101)]
    assert rates == sorted(rates, reverse=True)


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_each_group_has_its_share_of_the_rate(name):
    groups = [
        {"params": [torch.nn.Parameter(torch.ones(1))], "lr_factor": factor}
        for factor in (0.1, 1.0)
    ]
    optimizer = schedule.optimizer(groups, EXPERIMENT.differing(name="y", optimizer=name))
    schedule.set_rate(optimizer, 0.5)
    assert [g["lr"] for g in optimizer.param_groups] == [0.05, 0.5]


@pytest.mark.parametrize("wrong", [{"optimizer": "lion"}, {"schedule": "step"}])
def test_an_unknown_name_is_refused(wrong):
    with pytest.raises(InputError, match="is unknown; nearest: "):
        schedule.check(EXPERIMENT.differing(name="y", **wrong))


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
