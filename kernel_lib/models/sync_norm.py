"""Batch norm over the batches of all ranks, as over one batch; on a CPU too.

torch's own SyncBatchNorm refuses tensors on a CPU, where the rest is tested.
"""

from __future__ import annotations

import torch
from torch import distributed as dist
from torch import nn

from kernel_lib.errors import InputError
from kernel_lib.models.networks import batch_norms

OVER = (0, 2, 3)  # what a channel's statistics run over in (B, C, H, W)


class SyncedBatchNorm2d(nn.BatchNorm2d):
    """Batch norm whose statistics in training are those of all ranks' batches as one.

    So are the running ones, the same bits on every rank. A rank without an image takes part. In
    evaluation, frozen, and in the names of its state it is torch's own.
    Shape: (B, C, H, W) → the same. Source: Ioffe 2015.
    """

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if not self.training:
            return super().forward(x)
        y, mean, var, count = _Normalise.apply(x, self.weight, self.bias, self.eps)
        if self.track_running_stats:
            self._remember(mean, var * (count / (count - 1).clamp(min=1)))
        return y

    @torch.no_grad()
    def _remember(self, mean: torch.Tensor, unbiased: torch.Tensor) -> None:
        self.num_batches_tracked += 1
        share = 1 / self.num_batches_tracked if self.momentum is None else self.momentum
        self.running_mean.lerp_(mean.to(self.running_mean.dtype), share)
        self.running_var.lerp_(unbiased.to(self.running_var.dtype), share)


class _Normalise(torch.autograd.Function):
    """(x − mean) / √(var + ε) · weight + bias with the mean and variance of all ranks' x.

    The backward is written out, so that of the activations x alone is kept. The gradients of
    weight and bias are this rank's own: DistributedDataParallel sums those.
    """

    @staticmethod
    def forward(ctx, x, weight, bias, eps):
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        mean, var, count = _statistics(wide)
        inverse = torch.rsqrt(var + eps)  # (C,)
        y = (wide - _channels(mean)) * _channels(inverse)
        if weight is not None:
            y = y * _channels(weight) + _channels(bias)
        ctx.save_for_backward(x, weight, mean, inverse, count)
        ctx.mark_non_differentiable(mean, var, count)
        return y.to(x.dtype), mean, var, count

    @staticmethod
    def backward(ctx, grad, *_):
        x, weight, mean, inverse, count = ctx.saved_tensors
        grad = grad.to(mean.dtype)
        normal = (x.to(mean.dtype) - _channels(mean)) * _channels(inverse)  # (B, C, H, W)
        of_bias, of_weight = grad.sum(OVER), (grad * normal).sum(OVER)  # (C,)
        whole = torch.stack([of_bias, of_weight])
        dist.all_reduce(whole)
        flat, sloped = whole / count
        scale = inverse if weight is None else inverse * weight
        of_x = (grad - _channels(flat) - normal * _channels(sloped)) * _channels(scale)
        if weight is None:
            return of_x.to(x.dtype), None, None, None
        return of_x.to(x.dtype), of_weight.to(weight.dtype), of_bias.to(weight.dtype), None


def _statistics(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Mean and biased variance (C,) and count () over all ranks' values of each channel.

    Each rank's own mean and squared deviations, joined as Chan 1979 does: Σx² − (Σx)²/N would lose
    the digits of a channel whose mean is far from 0.
    """
    n_channels, own = x.shape[1], x.numel() // x.shape[1]
    mean = x.sum(OVER) / max(own, 1)  # (C,)
    deviations = (x - _channels(mean)).square().sum(OVER)
    # A slot for each rank, filled by a sum: not every backend gathers tensors on a GPU.
    slots = x.new_zeros(dist.get_world_size(), 2 * n_channels + 1)
    slots[dist.get_rank()] = torch.cat([mean, deviations, mean.new_tensor([own])])
    dist.all_reduce(slots)
    means, deviations, counts = slots.split([n_channels, n_channels, 1], dim=1)  # (ranks, …)
    count = counts.sum().clamp(min=1)
    mean = (counts * means).sum(0) / count
    between = (counts * (means - mean).square()).sum(0)
    return mean, (deviations.sum(0) + between) / count, count


def _channels(values: torch.Tensor) -> torch.Tensor:
    return values.view(1, -1, 1, 1)


def synchronise(model: nn.Module) -> None:
    """Make every batch norm of a network one over all ranks, in place; names and weights stay.

    Raises InputError for a kind of batch norm that does more than normalise.
    """
    for norm in batch_norms(model):
        if type(norm) is not nn.BatchNorm2d:
            raise InputError(
                f"{type(norm).__name__} cannot be synchronised over several processes: "
                "-p FREEZE_BATCH_NORM True, another ENCODER, or one process"
            )
        # Replacing the module would part it from those who hold it: parents, hooks.
        norm.__class__ = SyncedBatchNorm2d
