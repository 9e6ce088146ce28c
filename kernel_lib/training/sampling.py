"""Which images an epoch shows, in which order. `SAMPLERS` is where a new way is named."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from kernel_lib.errors import InputError

# rows, generator → rows in the order of one epoch
Sampler = Callable[[np.ndarray, np.random.Generator], np.ndarray]


def every(rows: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """Each image once, shuffled."""
    return generator.permutation(rows)


SAMPLERS: dict[str, Sampler] = {"all": every}


def check(name: str) -> None:
    """InputError for a sampler that does not exist."""
    if name not in SAMPLERS:
        raise InputError(f"sampling {name!r} is none of {', '.join(SAMPLERS)}")


def epoch_order(name: str, rows: Sequence[int], seed: int, epoch: int) -> np.ndarray:
    """The rows of one epoch in order; a function of seed and epoch, so that a resumed run agrees.

    Raises InputError for an unknown sampler.
    """
    check(name)
    return SAMPLERS[name](np.asarray(rows, dtype=np.int64), np.random.default_rng([seed, epoch]))


def batches(order: np.ndarray, batch_size: int) -> list[np.ndarray]:
    """Consecutive batches that hold every image once.

    The last is as short as it comes, save that one lone image is never left over: batch norm has
    no variance of one pooled value. It takes one from the batch before, and batches of two take it
    in as a third.
    """
    cuts = list(range(batch_size, len(order), batch_size))
    if cuts and len(order) - cuts[-1] == 1 and batch_size > 1:
        if batch_size == 2:
            cuts.pop()
        else:
            cuts[-1] -= 1
    return np.split(order, cuts)


def groups(all_batches: Sequence[np.ndarray], accumulate: int) -> list[list[np.ndarray]]:
    """Batches whose gradients make one optimiser step; the last group may be shorter."""
    return [list(all_batches[i : i + accumulate]) for i in range(0, len(all_batches), accumulate)]
