"""One optimiser step: batches forward and backward, each rank its share, as if by one process."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext

import numpy as np
import torch
from torch import nn

from kernel_lib.models import losses
from kernel_lib.parallel.world import World, data_parallel
from kernel_lib.training import nan_guard, sampling
from kernel_lib.training.hardness import hardness_of
from kernel_lib.training.job import Job, Position

COMPILER = "inductor"  # the backend of torch.compile
Item = tuple[torch.Tensor, torch.Tensor, torch.Tensor]  # images, masks (B, 1, S, S); rows (B,)


def shares(steps: Sequence[Sequence[np.ndarray]], world: World) -> list[list[list[int]]]:
    """The keys of this rank's part of each batch, in order, for the loader; no empty part."""
    parts = (batch[world.share(len(batch))] for step in steps for batch in step)
    return [part.tolist() for part in parts if len(part)]


class Step:
    """Takes optimiser steps over groups of batches, each weighted by its share of the images.

    A last, shorter group, or batch, so counts every one of its images alike. The batches are those
    of all ranks together: each rank works through its `shares`, and the step's gradient is that of
    one process with the whole batches, up to the order of sums.
    """

    def __init__(
        self,
        job: Job,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        scaler: torch.amp.GradScaler,
    ) -> None:
        self.job, self.experiment, self.world = job, job.plan.experiment, job.world
        self.scaler = scaler
        self.steps = nan_guard.Steps(model, optimizer, scaler)
        if job.plan.parameters.compile:
            # In place: the names of the state, and so checkpoints, stay as they are. The last batch
            # of an epoch may be smaller: a graph for each size, each as fast as it can be.
            model.compile(backend=COMPILER, dynamic=False)
        self.parallel = data_parallel(model, self.world)
        self.loss = losses.build(self.experiment, self.world.total)
        self.positive = torch.from_numpy(job.truth["positive"].to_numpy(dtype=np.float32))

    def take(
        self,
        stream: Iterator[Item],
        step: Sequence[np.ndarray],
        position: Position,
        hardness: torch.Tensor,
    ) -> bool:
        """One step over the keys of its batches; tells `position` and `hardness` what it saw.

        `stream` gives this rank's shares. False where the step was skipped; raises
        FloatingPointError with the images' ids where numbers end it (`finite`).
        """
        total = sum(len(batch) for batch in step)
        values = []
        with self.steps.undone_unless_taken():
            for number, batch in enumerate(step, start=1):
                with self._alone(until=len(step), number=number):
                    value = self._backward(stream, batch, len(batch) / total, position, hardness)
                values.append(value)
                if math.isfinite(value):
                    position.loss_sum += value * len(batch)
                    position.images += len(batch)
            seen = self._where(position, np.concatenate(step))
            taken = self.steps.take(values, self.experiment.clip_grad_norm, seen)
        position.skipped += not taken
        return taken

    def _where(self, position: Position, keys: np.ndarray) -> str:
        ids = self.job.prepared.table["image_id"].iloc[keys[:, 1]].tolist()
        return f"in epoch {position.epoch + 1} on {', '.join(ids)}"

    def _alone(self, until: int, number: int) -> AbstractContextManager:
        """Gradients stay with their rank until the step's last batch, and are then summed once."""
        if self.world.size == 1 or number == until:
            return nullcontext()
        return self.parallel.no_sync()

    def _backward(
        self,
        stream: Iterator[Item],
        batch: np.ndarray,
        weight: float,
        position: Position,
        hardness: torch.Tensor,
    ) -> float:
        """Add the batch's gradient, `weight` times; its loss."""
        engine, rows = self.job.engine, batch[:, 1]
        images, masks, my_rows = self._share(stream, len(batch))
        with engine.autocast():
            output = self.parallel(engine.to_device(images))
        target = engine.to_device(masks)
        labels = self.positive[my_rows].to(engine.device)
        loss = self.loss(output, target, labels)  # of several ranks this one's part
        value = float(self.world.total(loss.detach()))
        self.steps.check_loss(value, self._where(position, batch))
        # The parts are to be summed, and DistributedDataParallel takes the mean.
        self.scaler.scale(loss * (weight * self.world.size)).backward()
        if self.experiment.sampling in sampling.BY_HARDNESS and math.isfinite(value):
            mine = hardness_of(output, target, labels).cpu()
            hardness[torch.from_numpy(rows)] = torch.cat(self.world.gathered(mine))
        return value

    def _share(self, stream: Iterator[Item], count: int) -> Item:
        """This rank's part of the next batch; of a batch of fewer images than ranks perhaps none.

        It takes part all the same: the others wait for its sums.
        """
        part = self.world.share(count)
        if part.start < part.stop:
            return next(stream)
        none = torch.zeros((0, 1, self.experiment.size, self.experiment.size), dtype=torch.uint8)
        return none, none, torch.zeros(0, dtype=torch.int64)
