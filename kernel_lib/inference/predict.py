"""Networks to maps and labels, in one stream."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import torch
from torch import nn

from kernel_lib.artifacts import maps
from kernel_lib.artifacts.maps import Prediction
from kernel_lib.engine import Engine
from kernel_lib.inference.tta import View, distinct
from kernel_lib.models.networks import Logits


def mean_logits(
    model: nn.Module, levels: torch.Tensor, views: Sequence[View], engine: Engine
) -> Logits:
    """One model's mask and label logits in float32, averaged over its views of the images."""
    masks, labels = [], []
    size = (levels.shape[-2], levels.shape[-1])
    for view in distinct(views, size):
        with engine.autocast():
            output = model(view.forward(levels))
        if output.mask is not None:
            masks.append(view.inverse(output.mask.float(), size))
        if output.label is not None:
            labels.append(output.label.float())
    return Logits(mask=_mean(masks), label=_mean(labels))


@torch.inference_mode()
def predict(
    models: Sequence[nn.Module],
    batches: Iterable[tuple[torch.Tensor, torch.Tensor]],
    views: Sequence[View],
    engine: Engine,
    ids: Sequence[str],
) -> Iterator[tuple[int, Prediction]]:
    """Yield (row, prediction) of every image, models averaged as probabilities.

    Raises FloatingPointError, with the `ids` of their rows, for images whose map or label is no
    number.
    """
    for model in models:
        model.eval()
    for levels, rows in batches:
        on_device = engine.to_device(levels)
        outputs = [mean_logits(model, on_device, views, engine) for model in models]
        named = [ids[row] for row in rows.tolist()]
        yield from zip(rows.tolist(), _predictions(outputs, named), strict=True)


def _predictions(outputs: Sequence[Logits], ids: Sequence[str]) -> Iterator[Prediction]:
    """The mean over the models, image by image; all of them have the same heads."""
    levels, labels = [None] * len(ids), [None] * len(ids)
    prob = _mean([torch.sigmoid(o.mask) for o in outputs if o.mask is not None])
    if prob is not None:
        # (B, S, S); to the CPU as floats, so that one rounding rule serves everywhere
        levels = maps.quantise(prob.squeeze(1).cpu().numpy(), ids)
    prob = _mean([torch.sigmoid(o.label) for o in outputs if o.label is not None])
    if prob is not None:
        labels = maps.numbers(prob.cpu().numpy().astype(np.float64), ids).tolist()
    return map(Prediction, levels, labels)


def _mean(tensors: Sequence[torch.Tensor]) -> torch.Tensor | None:
    if not tensors:
        return None
    total = tensors[0]
    for tensor in tensors[1:]:
        total = total + tensor
    return total / len(tensors)
