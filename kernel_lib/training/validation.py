"""Scores of held-out images at the end of an epoch, by the same maps and rules as elsewhere."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from torch import nn
from torch.utils.data import DataLoader

from kernel_lib.artifacts import maps
from kernel_lib.config import Experiment
from kernel_lib.engine import Engine
from kernel_lib.errors import InputError
from kernel_lib.inference.predictions import mean_logits
from kernel_lib.inference.tta import View
from kernel_lib.models import networks
from kernel_lib.models.base import Logits
from kernel_lib.models.losses import TrainingLoss
from kernel_lib.parallel.world import SINGLE_PROCESS, World
from kernel_lib.postprocess.histograms import Statistics, per_image_dice, stack
from kernel_lib.postprocess.metrics import auc
from kernel_lib.postprocess.search import SearchOptions, best_score
from kernel_lib.postprocess.triplet import Triplet
from kernel_lib.registry import lookup

ABOVE_HALF = Triplet(top=0.5, min_area_px=0, bottom=0.5)
# By monitor: whether more (1) or less (-1) is better, and the outputs that the network must have.
MONITORS: dict[str, tuple[int, tuple[str, ...]]] = {
    "epoch": (1, ()),  # keeps the last epochs: the only monitor that uses no label
    "dice": (1, ("mask",)),
    "dice_half": (1, ("mask",)),
    "dice_nonempty": (1, ("mask",)),
    "dice_gated": (1, ("mask", "label")),
    "auc": (1, ("label",)),
    "val_loss": (-1, ()),
}


def better(monitor: str) -> Callable[[float], float]:
    """Return a sort key, larger for better values; InputError for an unknown monitor."""
    sign, _ = lookup("MONITOR", monitor, MONITORS)
    return lambda value: sign * value


def selects(monitor: str) -> bool:
    """Return whether epochs are selected by the labels of the held-out images."""
    return monitor != "epoch"


def check(experiment: Experiment) -> None:
    """Raise InputError for a monitor that is unknown, or needs an output the network lacks."""
    better(experiment.monitor)
    outputs = set()
    if networks.network_class(experiment.network).has_mask:
        outputs.add("mask")
    if experiment.label_weight > 0:
        outputs.add("label")
    needs = MONITORS[experiment.monitor][1]
    if not outputs.issuperset(needs):
        fits = [monitor for monitor, (_, each) in MONITORS.items() if outputs.issuperset(each)]
        raise InputError(
            f"MONITOR {experiment.monitor!r} needs a {' and '.join(needs)}, which "
            f"{experiment.name} does not give: {', '.join(fits)}"
        )


class HeldOut(NamedTuple):
    """Held-out images: batches of levels and rows, masks at the network's size, and ground truth.

    `truth` has image_id, rle, height, width and positive by row, for dice at the images' own size.
    """

    loader: DataLoader  # of several ranks each has its own batches (`World.batches`)
    masks: Callable[[int], np.ndarray]  # row → (S, S)
    truth: pd.DataFrame


@torch.inference_mode()
def validate(
    model: nn.Module,
    images: HeldOut,
    loss: TrainingLoss,
    views: Sequence[View],
    engine: Engine,
    world: World = SINGLE_PROCESS,
    before_turn: Callable[[], None] | None = None,
) -> dict[str, float]:
    """Return the scores of a model on held-out images, the same on every rank.

    Always val_loss. With a mask: dice, at the best single threshold and area (the rule of the
    reference solution, searched exhaustively); dice_half, at p > 0.5; dice_nonempty, the same over
    positive images (0 without one). With a label: auc of "has a pneumothorax" (0.5 if all images
    are of one class). With both: dice_gated, as dice with the best classification threshold.
    `before_turn` may end all ranks between two batches.

    Raises:
        FloatingPointError: a probability is not a number, whatever is monitored; with the images.
    """
    model.eval()

    def outcomes() -> Iterator[_Batch]:
        for levels, rows in images.loader:
            logits = mean_logits(model, engine.to_device(levels), views, engine)
            truth = images.truth.loc[rows.tolist()]
            masks = torch.from_numpy(np.stack([images.masks(int(r)) for r in rows])).unsqueeze(1)
            labels = torch.from_numpy(truth["positive"].to_numpy(dtype=np.float32))
            value = loss(logits, engine.to_device(masks), labels.to(engine.device))
            yield _outcome(logits, float(value), truth)

    batches = list(world.in_turns(outcomes(), len(images.loader), before_turn))
    return world.from_first(lambda: _scores(batches))


class _Batch(NamedTuple):
    """Outcome of one batch."""

    loss: float
    pairs: list[Statistics]  # empty without a mask
    labels: list[float]  # empty without a label
    positive: list[bool]


def _outcome(logits: Logits, loss: float, truth: pd.DataFrame) -> _Batch:
    pairs, ids = [], truth["image_id"].tolist()
    labels = None if logits.label is None else maps.numbers(_probabilities(logits.label), ids)
    if logits.mask is not None:
        level_maps = maps.quantise(_probabilities(logits.mask.squeeze(1)), ids)  # (B, S, S)
        rows = truth[["rle", "height", "width"]].itertuples(index=False, name=None)
        each = [None] * len(truth) if labels is None else labels
        pairs = [
            maps.statistics(level_map, mask_rle, (height, width), label)
            for level_map, (mask_rle, height, width), label in zip(
                level_maps, rows, each, strict=True
            )
        ]
    return _Batch(
        loss, pairs, [] if labels is None else labels.tolist(), truth["positive"].tolist()
    )


def _probabilities(logits: torch.Tensor) -> np.ndarray:
    return torch.sigmoid(logits).cpu().numpy()


def _scores(batches: list[_Batch]) -> dict[str, float]:
    pairs, labels, positive = (
        [value for batch in batches for value in getattr(batch, name)]
        for name in ("pairs", "labels", "positive")
    )
    total = 0.0
    for batch in batches:
        total += batch.loss * len(batch.positive)
    scores = {"val_loss": total / len(positive)}
    if pairs:
        stacked = stack(pairs)
        dice = per_image_dice(stacked, ABOVE_HALF)
        has_mask = stacked.true_px > 0
        scores["dice"] = best_score(stacked, SearchOptions(single=True, label=False))
        scores["dice_half"] = float(dice.mean())
        scores["dice_nonempty"] = float(dice[has_mask].mean()) if has_mask.any() else 0.0
        if labels:
            scores["dice_gated"] = best_score(stacked, SearchOptions(single=True))
    if labels:
        mixed = 0 < sum(positive) < len(positive)
        scores["auc"] = auc(np.array(labels), np.array(positive)) if mixed else 0.5
    return scores
