"""Batch norm over the batches of all ranks, as over one batch: torch's on a GPU, ours on a CPU."""

from __future__ import annotations

import itertools

import torch
from torch import distributed as dist
from torch import nn

from kernel_lib.errors import InputError
from kernel_lib.models.networks import batch_norms

OVER = (0, 2, 3)  # the axes of a channel's statistics in (B, C, H, W)


class GpuSyncedBatchNorm2d(nn.SyncBatchNorm):
    """torch's batch norm over all ranks, in which a rank without an image takes part.

    Shape: (B, C, H, W) → the same. Source: Ioffe 2015.
    """

    process_group = None  # all ranks; `synchronise` makes no instance that would set it

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        # torch sends the statistics of no image in x's type, and those of any in float32 or wider.
        return super().forward(x if x.numel() else x.to(torch.promote_types(x.dtype, torch.float)))


class SyncedBatchNorm2d(nn.BatchNorm2d):
    """The same on any device, by autograd: torch refuses a CPU, where several ranks are tested.

    The running statistics are the same bits on every rank. Shape: (B, C, H, W) → the same.
    """

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if not self.training:
            return super().forward(x)
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        n_own = wide.new_tensor([x.numel() // x.shape[1]])
        total = _Sum.apply(torch.cat([wide.sum(OVER), n_own]))  # (C + 1,)
        count = total[-1].detach()
        mean = total[:-1] / count
        # In a second pass: Σx² − (Σx)²/N loses the digits of a mean that is far from 0.
        centred = wide - mean.view(1, -1, 1, 1)
        var = _Sum.apply(centred.square().sum(OVER)) / count
        if self.track_running_stats:
            self._remember(mean.detach(), var.detach() * (count / (count - 1).clamp(min=1)))
        y = centred * torch.rsqrt(var + self.eps).view(1, -1, 1, 1)
        if self.affine:
            y = y * self.weight.view(1, -1, 1, 1) + self.bias.view(1, -1, 1, 1)
        return y.to(x.dtype)

    def _remember(self, mean: torch.Tensor, unbiased: torch.Tensor) -> None:
        self.num_batches_tracked += 1
        share = 1 / self.num_batches_tracked if self.momentum is None else self.momentum
        self.running_mean.lerp_(mean.to(self.running_mean.dtype), share)
        self.running_var.lerp_(unbiased.to(self.running_var.dtype), share)


class _Sum(torch.autograd.Function):
    """The sum over ranks, whose gradient is the sum of the ranks' gradients."""

    @staticmethod
    def forward(ctx, x: torch.Tensor) -> torch.Tensor:
        total = x.clone()
        dist.all_reduce(total)
        return total

    backward = forward


def synchronise(model: nn.Module) -> None:
    """Make every batch norm of a network one over all ranks, in place; names and weights stay.

    Raises:
        InputError: A batch norm does more than normalise.
    """
    tensors = itertools.chain(model.parameters(), model.buffers())
    kind = GpuSyncedBatchNorm2d if next(tensors).is_cuda else SyncedBatchNorm2d
    for norm in batch_norms(model):
        if type(norm) is not nn.BatchNorm2d:
            raise InputError(
                f"{type(norm).__name__} cannot be synchronised over several processes: "
                "-p FREEZE_BATCH_NORM True, another ENCODER, or one process"
            )
        # Replacing the module would part it from those who hold it: parents, hooks.
        norm.__class__ = kind
