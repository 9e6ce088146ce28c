"""The CSV tables: both headers, unions, and every fault with its file and row."""

from __future__ import annotations

import math

import pytest

from kernel_lib.data import labels, rle
from kernel_lib.errors import InputError


@pytest.fixture
def csv(tmp_path):
    def write(text: str | bytes, name="t.csv"):
        path = tmp_path / name
        path.write_bytes(text.encode() if isinstance(text, str) else text)
        return path

    return write


@pytest.mark.parametrize("header", ["ImageId, EncodedPixels", "ImageId,EncodedPixels"])
@pytest.mark.parametrize("start", ["", "\ufeff"], ids=["plain", "with a mark"])
@pytest.mark.parametrize("end", ["\n", "\r\n"], ids=["unix", "windows"])
def test_labels(csv, header, start, end):
    rows = [start + header, "a, -1", "b,5 3 2 1", "", "c,-1", "b, 6 10", "d.dcm,0 1", ""]
    table = labels.read_labels(csv(end.join(rows)))
    assert table["image_id"].tolist() == ["a", "b", "c", "d"]
    assert table["rle"].tolist() == ["-1", "5 11", "-1", "0 1"]
    wanted = ["row 2", "rows 3, 6", "row 5", "row 7"]
    assert [at.rpartition("t.csv ")[2] for at in table["label_at"]] == wanted


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("", "is empty"),
        ("\n\n", "is empty|has the columns"),
        ("ImageId,EncodedPixels\n", "header and no rows"),
        ("ImageId,EncodedPixels\n\n\n", "header and no rows"),
        ("id,rle\na,1 2\n", r"has the columns \['id', 'rle'\], not ImageId and EncodedPixels"),
        ("id,rle\na,1 2\n", "'id' to ImageId, 'rle' to EncodedPixels"),
        ("image_id,encodedpixels\na,1 2\n", "'image_id' to ImageId, 'encodedp.*' to EncodedP"),
        ("ImageId,rle_mask,id\na,1 2,0\n", ": rename 'rle_mask' to EncodedPixels"),
        ("\nImageId,EncodedPixels\na,-1\n", "row 1 .*remove the blank line"),
        *((f"ImageId,EncodedPixels\na,{word}\n", "row 2, image a: .*-1 or nothing")
          for word in ("nan", "None", "0", "[]", "-1.0", "empty")),
        ("ImageId,EncodedPixels\na,-1\nb,1 2 3\n", r"row 3, image b: .*odd"),
        ("ImageId,EncodedPixels\na,-1\n\nb,1 x\n", r"row 4, image b: .*'x'"),
        ("ImageId,EncodedPixels\na,-4 2\n", r"row 2, image a: .*-4"),
        ("ImageId,EncodedPixels\na,4 0\n", r"row 2, image a: .*run length is 0"),
        ("ImageId,EncodedPixels\n,4 1\n", r"row 2 has no ImageId"),
        ("ImageId,EncodedPixels\na,4 1,7\n", "no table"),
        ('ImageId,EncodedPixels\n"a,4 1\n', "no table with commas"),
        ("ImageId,EncodedPixels\na,4 1\nb,1 2,3\n", "row 3 has 3 cells.*no table"),
        (b"\x89PNG\r\n\x1a\n\xff\xfe\x00", "no text"),
    ],
)  # fmt: skip
def test_faults(csv, text, word):
    with pytest.raises(InputError, match=rf"t\.csv.*({word})"):
        labels.read_labels(csv(text))


@pytest.mark.parametrize(
    ("n_chars", "is_cut"), [(32_765, 0), (32_766, 1), (32_767, 1), (32_768, 0)]
)
def test_a_cell_as_long_as_spreadsheets_allow_is_named(csv, n_chars, is_cut):
    pairs = "1 1 " * (n_chars // 4 - 2)
    text = f"{pairs}{'1' * (n_chars - len(pairs) - 2)} 1"
    assert len(text) == n_chars
    path = csv(f"ImageId,EncodedPixels\na,-1\nb, {text}\n")
    if is_cut:
        with pytest.raises(InputError, match=rf"t\.csv row 3, image b.*{n_chars:,}.*spreadsheet"):
            labels.read_labels(path)
    else:
        assert len(labels.read_labels(path)) == 2


def test_an_empty_row_beside_a_mask_is_noted(csv):
    problems = []
    rows = "a,-1\nb,3 4\nb,-1\nc,1 2\nc,9 1\nd,-1\nd,-1\nb,8 1\n"
    table = labels.read_labels(csv(f"ImageId,EncodedPixels\n{rows}"), problems)
    assert table["rle"].tolist() == ["-1", "3 4 1 1", "1 2 6 1", "-1"]
    assert len(problems) == 1
    assert "t.csv: 1 images" in problems[0]
    assert "b in rows 3, 4, 9" in problems[0]


def test_missing_file(tmp_path):
    for read in (labels.read_labels, labels.read_sample, labels.read_groups):
        with pytest.raises(InputError, match=r"gone\.csv can't be read: No such file"):
            read(tmp_path / "gone.csv")


def test_sample_keeps_order_and_first_of_repeats(csv):
    sample = labels.read_sample(csv("ImageId,EncodedPixels\nb,-1\na,-1\nb,1 2\nc,-1\n"))
    assert sample.image_id == sample.names == ["b", "a", "c"]
    assert sample.cells.index.tolist() == [2, 3, 5]
    with pytest.raises(InputError, match="row 3: image a "):  # in two ways
        labels.read_sample(csv("ImageId,EncodedPixels\na.dcm,-1\na.png,-1\n"))


@pytest.mark.parametrize(
    ("text", "rows"),
    [
        ("n,EncodedPixels,ImageId\n1,2 3,a\n", [["a", "2 3"]]),
        (
            "ImageId,EncodedPixels\np1/v.jpg,0 3\np2/v.jpg,5 2\n",
            [["p1/v", "0 3"], ["p2/v", "5 2"]],  # images that share a name
        ),
    ],
)
def test_columns_may_stand_otherwise_and_ids_be_paths(csv, text, rows):
    table = labels.read_labels(csv(text))
    assert table[["image_id", "rle"]].to_numpy().tolist() == rows


def test_a_sample_with_masks_that_differ_has_masks(csv):
    head = "ImageId,EncodedPixels\n"
    assert labels.read_sample(csv(head + "a,-1\nb,1 2\n")).has_masks
    for constant in ("-1", "1 2", ""):
        assert not labels.read_sample(csv(f"{head}a,{constant}\nb,{constant}\n")).has_masks


@pytest.mark.parametrize(
    ("written", "names"),
    [
        (["test/a.dcm", "test/b.dcm"], ["a", "b"]),
        (["p1/v.jpg", "p2/v.jpg", "p2/w.jpg"], ["p1/v", "p2/v", "w"]),
        (["C:\\data\\a.png", "a b.PNG"], ["a", "a b"]),
        (["Jo\u0308rg"], ["J\u00f6rg"]),
        (["1.2.3"], ["1.2.3"]),
    ],
)
def test_names_are_without_folders_unless_these_tell_images_apart(written, names):
    assert labels.names_of(written) == names


def test_groups(csv):
    nih = csv("Kaggle_ID,NIH_ID\na,00028864_007.png\nb,00028864_008.png\nc,00000001_000.png\n")
    assert labels.read_groups(nih) == {"a": "00028864", "b": "00028864", "c": "00000001"}
    own = csv("image_id,patient\na.dcm,P_1\nb,P_2\nb,P_2\n")
    assert labels.read_groups(own) == {"a": "P_1", "b": "P_2"}
    twins = csv("path,patient\np1/v.jpg,P_1\np2/v.jpg,P_2\n")
    assert labels.read_groups(twins) == {"p1/v": "P_1", "p2/v": "P_2"}


def test_groups_of_nobody_equal_no_others(csv):
    groups = labels.read_groups(csv("id,patient\na,\nb,nan\nb,nan\nc,unknown\nd,unknown\ne,7\n"))
    assert groups.keys() == set("abcde")
    assert all(math.isnan(groups[name]) for name in "abcd")
    assert groups["e"] == "7"


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("id,group\na,1\na,2\n", "row 3: image a is in group 2 and, further up, in 1"),
        ("id,group\na,1\na,\n", "row 3: image a is in group nan and, further up, in 1"),
        ("id,group\n,7\n", "row 2: the group '7' has no image id"),
        ("id,group,more\na,1,2\n", "a table of groups has two"),
        ("ID_0011fe81e,7\nID_0011fe81f,8\n", "under a header"),
    ],
)
def test_group_faults(csv, text, word):
    with pytest.raises(InputError, match=word):
        labels.read_groups(csv(text))


def test_real_tables(shared_data):
    folder = shared_data / "siim-labels"
    table = labels.read_labels(folder / "train-rle.csv")
    areas = table["rle"].map(lambda text: rle.area(rle.parse(text, (1024, 1024))))
    positive = areas[areas > 0]
    assert (len(table), len(positive)) == (12_047, 2_669)
    assert (positive.min(), positive.max()) == (55, 161_421)
    for name, n in (("stage_1", 1_372), ("stage_2", 3_205)):
        sample = labels.read_sample(folder / f"{name}_sample_submission.csv")
        assert (len(sample.image_id), sample.has_masks) == (n, False)
    groups = labels.read_groups(folder / "nih_id.csv")
    assert (len(groups), len(set(groups.values()))) == (12_047, 6_171)
