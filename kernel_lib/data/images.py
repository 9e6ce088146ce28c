"""Radiographs read from DICOM, PNG or JPEG files as 8-bit grey pictures, bones white."""

from __future__ import annotations

import math
import re
import unicodedata
import warnings
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import TypeVar

import cv2
import numpy as np
import pydicom
from pydicom import encaps, uid
from pydicom.filereader import read_dataset, read_preamble

from kernel_lib.data import contrast, mask_files, pictures
from kernel_lib.data.dicom_bits import pixel_values
from kernel_lib.data.dicom_levels import grey_levels, padding
from kernel_lib.data.dicom_orientation import orientation_notes, view_notes
from kernel_lib.data.layouts import SUFFIXES
from kernel_lib.data.pictures import JPEG_MAGIC, PNG_MAGIC
from kernel_lib.errors import InputError

T = TypeVar("T")
MAX_BYTES = 1 << 29  # of a file, packed or not: more than MAX_PIXELS of 16 bits take

# What pip can add where OpenCV and Pillow (which pydicom uses) have no decoder.
PIP_PACKAGES = {
    uid.JPEGExtended12Bit: "pylibjpeg pylibjpeg-libjpeg",
    uid.JPEGLossless: "pylibjpeg pylibjpeg-libjpeg",
    uid.JPEGLosslessSV1: "pylibjpeg pylibjpeg-libjpeg",
    uid.JPEGLSLossless: "pylibjpeg pylibjpeg-libjpeg",
    uid.JPEGLSNearLossless: "pylibjpeg pylibjpeg-libjpeg",
    uid.JPEG2000Lossless: "pylibjpeg pylibjpeg-openjpeg",
    uid.JPEG2000: "pylibjpeg pylibjpeg-openjpeg",
    uid.HTJ2KLossless: "pylibjpeg pylibjpeg-openjpeg",
    uid.HTJ2K: "pylibjpeg pylibjpeg-openjpeg",
}
# One-component JPEGs that OpenCV decodes to exactly what pydicom and Pillow give, in less time.
JPEG_SYNTAXES = (
    uid.JPEGBaseline8Bit, uid.JPEGExtended12Bit, uid.JPEGLossless, uid.JPEGLosslessSV1
)  # fmt: skip
OPENCV_SYNTAXES = (uid.JPEGBaseline8Bit, uid.JPEGLossless, uid.JPEGLosslessSV1)
TURNED = "turned by the EXIF orientation, as viewers do"


class ImageError(InputError):
    """A file is not a radiograph that can be decoded."""


@dataclass(frozen=True)
class Skipped:
    """An image that is left out, and why; as text a line of `left_out.json`."""

    image_id: str
    path: str
    reason: str

    def __str__(self) -> str:
        return f"{self.image_id}: {self.reason}"


@dataclass(frozen=True)
class Radiograph:
    """What `read` gives of a file, and what else is to be known of it."""

    pixels: np.ndarray  # (H, W) uint8
    patient: str | None  # PatientID
    notes: tuple[str, ...]  # what was changed, or is doubted; equal texts for equal reasons


def read(path: Path | str) -> np.ndarray:
    """Return the radiograph in a file as grey levels 0..255, bones white.

    Shapes: (H, W) uint8, C-contiguous. The content decides how it is read, not the name.
    DICOM: modality rescale or LUT, then the VOI LUT or the first window, else the full range of
    the stored bits; MONOCHROME1 is inverted; 8-bit MONOCHROME2 without a window stays as it is.
    PNG and JPEG: turned by their EXIF orientation, colours to grey (ITU-R 601), alpha dropped.
    16 bits of which nobody says how many are in use: by the range of the 8, 10, 12, 14 or 16 that
    hold all pixels. What then is flat, or mostly beyond its window, is stretched to its values.
    Raises: ImageError that names the file and how to fix it.
    """
    return open_radiograph(path).pixels


def open_radiograph(path: Path | str) -> Radiograph:
    """Return what `read` and `patient_of` give, and notes on it, with the file opened once."""
    path = Path(path)
    data = _content(path)
    if not data:
        raise ImageError(f"{path} is empty (0 bytes): fetch it again, or remove it")
    if data.startswith((PNG_MAGIC, JPEG_MAGIC)):
        with _named(path):
            return _picture(data, path)
    dataset = _dataset(data, path)
    try:
        with _named(path):
            pixels, notes = _radiograph(dataset, path)
        notes += orientation_notes(dataset) + view_notes(dataset)
        return Radiograph(pixels, _patient(dataset), tuple(notes))
    except ImageError:
        raise
    except Exception as error:  # a damaged header may state anything, in any type
        raise ImageError(f"{path} has a damaged header ({error}): {_how_to_fix(error)}") from error


def noted(notes: Mapping[str, Sequence[str]]) -> list[str]:
    """Return a line for each note on these files, by path, that counts them and names the first."""
    by_note: dict[str, list[str]] = {}
    for path, of_file in notes.items():
        for note in of_file:
            by_note.setdefault(note, []).append(path)
    return [
        f"{note} ({len(paths):,} of {len(notes):,} images, {paths[0]} first)"
        for note, paths in by_note.items()
    ]


def read_mask(path: Path | str, masks_are: str | None = None) -> np.ndarray:
    """Return the mask in a PNG or JPEG file as (H, W) uint8 0/1; `mask_files` has the rules.

    masks_are: "right" or "inverted", for masks that else are refused as inverted.
    Raises: ImageError where the file can't be read, InputError where its mask is in doubt.
    """
    path = Path(path)
    data = _content(path)
    if not data.startswith((PNG_MAGIC, JPEG_MAGIC)):
        what = pictures.other_kind(data) or "is neither PNG nor JPEG: masks are pictures, 0 and 255"
        raise ImageError(f"{path} {what}")
    levels = _raster(data, path)
    by_index = mask_files.by_index(data)
    indices = None if by_index is None else _raster(by_index, path)[..., 0]
    is_jpeg = data.startswith(JPEG_MAGIC)
    try:
        return mask_files.decide(levels, indices, is_jpeg=is_jpeg, masks_are=masks_are)
    except InputError as error:
        raise InputError(f"{path} {error}") from None


def image_id(path: Path | str) -> str:
    """The image's id: the file's name without a known suffix (ids hold dots of their own).

    As NFC, since file systems and tables differ in that, and without blanks around it.
    """
    name = unicodedata.normalize("NFC", Path(path).name).strip()
    for suffix in SUFFIXES:
        if name.lower().endswith(suffix):
            return name[: -len(suffix)].strip()
    return name


def patient_of(path: Path | str) -> str | None:
    """The DICOM's PatientID, None where it has none or is no DICOM; decodes no pixels."""
    path = Path(path)
    if is_picture(path):
        return None
    return _read_header(path, ["PatientID"], _patient)


def size_of(path: Path | str) -> tuple[int, int]:
    """Return (height, width) of what `read` gives, from the header alone. Raises: ImageError."""
    path = Path(path)
    if is_picture(path):
        size = pictures.shown_size(_content(path))
        if size is None:
            raise ImageError(f"{path} is no complete PNG or JPEG: fetch it again, or remove it")
        return size

    def stated(header: pydicom.Dataset) -> tuple[int, int]:
        return int(header.get("Rows") or 0), int(header.get("Columns") or 0)

    height, width = _read_header(path, ["Rows", "Columns"], stated)
    if not height or not width:
        raise ImageError(f"{path} holds no pixels (it states no Rows and Columns)")
    return height, width


def is_image(path: Path | str) -> bool:
    """Return whether a file holds a radiograph by its content, whatever its name.

    PNG and JPEG by their first bytes; DICOM, with a preamble or without, where its header states
    Rows and Columns, so that a DICOMDIR or a report is none.
    """
    try:
        with open(path, "rb") as file:
            start = file.read(132)
    except OSError:
        return False
    if start.startswith((PNG_MAGIC, JPEG_MAGIC)):
        return True
    # A data set without a preamble begins with group 0002 or 0008, stored little-endian.
    if start[128:] != b"DICM" and start[:2] not in (b"\x02\x00", b"\x08\x00"):
        return False
    try:
        size_of(path)
    except ImageError:
        return False
    return True


def spacing_of(path: Path | str) -> tuple[float, float] | None:
    """Return a DICOM's pixel spacing, (between rows, between columns) in mm; None where unknown.

    PixelSpacing, else ImagerPixelSpacing (at the detector, hence of a magnified image), as stated.
    """
    if is_picture(path):
        return None

    def stated(header: pydicom.Dataset) -> tuple[float, float] | None:
        for tag in ("PixelSpacing", "ImagerPixelSpacing"):
            values = header.get(tag)
            if values is None or isinstance(values, str) or len(values) != 2:
                continue
            rows, columns = map(float, values)
            if 0 < rows < math.inf and 0 < columns < math.inf:
                return rows, columns
        return None

    try:
        return _read_header(Path(path), ["PixelSpacing", "ImagerPixelSpacing"], stated)
    except ImageError:  # a spacing that is no number is not known
        return None


def is_picture(path: Path | str) -> bool:
    """Whether the file's content starts as a PNG or JPEG. Errors: ImageError if unreadable."""
    try:
        with open(path, "rb") as file:
            return file.read(8).startswith((PNG_MAGIC, JPEG_MAGIC))
    except OSError as error:
        raise ImageError(f"{path} can't be read: {error.strerror or error}") from error


def _content(path: Path) -> bytes:
    try:
        if path.exists() and not path.is_file():  # a pipe would be waited for without end
            raise ImageError(f"{path} is no file: remove it")
        if path.stat().st_size > MAX_BYTES:
            raise ImageError(f"{path} has more than {MAX_BYTES:,} bytes: remove it")
        return path.read_bytes()
    except OSError as error:
        raise ImageError(f"{path} can't be read: {error.strerror or error}") from error


# --- PNG and JPEG ---------------------------------------------------------------------------


@contextmanager
def _named(path: Path) -> Iterator[None]:
    """Put the file before errors that do not name it."""
    try:
        yield
    except ImageError:
        raise
    except InputError as error:
        raise ImageError(f"{path} {error}") from None


def _picture(data: bytes, path: Path) -> Radiograph:
    stored = _decode_picture(data, path)
    notes = [TURNED] if pictures.orientation(data) != 1 else []
    bits = 8
    if stored.dtype != np.uint8:
        bits = contrast.depth(0, int(stored.max()))
        notes += [contrast.depth_note(bits)] if bits < 16 else []
    values = np.arange(1 << bits, dtype=np.float64)
    pixels, flat = contrast.shown(contrast.as_grey(values / values[-1]), values, stored)
    return Radiograph(pixels, None, (*notes, *flat))


def _decode_picture(data: bytes, path: Path) -> np.ndarray:
    """Return (H, W) uint8 or uint16 grey levels as stored."""
    levels = _raster(data, path)
    if levels.ndim == 3:
        to_grey = cv2.COLOR_BGRA2GRAY if levels.shape[2] == 4 else cv2.COLOR_BGR2GRAY
        levels = cv2.cvtColor(levels, to_grey)  # (H, W, 3 or 4) -> (H, W)
    return levels


def _raster(data: bytes, path: Path) -> np.ndarray:
    """Return levels as stored, (H, W) or (H, W, 3 or 4), turned by the EXIF orientation."""
    with _named(path):
        levels = pictures.decode(data)
    if levels is None:
        damaged = "is cut short or damaged: fetch it again, or remove it"
        raise ImageError(f"{path} {pictures.other_kind(data) or damaged}")
    if levels.dtype not in (np.uint8, np.uint16):
        raise ImageError(f"{path} has {levels.dtype} pixels: save it with 8 or 16 bits")
    return levels


# --- DICOM: from file to stored values ------------------------------------------------------


@contextmanager
def _quiet_about_ids() -> Iterator[None]:
    """Silence pydicom's word on the competition's ids (ID_…), which are no valid UIDs."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Invalid value for VR UI")
        yield


def _read_header(path: Path, tags: list[str], get: Callable[[pydicom.Dataset], T]) -> T:
    """What `get` makes of these tags of a DICOM."""
    data = _content(path)
    with _quiet_about_ids():
        try:
            _check_inflated(data)
            return get(
                pydicom.dcmread(
                    BytesIO(data), force=True, stop_before_pixels=True, specific_tags=tags
                )
            )
        except Exception as error:  # pydicom raises a dozen kinds on bytes that aren't DICOM
            raise ImageError(f"{path} is no DICOM, PNG or JPEG file ({error})") from error


def _check_inflated(data: bytes) -> None:
    """ValueError where a deflated data set would be larger than any radiograph."""
    if uid.DeflatedExplicitVRLittleEndian.encode() not in data:
        return
    stream = BytesIO(data)
    if not read_preamble(stream, force=True):
        return
    read_dataset(stream, False, True, stop_when=lambda tag, vr, length: tag >> 16 != 2)
    inflating = zlib.decompressobj(-zlib.MAX_WBITS)
    inflating.decompress(data[stream.tell() :], MAX_BYTES)
    if inflating.unconsumed_tail:
        raise ValueError(f"it inflates to more than {MAX_BYTES:,} bytes")


def _dataset(data: bytes, path: Path) -> pydicom.Dataset:
    fix = "fetch it again, or remove it"
    marked = data[128:132] == b"DICM"
    if not marked and (what := pictures.other_kind(data)):
        raise ImageError(f"{path} {what}")
    with _quiet_about_ids():
        try:
            _check_inflated(data)
            dataset = pydicom.dcmread(BytesIO(data), force=True)
        except Exception as error:  # as above
            raise ImageError(f"{path} is no DICOM, PNG or JPEG file ({error}): {fix}") from error
    if "FloatPixelData" in dataset or "DoubleFloatPixelData" in dataset:
        raise ImageError(f"{path} has float pixels: save it as a PNG of 16 bits")
    if "PixelData" not in dataset:
        if not marked and "Rows" not in dataset:
            raise ImageError(f"{path} is no DICOM, PNG or JPEG file: {fix}")
        what = "has no pixels" if "Rows" in dataset else "is cut short, or has no pixels"
        raise ImageError(f"{path} {what}: {fix}")
    if "TransferSyntaxUID" not in dataset.file_meta:  # a bare data set, as old archives have them
        implicit = dataset.original_encoding[0] is not False
        syntax = uid.ImplicitVRLittleEndian if implicit else uid.ExplicitVRLittleEndian
        dataset.file_meta.TransferSyntaxUID = syntax
    return dataset


def _patient(dataset: pydicom.Dataset) -> str | None:
    return str(dataset.get("PatientID") or "").strip() or None


def _radiograph(dataset: pydicom.Dataset, path: Path) -> tuple[np.ndarray, list[str]]:
    """Return (H, W) uint8, bones white, from a data set with pixels; and notes on it."""
    frames = int(dataset.get("NumberOfFrames") or 1)
    if frames != 1:
        raise ImageError(
            f"{path} states {frames} frames, and a radiograph is one: split the file, or write 1 "
            "as its NumberOfFrames where it holds a single picture"
        )
    missing = [tag for tag in ("Rows", "Columns", "BitsStored") if not dataset.get(tag)]
    if missing:
        raise ImageError(f"{path} lacks {', '.join(missing)}: fetch it again, or remove it")
    if not 1 <= dataset.BitsStored <= 16:
        raise ImageError(f"{path} has {dataset.BitsStored} bits: at most 16 are read; save as PNG")
    pictures.check_size((int(dataset.Rows), int(dataset.Columns)))
    kind = str(dataset.get("PhotometricInterpretation") or "").strip().upper()
    if not kind:
        raise ImageError(
            f"{path} does not state its PhotometricInterpretation: write MONOCHROME2 into it, or "
            "MONOCHROME1 where bones are black"
        )
    if kind != dataset.PhotometricInterpretation:
        dataset.PhotometricInterpretation = kind  # pydicom knows them in capitals only
    is_grey = kind in ("MONOCHROME1", "MONOCHROME2")
    unknown = ImageError(
        f"{path} is {kind}: only MONOCHROME1, MONOCHROME2 and 8-bit colour are read; save it as PNG"
    )
    if not is_grey and dataset.get("SamplesPerPixel") != 3:
        raise unknown
    words = _words(dataset, path)
    if words.ndim == 3 and words.shape[2] == 3 and words.dtype == np.uint8:
        grey = cv2.cvtColor(words, cv2.COLOR_RGB2GRAY)  # a photograph of a film, and the like
        return contrast.shown(np.arange(256, dtype=np.uint8), np.arange(256.0), grey)
    if words.ndim != 2 or not is_grey:
        raise unknown
    stored, bits, notes = pixel_values(words, dataset)
    levels = grey_levels(dataset, bits)
    if levels.by == "range" and not notes and bits < dataset.BitsStored:
        notes = [contrast.depth_note(bits)]
    table, values = levels.grey, levels.values
    if kind == "MONOCHROME1":
        table, values = 255 - table, -values
    if levels.lowest or stored.dtype != np.uint8:
        stored = stored.astype(np.int32) - levels.lowest
    pixels, flat = contrast.shown(
        table,
        values,
        stored,
        padding=padding(dataset, levels),
        by_window=levels.by == "window",
    )
    return pixels, notes + flat


def _words(dataset: pydicom.Dataset, path: Path) -> np.ndarray:
    """Return (H, W) words as decoded, with unused bits as they are, or (H, W, 3) RGB."""
    syntax = dataset.file_meta.TransferSyntaxUID
    dataset.pixel_array_options(correct_unused_bits=False)
    try:
        frame = _frame(dataset)
        if syntax in JPEG_SYNTAXES and not pictures.is_whole_jpeg(frame):
            raise ValueError("its JPEG is cut short or damaged")
        if syntax in OPENCV_SYNTAXES and dataset.get("SamplesPerPixel", 1) == 1:
            words = _opencv_frame(dataset, frame)
            if words is not None:
                return words
        return dataset.pixel_array
    except Exception as error:  # each decoder has its own errors
        packages = PIP_PACKAGES.get(syntax)
        why, fix = " ".join(str(error).split()), _how_to_fix(error)
        if packages and "missing dependencies" in why:
            why, fix = "no decoder is installed", f"pip install {packages}"
        elif packages:
            fix += f"; or, if it is complete, add a decoder: pip install {packages}"
        raise ImageError(
            f"{path} ({uid.UID(syntax).name}) can't be decoded: {why}; {fix}"
        ) from error


def _how_to_fix(error: Exception) -> str:
    """Return what to do about an error that a header caused, or damage."""
    if re.search(r"'[+-]?\d*,\d+'", str(error)):
        return "write decimals with a point, not a comma"
    if re.search("Missing required element|has no attribute", str(error)):
        return "write the element that is missing, or save the image as PNG"
    return "fetch it again, or remove it"


def _frame(dataset: pydicom.Dataset) -> bytes:
    """The pixels as they lie in the file, one frame. ValueError where they are of another size.

    Decoders lay out whatever they find as Rows × Columns say, so a header that differs from its
    pixels would give a sheared picture.
    """
    stated = int(dataset.Rows), int(dataset.Columns)
    if dataset.file_meta.TransferSyntaxUID.is_encapsulated:
        frame = encaps.get_frame(dataset.PixelData, 0, number_of_frames=1)
        size = pictures.stated_size(frame)
        if size is not None and size != stated:
            raise ValueError(f"its pixels are {size[0]}×{size[1]}, the header says {stated}")
        if (pictures.stated_bits(frame) or 0) > dataset.get("BitsAllocated", 16):
            dataset.BitsAllocated = 16  # what is decoded would be cut to the lower byte
        return frame
    frame = dataset.PixelData
    bits = stated[0] * stated[1] * int(dataset.get("SamplesPerPixel", 1)) * dataset.BitsAllocated
    length = -(-bits // 8)
    if len(frame) > length + 1:  # a byte that makes the length even
        if not _is_padding(frame, length, stated[0]):
            raise ValueError(f"{len(frame):,} bytes of pixels, the header says {length:,}")
        dataset.PixelData = frame = frame[: length + length % 2]
    return frame


def _is_padding(frame: bytes, length: int, n_rows: int) -> bool:
    """Return whether the bytes beyond that length are padding, as old writers added it.

    Those are zeros, and so may the end of a picture of wider rows be: its rows then fit better.
    """
    if any(frame[length:]):
        return False

    def edges(end: int) -> float:
        rows = np.frombuffer(frame[:end], np.uint8).reshape(n_rows, -1).astype(np.int16)
        return float(np.abs(np.diff(rows, axis=0)).mean()) if n_rows > 1 else 0.0

    return len(frame) % n_rows > 0 or length % n_rows > 0 or edges(length) <= edges(len(frame))


def _opencv_frame(dataset: pydicom.Dataset, frame: bytes) -> np.ndarray | None:
    """The one frame by OpenCV, or None where pydicom has to decide (and to complain)."""
    # OpenCV gives 8 bits unsigned only; what the header says is signed is pydicom's to interpret.
    if dataset.get("PixelRepresentation", 0) != 0:
        return None
    stored = pictures.decode(frame, in_dicom=True)
    if stored is None or stored.dtype != np.uint8:
        return None
    return stored if stored.shape == (dataset.Rows, dataset.Columns) else None
