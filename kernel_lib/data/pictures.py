"""PNG and JPEG in memory: the size that they state, and their levels, decoded within bounds."""

from __future__ import annotations

import re
import struct
import zlib
from collections.abc import Iterator
from typing import NamedTuple

import cv2
import numpy as np

from kernel_lib.errors import InputError

PNG_MAGIC = b"\x89PNG\r\n\x1a\n"
JPEG_MAGIC = b"\xff\xd8\xff"
JPEG2000_START = b"\xff\x4f\xff\x51"
END_OF_JPEG = b"\xff\xd9"
EXIF = b"Exif\0\0"
JPEG_LS = 0xF7
# SOF markers: baseline to lossless and arithmetic, without DHT (C4), JPG (C8), DAC (CC); JPEG-LS.
START_OF_FRAME = {*range(0xC0, 0xD0), JPEG_LS} - {0xC4, 0xC8, 0xCC}
SEQUENTIAL = (0xC0, 0xC1, 0xC3)
RESTARTS = range(0xD0, 0xD8)
# Within a scan; 0xFF itself is stuffed there with a 0, hundreds to thousands of times.
MARKER_IN_SCAN = re.compile(rb"\xff[^\0]", re.DOTALL)
# Segments before the end: frames, tables, scans, application data, comments.
SEGMENTS = {*START_OF_FRAME, 0xC4, 0xCC, *range(0xDA, 0xF0), 0xFE}
# How files of other kinds begin, their kind, and the fix.
TO_PNG = "save it as PNG"
OTHERS = {
    **dict.fromkeys((b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"), ("a TIFF", TO_PNG)),
    b"GIF8": ("a GIF", TO_PNG),
    b"BM": ("a BMP", TO_PNG),
    b"RIFF": ("a WebP", TO_PNG),
    **dict.fromkeys((b"\0\0\0\x0cjP  ", JPEG2000_START), ("a JPEG 2000", TO_PNG)),
    **dict.fromkeys((b"ftyphei", b"ftyphev", b"ftypmif1"), ("a HEIC", TO_PNG)),
    b"ftypavi": ("an AVIF", TO_PNG),
    **dict.fromkeys((b"P2", b"P5"), ("a PGM", TO_PNG)),
    **dict.fromkeys((b"P3", b"P6"), ("a PPM", TO_PNG)),
    **dict.fromkeys((b"\x5c\1\0\0", b"\0\0\1\x5c"), ("a NIfTI", TO_PNG)),
    b"NRRD": ("an NRRD", TO_PNG),
    b"%PDF": ("a PDF", TO_PNG),
    b"\x93NUMPY": ("a NumPy array", TO_PNG),
    b"\x1f\x8b": ("packed by gzip", "unpack it"),
    b"PK\3\4": ("a zip", "unpack it"),
    b"version https://git-lfs": ("a pointer of Git LFS", "run git lfs pull"),
    b"<": ("a page of the web", "fetch it again"),
}
# The largest detectors have 20 million. A file that states more would fill the memory first.
MAX_PIXELS = 1 << 26


def other_kind(data: bytes) -> str | None:
    """Return the kind of a file that is no PNG or JPEG, and the fix; None where it is not known.

    Also of a JPEG that is decoded in a DICOM only.
    """
    if data.startswith(JPEG_MAGIC):
        header = stated(data)
        bits = header.bits if header else 8
        try:
            is_ls = any(marker == JPEG_LS for marker, _ in _segments(data))
        except (struct.error, IndexError):
            return None
        kind = "JPEG-LS" if is_ls else "JPEG"
        is_other = bits > 8 or is_ls
        return f"is a {kind} of {bits} bits by its content: {TO_PNG}" if is_other else None
    data = data[4:] if data[4:8] == b"ftyp" else data  # after the length of the box
    for start, (kind, fix) in OTHERS.items():
        if data.startswith(start):
            return f"is {kind} by its content: {fix}"
    return None


class Stated(NamedTuple):
    """What the header of a PNG, JPEG, JPEG-LS or JPEG 2000 states."""

    size: tuple[int, int]  # height, width
    bits: int  # of a level


def stated(data: bytes) -> Stated | None:
    """Return what a picture's header states, None where it is none or damaged."""
    try:
        if data.startswith(PNG_MAGIC):
            width, height, bits = struct.unpack_from(">IIB", data, 16)
        elif data.startswith(JPEG_MAGIC):
            at = next(at for marker, at in _segments(data) if marker in START_OF_FRAME)
            bits, height, width = struct.unpack_from(">BHH", data, at + 4)
        else:
            start = data.index(JPEG2000_START)
            right, bottom, left, top = struct.unpack_from(">IIII", data, start + 8)
            height, width, bits = bottom - top, right - left, (data[start + 42] & 0x7F) + 1
    except (struct.error, IndexError, ValueError, StopIteration):
        return None
    return Stated((height, width), bits)


def _segments(data: bytes) -> Iterator[tuple[int, int]]:
    """Yield the marker of each of a JPEG's segments before the scan, and where it stands.

    Raises: struct.error or IndexError where the file ends before that.
    """
    at = 2
    while True:
        while data[at] != 0xFF or data[at + 1] in (0x00, 0xFF):  # fill bytes
            at += 1
        marker = data[at + 1]
        if marker in (0xD9, 0xDA):
            return
        yield marker, at
        has_body = marker != 0x01 and not 0xD0 <= marker <= 0xD8
        at += 2 + (struct.unpack_from(">H", data, at + 2)[0] if has_body else 0)


def orientation(data: bytes) -> int:
    """Return the EXIF orientation, 1 to 8, of a PNG or JPEG; 1, as stored, where it has none."""
    try:
        tiff = _exif(data)
        order = {b"II": "<", b"MM": ">"}[tiff[:2]]
        (at,) = struct.unpack_from(f"{order}I", tiff, 4)
        (count,) = struct.unpack_from(f"{order}H", tiff, at)
        for entry in range(at + 2, at + 2 + 12 * count, 12):
            tag, _, _, value = struct.unpack_from(f"{order}HHIH", tiff, entry)
            if tag == 0x0112:
                return value if 1 <= value <= 8 else 1
    except (struct.error, IndexError, KeyError):
        pass
    return 1


def _exif(data: bytes) -> bytes:
    """Return the TIFF structure that holds the tags; empty where there is none."""
    if data.startswith(JPEG_MAGIC):
        for marker, at in _segments(data) if EXIF in data else ():
            if marker == 0xE1 and data.startswith(EXIF, at + 4):
                return data[at + 10 : at + 2 + struct.unpack_from(">H", data, at + 2)[0]]
        return b""
    if b"eXIf" not in data:
        return b""
    at = len(PNG_MAGIC)
    while True:
        (length,) = struct.unpack_from(">I", data, at)
        if data.startswith(b"eXIf", at + 4):
            return data[at + 8 : at + 8 + length].removeprefix(EXIF)
        at += 12 + length


def shown_size(data: bytes) -> tuple[int, int] | None:
    """Return (height, width) as viewers show a PNG or JPEG; None where none is stated."""
    header = stated(data)
    if header is None:
        return None
    return header.size if orientation(data) < 5 else header.size[::-1]


def _upright(levels: np.ndarray, how: int) -> np.ndarray:
    """Return levels (H, W) or (H, W, C) by their EXIF orientation. Source: CIPA DC-008, 4.6.4."""
    if how in (2, 4, 5, 7):  # mirrored, and then turned
        levels = levels[:, ::-1]
    quarters = {3: 2, 4: 2, 5: 1, 6: 3, 7: 3, 8: 1}.get(how, 0)  # counter-clockwise
    return np.ascontiguousarray(np.rot90(levels, quarters))


def check_size(shape: tuple[int, int]) -> None:
    """Raise InputError, without naming a file, for more pixels than are read, or for none."""
    height, width = shape
    if not 1 <= height * width <= MAX_PIXELS or min(shape) < 1:
        raise InputError(
            f"states {height:,} × {width:,} pixels, and 1 to {MAX_PIXELS:,} are read: fetch it "
            "again, or make it smaller"
        )


def decode(data: bytes, *, in_dicom: bool = False) -> np.ndarray | None:
    """Return the levels of a PNG or JPEG, (H, W) or (H, W, C); None where it is damaged.

    Turned by its EXIF orientation, as viewers do. A PNG's checksums are verified. A JPEG has none:
    a cut is noticed, a changed byte need not be. A DICOM's frame (`in_dicom`) is taken as stored
    and known to be complete. Raises: InputError, without naming a file, for too many pixels.
    """
    header = stated(data)
    if header is None:
        return None
    check_size(header.size)
    # OpenCV fills a JPEG that was cut short with grey and only warns: look for the end first.
    is_whole = is_whole_png if data.startswith(PNG_MAGIC) else is_whole_jpeg
    if not (in_dicom or is_whole(data)):
        return None
    try:
        levels = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    except cv2.error:
        return None
    if levels is None or levels.shape[:2] != header.size:
        return None
    return levels if in_dicom else _upright(levels, orientation(data))


def is_whole_png(data: bytes) -> bool:
    """Return whether a PNG has every chunk up to the end, with the right checksum."""
    at = len(PNG_MAGIC)
    while at + 12 <= len(data):
        (length,) = struct.unpack_from(">I", data, at)
        body = data[at + 4 : at + 8 + length]
        check = data[at + 8 + length : at + 12 + length]
        if len(check) < 4 or zlib.crc32(body) != int.from_bytes(check):
            return False
        if body[:4] == b"IEND":
            return True
        at += 12 + length
    return False


def is_whole_jpeg(data: bytes) -> bool:
    """Return whether a JPEG has all segments to the end, and only such markers as belong in a scan.

    At another marker a decoder fills the rest of the picture with grey.
    """
    at, in_scan, scanned, framed, restarts, count = 2, False, False, False, False, 0
    left = 0  # components that are still to come; progressive frames send each many times
    while True:
        if in_scan:
            match = MARKER_IN_SCAN.search(data, at)
            at = match.start() if match else -1
        if at < 0 or at + 4 > len(data) + 2 * (data[at + 1 : at + 2] == b"\xd9"):
            return False
        marker = data[at + 1]
        if data[at] != 0xFF:
            return False
        if marker == 0xFF:  # fill
            at += 1
        elif marker in RESTARTS:
            if not (in_scan and restarts and marker == RESTARTS[count % 8]):
                return False
            at, count = at + 2, count + 1
        elif marker == 0xD9:
            return scanned and not _goes_on(data[at + 2 :])
        elif marker not in SEGMENTS or (framed and marker in START_OF_FRAME):
            return False
        else:
            in_scan, count = marker == 0xDA, 0
            scanned, framed = scanned or in_scan, framed or marker in START_OF_FRAME
            if marker == 0xDD:
                restarts = data[at + 4 : at + 6] != b"\0\0"
            (length,) = struct.unpack_from(">H", data, at + 2)
            if marker in START_OF_FRAME:
                left = sum(data[at + 9 : at + 10]) if marker in SEQUENTIAL else 1 << 16
            if in_scan:
                # A scan's header is as long as its components take, and each is sent but once.
                sent = sum(data[at + 4 : at + 5])
                left -= sent
                if left < 0 or length != 6 + 2 * sent:
                    return False
            at += 2 + length


def _goes_on(rest: bytes) -> bool:
    """Return whether the bytes after an end of the picture are its rest, so that it was none."""
    rest = rest.lstrip(b"\0")
    return END_OF_JPEG in rest and not rest.startswith(JPEG_MAGIC)  # cameras append a preview
