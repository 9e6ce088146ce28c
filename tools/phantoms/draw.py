"""A phantom radiograph: attenuation summed from body, lungs, bones and vessels, then exposed.

The sum is in arbitrary units (0 air, about 1 the spine through the heart) and the film is bright
where much is attenuated. A pneumothorax takes lung away: its region is darker, holds no vessel and
no fine texture, and ends inwards at a thin bright line. A skin fold, its mimic, is an edge too, but
the lung's markings go on beyond it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np

from tools.phantoms.anatomy import LEFT, RIGHT, Anatomy, smooth

SUBPIXEL_BITS = 4
FULL_SIZE = 1024  # areas are stated for this size
LARGEST_SHARE = 0.8  # of one lung that a pneumothorax may fill


@dataclass(frozen=True)
class Phantom:
    """One image with its truth; the parts overlap where several rows describe one mask."""

    image: np.ndarray  # (S, S) uint8
    mask: np.ndarray  # (S, S) uint8, 0/1: the union of the parts
    parts: tuple[np.ndarray, ...]  # each (S, S) uint8, 0/1


@dataclass(frozen=True)
class _Film:
    """The projection: where the body's frame lands on the pixels."""

    size: int
    affine: np.ndarray  # (2, 3) body frame → pixels
    x: np.ndarray  # (S, S) float32: the body's x of each pixel
    y: np.ndarray

    def _points(self, curve: np.ndarray) -> np.ndarray:
        pixels = curve @ self.affine[:, :2].T + self.affine[:, 2]
        return np.round(pixels * (1 << SUBPIXEL_BITS)).astype(np.int32)

    def fill(self, outlines: list[np.ndarray]) -> np.ndarray:
        """Return (S, S) uint8, 255 inside, soft by less than a pixel at the edge."""
        layer = np.zeros((self.size, self.size), np.uint8)
        for outline in outlines:
            points = [self._points(outline)]
            cv2.fillPoly(layer, points, 255, lineType=cv2.LINE_AA, shift=SUBPIXEL_BITS)
        return layer

    def lines(self, curves: Sequence[np.ndarray], width: float, closed: bool = False) -> np.ndarray:
        """Return (S, S) float32 0..1, lines `width` units wide, fainter if thinner than a pixel."""
        layer = np.zeros((self.size, self.size), np.uint8)
        wide = width * self.size
        if isinstance(curves, np.ndarray):
            points = list(self._points(curves))
        else:
            points = [self._points(curve) for curve in curves]
        colour = int(255 * min(1.0, wide))
        thickness = max(1, round(wide))
        cv2.polylines(layer, points, closed, colour, thickness, cv2.LINE_AA, SUBPIXEL_BITS)
        return layer.astype(np.float32) / 255

    def blur(self, layer: np.ndarray, sigma: float) -> np.ndarray:
        """Return a Gaussian blur by `sigma` units; wide ones are done on a smaller copy."""
        pixels = sigma * self.size
        layer = layer.astype(np.float32) / 255 if layer.dtype == np.uint8 else layer
        shrink = int(pixels // 4)
        if shrink < 2:
            return cv2.GaussianBlur(
                layer, (0, 0), max(pixels, 0.3), borderType=cv2.BORDER_REPLICATE
            )
        small = cv2.resize(layer, None, fx=1 / shrink, fy=1 / shrink, interpolation=cv2.INTER_AREA)
        small = cv2.GaussianBlur(small, (0, 0), pixels / shrink, borderType=cv2.BORDER_REPLICATE)
        return cv2.resize(small, layer.shape[::-1], interpolation=cv2.INTER_CUBIC)

    def depth(self, inside: np.ndarray, full: float) -> np.ndarray:
        """Return how thick a rounded body is: 0 at its rim to 1 where `full` units deep or more."""
        away = cv2.distanceTransform(inside, cv2.DIST_L2, 5)
        short = 1 - np.minimum(away / (full * self.size), 1)
        return np.sqrt(1 - short * short)


def _project(anatomy: Anatomy, size: int, rng: np.random.Generator) -> _Film:
    """Return rotation, scale, shift and depth of breath, which differ between images."""
    angle = np.deg2rad(rng.normal(0, 3.0))
    scale = anatomy.scale * rng.uniform(0.96, 1.04)
    breath = rng.uniform(0.92, 1.05)
    linear = scale * np.array(
        [[np.cos(angle), -np.sin(angle) * breath], [np.sin(angle), np.cos(angle) * breath]]
    )
    target = np.array([0.5, 0.5]) + rng.normal(0, 0.02, 2)
    shift = target - linear @ np.array([0.0, 0.5])
    affine = np.hstack([linear, shift[:, None]]) * size
    inverse = cv2.invertAffineTransform(affine).astype(np.float32)
    centres = np.arange(size, dtype=np.float32) + 0.5
    column, row = centres[None, :], centres[:, None]
    x = inverse[0, 0] * column + inverse[0, 1] * row + inverse[0, 2]
    y = inverse[1, 0] * column + inverse[1, 1] * row + inverse[1, 2]
    return _Film(size=size, affine=affine, x=x, y=y)


def _below(values: np.ndarray, bound: float, soft: float) -> np.ndarray:
    """Return 1 well below the bound, 0 well above it, with a transition about `soft` wide."""
    return 0.5 - 0.5 * np.tanh((values - bound) / (2 * soft))


def _noise(film: _Film, rng: np.random.Generator, grain: float) -> np.ndarray:
    """Return smooth noise of unit deviation whose grains are `grain` units wide."""
    cells = max(4, min(film.size, round(1 / grain)))
    coarse = rng.standard_normal((cells, cells), dtype=np.float32)
    if cells == film.size:
        return coarse
    return 1.3 * cv2.resize(coarse, (film.size, film.size), interpolation=cv2.INTER_CUBIC)


def _cavity(film: _Film, anatomy: Anatomy, side: int) -> np.ndarray:
    """Return (S, S) uint8 0/255, the lung that the film shows at full darkness on one side."""
    lung = film.fill([anatomy.lungs[side].outline])
    return np.where(film.fill([anatomy.mediastinum]) > 127, np.uint8(0), lung)


def _pocket_order(film: _Film, anatomy: Anatomy, side: int, share: float, kind: str, rng) -> tuple:
    """Return the order in which air fills a lung from the wall, and the width it has there.

    Air of the level s fills where the order is under s: depth from the wall over a width that
    changes along the wall, greatest at the apex, at mid-height or at the base.
    """
    lung = anatomy.lungs[side]
    # The mediastinum and what lies below count as inside: air lies against the ribs only.
    inside = film.fill([anatomy.lungs[s].outline for s in (RIGHT, LEFT)] + [anatomy.mediastinum])
    if kind != "basal":
        inside |= np.where(film.y > lung.base_y - 0.06, np.uint8(255), np.uint8(0))
        inside |= np.where(np.abs(film.x) < 0.09, np.uint8(255), np.uint8(0))
    away = cv2.distanceTransform((inside > 127).astype(np.uint8), cv2.DIST_L2, 5) / film.size
    height = np.clip((film.y - lung.apex_y) / (lung.base_y - lung.apex_y), 0, 1)
    if kind == "apical":
        reach = (0.17 + 1.5 * share**0.5) * rng.uniform(0.75, 1.35)
        width = np.clip(1 - height / reach, 0, 1) ** rng.uniform(0.6, 0.9)
    else:
        centre = rng.uniform(0.35, 0.7) if kind == "lateral" else rng.uniform(0.92, 1.0)
        spread = (0.1 + 0.5 * share**0.5) * rng.uniform(0.8, 1.2)
        width = np.exp(-(((height - centre) / spread) ** 2))
        width *= np.clip((np.abs(film.x) - 0.06) / 0.2, 0.02, 1)
    wave = 1 + 0.1 * np.sin(2 * np.pi * (height * rng.uniform(0.8, 1.8) + rng.random()))
    width = np.maximum(width * wave, 1e-3).astype(np.float32)
    return (away / width).astype(np.float32), width


def _pockets(film: _Film, anatomy: Anatomy, area_px: float, rng) -> tuple[list, np.ndarray]:
    """Return regions of air of `area_px` of 1024² together, and the pleural line, 0..1."""
    todo = area_px * (film.size / FULL_SIZE) ** 2
    kind = str(rng.choice(["apical", "lateral", "basal"], p=[0.74, 0.18, 0.08]))
    plan = [(anatomy.side if rng.random() < 0.9 else -anatomy.side, kind, 1.0)]
    if rng.random() < 0.2 and area_px > 1500:
        second = rng.uniform(0.12, 0.4)
        other = -plan[0][0] if rng.random() < 0.4 else plan[0][0]
        rest = "apical" if other != plan[0][0] else ("basal" if kind != "basal" else "lateral")
        plan = [(*plan[0][:2], 1 - second), (other, rest, second)]
    regions: list[np.ndarray] = []
    line = np.zeros((film.size, film.size), np.float32)
    for side, where, part in plan:
        lung = _cavity(film, anatomy, side) > 127
        for region in regions:
            lung &= ~region
        lung_px = int(lung.sum())
        n_px = int(np.clip(round(todo * part), 1, LARGEST_SHARE * lung_px))
        order, width = _pocket_order(film, anatomy, side, n_px / lung_px, where, rng)
        level = np.partition(order[lung], n_px - 1)[n_px - 1]
        regions.append(lung & (order <= level))
        off = (order - level) * width * film.size  # pixels to the line, towards the hilum positive
        thin = max(0.5, 0.0011 * film.size)
        line = np.maximum(line, np.where(lung, np.exp(-((off / thin) ** 2) / 2), 0))
    return regions, line.astype(np.float32)


def _split(regions: list[np.ndarray], rng) -> tuple[np.ndarray, ...]:
    """Return the rows that describe the mask: one a region, or slabs of one that overlap."""
    parts: list[np.ndarray] = []
    for region in regions:
        rows = np.flatnonzero(region.any(axis=1))
        if rng.random() < 0.8 or len(rows) < 8:
            parts.append(region)
            continue
        cut = rows[0] + round(len(rows) * rng.uniform(0.3, 0.7))
        overlap = round(len(rows) * rng.uniform(0.0, 0.25))
        upper, lower = region.copy(), region.copy()
        upper[cut + overlap :] = False
        lower[:cut] = False
        parts += [half for half in (upper, lower) if half.any()]
    return tuple(part.astype(np.uint8) for part in parts)


def _markings(film: _Film, anatomy: Anatomy, rng) -> np.ndarray:
    """Return vessels and the fine texture between them, to be shown where lung is."""
    total = np.zeros((film.size, film.size), np.float32)
    widths = (0.0115, 0.008, 0.0058, 0.0042, 0.003, 0.0022)
    for generation, width in zip(anatomy.vessels, widths, strict=True):
        strength = 0.1 * (width / widths[0]) ** 0.55
        total += strength * film.blur(film.lines(generation, width), 0.22 * width)
    total += 0.009 * _noise(film, rng, 0.006) + 0.01 * _noise(film, rng, 0.014)
    hilum = np.exp(-(((np.abs(film.x) - 0.075) / 0.04) ** 2) - ((film.y - 0.43) / 0.07) ** 2)
    return total + 0.07 * hilum


def _bones(film: _Film, anatomy: Anatomy) -> np.ndarray:
    """Return ribs with bright rims, collar bones, shoulder blades and the spine."""
    width = anatomy.rib_width

    def tube(curves: list[np.ndarray], wide: float, soft: float) -> np.ndarray:
        outer, inner = film.lines(curves, wide), film.lines(curves, 0.72 * wide)
        return film.blur(outer - 0.42 * inner, soft)

    fade = np.clip((np.abs(film.x) - 0.1) / 0.12, 0, 1)
    total = 0.13 * tube(anatomy.ribs_behind, width, 0.0016)
    total += 0.075 * fade * tube(anatomy.ribs_before, 1.15 * width, 0.0022)
    total += 0.15 * tube(anatomy.clavicles, 1.25 * width, 0.002)
    total += 0.035 * film.blur(film.lines(anatomy.scapulae, 0.018), 0.008)
    column = _below(np.abs(film.x), anatomy.spine_half_width, 0.004)
    phase = film.y / anatomy.vertebra
    discs = 0.72 + 0.28 * np.tanh(3 * np.sin(2 * np.pi * phase) + 1.5)
    pedicles = np.exp(-(((np.abs(film.x) - 0.02) / 0.006) ** 2)) * (np.sin(2 * np.pi * phase) > 0.6)
    windpipe = np.exp(-((film.x / 0.014) ** 2)) * _below(film.y, 0.33, 0.02)
    return total + column * (0.11 * discs + 0.05 * film.blur(pedicles, 0.003)) - 0.07 * windpipe


def _skin_fold(film: _Film, rng) -> np.ndarray:
    """Return a fold of skin over the lung: brightening towards an edge that then ends at once."""
    side = int(rng.choice([RIGHT, LEFT]))
    top, bottom = rng.uniform(0.12, 0.35), rng.uniform(0.5, 0.85)
    x = side * film.x
    start, lean, bow = rng.uniform(0.13, 0.25), rng.uniform(-0.05, 0.3), rng.uniform(-0.12, 0.12)
    along = np.clip((film.y - top) / (bottom - top), -0.5, 1.5)
    edge = start + lean * (bottom - top) * along + bow * along * (1 - along)
    off = x - edge  # positive: outwards, beyond the fold
    inward = np.exp(np.minimum(off, 0) / rng.uniform(0.02, 0.07))
    beyond = _below(off, 0.0, 0.0012)
    window = np.clip(4 * along, 0, 1) * np.clip(4 * (1 - along), 0, 1)
    # Beside the bright edge the eye, and the film's processing, make a dark band.
    band = (1 - beyond) * np.exp(-np.maximum(off, 0) / 0.008)
    return ((inward * beyond - 0.3 * band) * window).astype(np.float32)


def _decoys(film: _Film, difficulty: float, rng) -> np.ndarray:
    """Return folds, wires and tubes: edges and thin lines that are no pleura."""
    total = np.zeros((film.size, film.size), np.float32)
    for _ in range(rng.poisson(0.25 + 1.3 * difficulty)):
        total += rng.uniform(0.07, 0.16) * _skin_fold(film, rng)
    for _ in range(rng.poisson(0.15 + 0.5 * difficulty)):  # wires of the heart monitor
        points = np.stack([np.linspace(-0.6, 0.5, 6), rng.uniform(0.1, 0.95, 6)], axis=1)
        wire = smooth(points, closed=False)
        total += rng.uniform(0.08, 0.2) * film.lines([wire], 0.0022)
    if rng.random() < 0.08 + 0.1 * difficulty:  # a tube with its bright stripe
        side = int(rng.choice([RIGHT, LEFT]))
        points = [(side * 0.5, 0.72), (side * 0.3, 0.6), (side * rng.uniform(0.1, 0.25), 0.3)]
        tube = smooth(points, closed=False)
        total += 0.05 * film.lines([tube], 0.014) + 0.14 * film.lines([tube], 0.002)
    return film.blur(total, 0.0006)


def _expose(film: _Film, total: np.ndarray, anatomy: Anatomy, difficulty: float, rng) -> np.ndarray:
    """Return attenuation to grey levels: scatter, exposure, quantum noise, a soft shoulder."""
    haze = 0.12 + 0.22 * anatomy.fatness
    total = (1 - haze) * total + haze * film.blur(total, 0.06)
    total = total * rng.uniform(0.92, 1.12) * (1 - 0.22 * anatomy.fatness) + (
        0.16 * anatomy.fatness * film.blur(np.minimum(total * 3, 1), 0.01)
    )
    sigma = (0.006 + 0.016 * difficulty) * rng.uniform(0.7, 1.3) * (film.size / FULL_SIZE) ** 0.5
    total = total + sigma * rng.standard_normal(total.shape, dtype=np.float32) * (
        0.5 + np.clip(total, 0, 1)
    )
    gamma = rng.uniform(0.85, 1.25)
    bright = np.clip(total, 0, None) ** gamma
    return np.clip(255 * np.tanh(1.25 * bright) / np.tanh(1.45), 0, 255)


def _mark(film: _Film, grey: np.ndarray, rng) -> np.ndarray:
    """Return what the technician leaves: a side letter, sometimes words and shutters."""
    out = np.round(grey).astype(np.uint8)
    size = film.size
    if rng.random() < 0.12:
        inset = np.array([[0, 0], [1, 0], [1, 1], [0, 1]]) + rng.uniform(-0.05, 0.05, (4, 2))
        inset = np.clip(0.5 + (inset - 0.5) * 0.93, -0.1, 1.1) * size
        shutter = np.zeros_like(out)
        cv2.fillConvexPoly(shutter, inset.round().astype(np.int32), 255, cv2.LINE_AA)
        out = cv2.min(out, shutter)
    font, weight = cv2.FONT_HERSHEY_SIMPLEX, max(1, round(size / 256))
    at = (np.array([0.9, 0.07]) + rng.normal(0, 0.015, 2)) * size
    cv2.putText(out, "L", tuple(map(int, at)), font, size / 650, 245, weight, cv2.LINE_AA)
    if rng.random() < 0.35:
        at = (np.array([0.06, 0.06]) + rng.normal(0, 0.015, 2)) * size
        word = str(rng.choice(["AP", "PORTABLE", "SUPINE"]))
        cv2.putText(out, word, tuple(map(int, at)), font, size / 1100, 225, weight, cv2.LINE_AA)
    return out


def _chest(film: _Film, anatomy: Anatomy, rng) -> tuple[np.ndarray, np.ndarray]:
    """Return the attenuation of a chest without lung vessels, and where lung is seen, 0..1."""
    torso, arms = film.fill([anatomy.torso]), film.fill(anatomy.arms)
    lung = _cavity(film, anatomy, RIGHT) | _cavity(film, anatomy, LEFT)
    air = film.depth((lung > 127).astype(np.uint8), 0.075)
    soft_lung = film.blur(lung, 0.002)
    heart = film.blur(film.fill([anatomy.mediastinum]), 0.004)
    heart *= 0.25 + 0.75 * _below(film.y, anatomy.lungs[LEFT].base_y - 0.05, 0.014)

    total = 0.6 * film.depth((torso > 127).astype(np.uint8), 0.16)
    total = np.maximum(total, 0.5 * film.depth((arms > 127).astype(np.uint8), 0.09))
    total += 0.15 * film.blur(film.fill(anatomy.breasts), 0.006) * rng.uniform(0.3, 1.0)
    total += 0.14 * (1 - _below(film.y, 0.78, 0.06)) * (torso > 0)
    total -= anatomy.air * (0.15 * soft_lung + 0.3 * soft_lung * air)
    total += 0.2 * heart - 0.12 * film.blur(film.fill([anatomy.bubble]), 0.004)
    total += _bones(film, anatomy) * film.blur(torso, 0.002)
    total += (0.018 + 0.022 * soft_lung) * _noise(film, rng, 0.12) * (torso > 0)
    return total, soft_lung


def draw(
    anatomy: Anatomy, rng: np.random.Generator, *, size: int, difficulty: float, area_px: float
) -> Phantom:
    """Return one radiograph of a patient, `area_px` (of 1024²; 0: none) of it pneumothorax.

    `difficulty` 0..1 lowers the contrast of the air (0.16 to 0.035, where 1 is about white) and of
    the pleural line (0.16 to 0.05), raises the noise from 0.6 % to 2.2 % of white, and the mean
    number of skin folds from 0.25 to 1.55 an image and of wires from 0.15 to 0.65. The same
    generator draws the same chest with air and without.
    """
    rng, of_air, of_decoys, of_film = rng.spawn(4)
    film = _project(anatomy, size, rng)
    total, lung = _chest(film, anatomy, rng)
    markings = _markings(film, anatomy, rng)
    parts: tuple[np.ndarray, ...] = ()
    mask = np.zeros((size, size), np.uint8)
    visible = lung
    if area_px > 0:
        regions, line = _pockets(film, anatomy, area_px, of_air)
        parts = _split(regions, of_air)
        mask = np.bitwise_or.reduce(parts)
        gone = film.blur(mask * np.uint8(255), 0.0012)
        visible = lung * (1 - gone)
        total -= (0.16 - 0.125 * difficulty) * gone
        seen = 0.6 + 0.4 * _noise(film, of_air, 0.1).clip(-1, 1)  # the line comes and goes
        total += (0.16 - 0.11 * difficulty) * line * seen
        # What has collapsed is denser than it was.
        total += 0.25 * float(mask.sum()) / max(1.0, float(lung.sum())) * visible
    total += markings * visible
    total += _decoys(film, difficulty, of_decoys) * film.fill([anatomy.torso]).astype(bool)
    grey = _expose(film, np.maximum(total, 0).astype(np.float32), anatomy, difficulty, of_film)
    return Phantom(image=_mark(film, grey, of_film), mask=mask, parts=parts)
