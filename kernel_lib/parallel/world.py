"""Several processes that train one fold together: torch's ranks and their collectives.

Ranks see the same folders (one machine, or a shared disk), and each takes its share of every batch.
The first rank alone writes, and decides all that depends on time or on files.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar

import numpy as np
import torch
from torch import distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from kernel_lib.errors import InputError
from kernel_lib.models.networks import batch_norms

T = TypeVar("T")

# Ranks wait while the first decodes all images. The launcher, and closed connections, tell of a
# rank that dies, so no short limit is needed.
TIMEOUT = timedelta(days=1)


@dataclass(frozen=True)
class World:
    """The processes that train together; by default a single one, with nothing to exchange."""

    rank: int = 0
    size: int = 1

    @property
    def first(self) -> bool:
        """Return whether this rank decides and writes."""
        return self.rank == 0

    def share(self, count: int) -> slice:
        """Return this rank's slice of `count` items; slices differ in length by one at most."""
        least, more = divmod(count, self.size)
        start = self.rank * least + min(self.rank, more)
        return slice(start, start + least + (self.rank < more))

    def batches(self, rows: np.ndarray, batch_size: int) -> np.ndarray:
        """Return the rows of every `size`-th batch of those that one process would have.

        Batches stay together: an image's prediction then does not depend on the number of ranks.
        """
        starts = range(self.rank * batch_size, len(rows), self.size * batch_size)
        parts = [rows[start : start + batch_size] for start in starts]
        return np.concatenate([rows[:0], *parts])

    def seed(self, seed: int, *more: int) -> int:
        """Return this rank's own seed, so that ranks drop different units; the first's is `seed`.

        `more` distinguishes several draws of one training.
        """
        if self.first and not more:
            return seed
        return int(np.random.SeedSequence([seed, self.rank, *more]).generate_state(1)[0])

    def total(self, numbers: torch.Tensor) -> torch.Tensor:
        """Return the sum over all ranks, without a gradient; the same bits on every rank."""
        if self.size == 1:
            return numbers
        numbers = numbers.detach().clone()
        dist.all_reduce(numbers)
        return numbers

    def gathered(self, value: T) -> list[T]:
        """Return every rank's value, in order of rank."""
        if self.size == 1:
            return [value]
        values: list = [None] * self.size
        dist.all_gather_object(values, value)
        return values

    def agreed(self, decide: Callable[[], T]) -> T:
        """Return on every rank what the first decides; every rank raises an InputError of it."""
        if self.size == 1:
            return decide()
        outcome: list = [None, None]  # a decision, an InputError
        if self.first:
            try:
                outcome[0] = decide()
            except InputError as error:
                outcome[1] = error
        dist.broadcast_object_list(outcome)
        decision, error = outcome
        if error is not None:
            raise error
        return decision

    def after_first(self, do: Callable[[], T]) -> T:
        """Return each rank's own result; the others begin once the first has written its files.

        Every rank raises an InputError of the first.
        """
        done: list[T] = []
        self.agreed(lambda: done.append(do()))
        return done[0] if self.first else do()

    def in_turns(
        self, mine: Iterable[T], length: int, before: Callable[[], None] | None = None
    ) -> Iterator[T]:
        """Yield the items of all ranks on the first, one of each rank in turn; none on the others.

        Every rank must exhaust it; `length` is the number of its own items. With several ranks each
        calls `before` before a turn, which must raise on all of them or on none.
        """
        if self.size == 1:
            yield from mine
            return
        items = iter(mine)
        for _ in range(max(self.gathered(length))):
            if before is not None:
                before()
            into = [None] * self.size if self.first else None
            dist.gather_object(list(itertools.islice(items, 1)), into)
            for items_of_rank in into or ():
                yield from items_of_rank


SINGLE_PROCESS = World()


def n_ranks() -> int:
    """Return the number of processes that torchrun started this one among; 1 without torchrun."""
    return int(os.environ.get("WORLD_SIZE", "1")) if "RANK" in os.environ else 1


def own_device(asked: str) -> str:
    """Return the device of this process: each of several takes the GPU of its local rank.

    InputError if several processes of one machine ask for one numbered GPU.
    """
    n_local = _n_local_ranks()
    if n_local == 1 or asked == "cpu" or not torch.cuda.is_available():
        return asked
    if asked not in ("auto", "cuda"):
        raise InputError(f"DEVICE {asked!r} is one card for {n_local} processes; -p DEVICE cuda")
    return f"cuda:{int(os.environ['LOCAL_RANK']) % torch.cuda.device_count()}"


def _n_local_ranks() -> int:
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1")) if "RANK" in os.environ else 1


@contextlib.contextmanager
def joined(device: torch.device) -> Iterator[World]:
    """Join the world of torchrun's RANK and WORLD_SIZE, or a world of this process.

    Ranks after the first print nothing meanwhile.
    """
    size = n_ranks()
    if size == 1:
        yield SINGLE_PROCESS
        return
    world = World(int(os.environ["RANK"]), size)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    dist.init_process_group(_backend(device), rank=world.rank, world_size=size, timeout=TIMEOUT)
    with contextlib.ExitStack() as quiet:
        if not world.first:
            nowhere = quiet.enter_context(open(os.devnull, "w", encoding="utf-8"))
            quiet.enter_context(contextlib.redirect_stdout(nowhere))
        yield world
    # Not after an exception: that must end the process, with its traceback, at once.
    dist.destroy_process_group()


def _backend(device: torch.device) -> str:
    """Return gloo for a CPU and for processes that share a GPU, which NCCL refuses; else both.

    Objects other than tensors on a GPU always go through the CPU.
    """
    if device.type != "cuda" or _n_local_ranks() > torch.cuda.device_count():
        return "gloo"
    return "cpu:gloo,cuda:nccl"


def data_parallel(model: nn.Module, world: World) -> nn.Module:
    """Wrap a network so that its gradients become the mean over ranks.

    Running statistics of batch norm are not sent: synchronised, or frozen, they are the same on
    every rank.
    """
    if world.size == 1:
        return model
    with warnings.catch_warnings():
        # The name of torch 2.15 is unknown to 2.10.
        warnings.filterwarnings("ignore", message=".*broadcast_buffers", category=FutureWarning)
        return DistributedDataParallel(model, broadcast_buffers=False)


_AXES = (0, 2, 3)  # the axes of a channel's statistics in (B, C, H, W)


class GpuSyncedBatchNorm2d(nn.SyncBatchNorm):
    """torch's batch norm over all ranks, in which a rank without an image takes part.

    Shape: (B, C, H, W) → the same. Source: Ioffe 2015.
    """

    process_group = None  # all ranks; `synchronise_batch_norm` makes no instance that would set it

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
        total = _Sum.apply(torch.cat([wide.sum(_AXES), n_own]))  # (C + 1,)
        count = total[-1].detach()
        mean = total[:-1] / count
        # In a second pass: Σx² − (Σx)²/N loses the digits of a mean that is far from 0.
        centred = wide - mean.view(1, -1, 1, 1)
        var = _Sum.apply(centred.square().sum(_AXES)) / count
        if self.track_running_stats:
            self.num_batches_tracked += 1
            share = 1 / self.num_batches_tracked if self.momentum is None else self.momentum
            unbiased = var.detach() * (count / (count - 1).clamp(min=1))
            self.running_mean.lerp_(mean.detach().to(self.running_mean.dtype), share)
            self.running_var.lerp_(unbiased.to(self.running_var.dtype), share)
        y = centred * torch.rsqrt(var + self.eps).view(1, -1, 1, 1)
        if self.affine:
            y = y * self.weight.view(1, -1, 1, 1) + self.bias.view(1, -1, 1, 1)
        return y.to(x.dtype)


class _Sum(torch.autograd.Function):
    """The sum over ranks, whose gradient is the sum of the ranks' gradients."""

    @staticmethod
    def forward(ctx, x: torch.Tensor) -> torch.Tensor:
        total = x.clone()
        dist.all_reduce(total)
        return total

    backward = forward


def synchronise_batch_norm(model: nn.Module) -> None:
    """Make every batch norm of a network one over all ranks, in place; names and weights stay.

    InputError for a batch norm that does more than normalise.
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
