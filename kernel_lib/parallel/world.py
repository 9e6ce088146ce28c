"""Several processes that train one fold together: torch's ranks and their collectives.

Ranks see the same folders (one machine, or a shared disk), and each takes its share of every batch.
Only the first rank, rank 0, writes files; what depends on time or files, it decides for all.
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

# Ranks wait while the first decodes all images. The launcher and broken connections report a dead
# rank, so that no shorter timeout is needed.
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
        base, extra = divmod(count, self.size)
        start = self.rank * base + min(self.rank, extra)
        return slice(start, start + base + (self.rank < extra))

    def batches(self, rows: np.ndarray, batch_size: int) -> np.ndarray:
        """Return the rows of this rank's batches: every `size`-th of those of one process.

        Batches are not split: an image's prediction then does not depend on the number of ranks.
        """
        starts = range(self.rank * batch_size, len(rows), self.size * batch_size)
        parts = [rows[start : start + batch_size] for start in starts]
        return np.concatenate([rows[:0], *parts])

    def seed(self, seed: int, *more: int) -> int:
        """Return this rank's own seed, so that dropout differs between ranks; rank 0 gets `seed`.

        `more` distinguishes several draws of one training.
        """
        if self.first and not more:
            return seed
        return int(np.random.SeedSequence([seed, self.rank, *more]).generate_state(1)[0])

    def total(self, numbers: torch.Tensor) -> torch.Tensor:
        """Return the sum over all ranks, without a gradient; bit-identical on all ranks."""
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

    def from_first(self, decide: Callable[[], T]) -> T:
        """Run `decide` on the first rank alone, and return its result on every rank.

        An InputError of it is raised on every rank.
        """
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
        """Run `do` on the first rank, then on the others, which may read the files that it wrote.

        Return each rank's own result. An InputError of the first is raised on every rank.
        """
        done: list[T] = []
        self.from_first(lambda: done.append(do()))
        return done[0] if self.first else do()

    def in_turns(
        self, own_items: Iterable[T], length: int, before_turn: Callable[[], None] | None = None
    ) -> Iterator[T]:
        """Yield the items of all ranks on the first, one of each rank in turn; none on the others.

        Every rank must iterate to the end; `length` is the number of its own items. With several
        ranks `before_turn` is called on each before a turn, and must raise on all of them or none.
        """
        if self.size == 1:
            yield from own_items
            return
        items = iter(own_items)
        for _ in range(max(self.gathered(length))):
            if before_turn is not None:
                before_turn()
            received = [None] * self.size if self.first else None
            dist.gather_object(list(itertools.islice(items, 1)), received)
            for items_of_rank in received or ():
                yield from items_of_rank


SINGLE_PROCESS = World()


def n_ranks() -> int:
    """Return the number of processes that torchrun started; 1 without torchrun."""
    return int(os.environ.get("WORLD_SIZE", "1")) if "RANK" in os.environ else 1


def own_device(asked: str) -> str:
    """Return the device of this process: each of several takes the GPU of its local rank.

    InputError if several processes of one machine ask for one numbered GPU.
    """
    n_local = _n_local_ranks()
    if n_local == 1 or asked == "cpu" or not torch.cuda.is_available():
        return asked
    if asked not in ("auto", "cuda"):
        raise InputError(
            f"DEVICE {asked!r} is one GPU for {n_local} processes: give -p DEVICE cuda"
        )
    return f"cuda:{int(os.environ['LOCAL_RANK']) % torch.cuda.device_count()}"


def _n_local_ranks() -> int:
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1")) if "RANK" in os.environ else 1


@contextlib.contextmanager
def joined(device: torch.device) -> Iterator[World]:
    """Join torchrun's process group, or yield `SINGLE_PROCESS`.

    Ranks after the first print nothing within the block.
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
    # Skipped after an exception, which must end the process at once, with its traceback.
    dist.destroy_process_group()


def _backend(device: torch.device) -> str:
    """Return gloo for a CPU and for processes that share a GPU, which NCCL refuses.

    Else NCCL for tensors on the GPU, and gloo for all others and for Python objects.
    """
    if device.type != "cuda" or _n_local_ranks() > torch.cuda.device_count():
        return "gloo"
    return "cpu:gloo,cuda:nccl"


def data_parallel(model: nn.Module, world: World) -> nn.Module:
    """Wrap a network so that its gradients become the mean over ranks.

    Running statistics of batch norm are not broadcast: synchronised or frozen, they are equal.
    """
    if world.size == 1:
        return model
    with warnings.catch_warnings():
        # torch 2.15 deprecates `broadcast_buffers` for a name that 2.10 does not have.
        warnings.filterwarnings("ignore", message=".*broadcast_buffers", category=FutureWarning)
        return DistributedDataParallel(model, broadcast_buffers=False)


_AXES = (0, 2, 3)  # the axes of a channel's statistics in (B, C, H, W)


class GpuSyncedBatchNorm2d(nn.SyncBatchNorm):
    """torch's SyncBatchNorm, which also accepts a rank with an empty batch.

    Shape: (B, C, H, W) → the same. Source: Ioffe 2015.
    """

    process_group = None  # all ranks; here, since `synchronise_batch_norm` calls no __init__

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        # All ranks must send one dtype: torch sends x's for an empty batch, else float32 or wider.
        return super().forward(x if x.numel() else x.to(torch.promote_types(x.dtype, torch.float)))


class SyncedBatchNorm2d(nn.BatchNorm2d):
    """The same on any device, by autograd: torch's own refuses a CPU, on which tests run.

    The running statistics are bit-identical on all ranks. Shape: (B, C, H, W) → the same.
    """

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if not self.training:
            return super().forward(x)
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        n_own = wide.new_tensor([x.numel() // x.shape[1]])
        total = _AllReduceSum.apply(torch.cat([wide.sum(_AXES), n_own]))  # (C + 1,)
        count = total[-1].detach()
        mean = total[:-1] / count
        # In a second pass: Σx² − (Σx)²/N loses precision if the mean is far from 0.
        centred = wide - mean.view(1, -1, 1, 1)
        var = _AllReduceSum.apply(centred.square().sum(_AXES)) / count
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


class _AllReduceSum(torch.autograd.Function):
    """The sum over ranks, whose gradient is the sum of the ranks' gradients."""

    @staticmethod
    def forward(ctx, x: torch.Tensor) -> torch.Tensor:
        total = x.clone()
        dist.all_reduce(total)
        return total

    backward = forward


def synchronise_batch_norm(model: nn.Module) -> None:
    """Synchronise every batch norm of a network over all ranks, in place; names and weights stay.

    InputError for a batch norm of another class than torch's `BatchNorm2d`.
    """
    tensors = itertools.chain(model.parameters(), model.buffers())
    kind = GpuSyncedBatchNorm2d if next(tensors).is_cuda else SyncedBatchNorm2d
    for norm in batch_norms(model):
        if type(norm) is not nn.BatchNorm2d:
            raise InputError(
                f"{type(norm).__name__} cannot be synchronised over several processes: "
                "-p FREEZE_BATCH_NORM True, another ENCODER, or one process"
            )
        # Parent modules and hooks hold the old object: a new one would not reach them.
        norm.__class__ = kind
