"""What determinism costs on a GPU: the notes saw seed_everything lower its use."""

from __future__ import annotations

import time

import torch

from kernel_lib.config import Experiment
from kernel_lib.engine import Engine, choose_engine, seed_everything
from kernel_lib.models import losses, networks
from tools.ablation.score import Columns

WARM_UP, STEPS = 5, 30


def speeds(row: Experiment, rounds: int = 3) -> Columns:
    """Images a second of the row's training, free and deterministic, a value a round, in turns."""
    found: Columns = {"free": [], "deterministic": []}
    for _ in range(rounds):
        for name, column in found.items():
            column.append(images_per_second(row, choose_engine(), name == "deterministic"))
    seed_everything(0, deterministic=False)
    return found


def images_per_second(
    row: Experiment, chosen: Engine, deterministic: bool, warm_up: int = WARM_UP, steps: int = STEPS
) -> float:
    """Images a second of forward, backward and step on random pixels, with no loading at all.

    `warm_up` steps come first: cuDNN times its algorithms in them, where it may.
    """
    seed_everything(0, deterministic)
    model = networks.build(row).to(chosen.device).train()
    optimizer, loss = torch.optim.SGD(model.parameters(), row.lr), losses.build(row)
    shape = (row.batch_size, 1, row.size, row.size)
    images = chosen.to_device(torch.randint(0, 256, shape, dtype=torch.uint8))
    masks = chosen.to_device(torch.randint(0, 2, shape, dtype=torch.uint8))
    labels = torch.ones(row.batch_size, device=chosen.device)
    began = 0.0
    for step in range(warm_up + steps):
        if step == warm_up:
            began = _now(chosen)
        with chosen.autocast():
            output = model(images)
        loss(output, masks, labels).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    return steps * row.batch_size / (_now(chosen) - began)


def _now(chosen: Engine) -> float:
    """Seconds, once the device has done all that it was given."""
    if chosen.device.type == "cuda":
        torch.cuda.synchronize(chosen.device)
    return time.perf_counter()
