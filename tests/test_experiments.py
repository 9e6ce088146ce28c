"""Checks of every shipped experiment."""

from __future__ import annotations

import json
import re

import pytest
import torch

from kernel_lib import experiments
from kernel_lib.config import Experiment, TrainParameters
from kernel_lib.experiments import EXPERIMENTS
from kernel_lib.models import losses, networks
from kernel_lib.plan import plan_training
from kernel_lib.stages import train

SHIPPED = list(EXPERIMENTS.values())
# Experiments with the same network.
BUILT = {
    (r.network, r.encoder, r.decoder_channels, *r.loss.items(), r.label_weight, r.side_weight,
     r.mask_loss_images): r
    for r in SHIPPED
}  # fmt: skip


pytestmark = pytest.mark.usefixtures("one_thread")


def test_names_are_unique():
    assert len({experiment.name for experiment in experiments._ALL}) == len(experiments._ALL)
    assert all(name == experiment.name for name, experiment in EXPERIMENTS.items())


def test_every_line_of_parents_ends():
    for experiment in SHIPPED:
        names = [experiment.name]
        while (parent := EXPERIMENTS[names[-1]].parent) is not None:
            assert parent in EXPERIMENTS, f"{names[-1]}: parent {parent} is not an experiment"
            assert parent not in names, f"{names} comes back to {parent}"
            names.append(parent)


@pytest.mark.parametrize("experiment", SHIPPED, ids=lambda experiment: experiment.name)
def test_an_experiment_survives_json(experiment):
    assert Experiment.model_validate_json(experiment.model_dump_json()) == experiment
    assert Experiment.model_validate(json.loads(experiment.model_dump_json())) == experiment


@pytest.mark.parametrize("experiment", SHIPPED, ids=lambda experiment: experiment.name)
def test_the_size_in_the_name_is_that_of_the_experiment(experiment):
    sizes = [int(s) for s in re.findall(r"_(\d{2,4})_", f"{experiment.name}_")]
    assert sizes in ([experiment.size], [])


@pytest.mark.parametrize("experiment", SHIPPED, ids=lambda experiment: experiment.name)
def test_every_name_in_an_experiment_is_known(experiment):
    train.check(plan_training(TrainParameters(experiment=experiment.name), EXPERIMENTS))


@pytest.mark.parametrize("experiment", BUILT.values(), ids=lambda experiment: experiment.name)
def test_it_builds_runs_both_ways_and_every_parameter_gets_a_gradient(experiment):
    torch.manual_seed(0)
    model = networks.build(experiment).train()
    levels = torch.randint(0, 256, (2, 1, 64, 64), dtype=torch.uint8)
    masks = (torch.rand(2, 1, 64, 64) > 0.7).to(torch.uint8)
    labels = torch.tensor([1.0, 0.0])
    masks[1] = 0
    output = model(levels)
    assert (output.mask is None) == (experiment.network == "Classifier")
    assert (output.label is not None) == (experiment.label_weight > 0)
    assert bool(output.sides) == (experiment.side_weight > 0)
    planes = [] if output.mask is None else [output.mask, *output.sides]
    assert {p.shape for p in planes} <= {(2, 1, 64, 64)}
    loss = losses.build(experiment)(output, masks, labels)
    assert loss.dtype == torch.float32
    assert loss.ndim == 0
    loss.backward()
    without = [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None]
    assert without == []
    strange = [n for n, p in model.named_parameters() if not torch.isfinite(p.grad).all()]
    assert strange == []
    # The last layer's bias aside, a gradient of nothing but zeros means a dead path.
    dead = [n for n, p in model.named_parameters() if n.startswith("head") and not p.grad.any()]
    assert dead == []


def test_no_experiment_keeps_a_checkpoint_before_its_min_epochs():
    assert all(0 < experiment.min_epochs < experiment.epochs for experiment in SHIPPED)
