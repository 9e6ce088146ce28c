"""Which images are scored together, by a rule chosen on the others."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from kernel_lib.errors import InputError

N_PARTS = 5  # of one fold, as many as there would be folds
DEAL_SEED = 20190904


def checked_groups(
    image_ids: Sequence[str], folds: Sequence[int], groups: Sequence[str] | None, n_images: int
) -> np.ndarray:
    """Group name (N,) of each image, its own id where no patient is known.

    Raises: InputError when the lengths differ or an id stands there twice.
    """
    image_ids = [str(one) for one in image_ids]
    given = {"image_ids": image_ids, "folds": folds, "groups": groups}
    for name, values in given.items():
        if values is not None and len(values) != n_images:
            raise InputError(
                f"{len(values)} {name} for {n_images} images: give one an image, in one order"
            )
    if len(set(image_ids)) != n_images:
        first = next(one for at, one in enumerate(image_ids) if one in image_ids[:at])
        raise InputError(f"image {first} stands there twice: unite its masks into one row first")
    if groups is None:
        return np.array(image_ids, dtype=object)
    known = ("" if pd.isna(group) else str(group).strip() for group in groups)
    return np.array(
        [group or image_id for group, image_id in zip(known, image_ids, strict=True)], dtype=object
    )


def parts_of(folds: np.ndarray, groups: np.ndarray, area_px: np.ndarray) -> tuple[np.ndarray, str]:
    """Part (N,) int64 of each image, and in a sentence how the rules are chosen.

    Folds are the parts where there are two or more. One fold is dealt into five parts, whole groups
    in the order of their mask areas, so that each part has its share of every size.

    Shapes: folds (N,), groups (N,) names, area_px (N,) of the true masks.
    """
    present = np.unique(folds)
    if len(present) > 1:
        return folds.astype(np.int64), (
            f"Each of {len(present)} folds is scored with the rule chosen on the other folds."
        )
    names, group = np.unique(groups.astype(str), return_inverse=True)
    n_parts = min(N_PARTS, len(names))
    # Groups of equal area, most of all the empty ones, are dealt in a shuffled order.
    shuffled = np.random.default_rng(DEAL_SEED).permutation(len(names))
    area = np.bincount(group, area_px, len(names))
    order = shuffled[np.argsort(-area[shuffled], kind="stable")]
    part_of_group = np.empty(len(names), dtype=np.int64)
    # To and fro (0…4, 4…0), so that no part always gets the larger of each five.
    there_and_back = np.concatenate([np.arange(n_parts), np.arange(n_parts)[::-1]])
    part_of_group[order] = np.resize(there_and_back, len(names))
    by = " patient-wise" if len(names) < len(groups) else ""
    return part_of_group[group], (
        f"Only one fold is there (fold {present[0]}): it is cut into {n_parts}{by} parts, and each "
        "is scored with the rule chosen on the others."
    )
