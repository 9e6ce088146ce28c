"""How wrong the run is about each training image, by the training step's own output."""

from __future__ import annotations

import torch

from kernel_lib.models.networks import Logits

# A false alarm of this area is as hard as a missed pneumothorax; at 1024². Rules that were found
# on this data drop masks below 600 (first place) to 6,900 px (the notes).
FALSE_ALARM_PX = 1000


@torch.no_grad()
def hardness_of(output: Logits, masks: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Hardness of each image, 0 (right) to 1 (a false negative or a false alarm), float32.

    By the mask at p > 0.5 where the network gives one: 1 − dice where there is a true mask, so
    that a miss is 1; else the predicted area over FALSE_ALARM_PX at 1024², at most 1. The true mask
    is the augmented one that the network was asked for. A classifier: |p − label|.

    Shape: output (B, 1, H, W) or (B,) logits, masks (B, 1, H, W) 0/1, labels (B,) 0/1 → (B,), on
    the device of the logits: nothing here waits for a GPU.
    """
    if output.mask is None:
        return (torch.sigmoid(output.label.float()) - labels.float()).abs()
    # Counts of pixels: exact whatever their order.
    predicted, truth = (output.mask > 0).flatten(1), (masks > 0).flatten(1)  # (B, H·W)
    both, area = (predicted & truth).sum(dim=1), predicted.sum(dim=1)  # (B,)
    true_area = truth.sum(dim=1)
    missed = 1 - 2 * both / (area + true_area).clamp(min=1)
    alarm = area * (1024**2 / FALSE_ALARM_PX / predicted.shape[1])
    return torch.where(true_area > 0, missed, alarm.clamp(max=1))
