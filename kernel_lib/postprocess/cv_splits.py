"""The outer folds of the nested cross-validation, and the groups that they keep together."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from kernel_lib.errors import InputError

N_SPLITS = 5  # of the images of a single fold
SHUFFLE_SEED = 20190904


def checked_groups(
    image_ids: Sequence[str], folds: Sequence[int], groups: Sequence[str] | None, n_images: int
) -> np.ndarray:
    """Return the group name (N,) of each image, its own id where no patient is known.

    Raises: InputError for different lengths or a repeated id.
    """
    image_ids = [str(image_id) for image_id in image_ids]
    given = {"image_ids": image_ids, "folds": folds, "groups": groups}
    for name, values in given.items():
        if values is not None and len(values) != n_images:
            raise InputError(
                f"{len(values)} {name} for {n_images} images: give one an image, in one order"
            )
    repeated = pd.Series(image_ids, dtype=object).duplicated()
    if repeated.any():
        raise InputError(
            f"image {image_ids[repeated.argmax()]} stands there twice: unite its masks into one "
            "row first"
        )
    groups = [""] * n_images if groups is None else groups
    known = ("" if pd.isna(group) else str(group).strip() for group in groups)
    names = [group or image_id for group, image_id in zip(known, image_ids, strict=True)]
    return np.array(names, dtype=object)


def outer_folds(
    folds: np.ndarray, groups: np.ndarray, area_px: np.ndarray
) -> tuple[np.ndarray, str]:
    """Return the outer fold (N,) int64 of each image, and a sentence on how rules are chosen.

    Two or more folds are taken as they are. A single fold is split into five, whole groups in the
    order of their mask areas, so that each has its share of every size.

    Shapes: folds (N,), groups (N,) names, area_px (N,) of the true masks.
    """
    present = np.unique(folds)
    if len(present) > 1:
        return folds.astype(np.int64), (
            f"Each of {len(present)} folds is scored with the rule chosen on the other folds."
        )
    names, group = np.unique(groups.astype(str), return_inverse=True)
    n_splits = min(N_SPLITS, len(names))
    # Groups of equal area, most of all the empty ones, are dealt in a shuffled order.
    shuffled = np.random.default_rng(SHUFFLE_SEED).permutation(len(names))
    area = np.bincount(group, area_px, len(names))
    order = shuffled[np.argsort(-area[shuffled], kind="stable")]
    # Back and forth (0…4, 4…0), so that no split always gets the larger of each five.
    zigzag = np.concatenate([np.arange(n_splits), np.arange(n_splits)[::-1]])
    split_of_group = np.empty(len(names), dtype=np.int64)
    split_of_group[order] = np.resize(zigzag, len(names))
    by = " patient-wise" if len(names) < len(groups) else ""
    return split_of_group[group], (
        f"Only one fold is there (fold {present[0]}): it is cut into {n_splits}{by} parts, and "
        "each is scored with the rule chosen on the others."
    )
