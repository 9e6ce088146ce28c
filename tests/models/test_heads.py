from __future__ import annotations

import torch
from torch.nn import functional as F

from kernel_lib.models.heads import Hypercolumn


def test_it_equals_the_concatenated_hypercolumn():
    """Upsample, concatenate, 1×1 convolution: what the head's shorter way has to come to."""
    torch.manual_seed(0)
    channels = (6, 4, 3)
    head = Hypercolumn(channels, channels=5).eval()
    levels = [torch.randn(2, c, 4 * 2**k, 4 * 2**k) for k, c in enumerate(channels)]
    full = [
        F.interpolate(level, size=(16, 16), mode="bilinear", align_corners=False)
        for level in levels
    ]
    weight = torch.cat([conv.weight for conv in head.reduce], dim=1)  # (5, 13, 1, 1)
    expected = head.logit(F.relu(head.norm(F.conv2d(torch.cat(full, dim=1), weight))))
    with torch.inference_mode():
        logits = head(levels)
    assert logits.shape == (2, 1, 16, 16)
    torch.testing.assert_close(logits, expected, rtol=1e-5, atol=1e-5)


def test_every_level_is_heard():
    torch.manual_seed(0)
    head = Hypercolumn((2, 2, 2), channels=4)
    levels = [torch.randn(2, 2, s, s, requires_grad=True) for s in (4, 8, 16)]
    head(levels).square().mean().backward()
    assert all(level.grad.abs().sum() > 0 for level in levels)
