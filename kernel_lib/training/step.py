"""An optimiser step: batches forward and backward, each rank its share, as by one process."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import nullcontext

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
    """Return the keys of this rank's part of each batch, in order, without empty parts."""
    parts = (batch[world.share(len(batch))] for step in steps for batch in step)
    return [part.tolist() for part in parts if len(part)]


class Step:
    """Optimiser steps over groups of batches, each weighted by its share of the images.

    Every image of a last, shorter group or batch counts as much as any other. The batches are those
    of all ranks: each rank processes its `shares`, and the gradient of a step is that of one
    process with the complete batches, up to the order of sums.
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
            # In place, so that the names in the state, and in checkpoints, stay. The last batch of
            # an epoch may be smaller: one graph for each size is faster than a dynamic one.
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
        """Take a step over the keys of its batches and update `position` and `hardness`.

        `stream` yields this rank's shares. Returns False if the step was skipped.

        Raises:
            FloatingPointError: a loss or gradient is not finite (`nan_guard`); with the images.
        """
        total = sum(len(batch) for batch in step)
        values = []
        with self.steps.undone_unless_taken():
            for number, batch in enumerate(step, start=1):
                # Gradients stay on their rank until the last batch, and are summed once.
                several = self.world.size > 1 and number < len(step)
                with self.parallel.no_sync() if several else nullcontext():
                    value = self._backward(stream, batch, len(batch) / total, hardness, position)
                values.append(value)
                if math.isfinite(value):
                    position.loss_sum += value * len(batch)
                    position.images += len(batch)
            where = self._where(position, np.concatenate(step))
            taken = self.steps.take(values, self.experiment.clip_grad_norm, where)
        position.skipped += not taken
        return taken

    def _where(self, position: Position, keys: np.ndarray) -> str:
        ids = self.job.prepared.table["image_id"].iloc[keys[:, 1]].tolist()
        return f"in epoch {position.epoch + 1} on {', '.join(ids)}"

    def _backward(
        self,
        stream: Iterator[Item],
        batch: np.ndarray,
        weight: float,
        hardness: torch.Tensor,
        position: Position,
    ) -> float:
        """Add the gradient of a batch, times `weight`, and return its loss over all ranks."""
        engine = self.job.engine
        images, masks, own_rows = self._share(stream, len(batch))
        with engine.autocast():
            output = self.parallel(engine.to_device(images))
        masks = engine.to_device(masks)
        labels = self.positive[own_rows].to(engine.device)
        loss = self.loss(output, masks, labels)  # the part of this rank
        # DistributedDataParallel takes the mean over ranks; the parts are to be summed.
        self.scaler.scale(loss * (weight * self.world.size)).backward()
        # Only now, since reading it waits for the GPU, which has the backward pass to do meanwhile.
        value = float(self.world.total(loss.detach()))
        self.steps.check_loss(value, self._where(position, batch))
        if self.experiment.sampling in sampling.BY_HARDNESS and math.isfinite(value):
            own = hardness_of(output, masks, labels).cpu()
            hardness[torch.from_numpy(batch[:, 1])] = torch.cat(self.world.gathered(own))
        return value

    def _share(self, stream: Iterator[Item], count: int) -> Item:
        """Return this rank's part of the next batch, which has `count` images.

        It may be empty, and is processed all the same: the other ranks wait for its sums.
        """
        part = self.world.share(count)
        if part.start < part.stop:
            return next(stream)
        size = self.experiment.size
        empty = torch.zeros((0, 1, size, size), dtype=torch.uint8)
        return empty, empty, torch.zeros(0, dtype=torch.int64)
