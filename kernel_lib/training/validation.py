"""Scores of held-out images at an epoch's end, by the same map and rule as everything else."""

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
from kernel_lib.inference.predict import mean_logits
from kernel_lib.inference.tta import View
from kernel_lib.models import networks
from kernel_lib.models.losses import TrainingLoss
from kernel_lib.models.networks import Logits
from kernel_lib.parallel.world import SINGLE_PROCESS, World
from kernel_lib.postprocess.histograms import Statistics, per_image_dice, stack
from kernel_lib.postprocess.metrics import auc
from kernel_lib.postprocess.search import SearchOptions, best_score
from kernel_lib.postprocess.triplet import Triplet
from kernel_lib.registry import lookup

HALF = Triplet(top=0.5, min_area_px=0, bottom=0.5)
# What may be monitored: whether more is better, and what the network must give for it.
MONITORS = {
    "epoch": (1, ""),  # the last are kept: the only monitor that looks at no label
    "dice": (1, "mask"),
    "dice_half": (1, "mask"),
    "dice_nonempty": (1, "mask"),
    "dice_gated": (1, "mask and label"),
    "auc": (1, "label"),
    "val_loss": (-1, ""),
}


def better(monitor: str) -> Callable[[float], float]:
    """A key that is larger for a better value; InputError for a metric that does not exist."""
    sign, _ = lookup("MONITOR", monitor, MONITORS)
    return lambda value: sign * value


def selects(monitor: str) -> bool:
    """Return whether epochs are selected by the labels of the held-out images."""
    return monitor != "epoch"


def check(row: Experiment) -> None:
    """Refuse a monitor that does not exist, or that the row's network does not give."""
    better(row.monitor)
    has = {
        "mask": networks.network_class(row.network).has_mask,
        "label": row.label_weight > 0,
    }
    needs = MONITORS[row.monitor][1]
    if not all(given for name, given in has.items() if name in needs):
        fits = [m for m, (_, n) in MONITORS.items() if all(has[k] for k in has if k in n)]
        raise InputError(
            f"MONITOR {row.monitor!r} needs a {needs}, which {row.name} does not give: "
            f"{', '.join(fits)}"
        )


@torch.inference_mode()
def validate(
    model: nn.Module,
    loader: DataLoader,
    masks: Callable[[int], np.ndarray],
    truth: pd.DataFrame,
    loss: TrainingLoss,
    views: Sequence[View],
    engine: Engine,
    world: World = SINGLE_PROCESS,
    before_turn: Callable[[], None] | None = None,
) -> dict[str, float]:
    """Score a model on images that it did not train on.

    `masks(row)` is the (S, S) mask for the loss; `truth` holds image_id, rle, height, width and
    positive by row, for dice at the images' own geometry. Returns val_loss, and what the model has
    heads for.
    With a mask: dice, at the best single threshold and area (the notes' rule, searched exactly);
    dice_half, at p > 0.5; dice_nonempty, the same over images with a mask (0 where there are none).
    With a label: auc of "has a pneumothorax" (0.5 where all images are of one kind). With both:
    dice_gated, as dice with the best label threshold before the rule.
    Of several ranks each gives a loader of its own batches (`World.batches`) and gets all scores;
    `before_turn` may end them all between two batches.
    Raises FloatingPointError with the images' ids where a map or a label is no number, whatever is
    monitored: no score is made of it.
    """
    model.eval()

    def looks() -> Iterator[_Look]:
        for levels, rows in loader:
            logits = mean_logits(model, engine.to_device(levels), views, engine)
            images = truth.loc[rows.tolist()]
            target = torch.from_numpy(np.stack([masks(int(r)) for r in rows])).unsqueeze(1)
            has_mask = torch.from_numpy(images["positive"].to_numpy(dtype=np.float32))
            value = loss(logits, engine.to_device(target), has_mask.to(engine.device))
            yield _look(logits, float(value), images)

    found = list(world.in_turns(looks(), len(loader), before_turn))
    return world.agreed(lambda: _scores(found))


class _Look(NamedTuple):
    """What validation keeps of one batch."""

    loss: float
    pairs: list[Statistics]  # none from a classifier
    labels: list[float]  # none without a label head
    positive: list[bool]  # of each image


def _look(logits: Logits, loss: float, images: pd.DataFrame) -> _Look:
    labels, pairs, ids = None, [], images["image_id"].tolist()
    if logits.label is not None:
        labels = maps.numbers(_probabilities(logits.label), ids)
    if logits.mask is not None:
        level_maps = maps.quantise(_probabilities(logits.mask.squeeze(1)), ids)  # (B, S, S)
        pairs = _statistics(level_maps, images, labels)
    given = [] if labels is None else labels.tolist()
    return _Look(loss, pairs, given, images["positive"].tolist())


def _scores(looks: list[_Look]) -> dict[str, float]:
    pairs, labels, positive = (
        [one for look in looks for one in getattr(look, name)]
        for name in ("pairs", "labels", "positive")
    )
    total = 0.0
    for look in looks:
        total += look.loss * len(look.positive)
    scores = {"val_loss": total / len(positive)}
    if pairs:
        scores |= _mask_scores(pairs, gated=bool(labels))
    if labels:
        mixed = 0 < sum(positive) < len(positive)
        scores["auc"] = auc(np.array(labels), np.array(positive)) if mixed else 0.5
    return scores


def _probabilities(logits: torch.Tensor) -> np.ndarray:
    return torch.sigmoid(logits).cpu().numpy()


def _statistics(
    level_maps: np.ndarray, images: pd.DataFrame, labels: np.ndarray | None
) -> list[Statistics]:
    each = [None] * len(images) if labels is None else labels
    shown = images[["rle", "height", "width"]].itertuples(index=False, name=None)
    return [
        maps.statistics(level_map, mask_rle, (height, width), label)
        for level_map, (mask_rle, height, width), label in zip(level_maps, shown, each, strict=True)
    ]


def _mask_scores(pairs: list[Statistics], gated: bool) -> dict[str, float]:
    stacked = stack(pairs)
    halves = per_image_dice(stacked, HALF)
    positive = stacked.true_px > 0
    scores = {
        "dice": best_score(stacked, SearchOptions(single=True, label=False)),
        "dice_half": float(halves.mean()),
        "dice_nonempty": float(halves[positive].mean()) if positive.any() else 0.0,
    }
    if gated:
        scores["dice_gated"] = best_score(stacked, SearchOptions(single=True))
    return scores
