"""Several processes that train one fold together: torch's own ranks, and what they say to another.

A rank sees the same folders as the others (one machine, or a shared disk), takes its share of every
batch, and decides nothing that another could decide differently: whatever depends on time or on
files is the first rank's decision. The first rank alone writes.
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

T = TypeVar("T")

# Others wait while the first rank decodes all images. A rank that dies is noticed at once by its
# closed connections and by the launcher, so no limit is needed for that.
PATIENCE = timedelta(days=1)


@dataclass(frozen=True)
class World:
    """The processes that train together; by default one alone, to which all of this is nothing."""

    rank: int = 0
    size: int = 1

    @property
    def first(self) -> bool:
        """Whether this is the rank that decides and writes."""
        return self.rank == 0

    def share(self, count: int) -> slice:
        """This rank's part of `count` things in a row; parts differ by one at most."""
        least, more = divmod(count, self.size)
        start = self.rank * least + min(self.rank, more)
        return slice(start, start + least + (self.rank < more))

    def batches(self, rows: np.ndarray, batch_size: int) -> np.ndarray:
        """The rows of this rank's batches, every `size`-th of those that one process would have.

        Whole batches: what a network says of an image then does not depend on how many ranks ask.
        """
        starts = range(self.rank * batch_size, len(rows), self.size * batch_size)
        parts = [rows[start : start + batch_size] for start in starts]
        return np.concatenate([rows[:0], *parts])

    def seed(self, seed: int, *more: int) -> int:
        """A seed of this rank's own, lest all drop the same units; the first keeps the given one.

        `more` tells apart several draws of one training.
        """
        if self.first and not more:
            return seed
        return int(np.random.SeedSequence([seed, self.rank, *more]).generate_state(1)[0])

    def total(self, numbers: torch.Tensor) -> torch.Tensor:
        """The sum over all ranks, without a gradient; on every rank the same bits."""
        if self.size == 1:
            return numbers
        numbers = numbers.detach().clone()
        dist.all_reduce(numbers)
        return numbers

    def gathered(self, value: T) -> list[T]:
        """Every rank's value, in the order of ranks."""
        if self.size == 1:
            return [value]
        values: list = [None] * self.size
        dist.all_gather_object(values, value)
        return values

    def agreed(self, decide: Callable[[], T]) -> T:
        """What the first rank decides, on every rank; an InputError there is raised everywhere."""
        if self.size == 1:
            return decide()
        said: list = [None, None]
        if self.first:
            try:
                said[0] = decide()
            except InputError as error:
                said[1] = error
        dist.broadcast_object_list(said)
        if said[1] is not None:
            raise said[1]
        return said[0]

    def after_first(self, do: Callable[[], T]) -> T:
        """Each rank's own result, the others' once the first has done it, and written its files.

        An InputError of the first is raised everywhere.
        """
        done: list[T] = []
        self.agreed(lambda: done.append(do()))
        return done[0] if self.first else do()

    def in_turns(
        self, mine: Iterable[T], length: int, before: Callable[[], None] | None = None
    ) -> Iterator[T]:
        """Items of all ranks to the first, one of each rank in turn; to the others none.

        Every rank must run it to the end; `length` is the number of its own items. Of several ranks
        each calls `before` before a turn; what it raises it must raise on all of them.
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
            for given in into or ():
                yield from given


ALONE = World()


def n_ranks() -> int:
    """How many processes this is one of, as torchrun sets them; 1 where it was not started so."""
    return int(os.environ.get("WORLD_SIZE", "1")) if "RANK" in os.environ else 1


def own_device(asked: str) -> str:
    """The device of this process: of several, each takes the card of its local rank.

    InputError where a numbered card is asked for by several processes of one machine.
    """
    n_local = int(os.environ.get("LOCAL_WORLD_SIZE", "1")) if "RANK" in os.environ else 1
    if n_local == 1 or asked == "cpu" or not torch.cuda.is_available():
        return asked
    if asked not in ("auto", "cuda"):
        raise InputError(f"DEVICE {asked!r} is one card for {n_local} processes; -p DEVICE cuda")
    return f"cuda:{int(os.environ['LOCAL_RANK']) % torch.cuda.device_count()}"


@contextlib.contextmanager
def joined(device: torch.device) -> Iterator[World]:
    """The world that RANK, WORLD_SIZE and LOCAL_RANK tell of, as torchrun sets them; or `ALONE`.

    Ranks after the first print nothing meanwhile.
    """
    size = n_ranks()
    if size == 1:
        yield ALONE
        return
    world = World(int(os.environ["RANK"]), size)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    dist.init_process_group(
        _backend(device), rank=world.rank, world_size=world.size, timeout=PATIENCE
    )
    with contextlib.ExitStack() as quiet:
        if not world.first:
            nowhere = quiet.enter_context(open(os.devnull, "w", encoding="utf-8"))
            quiet.enter_context(contextlib.redirect_stdout(nowhere))
        yield world
    # Only after a good end: one that fails leaves at once, and its traceback with it.
    dist.destroy_process_group()


def _backend(device: torch.device) -> str:
    """gloo on a CPU and where processes share a card, which NCCL refuses; else NCCL for the GPUs.

    What ranks say to each other beside tensors of the network goes through the CPU in any case.
    """
    n_local = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    if device.type != "cuda" or n_local > torch.cuda.device_count():
        return "gloo"
    return "cpu:gloo,cuda:nccl"


def data_parallel(model: nn.Module, world: World) -> nn.Module:
    """What runs the network forward so that its gradients become the mean over ranks.

    Running statistics of batch norm are not sent around: synchronised, or frozen, they are the
    same on every rank.
    """
    if world.size == 1:
        return model
    with warnings.catch_warnings():
        # Its new name, of torch 2.15, is not known to the oldest torch that this runs on.
        warnings.filterwarnings("ignore", message=".*broadcast_buffers", category=FutureWarning)
        return DistributedDataParallel(model, broadcast_buffers=False)
