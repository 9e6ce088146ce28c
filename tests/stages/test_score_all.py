"""`score --all`: every definition and subgroups on the command line, from tables and folders."""

from __future__ import annotations

import csv
import re
from pathlib import Path

import click.testing
import numpy as np
import pytest

from kernel_lib.__main__ import main
from kernel_lib.data import rle
from kernel_lib.postprocess.surface_distance import surface_distance

IDS = [f"i{k:02d}" for k in range(12)]
SHAPE = (32, 32)


def block(k: int, shift: int = 0) -> np.ndarray:
    mask = np.zeros(SHAPE, np.uint8)
    mask[4 + shift : 12 + shift, 3 : 4 + k] = 1
    return mask


def write(path: Path, *rows: tuple) -> Path:
    with path.open("w", newline="") as file:
        csv.writer(file).writerows(rows)
    return path


@pytest.fixture
def tables(tmp_path: Path) -> Path:
    """Labels of 12 images, the even ones with a mask, and a submission of masks 2 px lower."""
    labels = [(i, rle.encode(block(k)) if k % 2 == 0 else "-1") for k, i in enumerate(IDS)]
    shifted = [(i, rle.encode(block(k, 2)) if k % 4 == 0 else "-1") for k, i in enumerate(IDS)]
    write(tmp_path / "labels.csv", ("ImageId", "EncodedPixels"), *labels)
    write(tmp_path / "submission.csv", ("ImageId", "EncodedPixels"), *shifted)
    return tmp_path


def score(folder: Path, *arguments: object) -> click.testing.Result:
    given = ["score", folder / "submission.csv", *(arguments or [folder / "labels.csv"])]
    shape = ["--shape", *SHAPE] if "--split" not in given else []
    return click.testing.CliRunner().invoke(main, list(map(str, [*given, *shape])))


def value(result: click.testing.Result, name: str) -> float:
    assert result.exit_code == 0, result.output
    return float(re.search(rf"^{re.escape(name)}  +(\S+)", result.output, re.MULTILINE)[1])


def test_all_prints_every_definition(tables: Path) -> None:
    short, full = score(tables), score(tables, tables / "labels.csv", "--all")
    assert full.output.startswith(short.output)
    assert "sensitivity" not in short.output
    # By hand: 6 of 12 are empty and predicted so; i00, i04 and i08 share 6 of 8 rows.
    assert value(full, "dice, per image") == 0.6875
    assert value(full, "dice, positives") == 0.375
    assert value(full, "sensitivity") == 0.5
    assert value(full, "specificity") == 1
    px = 8 * (1 + 5 + 9)
    assert value(full, "dice, pooled") == round(
        2 * px * 0.75 / (px + 8 * (1 + 3 + 5 + 7 + 9 + 11)), 4
    )
    hd95 = np.mean([surface_distance(block(k, 2), block(k)).hd95_px for k in (0, 4, 8)])
    assert value(full, "HD95, px") == round(hd95, 4)
    assert "HD95, mm" not in full.output
    assert re.search("^no AUC: .*--probabilities$", full.output, re.MULTILINE)
    assert "no subgroups by view, sex and age" in full.output


def test_probabilities_of_a_column_or_another_table(tables: Path) -> None:
    rows = list(csv.reader((tables / "submission.csv").open()))[1:]
    with_column = [(*row, 0.9 - k % 2 / 2) for k, row in enumerate(rows)]
    head = ("ImageId", "EncodedPixels", "probability")
    write(tables / "submission.csv", head, *with_column)
    labels = tables / "labels.csv"
    assert value(score(tables, labels, "--all"), "AUC") == 1
    other = write(tables / "p.csv", ("image_id", "label_probability"),
                  *[(i, k % 2) for k, i in enumerate(IDS[:-1])], (IDS[-1], ""))  # fmt: skip
    result = score(tables, labels, "--all", "--probabilities", other)
    assert value(result, "AUC") == 0
    assert "AUC: 1 images have no probability" in result.output


def test_metadata_beside_the_labels_or_given(tables: Path) -> None:
    rows = [(i, "AP" if k < 4 else "PA", f"p{k // 2}", 0.5) for k, i in enumerate(IDS)]
    head = ("ImageId", "view", "patient", "mm_per_px")
    path, labels = write(tables / "metadata.csv", head, *rows), tables / "labels.csv"
    beside = score(tables, labels, "--all")
    assert value(beside, "HD95, mm") == pytest.approx(value(beside, "HD95, px") / 2, abs=1e-4)
    assert "bootstrap over patients" in beside.output
    subgroups = re.findall(r"^view +(AP|PA) +(\d+) +(\d+) ", beside.output, re.MULTILINE)
    assert subgroups == [("AP", "4", "2"), ("PA", "8", "4")]
    assert "warning: view: " in beside.output
    path = path.rename(tables / "elsewhere.csv")
    given = score(tables, labels, "--all", "--metadata", path)
    assert given.output == beside.output.replace("metadata.csv", "elsewhere.csv")


@pytest.mark.parametrize(
    ("option", "rows", "words"),
    [
        ("metadata", [("ImageId", "view"), ("x", "PA")], "names none of the 12 images"),
        ("metadata", [("ImageId", "age"), ("i00", "old")], "row 2: the age 'old'"),
        ("probabilities", [("ImageId", "p"), ("i00", 1)], "no probability or label_probability"),
        ("probabilities", [("ImageId", "probability"), ("i00", 1.5)], "'1.5' is not within 0–1"),
        ("probabilities", [("ImageId", "probability"), ("i00", "high")], "'high' is not within"),
        ("probabilities", [("id", "probability"), ("i00", 1)], "rename 'id' to ImageId"),
    ],
)
def test_a_table_that_does_not_fit_is_one_clear_error(tables: Path, option, rows, words) -> None:
    path = write(tables / "given.csv", *rows)
    result = score(tables, tables / "labels.csv", "--all", f"--{option}", path)
    assert result.exit_code != 0
    assert words in result.output
    alone = score(tables, tables / "labels.csv", f"--{option}", path)
    assert f"--{option} {path} needs --all" in alone.output


def test_headers_of_a_data_folder(shared_data: Path, tmp_path: Path) -> None:
    """Silver labels against themselves: 300 images, each with view, sex, age and spacing."""
    silver = shared_data / "stage2-silver"
    (tmp_path / "submission.csv").write_bytes((silver / "stage_2_train.csv").read_bytes())
    result = score(tmp_path, silver, "--split", "train", "--all")
    assert value(result, "dice, per image") == value(result, "dice, pooled") == 1
    assert value(result, "HD95, mm") == value(result, "ASSD, px") == 0
    assert "metadata: the DICOM files' headers" in result.output
    counts = re.findall(r"^view +\w+ +(\d+) +(\d+) ", result.output, re.MULTILINE)
    assert [sum(map(int, column)) for column in zip(*counts, strict=True)] == [300, 100]


def test_three_values_of_real_radiographs_by_hand(shared_data: Path, tmp_path: Path) -> None:
    """Silver labels shifted by 3 px against themselves, counted here from the masks drawn."""
    labels = shared_data / "stage2-512" / "train-rle.csv"
    rows = list(csv.DictReader(labels.open()))
    rows = [r for r in rows if r["EncodedPixels"] != "-1"][:60] + [
        r for r in rows if r["EncodedPixels"] == "-1"
    ][:60]
    masks = [rle.decode(r["EncodedPixels"], (512, 512)) for r in rows]
    shifted = [np.roll(mask, 3, axis=0) for mask in masks]
    submitted = [(r["ImageId"], rle.encode(m)) for r, m in zip(rows, shifted, strict=True)]
    write(tmp_path / "submission.csv", ("ImageId", "EncodedPixels"), *submitted)
    result = click.testing.CliRunner().invoke(
        main,
        ["score", str(tmp_path / "submission.csv"), str(labels), "--all", "--shape", "512", "512"],
    )
    both = np.array([(a & b).sum() for a, b in zip(masks, shifted, strict=True)])
    one, other = (np.array([m.sum() for m in side]) for side in (masks, shifted))
    dice = np.where(one + other == 0, 1, 2 * both / np.maximum(one + other, 1))
    assert value(result, "dice, per image") == round(dice.mean(), 4)
    assert value(result, "dice, positives") == round(dice[:60].mean(), 4)
    assert value(result, "IoU, pooled") == round(both.sum() / (one + other - both).sum(), 4)
