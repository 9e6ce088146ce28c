"""Samplers: which images an epoch shows, in which order. A new one is a line in `SAMPLERS`.

A sampler takes an `EpochContext` and a generator and returns cache rows in order. Its options are
its keyword-only arguments; their bounds and defaults are in the signature.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated

import numpy as np
import torch
from pydantic import Field

from kernel_lib.competition import COMPETITION
from kernel_lib.errors import InputError
from kernel_lib.models.base import Logits
from kernel_lib.registry import check_options, lookup

# Hardness of an image that has not been seen: the first epoch of `hard` is that of `all`.
UNSEEN = 0.0


@dataclass(frozen=True)
class EpochContext:
    """What a sampler may know of the training images, at the beginning of an epoch.

    A training resumed within an epoch needs the hardness at its beginning, not the latest.
    """

    rows: np.ndarray  # (N,) cache rows
    positive: np.ndarray  # (N,) bool: has a pneumothorax
    hardness: np.ndarray  # (N,) 0–1, of `hardness_of`; UNSEEN for unseen images
    epoch: int  # from 0
    epochs: int  # of the complete training


Sampler = Callable[..., np.ndarray]  # context, generator, options → rows in order

Share = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
Times = Annotated[float, Field(gt=1, le=100, allow_inf_nan=False)]


def every(context: EpochContext, generator: np.random.Generator) -> np.ndarray:
    """Return each image once, shuffled."""
    return generator.permutation(context.rows)


def nonempty(context: EpochContext, generator: np.random.Generator) -> np.ndarray:
    """Return each positive image once, shuffled; InputError if there is none."""
    rows = context.rows[context.positive]
    if not len(rows):
        raise InputError(
            f"sampling 'nonempty' finds no mask among {len(context.rows)} training images: give "
            "images with masks, or an experiment that samples 'all'"
        )
    return generator.permutation(rows)


def positive_share(
    context: EpochContext, generator: np.random.Generator, *, start: Share = 0.8, end: Share = 0.4
) -> np.ndarray:
    """Return as many images as `all`, a share of them positive: linear from `start` to `end`.

    The share is exact over the epoch, up to rounding, and within one image in every prefix of the
    order. No image is repeated before all others of its class have been shown. InputError if a
    class has no image.
    Source: the competition's first place (0.8 → 0.6 → 0.4) and fourth (0.8 → 0.22, linear).
    """
    progress = context.epoch / (context.epochs - 1) if context.epochs > 1 else 0.0
    share, total = start * (1 - progress) + end * progress, len(context.rows)
    n_positive = int(share * total + 0.5)
    order, positions = [], []
    for positive, count in ((True, n_positive), (False, total - n_positive)):
        rows = context.rows[context.positive == positive]
        if not len(rows):  # checked in every epoch, so that it fails in the first one
            raise InputError(
                f"sampling 'positive_share' mixes images with and without a mask, but none of "
                f"{total} training images is {'with' if positive else 'without'} one: an "
                "experiment that samples 'all' takes them as they are"
            )
        repeats = [generator.permutation(rows) for _ in range(-(-count // len(rows)))]
        order.append(np.concatenate([rows[:0], *repeats])[:count])
        # Spread each class evenly over the epoch, with jitter, so that batches are mixed.
        positions.append((np.arange(count) + generator.random(count)) / max(count, 1))
    return np.concatenate(order)[np.argsort(np.concatenate(positions), kind="stable")]


def hard(
    context: EpochContext,
    generator: np.random.Generator,
    *,
    factor: Times = 2.0,
    share: Share = 0.5,
) -> np.ndarray:
    """Return each image once and hard images again, shuffled.

    An image of hardness h is shown 1 + (factor − 1)·h times, rounded up or down at random. Extra
    draws are capped at `share` of the images; beyond that all are scaled down. An epoch has
    N + min((factor − 1)·Σh, share·N) images, up to rounding.
    Source: the to-do list of the reference solution; systematic sampling (Madow 1949).
    """
    extra = (factor - 1) * context.hardness  # (N,) expected draws
    count = int(min(extra.sum(), share * len(extra)) + 0.5)
    if not count:
        return every(context, generator)
    candidates = generator.permutation(np.flatnonzero(extra))
    edges = np.cumsum(extra[candidates])
    points = (np.arange(count) + generator.random()) * (edges[-1] / count)
    # Rounding may put the last point on the last edge.
    draws = np.minimum(np.searchsorted(edges, points, side="right"), len(candidates) - 1)
    repeated = context.rows[candidates[draws]]
    return generator.permutation(np.concatenate([context.rows, repeated]))


SAMPLERS: dict[str, Sampler] = {
    "all": every,
    "nonempty": nonempty,
    "positive_share": positive_share,
    "hard": hard,
}
BY_HARDNESS = ("hard",)  # samplers that use the hardness; for others it is not computed


def check(name: str, options: Mapping[str, float]) -> None:
    """Raise InputError for an unknown sampler or option, or a value out of bounds."""
    check_options(f"sampling {name!r}", lookup("sampling", name, SAMPLERS), options)


def epoch_order(
    name: str, options: Mapping[str, float], context: EpochContext, seed: int
) -> np.ndarray:
    """Return the rows of an epoch in order; depending on the sampler rows may repeat or be absent.

    Depends on the seed and the context alone, so that a resumed training has the same order.
    InputError as `check`, and if the sampler has no image to show.
    """
    check(name, options)
    generator = np.random.default_rng([seed, context.epoch])
    return SAMPLERS[name](context, generator, **options)


def occurrence_numbers(order: np.ndarray) -> np.ndarray:
    """Return how often each position's row has occurred before, (N,) int64.

    By it each repeat of an image in an epoch gets its own augmentation.
    """
    by_row = np.argsort(order, kind="stable")
    ordered = order[by_row]
    first = np.r_[True, ordered[1:] != ordered[:-1]][: len(order)]
    position = np.arange(len(order))
    counts = np.empty(len(order), np.int64)
    counts[by_row] = position - np.maximum.accumulate(np.where(first, position, 0))
    return counts


def batches(order: np.ndarray, batch_size: int) -> list[np.ndarray]:
    """Return consecutive batches of the order.

    The last may be shorter, but never a single image, for which batch norm has no variance: it then
    takes one from the batch before, or joins it if batches have two.
    """
    cuts = list(range(batch_size, len(order), batch_size))
    if cuts and len(order) - cuts[-1] == 1 and batch_size > 1:
        if batch_size == 2:
            cuts.pop()
        else:
            cuts[-1] -= 1
    return np.split(order, cuts)


def steps(batched: Sequence[np.ndarray], accumulate: int) -> list[list[np.ndarray]]:
    """Return the batches of each optimiser step; the last step may have fewer."""
    return [list(batched[i : i + accumulate]) for i in range(0, len(batched), accumulate)]


# A false positive of at least this area (px of 1024²) is as hard as a false negative. Rules chosen
# on this data drop masks below 600 (first place) to 6,900 px (the reference solution).
FALSE_ALARM_PX = 1000


@torch.no_grad()
def hardness_of(output: Logits, masks: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Return the hardness of each image, 0 (right) to 1 (false negative or positive), float32.

    From a mask output, at p > 0.5: 1 − dice if the true mask, as augmented, is not empty; else the
    predicted area over FALSE_ALARM_PX at 1024², at most 1. From a label output alone: |p − label|.

    Shape: output (B, 1, H, W) or (B,) logits, masks (B, 1, H, W) 0/1, labels (B,) 0/1 → (B,), on
    the device of the logits, without a GPU synchronisation.
    """
    if output.mask is None:
        return (torch.sigmoid(output.label.float()) - labels.float()).abs()
    # Integer sums do not depend on the order of summation.
    predicted, truth = (output.mask > 0).flatten(1), (masks > 0).flatten(1)  # (B, H·W)
    both, area = (predicted & truth).sum(dim=1), predicted.sum(dim=1)  # (B,)
    true_area = truth.sum(dim=1)
    overlap_error = 1 - 2 * both / (area + true_area).clamp(min=1)
    false_area = area * (COMPETITION.side_px**2 / FALSE_ALARM_PX / predicted.shape[1])
    return torch.where(true_area > 0, overlap_error, false_area.clamp(max=1))
