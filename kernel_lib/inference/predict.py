"""Networks to maps, in one stream."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import torch
from torch import nn

from kernel_lib.engine import Engine
from kernel_lib.inference import maps
from kernel_lib.inference.tta import View
from kernel_lib.models.networks import Logits


def mean_logits(
    model: nn.Module, levels: torch.Tensor, views: Sequence[View], engine: Engine
) -> Logits:
    """One model's logits (B, 1, H, W) float32, averaged over its views of the images."""
    total = 0.0
    for view in views:
        with engine.autocast():
            output = model(view.forward(levels))
        total = total + view.inverse(output.mask.float())
    return Logits(mask=total / len(views))


@torch.inference_mode()
def predict(
    models: Sequence[nn.Module],
    batches: Iterable[tuple[torch.Tensor, torch.Tensor]],
    views: Sequence[View],
    engine: Engine,
) -> Iterator[tuple[int, np.ndarray]]:
    """Yield (row, (S, S) uint8 map) of every image, models averaged as probabilities."""
    for model in models:
        model.eval()
    for levels, rows in batches:
        on_device = engine.to_device(levels)
        prob = 0.0
        for model in models:
            prob = prob + torch.sigmoid(mean_logits(model, on_device, views, engine).mask)
        # (B, S, S) levels; to the CPU as floats, so that one rounding rule serves everywhere
        quantised = maps.quantise((prob / len(models)).squeeze(1).cpu().numpy())
        yield from zip(rows.tolist(), quantised, strict=True)
