"""The way from archives of maps to test masks in plain NumPy, written apart from the library.

It imports nothing of it: every rule is stated here a second time, by trying all of them. Rules hold
top == bottom; a rule is (label threshold or None, threshold, least area in px of 1024²).
"""

from __future__ import annotations

import io
import json
import math
import zipfile
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np

FULL = 1024 * 1024
NOTHING = FULL + 1  # the least area that no image reaches
GRID = [2**k for k in range(6)] + [round(2 ** (k / 4)) for k in range(24, 81)] + [NOTHING]
TIE = 2.0**-42


class Rule(NamedTuple):
    label: float | None
    threshold: float
    area: int


class Image(NamedTuple):
    """One image as an ensemble sees it: a map at its own size, its truth and its label level."""

    levels: np.ndarray
    truth: np.ndarray
    label: int | None


def read(path: Path) -> tuple[dict[str, np.ndarray], dict[str, float]]:
    """Maps and labels of an archive by image id."""
    maps, labels = {}, {}
    with zipfile.ZipFile(path) as archive:
        for name in archive.namelist():
            if name.endswith(".map"):
                maps[name[:-4]] = unpacked(archive.read(name))
            elif name == "labels.json":
                labels = json.load(io.BytesIO(archive.read(name)))
    return maps, labels


def unpacked(data: bytes) -> np.ndarray:
    """A map (H, W): its size, a bit per 16 pixels that are not all 0, and those pixels."""
    height, width = (int.from_bytes(data[at : at + 4], "little") for at in (0, 4))
    n_blocks = math.ceil(height * width / 16)
    at, blocks = 8 + math.ceil(n_blocks / 8), []
    for block in range(n_blocks):
        held = data[8 + block // 8] >> (7 - block % 8) & 1
        blocks.append(data[at : at + 16] if held else bytes(16))
        at += 16 * held
    assert at == len(data)
    flat = np.frombuffer(b"".join(blocks), np.uint8)
    return flat[: height * width].reshape(height, width).copy()


def mean_map(maps: list[np.ndarray], weights: list[float]) -> np.ndarray:
    side = max(one.shape[0] for one in maps)
    total = np.zeros((side, side))
    for one, weight in zip(maps, weights, strict=True):
        total += at_size(one, (side, side)).astype(float) * float(weight)
    return np.rint(total / float(sum(weights))).astype(np.uint8)


def at_size(levels: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    if levels.shape == shape:
        return levels
    return cv2.resize(levels, shape[::-1], interpolation=cv2.INTER_LINEAR)


def label_level(labels: list[float], weights: list[float]) -> int:
    mean = sum(p * w for p, w in zip(labels, weights, strict=True)) / sum(weights)
    return round(255 * mean)


def sum_level(levels: np.ndarray) -> int:
    total = float(levels.sum()) / 255 * FULL / levels.size
    return min(round(255 * math.log2(1 + total) / 20), 255)


def mask(image: Image, rule: Rule) -> np.ndarray:
    above = image.levels > 255 * rule.threshold
    too_small = int(above.sum()) * FULL < rule.area * above.size
    closed = rule.label is not None and not image.label > 255 * rule.label
    return np.zeros_like(above) if too_small or closed else above


def dice(one: np.ndarray, other: np.ndarray) -> float:
    total = int(one.sum()) + int(other.sum())
    return 1.0 if total == 0 else 2 * int((one & other).sum()) / total


def mean_dice(images: list[Image], rule: Rule) -> float:
    return float(np.mean([dice(mask(image, rule), image.truth) for image in images]))


class Tables:
    """Of N images: area (px of 1024²) and dice at each threshold, and what an empty mask scores."""

    def __init__(self, images: list[Image]) -> None:
        self.empty = np.array([0.0 if image.truth.any() else 1.0 for image in images])
        self.label = np.array([-1 if image.label is None else image.label for image in images])
        self.area = np.zeros((len(images), 255), np.int64)
        self.dice = np.zeros((len(images), 255))
        for at, image in enumerate(images):
            for level in range(255):
                above = image.levels > level
                self.area[at, level] = int(above.sum()) * FULL // above.size
                self.dice[at, level] = dice(above, image.truth)

    def means(self, level: int, areas: list[int], gate: int | None) -> np.ndarray:
        """Mean dice of one threshold under each least area."""
        kept = self.area[:, level, None] >= np.array(areas)
        if gate is not None:
            kept &= (self.label > gate)[:, None]
        return np.where(kept, self.dice[:, level, None], self.empty[:, None]).mean(axis=0)


def best(images: list[Image], labelled: bool) -> tuple[Rule, float]:
    """The best of all rules: without a label before one, then the lowest label threshold, then the
    largest area, then the highest threshold."""
    tables = Tables(images)
    tried = []
    # Between two labels every threshold lets the same images pass; the lowest is at a label.
    for gate in [None, *sorted(set(tables.label))] if labelled else [None]:
        for level in range(255):
            areas = [NOTHING, *sorted(set(tables.area[:, level]), reverse=True), 0]
            scores = tables.means(level, areas, gate)
            tried += [(-1 if gate is None else gate, level, areas, scores)]
    top = max(scores.max() for *_, scores in tried)
    as_good = [
        (gate, area, level)
        for gate, level, areas, scores in tried
        for area, score in zip(areas, scores, strict=True)
        if score > top - TIE
    ]
    gate, area, level = max(one for one in as_good if one[0] == min(as_good)[0])
    rule = Rule(None if gate < 0 else (gate + 0.5) / 255, (level + 0.5) / 255, int(area))
    return rule, mean_dice(images, rule)


def chosen(images: list[Image], labelled: bool) -> Rule:
    """From the plateau around the best rule, the one whose neighbours score best."""
    peak, score = best(images, labelled)
    gate = None if peak.label is None else math.floor(255 * peak.label)
    each = [dice(mask(image, peak), image.truth) for image in images]
    floor = score - max(0.001, 0.5 * float(np.std(each, ddof=1)) / len(each) ** 0.5)
    tables = Tables(images)
    means = np.array([tables.means(level, GRID, gate) for level in range(255)])  # (255, G)
    means = np.rint(means * 2**30).astype(np.int64)
    found = None
    for at, area in enumerate(GRID):
        near = [j for j, other in enumerate(GRID) if area / 2 <= other <= area * 2]
        for level in range(255):
            if means[level, at] < math.floor(floor * 2**30):
                continue
            window = means[max(level - 8, 0) : level + 9, near[0] : near[-1] + 1]
            value = int(window.sum()) / window.size
            if found is None or value >= found[0]:
                found = value, level, area
    return peak if found is None else Rule(peak.label, (found[1] + 0.5) / 255, found[2])


def greedy(of_weights, n_members: int) -> tuple[int, ...]:
    """Members drawn with replacement while the best rule's score rises."""
    weights, score = (0,) * n_members, -1.0
    while True:
        tried = {}
        for member in range(n_members):
            more = tuple(w + (at == member) for at, w in enumerate(weights))
            tried[more] = best(of_weights(more), labelled=False)[1]
        more = max(tried, key=tried.get)
        if tried[more] <= score + TIE:
            return tuple(w // math.gcd(*weights) for w in weights)
        weights, score = more, tried[more]


def vote(masks: list[np.ndarray], k: int) -> np.ndarray:
    return np.sum(masks, axis=0) >= k


def union(masks: list[np.ndarray], k: int) -> np.ndarray:
    """The union of the masks that share a pixel with k − 1 others or more."""
    agreeing = [
        one for one in masks if one.any() and sum((one & other).any() for other in masks) >= k
    ]
    return np.any(agreeing, axis=0) if agreeing else np.zeros_like(masks[0])


def best_k(members: list[list[Image]], rules: list[Rule], combine) -> int:
    """How many must agree; of equals the most."""
    scores = []
    for k in range(1, len(members) + 1):
        each = []
        for row in range(len(members[0])):
            masks = [mask(own[row], rule) for own, rule in zip(members, rules, strict=True)]
            each.append(dice(combine(masks, k), members[0][row].truth))
        scores.append(float(np.mean(each)))
    return max(k for k, score in enumerate(scores, 1) if score > max(scores) - TIE)
