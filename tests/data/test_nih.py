"""NIH's table and files: read in every layout, and each fault with its word."""

from __future__ import annotations

from pathlib import Path

import pytest

from kernel_lib.data import nih
from kernel_lib.data.images import Skipped
from kernel_lib.errors import InputError

HEADER = (
    "Image Index,Finding Labels,Follow-up #,Patient ID,Patient Age,Patient Gender,View Position,"
    "OriginalImage[Width,Height],OriginalImagePixelSpacing[x,y]"
)
NAMES = [f"{patient:08d}_{number:03d}.png" for patient in (1, 2, 30805) for number in (0, 1)]
FINDINGS = [
    "Pneumothorax", "Effusion|Pneumothorax", "No Finding", "Pleural_Thickening|Pneumonia",
    "Pneumothorax|Nodule", "Hernia",
]  # fmt: skip


def row(name: str, finding: str, patient: str | None = None) -> str:
    patient = str(int(name[:8])) if patient is None else patient
    return f"{name},{finding},0,{patient},58,M,PA,2682,2749,0.143,0.143,"


def write_table(root: Path, rows: list[str] | None = None, name="Data_Entry_2017.csv", end=","):
    rows = [row(*pair) for pair in zip(NAMES, FINDINGS, strict=True)] if rows is None else rows
    root.mkdir(parents=True, exist_ok=True)
    (root / name).write_text("\n".join([HEADER + end, *rows, ""]))


def write_images(root: Path, names: list[str] = NAMES, folder: str = "images_{:03d}/images"):
    for turn, name in enumerate(names):
        path = root / folder.format(turn % 2 + 1) / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(name.encode())


@pytest.mark.parametrize("name", ["Data_Entry_2017.csv", "Data_Entry_2017_v2020.csv"])
@pytest.mark.parametrize("end", [",", ""])
@pytest.mark.parametrize("folder", ["images_{:03d}/images", ".", "data/CXR8/images/images_{:02d}"])
def test_images_patients_and_labels_in_every_layout(tmp_path, name, end, folder):
    write_table(tmp_path, name=name, end=end)
    write_images(tmp_path, folder=folder)
    frame = nih.read(tmp_path)
    assert list(frame.columns) == ["image_id", "path", "patient", "positive"]
    assert frame["image_id"].tolist() == [name.removesuffix(".png") for name in NAMES]
    assert frame["patient"].tolist() == ["00000001"] * 2 + ["00000002"] * 2 + ["00030805"] * 2
    assert frame["positive"].tolist() == [True, True, False, False, True, False]
    assert [Path(path).read_text() for path in frame["path"]] == NAMES


def test_other_files_are_not_looked_at_and_the_newer_table_wins(tmp_path):
    write_table(tmp_path)
    write_images(tmp_path)
    write_images(tmp_path, [f"._{name}" for name in NAMES])  # of a Mac
    write_images(tmp_path, [NAMES[0]], folder="__MACOSX")
    write_images(tmp_path, ["00000009_000.png", "logo.png"])
    assert len(nih.read(tmp_path)) == len(NAMES)
    write_table(tmp_path, [row(NAMES[0], "Hernia")], name="Data_Entry_2017_v2020.csv")
    assert nih.read(tmp_path)["positive"].tolist() == [False]


def test_the_same_file_twice_is_one_and_another_of_its_name_is_refused(tmp_path):
    write_table(tmp_path)
    write_images(tmp_path)
    write_images(tmp_path, folder="again")
    assert len(nih.read(tmp_path)) == len(NAMES)
    (tmp_path / "again" / NAMES[3]).write_bytes(b"another")
    with pytest.raises(InputError, match=r"image 00000002_001 .*remove one"):
        nih.read(tmp_path)


def test_a_few_missing_images_are_left_out_and_listed_and_many_refused(tmp_path):
    names = [f"{patient:08d}_000.png" for patient in range(1, 41)]
    write_table(tmp_path, [row(name, "Hernia") for name in names])
    write_images(tmp_path, names[2:])
    left_out: list[Skipped] = []
    assert len(nih.read(tmp_path, left_out)) == 38  # 5 % are gone
    assert list(map(str, left_out)) == [f"{p:08d}_000: no file under {tmp_path}" for p in (1, 2)]
    next(tmp_path.rglob(names[9])).unlink()
    with pytest.raises(
        InputError, match=r"row 2: 00000001_000.png has no file .* 3 of the 40 .*8%"
    ):
        nih.read(tmp_path)


@pytest.mark.parametrize(
    ("bad", "complaint"),
    [
        (row("00000007.png", "Hernia", "7"), r"row 4: Image Index '00000007.png' is not like"),
        (row("x_000.png", "Hernia", "7"), r"row 4: Image Index 'x_000.png' is not like"),
        (row(NAMES[1], "Hernia"), r"row 4: the image 00000001_001.png is listed a second time"),
        (row(NAMES[2], ""), r"row 4: the image 00000002_000.png has no Finding Labels"),
        (row(NAMES[2], "Hernia", "2.0"), r"row 4: Patient ID '2.0' is no whole number"),
        (row(NAMES[2], "Hernia", ""), r"row 4: Patient ID '' is no whole number"),
        (row(NAMES[2], "Hernia", "3"), r"row 4: the image 00000002_000.png is not of Patient ID 3"),
        (NAMES[2], r"row 4 has 1 cells under a header of 12"),
    ],
)
def test_a_bad_row_is_named(tmp_path, bad, complaint):
    write_table(tmp_path, [row(NAMES[0], "Hernia"), row(NAMES[1], "Hernia"), bad])
    write_images(tmp_path)
    with pytest.raises(InputError, match=rf"Data_Entry_2017.csv {complaint}.*fetch the table"):
        nih.read(tmp_path)


def test_a_table_that_is_none_is_refused(tmp_path):
    write_images(tmp_path)
    (tmp_path / "Data_Entry_2017.csv").write_text("Image Index,Labels\n00000001_000.png,Hernia\n")
    with pytest.raises(InputError, match=r"not Finding Labels and Patient ID: is"):
        nih.read(tmp_path)


def test_a_folder_that_is_not_nih_s_is_refused_with_what_it_lacks(tmp_path):
    (tmp_path / "a").mkdir()
    with pytest.raises(InputError, match=r"holds neither of Data_Entry_2017_v2020.csv, Data_Entry"):
        nih.read(tmp_path / "a")
    write_table(tmp_path / "b")
    with pytest.raises(InputError, match=r"holds no PNG: unpack the images there. NIH ChestX"):
        nih.read(tmp_path / "b")
    with pytest.raises(InputError, match=r"gone can't be listed: No such file"):
        nih.read(tmp_path / "gone")
