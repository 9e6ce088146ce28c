"""The bodies of phantom patients: outlines and trees in unit coordinates, without a pixel.

A body lives in its own frame: x runs from the midline, negative to the viewer's left (the
patient's right), y from the top of the film (0) to its bottom (1). One unit is the film's width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

N_RIBS = 10
RIGHT, LEFT = -1, 1  # of the patient: the viewer's left and right
HILUM_Y = 0.42
N_GENERATIONS = 6  # of vessels


@dataclass(frozen=True)
class Lung:
    """One lung: its closed outline, and the wall from apex to costophrenic angle."""

    outline: np.ndarray  # (n, 2)
    wall: np.ndarray  # (m, 2), top to bottom
    apex_y: float
    base_y: float


@dataclass(frozen=True)
class Anatomy:
    """What stays the same in all images of a patient."""

    lungs: dict[int, Lung]  # by side
    mediastinum: np.ndarray
    torso: np.ndarray
    arms: list[np.ndarray]
    ribs_behind: list[np.ndarray]
    ribs_before: list[np.ndarray]
    clavicles: list[np.ndarray]
    scapulae: list[np.ndarray]
    breasts: list[np.ndarray]
    bubble: np.ndarray  # gas in the stomach
    vessels: list[np.ndarray]  # by generation, thick to thin: each (n, 7, 2)
    rib_width: float
    spine_half_width: float
    vertebra: float  # height of one
    fatness: float  # 0 lean .. 1 heavy: flattens the contrast
    air: float  # how dark the lungs are, 0.8 .. 1.2
    scale: float
    side: int  # where this patient's pneumothoraces appear


def smooth(points: Sequence[Sequence[float]], per_piece: int = 10, *, closed: bool) -> np.ndarray:
    """Return the curve through the points (Catmull-Rom), (n, 2) float64."""
    knots = np.asarray(points, dtype=np.float64)
    if closed:
        before, after = np.roll(knots, 1, axis=0), np.roll(knots, -1, axis=0)
        beyond = np.roll(knots, -2, axis=0)
    else:
        padded = np.vstack([2 * knots[0] - knots[1], knots, 2 * knots[-1] - knots[-2]])
        before, after, beyond = padded[:-3], padded[2:-1], padded[3:]
        knots = knots[:-1]
    t = np.linspace(0, 1, per_piece, endpoint=False)[None, :, None]
    p0, p1, p2, p3 = (k[:, None, :] for k in (before, knots, after, beyond))
    curve = 0.5 * (
        2 * p1
        + (p2 - p0) * t
        + (2 * p0 - 5 * p1 + 4 * p2 - p3) * t**2
        + (3 * p1 - p0 - 3 * p2 + p3) * t**3
    )
    curve = curve.reshape(-1, 2)
    return curve if closed else np.vstack([curve, np.asarray(points[-1])[None]])


def _bezier(start, control, end, n: int = 24) -> np.ndarray:
    t = np.linspace(0, 1, n)[:, None]
    start, control, end = (np.asarray(p, dtype=np.float64) for p in (start, control, end))
    return (1 - t) ** 2 * start + 2 * t * (1 - t) * control + t**2 * end


def _lung(side: int, rng: np.random.Generator, width: float, apex: float, base: float) -> Lung:
    """Return one lung; the right dome of the diaphragm stands higher than the left."""
    dome = base - rng.uniform(0.055, 0.095) - (0.02 if side == RIGHT else 0.0)

    def y(height: float) -> float:
        return apex + height * (base - apex)

    def jitter() -> float:
        return rng.normal(0, 0.004)

    wall = smooth(
        [
            (0.052, y(0.13)),
            (0.075 + jitter(), y(0.035)),
            (0.125 + jitter(), y(0.0)),
            (width * 0.57, y(0.035)),
            (width * 0.74 + jitter(), y(0.15)),
            (width * 0.875 + jitter(), y(0.33)),
            (width * 0.96 + jitter(), y(0.56)),
            (width + jitter(), y(0.8)),
            (width - 0.002, y(1.0)),
        ],
        closed=False,
    )
    floor = smooth(
        [
            (width - 0.002, base),
            (width * 0.86, base - (base - dome) * 0.55),
            (width * 0.62, dome + 0.004),
            (width * 0.42, dome),
            (0.05, dome + 0.03),
        ],
        closed=False,
    )
    inner = smooth(
        [(0.05, dome + 0.03), (0.04, 0.45), (0.042, 0.3), (0.052, y(0.13))], closed=False
    )
    flip = np.array([side, 1.0])
    outline = np.vstack([wall[:-1], floor[:-1], inner[:-1]]) * flip
    return Lung(outline=outline, wall=wall * flip, apex_y=apex, base_y=base)


def _mediastinum(rng: np.random.Generator, base: float) -> np.ndarray:
    heart = rng.uniform(0.85, 1.2)
    knob = rng.uniform(0.9, 1.25)
    low = base - 0.76  # the heart stands on the diaphragm
    points = [
        (-0.04, -0.05), (-0.04, 0.12), (-0.046, 0.25), (-0.05, 0.36),
        (-0.062 * heart, 0.46 + low), (-0.083 * heart, 0.56 + low), (-0.08 * heart, 0.65 + low),
        (-0.05, 0.75 + low), (0.06, 0.77 + low), (0.15 * heart, 0.755 + low),
        (0.185 * heart, 0.7 + low), (0.172 * heart, 0.62 + low), (0.125 * heart, 0.51 + low),
        (0.078, 0.41), (0.06, 0.35), (0.064 * knob, 0.29), (0.058 * knob, 0.25),
        (0.042, 0.19), (0.038, 0.1), (0.04, -0.05),
    ]  # fmt: skip
    return smooth(points, closed=True)


def _torso(rng: np.random.Generator, width: float, fatness: float) -> np.ndarray:
    neck = rng.uniform(0.075, 0.1)
    shoulder = rng.uniform(0.07, 0.12)
    flank = width + 0.06 + 0.07 * fatness
    half = [
        (neck, -0.06), (neck + 0.01, 0.0), (neck + 0.07, 0.045), (0.3, shoulder),
        (0.43, shoulder + 0.05), (0.53, shoulder + 0.13), (0.56, 0.32), (flank + 0.08, 0.36),
        (flank + 0.015, 0.44), (flank, 0.6), (flank + 0.005, 0.8), (flank + 0.02, 1.1),
    ]  # fmt: skip
    curve = smooth(half, closed=False)
    return np.vstack([curve, (curve * [-1, 1])[::-1]])


def _ribs(lung: Lung, side: int, rng: np.random.Generator) -> tuple[list, list]:
    """Return the ribs of one side: the bands behind, then those that slope to the sternum."""
    behind, before = [], []
    height = lung.base_y - lung.apex_y
    slope = rng.uniform(0.8, 1.25)
    for k in range(N_RIBS):
        at = np.interp(k, [0, N_RIBS - 1], [0.32, 0.985])
        outer = lung.wall[round(at * (len(lung.wall) - 1))]
        reach = abs(outer[0]) + 0.008
        drop = slope * (0.02 + 0.012 * k) * height / 0.62
        start = (side * 0.03, outer[1] - drop)
        control = (side * reach * 0.72, start[1] - 0.02 - 0.018 * slope)
        behind.append(_bezier(start, control, (side * reach, outer[1])))
        if k < 7:
            fall = slope * (0.085 + 0.014 * k)
            end = (side * (0.075 + 0.012 * k), outer[1] + fall)
            control = (side * reach * 0.92, outer[1] + fall * 0.85)
            before.append(_bezier((side * reach, outer[1]), control, end))
    return behind, before


def _vessels(rng: np.random.Generator, width: float) -> list[np.ndarray]:
    """Return trees from both hila outward, each vessel forking; the lower lobes' are longer."""
    angle = np.tile(np.linspace(-1.35, 1.45, 8), 2)
    side = np.repeat([RIGHT, LEFT], 8)
    start = np.stack([side * 0.055, HILUM_Y + 0.02 * angle + rng.normal(0, 0.008, 16)], axis=1)
    length = (0.075 + 0.02 * (angle > 0)) * width / 0.33 * rng.uniform(0.8, 1.15, 16)
    angle = angle + rng.normal(0, 0.1, 16)
    angle = np.where(side == LEFT, angle, np.pi - angle)
    generations = []
    for _ in range(N_GENERATIONS):
        n, steps = len(angle), 6
        course = angle[:, None] + np.cumsum(rng.normal(0, 0.09, (n, steps)), axis=1)
        step = length[:, None, None] / steps * np.stack([np.cos(course), np.sin(course)], axis=2)
        path = start[:, None, :] + np.concatenate(
            [np.zeros((n, 1, 2)), np.cumsum(step, axis=1)], axis=1
        )
        generations.append(path)
        spread = rng.uniform(0.25, 0.6, (n, 1)) * rng.uniform(0.5, 1.2, (n, 2)) * [-1, 1]
        angle = (course[:, -1:] + spread).ravel()
        start = np.repeat(path[:, -1], 2, axis=0)
        length = np.repeat(length, 2) * rng.uniform(0.68, 0.92, 2 * n)
    return generations


def draw_anatomy(rng: np.random.Generator) -> Anatomy:
    """Return a patient's body; the generator decides everything."""
    width = rng.uniform(0.285, 0.345)
    apex, base = rng.uniform(0.09, 0.15), rng.uniform(0.7, 0.82)
    fatness = float(rng.beta(1.6, 2.2))
    lungs = {s: _lung(s, rng, width * rng.uniform(0.97, 1.03), apex, base) for s in (RIGHT, LEFT)}
    ribs = [_ribs(lungs[s], s, rng) for s in (RIGHT, LEFT)]
    droop, thick = rng.uniform(-0.01, 0.035), rng.uniform(0.0, 0.02)
    mirrored = [np.array([s, 1.0]) for s in (RIGHT, LEFT)]
    clavicle = smooth(
        [(0.03, apex + 0.075 + droop), (0.1, apex + 0.05 + droop), (0.2, apex + 0.02),
         (0.29, apex - 0.005), (0.38, apex - 0.02)], closed=False)  # fmt: skip
    scapula = smooth(
        [
            (width * 0.8 + thick, apex + 0.05),
            (width * 0.93 + thick, apex + 0.13),
            (width * 1.03 + thick, apex + 0.24),
            (width * 1.1, apex + 0.32),
        ],
        closed=False,
    )
    y = base - rng.uniform(-0.02, 0.06)
    breast = smooth(
        [(0.07, y - 0.03), (0.13, y + 0.01), (0.21, y + 0.02), (0.3, y - 0.02),
         (0.36, y - 0.12), (0.3, y - 0.22), (0.16, y - 0.18)], closed=True)  # fmt: skip
    centre = np.array([rng.uniform(0.12, 0.2), base + rng.uniform(0.02, 0.08)])
    around = np.linspace(0, 2 * np.pi, 24, endpoint=False)
    ring = np.stack([np.cos(around), 0.7 * np.sin(around)], axis=1)
    half = width * 1.19
    arm = smooth([(half + 0.1, 0.3), (half + 0.085, 0.5), (half + 0.1, 0.8), (half + 0.2, 1.1),
                  (half + 0.5, 1.1), (half + 0.4, 0.3)], closed=True)  # fmt: skip
    return Anatomy(
        lungs=lungs,
        mediastinum=_mediastinum(rng, base),
        torso=_torso(rng, width, fatness),
        arms=[arm * m for m in mirrored],
        ribs_behind=[rib for behind, _ in ribs for rib in behind],
        ribs_before=[rib for _, before in ribs for rib in before],
        clavicles=[clavicle * m for m in mirrored],
        scapulae=[scapula * m for m in mirrored],
        breasts=[breast * m for m in mirrored] if rng.random() < 0.4 else [],
        bubble=centre + ring * rng.uniform(0.0, 0.05) * (1 + 0.1 * rng.normal(size=(24, 1))),
        vessels=_vessels(rng, width),
        rib_width=rng.uniform(0.016, 0.022),
        spine_half_width=rng.uniform(0.03, 0.038),
        vertebra=rng.uniform(0.042, 0.052),
        fatness=fatness,
        air=rng.uniform(0.85, 1.15),
        scale=rng.uniform(0.9, 1.12),
        side=int(rng.choice([RIGHT, LEFT])),
    )
