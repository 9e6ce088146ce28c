"""The folds file: written completely or not at all, and read with care."""

from __future__ import annotations

import hashlib
import os

import numpy as np
import pandas as pd
import pytest

from kernel_lib.artifacts import folds_file
from kernel_lib.artifacts.filenames import LEFT_OUT
from kernel_lib.artifacts.folds_file import LeftOut
from kernel_lib.data import folds
from kernel_lib.errors import InputError
from tests.data.test_folds import make_table


@pytest.fixture
def table() -> pd.DataFrame:
    table = make_table()
    return table.assign(fold=folds.draw(table, 5))


def test_the_file_comes_back_as_it_was(table, tmp_path):
    path = tmp_path / "new" / "folds.csv"
    table.loc[0, "image_id"] = "1.10"  # stays text, like groups that look like numbers
    table.loc[1:3, "image_id"] = ['a, "b"', "c d 'e'", "p1/v"]
    table["group"] = table["group"].str.replace("p", "00")
    folds_file.save(table.assign(extra=1), path)
    loaded = folds_file.load(path)
    assert tuple(loaded.columns) == folds_file.COLUMNS
    expected = table.sort_values("image_id").reset_index(drop=True)
    for column in folds_file.COLUMNS:
        assert loaded[column].tolist() == expected[column].tolist()
    for column in folds_file.WHOLE_NUMBERS:
        assert loaded[column].dtype == np.int64
    assert folds_file.digest(loaded) == folds_file.digest(table)
    assert os.listdir(path.parent) == ["folds.csv"]


def test_the_file_holds_the_same_bytes_for_any_row_order(table, tmp_path):
    folds_file.save(table, tmp_path / "a.csv")
    folds_file.save(table.sample(frac=1, random_state=1), tmp_path / "b.csv")
    assert (tmp_path / "a.csv").read_bytes() == (tmp_path / "b.csv").read_bytes()
    header = (tmp_path / "a.csv").read_text().splitlines()[0]
    assert header == "image_id,fold,group,height,width,area_px,rle"


def test_missing_groups_are_saved_as_empty(table, tmp_path):
    folds_file.save(table.assign(group=np.nan), tmp_path / "folds.csv")
    assert set(folds_file.load(tmp_path / "folds.csv")["group"]) == {""}


@pytest.mark.parametrize("broken", ["fsync", "replace"])
def test_a_failed_save_leaves_the_old_file(table, tmp_path, monkeypatch, broken):
    path = tmp_path / "folds.csv"
    folds_file.save(table, path)
    before = path.read_bytes()

    def fail(*args):
        raise OSError("disk full")

    monkeypatch.setattr(os, broken, fail)
    with pytest.raises(OSError, match="disk full"):
        folds_file.save(table.assign(group=""), path)
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["folds.csv"]


def test_saving_refuses_what_loading_would(table, tmp_path):
    with pytest.raises(InputError, match="area_px is 1, which is not the area"):
        folds_file.save(table.assign(area_px=1), tmp_path / "folds.csv")
    with pytest.raises(InputError, match=r"lacks the columns \['rle'\]"):
        folds_file.save(table.drop(columns="rle"), tmp_path / "folds.csv")
    assert not list(tmp_path.iterdir())


GOOD = """image_id,fold,group,height,width,area_px,rle
a,0,p,8,8,3,1 3
b,0,p,8,8,0,-1
c,1,,8,8,2,62 2
"""


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        (GOOD, "", ["not a folds file", "prepare"]),
        ("fold,group", "fold,patient", ["lacks the columns ['group']", "prepare"]),
        (GOOD[GOOD.index("a,0") :], "", ["has no rows"]),
        ("\nb,0", "\na,0", ["row 3", "image a"]),
        ("\nb,0", "\n,0", ["row 3", "image id is empty"]),
        ("\nb,0", "\nb,x", ["row 3", "fold is 'x'", "whole number"]),
        ("\nb,0", "\nb,", ["row 3", "fold is ''"]),
        ("\nb,0", "\nb,-1", ["row 3", "fold is '-1'"]),
        ("\nb,0,p,8", "\nb,0,p,8.0", ["row 3", "height is '8.0'"]),
        ("\nb,0,p,8,8", "\nb,0,p,8,0", ["row 3", "width is 0, below 1"]),
        ("2,62 2", "3,62 2", ["row 4", "area_px is 3", "rle"]),
        ("62 2", "62 3", ["row 4", "rle of c", "pair 1", "8×8"]),
        ("62 2", "62 two", ["row 4", "rle of c", "'two'"]),
        (",2,62 2\n", "", ["row 4", "cut short"]),
        ("b,0,p,8,8,0,-1", "b,0,p,8,8,0,", ["row 3", "cut short"]),
        ("c,1", "c,2", ["folds [0, 2]"]),
        ("c,1", "c,0", ["folds [0]"]),
        ("\nb,0", "\nb,1", ["group (patient) p", "[0, 1]", "scored"]),
    ],
)
def test_bad_files_are_refused_by_row(tmp_path, old, new, words):
    assert GOOD.count(old) == 1
    path = tmp_path / "folds.csv"
    path.write_text(GOOD.replace(old, new))
    with pytest.raises(InputError) as caught:
        folds_file.load(path)
    for word in [str(path), *words]:
        assert word in str(caught.value)


def test_the_good_file_loads_and_an_absent_one_names_its_stage(tmp_path):
    path = tmp_path / "folds.csv"
    with pytest.raises(InputError, match="`prepare` makes it"):
        folds_file.load(path)
    path.write_text(GOOD)
    assert folds_file.load(path)["fold"].tolist() == [0, 0, 1]


def test_two_files_that_differ_are_told_apart_by_the_first_image(table):
    table = table[list(folds_file.COLUMNS)]
    assert folds_file.difference(table, table.sample(frac=1, random_state=2)) == ""
    other = table.sort_values("image_id", ignore_index=True)
    other.loc[[3, 7], "fold"] = 9
    was = table.set_index("image_id").at["id0003", "fold"]
    message = f"id0003: fold {was} there, 9 here; 2 of 200 images differ"
    assert folds_file.difference(table, other) == message
    alone = "1 images are in only one of them, id0199 first"
    assert folds_file.difference(table, other.iloc[:-1]) == alone


def test_the_digest_sees_ids_folds_and_groups_only(table):
    digest = folds_file.digest(table)
    assert len(digest) == 64
    assert digest == folds_file.digest(table.sample(frac=1, random_state=2))
    assert digest == folds_file.digest(table.assign(rle="", area_px=0, height=1))
    assert digest != folds_file.digest(table.assign(fold=(table["fold"] + 1) % 5))
    assert digest != folds_file.digest(table.assign(group=""))
    assert digest != folds_file.digest(table.assign(image_id=table["image_id"] + "x"))
    by_hand = pd.DataFrame({"image_id": ["b", "a"], "fold": [1, 0], "group": ["p", ""]})
    assert folds_file.digest(by_hand) == hashlib.sha256(b"a\t0\t\nb\t1\tp\n").hexdigest()


def test_it_comes_back_as_it_was_saved(tmp_path):
    kept = LeftOut(("a: it is cut short", "b: another reason"))
    kept.save(tmp_path)
    assert LeftOut.load([tmp_path / "nowhere", tmp_path]) == kept
    assert LeftOut.load([tmp_path / "nowhere"]) == LeftOut()


def test_an_id_may_hold_a_colon():
    kept = LeftOut(("1.2: 3: it is cut short", "a: b"))
    assert all(image_id in kept for image_id in ("1.2: 3", "a"))
    assert not any(image_id in kept for image_id in ("1", "a: b", "b", ""))


@pytest.mark.parametrize("text", ["{}", "[1]", "[", ""])
def test_a_damaged_file_is_named(tmp_path, text):
    (tmp_path / LEFT_OUT).write_text(text)
    with pytest.raises(InputError, match=LEFT_OUT):
        LeftOut.load([tmp_path])
