"""What the look at a data folder counts, and what it says of a bad one."""

from __future__ import annotations

import re
from pathlib import Path

import cv2
import numpy as np
import pytest

from kernel_lib.config import ExploreParameters
from kernel_lib.data import rle
from kernel_lib.data.levels import FLAT
from kernel_lib.errors import InputError
from kernel_lib.stages import explore, explore_files

HOSTILE = "<img src=x onerror=alert(1)>"


def draw(path: Path, height: int = 32, width: int = 32) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(len(path.name)).integers(0, 256, (height, width), np.uint8)
    path.write_bytes(cv2.imencode(path.suffix, pixels)[1].tobytes())


def table(root: Path, rows: list[tuple[str, str]], name: str = "train-rle.csv") -> None:
    root.mkdir(parents=True, exist_ok=True)
    text = "\n".join(["ImageId, EncodedPixels", *(f"{i}, {text}" for i, text in rows), ""])
    (root / name).write_text(text)


def labelled(
    root: Path, rows: list[tuple[str, str]], images: str = "", side: int = 32, **how
) -> Path:
    """A table, and below `images` a picture for each of its ids."""
    table(root, rows, **how)
    for name, _ in rows:
        draw(root / images / f"{name}.png", side, side)
    return root


def folder(root: Path) -> Path:
    """Six images of 32² px; c has two rows that overlap, d three of which two do not."""
    rows = [
        ("a", "-1"), ("b", "0 10"), ("c", "0 10"), ("c", "5 10"),
        ("d", "0 4"), ("d", "3 4"), ("d", "100 4"), ("e", "0 20"), ("f", "-1"),
    ]  # fmt: skip
    return labelled(root, rows, "images")


def write_mask(path: Path, mask: np.ndarray) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(cv2.imencode(".png", mask)[1].tobytes())


def lines(result: explore.Explored, start: str) -> list[str]:
    return [line for line in result.lines if line.startswith(start)]


def look(root: Path, **changes) -> explore.Explored:
    return explore.run(ExploreParameters(data_dir=str(root), **changes))


def test_rows_and_overlaps_by_hand(tmp_path) -> None:
    rows = explore_files.label_rows(folder(tmp_path) / "train-rle.csv")
    assert (rows.n_rows, rows.n_images) == (9, 6)
    assert rows.of_image == {"c": 2, "d": 3}
    assert rows.overlapping == {"c": 1, "d": 1}


def test_rows_and_overlaps_of_the_competition(shared_data) -> None:
    rows = explore_files.label_rows(shared_data / "siim-labels" / "train-rle.csv")
    assert (rows.n_rows, rows.n_images) == (12_954, 12_047)
    assert (len(rows.of_image), max(rows.of_image.values())) == (624, 10)
    assert sum(rows.overlapping.values()) == 239


def test_a_folder_is_described_in_lines(tmp_path, capsys) -> None:
    result = look(folder(tmp_path))
    assert "images+rle, 6 labelled images, 0 test images" in result.lines[0]
    assert result.lines[5].startswith("patients: no image has a patient")
    assert (*result.lines[1:5], *result.lines[6:]) == (
        "ids: 6 of another form, a first",
        "labels: train-rle.csv, 9 rows of 6 images; 2 images with several, up to 3; 2 rows in "
        "2 images overlapping an earlier one, so a mask is the union",
        "masks: 4 of 6 images have one (66.7%)",
        "opened: 6 of 6 images, of 1 size (32×32)",
        "bad: nothing that was looked at",
    )
    assert str(result) in capsys.readouterr().out
    assert result.kinds.values.tolist() == [["PNG", 32, 32, 6]]
    assert result.bad.empty
    # Areas 10, 15, 11 and 20 px of 32², a 1,024th of 1024².
    assert "4 masks, mean 14,336, median 13,312 px of 1024²" in result.areas.sentence
    assert "4 masks over the images" in result.masks.sentence
    assert "mean of 6 radiographs with that of 4 non-empty masks" in result.means.sentence
    titles = [one.get_title(loc="left") for one in result.masks.figure.axes]
    assert titles[:4] == [
        "e\nlargest, 20,480 px of 1024²",
        "c\nlargest, 15,360 px of 1024², 2 rows",
        "d\nlargest, 11,264 px of 1024², 3 rows",
        "b\nlargest, 10,240 px of 1024²",
    ]


def test_few_files_are_opened_and_all_masks_still_counted(tmp_path) -> None:
    result = look(folder(tmp_path), sample_images=2)
    assert "opened: 2 of 6 images, of 1 size (32×32)" in result.lines
    assert "that of 4 non-empty masks" in result.means.sentence
    assert result.kinds["images"].tolist() == [2]
    assert look(folder(tmp_path / "again"), sample_images=2).kinds.equals(result.kinds)


def test_bad_files_and_labels_are_listed_and_stop_nothing(tmp_path) -> None:
    root = folder(tmp_path)
    (root / "images" / "a.png").write_bytes(b"")
    (root / "images" / "b.png").write_bytes(b"no picture")
    draw(root / "images" / "e.png", 4, 4)  # its label of 20 px does not fit
    result = look(root)
    by_id = result.bad.set_index("image_id")
    assert sorted(by_id.index) == ["a", "b", "e"]
    assert by_id.loc["a", "what"].startswith("is empty (0 bytes)")
    assert by_id.loc["b", "where"] == str(root / "images" / "b.png")
    assert "outside the 4×4 image" in by_id.loc["e", "what"]
    assert by_id.loc["e", "where"].endswith("train-rle.csv row 9")
    assert len(lines(result, "bad: ")) == 3


def test_pictures_that_were_changed_are_noted_and_those_of_one_level_listed(tmp_path) -> None:
    folder(tmp_path)
    levels = np.arange(1024, dtype=np.uint8).reshape(32, 32)
    for name, pixels in (("b", levels % 16), ("c", levels % 9), ("d", levels * 0)):
        cv2.imwrite(str(tmp_path / "images" / f"{name}.png"), pixels)
    result = look(tmp_path)
    (note,) = lines(result, "note: ")
    assert FLAT in note
    assert f"2 of 5 images, {tmp_path / 'images' / 'b.png'} first" in note
    assert result.bad["image_id"].tolist() == ["d"]


def test_a_file_that_was_not_opened_and_is_empty_or_of_another_size(tmp_path) -> None:
    root = folder(tmp_path)
    (root / "images" / "a.png").write_bytes(b"")
    draw(root / "images" / "e.png", 40, 32)
    result = look(root, sample_images=1, seed=0)
    assert "opened: 1 of 6 images, of 1 size (32×32)" in result.lines  # neither of these two
    by_id = result.bad.set_index("image_id")["what"]
    assert by_id["a"].startswith("is empty (0 bytes)")
    assert by_id["e"] == "is 32×40, and those that were opened are 32×32"


def test_a_long_list_of_bad_files_is_cut_in_the_lines_alone(tmp_path) -> None:
    table(tmp_path, [(f"i{k:02d}", "0 5") for k in range(14)])
    for k in range(14):
        (tmp_path / f"i{k:02d}.png").write_bytes(b"")
    result = look(tmp_path)
    assert len(result.bad) == 14
    assert result.lines[-1] == "bad: 4 more, in the table below"
    assert "opened: no image could be read" in result.lines
    assert result.means.figure is None
    assert result.masks.figure is None


def test_images_of_several_sizes_are_judged_where_their_size_is_known(tmp_path) -> None:
    root = folder(tmp_path)
    draw(root / "images" / "e.png", 64, 32)
    result = look(root)
    assert "opened: 6 of 6 images, of 2 sizes (32×32, 32×64)" in result.lines
    # 20 px of 64 × 32 are 10 of 32².
    assert "4 masks, mean 11,776," in result.areas.sentence
    assert result.bad.empty


def test_test_images_alone(tmp_path) -> None:
    labelled(tmp_path, [("x", "-1"), ("y", "-1")], name="sample_submission.csv")
    result = look(tmp_path)
    assert "0 labelled images, 2 test images" in result.lines[0]
    assert result.masks.sentence == "2 images without known ground truth."
    assert not result.masks.figure.legends
    assert "no mask is known" in result.means.sentence
    assert result.areas.figure is None


def test_mask_images_are_read_and_a_misfit_is_listed(tmp_path) -> None:
    for name in ("a", "b", "c"):
        draw(tmp_path / "images" / f"{name}.png")
        mask = np.zeros((32, 32), np.uint8)
        mask[:2, :5] = 255 * (name != "b")
        write_mask(tmp_path / "masks" / f"{name}.png", mask[:16] if name == "c" else mask)
    result = look(tmp_path)
    assert "images+masks" in result.lines[0]
    assert "masks: 1 of 3 opened images have one (33.3%)" in result.lines
    assert result.bad["image_id"].tolist() == ["c"]
    assert re.search("is 32×16 and its image .*c.png 32×32", result.bad["what"][0])
    assert "1 mask, mean 10,240," in result.areas.sentence


def test_masks_in_doubt_are_listed(tmp_path) -> None:
    labelled(tmp_path, [("a", "0 600"), ("b", "0 1000"), ("c", "0 20")])
    doubts = lines(look(tmp_path), "doubt: ")
    assert "2 of 3 masks cover more than half" in doubts[0]
    assert "MASKS_ARE" in doubts[0]
    assert doubts[1].endswith("a, b")
    assert lines(look(tmp_path, masks_are="right"), "doubt: ") == doubts[1:]
    assert lines(look(tmp_path, masks_are="inverted"), "doubt: ")[-1].endswith(": c")


def test_a_table_drawn_at_another_size_is_listed_with_that_size(tmp_path) -> None:
    # Three columns of 32 px.
    labelled(tmp_path, [("a", "35 20 12 20 12 20"), ("b", "-1")], side=128)
    (doubt,) = lines(look(tmp_path), "doubt: ")
    assert "32 px high" in doubt


def test_mask_files_that_look_inverted_are_bad_until_said_to_be(tmp_path) -> None:
    for name in "abc":
        draw(tmp_path / "images" / f"{name}.png")
        mask = np.full((32, 32), 255, np.uint8)
        mask[4:8, 4:8] = 0
        write_mask(tmp_path / "masks" / f"{name}.png", mask)
    result = look(tmp_path)
    assert result.bad["image_id"].tolist() == ["a", "b", "c"]
    assert "MASKS_ARE inverted" in result.bad["what"][0]
    asked = look(tmp_path, masks_are="inverted")
    assert asked.bad.empty
    assert "3 masks, mean 16,384," in asked.areas.sentence


def test_an_empty_row_beside_a_mask_is_noted(tmp_path) -> None:
    labelled(tmp_path, [("a", "3 4"), ("a", "-1"), ("b", "-1")])
    (note,) = lines(look(tmp_path), "note: ")
    assert "train-rle.csv: 1 images have an empty row" in note
    assert note.endswith("a in rows 2, 3")


@pytest.mark.parametrize(
    ("rows", "known", "unknown"),
    [
        ("a,p\nb,p\nc,q\nz,r\n", "2 of 3", 3),
        ("a,p\nb,p\nc,unknown\nd,0\ne,\n", "1 of 2", 4),  # placeholders are no patients
    ],
)
def test_patients_of_a_table(tmp_path, rows, known, unknown) -> None:
    groups = tmp_path / "groups.csv"
    groups.write_text("image,patient\n" + rows)
    (line,) = lines(look(folder(tmp_path / "data"), groups=str(groups)), "patients")
    assert f"patients: {known} images by " in line
    assert line.endswith(f"1 with several images; {unknown} images have none there")


def test_unknown_patients_are_noted(tmp_path) -> None:
    ids = ["00000003_001", "00000003_002", "00000004_001"]
    (line,) = lines(look(labelled(tmp_path, [(name, "-1") for name in ids])), "patients")
    assert "GROUPS" in line
    assert " 2 images " in line


def test_ids_of_every_form(tmp_path) -> None:
    ids = ["1.2.276.0.7230010.3.1.4.8323329.1000", "ID_0011fe81e", "00000013_005", "a.b"]
    of_ids = lines(look(labelled(tmp_path, [(name, "-1") for name in ids])), "ids: ")
    assert [line.split(", ")[-1] for line in of_ids] == [f"{name} first" for name in ids]


def test_markup_in_ids_is_shown_as_it_stands(tmp_path) -> None:
    table(tmp_path, [(HOSTILE, "0 5"), ("b", "-1")])
    draw(tmp_path / f"{HOSTILE}.png")
    (tmp_path / "b.png").write_bytes(b"")
    result = look(tmp_path)
    for picture in (result.areas, result.masks, result.means, explore.viewer(ExploreParameters())):
        assert "<img src=x" not in picture.to_html()
    assert "<img src=x" not in result.kinds._repr_html_()
    assert HOSTILE in result.masks.figure.axes[0].get_title(loc="left")


def test_a_wrong_folder_is_named(tmp_path) -> None:
    with pytest.raises(InputError, match=r"DATA_DIR .* does not exist"):
        look(tmp_path / "nowhere")
    with pytest.raises(InputError, match="no images under DATA_DIR"):
        look(tmp_path)


def test_without_an_ensemble_there_is_no_viewer() -> None:
    shown = explore.viewer(ExploreParameters())
    assert shown.figure is None
    assert "-p ENSEMBLE NAME" in shown.sentence


def test_the_masks_shown_are_of_each_kind_and_none_twice() -> None:
    def one(name: str, px: int) -> explore_files.Masked:
        return explore_files.Masked(name, "", rle.parse(f"0 {px}"), (1024, 1024))

    found = [
        one(name, px) for name, px in zip("abcdefg", (70, 10, 60, 20, 50, 30, 40), strict=True)
    ]
    rows = explore_files.LabelRows(9, 7, {"a": 2, "e": 2, "f": 3}, {"f": 2})
    shown = [(kind, m.image_id) for kind, m in explore_files.samples(found, rows, 1)]
    assert shown == [("largest", "a"), ("median", "g"), ("smallest", "b"), ("several rows", "f")]
    assert len(list(explore_files.samples(found, rows, 4))) == 7
    assert list(explore_files.samples([], None, 4)) == []
    assert one("a", 70).area_px == 70
