"""An optimiser step split over ranks, equivalent to the same step in one process.

A step whose loss or gradient is not finite changes nothing: weights, their average and the
statistics of batch norm stay as they were. In float32 and bfloat16 the training stops there and
names the images, since a repetition would be the same. In float16 such a step is mostly an overflow
that a smaller loss scale avoids: the scale is halved and the step skipped, counted and
logged; `MAX_SKIPPED` skipped steps stop the training. Weights that are not finite are never saved.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import nullcontext

import numpy as np
import torch
from torch import nn

from kernel_lib.models import losses
from kernel_lib.parallel.world import World, data_parallel
from kernel_lib.training import sampling
from kernel_lib.training.job import Job, Position

COMPILER = "inductor"  # the backend of torch.compile
# 16 halvings take the initial loss scale, 65536, to 1: then the network itself overflows.
MAX_SKIPPED = 16
Item = tuple[torch.Tensor, torch.Tensor, torch.Tensor]  # images, masks (B, 1, S, S); rows (B,)


def shares(steps: Sequence[Sequence[np.ndarray]], world: World) -> list[list[list[int]]]:
    """Return the keys of this rank's part of each batch, in order, without empty parts."""
    parts = (batch[world.share(len(batch))] for step in steps for batch in step)
    return [part.tolist() for part in parts if len(part)]


def check_weights(model: nn.Module, where: str) -> None:
    """Raise FloatingPointError if a weight or a statistic is not finite."""
    tensors = (t.detach() for t in model.state_dict().values())
    floats = [t for t in tensors if t.is_floating_point() and t.numel()]
    # A single number, so that a GPU is waited for once.
    if not math.isfinite(float(nn.utils.get_total_norm(floats, norm_type=math.inf))):
        raise _stopped("the weights are not finite", where)


def _stopped(reason: str, where: str) -> FloatingPointError:
    return FloatingPointError(
        f"{reason} {where}: lower LR, or -p PRECISION float32; the last checkpoint is intact"
    )


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
        self.model, self.optimizer, self.scaler = model, optimizer, scaler
        self.skipped_in_a_row = 0
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
        """Take a step over batches of `dataset.Key` (B, 3); update `position` and `hardness`.

        `stream` yields this rank's shares. Returns False if the step was skipped. Raises
        FloatingPointError, with the images, where the training must stop.
        """
        total = sum(len(batch) for batch in step)
        # Forward passes update batch-norm buffers; a skipped step restores them.
        buffers = list(self.model.buffers()) if self.scaler.is_enabled() else []
        before = [buffer.clone() for buffer in buffers]
        values = []
        for number, batch in enumerate(step, start=1):
            # Gradients stay on their rank until the last batch, and are summed once.
            sums_later = self.world.size > 1 and number < len(step)
            with self.parallel.no_sync() if sums_later else nullcontext():
                value = self._backward(stream, batch, len(batch) / total, hardness, position)
            values.append(value)
            if math.isfinite(value):
                position.loss_sum += value * len(batch)
                position.images += len(batch)
        taken = self._update(values, self._where(position, np.concatenate(step)))
        if not taken:
            position.skipped += 1
            with torch.no_grad():
                for buffer, value in zip(buffers, before, strict=True):
                    buffer.copy_(value)
        return taken

    def _where(self, position: Position, keys: np.ndarray) -> str:
        ids = self.job.prepared.table["image_id"].iloc[keys[:, 1]].tolist()
        return f"in epoch {position.epoch + 1} on {', '.join(ids)}"

    def _update(self, values: Sequence[float], where: str) -> bool:
        """Step with the gradients of batches of these losses; return False if skipped."""
        self.scaler.unscale_(self.optimizer)
        norm = self._clipped_norm()
        if math.isfinite(norm) and all(map(math.isfinite, values)):
            self.scaler.step(self.optimizer)
            self.scaler.update()
            self.skipped_in_a_row = 0
        else:
            worst = next((v for v in values if not math.isfinite(v)), values[-1])
            reason = f"the loss is {worst}, the norm of its gradient {norm}"
            if not self.scaler.is_enabled():
                raise _stopped(reason, where)
            self.skipped_in_a_row += 1
            if self.skipped_in_a_row == MAX_SKIPPED:
                reason = f"{MAX_SKIPPED} steps in a row overflowed float16; at last {reason}"
                raise _stopped(reason, where)
            # By hand: the scaler itself backs off for gradients alone, not for a loss.
            self.scaler.update(self.scaler.get_scale() * self.scaler.get_backoff_factor())
        self.optimizer.zero_grad(set_to_none=True)
        return not self.skipped_in_a_row

    def _clipped_norm(self) -> float:
        """Return the norm of the gradient, before it is clipped."""
        limit, parameters = self.experiment.clip_grad_norm, self.model.parameters()
        if limit is not None:
            return float(nn.utils.clip_grad_norm_(parameters, limit))
        return float(nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None]))

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
        if not (math.isfinite(value) or self.scaler.is_enabled()):
            raise _stopped(f"the loss is {value}", self._where(position, batch))
        if self.experiment.sampling in sampling.BY_HARDNESS and math.isfinite(value):
            own = sampling.hardness_of(output, masks, labels).cpu()
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
