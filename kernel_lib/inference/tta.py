"""Test-time augmentation by name: views of an image, each with the way back."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch

from kernel_lib.errors import InputError

Transform = Callable[[torch.Tensor], torch.Tensor]


class View(NamedTuple):
    """One look at the image, and what brings its logits back."""

    forward: Transform  # (B, 1, H, W) → (B, 1, H', W')
    inverse: Transform  # (B, 1, H', W') → (B, 1, H, W)


def _same(x: torch.Tensor) -> torch.Tensor:
    return x


def _hflip(x: torch.Tensor) -> torch.Tensor:
    return x.flip(-1)


_IDENTITY = View(_same, _same)

TTA: dict[str, tuple[View, ...]] = {
    "none": (_IDENTITY,),
    "hflip": (_IDENTITY, View(_hflip, _hflip)),
}


def views(name: str) -> tuple[View, ...]:
    """The views of that name; InputError for an unknown one."""
    if name not in TTA:
        raise InputError(f"TTA {name!r} is none of {', '.join(TTA)}")
    return TTA[name]
