from __future__ import annotations

import math
import re
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest

from kernel_lib.data import labels, rle
from kernel_lib.errors import InputError
from kernel_lib.postprocess import metrics, submission

HEADER = "ImageId,EncodedPixels\n"
SAMPLE = f"{HEADER}a,-1\nb,-1\nc,-1\n"


@pytest.fixture
def sample(tmp_path: Path) -> Path:
    return put(tmp_path / "sample.csv", SAMPLE)


def put(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def test_what_is_written_reads_back_and_is_valid(tmp_path: Path, sample: Path) -> None:
    path = tmp_path / "submission.csv"
    submission.write(path, ["a", "b", "c"], ["5 3", "", "-1"])
    assert path.read_text() == "ImageId,EncodedPixels\na,5 3\nb,-1\nc,-1\n"
    assert submission.read(path).to_dict("list") == {
        "row": [2, 3, 4],
        "image_id": ["a", "b", "c"],
        "rle": ["5 3", "-1", "-1"],
    }
    assert submission.validate(path, sample) == []
    assert submission.order_note(path, sample) is None


def test_a_submission_that_cannot_be_written_leaves_the_old_one(tmp_path: Path) -> None:
    path = put(tmp_path / "submission.csv", SAMPLE)
    with pytest.raises(InputError, match="1 masks for 2 images"):
        submission.write(path, ["a", "b"], ["-1"])
    with pytest.raises(InputError, match="image a "):
        submission.write(path, ["a", "a"], ["-1", "-1"])
    assert path.read_text() == SAMPLE
    assert [file.name for file in tmp_path.iterdir()] == ["submission.csv"]


@pytest.mark.parametrize(
    "text",
    [
        "ImageId, EncodedPixels\na, -1\nb, 5 3\n",
        "\ufeffImageId,EncodedPixels\r\na,-1\r\n\r\nb,5 3\r\n",
        '"ImageId","EncodedPixels"\n"a","-1"\n"b","5 3"',
    ],
)
def test_either_header_is_read(tmp_path: Path, text: str) -> None:
    (tmp_path / "labels.csv").write_bytes(text.encode())
    table = submission.read(tmp_path / "labels.csv")
    assert table[["image_id", "rle"]].to_numpy().tolist() == [["a", "-1"], ["b", "5 3"]]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("", "row 1: there is no header"),
        ("id,label\na,1\n", "row 1: the header is 'id,label'"),
        ("ImageId,EncodedPixels,ImageId\na,-1,a\n", "row 1: the header is"),
        (f"{HEADER}a,-1\nb\n", "row 3: 1 values instead of 2"),
        (f"{HEADER}a,1,2\n", "row 2: 3 values instead of 2"),
        (f"{HEADER},-1\n", "row 2: no id"),
        ("\0", "UTF-8"),
        (None, "check the path"),
    ],
)
def test_what_is_no_rle_table_is_named(tmp_path: Path, content: str | None, said: str) -> None:
    path = tmp_path / "wrong.csv"
    if content is not None:
        put(path, content)
    with pytest.raises(InputError, match=said) as raised:
        submission.read(path)
    assert "wrong.csv" in str(raised.value)
    (problem,) = submission.validate(path, ["a"])[:1]  # returned, not raised
    assert said in problem


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ("a,-1\nb,-1\n", ["after row 3: image c of the sample is missing: add the row 'c,-1'"]),
        ("a,-1\nb,-1\nc,-1\nd,-1\n", ["row 5: image 'd' is not in the sample: remove"]),
        ("a,-1\nb,-1\nb,-1\nc,-1\n", ["row 4: image 'b' stands in row 3 already"]),
        (
            "a,5 9\nb,-1\na,10 9\nc,-1\n",
            ["row 4: image 'a' stands in row 2 already", "row 4 (a): 4 px overlap the mask in row"],
        ),
        ("a,5 3 2\nb,-1\nc,-1\n", ["row 2 (a): the RLE has 3 numbers, an odd count"]),
        ("a,5 0\nb,-1\nc,-1\n", ["row 2 (a): pair 1: the run length is 0"]),
        ("a,5 3 -2 4\nb,-1\nc,-1\n", ["row 2 (a): pair 2: the gap is -2"]),
        ("a,-1\nb,five 3\nc,-1\n", ["row 3 (b): pair 1: the gap is 'five'"]),
        ("a,-1\nb,-1\nc,1048570 7\n", ["row 4 (c): pair 1: the run ends at pixel 1,048,577"]),
        ("a,-1\nb,\nc,-1\n", ["row 3 (b): no RLE: write -1"]),
        ("a,-1\nb\nc,5 0\n", ["row 3: 1 values", "row 4 (c): pair 1", "after row 4: image b"]),
        ("", ["after row 1: image a", "after row 1: image b", "after row 1: image c"]),
    ],
)
def test_each_fault_is_named_with_its_row(
    tmp_path: Path, sample: Path, rows: str, said: list[str]
) -> None:
    path = put(tmp_path / "submission.csv", HEADER + rows)
    problems = submission.validate(path, sample)
    assert len(problems) == len(said)
    for problem, start in zip(problems, said, strict=True):
        assert problem.startswith(start)


@pytest.mark.parametrize(
    ("text", "note"),
    [
        ("ImageId,EncodedPixels\na,-1\nc,-1\nb,-1\n", "row 3: .*c, there b"),
        ("EncodedPixels,ImageId\n-1,a\n-1,b\n-1,c\n", "row 1:"),
    ],
)
def test_another_order_is_a_note_and_no_fault(
    tmp_path: Path, sample: Path, text: str, note: str
) -> None:
    path = put(tmp_path / "submission.csv", text)
    assert submission.validate(path, sample) == []
    assert re.match(note, submission.order_note(path, sample))


DIALECTS = {
    "endings": "ImageId,EncodedPixels\na.dcm,{}\nb.png,{}\n",
    "paths": "ImageId,EncodedPixels\ntest/a.dcm,{}\ntest/b.dcm,{}\n",
    "more columns": "ImageId,EncodedPixels,Usage\na,{},Public\nb,{},Private\n",
    "an index": ",ImageId,EncodedPixels\n0,a,{}\n1,b,{}\n",
    "swapped": "EncodedPixels,ImageId\n{},a\n{},b\n",
    "quoted": 'ImageId,EncodedPixels\n"a ""1"", left",{}\n"b, c",{}\n',
}


@pytest.mark.parametrize("text", DIALECTS.values(), ids=DIALECTS.keys())
def test_a_submission_is_written_as_its_sample_is(tmp_path: Path, text: str) -> None:
    sample = labels.read_sample(put(tmp_path / "sample.csv", text.format("-1", "-1")))
    path = tmp_path / "submission.csv"
    submission.write(path, sample, ["", "5 3"])
    assert path.read_text() == text.format("-1", "5 3")
    assert submission.read(path)["image_id"].tolist() == sample.image_id
    assert submission.by_image(path).to_dict() == dict(
        zip(sample.names, ["-1", "5 3"], strict=True)
    )
    for given in (sample, tmp_path / "sample.csv"):
        assert submission.validate(path, given) == []
        assert submission.order_note(path, given) is None


def test_an_id_in_another_form_or_a_column_too_many_is_a_fault(tmp_path: Path) -> None:
    sample = put(tmp_path / "sample.csv", f"{HEADER}a.dcm,-1\n007,-1\n010,-1\n")
    path = put(tmp_path / "s.csv", ",ImageId,EncodedPixels\n0,a,-1\n1,7,-1\n2,010,-1\n3,12,-1\n")
    column, ending, zeros, unknown, *missing = submission.validate(path, sample)
    assert column.startswith("row 1: the column ''")
    assert ending.startswith("row 2: image 'a' is not in the sample: write it 'a.dcm'")
    assert zeros.startswith("row 3: image '7' is not in the sample: write it '007'")
    assert unknown.startswith("row 5: image '12' is not in the sample: remove the row")
    assert ["a.dcm" in missing[0], "007" in missing[1], len(missing)] == [True, True, 2]


def test_a_score_does_not_depend_on_how_ids_are_written(tmp_path: Path) -> None:
    truth = put(tmp_path / "labels.csv", f"{HEADER}a,0 8\nb,-1\n")
    path = put(tmp_path / "submission.csv", f"{HEADER}t/a.dcm,0 8\nt/b.dcm,3 3\n")
    result = submission.score(path, truth)
    assert (result.n_images, result.dice) == (2, 0.5)
    twins = f"{HEADER}p1/v.jpg,0 8\np2/v.jpg,-1\n"
    result = submission.score(put(truth, twins), put(path, twins))
    assert (result.n_images, result.n_nonempty, result.dice) == (2, 1, 1.0)


def test_images_of_another_size_are_checked_against_their_own(tmp_path: Path) -> None:
    path = put(tmp_path / "submission.csv", f"{HEADER}a,50 50\nb,1048570 6\n")
    assert submission.validate(path, ["a", "b"], {"a": (10, 10)}) == []
    (problem,) = submission.validate(path, ["a", "b"], {"a": (9, 11)})
    assert "9×11" in problem


def test_a_sample_of_another_competition_is_an_error(tmp_path: Path, sample: Path) -> None:
    with pytest.raises(InputError, match=r"other\.csv has the columns .* another competition"):
        submission.validate(sample, put(tmp_path / "other.csv", "id,target\n1,2\n"))
    with pytest.raises(InputError, match="names no image"):
        submission.validate(sample, [])


def test_score_is_the_mean_dice_of_the_masks(tmp_path: Path) -> None:
    random, shape = np.random.default_rng(0), (20, 30)
    names = [f"i{at}" for at in range(40)]
    truth = [random.random(shape) < share for share in random.choice([0, 0.2, 0.5], 40)]
    pred = [mask ^ (random.random(shape) < 0.1) for mask in truth]
    pred[::3] = [np.zeros(shape, bool)] * len(pred[::3])
    path, labels = tmp_path / "submission.csv", tmp_path / "labels.csv"
    submission.write(path, names, [rle.encode(mask) for mask in pred])
    submission.write(labels, names[::-1], [rle.encode(mask) for mask in truth[::-1]])
    result = submission.score(path, labels, dict.fromkeys(names, shape))
    dice = np.array([metrics.dice(*pair) for pair in zip(pred, truth, strict=True)])
    has_mask, has_pred = (np.array([mask.any() for mask in some]) for some in (truth, pred))
    assert result.dice == pytest.approx(dice.mean(), abs=1e-14)
    assert result.dice_nonempty == pytest.approx(dice[has_mask].mean(), abs=1e-14)
    assert result.dice_all_empty == (~has_mask).mean()
    assert (result.n_images, result.n_nonempty) == (40, has_mask.sum())
    assert result.n_false_negative == (has_mask & ~has_pred).sum()
    assert result.n_false_positive == (~has_mask & has_pred).sum()


def test_score_unites_rows_and_counts_what_it_leaves_out(tmp_path: Path) -> None:
    labels = put(tmp_path / "labels.csv", "ImageId, EncodedPixels\na, 0 6\na, 4 4\nb, -1\nd, 3 3\n")
    path = put(tmp_path / "submission.csv", f"{HEADER}a,0 8\nb,1 1\nc,-1\n")
    result = submission.score(path, labels)
    assert result.dice == 0.5
    assert result.dice_nonempty == 1.0
    assert (result.n_images, result.n_only_submission, result.n_only_labels) == (2, 1, 1)
    table = pd.DataFrame({"image_id": ["a"], "rle": ["0 4"]})
    assert submission.score(table, labels).dice == pytest.approx(2 * 4 / 12)


def test_score_names_what_it_cannot_use(tmp_path: Path, sample: Path) -> None:
    other = put(tmp_path / "other.csv", f"{HEADER}x,-1\n")
    with pytest.raises(InputError, match=r"share no image \(the first are x, a\)"):
        submission.score(other, sample)
    wrong = put(tmp_path / "wrong.csv", f"{HEADER}a,-1\nb,3\n")
    with pytest.raises(InputError, match=r"wrong\.csv, row 3 \(b\): .* odd count"):
        submission.score(wrong, sample)
    nothing = submission.score(sample, sample)
    assert nothing.dice == 1.0
    assert math.isnan(nothing.dice_nonempty)


@pytest.mark.parametrize(("n_chars", "is_cut"), [(32_765, 0), (32_766, 1), (32_767, 1)])
def test_a_cell_that_a_spreadsheet_may_have_cut_is_named(
    tmp_path: Path, sample: Path, n_chars: int, is_cut: int
) -> None:
    text = ("9 1 " * 8000 + "9 1").zfill(n_chars)
    table = put(tmp_path / "s.csv", f"{HEADER}a,{text}\nb,-1\nc,-1\n")
    assert submission.validate(table, sample) == []  # a long mask may have that length by chance
    assert ("s.csv, row 2: " in (submission.doubt(table) or "")) == is_cut
    for sides in [(table, sample), (sample, table)] * is_cut:
        with pytest.raises(InputError, match=r"s\.csv, row 2 \(a\): .*spreadsheet"):
            submission.score(*sides)


def test_masks_drawn_at_another_size_are_doubted(tmp_path: Path) -> None:
    ids, own, small = [], [], []
    for at in range(12):
        mask = np.zeros((1024, 1024), np.uint8)
        cv2.ellipse(mask, (300, 400), (60 + 5 * at, 150), at, 0, 360, 1, -1)
        ids.append(f"i{at}")
        own.append(rle.encode(mask))
        small.append(rle.encode(mask[::4, ::4]))
    right, wrong = tmp_path / "right.csv", tmp_path / "wrong.csv"
    submission.write(right, ids, own)
    submission.write(wrong, ids, small)
    assert submission.validate(wrong, ids) == []
    assert submission.doubt(right) is None
    assert "256 px" in submission.doubt(wrong)
    assert submission.doubt(wrong, (256, 256)) is None
    assert submission.score(right, right).doubts == ()
    for sides in [(right, wrong), (wrong, right)]:
        (doubt,) = submission.score(*sides).doubts
        assert doubt.startswith(f"{wrong}: ")


def test_the_real_labels_score_against_themselves(shared_data: Path) -> None:
    labels = shared_data / "siim-labels" / "train-rle.csv"
    result = submission.score(labels, labels)
    assert (result.dice, result.n_images, result.n_nonempty) == (1.0, 12_047, 2_669)
    empty = shared_data / "stage2-silver" / "stage_2_sample_submission.csv"
    silver = shared_data / "stage2-silver" / "stage_2_train.csv"
    assert submission.validate(silver, empty) == []
    assert (result.doubts, submission.doubt(silver)) == ((), None)
    result = submission.score(empty, silver)
    assert result.dice == result.dice_all_empty == pytest.approx(2 / 3)
    assert result.n_false_negative == 100
