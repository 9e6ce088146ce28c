"""What the fuzzer found, each as it was: once read wrongly, or an error that named no cause."""

from __future__ import annotations

import io
import json
import os
import random
import re
import stat
import struct
import warnings
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image
from pydicom import uid
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate

from kernel_lib import checkpoints
from kernel_lib.__main__ import main
from kernel_lib.artifacts import folds_file, maps
from kernel_lib.artifacts.lineage import Lineage
from kernel_lib.config import TrainParameters
from kernel_lib.data import dicom, images, labels, pictures
from kernel_lib.data.levels import grey_levels
from kernel_lib.errors import InputError
from kernel_lib.experiments import EXPERIMENTS
from kernel_lib.kaggle import packages
from kernel_lib.models import weights
from kernel_lib.plan import plan_training
from kernel_lib.postprocess import submission
from tools.fuzz import pictures as fuzzed

HEAD = "ImageId,EncodedPixels\n"
ROW = next(iter(EXPERIMENTS))
FOLDS = "image_id,fold,group,height,width,area_px,rle\na,0,,8,8,0,-1\n"


def file_of(tmp_path: Path, content: bytes | str, name: str = "file") -> Path:
    path = tmp_path / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def noise(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, shape, np.uint8)


def picture(levels: np.ndarray, form: str = "PNG", **options) -> bytes:
    file = io.BytesIO()
    Image.fromarray(levels).save(file, form, **options)
    return file.getvalue()


def dataset(levels: np.ndarray, syntax: str = uid.ExplicitVRLittleEndian, **tags) -> Dataset:
    made = fuzzed._dataset(random.Random(1))
    made.file_meta.TransferSyntaxUID = syntax
    made.PhotometricInterpretation, made.PixelRepresentation = "MONOCHROME2", 0
    made.Rows, made.Columns = levels.shape
    made.BitsAllocated, made.BitsStored, made.HighBit = 8, 8, 7
    made.PixelData = levels.tobytes()
    made["PixelData"].VR = "OB"
    for name, value in tags.items():
        setattr(made, name, value)
    return made


def lut(descriptor: list[int], data: list[int]) -> list[Dataset]:
    item = Dataset()
    item.add_new("LUTDescriptor", "US", descriptor)
    item.add_new("LUTData", "US", data)
    return [item]


def dicom_of(levels: np.ndarray, *syntax: str, **tags) -> bytes:
    file = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of values that no header has
        dataset(levels, *syntax, **tags).save_as(file, enforce_file_format=True)
    return file.getvalue()


def changed(content: bytes, mark: bytes, offset: int, put: bytes) -> bytes:
    """The content with other bytes so far behind a mark."""
    at = content.index(mark) + offset
    return content[:at] + put + content[at + len(put) :]


HUGE = struct.pack(">II", 65535, 65535)
JPEG = picture(noise(64, 64), "JPEG")
MIDDLE = (len(JPEG) - JPEG.index(b"\xff\xda")) // 2
SHEARED = {"PixelData": encapsulate([picture(noise(24, 40), "JPEG")]), "Rows": 40, "Columns": 24}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("read", "content", "words"),
    [
        (labels.read_labels, HEAD + "a,0 3\nb\n", "row 3 has 1 cells"),  # once an empty mask
        (labels.read_labels, HEAD + 'a,"0 3\nb,-1\n', "row 2"),  # a quote that swallows the rest
        (labels.read_labels, "ImageId, ImageId,EncodedPixels\na,b,-1\n", "'ImageId' twice"),
        (labels.read_labels, HEAD + "a\0b,-1\n", "zeros"),
        # A row keeps its line below a cell of two lines.
        (labels.read_labels, HEAD + 'a,"0 3\n 1 1"\nb,x\n', "row 4, image b"),
        (labels.read_groups, "image_id,group\na.dcm,p\na,q\n", "in group q and, further up, in p"),
        (folds_file.load, FOLDS + "b,1,p,70000,8,0,-1\n", "row 3: height is 70000, above 65,535"),
        (folds_file.load, FOLDS + "b,1,p,8,8,0,-1,more\n", "row 3: 8 cells"),
        (folds_file.load, FOLDS + "b,5000,p,8,8,0,-1\n", "row 3: fold is 5000, above 999"),
        # Sizes that are refused before the pixels are made.
        (images.read, fuzzed.with_checksums(changed(picture(noise(8, 8)), b"IHDR", 4, HUGE)),
         r"states 65,535 × 65,535 pixels"),
        (images.read, changed(JPEG, b"\xff\xc0", 5, 4 * b"\xff"), r"states 65,535 × 65,535 pixels"),
        (images.read, dicom_of(noise(8, 8), Rows=65535, Columns=65535),
         r"states 65,535 × 65,535 pixels"),
        (images.read, changed(picture(noise(24, 40)), b"IDAT", 100, b"\0"), "cut short or damaged"),
        # A marker that ends the scan.
        *((images.read, changed(JPEG, b"\xff\xda", MIDDLE, marker), "cut short or damaged")
          for marker in (b"\xff\x67", b"\xff\xd9", b"\xff\xd0", b"\xff\xda")),
        # Headers that would shear the pixels.
        (images.read, dicom_of(noise(24, 40), uid.JPEGBaseline8Bit, **SHEARED),
         r"its pixels are 24×40, the header says \(40, 24\)"),
        (images.read, dicom_of(noise(24, 40), Columns=38),
         "960 bytes of pixels, the header says 912"),
        *((images.read, dicom_of(noise(8, 8), RescaleSlope=slope, RescaleIntercept=0), "no numbers")
          for slope in ("nan", "1e308")),
        # A table of words that is cut short is not taken for bytes.
        (images.read, dicom_of(noise(8, 8), uid.ImplicitVRLittleEndian,
                               VOILUTSequence=lut([256, 0, 16], list(range(255)))),
         "LUT of 255 entries, stated 256"),
    ],
)  # fmt: skip
def test_a_damaged_table_or_radiograph_is_refused(tmp_path, read, content, words):
    with pytest.raises(InputError, match=words):
        read(file_of(tmp_path, content))


def test_odd_tables_are_read_as_they_are(tmp_path):
    """A quote within an id, and a cell longer than the csv module's own limit."""
    text = "1 1 " * 50_000
    table = submission.read(file_of(tmp_path, f'{HEAD}"a""b",-1\nc,{text}\n'))
    assert table["image_id"].tolist() == ['a"b', "c"]
    assert table["rle"].tolist()[1] == text.strip()


def test_an_image_s_own_shape_is_not_that_of_the_next(tmp_path):
    path = file_of(tmp_path, HEAD + "a,0 4\nb,250 6\n")
    assert submission.score(path, path, shapes={"a": (2, 2)}, shape=(16, 16)).dice == 1


def test_whole_jpegs_and_pngs_of_every_make_are_whole(tmp_path):
    for options in ({}, {"progressive": True}, {"restart_marker_rows": 1}, {"comment": b"x"}):
        content = picture(noise(64, 48), "JPEG", **options)
        assert pictures.is_whole_jpeg(content)
        assert pictures.is_whole_jpeg(content + b"\0\0")
        assert pictures.is_whole_jpeg(content + picture(noise(8, 8), "JPEG"))  # a camera's preview
        assert pictures.stated(content).size == (64, 48)
        assert not any(pictures.is_whole_jpeg(content[:end]) for end in range(len(content)))
        assert not pictures.is_whole_jpeg(content[:-2] + content[content.index(b"\xff\xdb") :])
        assert not pictures.is_whole_jpeg(content[: len(content) // 2] + b"\xff")
    for content in (JPEG, dicom_of(noise(64, 64))):
        assert images.read(file_of(tmp_path, content)).shape == (64, 64)
    content = picture(noise(4, 4))
    (length,) = struct.unpack_from(">I", content, 8)
    check = struct.unpack_from(">I", content, 16 + length)[0]
    assert check == zlib.crc32(content[12 : 16 + length])
    assert pictures.is_whole_png(content)
    assert not pictures.is_whole_png(content[:-1])


def test_a_table_starts_beyond_values_that_have_no_sign_and_not_below_zero():
    # One entry of the first table has more bits than stated.
    modality = lut([256, 0, 12], [65535, *range(255)])
    voi = lut([16, 60000, 16], list(range(0, 65536, 4369)))
    made = dataset(noise(8, 8), ModalityLUTSequence=modality, VOILUTSequence=voi)
    assert grey_levels(made, 8).grey[200] == 0  # the table's first entry
    del made.ModalityLUTSequence
    assert not grey_levels(made, 8).grey.any()
    made.RescaleSlope, made.RescaleIntercept = 1, -5436  # 60000 is -5536: its last entry is -5521
    assert (grey_levels(made, 8).grey == 255).all()


def test_a_deflated_bomb_is_refused_before_it_is_inflated(tmp_path, monkeypatch):
    monkeypatch.setattr(dicom, "MAX_BYTES", 100_000)
    packed = uid.DeflatedExplicitVRLittleEndian
    path = file_of(tmp_path, dicom_of(noise(8, 8), packed, PatientComments="x" * 9000))
    assert images.read(path).shape == (8, 8)
    path = file_of(tmp_path, dicom_of(noise(8, 8), packed, PixelData=bytes(1_000_000)))
    assert path.stat().st_size < 10_000
    for read in (images.read, images.patient_of, images.size_of):
        with pytest.raises(InputError, match="inflates to more than 100,000 bytes"):
            read(path)


def test_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "image.png")
    with pytest.raises(InputError, match="is no file"):
        images.read(tmp_path / "image.png")


# --- Settings -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[" * 100_000, "nested too deep"),
        ('{"SIZE": 64, "size": 96}', "size twice"),
        ('{"LR": Infinity}', "LR = inf: "),
        ('{"SEED": 10000000000}', "SEED = 10000000000: beyond 2,147,483,647"),
        ('{"DATA_DIR": "a\\u0000b"}', "DATA_DIR = .*NUL"),
    ],
)
def test_a_config_that_cannot_be_used_is_reported_in_a_line(tmp_path, text, words):
    done = CliRunner().invoke(main, ["train", str(file_of(tmp_path, text, "c.json"))])
    assert done.exit_code == 1
    assert isinstance(done.exception, SystemExit)
    assert re.match(f"Error: .*{words}", done.output)


def test_a_number_too_long_to_write_is_named_by_its_type():
    with pytest.raises(InputError, match="SIZE = a int: beyond"):
        TrainParameters.from_namespace({"SIZE": 10**5000})


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"experiment": ROW, "weights": ROW, "parent_weights": ROW},
         f"PARENT_WEIGHTS {ROW} is an experiment"),  # it would start from itself
        ({"weights": "/a" * 150}, "at most 200"),  # no folder could have the run's name
    ],
)  # fmt: skip
def test_a_run_that_cannot_be_is_refused(given, words):
    with pytest.raises(InputError, match=words):
        plan_training(TrainParameters(**given), EXPERIMENTS)


# --- Archives, wheels, checkpoints ----------------------------------------------------------


def archive(path: Path, members: dict, **options) -> Path:
    with zipfile.ZipFile(path, "w", **options) as file:
        for name, content in members.items():
            file.writestr(name, content)
    return path


MAP = {"a.png": picture(noise(8, 8)), "meta.json": b'{"images": 1}'}


@pytest.mark.parametrize(
    ("other", "words"),
    [
        ({"meta.json": b"[]"}, "meta.json is no table"),
        ({"meta.json": b"[" * 100_000}, "recursion"),
        ({"meta.json": b'{"images": 2}'}, "1 images, not 2"),
        ({"labels.json": b'{"b": 0.5}'}, "of different images"),
        ({"labels.json": b'{"a": NaN}'}, "labels that are not"),
        ({"labels.json": b'{"a": "x"}'}, "labels that are not"),
        ({"views.json": b'{"b": 0.5}'}, "of different images"),
        ({"views.json": b'{"a": 1.5}'}, "disagreements of views that are not"),
        ({"views.json": b"[0.5]"}, "views.json is no table"),
        ({"labelz.json": b"{}"}, "it holds 'labelz.json'"),
        ({"a.png": picture(noise(8, 8, 3))}, "a is no map"),
        ({"a.png": b"no picture"}, "a is no map"),
    ],
)
def test_an_archive_of_maps_that_is_none_is_refused(tmp_path, other, words):
    path = archive(tmp_path / "oof.zip", MAP | other)
    with pytest.raises(InputError, match=rf"oof\.zip is damaged .*{words}"):
        maps.Maps(path)["a"]


def test_a_member_that_is_there_twice_or_cannot_be_unpacked_is_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "oof.zip", "w") as file:
        for name in (*MAP, "a.pnG"):
            file.writestr(name, MAP.get(name, MAP["a.png"]))
    whole = (tmp_path / "oof.zip").read_bytes()
    with pytest.raises(InputError, match=r"holds 'a\.png' twice"):
        maps.Maps(file_of(tmp_path, whole.replace(b"a.pnG", b"a.png"), "oof.zip"))
    packed = archive(tmp_path / "x.zip", MAP, compression=zipfile.ZIP_DEFLATED).read_bytes()
    at = packed.index(b"meta.json") + len("meta.json")
    broken = packed[:at] + b"\xff" * 4 + packed[at + 4 :]
    with pytest.raises(InputError, match=r"oof\.zip is damaged"):
        maps.Maps(file_of(tmp_path, broken, "oof.zip"))


def test_a_bomb_in_an_archive_is_unpacked_to_its_bound_only(tmp_path, monkeypatch):
    monkeypatch.setattr(maps, "_MAX_BYTES", 1000)
    bomb = MAP | {"meta.json": json.dumps({"x": "0" * 100_000}).encode()}
    path = archive(tmp_path / "oof.zip", bomb, compression=zipfile.ZIP_DEFLATED)
    with pytest.raises(InputError, match="unpacks to more than 1,000 bytes"):
        maps.Maps(path)
    monkeypatch.setattr(packages, "MAX_BYTES", 1000)
    with pytest.raises(InputError, match="unpacks to more than"):
        packages.unpack("x-1-py3-none-any.whl", path.read_bytes())


@pytest.fixture
def scratch(tmp_path, monkeypatch):
    (tmp_path / "t").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "t"))


@pytest.mark.parametrize("name", ["../x", "/x", "a/../../x", "./x", "a//x", "C:/x", "a\\x", "."])
def test_a_wheel_s_member_stays_in_its_folder(tmp_path, scratch, name):
    path = archive(tmp_path / "w", {"m/__init__.py": b"", name: b"out"})
    with pytest.raises(InputError, match="would leave its folder"):
        packages.unpack("x-1-py3-none-any.whl", path.read_bytes())
    assert [p for p in tmp_path.rglob("*") if p.name != "w"] == [tmp_path / "t"]


def test_a_link_in_a_wheel_is_unpacked_as_its_text(tmp_path, scratch):
    link = zipfile.ZipInfo("m/link")
    link.external_attr = (stat.S_IFLNK | 0o777) << 16
    content = archive(tmp_path / "w", {link: b"../../../secret"}).read_bytes()
    unpacked = packages.unpack("x-1-py3-none-any.whl", content) / "m" / "link"
    assert not unpacked.is_symlink()
    assert unpacked.read_text() == "../../../secret"


@pytest.mark.parametrize(
    ("name", "members"),
    [
        ("x.whl", {"m/__init__.py": b""}),
        ("x-1-py3-none-any.whl", {"no.such.package/x.py": b""}),  # once imported to look for it
        ("x-1-py3-none-any.whl", {"readme.txt": b""}),  # once taken for one that is there already
    ],
)
def test_a_wheel_without_modules_is_none(tmp_path, name, members):
    with pytest.raises(InputError, match="is no wheel"):
        packages.use_wheel(name, archive(tmp_path / "w", members).read_bytes())


def saved(tmp_path: Path, tensor: torch.Tensor) -> Path:
    checkpoints.save(tmp_path / "last.pt", {"model": {"w": tensor}}, Lineage())
    return tmp_path / "last.pt"


def test_a_checkpoint_with_a_changed_byte_is_refused(tmp_path):
    """torch looks at no checksum: other weights would be loaded without a word."""
    path = saved(tmp_path, torch.ones(1000))
    path.write_bytes(changed(path.read_bytes(), struct.pack("<f", 1.0) * 4, 2, b"\x81"))
    with pytest.raises(InputError, match=r"last\.pt cannot be read .*checksum"):
        checkpoints.load(path)
    with pytest.raises(InputError, match=r"is not a readable weights file .*checksum"):
        weights.read_state(path)


def test_records_that_torch_never_writes_are_refused(tmp_path):
    """Too small; marked as a folder, which no checksum covers and torch leaves unread; packed."""
    with pytest.raises(InputError, match="holds less than it states"):
        checkpoints.digest(saved(tmp_path, torch.ones(1).expand(10**6, 10**6)))
    path = saved(tmp_path, torch.ones(3))
    with zipfile.ZipFile(path) as old:
        members = {name: old.read(name) for name in old.namelist()}
    data = bytearray(path.read_bytes())
    at = data.rindex(b"PK\x01\x02", 0, data.rindex(b"/data/0"))  # its entry in the list of records
    data[at + 38] |= 0x10
    path.write_bytes(data)
    with pytest.raises(InputError, match="marked as a folder, as torch never marks them"):
        checkpoints.load(path)
    packed = archive(tmp_path / "b.pt", members, compression=zipfile.ZIP_DEFLATED)
    with pytest.raises(InputError, match="packed, as torch never writes"):
        checkpoints.load(packed)


@pytest.mark.parametrize("state", [{"epoch": 1}, {"model": 3}, {"model": {"w": 3}}, {"ema": {}}])
def test_a_checkpoint_without_weights_has_no_digest(tmp_path, state):
    checkpoints.save(tmp_path / "last.pt", state, Lineage())
    with pytest.raises(InputError, match="holds no weights"):
        checkpoints.digest(tmp_path / "last.pt")
