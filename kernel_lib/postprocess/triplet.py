"""The rule that turns a probability map into a mask.

A pixel exceeds a threshold t when its level is above 255·t. An image keeps a mask if at least
`min_area_px` of its pixels (stated for 1024², scaled by H·W / 1024²) exceed `top`; the mask is then
what exceeds `bottom`. A rule with a label threshold first empties the mask of every image whose
label level is not above 255·label.
"""

from __future__ import annotations

import math
import operator
from dataclasses import asdict, dataclass

import numpy as np

from kernel_lib.config import LARGEST_NUMBER
from kernel_lib.errors import InputError
from kernel_lib.postprocess import gate
from kernel_lib.postprocess.exhaustive import KEEP_NONE
from kernel_lib.postprocess.units import AREA_UNIT, FULL_AREA


@dataclass(frozen=True)
class Triplet:
    """A rule: thresholds 0 ≤ bottom ≤ top ≤ 1, and an area ≥ 0 in px of a 1024² image.

    `label` is a threshold 0–1 of the image's label; None needs no label.

    Raises: InputError when a value is out of its bounds.
    Source: the first place of the competition (sneddy); top == bottom is one threshold, one area.
    """

    top: float
    min_area_px: int
    bottom: float
    label: float | None = None

    def __post_init__(self) -> None:
        for name in ("top", "bottom") if self.label is None else ("top", "bottom", "label"):
            value = getattr(self, name)
            try:
                number = float(value)
            except (TypeError, ValueError):
                number = math.nan
            if not 0 <= number <= 1:
                raise InputError(
                    f"{name} is {value!r}, not within 0–1: a level of a uint8 map or label is /255"
                )
            object.__setattr__(self, name, number)
        if self.bottom > self.top:
            raise InputError(
                f"bottom is {self.bottom}, above top, {self.top}: the order is "
                "Triplet(top, min_area_px, bottom)"
            )
        try:
            area = operator.index(self.min_area_px)
        except TypeError:
            area = -1
        if not 0 <= area <= LARGEST_NUMBER or isinstance(self.min_area_px, bool | np.bool_):
            raise InputError(
                f"min_area_px is {self.min_area_px!r}, not a whole number of 0 to "
                f"{LARGEST_NUMBER:,}: give pixels of a 1024² image"
            )
        object.__setattr__(self, "min_area_px", area)

    @property
    def keeps_none(self) -> bool:
        """Whether the rule asks for more area than an image has, so that every mask is empty."""
        return self.min_area_px >= KEEP_NONE

    def __str__(self) -> str:
        label = "" if self.label is None else f"label {self.label:.4f}, "
        area = f"min area {self.min_area_px} {AREA_UNIT}"
        if self.keeps_none:
            area += f" (predicts nothing: an image has {FULL_AREA})"
        return f"{label}top {self.top:.4f}, {area}, bottom {self.bottom:.4f}"

    def to_json(self) -> dict[str, float | int]:
        """Return the rule as a dict for JSON, without `label` where it is None."""
        return {name: value for name, value in asdict(self).items() if value is not None}

    @classmethod
    def from_json(cls, values: dict) -> Triplet:
        """Return the rule of a dict with top, min_area_px, bottom and perhaps label.

        Raises: InputError for another dict.
        """
        try:
            return cls(**values)
        except TypeError:
            raise InputError(
                f"a rule is {values!r}: it needs exactly bottom, min_area_px, top, and may have a "
                "label"
            ) from None


def apply_rule(prob: np.ndarray, triplet: Triplet, label: int | None = None) -> np.ndarray:
    """Return the mask (H, W) uint8 0/1 of a map under a rule.

    `label` is the image's label as a level, round(255 · p); a rule without `label` ignores it.

    Shapes: prob (H, W) uint8, at the image's own size.
    Raises: InputError for another type or shape, or when the rule needs a label and none is given.
    """
    prob = checked_map(prob)
    above_top = np.count_nonzero(prob >= first_level(triplet.top))
    passes = gate.passes(gate.as_array([label]), triplet.label)[0]
    if not passes or above_top * FULL_AREA < triplet.min_area_px * prob.size:
        return np.zeros(prob.shape, dtype=np.uint8)
    return (prob >= first_level(triplet.bottom)).view(np.uint8)


def first_level(threshold: float) -> int:
    """Return the lowest level that exceeds a threshold: 1–256, where no pixel reaches 256."""
    return math.floor(255 * threshold) + 1


def checked_map(prob: np.ndarray) -> np.ndarray:
    """Return the map, uint8 (H, W).

    Raises: InputError for another type or shape.
    """
    prob = np.asarray(prob)
    if prob.dtype != np.uint8 or prob.ndim != 2 or not prob.size:
        raise InputError(
            f"the map is {prob.dtype} of shape {prob.shape}, not uint8 (H, W): "
            "give round(255 · p) of one image"
        )
    return prob
