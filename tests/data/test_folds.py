"""Folds: whole patients, even shares, one file that is written whole and read with care."""

from __future__ import annotations

import hashlib
import os
import warnings

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kernel_lib.data import folds, patients, rle
from kernel_lib.errors import InputError


def make_table(n_images: int = 200, n_groups: int = 120, seed: int = 0) -> pd.DataFrame:
    """Images of 32×32 px, a quarter positive, some without a group."""
    rng = np.random.default_rng(seed)
    areas = np.where(rng.random(n_images) < 0.25, rng.integers(1, 900, n_images), 0)
    groups = rng.integers(0, n_groups, n_images)
    known = rng.random(n_images) < 0.8
    return pd.DataFrame(
        {
            "image_id": [f"id{number:04d}" for number in rng.permutation(n_images)],
            "group": [f"p{g}" if k else "" for g, k in zip(groups, known, strict=True)],
            "height": 32,
            "width": 32,
            "area_px": areas,
            "rle": [f"3 {area}" if area else "-1" for area in areas],
        }
    )


@pytest.fixture
def table() -> pd.DataFrame:
    table = make_table()
    return table.assign(fold=folds.draw(table, 5))


@given(st.integers(20, 150), st.integers(1, 60), st.integers(0, 10**6), st.integers(2, 6))
@settings(max_examples=60)
def test_groups_stay_whole_and_every_fold_is_used(n_images, n_groups, seed, n_folds):
    table = make_table(n_images, n_groups, seed)
    own = patients.known(table["group"])[0] == ""
    if table["group"][~own].nunique() + own.sum() < n_folds:
        with pytest.raises(InputError, match="groups"):
            folds.draw(table, n_folds)
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        drawn = folds.draw(table, n_folds)
    assert drawn.index.equals(table.index)
    assert drawn.dtype == np.int64
    assert set(drawn) == set(range(n_folds))
    assert (drawn[~own].groupby(table["group"]).nunique() == 1).all()


def test_images_without_a_group_are_their_own(table):
    lone = table.assign(group="")
    by_image = folds.draw(lone, 5)
    assert by_image.value_counts().tolist() == [40] * 5
    pd.testing.assert_series_equal(by_image, folds.draw(lone.assign(group=np.nan), 5))
    pd.testing.assert_series_equal(by_image, folds.draw(lone.assign(group=None), 5))
    pd.testing.assert_series_equal(by_image, folds.draw(lone.drop(columns="group"), 5))


def test_a_group_named_like_an_image_is_not_that_image():
    table = pd.DataFrame(
        {
            "image_id": ["a", "b", "c", "image a"],
            "group": ["", "a", "a", ""],
            "area_px": [5, 6, 7, 8],
        }
    )
    drawn = folds.draw(table, 3)
    assert drawn[1] == drawn[2]
    assert sorted({drawn[0], drawn[1], drawn[3]}) == [0, 1, 2]


def test_single_images_spread_evenly_over_area():
    areas = np.r_[np.zeros(300, dtype=int), np.arange(1, 101)]
    table = pd.DataFrame({"image_id": [f"{n:03d}" for n in range(400)], "area_px": areas})
    table["fold"] = folds.draw(table, 5)
    balance = folds.balance(table.assign(height=1024, width=1024))
    assert balance["images"].tolist() == [80] * 5
    assert balance["groups"].tolist() == [80] * 5
    assert balance["positives"].tolist() == [20] * 5
    np.testing.assert_allclose(balance["positive_share"], 0.25)
    half = folds.balance(table.assign(height=512, width=1024))  # its pixels count as two each
    assert (half["median_area_px_1024"] == 2 * balance["median_area_px_1024"]).all()
    # One of every five neighbours in area goes to each fold.
    assert balance["median_area_px_1024"].between(48, 53).all()
    positive = table[table["area_px"] > 0]
    fifths = positive.groupby([(positive["area_px"] - 1) // 5, "fold"]).size()
    assert (fifths == 1).all()
    assert len(fifths) == 100


def test_neither_row_order_nor_index_matters(table):
    shuffled = table.sample(frac=1, random_state=3)
    pd.testing.assert_series_equal(folds.draw(shuffled, 5), shuffled["fold"])
    doubled_labels = table.set_axis([0] * len(table))
    assert folds.draw(doubled_labels, 5).tolist() == table["fold"].tolist()


def test_the_seed_decides_and_the_table_is_left_alone(table):
    before = table.copy()
    assert folds.draw(table, 5).tolist() == folds.draw(table, 5, seed=folds.SEED).tolist()
    assert folds.draw(table, 5, seed=1).tolist() != table["fold"].tolist()
    pd.testing.assert_frame_equal(table, before)


def test_the_draw_is_frozen(table):
    # Folds drawn last year must be drawn alike today: a change here orphans every trained fold.
    text = "".join(map(str, table.sort_values("image_id")["fold"]))
    assert hashlib.sha256(text.encode()).hexdigest()[:16] == "2782ff406a8a1c69"


@pytest.mark.parametrize("n_folds", [1, 0, -2, 2.5])
def test_too_few_folds_are_refused(table, n_folds):
    with pytest.raises(InputError, match="at least 2 folds"):
        folds.draw(table, n_folds)


def test_fewer_groups_than_folds_are_refused_with_the_number(table):
    with pytest.raises(InputError, match=r"3 groups.*5 folds.*N_FOLDS to 3"):
        folds.draw(table.assign(group=[f"p{n % 3}" for n in range(len(table))]), 5)
    with pytest.raises(InputError, match=r"1 groups.*at least 2 groups.*GROUPS"):
        folds.draw(table.iloc[:9].assign(group="p"), 2)


def test_a_placeholder_is_no_group_and_is_said(table):
    for shared in ("ANONYMOUS", "0", "nan", "one word for all"):
        with pytest.warns(UserWarning, match=f"200 of 200 images .*'{shared}'.*GROUPS"):
            drawn = folds.draw(table.assign(group=shared), 5)
        assert drawn.value_counts().tolist() == [40] * 5
    half = [f"p{n}" if n % 2 else "unknown" for n in range(len(table))]
    with pytest.warns(UserWarning, match="100 of 200 images"):
        assert folds.draw(table.assign(group=half), 5).value_counts().tolist() == [40] * 5


@pytest.mark.parametrize("n_folds", [3, 5])
def test_a_fold_that_one_patient_fills_is_named(table, n_folds):
    groups = ["p" if n < 100 else "" for n in range(len(table))]
    with pytest.warns(UserWarning, match="of 200 images, of which 100 of the patient p.*GROUPS"):
        folds.draw(table.assign(group=groups), n_folds)


def test_even_folds_are_drawn_without_a_word(table):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        folds.draw(table, 5)
        folds.draw(table.assign(group=[f"p{n % 2}" for n in range(len(table))]), 2)


def test_a_fold_without_positives_is_drawn_with_a_warning():
    table = pd.DataFrame({"image_id": ["a", "b"], "area_px": [0, 9]})
    with pytest.warns(UserWarning, match=r"no positive image in fold\(s\) \[1\] of 2: 1 positive"):
        assert sorted(folds.draw(table, 2)) == [0, 1]


def test_bad_tables_are_refused_by_image(table):
    twice = pd.concat([table, table.iloc[[7]]])
    with pytest.raises(InputError, match=table["image_id"][7]):
        folds.draw(twice, 5)
    for area in (-1, float("nan"), "x"):
        bad = table.astype({"area_px": object})
        bad.loc[9, "area_px"] = area
        with pytest.raises(InputError, match=table["image_id"][9]):
            folds.draw(bad, 5)


def test_the_file_comes_back_as_it_was(table, tmp_path):
    path = tmp_path / "new" / "folds.csv"
    table.loc[0, "image_id"] = "1.10"  # stays text, like groups that look like numbers
    table.loc[1:3, "image_id"] = ['a, "b"', "c d 'e'", "p1/v"]
    table["group"] = table["group"].str.replace("p", "00")
    folds.save(table.assign(extra=1), path)
    loaded = folds.load(path)
    assert tuple(loaded.columns) == folds.COLUMNS
    expected = table.sort_values("image_id").reset_index(drop=True)
    for column in folds.COLUMNS:
        assert loaded[column].tolist() == expected[column].tolist()
    for column in folds.WHOLE_NUMBERS:
        assert loaded[column].dtype == np.int64
    assert folds.digest(loaded) == folds.digest(table)
    assert os.listdir(path.parent) == ["folds.csv"]


def test_the_file_holds_the_same_bytes_for_any_row_order(table, tmp_path):
    folds.save(table, tmp_path / "a.csv")
    folds.save(table.sample(frac=1, random_state=1), tmp_path / "b.csv")
    assert (tmp_path / "a.csv").read_bytes() == (tmp_path / "b.csv").read_bytes()
    header = (tmp_path / "a.csv").read_text().splitlines()[0]
    assert header == "image_id,fold,group,height,width,area_px,rle"


def test_missing_groups_are_saved_as_empty(table, tmp_path):
    folds.save(table.assign(group=np.nan), tmp_path / "folds.csv")
    assert set(folds.load(tmp_path / "folds.csv")["group"]) == {""}


@pytest.mark.parametrize("broken", ["fsync", "replace"])
def test_a_failed_save_leaves_the_old_file(table, tmp_path, monkeypatch, broken):
    path = tmp_path / "folds.csv"
    folds.save(table, path)
    before = path.read_bytes()

    def fail(*args):
        raise OSError("disk full")

    monkeypatch.setattr(os, broken, fail)
    with pytest.raises(OSError, match="disk full"):
        folds.save(table.assign(group=""), path)
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["folds.csv"]


def test_saving_refuses_what_loading_would(table, tmp_path):
    with pytest.raises(InputError, match="area_px is 1, which is not the area"):
        folds.save(table.assign(area_px=1), tmp_path / "folds.csv")
    with pytest.raises(InputError, match=r"lacks the columns \['rle'\]"):
        folds.save(table.drop(columns="rle"), tmp_path / "folds.csv")
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
        ("\nb,0", "\na,0", ["row 3", "image a", "second time"]),
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
        folds.load(path)
    for word in [str(path), *words]:
        assert word in str(caught.value)


def test_the_good_file_loads_and_an_absent_one_names_its_stage(tmp_path):
    path = tmp_path / "folds.csv"
    with pytest.raises(InputError, match="`prepare` makes it"):
        folds.load(path)
    path.write_text(GOOD)
    assert folds.load(path)["fold"].tolist() == [0, 0, 1]


def test_two_files_that_differ_are_told_apart_by_the_first_image(table):
    table = table[list(folds.COLUMNS)]
    assert folds.difference(table, table.sample(frac=1, random_state=2)) == ""
    other = table.sort_values("image_id", ignore_index=True)
    other.loc[[3, 7], "fold"] = 9
    was = table.set_index("image_id").at["id0003", "fold"]
    told = f"id0003: fold {was} there, 9 here; 2 of 200 images differ"
    assert folds.difference(table, other) == told
    alone = "1 images stand in one of them alone, id0199 first"
    assert folds.difference(table, other.iloc[:-1]) == alone


def test_the_digest_sees_ids_folds_and_groups_only(table):
    digest = folds.digest(table)
    assert len(digest) == 64
    assert digest == folds.digest(table.sample(frac=1, random_state=2))
    assert digest == folds.digest(table.assign(rle="", area_px=0, height=1))
    assert digest != folds.digest(table.assign(fold=(table["fold"] + 1) % 5))
    assert digest != folds.digest(table.assign(group=""))
    assert digest != folds.digest(table.assign(image_id=table["image_id"] + "x"))
    by_hand = pd.DataFrame({"image_id": ["b", "a"], "fold": [1, 0], "group": ["p", ""]})
    assert folds.digest(by_hand) == hashlib.sha256(b"a\t0\t\nb\t1\tp\n").hexdigest()


def test_the_real_table_splits_evenly_by_patient(shared_data, tmp_path):
    labels = shared_data / "siim-labels"
    rows = pd.read_csv(labels / "train-rle.csv", dtype=str, keep_default_na=False)
    rows = rows.set_axis(["image_id", "rle"], axis=1)
    names = pd.read_csv(labels / "nih_id.csv", dtype=str, keep_default_na=False)
    patient = dict(zip(names["Kaggle_ID"], names["NIH_ID"].str.split("_").str[0], strict=True))
    runs = rows["rle"].map(rle.parse).groupby(rows["image_id"]).apply(rle.union)
    table = pd.DataFrame(
        {
            "image_id": runs.index,
            "group": [patient[image_id] for image_id in runs.index],
            "height": 1024,
            "width": 1024,
            "area_px": [rle.area(r) for r in runs],
            "rle": [rle.to_string(r) for r in runs],
        }
    )
    assert table["group"].nunique() == 6_171
    table["fold"] = folds.draw(table, 5)
    assert (table.groupby("group")["fold"].nunique() == 1).all()
    balance = folds.balance(table)
    positive = table["area_px"] > 0
    median = table["area_px"][positive].median()
    assert balance["images"].sum() == 12_047
    assert balance["images"].max() - balance["images"].min() <= 1
    assert balance["groups"].sum() == 6_171
    assert np.ptp(balance["positives"]) <= 1
    assert (balance["positive_share"] - positive.mean()).abs().max() < 0.0005
    assert (balance["median_area_px_1024"] / median - 1).abs().max() < 0.02
    # Small and large masks too, not only those in the middle.
    for quantile in (0.05, 0.25, 0.75, 0.95):
        whole = table["area_px"][positive].quantile(quantile)
        each = table[positive].groupby("fold")["area_px"].quantile(quantile)
        assert (each / whole - 1).abs().max() < 0.08
    folds.save(table, tmp_path / "folds.csv")
    assert folds.digest(folds.load(tmp_path / "folds.csv")) == folds.digest(table)
