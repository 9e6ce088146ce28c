"""Test-time augmentation by name: views of an image, each with its inverse.

Names join with `+`: "hflip+multiscale" is every flip at every scale. A label has no inverse and is
averaged over the views as it is.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

import numpy as np

from kernel_lib.registry import lookup

if TYPE_CHECKING:
    import torch

Size = tuple[int, int]  # (H, W)
Pixels = TypeVar("Pixels", "torch.Tensor", np.ndarray)


@dataclass(frozen=True)
class View:
    """A transformed image, and the inverse for its logits.

    Flips take tensors and arrays; a scale takes tensors, and imports torch.
    """

    hflip: bool = False
    vflip: bool = False
    scale: float = 1.0  # of both sides, before these are rounded to multiples of 32

    def forward(self, levels: Pixels) -> Pixels:
        """Return (B, 1, H, W) levels as this view shows them, (B, 1, H', W').

        Flips alone keep the type. A scaled view is float32 levels, 0–255 and not rounded: bilinear,
        over a wider window where it shrinks (antialiased), pixels as areas (corners not aligned).
        """
        size, x = self.size_of(levels.shape[-2:]), self._flipped(levels)
        if size == levels.shape[-2:]:
            return x
        from torch.nn.functional import interpolate

        return interpolate(x.float(), size, mode="bilinear", align_corners=False, antialias=True)

    def inverse(self, logits: Pixels, size: Size) -> Pixels:
        """Return (B, 1, H', W') float32 logits of this view as (B, 1, H, W) of the image.

        Exact for flips; a scaled view is resized bilinearly.
        """
        if logits.shape[-2:] != size:
            from torch.nn.functional import interpolate

            logits = interpolate(logits, size, mode="bilinear", align_corners=False)
        return self._flipped(logits)

    def size_of(self, size: Size) -> Size:
        """Return the view's size of an image of this size.

        Each side times the scale, to the nearest multiple of 32, at least 32; halfway, away from
        its own length. Scale 1 changes nothing.
        """
        if self.scale == 1:
            return size
        to_whole = math.floor if self.scale > 1 else math.ceil
        half = 0.5 if self.scale > 1 else -0.5
        height, width = (32 * max(1, to_whole(side * self.scale / 32 + half)) for side in size)
        return height, width

    def _flipped(self, x: Pixels) -> Pixels:
        axes = [axis for axis, flips in ((-2, self.vflip), (-1, self.hflip)) if flips]
        if not axes:
            return x
        return np.flip(x, axes) if isinstance(x, np.ndarray) else x.flip(axes)

    def _joined(self, other: View) -> View:
        """Return both at once: two flips cancel, two scales multiply."""
        return View(self.hflip ^ other.hflip, self.vflip ^ other.vflip, self.scale * other.scale)


_IMAGE, _HFLIP, _VFLIP = View(), View(hflip=True), View(vflip=True)

TTA: dict[str, tuple[View, ...]] = {
    "none": (_IMAGE,),
    "hflip": (_IMAGE, _HFLIP),
    "vflip": (_IMAGE, _VFLIP),
    "flips": (_IMAGE, _HFLIP, _VFLIP, View(hflip=True, vflip=True)),
    "multiscale": (_IMAGE, View(scale=0.75), View(scale=1.25)),
}


def views(name: str) -> tuple[View, ...]:
    """Return the views of that name, the image itself first, none twice.

    Raises: InputError naming a part that does not exist, with the nearest.
    """
    joined = (_IMAGE,)
    for part in name.split("+"):
        kind = "TTA" if part == name else f"TTA {name!r}:"
        views_of_part = lookup(kind, part, TTA, " (names join with +)")
        joined = tuple(before._joined(view) for before in joined for view in views_of_part)
    return tuple(dict.fromkeys(joined))


def distinct(chosen: Sequence[View], size: Size) -> tuple[View, ...]:
    """Return the views that differ at this size: scales that round to one size are one view."""
    seen: dict[tuple[bool, bool, Size], View] = {}
    for view in chosen:
        seen.setdefault((view.hflip, view.vflip, view.size_of(size)), view)
    return tuple(seen.values())


def disagreement(prob: Sequence[Pixels]) -> Pixels | None:
    """Return how much an image's views differ: 1 − the mean soft dice of all pairs of their maps.

    Soft dice of maps p and q is 2 Σpq / (Σp² + Σq²); 1 − it is Σ(p − q)² / (Σp² + Σq²), which is 0
    for equal maps to the last bit. The denominator counts as at least 1 px, so that maps that are
    all but zero do not differ. None where there are not two views.

    Shapes: aligned probability maps (..., H, W) float32, one a view → (...) float32, 0–1.
    Source: soft dice of Milletari et al. 2016, "V-Net"; dice between samples as a measure of
    uncertainty of Roy et al. 2018, "Inherent brain segmentation quality control".
    """
    total = [_sum(p * p) for p in prob]
    apart = [
        (_sum((prob[i] - prob[k]) ** 2) / (total[i] + total[k]).clip(min=1)).clip(max=1)
        for i, k in itertools.combinations(range(len(prob)), 2)
    ]
    return sum(apart[1:], apart[0]) / len(apart) if apart else None


def _sum(x: Pixels) -> Pixels:
    # Rows first: one sum over a batch of one map would depend on the number of threads.
    return x.sum(-1).sum(-1)
