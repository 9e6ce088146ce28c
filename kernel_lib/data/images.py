"""Radiographs read from DICOM, PNG or JPEG files as 8-bit grey pictures, bones white."""

from __future__ import annotations

import math
import unicodedata
import warnings
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import TypeVar

import cv2
import numpy as np
import pydicom
from pydicom import encaps, uid
from pydicom.filereader import read_dataset, read_preamble

from kernel_lib.data import pictures
from kernel_lib.data.dicom_levels import as_grey, grey_levels
from kernel_lib.data.pictures import JPEG_MAGIC, PNG_MAGIC
from kernel_lib.errors import InputError

DICOM_SUFFIXES = (".dcm", ".dicom")
PICTURE_SUFFIXES = (".png", ".jpg", ".jpeg")
SUFFIXES = DICOM_SUFFIXES + PICTURE_SUFFIXES
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


class ImageError(InputError):
    """A file is not a radiograph that can be decoded."""


def read(path: Path | str) -> np.ndarray:
    """The radiograph in a file as grey levels 0..255, bones white.

    Shapes: (H, W) uint8, C-contiguous. The content decides how it is read, not the name.
    DICOM: modality rescale or LUT, then the VOI LUT or the first window, else the full range of
    the stored bits; MONOCHROME1 is inverted; 8-bit MONOCHROME2 without a window stays as it is.
    PNG and JPEG: colours to grey (ITU-R 601), alpha dropped, 16 bits by the range of 16 bits, or
    of 12 where no pixel needs more.
    Errors: ImageError naming the file and the mend.
    """
    return read_with_patient(path)[0]


def read_with_patient(path: Path | str) -> tuple[np.ndarray, str | None]:
    """What `read` and `patient_of` give, with the file opened once."""
    path = Path(path)
    data = _content(path)
    if not data:
        raise ImageError(f"{path} is empty (0 bytes): fetch it again, or remove it")
    if data.startswith((PNG_MAGIC, JPEG_MAGIC)):
        return _to_8_bits(_decode_picture(data, path)), None
    dataset = _dataset(data, path)
    try:
        return _radiograph(dataset, path), _patient(dataset)
    except ImageError:
        raise
    except Exception as error:  # a damaged header may state anything, in any type
        raise ImageError(
            f"{path} has a damaged header ({error}): fetch it again, or remove it"
        ) from error


def read_mask(path: Path | str) -> np.ndarray:
    """The mask in a PNG or JPEG file as (H, W) uint8 0/1: 1 where grey is above half range.

    A file whose levels are 0 and 1 only is taken as it is. Errors: ImageError, also where the
    levels are neither (nothing above half range, yet something above 1).
    """
    path = Path(path)
    data = _content(path)
    if not data.startswith((PNG_MAGIC, JPEG_MAGIC)):
        raise ImageError(f"{path} is neither PNG nor JPEG: masks are pictures, 0 and 255")
    grey = _decode_picture(data, path)
    top = int(grey.max())
    half = 127 if grey.dtype == np.uint8 else 32767
    if 1 < top <= half:
        raise ImageError(
            f"{path} has levels up to {top}, which is neither a 0/1 nor a 0/{2 * half + 1} mask: "
            f"write it with {2 * half + 1} where there is pneumothorax"
        )
    return (grey > (half if top > half else 0)).astype(np.uint8)


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
    """(height, width) in pixels from the header alone. Errors: ImageError."""
    path = Path(path)
    if is_picture(path):
        size = pictures.stated_size(_content(path))
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


def _decode_picture(data: bytes, path: Path) -> np.ndarray:
    """(H, W) uint8 or uint16 grey levels as stored."""
    try:
        grey = pictures.decode(data)
    except InputError as error:
        raise ImageError(f"{path} {error}") from None
    if grey is None:
        raise ImageError(f"{path} is cut short or damaged: fetch it again, or remove it")
    if grey.dtype not in (np.uint8, np.uint16):
        raise ImageError(f"{path} has {grey.dtype} pixels: save it with 8 or 16 bits")
    if grey.ndim == 3:
        to_grey = cv2.COLOR_BGRA2GRAY if grey.shape[2] == 4 else cv2.COLOR_BGR2GRAY
        grey = cv2.cvtColor(grey, to_grey)  # (H, W, 3 or 4) -> (H, W)
    return grey


def _to_8_bits(grey: np.ndarray) -> np.ndarray:
    if grey.dtype == np.uint8:
        return grey
    # PNG copies of 12-bit radiographs are mostly not stretched; a 16-bit one is not that dark.
    top = 4095 if int(grey.max()) < 4096 else 65535
    levels = np.arange(65536, dtype=np.float64) / top
    return as_grey(levels)[grey]


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
    mend = "fetch it again, or remove it"
    marked = data[128:132] == b"DICM"
    with _quiet_about_ids():
        try:
            _check_inflated(data)
            dataset = pydicom.dcmread(BytesIO(data), force=True)
        except Exception as error:  # as above
            raise ImageError(f"{path} is no DICOM, PNG or JPEG file ({error}): {mend}") from error
    if "PixelData" not in dataset:
        if not marked and "Rows" not in dataset:
            raise ImageError(f"{path} is no DICOM, PNG or JPEG file: {mend}")
        what = "has no pixels" if "Rows" in dataset else "is cut short, or has no pixels"
        raise ImageError(f"{path} {what}: {mend}")
    if "TransferSyntaxUID" not in dataset.file_meta:  # a bare data set, as old archives have them
        implicit = dataset.original_encoding[0] is not False
        syntax = uid.ImplicitVRLittleEndian if implicit else uid.ExplicitVRLittleEndian
        dataset.file_meta.TransferSyntaxUID = syntax
    return dataset


def _patient(dataset: pydicom.Dataset) -> str | None:
    return str(dataset.get("PatientID") or "").strip() or None


def _radiograph(dataset: pydicom.Dataset, path: Path) -> np.ndarray:
    """(H, W) uint8, bones white, from a data set with pixels."""
    frames = int(dataset.get("NumberOfFrames") or 1)
    if frames != 1:
        raise ImageError(f"{path} holds {frames} frames: a radiograph is one; split the file")
    missing = [tag for tag in ("Rows", "Columns", "BitsStored") if not dataset.get(tag)]
    if missing:
        raise ImageError(f"{path} lacks {', '.join(missing)}: fetch it again, or remove it")
    if not 1 <= dataset.BitsStored <= 16:
        raise ImageError(f"{path} has {dataset.BitsStored} bits: at most 16 are read; save as PNG")
    try:
        pictures.check_size((int(dataset.Rows), int(dataset.Columns)))
    except InputError as error:
        raise ImageError(f"{path} {error}") from None
    kind = str(dataset.get("PhotometricInterpretation", "")).upper()
    stored = _stored_values(dataset, path)
    if stored.ndim == 3 and stored.shape[2] == 3 and stored.dtype == np.uint8:
        return cv2.cvtColor(stored, cv2.COLOR_RGB2GRAY)  # a photograph of a film, and the like
    if stored.ndim != 2 or kind not in ("MONOCHROME1", "MONOCHROME2"):
        raise ImageError(
            f"{path} is {kind or 'of no stated kind'} with shape {stored.shape}: only MONOCHROME1, "
            "MONOCHROME2 and 8-bit colour are read; save it as PNG"
        )
    table, lowest = grey_levels(dataset)
    if kind == "MONOCHROME1":
        table = 255 - table
    if stored.dtype == np.uint8 and len(table) == 256 and np.array_equal(table, np.arange(256)):
        return np.ascontiguousarray(stored)
    return table[stored.astype(np.int32) - lowest]


def _stored_values(dataset: pydicom.Dataset, path: Path) -> np.ndarray:
    """(H, W) stored values, or (H, W, 3) RGB."""
    syntax = dataset.file_meta.TransferSyntaxUID
    try:
        frame = _frame(dataset)
        if syntax in JPEG_SYNTAXES and not pictures.is_whole_jpeg(frame):
            raise ValueError("its JPEG is cut short or damaged")
        if syntax in OPENCV_SYNTAXES and dataset.get("SamplesPerPixel", 1) == 1:
            stored = _opencv_frame(dataset, frame)
            if stored is not None:
                return stored
        return dataset.pixel_array
    except Exception as error:  # each decoder has its own errors
        packages = PIP_PACKAGES.get(syntax)
        decoder = f"; or, if it is whole, add a decoder: pip install {packages}" if packages else ""
        raise ImageError(
            f"{path} ({uid.UID(syntax).name}) can't be decoded: {' '.join(str(error).split())}; "
            f"fetch it again, or remove it{decoder}"
        ) from error


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
        return frame
    frame = dataset.PixelData
    bits = stated[0] * stated[1] * int(dataset.get("SamplesPerPixel", 1)) * dataset.BitsAllocated
    if len(frame) > -(-bits // 8) + 1:  # a byte that makes the length even
        raise ValueError(f"{len(frame):,} bytes of pixels, the header says {-(-bits // 8):,}")
    return frame


def _opencv_frame(dataset: pydicom.Dataset, frame: bytes) -> np.ndarray | None:
    """The one frame by OpenCV, or None where pydicom has to decide (and to complain)."""
    # OpenCV gives 8 bits unsigned only; whatever else the header says is pydicom's to interpret.
    if dataset.BitsStored != 8 or dataset.get("PixelRepresentation", 0) != 0:
        return None
    stored = pictures.decode(frame, known_whole=True)
    if stored is None or stored.dtype != np.uint8:
        return None
    return stored if stored.shape == (dataset.Rows, dataset.Columns) else None
