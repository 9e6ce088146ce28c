"""EXIF orientation as Pillow applies it, in every kind of file, and bits that files state."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image, ImageOps

from kernel_lib.data import pictures

GREY = np.random.default_rng(0).integers(0, 256, (5, 8), np.uint8)
COLOUR = np.random.default_rng(1).integers(0, 256, (5, 8, 3), np.uint8)
LEVELS_16 = np.random.default_rng(2).integers(0, 65536, (5, 8), np.uint16)


def encoded(levels: np.ndarray, kind: str, how: int | None = None, order: str = "<") -> bytes:
    exif = Image.Exif()
    exif.endian = order
    if how is not None:
        exif[0x010F], exif[0x0112], exif[0x0131] = "maker", how, "software"
    file = io.BytesIO()
    Image.fromarray(levels).save(file, kind, **({} if how is None else {"exif": exif}))
    return file.getvalue()


@pytest.mark.parametrize("how", range(1, 9))
@pytest.mark.parametrize(
    ("levels", "kind"),
    [(GREY, "PNG"), (COLOUR, "PNG"), (LEVELS_16, "PNG"), (GREY, "JPEG"), (COLOUR, "JPEG")],
    ids=["grey PNG", "colour PNG", "16-bit PNG", "grey JPEG", "colour JPEG"],
)
def test_a_picture_is_turned_as_viewers_do(levels, kind, how):
    data = encoded(levels, kind, how)
    with Image.open(io.BytesIO(data)) as opened:
        expected = np.asarray(ImageOps.exif_transpose(opened))
    result = pictures.decode(data)
    assert result.flags.c_contiguous
    result = result[:, :, ::-1] if result.ndim == 3 else result  # OpenCV's BGR
    if kind == "PNG":
        np.testing.assert_array_equal(result, expected)
    else:  # decoders round otherwise, and turned blocks are no longer those of the other
        assert np.abs(result.astype(int) - expected).max() <= 3
    assert pictures.shown_size(data) == expected.shape[:2]
    assert pictures.orientation(data) == how


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_frames_of_dicoms_and_pictures_without_a_valid_orientation_are_as_stored(kind):
    for order in "<>":
        data = encoded(GREY, kind, 8, order)
        assert pictures.orientation(data) == 8
        assert pictures.decode(data, in_dicom=True).shape == GREY.shape
    for how in (None, 0, 9):
        data = encoded(GREY, kind, how)
        assert pictures.orientation(data) == 1
        assert pictures.decode(data).shape == GREY.shape
    data = encoded(GREY, kind, 6)
    at = data.index(b"II*\0") + 4
    assert pictures.orientation(data[:at] + b"\xff" * 4 + data[at + 4 :]) == 1  # beyond the end


def test_the_chunk_is_read_wherever_it_stands():
    data = encoded(GREY, "PNG")
    tiff = b"MM\0*" + struct.pack(">IHHHIHH", 8, 1, 0x0112, 3, 1, 6, 0)
    chunk = struct.pack(">I", len(tiff)) + b"eXIf" + tiff + zlib.crc32(b"eXIf" + tiff).to_bytes(4)
    data = data[:-12] + chunk + data[-12:]  # before the end
    np.testing.assert_array_equal(pictures.decode(data), np.rot90(GREY, -1))


def test_size_and_bits_that_a_header_states():
    for kind in ("PNG", "JPEG", "JPEG2000"):
        assert pictures.stated(encoded(GREY, kind)) == ((5, 8), 8)
    for kind in ("PNG", "JPEG2000"):
        assert pictures.stated(encoded(LEVELS_16, kind)) == ((5, 8), 16)
    assert pictures.stated(encoded(GREY, "JPEG")[:20]) is None
    assert pictures.stated(b"\0" * 50) is None


@pytest.mark.parametrize(
    ("start", "kind"),
    [
        (b"II+\0\x08\0\0\0", "TIFF"), (b"MM\0+\0\x08", "TIFF"), (b"NRRD0004\n", "NRRD"),
        (b"\0\0\0\x0cjP  \r\n\x87\n", "JPEG 2000"), (b"\xff\x4f\xff\x51\0", "JPEG 2000"),
        (b"\0\0\0\x24ftypheic", "HEIC"), (b"\0\0\0\x18ftypmif1", "HEIC"),
        (b"\0\0\0\x20ftypavif", "AVIF"), (b"%PDF-1.4", "PDF"), (b"P5\n10 10\n255\n", "PGM"),
        (b"\x5c\1\0\0", "NIfTI"), (b"\0\0\1\x5c", "NIfTI"),
        (b"", None), (b"\x08\0\x05\0<\0\0\0", None), (b"\0\0\0\x18ftypmp42", None),
    ],
)  # fmt: skip
def test_other_kinds_are_known_by_their_content(start, kind):
    for message in map(pictures.other_kind, (start, start + bytes(400))):
        assert message is None if kind is None else f" {kind} " in message and "PNG" in message


def of_frame(marker: int, bits: int) -> bytes:
    """A JPEG with that start of frame."""
    frame = struct.pack(">BHHB", bits, 5, 8, 1) + bytes([1, 0x11, 0])
    head = b"\xff\xd8\xff\xe0\0\x04ab" + bytes([0xFF, marker]) + struct.pack(">H", 11) + frame
    return head + b"\xff\xda\0\x08\1\1\0\0\x3f\0" + bytes(9) + b"\xff\xd9"


@pytest.mark.parametrize(
    ("data", "kind"),
    [
        (of_frame(0xC1, 12), "JPEG of 12 bits"),
        (of_frame(0xC3, 16), "JPEG of 16 bits"),
        (of_frame(0xF7, 8), "JPEG-LS of 8 bits"),
        (of_frame(0xF7, 12), "JPEG-LS of 12 bits"),
        (of_frame(0xC0, 8), None),
        (encoded(GREY, "JPEG"), None),
        (encoded(GREY, "JPEG")[:20], None),
    ],
)
def test_a_jpeg_that_only_dicoms_hold_is_named(data, kind):
    message = pictures.other_kind(data)
    assert message is None if kind is None else f" {kind} " in message
