"""Metadata of images: a table's columns, DICOM headers, and what is refused."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from kernel_lib.data import dicom, images, metadata
from kernel_lib.errors import InputError


def put(folder: Path, *lines: str) -> Path:
    path = folder / "metadata.csv"
    path.write_text("\n".join(lines) + "\n")
    return path


def test_columns_are_found_by_their_names(tmp_path: Path) -> None:
    path = put(
        tmp_path, "Patient ID,ImageId,ViewPosition,Gender,patient_age,mm_per_px,other",
        "p,a.png,PA,F,057Y,0.143,1", "anonymous,sub/b,,U,,,2",
    )  # fmt: skip
    found = metadata.read(path)
    assert found.index.tolist() == ["a", "b"]
    assert found["view"].tolist() == ["PA", ""]
    assert found["sex"].tolist() == ["F", ""]
    assert found["patient"].tolist() == ["p", ""]
    np.testing.assert_array_equal(found[["age", "mm_per_px"]], [[57, 0.143], [math.nan, math.nan]])
    assert metadata.read(put(tmp_path, "ImageId,age", "a,3")).columns.tolist() == ["age"]


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        (["image,view", "a,PA"], r"rename 'image' to ImageId"),
        (["ImageId,height", "a,1024"], r"none of view, sex, age, patient or mm_per_px"),
        (["ImageId,age", "a,1", "b,old"], r"row 3: the age 'old' is no age in years"),
        (["ImageId,age", "a,-1"], r"row 2: the age '-1' is no age"),
        (["ImageId,mm_per_px", "a,0"], r"row 2: the mm_per_px '0' is no spacing"),
        (["ImageId,mm_per_px", "a,[0.1, 0.1]"], r"row 2 has 3 cells"),
        (["ImageId,view", "a,PA", "a,AP"], r"row 3: image a is there twice"),
        (["ImageId,view", ",PA"], r"row 2 has no ImageId"),
        (["ImageId,view"], r"a header and no rows"),
    ],
)
def test_a_faulty_table_is_one_clear_error(tmp_path: Path, lines, words) -> None:
    with pytest.raises(InputError, match=rf"metadata\.csv .*{words}"):
        metadata.read(put(tmp_path, *lines))


def test_a_table_of_other_images_is_refused_and_a_lack_is_counted(tmp_path: Path) -> None:
    path = put(tmp_path, "ImageId,view", "a,PA", "b,AP")
    table = metadata.read(path)
    assert metadata.check_ids(path, table, ["b", "c", "a", "d"]) == 2
    with pytest.raises(InputError, match=r"names none of the 2 images .*begins with a, .* x\)"):
        metadata.check_ids(path, table, ["x", "y"])


@pytest.mark.parametrize(
    ("age", "years"),
    [("57", 57), ("057Y", 57), ("57.0", 57), (" 3y", 3), ("018M", 1), ("003M", 0), ("100W", 1),
     ("400D", 1), ("", math.nan), ("old", math.nan), ("-5", math.nan), ("1234", math.nan)],
)  # fmt: skip
def test_ages(age: str, years: float) -> None:
    np.testing.assert_equal(dicom.years(age), years)


def test_headers_of_real_files(shared_data: Path) -> None:
    table = metadata.read(shared_data / "stage2-512" / "metadata.csv")
    folder = shared_data / "stage2-silver" / "stage_2_images"
    paths = sorted(folder.glob("*.dcm"))[:20]
    ids = [images.image_id(path) for path in paths]
    found = metadata.of_headers(ids, list(map(str, paths)))
    for name in ("view", "sex", "age"):
        assert found[name].tolist() == table.loc[ids, name].tolist()
    assert found["mm_per_px"].between(0.1, 0.25).all()
    picture = next((shared_data / "stage2-512" / "images").iterdir())
    assert metadata.of_headers(["x"], [str(picture)]) is None
    mixed = metadata.of_headers(["x", ids[0], "y"], [str(picture), str(paths[0]), "gone.dcm"])
    assert mixed["view"].tolist() == ["", found["view"].iloc[0], ""]


def test_the_table_beside_labels_or_in_a_folder(tmp_path: Path) -> None:
    assert metadata.beside(tmp_path) is None
    path = put(tmp_path, "ImageId,view", "a,PA")
    assert metadata.beside(tmp_path) == metadata.beside(tmp_path / "labels.csv") == path
