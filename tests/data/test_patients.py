"""Ids that name nobody are no patients; all others are."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from kernel_lib.data import patients

NOBODY = (
    ",  ,ANONYMOUS,anonymized,Anonymised,unknown,Unknown ,0,0000,nan,NaN,None,null,N/A,nothing,-,?,"
    "de-identified,xxxx"
)
SOMEBODY = "7,00000013,P0,ANON0001,Anna,Nancy,none7,x1,0a,10,-1"


@pytest.mark.parametrize(("names", "are_nobody"), [(NOBODY, True), (SOMEBODY, False)])
def test_words_for_nobody(names, are_nobody):
    found = {name: patients.is_nobody(name) for name in names.split(",")}
    assert found == dict.fromkeys(found, are_nobody)


def test_words_are_blanked_and_noted_and_the_rest_is_as_it_was():
    given = pd.Series(["a", "unknown", None, np.nan, "", "unknown", "b"], index=range(7, 0, -1))
    found, notes = patients.known(given)
    assert found.tolist() == ["a", "", "", "", "", "", "b"]
    assert found.index.equals(given.index)
    assert len(notes) == 1
    assert "2 of 7 images" in notes[0]
    assert "'unknown'" in notes[0]
    assert "GROUPS" in notes[0]


@pytest.mark.parametrize(
    ("shared", "other", "is_patient"), [(11, 10, False), (10, 10, True), (9, 1, True)]
)
def test_an_id_of_most_images_is_no_patient(shared, other, is_patient):
    given = pd.Series(["HOSPITAL"] * shared + [f"p{n}" for n in range(other)])
    found, notes = patients.known(given)
    assert (found == "HOSPITAL").any() == is_patient
    assert len(notes) == (0 if is_patient else 1)
    again, nothing = patients.known(found)
    assert again.tolist() == found.tolist()
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
    (note,) = patients.note_unknown(ids, pd.Series([""] * len(ids)))
    assert "GROUPS" in note
    assert f" {shared} images share" in note if shared else "share" not in note
    assert patients.note_unknown(ids, pd.Series(["", "p", "", ""])) == []


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
    found = patients.united(pd.Series(given.split(",")), ["i0", "i1", "i2", "i3"], copies)
    assert found.tolist() == expected.split(",")
