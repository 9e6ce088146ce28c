"""Radiographs read from DICOM, PNG or JPEG files as 8-bit grey pictures, bones white."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import cv2
import numpy as np
import pydicom

from kernel_lib.competition import SUFFIXES
from kernel_lib.data import dicom, masks, pictures
from kernel_lib.data.dicom import orientation_notes, view_notes
from kernel_lib.data.levels import as_grey, depth, depth_note, shown
from kernel_lib.data.pictures import JPEG_MAGIC, PNG_MAGIC
from kernel_lib.errors import InputError

T = TypeVar("T")
PICTURE_MAGIC = (PNG_MAGIC, JPEG_MAGIC)
TURNED = "turned by the EXIF orientation, as viewers do"


class ImageError(InputError):
    """A file is not a radiograph that can be decoded."""


@dataclass(frozen=True)
class Skipped:
    """A skipped image and the reason; as text a line of `left_out.json`."""

    image_id: str
    path: str
    reason: str

    def __str__(self) -> str:
        return f"{self.image_id}: {self.reason}"


@dataclass(frozen=True)
class Radiograph:
    """A decoded radiograph with its patient, and notes on it."""

    pixels: np.ndarray  # (H, W) uint8
    patient: str | None  # PatientID
    notes: tuple[str, ...]  # changes and doubts; the same text for the same reason


def read(path: Path | str) -> np.ndarray:
    """Return the radiograph in a file as grey levels 0..255, bones white.

    Shapes: (H, W) uint8, C-contiguous. The content decides how it is read, not the name.
    DICOM: modality rescale or LUT, then the VOI LUT or the first window, else the full range of
    the stored bits; MONOCHROME1 is inverted.
    PNG and JPEG: turned by their EXIF orientation, colours to grey (ITU-R 601), alpha dropped.
    16 bits of which an unknown number is in use: by the range of the 8, 10, 12, 14 or 16 that hold
    all pixels. A result that is flat, or mostly clipped, is stretched to its values.
    Raises: ImageError that names the file and how to fix it.
    """
    return open_radiograph(path).pixels


def open_radiograph(path: Path | str) -> Radiograph:
    """Return what `read` and `patient_of` give, and notes on it, with the file opened once."""
    with _named(path):
        data = _content(path)
        if not data:
            raise InputError(f"is empty (0 bytes): {dicom.AGAIN}")
        if data.startswith(PICTURE_MAGIC):
            return _picture(data)
        dataset = dicom.parse(data)
        try:
            pixels, notes = dicom.grey(dataset)
            notes += orientation_notes(dataset) + view_notes(dataset)
            return Radiograph(pixels, dicom.patient(dataset), tuple(notes))
        except InputError:
            raise
        except Exception as error:  # a damaged header may state anything, in any type
            fix = dicom.how_to_fix(error)
            raise InputError(f"has a damaged header ({error}): {fix}") from error


def noted(notes: Mapping[str, Sequence[str]]) -> list[str]:
    """Return a line for each distinct note: how many files have it, and the first path."""
    by_note: dict[str, list[str]] = {}
    for path, of_file in notes.items():
        for note in of_file:
            by_note.setdefault(note, []).append(path)
    return [
        f"{note} ({len(paths):,} of {len(notes):,} images, {paths[0]} first)"
        for note, paths in by_note.items()
    ]


def read_mask(path: Path | str, masks_are: str | None = None) -> np.ndarray:
    """Return the mask in a PNG or JPEG file as (H, W) uint8 0/1; `masks` has the rules.

    masks_are: "right" or "inverted": how to read masks that look inverted.
    Raises: ImageError where the file can't be read, InputError where its mask is in doubt.
    """
    with _named(path):
        data = _content(path)
        if not data.startswith(PICTURE_MAGIC):
            other = "is neither PNG nor JPEG: masks are pictures, 0 and 255"
            raise InputError(pictures.other_kind(data) or other)
        levels = _raster(data)
        by_index = masks.by_index(data)
        indices = None if by_index is None else _raster(by_index)[..., 0]
    try:
        return masks.decide(
            levels, indices, is_jpeg=data.startswith(JPEG_MAGIC), masks_are=masks_are
        )
    except InputError as error:
        raise InputError(f"{path} {error}") from None


def image_id(path: Path | str) -> str:
    """Return the image's id: the file's name without a known suffix, as NFC, stripped."""
    name = unicodedata.normalize("NFC", Path(path).name).strip()
    for suffix in SUFFIXES:
        if name.lower().endswith(suffix):
            return name[: -len(suffix)].strip()
    return name


def patient_of(path: Path | str) -> str | None:
    """Return the DICOM's PatientID, None where it has none or is no DICOM; decodes no pixels."""
    return None if is_picture(path) else _from_header(path, ["PatientID"], dicom.patient)


def size_of(path: Path | str) -> tuple[int, int]:
    """Return (height, width) of what `read` gives, from the header alone. Raises: ImageError."""
    if is_picture(path):
        with _named(path):
            size = pictures.shown_size(_content(path))
        if size is None:
            raise ImageError(f"{path} is no complete PNG or JPEG: {dicom.AGAIN}")
        return size

    def stated(header: pydicom.Dataset) -> tuple[int, int]:
        return int(header.get("Rows") or 0), int(header.get("Columns") or 0)

    size = _from_header(path, ["Rows", "Columns"], stated)
    if not all(size):
        raise ImageError(f"{path} holds no pixels (it states no Rows and Columns)")
    return size


def dataset_of(path: Path | str) -> pydicom.Dataset:
    """Return the data set of a DICOM that holds pixels, undecoded. Raises: ImageError."""
    with _named(path):
        return dicom.parse(_content(path))


def is_image(path: Path | str) -> bool:
    """Return whether a file holds a radiograph by its content, whatever its name.

    A DICOM has to state Rows and Columns, unlike a DICOMDIR or a report.
    """
    try:
        with open(path, "rb") as file:
            start = file.read(132)
    except OSError:
        return False
    if start.startswith(PICTURE_MAGIC):
        return True
    # A data set without a preamble begins with group 0002 or 0008, stored little-endian.
    if start[128:] != b"DICM" and start[:2] not in (b"\x02\x00", b"\x08\x00"):
        return False
    try:
        return bool(size_of(path))
    except ImageError:
        return False


def spacing_of(path: Path | str) -> tuple[float, float] | None:
    """Return a DICOM's pixel spacing, (between rows, between columns) in mm; None where unknown.

    PixelSpacing, else ImagerPixelSpacing (at the detector).
    """
    if is_picture(path):
        return None
    try:
        return _from_header(path, dicom.SPACING_TAGS, dicom.spacing)
    except ImageError:  # a spacing that is no number is not known
        return None


def traits_of(path: Path | str) -> dict[str, str | float] | None:
    """Return what a DICOM states of view, sex, age, patient and mm_per_px; None of a picture.

    As `dicom.traits`. Raises: ImageError.
    """
    if is_picture(path):
        return None
    return _from_header(path, [*dicom.TRAIT_TAGS, *dicom.SPACING_TAGS], dicom.traits)


def is_picture(path: Path | str) -> bool:
    """Return whether the file's content starts as a PNG or JPEG. Raises: ImageError."""
    try:
        with open(path, "rb") as file:
            return file.read(8).startswith(PICTURE_MAGIC)
    except OSError as error:
        raise ImageError(f"{path} can't be read: {error.strerror or error}") from error


@contextmanager
def _named(path: Path | str) -> Iterator[None]:
    """Re-raise an InputError as an ImageError that starts with the file's path."""
    try:
        yield
    except InputError as error:
        raise ImageError(f"{Path(path)} {error}") from error.__cause__


def _content(path: Path | str) -> bytes:
    path = Path(path)
    try:
        if path.exists() and not path.is_file():  # a pipe would be waited for without end
            raise InputError("is no file: remove it")
        if path.stat().st_size > dicom.MAX_BYTES:
            raise InputError(f"has more than {dicom.MAX_BYTES:,} bytes: remove it")
        return path.read_bytes()
    except OSError as error:
        raise InputError(f"can't be read: {error.strerror or error}") from error


def _from_header(path: Path | str, tags: list[str], get: Callable[[pydicom.Dataset], T]) -> T:
    """Return what `get` makes of these tags of a DICOM."""
    with _named(path):
        data = _content(path)
        try:
            return get(dicom.header(data, tags))
        except Exception as error:  # pydicom raises a dozen kinds on bytes that aren't DICOM
            raise InputError(f"is no DICOM, PNG or JPEG file ({error})") from error


def _picture(data: bytes) -> Radiograph:
    stored = _raster(data)
    if stored.ndim == 3:
        to_grey = cv2.COLOR_BGRA2GRAY if stored.shape[2] == 4 else cv2.COLOR_BGR2GRAY
        stored = cv2.cvtColor(stored, to_grey)  # (H, W, 3 or 4) -> (H, W)
    notes = [TURNED] if pictures.orientation(data) != 1 else []
    bits = 8
    if stored.dtype != np.uint8:
        bits = depth(0, int(stored.max()))
        notes += [depth_note(bits)] if bits < 16 else []
    values = np.arange(1 << bits, dtype=np.float64)
    pixels, flat = shown(as_grey(values / values[-1]), values, stored)
    return Radiograph(pixels, None, (*notes, *flat))


def _raster(data: bytes) -> np.ndarray:
    """Return levels as stored, (H, W) or (H, W, 3 or 4), turned by the EXIF orientation."""
    levels = pictures.decode(data)
    if levels is None:
        damaged = f"is cut short or damaged: {dicom.AGAIN}"
        raise InputError(pictures.other_kind(data) or damaged)
    if levels.dtype not in (np.uint8, np.uint16):
        raise InputError(f"has {levels.dtype} pixels: save it with 8 or 16 bits")
    return levels
