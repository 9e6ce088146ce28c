"""Every kind of DICOM against pydicom's own steps, and PNG and JPEG; edge files of real makers."""

from __future__ import annotations

import struct
import warnings
from importlib.util import find_spec
from io import BytesIO

import cv2
import numpy as np
import pydicom
import pytest
from PIL import Image
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.pixels import apply_modality_lut, apply_voi_lut
from pydicom.pixels.decoders import JPEG2000LosslessDecoder
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGExtended12Bit,
    JPEGLosslessSV1,
    RLELossless,
)

from kernel_lib.data import images
from kernel_lib.data.levels import FLAT, MISSED, WRONG_BITS, WRONG_SIGN, depth_note

SHAPE = (24, 40)
RAMP = (np.add(*np.mgrid[:64, :65]) * 4095 // 127).astype(np.uint16)  # 12 bits, 128 levels


def pixels_of(bits: int, *, signed: bool = False) -> np.ndarray:
    """Random stored values with both ends of the range among them."""
    low, high = (-(1 << (bits - 1)), (1 << (bits - 1)) - 1) if signed else (0, (1 << bits) - 1)
    values = np.random.default_rng(bits).integers(low, high + 1, SHAPE)
    values[0, :2] = low, high
    dtype = np.uint8 if bits <= 8 else np.uint16
    return values.astype(np.dtype(f"i{dtype().itemsize}") if signed else dtype)


def lossless_jpeg(pixels: np.ndarray, bits: int) -> bytes:
    """A lossless JPEG (process 14, predictor 1). Source: ITU-T T.81, annex H."""
    values = pixels.astype(np.int64)
    guess = np.empty_like(values)
    guess[:, 1:], guess[1:, 0], guess[0, 0] = values[:, :-1], values[:-1, 0], 1 << (bits - 1)
    stream = ""
    for step in (values - guess).ravel().tolist():
        size = abs(step).bit_length()
        code = step if step > 0 else step + (1 << size) - 1
        stream += f"{size:05b}" + (f"{code:0{size}b}" if size else "")
    stream += "1" * (-len(stream) % 8)
    scan = int(stream, 2).to_bytes(len(stream) // 8, "big").replace(b"\xff", b"\xff\x00")

    def segment(marker: int, body: bytes) -> bytes:
        return bytes([0xFF, marker]) + struct.pack(">H", len(body) + 2) + body

    frame = struct.pack(">BHHB", bits, *pixels.shape, 1) + bytes([1, 0x11, 0])
    huffman = bytes([0, 0, 0, 0, 0, 17, *[0] * 11, *range(17)])  # 17 codes, 5 bits each
    head = segment(0xC3, frame) + segment(0xC4, huffman) + segment(0xDA, bytes([1, 1, 0, 1, 0, 0]))
    return b"\xff\xd8" + head + scan + b"\xff\xd9"


def encoded(pixels: np.ndarray, syntax: str, bits: int) -> tuple[bytes, np.ndarray]:
    """The pixel data element, and the stored values that it decodes to."""
    if syntax == JPEGLosslessSV1:
        return encapsulate([lossless_jpeg(pixels, bits)]), pixels
    if syntax in (JPEGBaseline8Bit, JPEG2000Lossless):
        file = BytesIO()
        if syntax == JPEGBaseline8Bit:
            Image.fromarray(pixels).save(file, "JPEG", quality=90)
        else:
            Image.fromarray(pixels).save(file, "JPEG2000", no_jp2=True)
        return encapsulate([file.getvalue()]), np.asarray(Image.open(file))
    return pixels.tobytes(), pixels


def dataset_of(pixels, bits, *, syntax=ExplicitVRLittleEndian, kind="MONOCHROME2", **elements):
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    own = ExplicitVRLittleEndian if syntax == RLELossless else syntax
    dataset.file_meta.TransferSyntaxUID = own
    dataset.file_meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.1"
    dataset.SOPClassUID = dataset.file_meta.MediaStorageSOPClassUID
    dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = "1.2.3"
    dataset.PhotometricInterpretation, dataset.SamplesPerPixel = kind, 1
    dataset.Rows, dataset.Columns = pixels.shape
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = pixels.itemsize * 8, bits, bits - 1
    dataset.PixelRepresentation = int(pixels.dtype.kind == "i")
    dataset.PatientID = " P7 "
    dataset.PixelData, stored = encoded(pixels, syntax, bits)
    dataset["PixelData"].VR = "OB" if pixels.itemsize == 1 else "OW"
    dataset.update(elements)
    if syntax == RLELossless:
        dataset.compress(RLELossless)
    return dataset, stored


def saved(dataset: Dataset, folder, name="image.dcm"):
    dataset.save_as(folder / name, enforce_file_format=True)
    return folder / name


def written(folder, name: str, pixels: np.ndarray):
    path = folder / name
    ok, data = cv2.imencode(path.suffix, pixels)
    assert ok
    path.write_bytes(data.tobytes())
    return path


@pytest.fixture
def opened(tmp_path):
    """Write a DICOM by `dataset_of`, or a data set given, and return its radiograph."""

    def call(given, *args, **elements) -> images.Radiograph:
        dataset = given if isinstance(given, Dataset) else dataset_of(given, *args, **elements)[0]
        return images.open_radiograph(saved(dataset, tmp_path))

    return call


equal = np.testing.assert_array_equal


def refused(path, words: str, read=images.read) -> str:
    """The message of an image that is refused with these words."""
    with pytest.raises(images.ImageError, match=words) as error:
        read(path)
    return str(error.value)


def stretched(values: np.ndarray, low: float, high: float) -> np.ndarray:
    return np.floor((values - low) / (high - low) * 255 + 0.5)


def lut(n_entries: int, first: int, bits: int) -> list[Dataset]:
    item = Dataset()
    vr = "SS" if first < 0 else "US"
    item.add_new("LUTDescriptor", vr, [n_entries % 65536, first, bits])
    curve = np.linspace(0, 1, n_entries) ** 0.7 * ((1 << bits) - 1)
    item.add_new("LUTData", "US", np.rint(curve).astype(int).tolist())
    return [item]


def expected(stored: np.ndarray, dataset: Dataset) -> np.ndarray:
    """The same steps by pydicom, and its output range stretched to 0..255."""
    bits, signed = dataset.BitsStored, bool(dataset.PixelRepresentation)
    ends = np.array([-(1 << (bits - 1)), (1 << (bits - 1)) - 1] if signed else [0, (1 << bits) - 1])
    values, ends = (apply_modality_lut(array, dataset) for array in (stored, ends))
    if "ModalityLUTSequence" in dataset:
        ends = np.array([0, (1 << dataset.ModalityLUTSequence[0].LUTDescriptor[2]) - 1])
    if "VOILUTSequence" in dataset:
        values = apply_voi_lut(np.rint(values).astype(np.int64), dataset)
        ends = np.array([0, (1 << dataset.VOILUTSequence[0].LUTDescriptor[2]) - 1])
    elif "WindowWidth" in dataset:
        values = apply_voi_lut(values, dataset, prefer_lut=False)
    grey = stretched(values.astype(np.float64), *np.sort(ends.astype(np.float64)))
    is_inverted = dataset.PhotometricInterpretation == "MONOCHROME1"
    return (255 - grey if is_inverted else grey).astype(np.uint8)


def views(bits: int) -> dict[str, dict]:
    """Name of a way to show the pixels → its DICOM elements."""
    span = 1 << bits
    window = {"WindowCenter": span * 0.45, "WindowWidth": span * 0.6}
    return {
        "none": {},
        "window": window,
        "first of two windows": {
            "WindowCenter": [span // 3, 9], "WindowWidth": [span // 2, 2],
            "WindowCenterWidthExplanation": ["A", "B"],
        },
        "exact window": {**window, "VOILUTFunction": "LINEAR_EXACT"},
        "sigmoid": {**window, "VOILUTFunction": "SIGMOID"},
        "rescale": {"RescaleSlope": 2, "RescaleIntercept": -100},
        "falling rescale": {"RescaleSlope": -1, "RescaleIntercept": span - 1},
        "rescale and window": {
            "RescaleSlope": 2, "RescaleIntercept": -100,
            "WindowCenter": span - 100, "WindowWidth": span,
        },
        "VOI LUT": {"VOILUTSequence": lut(min(span, 4096), 3, 12)},
        "rescale and VOI LUT": {
            "RescaleSlope": 1, "RescaleIntercept": -50,
            "VOILUTSequence": lut(min(span, 20_000), -20, 16),
        },
        "modality LUT": {"ModalityLUTSequence": lut(min(span, 4096), 0, 16)},
        "modality LUT and window": {
            "ModalityLUTSequence": lut(min(span, 4096), 0, 16),
            "WindowCenter": 30000, "WindowWidth": 40000,
        },
    }  # fmt: skip


SYNTAXES = {
    "implicit": (ImplicitVRLittleEndian, (8, 10, 12, 15, 16)),
    "explicit": (ExplicitVRLittleEndian, (8, 10, 12, 15, 16)),
    "deflated": (DeflatedExplicitVRLittleEndian, (8, 12)),
    "RLE": (RLELossless, (8, 12, 16)),
    "JPEG baseline": (JPEGBaseline8Bit, (8,)),
    "JPEG lossless": (JPEGLosslessSV1, (8,)),
    "JPEG 2000": (JPEG2000Lossless, (8, 10, 12, 16)),
}
KINDS = ("MONOCHROME1", "MONOCHROME2")
CASES = [
    pytest.param(syntax, bits, view, kind, id=f"{name}-{bits}-{view}-{kind[-1]}")
    for name, (syntax, all_bits) in SYNTAXES.items()
    for bits in all_bits
    for view in views(8)
    for kind in KINDS
]


@pytest.mark.parametrize(("syntax", "bits", "view", "kind"), CASES)
def test_grey_is_what_pydicom_gives(tmp_path, syntax, bits, view, kind):
    elements = views(bits)[view]
    dataset, stored = dataset_of(pixels_of(bits), bits, syntax=syntax, kind=kind, **elements)
    grey = images.read(saved(dataset, tmp_path))
    assert grey.dtype == np.uint8
    assert grey.flags.c_contiguous
    equal(grey, expected(stored, dataset))


@pytest.mark.parametrize("bits", [8, 12, 16])
@pytest.mark.parametrize("kind", KINDS)
def test_signed_pixels(opened, bits, kind):
    dataset, stored = dataset_of(pixels_of(bits, signed=True), bits, kind=kind)
    grey = opened(dataset).pixels
    equal(grey, expected(stored, dataset))
    assert grey[0, 0] == (255 if kind == "MONOCHROME1" else 0)


def test_unused_high_bits_are_ignored(opened):
    clean = pixels_of(12)
    equal(opened(clean | np.uint16(0xF000), 12).pixels, opened(clean, 12).pixels)


@pytest.mark.parametrize(
    "elements",
    [
        {"RescaleSlope": 1, "RescaleIntercept": 0},
        {"WindowCenter": 0, "WindowWidth": 0},  # a window of no width is none
        {"PixelPaddingValue": 65535},  # beyond the bits
    ],
)
def test_8_bits_pass_through(opened, elements):
    equal(opened(pixels_of(8), 8, **elements).pixels, pixels_of(8))


@pytest.mark.parametrize(
    ("centres", "widths", "window"),
    [
        (["", "2000"], ["", "1500"], (2000, 1500)),
        (["", "2000"], ["900", "1500"], (2000, 1500)),
        (["300", "2000"], ["", "1500"], (2000, 1500)),
        (["2000", ""], ["1500", ""], (2000, 1500)),
        (["2000", "300"], "1500", (2000, 1500)),
        (["", ""], ["", ""], None),
        (["", "2000"], "1500", None),
    ],
)
def test_the_first_window_that_is_complete_is_taken(opened, centres, widths, window):
    elements = dict(zip(("WindowCenter", "WindowWidth"), window, strict=True)) if window else {}
    single, stored = dataset_of(RAMP, 12, **elements)
    result = opened(RAMP, 12, WindowCenter=centres, WindowWidth=widths)
    equal(result.pixels, expected(stored, single))
    assert result.notes == ()


def test_packed_lut_of_bytes(opened):
    item = Dataset()
    item.add_new("LUTDescriptor", "US", [256, 0, 8])
    item.add_new("LUTData", "OW", bytes(range(255, -1, -1)))
    equal(opened(pixels_of(8), 8, VOILUTSequence=[item]).pixels, 255 - pixels_of(8))


def test_colour_dicom_becomes_grey(opened):
    dataset, grey = dataset_of(pixels_of(8), 8, SamplesPerPixel=3, PlanarConfiguration=0)
    dataset.PhotometricInterpretation = "RGB"
    dataset.PixelData = np.dstack([grey] * 3).tobytes()
    equal(opened(dataset).pixels, grey)


def test_odd_file_headers(tmp_path):
    dataset, stored = dataset_of(pixels_of(8), 8, syntax=ImplicitVRLittleEndian)
    path = saved(dataset, tmp_path)
    path.write_bytes(b"II*\0" + path.read_bytes()[4:])  # a preamble as of a TIFF
    equal(images.read(path), stored)
    del dataset.file_meta
    dataset.save_as(path, implicit_vr=True, little_endian=True, enforce_file_format=False)
    equal(images.read(path), stored)


def test_ids_that_are_no_uids_cause_no_warning(tmp_path):
    dataset, _ = dataset_of(pixels_of(8), 8)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = "ID_0011fe81e"
        path = saved(dataset, tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        images.read(path)
        assert images.size_of(path) == SHAPE
        assert images.patient_of(path) == "P7"


# --- headers that lie, and pictures gone flat ------------------------------------------------


@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, RLELossless, JPEG2000Lossless])
@pytest.mark.parametrize(
    ("factor", "bits", "high"), [(16, 12, 15), (2, 12, 11), (16, 12, 11), (1, 12, 15), (1, 10, 9)]
)
def test_a_ramp_stays_a_ramp(opened, syntax, factor, bits, high):
    result = opened(RAMP * factor, bits, syntax=syntax, HighBit=high)
    assert (np.diff(result.pixels.astype(int), axis=1) >= 0).all()
    assert len(np.unique(result.pixels)) > 100
    assert result.notes == (() if (factor, high) == (16, 15) else (WRONG_BITS,))


@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, RLELossless])
@pytest.mark.parametrize(
    ("values", "bits", "elements"),
    [
        (RAMP.astype(np.int16), 12, {}),
        ((RAMP << 4).view(np.int16), 16, {}),
        ((RAMP >> 4).astype(np.uint8).view(np.int8), 8, {}),
        ((RAMP - 2048).astype(np.uint16), 12, {}),
        ((RAMP - 1024).astype(np.uint16), 14, {"WindowCenter": 1024, "WindowWidth": 4096}),
    ],
)
def test_a_ramp_whose_sign_is_wrong_stays_a_ramp(opened, syntax, values, bits, elements):
    result = opened(values, bits, syntax=syntax, **elements)
    right = RAMP if values.itemsize == 2 else RAMP >> 4 << 4
    assert np.abs(result.pixels - right / 4095 * 255).max() < 1.1
    assert result.notes == (WRONG_SIGN,)


@pytest.mark.parametrize(("allocated", "stored"), [(8, 8), (16, 8), (16, 12)])
def test_a_codestream_of_more_bits_than_are_allocated_is_not_cut(opened, allocated, stored):
    smooth = cv2.GaussianBlur(pixels_of(16), (0, 0), 1)
    result = opened(smooth, stored, syntax=JPEG2000Lossless, BitsAllocated=allocated)
    equal(result.pixels, stretched(smooth, 0, 65535))
    assert result.notes == (WRONG_BITS,)


@pytest.mark.parametrize(("allocated", "stored"), [(16, 12), (16, 16), (8, 7)])
def test_a_baseline_jpeg_has_8_bits_whatever_the_header_says(opened, allocated, stored):
    dataset, levels = dataset_of((RAMP >> 4).astype(np.uint8), 8, syntax=JPEGBaseline8Bit)
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = allocated, stored, stored - 1
    result = opened(dataset)
    equal(result.pixels, levels)
    assert result.notes == (WRONG_BITS,)


@pytest.mark.parametrize(
    ("values", "bits", "window", "note"),
    [
        (RAMP * 4, 14, (2048, 4096), MISSED),
        (RAMP * 16, 16, (2048, 4096), FLAT),
        (RAMP, 12, (128, 256), FLAT),
        (RAMP, 12, (40, 400), FLAT),
        (12000 + RAMP // 2, 16, (3174, 2426), FLAT),
        *(
            (RAMP >> shift, bits, None, FLAT)
            for shift, bits in ((0, 14), (0, 15), (2, 12), (4, 12))
        ),
    ],
)
@pytest.mark.parametrize("kind", KINDS)
def test_a_picture_gone_flat_or_beyond_its_window_is_stretched(
    opened, values, bits, window, note, kind
):
    elements = dict(zip(("WindowCenter", "WindowWidth"), window, strict=True)) if window else {}
    result = opened(values.astype(np.uint16), bits, kind=kind, **elements)
    low, high = values.min(), values.max()
    right = values if kind == "MONOCHROME2" else high - values + low
    equal(result.pixels, stretched(right.astype(float), low, high))
    assert result.notes == (note,)


@pytest.mark.parametrize(
    ("padding", "elements"),
    [
        (63536, {"PixelPaddingValue": 63536}),
        (63536, {"PixelPaddingValue": 60000, "PixelPaddingRangeLimit": 65535}),
        (63536, {"PixelPaddingValue": 65535, "PixelPaddingRangeLimit": 60000}),
        (-32768, {"PixelPaddingValue": -32768}),
    ],
)
def test_padding_that_is_stated_does_not_set_the_range(opened, padding, elements):
    values = RAMP.astype(np.int64) - 1000 * (padding < 0)
    values[:9] = padding
    result = opened(values.astype(np.uint16 if padding > 0 else np.int16), 16, **elements)
    seen = RAMP[9:].astype(float)
    equal(result.pixels[9:], stretched(seen, seen.min(), seen.max()))
    assert not result.pixels[:9].any()
    assert FLAT in result.notes


@pytest.mark.parametrize(
    ("bits", "window"),
    [(12, (2000, 1500)), (16, (2048, 4096))],  # 16 bits of which 12 are in use: no difference
)
def test_a_window_on_the_values_is_kept(opened, bits, window):
    dataset, _ = dataset_of(RAMP, bits, WindowCenter=window[0], WindowWidth=window[1])
    result = opened(dataset)
    equal(result.pixels, expected(RAMP, dataset))
    assert result.notes == ()


@pytest.mark.parametrize(("shift", "bits"), [(4, 8), (2, 10), (0, 12), (-2, 14)])
def test_fewer_bits_in_16_without_a_window(tmp_path, opened, shift, bits):
    values = RAMP >> shift if shift > 0 else RAMP << -shift
    for result in (opened(values, 16), images.open_radiograph(written(tmp_path, "a.png", values))):
        equal(result.pixels, stretched(values, 0, 2**bits - 1))
        assert result.notes == (depth_note(bits),)
    dark = (RAMP >> 8).astype(np.uint8)  # 0 to 15
    result = images.open_radiograph(written(tmp_path, "dark.png", dark))
    equal(result.pixels, dark * 17)
    assert result.notes == (FLAT,)


def test_a_mask_and_a_picture_of_one_level_are_no_radiographs(tmp_path):
    black = np.zeros(SHAPE, np.uint8)
    mask = black.copy()
    mask[5:15, 9:30] = 1
    for path in (
        written(tmp_path, "black.png", black),
        written(tmp_path, "alpha.png", np.dstack([black] * 3 + [pixels_of(8)])),
        saved(dataset_of(black + np.uint16(77), 16)[0], tmp_path, "same.dcm"),
        written(tmp_path, "mask.png", mask * 255),
        saved(dataset_of(mask, 1)[0], tmp_path, "mask.dcm"),
    ):
        refused(path, path.name)


@pytest.mark.filterwarnings("ignore:Invalid value for VR CS")
@pytest.mark.parametrize("kind", KINDS)
def test_kinds_in_small_letters_are_known(opened, kind):
    dataset, _ = dataset_of(pixels_of(8), 8, kind=kind)
    right = opened(dataset).pixels
    dataset.PhotometricInterpretation = f" {kind.lower()} "
    equal(opened(dataset).pixels, right)


@pytest.mark.parametrize("excess", [2, 48, 128, 1024])  # 48 bytes: a column of SHAPE
def test_excess_padding_is_left_out(opened, excess):
    dataset, _ = dataset_of(cv2.GaussianBlur(pixels_of(12), (0, 0), 4), 12)
    right = opened(dataset).pixels
    dataset.PixelData += bytes(excess)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        equal(opened(dataset).pixels, right)


def test_a_wider_picture_that_ends_in_black_is_not_taken_for_padding(tmp_path):
    wide = cv2.GaussianBlur(np.pad(pixels_of(12), ((0, 0), (0, 2))), (0, 0), 4)
    wide[-2:] = 0
    dataset, _ = dataset_of(wide, 12)
    dataset.Columns -= 2
    refused(saved(dataset, tmp_path), "bytes of pixels")


# --- what a radiograph is noted for ---------------------------------------------------------


@pytest.mark.parametrize(
    ("elements", "notes"),
    [
        ({"PatientOrientation": ["R", "F"]}, ["rows"]),
        ({"ViewPosition": "LL", "PatientOrientation": ["A", "F"]}, ["rows", "ViewPosition"]),
    ],
)
def test_orientation_and_lateral_views_are_named_and_left(opened, elements, notes):
    result = opened(pixels_of(8), 8, **elements)
    equal(result.pixels, pixels_of(8))
    assert result.patient == "P7"
    assert [note.split()[0] for note in result.notes] == notes


@pytest.mark.parametrize("suffix", [".png", ".jpg"])
def test_a_picture_is_turned_by_its_exif_and_named(tmp_path, suffix):
    exif = Image.Exif()
    exif[0x0112] = 6  # a quarter clockwise
    path = tmp_path / f"a{suffix}"
    Image.fromarray(pixels_of(8)).save(path, exif=exif)
    result = images.open_radiograph(path)
    equal(result.pixels, np.rot90(np.asarray(Image.open(path)), -1))
    assert images.size_of(path) == result.pixels.shape == SHAPE[::-1]
    assert result.notes == (images.TURNED,)


def test_notes_are_counted_and_the_first_file_named():
    lines = images.noted({"a": (), "b": ("x", "y"), "c": ("x",)})
    assert len(lines) == 2
    for line, note, count in zip(lines, "xy", ("2 of 3", "1 of 3"), strict=True):
        assert line.startswith(note)
        assert f"{count} images, b first" in line


# --- what can't be read ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("bits", "tag", "value", "word"),
    [
        (12, "PhotometricInterpretation", None, "MONOCHROME1"),
        (12, "PhotometricInterpretation", "", "MONOCHROME1"),
        (12, "PhotometricInterpretation", "MONOCHROME", "PNG"),
        (12, "PixelRepresentation", None, "Pixel Representation"),
        (8, "PhotometricInterpretation", "PALETTE COLOR", "PALETTE COLOR"),
        (8, "NumberOfFrames", 4, "4 frames.*NumberOfFrames"),
        (8, "BitsStored", 32, "32 bits"),
        (8, "Rows", 0, "lacks Rows"),
        (8, "VOILUTSequence", [Dataset()], "damaged header"),
        (8, "PixelData", None, "has no pixels"),
    ],
)
def test_a_header_that_is_no_radiograph_is_named(tmp_path, bits, tag, value, word):
    dataset, _ = dataset_of(pixels_of(bits), bits)
    if value is None:
        delattr(dataset, tag)
    else:
        setattr(dataset, tag, value)
    message = refused(saved(dataset, tmp_path), word)
    assert bits == 8 or "fetch" not in message  # those can be corrected


@pytest.mark.parametrize("tag", ["FloatPixelData", "DoubleFloatPixelData"])
def test_float_pixels_are_named(tmp_path, tag):
    dataset, _ = dataset_of(pixels_of(8), 8)
    del dataset.PixelData
    setattr(dataset, tag, bytes(8 * SHAPE[0] * SHAPE[1]))
    refused(saved(dataset, tmp_path), "float.*PNG")


@pytest.mark.parametrize("tag", ["WindowCenter", "RescaleIntercept"])
def test_a_comma_in_a_decimal_is_named(tmp_path, tag):
    elements = {"WindowCenter": "100", "WindowWidth": "90", "RescaleSlope": "1"} | {tag: "40.5"}
    path = saved(dataset_of(pixels_of(12), 12, **elements)[0], tmp_path)
    path.write_bytes(path.read_bytes().replace(b"40.5", b"40,5"))
    assert "fetch" not in refused(path, r"40,5.*comma")


def test_kinds_of_jpeg_that_cannot_be_decoded_here_are_named(tmp_path, monkeypatch):
    if not any(find_spec(name) for name in ("libjpeg", "gdcm")):  # optional decoders
        path = saved(dataset_of(pixels_of(12), 12, syntax=JPEGLosslessSV1)[0], tmp_path)
        # The file is complete: it need not be fetched again.
        assert "fetch" not in refused(path, "pip install pylibjpeg pylibjpeg-libjpeg")
    monkeypatch.setattr(JPEG2000LosslessDecoder, "_available", {})
    path = saved(dataset_of(pixels_of(8), 8, syntax=JPEG2000Lossless)[0], tmp_path)
    refused(path, r"image\.dcm.*pylibjpeg-openjpeg")
    dataset, _ = dataset_of(pixels_of(8), 8, syntax=JPEGBaseline8Bit)
    dataset.file_meta.TransferSyntaxUID = JPEGExtended12Bit
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = 16, 12, 11
    refused(saved(dataset, tmp_path), "JPEG Extended")
    path.write_bytes(lossless_jpeg(pixels_of(16), 16))
    refused(path, "16 bits.*PNG")


@pytest.mark.filterwarnings("ignore:End of file reached")
@pytest.mark.parametrize("share", [0.02, 0.1, 0.5, 0.9, 0.99])
@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, JPEGBaseline8Bit, JPEG2000Lossless])
def test_truncated_dicom(tmp_path, share, syntax):
    path = saved(dataset_of(pixels_of(8), 8, syntax=syntax)[0], tmp_path)
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    refused(path, r"image\.dcm")


def test_frame_cut_inside_a_complete_dicom(tmp_path):
    dataset, _ = dataset_of(pixels_of(8), 8, syntax=JPEGBaseline8Bit)
    frame = pydicom.encaps.get_frame(dataset.PixelData, 0, number_of_frames=1)
    dataset.PixelData = encapsulate([frame[: len(frame) // 2]])
    refused(saved(dataset, tmp_path), "JPEG Baseline")


@pytest.mark.parametrize(
    ("name", "content", "word"),
    [
        ("odd.dcm", b"", "is empty"),
        ("odd.dcm", b"ImageId, EncodedPixels\n", "no DICOM, PNG or JPEG"),
        ("odd.dcm", b"\0" * 1000, "no DICOM, PNG or JPEG"),
        ("odd.dcm", bytes(range(256)) * 9, "no DICOM, PNG or JPEG"),
        ("odd.png", b"version https://git-lfs.github.com/spec/v1\noid sha256:0", "git lfs pull"),
        ("odd.png", b"<!DOCTYPE html><html>", "fetch it again"),
        ("odd.png", b"PK\3\4", "unpack it"),
        ("odd.png", b"\x1f\x8b\x08\0", "unpack it"),
    ],
)
def test_other_content_is_named(tmp_path, name, content, word):
    (tmp_path / name).write_bytes(content)
    refused(tmp_path / name, rf"{name} .*{word}")


@pytest.mark.parametrize(
    ("kind", "word"), [("TIFF", "TIFF"), ("GIF", "GIF"), ("BMP", "BMP"), ("WEBP", "WebP")]
)
@pytest.mark.parametrize("read", [images.read, images.read_mask])
def test_a_picture_of_another_kind_is_named_whatever_its_name(tmp_path, read, kind, word):
    Image.fromarray(pixels_of(8)).save(tmp_path / "odd.png", kind)
    refused(tmp_path / "odd.png", rf"odd\.png is a {word} .*PNG", read)


def test_missing_file(tmp_path):
    for read in (images.read, images.read_mask, images.size_of, images.patient_of):
        refused(tmp_path / "gone.dcm", r"gone\.dcm can't be read", read)


# --- PNG and JPEG ---------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["a.png", "a.dcm"])  # the content goes before the name
def test_png_keeps_its_levels(tmp_path, name):
    path = written(tmp_path, "first.png", pixels_of(8)).rename(tmp_path / name)
    equal(images.read(path), pixels_of(8))
    assert images.size_of(path) == SHAPE
    assert images.patient_of(path) is None


def test_jpeg_is_what_pillow_decodes(tmp_path):
    path = written(tmp_path, "a.jpg", cv2.GaussianBlur(pixels_of(8), (0, 0), 1))
    equal(images.read(path), np.asarray(Image.open(path)))


@pytest.mark.parametrize(("bits", "top"), [(16, 65535), (13, 16383)])
def test_16_bit_png(tmp_path, bits, top):
    grey = images.read(written(tmp_path, "a.png", pixels_of(bits)))
    equal(grey, stretched(pixels_of(bits), 0, top))


@pytest.mark.parametrize("channels", [3, 4])
@pytest.mark.parametrize("bits", [8, 16])
def test_colour_picture_of_grey_keeps_its_levels(tmp_path, channels, bits):
    grey = images.read(written(tmp_path, "a.png", np.dstack([pixels_of(bits)] * channels)))
    equal(grey, images.read(written(tmp_path, "b.png", pixels_of(bits))))


@pytest.mark.parametrize("name", ["a.png", "a.jpg"])
@pytest.mark.parametrize("share", [0.1, 0.5, 0.95])
def test_truncated_picture(tmp_path, name, share):
    path = written(tmp_path, name, pixels_of(8))
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])
    refused(path, f"{name} is cut short or damaged")


@pytest.mark.parametrize(
    ("name", "stem"),
    [
        ("1.2.276.0.819.dcm", "1.2.276.0.819"),
        ("1.2.276.0.819", "1.2.276.0.819"),
        ("ID_0011fe81e.PNG", "ID_0011fe81e"),
        ("a/b/c.jpeg", "c"),
    ],
)
def test_image_id(name, stem):
    assert images.image_id(name) == stem


# --- real files -----------------------------------------------------------------------------


def test_real_files_equal_pydicom(shared_data):
    paths = sorted((shared_data / "dicom-edge").glob("*.dcm"))
    assert len(paths) == 4
    for path in paths:
        dataset = pydicom.dcmread(path)
        equal(images.read(path), expected(dataset.pixel_array, dataset))
        assert images.size_of(path) == (dataset.Rows, dataset.Columns)
    for path in sorted((shared_data / "stage2-silver").rglob("*.dcm"))[:20]:
        equal(images.read(path), pydicom.dcmread(path).pixel_array)


def test_inverted_copy_is_the_negative(shared_data):
    (real,) = (shared_data / "labelled-dicom").rglob("*6904.1517875201.850819.dcm")
    negative = images.read(shared_data / "dicom-edge" / "Fake_MONOHR1.dcm")
    equal(negative, 255 - images.read(real))
