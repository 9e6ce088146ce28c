"""What the training loop costs beside a bare forward-backward-step loop on tensors in memory.

    python -m benchmarks.training [SIZE …]

Both run the same network, loss and optimiser in one process, turn and turn about, so that a noisy
machine slows both alike; the loop of the library also reads its cache, augments, averages weights
and draws its bar. The bar to clear is 90 %.
"""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from benchmarks.rounds import figure
from kernel_lib import runs
from kernel_lib.config import TrainParameters
from kernel_lib.data import cache, phantom, table
from kernel_lib.engine import engine
from kernel_lib.experiments import EXPERIMENTS
from kernel_lib.models import losses, networks
from kernel_lib.plan import TrainPlan
from kernel_lib.runs import Lineage
from kernel_lib.training import schedule
from kernel_lib.training.clock import Clock
from kernel_lib.training.loop import Job, Training

ROUNDS = 4
IMAGES = 32  # an epoch


def main(sizes: list[int]) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        phantom.write_competition(folder / "data", IMAGES, 2, size=256)
        source = table.discover(folder / "data")
        for size in sizes:
            compare(source, size, folder)


def compare(source: table.Source, size: int, folder: Path) -> None:
    """Print images/s of both loops at one size, and their ratio."""
    row = EXPERIMENTS["UNetResNet34_512_v1"].model_copy(
        update={"size": size, "batch_size": 8, "accumulate": 1, "weights": "none"}
    )
    prepared = cache.prepare(
        source.train, source.root, size, folder / "cache", "train", progress=False
    )
    training = _training(row, prepared, folder / str(size))
    bare = _bare_loop(row, prepared)
    training._train_epoch(), bare()  # warm up: memory, thread pools, kernels chosen
    seconds = {"train": [], "bare": []}
    for _ in range(ROUNDS):
        training.position.step = 0
        for name, work in (("train", training._train_epoch), ("bare", bare)):
            began = time.perf_counter()
            work()
            seconds[name].append(time.perf_counter() - began)
    rate = {name: IMAGES / float(np.median(taken)) for name, taken in seconds.items()}
    ratio = np.median(np.array(seconds["bare"]) / np.array(seconds["train"]))
    figure(
        f"the training loop at {size}²", f"{rate['train']:.2f} images/s",
        f"a bare loop on tensors in memory {rate['bare']:.2f} images/s",
        f"{ratio:.0%}", "90 %",
    )  # fmt: skip


def _training(row, prepared: cache.Prepared, folder: Path) -> Training:
    rows = np.arange(len(prepared))
    job = Job(
        folder=runs.fold_folder(folder, "bench", 0),
        plan=TrainPlan(run="bench", experiment=row, parameters=TrainParameters()),
        prepared=prepared,
        train_rows=rows,
        held_rows=rows[:2],
        truth=prepared.table.assign(positive=prepared.table["area_px"] > 0),
        lineage=Lineage(),
        engine=engine("cpu"),
        workers=0,
    )
    return Training(job, networks.build(row), Clock(None))


def _bare_loop(row, prepared: cache.Prepared):
    model = networks.build(row).train()
    optimizer = schedule.optimizer(networks.parameter_groups(model, row), row)
    loss = losses.of_row(row)
    images = torch.from_numpy(np.stack([prepared.image(i) for i in range(len(prepared))]))
    masks = torch.from_numpy(np.stack([prepared.mask(i) for i in range(len(prepared))]))
    images, masks = images.unsqueeze(1), masks.unsqueeze(1)  # (N, 1, S, S)
    labels = masks.flatten(1).any(dim=1).float()

    def epoch() -> None:
        for start in range(0, len(images), row.batch_size):
            part = slice(start, start + row.batch_size)
            loss(model(images[part]), masks[part], labels[part]).backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

    return epoch


if __name__ == "__main__":
    main([int(size) for size in sys.argv[1:]] or [128, 256])
