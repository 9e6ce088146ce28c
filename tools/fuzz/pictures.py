"""Radiographs: PNG and JPEG against Pillow, DICOM against the standard's steps, value by value."""

from __future__ import annotations

import io
import math
import random
import struct
import zlib
from collections.abc import Sequence
from io import BytesIO

import numpy as np
import pydicom
from PIL import Image
from pydicom import uid
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate, get_frame

from kernel_lib.data import images
from tools.fuzz.case import Case, Desk, Target
from tools.fuzz.mutate import EDGES, damaged

SHAPES = ((24, 40), (8, 8), (33, 17), (1, 5))
SYNTAXES = (uid.ExplicitVRLittleEndian, uid.ImplicitVRLittleEndian, uid.ExplicitVRBigEndian,
            uid.DeflatedExplicitVRLittleEndian, uid.RLELossless, uid.JPEGBaseline8Bit,
            uid.JPEG2000Lossless)  # fmt: skip
STRETCHING = ("WindowWidth", "RescaleSlope", "ModalityLUTSequence", "VOILUTSequence")
HEAD = 700  # where the header of a small file ends, about
DEPTHS = (8, 10, 12, 14, 16)


# --- PNG and JPEG ---------------------------------------------------------------------------


def picture(desk: Desk) -> Case:
    """Return a small picture of some kind, damaged; some with right checksums, to get further."""
    rng = desk.rng
    data = _drawn(rng)
    if rng.random() < 0.9:
        data = damaged(rng, data, head=80)
    if rng.random() < 0.4:
        data = with_checksums(data)
    path = desk.put("picture.png", data)
    if rng.random() < 0.3:
        return Case(data, lambda: images.read_mask(path), lambda mask: _wrong_mask(data, mask))
    return Case(data, lambda: images.read(path), lambda grey: _wrong_picture(data, grey))


def _drawn(rng: random.Random) -> bytes:
    shape = rng.choice(SHAPES)
    noise = np.random.default_rng(rng.getrandbits(32))
    kind = rng.choice(("L", "L", "mask", "RGB", "RGBA", "LA", "P", "1", "I;16", "JPEG", "JPEG RGB"))
    levels = noise.integers(
        0, 256, (*shape, {"RGB": 3, "JPEG RGB": 3, "RGBA": 4, "LA": 2}.get(kind, 1))
    )
    levels = (
        levels.astype(np.uint8).squeeze(-1) if levels.shape[-1] == 1 else levels.astype(np.uint8)
    )
    if kind == "mask":
        levels = (levels > 128).astype(np.uint8) * rng.choice((1, 255))
    elif kind == "I;16":
        levels = noise.integers(0, rng.choice((4096, 65536)), shape).astype(np.uint16)
    image = Image.fromarray(levels)
    if kind in ("P", "1"):
        image = image.convert(kind)
    file = BytesIO()
    image.save(file, "JPEG" if "JPEG" in kind else "PNG")
    return file.getvalue()


def with_checksums(data: bytes) -> bytes:
    """Return a PNG with right checksums, as far as its chunks can be read."""
    fixed, at = bytearray(data), 8
    while at + 12 <= len(data):
        (length,) = struct.unpack_from(">I", data, at)
        if at + 12 + length > len(data):
            break
        struct.pack_into(">I", fixed, at + 8 + length, zlib.crc32(data[at + 4 : at + 8 + length]))
        at += 12 + length
    return bytes(fixed)


def _by_pillow(data: bytes) -> np.ndarray | str:
    """Return levels by Pillow: (H, W), 8 or 16 bits, colours to grey; a text where it refuses."""
    try:
        with Image.open(io.BytesIO(data), formats=["PNG", "JPEG"]) as opened:
            opened.load()
            mode = opened.mode
            if mode.startswith("I"):
                return np.asarray(opened).astype(np.uint16)
            grey = mode in ("L", "1")
            levels = np.asarray(opened.convert("L" if grey or mode == "LA" else "RGB"), np.float64)
    except Exception as error:
        return f"Pillow: {error}"
    return levels if levels.ndim == 2 else levels @ (0.299, 0.587, 0.114)


def _wrong_picture(data: bytes, grey: np.ndarray) -> str | None:
    expected = _by_pillow(data)
    if isinstance(expected, str):
        return f"read, though {expected}"
    if grey.dtype != np.uint8 or grey.shape != expected.shape:
        return f"{grey.dtype} of {grey.shape}, expected {expected.shape}"
    values = expected.astype(np.float64)
    if expected.dtype == np.uint16:
        bits = next(bits for bits in DEPTHS if values.max() < 2**bits)
        expected = np.floor(values / (2**bits - 1) * 255 + 0.5)
    # JPEG's colours may be upsampled, and rounded, in more than one way.
    off = float(_differences(grey, expected, values, 2).max())
    return f"levels differ by up to {off:.0f}" if off > 2 else None


def _differences(
    levels: np.ndarray, expected: np.ndarray, values: np.ndarray, tolerance: int
) -> np.ndarray:
    """Return the distances of levels from those expected, of a flat picture from stretched ones.

    Rounding otherwise may make a picture flat that was at the limit, and grows with the stretch.
    """
    off = np.abs(levels - expected)
    if len(np.unique(np.rint(expected))) >= 32:
        return off
    lowest, highest = values.min(), values.max()
    if highest - lowest <= tolerance * len(DEPTHS):
        return np.zeros_like(off)
    stretched = np.abs(levels - np.floor((values - lowest) / (highest - lowest) * 255 + 0.5))
    return min(off, stretched * min(1, (highest - lowest) / 255), key=np.max)


def _wrong_mask(data: bytes, mask: np.ndarray) -> str | None:
    expected = _by_pillow(data)
    if isinstance(expected, str):
        return f"read, though {expected}"
    half = 32767 if expected.dtype == np.uint16 else 127
    top = expected.max()
    if not set(np.unique(mask)) <= {0, 1} or mask.shape != expected.shape:
        return f"a mask of {np.unique(mask)}, {mask.shape}"
    if data.startswith(b"\x89PNG") and (data[25] in (3, 4, 6) or b"tRNS" in data):
        return None  # palettes and opacity may say more than grey levels: tests pin that
    clear = np.abs(expected - half) > 3  # beyond doubt, however colours were rounded
    right = expected > (half if top > half else 0)
    return "another mask" if top > half + 3 and (mask[clear] != right[clear]).any() else None


# --- DICOM ----------------------------------------------------------------------------------


def dicom(desk: Desk) -> Case:
    """Return a small DICOM of some kind with odd elements, or damaged bytes, or both."""
    rng = desk.rng
    dataset = _dataset(rng)
    if rng.random() < 0.6:
        _make_odd(rng, dataset)
    file = BytesIO()
    try:
        dataset.save_as(file, enforce_file_format=True)
    except Exception:  # pydicom refuses to write some of them
        file = BytesIO()
        _dataset(rng).save_as(file, enforce_file_format=True)
    data = file.getvalue()
    if rng.random() < 0.5:
        data = damaged(rng, data, head=HEAD)
    return _dicom_case(desk, data)


def real_dicom(desk: Desk) -> Case:
    """Return a real file, damaged."""
    data = desk.rng.choice(desk.corpus.dicoms)
    return _dicom_case(
        desk, damaged(desk.rng, data, desk.rng.choice(desk.corpus.dicoms), head=2000)
    )


def _dicom_case(desk: Desk, data: bytes) -> Case:
    path = desk.put("image.dcm", data)

    def attempt():
        radiograph = images.open_radiograph(path)
        return radiograph.pixels, radiograph.patient, images.patient_of(path), images.size_of(path)

    return Case(data, attempt, lambda result: _wrong_dicom(data, *result))


def _dataset(rng: random.Random) -> Dataset:
    syntax = rng.choice(SYNTAXES)
    lossy = syntax in (uid.JPEGBaseline8Bit, uid.JPEG2000Lossless)
    bits = 8 if lossy else rng.choice((8, 8, 10, 12, 16))
    signed = not lossy and rng.random() < 0.2
    noise = np.random.default_rng(rng.getrandbits(32))
    low = -(1 << (bits - 1)) if signed else 0
    values = noise.integers(low, low + (1 << bits), rng.choice(SHAPES))
    kind = np.dtype(f"{'i' if signed else 'u'}{1 if bits == 8 else 2}")
    values = values.astype(kind.newbyteorder(">") if syntax == uid.ExplicitVRBigEndian else kind)
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    plain = uid.ExplicitVRLittleEndian if syntax == uid.RLELossless else syntax
    dataset.file_meta.TransferSyntaxUID = plain
    dataset.SOPClassUID = dataset.file_meta.MediaStorageSOPClassUID = (
        uid.SecondaryCaptureImageStorage
    )
    dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = "1.2.3"
    dataset.PatientID = "P7"
    dataset.PhotometricInterpretation = rng.choice(("MONOCHROME1", "MONOCHROME2"))
    dataset.SamplesPerPixel, dataset.PixelRepresentation = 1, int(signed)
    dataset.Rows, dataset.Columns = values.shape
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = kind.itemsize * 8, bits, bits - 1
    dataset.PixelData = _pixels(values, syntax)
    dataset["PixelData"].VR = "OB" if kind.itemsize == 1 else "OW"
    if syntax == uid.RLELossless:
        dataset.compress(uid.RLELossless, generate_instance_uid=False)
    return dataset


def _pixels(values: np.ndarray, syntax: str) -> bytes:
    form = {uid.JPEGBaseline8Bit: "JPEG", uid.JPEG2000Lossless: "JPEG2000"}.get(syntax)
    if form is None:
        return values.tobytes() + b"\x00" * (values.nbytes % 2)
    file = BytesIO()
    Image.fromarray(values).save(file, form, **({"no_jp2": True} if form == "JPEG2000" else {}))
    return encapsulate([file.getvalue()])


def _make_odd(rng: random.Random, dataset: Dataset) -> None:
    """Add elements that no sound file has, and some that sound ones have."""
    numbers = ("0", "1", "-1", "1e308", "-1e308", "1e-320", "nan", "inf", "2.5", "-1024", "1e5")
    whole = (*EDGES[:10], 7, 9, 12, 40, 24)
    for _ in range(rng.choice((1, 1, 2, 4))):
        name = rng.choice(("Rows", "Columns", "BitsStored", "BitsAllocated", "HighBit",
                           "PixelRepresentation", "SamplesPerPixel", "NumberOfFrames",
                           "Photometric", "Rescale", "Window", "Window", "LUT", "PatientID",
                           "Twice", "Pixels"))  # fmt: skip
        with_window = {"WindowCenter": rng.choice(numbers), "WindowWidth": rng.choice(numbers)}
        try:
            if name == "Rescale":
                dataset.RescaleSlope, dataset.RescaleIntercept = (
                    rng.choice(numbers),
                    rng.choice(numbers),
                )
            elif name == "Window":
                for key, value in with_window.items():
                    setattr(dataset, key, value)
                dataset.VOILUTFunction = rng.choice(("LINEAR", "SIGMOID", "LINEAR_EXACT", "X", ""))
            elif name == "LUT":
                setattr(dataset, rng.choice(("VOILUTSequence", "ModalityLUTSequence")), [_lut(rng)])
            elif name == "Photometric":
                kinds = ("RGB", "PALETTE COLOR", "", "YBR_FULL", "MONOCHROME1", "MONOCHROME3")
                dataset.PhotometricInterpretation = rng.choice(kinds)
            elif name == "Twice":
                dataset.WindowCenter, dataset.WindowWidth = ["10", "20"], ["30", "40"]
            elif name == "Pixels":
                dataset.PixelData = damaged(rng, dataset.PixelData)
            elif name == "PatientID":
                dataset.PatientID = rng.choice(("", " x ", "a\\b", "ü", "x" * 70))
            else:
                setattr(dataset, name, rng.choice(whole))
        except Exception:  # pydicom refuses some at once
            continue


def _lut(rng: random.Random) -> Dataset:
    item = Dataset()
    entries = rng.choice((1, 16, 256, 4096))
    bits = rng.choice((8, 12, 16, 0, 17))
    item.add_new("LUTDescriptor", "US", [entries, rng.choice((0, 5, 60000)), bits])
    top = (1 << min(bits or 8, 16)) - 1
    data = [round(at / max(entries - 1, 1) * top) for at in range(entries - rng.choice((0, 0, 1)))]
    item.add_new("LUTData", "US", data or [0])
    return item


def _wrong_dicom(data: bytes, levels, patient, patient_alone, size) -> str | None:
    if levels.dtype != np.uint8 or levels.shape != size or patient != patient_alone:
        return f"{levels.dtype} {levels.shape}, {size}; {patient!r}, {patient_alone!r}"
    if data.startswith((b"\x89PNG", b"\xff\xd8\xff")):
        return None
    dataset = pydicom.dcmread(BytesIO(data), force=True)
    if "TransferSyntaxUID" not in dataset.file_meta:
        implicit = dataset.original_encoding[0] is not False
        syntax = uid.ImplicitVRLittleEndian if implicit else uid.ExplicitVRLittleEndian
        dataset.file_meta.TransferSyntaxUID = syntax
    baseline = dataset.file_meta.TransferSyntaxUID == uid.JPEGBaseline8Bit
    plain = baseline and dataset.get("BitsStored") == 8 and not dataset.get("PixelRepresentation")
    dataset.pixel_array_options(correct_unused_bits=False)
    kind = str(dataset.PhotometricInterpretation).strip().upper()
    dataset.PhotometricInterpretation = kind  # pydicom knows them in capitals only
    try:
        stored = _jpeg_frame(dataset) if plain else dataset.pixel_array
    except Exception as error:
        return None if _bits_lie(dataset) else f"read, though pydicom says {error}"
    if stored.ndim == 3:
        values = expected = stored.astype(np.float64) @ (0.299, 0.587, 0.114)
    elif _bits_lie(dataset, stored):
        return None  # which bits are pixels then is a rule of its own, and has its own tests
    else:
        bits = _depth(dataset, stored)
        distinct, where = np.unique(stored, return_inverse=True)
        naive = [naive_level(float(value), dataset, bits) for value in distinct.tolist()]
        expected, values = (
            np.array(each)[where].reshape(stored.shape) for each in zip(*naive, strict=True)
        )
    if expected.shape != levels.shape or not np.isfinite(expected).all():
        return f"read, though the levels expected are {expected.shape}, {expected.min()}"
    off = _differences(levels, expected, values, 1)
    # A half may fall to either side; a decoder of JPEG may round otherwise, a window stretch that.
    stretched = baseline and any(name in dataset for name in STRETCHING)
    if off.max() <= 1 or stretched or (plain and _in_few_blocks(off > 1)):
        return None
    return f"levels differ by up to {off.max():.0f}"


def _in_few_blocks(differs: np.ndarray) -> bool:
    """Return whether the differences (H, W) lie in one JPEG block of a thousand.

    A damaged scan may hold coefficients that no picture has, and they overflow in each decoder in
    its own way.
    """
    height, width = differs.shape
    padded = np.pad(differs, ((0, -height % 8), (0, -width % 8)))
    blocks = padded.reshape(len(padded) // 8, 8, -1, 8).any(axis=(1, 3))
    return int(blocks.sum()) <= max(1, blocks.size // 1000)


def _jpeg_frame(dataset: Dataset) -> np.ndarray:
    """Return the stored values of a JPEG by Pillow, whatever else the header says."""
    frame = get_frame(dataset.PixelData, 0, number_of_frames=1)
    with Image.open(BytesIO(frame), formats=["JPEG"]) as opened:
        return np.asarray(opened)


def _ends(dataset: Dataset, bits: int) -> list[int]:
    half = 2 ** (bits - 1)
    return [-half, half - 1] if dataset.get("PixelRepresentation") else [0, 2 * half - 1]


def _bits_lie(dataset: Dataset, stored: np.ndarray | None = None) -> bool:
    """Return whether the tags of the pixels' bits disagree with one another or with the values."""
    bits = dataset.BitsStored
    if dataset.BitsAllocated not in (8, 16) or dataset.get("HighBit") != bits - 1:
        return True
    ends = _ends(dataset, bits)
    return stored is not None and not ends[0] <= stored.min() <= stored.max() <= ends[1]


def _depth(dataset: Dataset, stored: np.ndarray) -> int:
    """Return the bits of the range: as stated, or as needed where 16 of 16 are stated."""
    if dataset.BitsStored < 16:
        return dataset.BitsStored
    ends = ((bits, _ends(dataset, bits)) for bits in DEPTHS)
    return next(n for n, (low, high) in ends if low <= stored.min() and stored.max() <= high)


def naive_level(value: float, dataset: Dataset, bits: int) -> tuple[float, float]:
    """Return the grey level of a stored value by DICOM PS3.3 C.11, and its windowed value.

    NaN where the header makes none.
    """
    ends: list[float] = list(_ends(dataset, bits))
    if dataset.get("ModalityLUTSequence"):
        value, top = _entry(value, ends, dataset.ModalityLUTSequence[0])
        ends = [0, top]
    elif dataset.get("RescaleSlope") is not None and float(dataset.RescaleSlope) != 0:
        slope, intercept = float(dataset.RescaleSlope), float(dataset.get("RescaleIntercept") or 0)
        value, ends = value * slope + intercept, sorted(end * slope + intercept for end in ends)
    if dataset.get("VOILUTSequence"):
        entry, top = _entry(float(np.rint(value)), np.rint(ends), dataset.VOILUTSequence[0])
        share = entry / top
    else:
        share = _share(value, ends, dataset)
    if math.isnan(share):
        return math.nan, value
    level = math.floor(min(max(share, 0), 1) * 255 + 0.5)
    white = dataset.PhotometricInterpretation != "MONOCHROME1"
    return (level, value) if white else (255 - level, -value)


def _entry(value: float, ends: Sequence[float], item: Dataset) -> tuple[float, int]:
    count, first, bits = (int(number) for number in item.LUTDescriptor)
    if ends[0] < 0 and first > max(ends[1], 32767):  # a negative number without its sign
        first -= 65536
    data = item.LUTData
    if isinstance(data, bytes):  # words, as an implicit VR leaves them
        data = struct.unpack(f"<{len(data) // 2}H", data[: len(data) // 2 * 2])
    data = [data] if isinstance(data, int) else data
    if math.isnan(value) or not 1 <= bits <= 16 or len(data) < (count or 65536):
        return math.nan, 1
    return data[int(min(max(value - first, 0), (count or 65536) - 1))], 2**bits - 1


def _share(value: float, ends: list[float], dataset: Dataset) -> float:
    centre, width = dataset.get("WindowCenter"), dataset.get("WindowWidth")
    function = str(dataset.get("VOILUTFunction") or "LINEAR").upper()
    if centre not in (None, "") and width not in (None, ""):
        centre, width = (float(x[0] if hasattr(x, "append") else x) for x in (centre, width))
        if width >= 1 or (width > 0 and function != "LINEAR"):
            if function == "SIGMOID":
                return float(1 / (1 + np.exp(np.float64(-4 * (value - centre)) / width)))
            if function == "LINEAR":
                centre, width = centre - 0.5, width - 1
            if width == 0:
                return float(value > centre)
            return float(np.float64(value - centre) / width + 0.5)
    return float(np.float64(value - ends[0]) / (ends[1] - ends[0]))


TARGETS = {
    "picture": Target(picture, 0.06),
    "dicom": Target(dicom, 0.05),
    "dicom-real": Target(real_dicom, 0.001),
}
