"""What an ensemble's members say alike of held-out images, gathered from their archives."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from kernel_lib.artifacts import folds_file
from kernel_lib.artifacts.decision import Decision
from kernel_lib.artifacts.ensemble import Ensemble
from kernel_lib.data import rle
from kernel_lib.inference.ensemble_maps import open_maps
from kernel_lib.kaggle import paths
from kernel_lib.notebook import bar
from kernel_lib.postprocess.strategies import Choice
from kernel_lib.reporting import agreement
from kernel_lib.reporting.agreement import Agreement

# Each mask is a map enlarged to its image's size, some 2 ms: ten seconds at the most.
MOST_IMAGES, MOST_MASKS = 1000, 4000


def of_folder(folder: Path, roots: Sequence[Path] | None = None) -> Agreement:
    """The agreement of the members of an ensemble's folder; of one member nothing is compared.

    Without `roots` they are those of the working folder that the ensemble lies in. Raises
    InputError where the thresholds stage has not been.
    """
    roots = paths.artefact_roots(folder.parents[1]) if roots is None else roots
    decision = Decision.load(folder)
    ensemble = decision.ensemble
    if len(ensemble.members) < 2:
        return agreement.measure([ensemble.members[0].run], [], 0, "its rule")
    fold_table = folds_file.find(roots, ensemble.folds_digest)
    return of_members(ensemble, roots, fold_table, decision.choice)


def of_members(
    ensemble: Ensemble,
    roots: Sequence[Path],
    fold_table: pd.DataFrame,
    choice: Choice,
    most: int = MOST_IMAGES,
) -> Agreement:
    """The members' own masks of at most so many held-out images, under what is submitted with.

    Each member's rule is its own where there are such, else the one of their mean; `drawn` is the
    folds file.
    """
    n = len(ensemble.members)
    maps_of_fold = {fold: open_maps(ensemble, roots, [fold], "oof") for fold in ensemble.folds}
    held = {
        fold: set(ensemble_maps.archives[0].ids) for fold, ensemble_maps in maps_of_fold.items()
    }
    known = [
        i in held.get(f, ())
        for i, f in zip(fold_table["image_id"], fold_table["fold"], strict=True)
    ]
    everything = fold_table[known]
    rows = evenly(len(everything), max(1, min(most, MOST_MASKS // n)))
    rules = choice.rules or (choice.triplet,) * n

    def one(image: Any) -> tuple[list[rle.Runs], rle.Runs]:
        shape = (image.height, image.width)
        many = maps_of_fold[image.fold].member_mask_runs(image.image_id, shape, rules)
        return many, rle.parse(image.rle, shape)

    images = list(everything.iloc[rows].itertuples(index=False))
    with ThreadPoolExecutor(2) as pool:  # OpenCV works outside the interpreter's lock
        done = bar(pool.map(one, images), total=len(images), desc="agreement", unit="image")
        return agreement.measure(
            [m.run for m in ensemble.members],
            done,
            len(everything),
            "its own rule" if choice.rules else "the rule of their mean",
        )


def evenly(n: int, most: int) -> np.ndarray:
    """At most so many of n places, evenly spread, the first and the last among them."""
    return np.unique(np.linspace(0, n - 1, min(n, most)).round().astype(int))
