"""What the fuzzer found, each as it was: once read wrongly, or an error that named no cause."""

from __future__ import annotations

import io
import json
import os
import random
import stat
import struct
import zipfile
import zlib

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
from tools.fuzz import pictures as drawn

HEAD = "ImageId,EncodedPixels\n"


def file_of(tmp_path, content: bytes | str, name: str = "file"):
    path = tmp_path / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


# --- Tables ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (HEAD + "a,0 3\nb\n", "row 3 has 1 cells"),  # cut short, and once an empty mask
        (HEAD + 'a,"0 3\nb,-1\n', "row 2"),  # a quote that swallows the rest
        ("ImageId, ImageId,EncodedPixels\na,b,-1\n", "'ImageId' twice"),
        (HEAD + "a\0b,-1\n", "zeros"),
    ],
)
def test_a_table_of_labels_is_not_guessed_at(tmp_path, text, words):
    with pytest.raises(InputError, match=words):
        labels.read_labels(file_of(tmp_path, text))


def test_a_row_keeps_its_line_below_a_cell_of_two_lines(tmp_path):
    path = file_of(tmp_path, HEAD + 'a,"0 3\n 1 1"\nb,x\n')
    with pytest.raises(InputError, match="row 4, image b"):
        labels.read_labels(path)


def test_a_quote_within_an_id_stays(tmp_path):
    table = submission.read(file_of(tmp_path, HEAD + '"a""b",-1\n'))
    assert table["image_id"].tolist() == ['a"b']


def test_a_cell_longer_than_the_csv_module_s_own_limit_is_read(tmp_path):
    text = "1 1 " * 50_000
    table = submission.read(file_of(tmp_path, f"{HEAD}a,{text}\n"))
    assert table["rle"].tolist() == [text.strip()]


def test_an_image_s_own_shape_is_not_that_of_the_next(tmp_path):
    one, two = HEAD + "a,0 4\nb,250 6\n", HEAD + "a,0 4\nb,250 6\n"
    paths = file_of(tmp_path, one, "one"), file_of(tmp_path, two, "two")
    assert submission.score(*paths, shapes={"a": (2, 2)}, shape=(16, 16)).dice == 1


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ("b,1,p,70000,8,0,-1", "row 3: height is 70000, above 65,535"),
        ("b,1,p,8,8,0,-1,more", "row 3: 8 cells"),
        ("b,5000,p,8,8,0,-1", "row 3: fold is 5000, above 999"),
    ],
)
def test_a_folds_file_is_not_guessed_at(tmp_path, row, words):
    text = "image_id,fold,group,height,width,area_px,rle\na,0,,8,8,0,-1\n" + row + "\n"
    with pytest.raises(InputError, match=words):
        folds_file.load(file_of(tmp_path, text))


# --- Radiographs ----------------------------------------------------------------------------


def png(levels: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(levels).save(file, "PNG")
    return file.getvalue()


def jpeg(levels: np.ndarray, **options) -> bytes:
    file = io.BytesIO()
    Image.fromarray(levels).save(file, "JPEG", **options)
    return file.getvalue()


def noise(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, shape, np.uint8)


def test_a_png_or_jpeg_that_claims_the_largest_size_is_refused_before_it_is_made(tmp_path):
    huge = bytearray(png(noise(8, 8)))
    huge[16:24] = struct.pack(">II", 65535, 65535)
    huge = drawn.with_checksums(bytes(huge))
    claims = bytearray(jpeg(noise(8, 8)))
    at = claims.index(b"\xff\xc0")
    claims[at + 5 : at + 9] = struct.pack(">HH", 65535, 65535)
    for content in (huge, bytes(claims)):
        with pytest.raises(InputError, match=r"states 65,535 × 65,535 pixels"):
            images.read(file_of(tmp_path, content))


def test_a_png_with_a_changed_byte_is_refused(tmp_path):
    content = bytearray(png(noise(24, 40)))
    content[content.index(b"IDAT") + 100] ^= 1
    with pytest.raises(InputError, match="cut short or damaged"):
        images.read(file_of(tmp_path, bytes(content)))


@pytest.mark.parametrize("put", [b"\xff\x67", b"\xff\xd9", b"\xff\xd0", b"\xff\xda"])
def test_a_jpeg_whose_scan_a_marker_ends_is_refused(tmp_path, put):
    content = jpeg(noise(64, 64))
    assert images.read(file_of(tmp_path, content)).shape == (64, 64)
    middle = (content.index(b"\xff\xda") + len(content)) // 2
    with pytest.raises(InputError, match="cut short or damaged"):
        images.read(file_of(tmp_path, content[:middle] + put + content[middle + 2 :]))


def test_whole_jpegs_of_every_make_are_whole():
    for options in ({}, {"progressive": True}, {"restart_marker_rows": 1}, {"comment": b"x"}):
        content = jpeg(noise(64, 48), **options)
        assert pictures.is_whole_jpeg(content)
        assert pictures.is_whole_jpeg(content + b"\0\0")
        assert pictures.is_whole_jpeg(content + jpeg(noise(8, 8)))  # a camera's preview
        assert pictures.stated(content).size == (64, 48)
        assert not any(pictures.is_whole_jpeg(content[:end]) for end in range(len(content)))
        assert not pictures.is_whole_jpeg(content[:-2] + content[content.index(b"\xff\xdb") :])
        assert not pictures.is_whole_jpeg(content[: len(content) // 2] + b"\xff")


def dataset(levels: np.ndarray, syntax: str = uid.ExplicitVRLittleEndian):

    made = drawn._dataset(random.Random(1))
    made.file_meta.TransferSyntaxUID = syntax
    made.PhotometricInterpretation, made.PixelRepresentation = "MONOCHROME2", 0
    made.Rows, made.Columns = levels.shape
    made.BitsAllocated, made.BitsStored, made.HighBit = 8, 8, 7
    made.PixelData = levels.tobytes()
    made["PixelData"].VR = "OB"
    return made


def saved(made, tmp_path):
    made.save_as(tmp_path / "image.dcm", enforce_file_format=True)
    return tmp_path / "image.dcm"


def test_a_dicom_that_claims_the_largest_size_is_refused(tmp_path):
    made = dataset(noise(8, 8))
    made.Rows = made.Columns = 65535
    with pytest.raises(InputError, match=r"states 65,535 × 65,535 pixels"):
        images.read(saved(made, tmp_path))


def test_a_header_that_would_shear_its_pixels_is_refused(tmp_path):
    made = dataset(noise(24, 40), uid.JPEGBaseline8Bit)
    made.PixelData = encapsulate([jpeg(noise(24, 40))])
    assert images.read(saved(made, tmp_path)).shape == (24, 40)
    made.Rows, made.Columns = 40, 24  # as many pixels
    with pytest.raises(InputError, match=r"its pixels are 24×40, the header says \(40, 24\)"):
        images.read(saved(made, tmp_path))
    made = dataset(noise(24, 40))
    made.Columns = 38
    with pytest.raises(InputError, match="960 bytes of pixels, the header says 912"):
        images.read(saved(made, tmp_path))


@pytest.mark.parametrize("slope", ["nan", "1e308"])
@pytest.mark.filterwarnings("ignore")
def test_levels_that_are_no_numbers_are_refused(tmp_path, slope):
    made = dataset(noise(8, 8))
    made.RescaleSlope, made.RescaleIntercept = slope, "0"
    with pytest.raises(InputError, match="no numbers"):
        images.read(saved(made, tmp_path))


def test_a_table_of_words_that_is_cut_short_is_not_taken_for_bytes(tmp_path):
    made = dataset(noise(8, 8), uid.ImplicitVRLittleEndian)
    item = Dataset()
    item.add_new("LUTDescriptor", "US", [256, 0, 16])
    item.add_new("LUTData", "US", list(range(255)))
    made.VOILUTSequence = [item]
    with pytest.raises(InputError, match="LUT of 255 entries, stated 256"):
        images.read(saved(made, tmp_path))


def test_a_table_starts_beyond_values_that_have_no_sign_and_not_below_zero():
    made = dataset(noise(8, 8))
    modality, voi = Dataset(), Dataset()
    modality.add_new("LUTDescriptor", "US", [256, 0, 12])
    modality.add_new("LUTData", "US", [65535, *range(255)])  # one entry has more bits than stated
    voi.add_new("LUTDescriptor", "US", [16, 60000, 16])
    voi.add_new("LUTData", "US", list(range(0, 65536, 4369)))
    made.ModalityLUTSequence, made.VOILUTSequence = [modality], [voi]
    assert grey_levels(made, 8).grey[200] == 0  # the table's first entry
    del made.ModalityLUTSequence
    assert not grey_levels(made, 8).grey.any()
    made.RescaleSlope, made.RescaleIntercept = 1, -5436  # 60000 is -5536: its last entry is -5521
    assert (grey_levels(made, 8).grey == 255).all()


def test_a_deflated_bomb_is_refused_before_it_is_inflated(tmp_path, monkeypatch):
    monkeypatch.setattr(dicom, "MAX_BYTES", 100_000)
    made = dataset(noise(8, 8), uid.DeflatedExplicitVRLittleEndian)
    made.PatientComments = "x" * 9000
    assert images.read(saved(made, tmp_path)).shape == (8, 8)
    made.PixelData = bytes(1_000_000)
    path = saved(made, tmp_path)
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
def test_a_config_that_cannot_be_used_is_told_in_a_line(tmp_path, text, words):
    done = CliRunner().invoke(main, ["train", str(file_of(tmp_path, text, "c.json"))])
    assert done.exit_code == 1
    assert isinstance(done.exception, SystemExit)
    assert done.output.startswith("Error: ")
    with pytest.raises(AssertionError, match=words):
        raise AssertionError(done.output)


def test_a_number_too_long_to_write_is_named_by_its_type():
    with pytest.raises(InputError, match="SIZE = a int: beyond"):
        TrainParameters.from_namespace({"SIZE": 10**5000})


def test_rows_that_would_start_from_themselves_are_refused():
    row = next(iter(EXPERIMENTS))
    parameters = TrainParameters(experiment=row, weights=row, parent_weights=row)
    with pytest.raises(InputError, match=f"PARENT_WEIGHTS {row} is an experiment"):
        plan_training(parameters, EXPERIMENTS)


def test_a_run_s_name_is_one_that_a_folder_can_have():
    parameters = TrainParameters(weights="/a" * 150)
    with pytest.raises(InputError, match="at most 200"):
        plan_training(parameters, EXPERIMENTS)


# --- Archives, wheels, checkpoints ----------------------------------------------------------


def archive(path, members: dict[str, bytes], **options):
    with zipfile.ZipFile(path, "w", **options) as file:
        for name, content in members.items():
            file.writestr(name, content)
    return path


MAP = {"a.png": png(noise(8, 8)), "meta.json": b'{"images": 1}'}


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"meta.json": b"[]"}, "meta.json is no table"),
        ({"meta.json": b"[" * 100_000}, "recursion"),
        ({"meta.json": b'{"images": 2}'}, "1 images, not 2"),
        ({"labels.json": b'{"b": 0.5}'}, "labels of other images"),
        ({"labels.json": b'{"a": NaN}'}, "labels that are not"),
        ({"labels.json": b'{"a": "x"}'}, "labels that are not"),
        ({"labelz.json": b"{}"}, "it holds 'labelz.json'"),
        ({"a.png": png(noise(8, 8, 3))}, "a is no map"),
        ({"a.png": b"no picture"}, "a is no map"),
    ],
)
def test_an_archive_of_maps_that_is_none_is_refused(tmp_path, changed, words):
    path = archive(tmp_path / "oof.zip", MAP | changed)
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


@pytest.mark.parametrize("name", ["../x", "/x", "a/../../x", "./x", "a//x", "C:/x", "a\\x", "."])
def test_a_wheel_s_member_stays_in_its_folder(tmp_path, monkeypatch, name):
    (tmp_path / "t").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "t"))
    path = archive(tmp_path / "w", {"m/__init__.py": b"", name: b"out"})
    with pytest.raises(InputError, match="would leave its folder"):
        packages.unpack("x-1-py3-none-any.whl", path.read_bytes())
    assert [p for p in tmp_path.rglob("*") if p.name != "w"] == [tmp_path / "t"]


def test_a_link_in_a_wheel_is_unpacked_as_its_text(tmp_path, monkeypatch):
    (tmp_path / "t").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "t"))
    link = zipfile.ZipInfo("m/link")
    link.external_attr = (stat.S_IFLNK | 0o777) << 16
    with zipfile.ZipFile(tmp_path / "w", "w") as file:
        file.writestr(link, "../../../secret")
    folder = packages.unpack("x-1-py3-none-any.whl", (tmp_path / "w").read_bytes())
    assert not (folder / "m" / "link").is_symlink()
    assert (folder / "m" / "link").read_text() == "../../../secret"


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


def test_a_checkpoint_with_a_changed_byte_is_refused(tmp_path):
    """torch looks at no checksum: other weights would be loaded without a word."""
    path = tmp_path / "last.pt"
    checkpoints.save(path, {"model": {"w": torch.ones(1000)}}, Lineage())
    content = bytearray(path.read_bytes())
    content[content.index(struct.pack("<f", 1.0) * 4) + 2] ^= 1
    path.write_bytes(bytes(content))
    with pytest.raises(InputError, match=r"last\.pt cannot be read .*checksum"):
        checkpoints.load(path)
    with pytest.raises(InputError, match=r"is not a readable weights file .*checksum"):
        weights.read_state(path)


def test_a_tensor_that_states_more_than_it_holds_is_refused(tmp_path):
    path = tmp_path / "last.pt"
    checkpoints.save(path, {"model": {"w": torch.ones(1).expand(10**6, 10**6)}}, Lineage())
    with pytest.raises(InputError, match="holds less than it states"):
        checkpoints.digest(path)


def test_a_record_marked_as_a_folder_is_refused(tmp_path):
    """Its attributes lie outside of every checksum, and torch leaves such a tensor unread."""
    path = tmp_path / "a.pt"
    checkpoints.save(path, {"model": {"w": torch.ones(3)}}, Lineage())
    data = bytearray(path.read_bytes())
    at = data.rindex(b"PK\x01\x02", 0, data.rindex(b"/data/0"))  # its entry in the list of records
    data[at + 38] |= 0x10
    path.write_bytes(data)
    with pytest.raises(InputError, match="marked as a folder, as torch never marks them"):
        checkpoints.load(path)


def test_packed_records_are_refused(tmp_path):
    checkpoints.save(tmp_path / "a.pt", {"model": {"w": torch.ones(3)}}, Lineage())
    with zipfile.ZipFile(tmp_path / "a.pt") as old:
        members = {name: old.read(name) for name in old.namelist()}
    path = archive(tmp_path / "b.pt", members, compression=zipfile.ZIP_DEFLATED)
    with pytest.raises(InputError, match="packed, as torch never writes"):
        checkpoints.load(path)


@pytest.mark.parametrize("state", [{"epoch": 1}, {"model": 3}, {"model": {"w": 3}}, {"ema": {}}])
def test_a_checkpoint_without_weights_has_no_digest(tmp_path, state):
    checkpoints.save(tmp_path / "last.pt", state, Lineage())
    with pytest.raises(InputError, match="holds no weights"):
        checkpoints.digest(tmp_path / "last.pt")


def test_the_checksums_of_a_png_are_those_of_its_chunks():
    content = png(noise(4, 4))
    (length,) = struct.unpack_from(">I", content, 8)
    check = struct.unpack_from(">I", content, 16 + length)[0]
    assert check == zlib.crc32(content[12 : 16 + length])
    assert pictures.is_whole_png(content)
    assert not pictures.is_whole_png(content[:-1])


def test_groups_of_one_id_read_twice_differ_by_name(tmp_path):
    path = file_of(tmp_path, "image_id,group\na.dcm,p\na,q\n")
    with pytest.raises(InputError, match="image a is in group q and, further up, in p"):
        labels.read_groups(path)
