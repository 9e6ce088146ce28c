"""What the training loop costs beside a bare forward-backward-step loop on tensors in memory.

    python -m tools.benchmarks.training [SIZE …]

Both run the same network, loss and optimiser in one process, turn and turn about, so that a noisy
machine slows both alike; the loop of the library also reads its cache, augments, averages weights
and draws its bar. The bar to clear is 90 %.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from kernel_lib.artifacts import fold_run
from kernel_lib.artifacts.lineage import Lineage
from kernel_lib.config import Experiment, TrainParameters
from kernel_lib.data import cache, table
from kernel_lib.engine import Engine, choose_engine
from kernel_lib.experiments import EXPERIMENTS
from kernel_lib.models import losses, networks
from kernel_lib.plan import TrainPlan
from kernel_lib.training import schedule, step
from kernel_lib.training.job import Clock
from kernel_lib.training.loop import Job, Training
from tools.benchmarks.rounds import figure, timed
from tools.phantoms import competition

ROUNDS = 4
IMAGES = 32  # an epoch
POOL = 64  # images that a bare loop holds on its device, a multiple of a smaller batch


def main(sizes: list[int]) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        competition.write_competition(folder / "data", IMAGES, 2, size=256)
        source = table.discover(folder / "data")
        for size in sizes:
            compare(source, size, folder)


def compare(source: table.Source, size: int, folder: Path) -> None:
    """Print images/s of both loops at one size, and their ratio."""
    row = EXPERIMENTS["UNetResNet34_512_v1"].model_copy(
        update={"size": size, "batch_size": 8, "accumulate": 1, "weights": "none"}
    )
    prepared = cache.prepare(source.train, source.root, size, folder / "cache", "train")
    ours = our_loop(training(row, prepared, folder / str(size), choose_engine("cpu")))
    took = timed({"ours": ours, "bare": bare_loop(row, prepared, choose_engine("cpu"))}, ROUNDS)
    rate = {name: IMAGES / took.seconds(name) for name in ("ours", "bare")}
    figure(
        f"the training loop at {size}²", f"{rate['ours']:.2f} images/s",
        f"a bare loop on tensors in memory {rate['bare']:.2f} images/s",
        f"{took.times_faster('ours', 'bare'):.0%}", "90 %",
    )  # fmt: skip


def training(
    row: Experiment,
    prepared: cache.Prepared,
    folder: Path,
    on: Engine,
    workers: int = 0,
    **parameters: Any,
) -> Training:
    """Return the library's training of all these images, which has not begun."""
    rows = np.arange(len(prepared))
    job = Job(
        folder=fold_run.fold_folder(folder, "bench", 0),
        plan=TrainPlan(run="bench", experiment=row, parameters=TrainParameters(**parameters)),
        prepared=prepared,
        train_rows=rows,
        held_rows=rows[:2],
        truth=prepared.table.assign(positive=prepared.table["area_px"] > 0),
        lineage=Lineage(),
        engine=on,
        workers=workers,
    )
    return Training(job, networks.build(row), Clock(None))


def our_loop(training: Training) -> Callable[[], None]:
    """Return an epoch of the library's training, which may be called again and again."""

    def epoch() -> None:
        training.position.step = 0
        training._train_epoch()
        synchronise(training.job.engine)

    return epoch


def bare_loop(
    row: Experiment, prepared: cache.Prepared, on: Engine, compiled: bool = False
) -> Callable[[], None]:
    """Return an epoch of a plain loop in the row's batches, over tensors on the device.

    Of more images than `POOL` the first ones stand for all.
    """
    model = networks.build(row).to(on.device).train()
    if compiled:
        model.compile(backend=step.COMPILER, dynamic=False)
    optimizer = schedule.optimizer(networks.parameter_groups(model, row), row)
    scaler = torch.amp.GradScaler(on.device.type, enabled=on.scales)
    loss = losses.build(row)
    count = min(len(prepared), max(POOL, row.batch_size))
    images, masks = (
        on.to_device(torch.from_numpy(np.stack([get(i) for i in range(count)])).unsqueeze(1))
        for get in (prepared.image, prepared.mask)
    )  # (N, 1, S, S)
    labels = masks.flatten(1).any(dim=1).float()

    def epoch() -> None:
        for start in range(0, len(prepared), row.batch_size):
            at = start % count
            part = slice(at, at + row.batch_size)
            with on.autocast():
                output = model(images[part])
            scaler.scale(loss(output, masks[part], labels[part])).backward()
            scaler.step(optimizer)
            scaler.update()
            optimizer.zero_grad(set_to_none=True)
        synchronise(on)

    return epoch


def synchronise(on: Engine) -> None:
    """Wait until the device has done all that it was given."""
    if on.device.type == "cuda":
        torch.cuda.synchronize(on.device)


if __name__ == "__main__":
    main([int(size) for size in sys.argv[1:]] or [128, 256])
