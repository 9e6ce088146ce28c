"""DICOM files in memory: header, view, orientation, and pixels as 8-bit grey levels, bones white.

Errors are InputErrors without the file's name, which `images` puts before them.
"""

from __future__ import annotations

import math
import re
import warnings
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from io import BytesIO

import cv2
import numpy as np
import pydicom
from pydicom import encaps, uid
from pydicom.filereader import read_dataset, read_preamble

from kernel_lib.data import pictures
from kernel_lib.data.levels import depth_note, grey_levels, padding, pixel_values, shown
from kernel_lib.errors import InputError

MAX_BYTES = 1 << 29  # of a file, packed or not: more than MAX_PIXELS of 16 bits take
AGAIN = "fetch it again, or remove it"
# What pip can add where OpenCV and Pillow (which pydicom uses) have no decoder.
PIP_PACKAGES = {
    **dict.fromkeys(
        (uid.JPEGExtended12Bit, uid.JPEGLossless, uid.JPEGLosslessSV1, uid.JPEGLSLossless,
         uid.JPEGLSNearLossless),
        "pylibjpeg pylibjpeg-libjpeg",
    ),
    **dict.fromkeys(
        (uid.JPEG2000Lossless, uid.JPEG2000, uid.HTJ2KLossless, uid.HTJ2K),
        "pylibjpeg pylibjpeg-openjpeg",
    ),
}  # fmt: skip
# One-component JPEGs that OpenCV decodes to exactly what pydicom and Pillow give, in less time.
OPENCV_SYNTAXES = (uid.JPEGBaseline8Bit, uid.JPEGLossless, uid.JPEGLosslessSV1)
JPEG_SYNTAXES = (*OPENCV_SYNTAXES, uid.JPEGExtended12Bit)


def header(data: bytes, tags: list[str]) -> pydicom.Dataset:
    """Return these tags of a DICOM, without its pixels. Raises what `parse` raises."""
    with _quiet_about_ids():
        _check_inflated(data)
        return pydicom.dcmread(
            BytesIO(data), force=True, stop_before_pixels=True, specific_tags=tags
        )


def parse(data: bytes) -> pydicom.Dataset:
    """Return the data set of a DICOM that holds pixels, with a transfer syntax."""
    marked = data[128:132] == b"DICM"
    if not marked and (kind := pictures.other_kind(data)):
        raise InputError(kind)
    try:
        with _quiet_about_ids():
            _check_inflated(data)
            dataset = pydicom.dcmread(BytesIO(data), force=True)
    except Exception as error:  # pydicom raises a dozen kinds on bytes that aren't DICOM
        raise InputError(f"is no DICOM, PNG or JPEG file ({error}): {AGAIN}") from error
    if "FloatPixelData" in dataset or "DoubleFloatPixelData" in dataset:
        raise InputError("has float pixels: save it as a PNG of 16 bits")
    if "PixelData" not in dataset:
        if not marked and "Rows" not in dataset:
            raise InputError(f"is no DICOM, PNG or JPEG file: {AGAIN}")
        fault = "has no pixels" if "Rows" in dataset else "is cut short, or has no pixels"
        raise InputError(f"{fault}: {AGAIN}")
    if "TransferSyntaxUID" not in dataset.file_meta:  # a bare data set, as old archives have them
        implicit = dataset.original_encoding[0] is not False
        syntax = uid.ImplicitVRLittleEndian if implicit else uid.ExplicitVRLittleEndian
        dataset.file_meta.TransferSyntaxUID = syntax
    return dataset


def patient(dataset: pydicom.Dataset) -> str | None:
    """Return the PatientID, None where it is missing or blank."""
    return str(dataset.get("PatientID") or "").strip() or None


SPACING_TAGS = ["PixelSpacing", "ImagerPixelSpacing"]
TRAIT_TAGS = ["ViewPosition", "PatientSex", "PatientAge", "PatientID"]


def spacing(dataset: pydicom.Dataset) -> tuple[float, float] | None:
    """Return the pixel spacing, (between rows, between columns) in mm; None where unknown.

    Raises ValueError for one that is no number.
    """
    for values in map(dataset.get, SPACING_TAGS):
        if values is None or isinstance(values, str) or len(values) != 2:
            continue
        rows, columns = map(float, values)
        if 0 < rows < math.inf and 0 < columns < math.inf:
            return rows, columns
    return None


def traits(dataset: pydicom.Dataset) -> dict[str, str | float]:
    """Return view, sex, patient ("" unknown), age in years and mm_per_px (nan unknown).

    Pixels that are not square have no mm_per_px.
    """
    view, sex = (str(dataset.get(tag) or "").strip().upper() for tag in TRAIT_TAGS[:2])
    try:
        rows, columns = spacing(dataset) or (math.nan, math.nan)
    except ValueError:
        rows = columns = math.nan
    return {
        "view": view,
        "sex": sex,
        "age": years(str(dataset.get("PatientAge") or "")),
        "patient": patient(dataset) or "",
        "mm_per_px": rows if math.isclose(rows, columns, rel_tol=1e-3) else math.nan,
    }


def years(age: str) -> float:
    """Return the completed years of an age such as 57, 057Y or 018M; nan where it is none."""
    parts = re.fullmatch(r"(\d{1,3})(?:\.0*)?([YMWD]?)", age.strip(), re.IGNORECASE)
    if parts is None:
        return math.nan
    return float(int(parts[1]) // {"M": 12, "W": 52, "D": 365}.get(parts[2].upper(), 1))


def grey(dataset: pydicom.Dataset) -> tuple[np.ndarray, list[str]]:
    """Return (H, W) uint8, bones white, of a data set with pixels, and notes on it.

    Raises InputError, or on a damaged header any exception.
    """
    kind = _checked_kind(dataset)
    is_grey = kind in ("MONOCHROME1", "MONOCHROME2")
    unknown = InputError(
        f"is {kind}: only MONOCHROME1, MONOCHROME2 and 8-bit colour are read; save it as PNG"
    )
    if not is_grey and dataset.get("SamplesPerPixel") != 3:
        raise unknown
    words = _words(dataset)
    if words.ndim == 3 and words.shape[2] == 3 and words.dtype == np.uint8:
        stored = cv2.cvtColor(words, cv2.COLOR_RGB2GRAY)  # a photograph of a film, and the like
        return shown(np.arange(256, dtype=np.uint8), np.arange(256.0), stored)
    if words.ndim != 2 or not is_grey:
        raise unknown
    stored, bits, notes = pixel_values(words, dataset)
    levels = grey_levels(dataset, bits)
    if levels.by == "range" and not notes and bits < dataset.BitsStored:
        notes = [depth_note(bits)]
    table, values = levels.grey, levels.values
    if kind == "MONOCHROME1":
        table, values = 255 - table, -values
    if levels.lowest or stored.dtype != np.uint8:
        stored = stored.astype(np.int32) - levels.lowest
    pixels, flat = shown(
        table, values, stored, padding=padding(dataset, levels), by_window=levels.by == "window"
    )
    return pixels, notes + flat


def how_to_fix(error: Exception) -> str:
    """Return what to do about an error that a header or damage caused."""
    if re.search(r"'[+-]?\d*,\d+'", str(error)):
        return "write decimals with a point, not a comma"
    if re.search("Missing required element|has no attribute", str(error)):
        return "write the element that is missing, or save the image as PNG"
    return AGAIN


@contextmanager
def _quiet_about_ids() -> Iterator[None]:
    """Silence pydicom's warning on the competition's ids (ID_…), which are no valid UIDs."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Invalid value for VR UI")
        yield


def _check_inflated(data: bytes) -> None:
    """Raise ValueError where a deflated data set would be larger than any radiograph."""
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


def _checked_kind(dataset: pydicom.Dataset) -> str:
    """Return the photometric interpretation, in capitals; refuse a header that can't be right."""
    frames = int(dataset.get("NumberOfFrames") or 1)
    if frames != 1:
        raise InputError(
            f"states {frames} frames, and a radiograph is one: split the file, or correct its "
            "NumberOfFrames"
        )
    missing = [tag for tag in ("Rows", "Columns", "BitsStored") if not dataset.get(tag)]
    if missing:
        raise InputError(f"lacks {', '.join(missing)}: {AGAIN}")
    if not 1 <= dataset.BitsStored <= 16:
        raise InputError(f"has {dataset.BitsStored} bits: at most 16 are read; save as PNG")
    pictures.check_size((int(dataset.Rows), int(dataset.Columns)))
    kind = str(dataset.get("PhotometricInterpretation") or "").strip().upper()
    if not kind:
        raise InputError(
            "does not state its PhotometricInterpretation: write MONOCHROME2 into it, or "
            "MONOCHROME1 where bones are black"
        )
    if kind != dataset.PhotometricInterpretation:
        dataset.PhotometricInterpretation = kind  # pydicom knows them in capitals only
    return kind


def _words(dataset: pydicom.Dataset) -> np.ndarray:
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
        reason, fix = " ".join(str(error).split()), how_to_fix(error)
        if packages and "missing dependencies" in reason:
            reason, fix = "no decoder is installed", f"pip install {packages}"
        elif packages:
            fix += f"; or, if it is complete, add a decoder: pip install {packages}"
        name = uid.UID(syntax).name
        raise InputError(f"({name}) can't be decoded: {reason}; {fix}") from error


def _frame(dataset: pydicom.Dataset) -> bytes:
    """Return the pixels of the frame as stored. Raise ValueError if the header states another size.

    Decoders would lay out the bytes by the header, as a sheared picture.
    """
    stated = int(dataset.Rows), int(dataset.Columns)
    if dataset.file_meta.TransferSyntaxUID.is_encapsulated:
        frame = encaps.get_frame(dataset.PixelData, 0, number_of_frames=1)
        own = pictures.stated(frame)
        if own and own.size != stated:
            raise ValueError("its pixels are {}×{}, the header says {}".format(*own.size, stated))
        if own and own.bits > dataset.get("BitsAllocated", 16):
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
        return float(np.abs(np.diff(rows, axis=0)).mean()) if n_rows > 1 else 0

    return len(frame) % n_rows > 0 or length % n_rows > 0 or edges(length) <= edges(len(frame))


def _opencv_frame(dataset: pydicom.Dataset, frame: bytes) -> np.ndarray | None:
    """Return the frame as OpenCV decodes it, or None where pydicom has to decode or refuse it."""
    # OpenCV gives 8 bits unsigned only; what the header says is signed is pydicom's to interpret.
    if dataset.get("PixelRepresentation", 0) != 0:
        return None
    stored = pictures.decode(frame, in_dicom=True)
    is_right = stored is not None and stored.dtype == np.uint8
    return stored if is_right and stored.shape == (dataset.Rows, dataset.Columns) else None


FRONTAL = ("L", "F")  # rows towards the patient's left, columns towards the feet
AXES = ("LR", "PA", "HF")  # of ImageOrientationPatient, positive and negative
LATERAL = ("LL", "RL", "LAT", "LATERAL")
NO_CHEST = (
    "ABDOMEN", "ANKLE", "ARM", "BREAST", "CSPINE", "ELBOW", "EXTREMITY", "FEMUR", "FINGER", "FOOT",
    "FOREARM", "HAND", "HEAD", "HIP", "HUMERUS", "JAW", "KNEE", "LEG", "LSPINE", "NECK", "PELVIS",
    "SHOULDER", "SKULL", "TOE", "WRIST",
)  # fmt: skip


def view_notes(dataset: pydicom.Dataset) -> list[str]:
    """Return a note where the header states a lateral view, or another part than the chest."""
    return [
        f"{tag} is {stated} by the header: not a frontal chest radiograph, read anyway"
        for tag, others in (("ViewPosition", LATERAL), ("BodyPartExamined", NO_CHEST))
        if (stated := str(dataset.get(tag) or "").strip().upper()) in others
    ]


def orientation_notes(dataset: pydicom.Dataset) -> list[str]:
    """Return a note where the header states another orientation than frontal radiographs have.

    Source: DICOM PS3.3 C.7.6.1.1.1 (PatientOrientation) and C.7.6.2.1.1.
    """
    stated = _stated(dataset)
    if stated in (None, FRONTAL):
        return []
    return [
        f"rows run towards {stated[0]} and columns towards {stated[1]} by the header, where "
        "frontal radiographs have L and F: left as stored"
    ]


def _stated(dataset: pydicom.Dataset) -> tuple[str, str] | None:
    """Return the letters of rows and columns; None where nothing usable is stated."""
    letters = dataset.get("PatientOrientation") or ""
    if not isinstance(letters, str) and len(letters) == 2 and all(letters):
        return letters[0][0].upper(), letters[1][0].upper()
    cosines = dataset.get("ImageOrientationPatient") or ""
    if isinstance(cosines, str) or len(cosines) != 6:
        return None
    row, column = list(map(float, cosines[:3])), list(map(float, cosines[3:]))
    return (_main(row), _main(column)) if any(row) and any(column) else None


def _main(direction: Sequence[float]) -> str:
    """Return the letter of the axis nearest to a direction (x, y, z)."""
    axis = max(range(3), key=lambda i: abs(direction[i]))
    return AXES[axis][direction[axis] < 0]
