"""What bfloat16 gains on a CPU, with depthwise convolutions in float32 and without.

    python -m tools.benchmarks.precision [--size 128] [--batch 4]

A training step (forward, loss, backward, optimiser) of `lite0_256`, whose encoder is of depthwise
convolutions: in float32, in bfloat16 with `engine.DepthwiseInFloat32`, as the library has it, and
in plain bfloat16. One thread, turn and turn about, on a CPU that computes bfloat16 (AVX-512 BF16 or
AMX); one that emulates it gains nothing.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from contextlib import AbstractContextManager

import torch

from kernel_lib.engine import choose_engine
from kernel_lib.experiments import EXPERIMENTS
from kernel_lib.models import losses, networks
from kernel_lib.training import schedule
from tools.benchmarks.rounds import figure, timed

ROW = EXPERIMENTS["lite0_256"].model_copy(update={"weights": "none"})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=5)
    given = parser.parse_args()
    torch.set_num_threads(1)
    ways = {
        "float32": choose_engine("cpu", "float32").autocast,
        "ours": choose_engine("cpu", "bfloat16").autocast,
        "plain": lambda: torch.autocast("cpu", torch.bfloat16),
    }
    took = timed({name: step(way, given.size, given.batch) for name, way in ways.items()},
                 given.rounds)  # fmt: skip
    shown = {name: f"{given.batch / took.seconds(name):.2f} images/s" for name in ways}
    what = f"a step of lite0_256 at {given.size} in bfloat16 with depthwise in float32"
    for other, words in (("float32", "in float32"), ("plain", "all of it in bfloat16")):
        figure(what, shown["ours"], f"{words} {shown[other]}",
               f"{took.times_faster('ours', other):.2f} × as fast")  # fmt: skip


def step(
    autocast: Callable[[], AbstractContextManager], size: int, batch: int
) -> Callable[[], None]:
    """Return a training step on random pixels under a way to compute."""
    torch.manual_seed(0)
    model = networks.build(ROW).train()
    optimizer = schedule.optimizer(networks.parameter_groups(model, ROW), ROW)
    loss = losses.build(ROW)
    shape = (batch, 1, size, size)
    images = torch.randint(0, 256, shape, dtype=torch.uint8)
    images = images.to(memory_format=torch.channels_last)
    masks = torch.randint(0, 2, shape, dtype=torch.uint8)
    labels = torch.ones(batch)

    def once() -> None:
        with autocast():
            output = model(images)
        loss(output, masks, labels).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return once


if __name__ == "__main__":
    main()
