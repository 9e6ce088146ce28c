"""Which images an epoch shows, in which order. `SAMPLERS` is where a new way is named.

A sampler takes `EpochContext` and a generator and returns cache rows in the order of one epoch. Its
options are its keyword-only arguments: their names, bounds and defaults stand in its signature and
nowhere else.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated

import numpy as np
from pydantic import Field

from kernel_lib.errors import InputError
from kernel_lib.registry import check_options, lookup

# The hardness of an image that the run has not looked at: nothing is known against it, so a first
# epoch of `hard` shows each image once, as `all` does.
UNSEEN = 0.0


@dataclass(frozen=True)
class EpochContext:
    """What a sampler may know of the training images, as it was when the epoch began.

    A run resumed within an epoch needs the hardness of that epoch's beginning, not the latest.
    """

    rows: np.ndarray  # (N,) cache rows
    positive: np.ndarray  # (N,) bool: has a pneumothorax
    hardness: np.ndarray  # (N,) 0–1, of `hardness.hardness_of`; UNSEEN before the first look
    epoch: int  # from 0
    epochs: int  # of the whole training


Sampler = Callable[..., np.ndarray]  # Shown, generator, its own options → rows in order

Share = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
Times = Annotated[float, Field(gt=1, le=100, allow_inf_nan=False)]


def every(shown: EpochContext, generator: np.random.Generator) -> np.ndarray:
    """Each image once, shuffled."""
    return generator.permutation(shown.rows)


def nonempty(shown: EpochContext, generator: np.random.Generator) -> np.ndarray:
    """Each image with a pneumothorax once, shuffled. InputError where there is none."""
    rows = shown.rows[shown.positive]
    if not len(rows):
        raise InputError(
            f"sampling 'nonempty' finds no mask among {len(shown.rows)} training images: give "
            "images with masks, or a row that samples 'all'"
        )
    return generator.permutation(rows)


def positive_share(
    shown: EpochContext, generator: np.random.Generator, *, start: Share = 0.8, end: Share = 0.4
) -> np.ndarray:
    """As many images as `all`, a share of them positive: `start` first, in a line to `end` at last.

    The share holds exactly, to rounding, in the epoch, and within one image in every beginning of
    it. No image is shown twice before all of its class were once. InputError where a class has no
    image.
    Source: the competition's first place (0.8 → 0.6 → 0.4) and fourth (0.8 → 0.22 in a line).
    """
    progress = shown.epoch / (shown.epochs - 1) if shown.epochs > 1 else 0.0
    share, total = start * (1 - progress) + end * progress, len(shown.rows)
    wanted = int(share * total + 0.5)
    order, moments = [], []
    for has, count in ((True, wanted), (False, total - wanted)):
        rows = shown.rows[shown.positive == has]
        if not len(rows):  # in every epoch, lest it stop in the middle of a training
            raise InputError(
                f"sampling 'positive_share' mixes images with and without a mask, but none of "
                f"{total} training images is {'with' if has else 'without'} one: a row that "
                "samples 'all' takes them as they are"
            )
        order.append(_in_turns(rows, count, generator))
        # Each image at a random moment of its own stretch of the epoch: batches have the share too.
        moments.append((np.arange(count) + generator.random(count)) / max(count, 1))
    return np.concatenate(order)[np.argsort(np.concatenate(moments), kind="stable")]


def hard(
    shown: EpochContext, generator: np.random.Generator, *, factor: Times = 2.0, share: Share = 0.5
) -> np.ndarray:
    """Each image once, and hard ones again, shuffled.

    An image of hardness h is shown 1 + (factor − 1)·h times, rounded up or down by chance. Extra
    draws are at most `share` of the images; where more are wanted all shrink alike. So an epoch has
    N + min((factor − 1)·Σh, share·N) images, to rounding.
    Source: the notes' to-do; even spacing as in systematic sampling (Madow 1949).
    """
    wanted = (factor - 1) * shown.hardness  # (N,) extra draws
    count = int(min(wanted.sum(), share * len(wanted)) + 0.5)
    if not count:
        return every(shown, generator)
    candidates = generator.permutation(np.flatnonzero(wanted))
    edges = np.cumsum(wanted[candidates])
    points = (np.arange(count) + generator.random()) * (edges[-1] / count)
    # The last point may round up to the last edge.
    drawn = np.minimum(np.searchsorted(edges, points, side="right"), len(candidates) - 1)
    return generator.permutation(np.concatenate([shown.rows, shown.rows[candidates[drawn]]]))


def _in_turns(rows: np.ndarray, count: int, generator: np.random.Generator) -> np.ndarray:
    """`count` of these rows, none a second time before each was there once, and so on."""
    turns = [generator.permutation(rows) for _ in range(-(-count // len(rows)))]
    return np.concatenate([rows[:0], *turns])[:count]


SAMPLERS: dict[str, Sampler] = {
    "all": every,
    "nonempty": nonempty,
    "positive_share": positive_share,
    "hard": hard,
}
BY_HARDNESS = ("hard",)  # samplers that ask for it; the others spare the counting


def check(name: str, options: Mapping[str, float]) -> None:
    """InputError for a sampler or an option that does not exist, or a value out of its bounds."""
    check_options(f"sampling {name!r}", lookup("sampling", name, SAMPLERS), options)


def epoch_order(
    name: str, options: Mapping[str, float], shown: EpochContext, seed: int
) -> np.ndarray:
    """The rows of one epoch in order; a row may be there more than once, or not at all.

    A function of the seed and of what is shown (rows, epoch, hardness), so that a resumed run
    agrees. Raises InputError as `check` does, and where the sampler finds no image to show.
    """
    check(name, options)
    return SAMPLERS[name](shown, np.random.default_rng([seed, shown.epoch]), **options)


def turns(order: np.ndarray) -> np.ndarray:
    """How often each position's row came before it in the order, (N,) int64."""
    by_row = np.argsort(order, kind="stable")
    ordered = order[by_row]
    first = np.r_[True, ordered[1:] != ordered[:-1]][: len(order)]
    place = np.arange(len(order))
    found = np.empty(len(order), np.int64)
    found[by_row] = place - np.maximum.accumulate(np.where(first, place, 0))
    return found


def batches(order: np.ndarray, batch_size: int) -> list[np.ndarray]:
    """Consecutive batches that hold the whole order; a row that it repeats may meet itself.

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
