"""Scores of held-out images at an epoch's end, by the same map and rule as everything else."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pandas as pd
import torch
from torch import nn
from torch.utils.data import DataLoader

from kernel_lib.engine import Engine
from kernel_lib.errors import InputError
from kernel_lib.inference import maps
from kernel_lib.inference.predict import mean_logits
from kernel_lib.inference.tta import View
from kernel_lib.models.networks import Logits
from kernel_lib.postprocess import thresholds

HALF = thresholds.Triplet(top=0.5, min_area_px=0, bottom=0.5)
# What may be monitored, and whether more is better.
MONITORS = {"dice": 1, "dice_half": 1, "dice_nonempty": 1, "val_loss": -1}


def better(monitor: str) -> Callable[[float], float]:
    """A key that is larger for a better value; InputError for a metric that does not exist."""
    if monitor not in MONITORS:
        raise InputError(f"MONITOR {monitor!r} is none of {', '.join(MONITORS)}")
    return lambda value: MONITORS[monitor] * value


@torch.inference_mode()
def validate(
    model: nn.Module,
    loader: DataLoader,
    masks: Callable[[int], np.ndarray],
    truth: pd.DataFrame,
    loss: Callable[[Logits, torch.Tensor], torch.Tensor],
    views: Sequence[View],
    engine: Engine,
) -> dict[str, float]:
    """Score a model on images that it did not train on.

    `masks(row)` is the (S, S) mask for the loss; `truth` holds rle, height and width by row, for
    dice at the images' own geometry. Returns val_loss; dice, at the best single threshold and area
    (the notes' rule, searched exactly); dice_half, at p > 0.5; dice_nonempty, the same over
    images with a mask (0 where there are none).
    """
    model.eval()
    losses, pairs = 0.0, []
    for levels, rows in loader:
        logits = mean_logits(model, engine.to_device(levels), views, engine)
        target = torch.from_numpy(np.stack([masks(int(r)) for r in rows])).unsqueeze(1)
        losses += float(loss(logits, engine.to_device(target))) * len(rows)
        prob = torch.sigmoid(logits.mask).squeeze(1).cpu().numpy()  # (B, S, S)
        for row, level_map in zip(rows.tolist(), maps.quantise(prob), strict=True):
            image = truth.loc[row]
            pairs.append(
                maps.statistics(level_map, image["rle"], (image["height"], image["width"]))
            )
    stacked = thresholds.stack(pairs)
    halves = thresholds.per_image_dice(stacked, HALF)
    positive = stacked.true_px > 0
    return {
        "val_loss": losses / len(pairs),
        "dice": thresholds.search(stacked, single=True).score,
        "dice_half": float(halves.mean()),
        "dice_nonempty": float(halves[positive].mean()) if positive.any() else 0.0,
    }
