"""Histograms of an image's mean map under many weightings of its members.

An ensemble's search needs the histograms of hundreds of means of the same maps. A trained network's
maps are 0 almost everywhere, and where all members are 0 every mean is. So each map is cut into
bands of a few rows, once, and a band's columns of zeros are dropped; each mean is then computed,
resized and counted on the columns left, several weightings at a time. The counts are those of
`maps.mean` and `maps.statistics`, exactly: a band carries the rows above and below it, columns are
kept with their neighbours, and where OpenCV would resize a band by other coefficients than the
whole map, the whole map is the one band.
"""

from __future__ import annotations

import json
import math
import os
import tempfile
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import lru_cache
from typing import IO, NamedTuple

import cv2
import numpy as np

from kernel_lib.artifacts import maps
from kernel_lib.data import rle
from kernel_lib.postprocess.histograms import CV2_EXACT_PX

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

Shape = tuple[int, int]  # (height, width)
Weights = tuple[float, ...]

BAND = 8  # rows of a band, roughly
STORE_BYTES = 16 << 30  # of the temporary file; 20 runs' maps of 12,047 images take 4 GB
_SIDE = 2  # periods of padding on each side
_AT_ONCE_PX = 1 << 19  # map pixels of the means that are computed together
_MAX_TOTAL_WEIGHT = 128  # up to which 2 · 255 · total + total fits into uint16


class _Axis(NamedTuple):
    """How `size` pixels of a map become `target` pixels of an image.

    `period` pixels of the map become a whole number of image pixels, after which OpenCV's
    coefficients repeat; bit for bit only if they are multiples of 1/2^n, else `period` is `size`.
    """

    size: int
    target: int
    period: int

    @classmethod
    def of(cls, size: int, target: int) -> _Axis:
        common = math.gcd(size, target)
        ratio = target // common
        # Shrinking is not cut: OpenCV may average more than the two nearest pixels.
        repeats = target >= size and not ratio & (ratio - 1)
        return cls(size, target, size // common if repeats else size)

    @property
    def border(self) -> int:
        """Extra map pixels on each side of a part; 0 if the map is not cut, or not enlarged."""
        return self.period if self.period < self.size and self.size < self.target else 0

    def resized(self, px: int) -> int:
        """Return how many image pixels `px` map pixels, of whole periods, become."""
        return px * self.target // self.size


@dataclass(frozen=True)
class _Grid:
    """How maps of one size are cut for images of one size."""

    rows: _Axis
    columns: _Axis
    band: int  # rows of a band; it divides the size

    @property
    def n_bands(self) -> int:
        return self.rows.size // self.band

    @property
    def is_whole(self) -> bool:
        return self.band == self.rows.size

    @property
    def resizes(self) -> bool:
        return (self.rows.size, self.columns.size) != (self.rows.target, self.columns.target)


@lru_cache(maxsize=64)
def _grid(size: Shape, target: Shape) -> _Grid:
    """Return how to cut a map of (h, w) pixels that is resized to (H, W)."""
    rows, columns = map(_Axis.of, size, target)
    whole = _Grid(*(_Axis(s, t, s) for s, t in zip(size, target, strict=True)), size[0])
    if rows.period == rows.size or columns.period == columns.size:
        return whole
    n = rows.size // rows.period
    band = rows.period * min(
        (d for d in range(1, n) if n % d == 0), key=lambda d: abs(d * rows.period - BAND)
    )
    grid = _Grid(rows, columns, band)
    # OpenCV resizes by other code for other processors and sizes: try it.
    noise = np.random.default_rng(0).integers(1, 256, size, np.uint8)
    counts = next(_counts(_cut([noise], (0,), grid), np.ones((1, 1)), None))
    expected = np.bincount(maps.at_shape(noise, target).ravel(), minlength=256)
    return grid if np.array_equal(counts[0], expected) else whole


@dataclass(frozen=True)
class _CutMaps:
    """The columns of bands in which any of several maps of one size is above 0."""

    members: tuple[int, ...]  # whose maps these are
    grid: _Grid
    # (bands, periods) bool: which columns are kept, a period of them at a time. Where bands are
    # resized there are two periods more on each side: one repeats the map's edge, as OpenCV does,
    # and one of zeros parts it from the next columns kept.
    kept: np.ndarray
    levels: np.ndarray  # uint8 (members, rows, columns); rows are a band's with its borders


@dataclass(frozen=True)
class Packed:
    """The maps of one image by all members, without what is 0 in all of them."""

    shape: Shape  # (H, W) of the image
    sizes: tuple[Shape, ...]  # of each member's map
    by_size: Mapping[Shape, _CutMaps]  # by a mean's size: the maps of that size, or resized to it

    def to_bytes(self) -> bytes:
        """Return what `from_bytes` reads: a line of JSON with all shapes, then all arrays."""
        cuts, parts = [], []
        for size, cut in self.by_size.items():
            arrays = [maps.encode_blocks(a.view(np.uint8).ravel()) for a in (cut.kept, cut.levels)]
            cuts.append({"size": size, "members": cut.members, "bytes": [*map(len, arrays)],
                         "kept": cut.kept.shape, "levels": cut.levels.shape})  # fmt: skip
            parts += arrays
        head = {"shape": self.shape, "sizes": self.sizes, "cuts": cuts}
        return b"".join([json.dumps(head).encode(), b"\n", *parts])

    @classmethod
    def from_bytes(cls, content: bytes) -> Packed:
        start = content.index(b"\n") + 1
        head, by_size = json.loads(content[:start]), {}
        shape, sizes = tuple(head["shape"]), tuple(map(tuple, head["sizes"]))

        def array(of: Sequence[int], n_bytes: int) -> np.ndarray:
            nonlocal start
            start += n_bytes
            pixels = maps.decode_blocks(content[start - n_bytes : start], math.prod(of))
            return pixels.reshape(of)

        for cut in head["cuts"]:
            size, members = tuple(cut["size"]), tuple(cut["members"])
            kept, levels = map(array, (cut["kept"], cut["levels"]), cut["bytes"])
            by_size[size] = _CutMaps(members, _grid(size, shape), kept.view(bool), levels)
        return cls(shape, sizes, by_size)


Place = tuple[int, int]  # offset and length in the file, bytes


class Store:
    """Packed maps of many images in a temporary file, deleted with the process; see `open`.

    Forked processes may share it: pass what `take_new` returns in one to `add` in the others.
    Without `fcntl` (Windows) nothing is kept.
    """

    def __init__(self) -> None:
        self._file: IO[bytes] | None = None
        self._places: dict[int, Place] = {}
        self._news: dict[int, Place] = {}
        self._lock = threading.Lock()

    @property
    def is_open(self) -> bool:
        return self._file is not None

    def open(self) -> None:
        """Keep what is put from now on."""
        if self._file is None and fcntl is not None:
            self._file = tempfile.TemporaryFile(buffering=0)  # noqa: SIM115

    def close(self) -> None:
        """Drop everything."""
        if self._file is not None:
            self._file.close()
        self._file, self._places, self._news = None, {}, {}

    def get(self, key: int) -> Packed | None:
        if key not in self._places:
            return None
        offset, length = self._places[key]
        return Packed.from_bytes(os.pread(self._file.fileno(), length, offset))

    def put(self, key: int, packed: Packed) -> None:
        """Keep an image, unless the file or the disk is full: it is then packed again when used."""
        if self._file is None:
            return
        content = packed.to_bytes()
        with self._lock, suppress(OSError), self._locked() as handle:
            offset = os.fstat(handle).st_size
            fits = offset + len(content) <= STORE_BYTES
            if fits and os.pwrite(handle, content, offset) == len(content):
                self._places[key] = self._news[key] = offset, len(content)

    def take_new(self) -> dict[int, Place]:
        """Return the places of what this process has put since the last call."""
        with self._lock:
            found, self._news = self._news, {}
        return found

    def add(self, places: Mapping[int, Place]) -> None:
        """Take note of what another process has put."""
        self._places.update(places)

    @contextmanager
    def _locked(self) -> Iterator[int]:
        """Keep other processes from writing; yield the file's handle."""
        handle = self._file.fileno()
        fcntl.lockf(handle, fcntl.LOCK_EX)  # per process; forked ones share all other locks
        try:
            yield handle
        finally:
            fcntl.lockf(handle, fcntl.LOCK_UN)


def pack(levels: Sequence[np.ndarray], shape: Shape) -> Packed:
    """Pack the maps of one image, uint8, one per member; `shape` is the (H, W) of the image."""
    sizes = tuple(m.shape for m in levels)
    by_size = {}
    for size in set(sizes):
        members = tuple(i for i, s in enumerate(sizes) if math.prod(s) <= math.prod(size))
        of_size = [maps.at_shape(levels[i], size) for i in members]
        by_size[size] = _cut(of_size, members, _grid(size, shape))
    return Packed(shape, sizes, by_size)


def _cut(levels: Sequence[np.ndarray], members: tuple[int, ...], grid: _Grid) -> _CutMaps:
    rows, columns = grid.rows, grid.columns
    highest = levels[0].copy()
    for level_map in levels[1:]:
        np.maximum(highest, level_map, out=highest)
    above = (highest > 0).view(np.uint8)
    if grid.resizes:  # a pixel of the image depends on the neighbours of its pixel in the map
        above = cv2.dilate(above, np.ones((3, 3), np.uint8))
    above = np.bitwise_or.reduce(above.reshape(grid.n_bands, grid.band, -1), axis=1)
    above = np.bitwise_or.reduce(above.reshape(grid.n_bands, -1, columns.period), axis=2)
    side = _SIDE if columns.border else 0
    kept = np.zeros((grid.n_bands, above.shape[1] + 2 * side), bool)
    kept[:, side : side + above.shape[1]] = above
    kept[:, :side], kept[:, side + above.shape[1] :] = above[:, :1], above[:, -1:]
    # Where each kept pixel is in the map: beyond an edge it is the edge's, twice beyond it is 0.
    band, column = np.divmod(
        np.flatnonzero(kept.repeat(columns.period, axis=1)),
        columns.size + 2 * side * columns.period,
    )
    column -= side * columns.period
    row = np.arange(-rows.border, grid.band + rows.border)[:, None] + grid.band * band
    index = row.clip(0, rows.size - 1) * columns.size + column.clip(0, columns.size - 1)
    cut = np.stack([level_map.ravel().take(index) for level_map in levels])
    if side:
        cut[:, :, (column < -columns.border) | (column >= columns.size + columns.border)] = 0
    return _CutMaps(members, grid, kept, cut)


def histograms(packed: Packed, weightings: Sequence[Weights], truth: rle.Runs) -> np.ndarray:
    """Return the histograms of an image's mean maps, of all and of its ground-truth pixels.

    `weightings` are K tuples of a weight per member, 0 to leave it out.
    Shapes: (K, 2, 256) int32, as `maps.statistics` counts the `maps.mean` of these weights.
    """
    found = np.zeros((len(weightings), 2, 256), np.int32)
    pixels = np.array([math.prod(packed.shape), rle.area(truth)])
    by_size: dict[Shape, list[int]] = {}
    for k, weights in enumerate(weightings):
        used = [size for size, weight in zip(packed.sizes, weights, strict=True) if weight]
        by_size.setdefault(max(used, key=math.prod), []).append(k)
    mask = rle.mask_of(truth, packed.shape) if len(truth) else None
    for size, rows in by_size.items():
        cut = packed.by_size[size]
        if cut.kept.any():
            inside = None if mask is None else _inside(cut, mask)
            weights = np.array([weightings[k] for k in rows], np.float64)[:, cut.members]
            found[rows] = list(_counts(cut, weights, inside))
    found[..., 0] = 0  # the rest: all pixels of dropped columns are of level 0
    found[..., 0] = pixels - found.sum(axis=2)
    return found


def _inside(cut: _CutMaps, mask: np.ndarray) -> np.ndarray:
    """Return the flat indices (n,) of ground-truth pixels in the resized cut maps."""
    grid = cut.grid
    edge = _SIDE * grid.columns.resized(grid.columns.border)
    bordered = np.zeros((mask.shape[0], mask.shape[1] + 2 * edge), np.uint8)
    bordered[:, edge : edge + mask.shape[1]] = mask
    periods = bordered.reshape(grid.n_bands, -1, *_periods(cut, bordered.shape[1]))
    return np.flatnonzero(periods.transpose(1, 0, 2, 3)[:, cut.kept])


def _periods(cut: _CutMaps, width: int) -> tuple[int, int]:
    """Return how many periods `width` pixels hold, and the width of one."""
    n = cut.kept.shape[1]
    return n, width // n


def _counts(cut: _CutMaps, weights: np.ndarray, inside: np.ndarray | None) -> Iterator[np.ndarray]:
    """Yield a pair of histograms (2, 256) per weighting (K, M): all and ground-truth pixels."""
    grid, levels = cut.grid, cut.levels
    at_once = max(1, _AT_ONCE_PX // levels[0].size)
    top = grid.rows.resized(grid.rows.border)
    edges = _edges(cut)
    for first in range(0, len(weights), at_once):
        some = weights[first : first + at_once]
        means = _means(levels.reshape(len(levels), -1), some).reshape(-1, *levels.shape[1:])
        for mean in _resized(grid, means):
            mean = mean[top : len(mean) - top]
            counts = np.zeros((2, 256), np.int64)
            counts[0] = _by_level(mean)
            if len(edges):
                counts[0] -= _by_level(np.ascontiguousarray(mean[:, edges]))
            if inside is not None:
                counts[1] = _by_level(mean.reshape(-1).take(inside)[None])
            yield counts


def _edges(cut: _CutMaps) -> np.ndarray:
    """Return which pixels of a row are not the image's: those beyond the edges of the map."""
    grid = cut.grid
    if not grid.columns.border:
        return np.zeros(0, np.intp)
    edge = np.zeros(cut.kept.shape, bool)
    edge[:, :_SIDE] = edge[:, -_SIDE:] = True
    px = grid.columns.resized(grid.columns.period)
    return np.flatnonzero(edge[cut.kept].repeat(px))


def _resized(grid: _Grid, levels: np.ndarray) -> np.ndarray:
    """Return K means (K, rows, columns) as pixels of the image, the borders among them."""
    k, height, width = levels.shape
    if not grid.resizes:
        return levels
    if grid.is_whole:
        target = (grid.rows.target, grid.columns.target)
        return np.stack([maps.at_shape(level_map, target) for level_map in levels])
    size = (grid.columns.resized(width), grid.rows.resized(height))
    levels = levels.reshape(k * height, width)
    resized = cv2.resize(levels, (size[0], k * size[1]), interpolation=cv2.INTER_LINEAR)
    return resized.reshape(k, size[1], size[0])


def _by_level(levels: np.ndarray) -> np.ndarray:
    """Return the histogram (256,) of uint8 levels (h, w)."""
    if levels.size >= CV2_EXACT_PX or not levels.size:
        return np.bincount(levels.ravel(), minlength=256)
    return cv2.calcHist([levels], [0], None, [256], [0, 256]).ravel().astype(np.int64)


def _means(levels: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Return the weighted means (K, P) uint8 of levels (M, P), exactly as `maps.mean` rounds them.

    Whole weights are summed as integers, others left to `maps.mean`. Only means halfway between two
    levels could differ: `maps.mean` divides by the largest weight, which is exact, and so rounds
    them to even, if that is a power of two; otherwise they are computed by it.
    """
    found = np.empty((len(weights), levels.shape[1]), np.uint8)
    totals = weights.sum(axis=1)
    whole = ~((weights < 0) | (weights % 1 != 0)).any(axis=1) & (totals <= _MAX_TOTAL_WEIGHT)
    for k in np.flatnonzero(~whole):
        found[k] = _exact(levels, weights[k])
    doubled = np.multiply(levels, 2, dtype=np.uint16)
    for total in np.unique(totals[whole]).astype(int).tolist():
        rows = np.flatnonzero(whole & (totals == total))
        some = weights[rows].astype(np.uint16)
        # The weightings of a greedy draw differ in one member: sum what they share once.
        shared = some.min(axis=0)
        base = _add(np.full(levels.shape[1], total, np.uint16), doubled, shared)
        for k, own in zip(rows.tolist(), some - shared, strict=True):
            twice = _add(base, doubled, own)  # 2 · sum + total
            mean = twice // np.uint16(2 * total)
            found[k] = mean
            if total % 2 == 0:
                halfway = mean * np.uint16(2 * total) == twice
                largest = int(weights[k].max())
                if largest & (largest - 1):
                    halfway = np.flatnonzero(halfway)
                    found[k, halfway] = _exact(levels[:, halfway], weights[k])
                else:
                    found[k] -= halfway & (found[k] & 1)  # was rounded up: make it even
    return found


def _add(sums: np.ndarray, levels: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Return sums (P,) uint16 plus levels (M, P) uint16 by whole weights (M,)."""
    for member, weight in enumerate(weights.tolist()):
        if weight:
            sums = sums + (levels[member] if weight == 1 else levels[member] * np.uint16(weight))
    return sums


def _exact(levels: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Return the mean (P,) uint8 of levels (M, P) by `maps.mean`."""
    used = np.flatnonzero(weights)
    return maps.mean([levels[[m]] for m in used], weights[used])[0]
