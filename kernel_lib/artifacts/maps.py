"""Probability maps as uint8 levels (0–255), the input to all post-processing.

A model's TTA views are averaged as logits and models as probabilities, in float; quantised to
uint8, round(255 · p), at network size; resized bilinearly to image size; then comes the rule.
Out-of-fold, validation, inference and viewer all come through here. No torch in this file: finished
maps are searched and combined on machines without it.
"""

from __future__ import annotations

import json
import struct
import zipfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
from numpy.typing import ArrayLike

from kernel_lib import storage
from kernel_lib.data import pictures, rle
from kernel_lib.errors import InputError
from kernel_lib.postprocess import histograms
from kernel_lib.postprocess.histograms import Statistics

_META, _LABELS, _VIEWS = "meta.json", "labels.json", "views.json"
_FIX = "delete it and run its stage again"
_MAP, _PNG = ".map", ".png"  # endings of a map's member: as written, and in older archives
_SIZE = struct.Struct("<II")  # height, width
_BLOCK = np.dtype("V16")  # 16 pixels in a row; as one item it is copied faster than as 16
# Per zip entry. The largest map, without an empty block, and its bits.
_MAX_BYTES = pictures.MAX_PIXELS + (1 << 20)


class Prediction(NamedTuple):
    """The prediction of one fold's models for one image."""

    levels: np.ndarray | None  # (S, S) uint8 map; None from a classifier
    label: float | None = None  # probability 0–1 of a pneumothorax; None without a label head
    disagreement: float | None = None  # 0–1, of the views' maps; None with a single view


def numbers(prob: ArrayLike, ids: Sequence[str] = ()) -> np.ndarray:
    """Return map or label probabilities as an array, all finite.

    Shape: any; (B, ...) if B `ids` are given, for the error to name bad images.
    Raises: FloatingPointError where one is not a finite number.
    """
    prob = np.asarray(prob)
    finite = np.isfinite(prob)
    if not finite.all():
        of = ""
        if ids:
            good = finite.reshape(len(ids), -1).all(axis=1)
            of = f" of {', '.join(i for i, ok in zip(ids, good, strict=True) if not ok)}"
        raise FloatingPointError(
            f"the network's probabilities{of} are not finite: its weights are broken, or float16 "
            "overflowed; try -p PRECISION float32, or an earlier checkpoint"
        )
    return prob


def quantise(prob: ArrayLike, ids: Sequence[str] = ()) -> np.ndarray:
    """Return probabilities 0–1 of any shape as uint8 levels, round(255 · p).

    Raises: FloatingPointError as `numbers` does: NaN would otherwise pass as an empty map.
    """
    scaled = numbers(prob, ids).astype(np.float32, copy=False) * 255
    return np.rint(scaled).astype(np.uint8)


def mean(levels: Sequence[np.ndarray], weights: Sequence[float] | None = None) -> np.ndarray:
    """Average maps of several members as probabilities, in float, to one (S, S) uint8 map.

    Maps of networks of different sizes are first brought bilinearly to the largest.
    Raises: ValueError where a weight is no number above 0.
    """
    if len(levels) == 1:
        return levels[0]
    size = max((m.shape for m in levels), key=lambda shape: shape[0] * shape[1])
    total = np.zeros(size, np.float64)
    # Use float64: int × uint8 wraps at 256. Divide by the maximum: a sum might overflow.
    weights = np.array([1.0] * len(levels) if weights is None else weights, np.float64)
    if not ((weights > 0) & np.isfinite(weights)).all():
        raise ValueError(f"the weights {weights.tolist()} are not all numbers above 0")
    weights = weights / weights.max()
    for level_map, weight in zip(levels, weights, strict=True):
        total += weight * at_shape(level_map, size)
    return np.rint(total / weights.sum()).astype(np.uint8)


def at_shape(levels: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """Return a map resized bilinearly to (H, W), uint8; the same array if it has that shape."""
    height, width = shape
    if levels.shape == (height, width):
        return levels
    return cv2.resize(levels, (width, height), interpolation=cv2.INTER_LINEAR)


def statistics(
    levels: np.ndarray, mask_rle: str, shape: tuple[int, int], label: float | None = None
) -> Statistics:
    """Return a map's histograms, overall and inside the true mask, at the image's own size.

    `label` is the image's probability of a pneumothorax, where a model predicts one.
    """
    level = None if label is None else int(quantise(label))
    return histograms.statistics(at_shape(levels, shape), rle.decode(mask_rle, shape), level)


def encode(levels: np.ndarray) -> bytes:
    """Return a map (H, W) uint8 as its size and its blocks of 16 pixels that are not all 0.

    Height and width as little-endian uint32; a bit per block of 16 successive pixels, in row-major
    order, the first in the highest bit, 1 where a pixel is not 0; the pixels of these blocks. The
    last block and the last byte of bits are padded with 0.
    """
    if levels.dtype != np.uint8 or levels.ndim != 2 or not levels.size:
        raise ValueError(f"a map is (H, W) uint8, not {levels.shape} {levels.dtype}")
    return _SIZE.pack(*levels.shape) + encode_blocks(levels.ravel())


def decode(data: bytes) -> np.ndarray | None:
    """Return the map (H, W) uint8 that `encode` made; None where the data are damaged.

    Raises: InputError, without naming a file, for too many pixels.
    """
    if len(data) < _SIZE.size:
        return None
    height, width = _SIZE.unpack_from(data)
    pictures.check_size((height, width))
    pixels = decode_blocks(data[_SIZE.size :], height * width)
    return None if pixels is None else pixels.reshape(height, width)


def encode_blocks(pixels: np.ndarray) -> bytes:
    """Return pixels (N,) uint8 as a bit per block, 1 where it is not all 0, and these blocks."""
    blocks = np.zeros(_n_blocks(pixels.size), _BLOCK)
    blocks.view(np.uint8)[: pixels.size] = pixels
    kept = blocks.view(np.uint64).reshape(-1, 2).any(axis=1)
    return np.packbits(kept).tobytes() + blocks[kept].tobytes()


def decode_blocks(data: bytes, size: int) -> np.ndarray | None:
    """Return the pixels (size,) uint8 of `encode_blocks`; None where the data are damaged."""
    n_blocks = _n_blocks(size)
    start = -(-n_blocks // 8)
    bits = np.frombuffer(data[:start], np.uint8)
    kept = np.unpackbits(bits, count=n_blocks).view(bool)  # missing bits are 0
    if len(data) != start + _BLOCK.itemsize * np.count_nonzero(kept):
        return None
    blocks = np.zeros(n_blocks, _BLOCK)
    blocks[kept] = np.frombuffer(data, _BLOCK, offset=start)
    return blocks.view(np.uint8)[:size]


def _n_blocks(size: int) -> int:
    return -(-size // _BLOCK.itemsize)


def write(path: Path, predictions: Iterable[tuple[str, Prediction]], meta: dict[str, Any]) -> int:
    """Write predictions by image id into one archive, atomically; return how many.

    A zip of maps as `encode` makes them, deflated, and tables of labels and of the views'
    disagreement; `meta` names the checkpoints that predicted and the images that they were trained
    on.
    Raises: FloatingPointError for a label that is not a finite number.
    """
    count, labels, disagreements = 0, {}, {}
    with (
        storage.atomic_write(path) as file,
        zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive,
    ):
        for image_id, (level_map, label, disagreement) in predictions:
            if level_map is not None:
                _write_member(archive, f"{image_id}{_MAP}", encode(level_map))
            if label is not None:
                labels[image_id] = float(numbers(label, [image_id]))
            if disagreement is not None:
                disagreements[image_id] = disagreement
            count += 1
        for name, table in ((_LABELS, labels), (_VIEWS, disagreements)):
            if table:
                _write_json(archive, name, table)
        _write_json(archive, _META, meta | {"images": count})
    return count


def _write_json(archive: zipfile.ZipFile, name: str, value: dict[str, Any]) -> None:
    _write_member(archive, name, json.dumps(value, indent=1, allow_nan=False))


def _write_member(archive: zipfile.ZipFile, name: str, content: bytes | str) -> None:
    info = zipfile.ZipInfo(name)  # without the time, so that the same maps make the same bytes
    archive.writestr(info, content, compress_type=zipfile.ZIP_DEFLATED)


class Maps:
    """An archive of maps, read one at a time; safe to share between threads."""

    def __init__(self, path: Path) -> None:
        """Open an archive. Raises: InputError where it is missing or damaged."""
        self.path = Path(path)
        try:
            self._zip = storage.open_archive(self.path)  # which locks its file for each read
            named = self._zip.namelist()
            self.meta: dict[str, Any] = self._table(_META)
            self._labels, self._disagreements = (
                self._table(name) if name in named else {} for name in (_LABELS, _VIEWS)
            )
        except FileNotFoundError:
            raise InputError(f"{path} is missing: the train stage predicts held-out images, "
                             "the inference stage test images") from None  # fmt: skip
        except (storage.ArchiveError, ValueError, RecursionError) as error:
            raise InputError(f"{path} is damaged ({error}): {_FIX}") from error
        mapped = [name for name in named if name not in (_META, _LABELS, _VIEWS)]
        if others := [name for name in mapped if not name.endswith((_MAP, _PNG))]:
            raise InputError(f"{path} is damaged (it holds {others[0]!r}): {_FIX}")
        self._members = {name[: -len(_MAP)]: name for name in mapped}  # both endings are as long
        if len(self._members) < len(mapped):
            raise InputError(
                f"{path} is damaged (it holds a map both as {_MAP} and {_PNG}): {_FIX}"
            )
        self.has_maps, self.has_labels = bool(mapped), bool(self._labels)
        self.ids = list(self._members or self._labels)
        self._known = frozenset(self.ids)
        if len(self.ids) != self.meta.get("images", len(self.ids)):
            count = f"{len(self.ids)} images, not {self.meta['images']}"
            raise InputError(f"{path} is damaged ({count}): {_FIX}")
        self._check_table("labels", self._labels)
        self._check_table("disagreements of views", self._disagreements)

    def _check_table(self, what: str, table: dict[str, Any]) -> None:
        if table and self._known != table.keys():
            raise InputError(
                f"{self.path} is damaged ({what} and maps are of different images): {_FIX}"
            )
        if not all(type(value) is float and 0 <= value <= 1 for value in table.values()):
            raise InputError(
                f"{self.path} is damaged ({what} that are not from 0.0 to 1.0): {_FIX}"
            )

    def _table(self, name: str) -> dict[str, Any]:
        table = json.loads(storage.read_member(self._zip, name, _MAX_BYTES))
        if not isinstance(table, dict):
            raise ValueError(f"{name} is no table")
        return table

    def __contains__(self, image_id: str) -> bool:
        return image_id in self._known

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, image_id: str) -> np.ndarray:
        """Return the (S, S) uint8 map of an image."""
        name = self._members.get(image_id)
        if name is None:
            raise InputError(f"{self.path} holds no map of image {image_id}")
        try:
            data = storage.read_member(self._zip, name, _MAX_BYTES)
            levels = decode(data) if name.endswith(_MAP) else pictures.decode(data)
        except InputError as error:
            raise InputError(f"{self.path} is damaged ({error}): {_FIX}") from error
        if levels is None or levels.ndim != 2 or levels.dtype != np.uint8:
            raise InputError(f"{self.path} is damaged ({image_id} is no map): {_FIX}")
        return levels

    def check(self) -> None:
        """Read every member against its checksum. Raises: InputError for a damaged one."""
        for name in self._zip.namelist():
            try:
                storage.read_member(self._zip, name, _MAX_BYTES)
            except storage.ArchiveError as error:
                raise InputError(f"{self.path} is damaged ({error}): {_FIX}") from error

    def label(self, image_id: str) -> float | None:
        """Return the image's probability of a pneumothorax; None where the models predict none."""
        return self._labels.get(image_id)

    def disagreement(self, image_id: str) -> float | None:
        """Return how much the views of the image differ, 0–1, as `tta.disagreement` defines it.

        None with a single view, without maps, or in an archive of an earlier version.
        """
        return self._disagreements.get(image_id)
