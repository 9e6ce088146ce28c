"""Losses by name, and weighted sums of them. A new loss is a function here and a line in `LOSSES`.

Every loss takes logits (B, 1, H, W) and masks (B, 1, H, W) in 0/1, both float32, and returns the
mean over the batch's images.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch.nn import functional as F

from kernel_lib.errors import InputError
from kernel_lib.models.networks import Logits

Loss = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


def bce(logits: torch.Tensor, masks: torch.Tensor) -> torch.Tensor:
    """Binary cross-entropy from logits, mean over pixels; 0 or more, ln 2 at logit 0.

    Shape: (B, 1, H, W), (B, 1, H, W) → scalar.
    """
    return F.binary_cross_entropy_with_logits(logits, masks)


LOSSES: dict[str, Loss] = {
    "bce": bce,
}


def weighted_sum(weights: Mapping[str, float]) -> Callable[[Logits, torch.Tensor], torch.Tensor]:
    """The row's loss: Σ weight · loss, in float32 whatever the network computed in.

    Raises InputError for a name that is not in `LOSSES`.
    """
    unknown = sorted(set(weights) - set(LOSSES))
    if unknown:
        raise InputError(f"loss {unknown[0]!r} is none of {', '.join(LOSSES)}")

    def loss(output: Logits, masks: torch.Tensor) -> torch.Tensor:
        logits, target = output.mask.float(), masks.float()
        terms = [w * LOSSES[name](logits, target) for name, w in weights.items()]
        return torch.stack(terms).sum()

    return loss
