"""Masks of test images, for each way of combining the predictions of folds and members."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pandas as pd

from kernel_lib.artifacts.ensemble import Ensemble
from kernel_lib.data import rle
from kernel_lib.inference.ensemble_maps import EnsembleMaps, open_maps
from kernel_lib.postprocess import votes
from kernel_lib.postprocess.strategies import Choice
from kernel_lib.progress import bar


def vote(combine: str) -> Callable[[Sequence[rle.Runs], int], rle.Runs]:
    """Return the function on RLE runs that performs `member_vote` or `member_union`."""
    return {"member_vote": votes.at_least, "member_union": votes.union_of_agreeing}[combine]


def mask(
    ensemble_maps: EnsembleMaps,
    image_id: str,
    shape: tuple[int, int],
    choice: Choice,
    weights: Sequence[float],
) -> np.ndarray:
    """Mask (H, W) uint8 0/1 of an image: the mean under one rule, or a vote of members' masks."""
    if choice.rules is None:
        return ensemble_maps.mask(image_id, shape, choice.triplet, weights)
    many = ensemble_maps.member_mask_runs(image_id, shape, choice.rules)
    return rle.mask_of(vote(ensemble_maps.ensemble.combine)(many, choice.at_least), shape)


def test_masks(
    ensemble: Ensemble, roots: Sequence[Path], images: pd.DataFrame, choice: Choice
) -> Iterator[tuple[str, np.ndarray]]:
    """Yield (image_id, (H, W) mask 0/1) of each test image, at the image's own size.

    `images` holds image_id, height and width. `mean`: one map and label of all folds and members,
    then the rule. `vote`: each fold's own map, label and mask, a pixel kept where more than half
    the folds agree. Votes of members: each member's folds averaged, its own rule, then the vote;
    no rule afterwards.
    """
    folds = [[fold] for fold in ensemble.folds] if ensemble.combine == "vote" else [ensemble.folds]
    all_maps = [open_maps(ensemble, roots, some, "test") for some in folds]

    def draw(image: tuple[str, int, int]) -> tuple[str, np.ndarray]:
        image_id, *shape = image
        masks = [mask(m, image_id, tuple(shape), choice, ensemble.weights) for m in all_maps]
        if len(masks) == 1:
            return image_id, masks[0]
        runs = votes.at_least([rle.runs_of(m) for m in masks], len(masks) // 2 + 1)
        return image_id, rle.mask_of(runs, tuple(shape))

    rows = images[["image_id", "height", "width"]].itertuples(index=False, name=None)
    with ThreadPoolExecutor(2) as pool:
        yield from bar(_windowed(pool, draw, rows), total=len(images), desc="masks", unit="image")


test_masks.__test__ = False  # the name is no test case to pytest


def _windowed(pool: ThreadPoolExecutor, work, items: Iterable, ahead: int = 16) -> Iterator:
    """`pool.map` that runs only a little ahead: full-size maps of all images would fill memory."""
    waiting = []
    for item in items:
        waiting.append(pool.submit(work, item))
        if len(waiting) > ahead:
            yield waiting.pop(0).result()
    for future in waiting:
        yield future.result()
