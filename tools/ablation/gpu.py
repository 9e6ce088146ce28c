"""What determinism costs on a GPU: the notes saw seed_everything lower its use."""

from __future__ import annotations

import time

import torch

from kernel_lib.config import Experiment
from kernel_lib.engine import Engine, choose_engine, seed_everything
from kernel_lib.models import losses, networks
from tools.ablation.score import Columns

WARM_UP, STEPS = 5, 30


def speeds(experiment: Experiment, rounds: int = 3) -> Columns:
    """Return images a second of training, free and deterministic, a value a round, in turns."""
    columns: Columns = {"free": [], "deterministic": []}
    for _ in range(rounds):
        for name, column in columns.items():
            column.append(images_per_second(experiment, choose_engine(), name == "deterministic"))
    seed_everything(0, deterministic=False)
    return columns


def images_per_second(
    experiment: Experiment,
    engine: Engine,
    deterministic: bool,
    warm_up: int = WARM_UP,
    steps: int = STEPS,
) -> float:
    """Return images a second of forward, backward and step on random pixels, without loading.

    `warm_up` steps come first: cuDNN times its algorithms in them, where it may.
    """
    seed_everything(0, deterministic)
    model = networks.build(experiment).to(engine.device).train()
    optimizer, loss = torch.optim.SGD(model.parameters(), experiment.lr), losses.build(experiment)
    shape = (experiment.batch_size, 1, experiment.size, experiment.size)
    images = engine.to_device(torch.randint(0, 256, shape, dtype=torch.uint8))
    masks = engine.to_device(torch.randint(0, 2, shape, dtype=torch.uint8))
    labels = torch.ones(experiment.batch_size, device=engine.device)
    began = 0.0
    for step in range(warm_up + steps):
        if step == warm_up:
            began = _now(engine)
        with engine.autocast():
            output = model(images)
        loss(output, masks, labels).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    return steps * experiment.batch_size / (_now(engine) - began)


def _now(engine: Engine) -> float:
    """Return seconds, once the device has done all that it was given."""
    if engine.device.type == "cuda":
        torch.cuda.synchronize(engine.device)
    return time.perf_counter()
