"""Folds: complete patients, even shares; ids that name nobody are no patients."""

from __future__ import annotations

import hashlib
import warnings

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kernel_lib.artifacts import folds_file
from kernel_lib.data import folds, labels, rle
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
def test_groups_stay_together_and_every_fold_is_used(n_images, n_groups, seed, n_folds):
    table = make_table(n_images, n_groups, seed)
    own = folds.known_patients(table["group"])[0] == ""
    if table["group"][~own].nunique() + own.sum() < n_folds:
        with pytest.raises(InputError, match="groups"):
            folds.draw(table, n_folds)
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assigned = folds.draw(table, n_folds)
    assert assigned.index.equals(table.index)
    assert assigned.dtype == np.int64
    assert set(assigned) == set(range(n_folds))
    assert (assigned[~own].groupby(table["group"]).nunique() == 1).all()


def test_images_without_a_group_are_their_own(table):
    lone = table.assign(group="")
    by_image = folds.draw(lone, 5)
    assert by_image.value_counts().tolist() == [40] * 5
    pd.testing.assert_series_equal(by_image, folds.draw(lone.assign(group=np.nan), 5))
    pd.testing.assert_series_equal(by_image, folds.draw(lone.assign(group=None), 5))
    pd.testing.assert_series_equal(by_image, folds.draw(lone.drop(columns="group"), 5))


def test_a_group_named_like_an_image_is_not_that_image():
    columns = {"image_id": ["a", "b", "c", "image a"], "group": ["", "a", "a", ""]}
    assigned = folds.draw(pd.DataFrame({**columns, "area_px": [5, 6, 7, 8]}), 3)
    assert assigned[1] == assigned[2]
    assert sorted({assigned[0], assigned[1], assigned[3]}) == [0, 1, 2]


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


def test_the_draw_is_frozen_and_leaves_the_table_alone():
    # Folds of last year must be the same today: a change here orphans every trained fold.
    table = make_table()
    assigned = table.assign(fold=folds.draw(table, 5)).sort_values("image_id")["fold"]
    pd.testing.assert_frame_equal(table, make_table())
    digest = hashlib.sha256("".join(map(str, assigned)).encode()).hexdigest()
    assert digest[:16] == "2782ff406a8a1c69"


def test_a_placeholder_is_no_group_and_is_said(table):
    for shared in ("ANONYMOUS", "0", "nan", "one word for all"):
        with pytest.warns(UserWarning, match=f"200 of 200 images .*'{shared}'.*GROUPS"):
            assigned = folds.draw(table.assign(group=shared), 5)
        assert assigned.value_counts().tolist() == [40] * 5
    half = [f"p{n}" if n % 2 else "unknown" for n in range(len(table))]
    with pytest.warns(UserWarning, match="100 of 200 images"):
        assert folds.draw(table.assign(group=half), 5).value_counts().tolist() == [40] * 5


@pytest.mark.parametrize("n_folds", [3, 5])
def test_a_fold_that_one_patient_fills_is_named(table, n_folds):
    groups = ["p" if n < 100 else "" for n in range(len(table))]
    with pytest.warns(UserWarning, match="of 200 images, 100 .* p.*GROUPS"):
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


def test_bad_tables_and_numbers_of_folds_are_refused(table):
    def refused(table, n_folds: float, words: str) -> None:
        with pytest.raises(InputError, match=words):
            folds.draw(table, n_folds)

    for n_folds in (1, 0, -2, 2.5):
        refused(table, n_folds, f"N_FOLDS is {n_folds}")
    three = table.assign(group=[f"p{n % 3}" for n in range(len(table))])
    refused(three, 5, r"3 groups.*5 folds.*N_FOLDS to 3")
    refused(table.iloc[:9].assign(group="p"), 2, r"1 groups.*at least 2 groups.*GROUPS")
    refused(pd.concat([table, table.iloc[[7]]]), 5, table["image_id"][7])
    for area in (-1, float("nan"), "x"):
        bad = table.astype({"area_px": object})
        bad.loc[9, "area_px"] = area
        refused(bad, 5, table["image_id"][9])


def test_the_real_table_splits_evenly_by_patient(shared_data, tmp_path):
    table = labels.read_labels(shared_data / "siim-labels" / "train-rle.csv")
    patient = labels.read_groups(shared_data / "siim-labels" / "nih_id.csv")
    areas = table["rle"].map(lambda text: rle.area(rle.parse(text)))
    table = table.assign(
        group=table["image_id"].map(patient), height=1024, width=1024, area_px=areas
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
        overall = table["area_px"][positive].quantile(quantile)
        each = table[positive].groupby("fold")["area_px"].quantile(quantile)
        assert (each / overall - 1).abs().max() < 0.08
    folds_file.save(table, tmp_path / "folds.csv")
    assert folds_file.digest(folds_file.load(tmp_path / "folds.csv")) == folds_file.digest(table)


# --- patients ---


PLACEHOLDERS = (
    ",  ,ANONYMOUS,anonymized,Anonymised,unknown,Unknown ,0,0000,nan,NaN,None,null,N/A,nothing,-,?,"
    "de-identified,xxxx"
)
PATIENTS = "7,00000013,P0,ANON0001,Anna,Nancy,none7,x1,0a,10,-1"


@pytest.mark.parametrize(("names", "are_placeholders"), [(PLACEHOLDERS, True), (PATIENTS, False)])
def test_words_for_nobody(names, are_placeholders):
    result = {name: folds.is_placeholder(name) for name in names.split(",")}
    assert result == dict.fromkeys(result, are_placeholders)


def test_words_are_blanked_and_noted_and_the_rest_is_as_it_was():
    given = pd.Series(["a", "unknown", None, np.nan, "", "unknown", "b"], index=range(7, 0, -1))
    result, notes = folds.known_patients(given)
    assert result.tolist() == ["a", "", "", "", "", "", "b"]
    assert result.index.equals(given.index)
    assert len(notes) == 1
    assert "2 of 7 images" in notes[0]
    assert "'unknown'" in notes[0]
    assert "GROUPS" in notes[0]


@pytest.mark.parametrize(
    ("shared", "other", "is_patient"), [(11, 10, False), (10, 10, True), (9, 1, True)]
)
def test_an_id_of_most_images_is_no_patient(shared, other, is_patient):
    given = pd.Series(["HOSPITAL"] * shared + [f"p{n}" for n in range(other)])
    result, notes = folds.known_patients(given)
    assert (result == "HOSPITAL").any() == is_patient
    assert len(notes) == (0 if is_patient else 1)
    again, nothing = folds.known_patients(result)
    assert again.tolist() == result.tolist()
    assert nothing == []


@pytest.mark.parametrize(
    ("ids", "shared"),
    [
        (["00000003_001", "00000003_002", "00000004_000"], 2),
        ([f"patient{p}/study{s}/view1_frontal" for p in (1, 2) for s in (1, 2)], 4),
        (["train/patient1_a", "train/patient1_b", "patient10_a", "x"], 2),
        (["a", "b"], None),
        (["00000003_001", "00000004_001"], None),
        (["patient1/x"], None),
    ],
)
def test_ids_that_share_a_patient_are_counted_where_no_patient_is_known(ids, shared):
    (note,) = folds.note_unknown_patients(ids, pd.Series([""] * len(ids)))
    assert "GROUPS" in note
    assert f" {shared} images share" in note if shared else "share" not in note
    assert folds.note_unknown_patients(ids, pd.Series(["", "p", "", ""])) == []


@pytest.mark.parametrize(
    ("given", "copies", "expected"),
    [
        ("p,q,,", [], "p,q,,"),
        ("p,q,,", [(0, 2)], "p,q,p,"),
        ("p,q,,q", [(0, 3)], "p,p,,p"),
        (",,,", [(1, 3)], ",same picture as i1,,same picture as i1"),
        (",,p,", [(0, 1), (1, 2)], "p,p,p,"),
        ("q,,p,", [(0, 1), (1, 2), (2, 3)], "p,p,p,p"),
    ],
)
def test_copies_are_one_patient_s_as_are_all_images_of_theirs(given, copies, expected):
    result = folds.united_patients(pd.Series(given.split(",")), ["i0", "i1", "i2", "i3"], copies)
    assert result.tolist() == expected.split(",")
