"""Labels that can't be right, bad files, patients; and the folds file, drawn once by many."""

from __future__ import annotations

import threading
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pandas as pd
import pytest

from kernel_lib import storage
from kernel_lib.artifacts import fold_run, folds_file
from kernel_lib.artifacts.folds_file import LeftOut
from kernel_lib.config import TrainParameters
from kernel_lib.data import fingerprint, folds, rle, table
from kernel_lib.data.levels import FLAT
from kernel_lib.errors import InputError
from kernel_lib.stages import preparation
from tests.configs import write_config

PREPARED = SimpleNamespace(
    table=pd.DataFrame(
        {"image_id": [f"i{i}" for i in range(6)], "height": 9, "width": 9, "area_px": 4,
         "rle": "0 4", "patient": ""}
    )
)  # fmt: skip


@pytest.fixture(autouse=True)
def _codes(monkeypatch):
    """No picture is known: these tests' images are noise."""
    monkeypatch.setattr(preparation.fingerprint, "codes", lambda prepared: [""] * 6)


CHESTS = np.random.default_rng(1).integers(0, 256, (5, 32, 32), np.uint8)


def settle(work: Path, n_folds: int) -> pd.DataFrame:
    return preparation.settle_folds(PREPARED, TrainParameters(n_folds=n_folds), [work])


def test_a_training_that_starts_while_another_draws_waits_and_takes_what_it_drew(
    tmp_path, monkeypatch
):
    """The second asks for three folds: where both drew, the file would not be the first one's."""
    refused, arrived = [], threading.Event()
    draw, named = folds.draw, storage._owner_text

    def second() -> None:
        try:
            settle(tmp_path, 3)
        except InputError as error:
            refused.append(str(error))
        arrived.set()

    thread = threading.Thread(target=second)

    def drawn_meanwhile(table, n_folds):
        if n_folds == 2:
            thread.start()
            assert arrived.wait(60)
        return draw(table, n_folds)

    def waits(owner):
        arrived.set()
        return named(owner)

    monkeypatch.setattr(folds, "draw", drawn_meanwhile)
    monkeypatch.setattr(storage, "_owner_text", waits)
    first = settle(tmp_path, 2)
    thread.join(60)
    assert len(refused) == 1
    assert "folds.csv has 2 folds, N_FOLDS is 3: -p N_FOLDS 2, or another" in refused[0]
    kept = folds_file.load(tmp_path / "folds.csv")
    assert folds_file.difference(kept, first[list(folds_file.COLUMNS)]) == ""
    assert [path.name for path in tmp_path.iterdir()] == ["folds.csv"]


def test_folds_of_an_earlier_kernel_are_copied_and_kept(tmp_path):
    work, earlier = tmp_path / "work", tmp_path / "earlier"
    before = settle(earlier, 3).assign(fold=[0, 0, 1, 1, 2, 2])
    folds_file.save(before, earlier / "folds.csv")
    taken = preparation.settle_folds(PREPARED, TrainParameters(n_folds=3), [work, earlier])
    assert taken["fold"].tolist() == [0, 0, 1, 1, 2, 2]
    assert (work / "folds.csv").read_bytes() == (earlier / "folds.csv").read_bytes()
    with pytest.raises(InputError, match="has 3 folds, N_FOLDS is 2"):
        settle(work, 2)


@pytest.mark.parametrize("place", ["work", "earlier"])
def test_folds_of_which_runs_are_left_are_not_drawn_again(tmp_path, place):
    """Also where an earlier kernel's output holds runs and no folds file."""
    roots = [tmp_path / "work", tmp_path / "earlier"]
    first = preparation.settle_folds(PREPARED, TrainParameters(n_folds=2), roots)
    write_config(fold_run.fold_folder(tmp_path / place, "run", 0), folds_file.digest(first))
    path = roots[0] / "folds.csv"
    path.rename(tmp_path / "away")
    with pytest.raises(InputError, match=rf"^{path} is missing.*restore it.*\(runs: run\)"):
        preparation.settle_folds(PREPARED, TrainParameters(n_folds=2), roots)
    with pytest.raises(InputError, match=rf"^{path} is missing"):
        preparation.refuse_lost_folds(roots)
    assert not path.exists()
    (tmp_path / "away").rename(path)
    preparation.settle_folds(PREPARED, TrainParameters(n_folds=2), roots)


def test_another_folds_file_than_runs_here_were_trained_on_is_refused(tmp_path):
    first = settle(tmp_path, 2)
    write_config(fold_run.fold_folder(tmp_path, "run", 0), folds_file.digest(first))
    folds_file.save(first.assign(fold=1 - first["fold"]), tmp_path / "folds.csv")
    with pytest.raises(InputError, match=r"folds\.csv is not the folds file that .*run/fold0"):
        settle(tmp_path, 2)


def drawn(folder: Path, masks: list[np.ndarray], side: int = 64) -> Path:
    """Images of noise in a folder, with the masks' RLE as their table, whatever the masks' size."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    rows = ["ImageId,EncodedPixels"]
    for n, mask in enumerate(masks):
        cv2.imwrite(str(folder / f"i{n:02d}.png"), rng.integers(0, 256, (side, side), np.uint8))
        rows.append(f"i{n:02d},{rle.encode(mask)}")
    (folder / "train-rle.csv").write_text("\n".join([*rows, ""]))
    return folder


def box(side: int, n: int, inverted: bool = False) -> np.ndarray:
    """Mask (side, side), empty where n is odd."""
    mask = np.zeros((side, side), np.uint8)
    if n % 2 == 0:
        mask[side // 4 : side // 2, side // 8 : side - side // 8] = 1
    return 1 - mask if inverted else mask


def prepared(tmp_path: Path, **changes):
    given = {"cache_dir": str(tmp_path / "cache"), "workers": 1, **changes}
    source = table.discover(tmp_path / "data")
    return preparation.prepare_training(source, TrainParameters(**given), 32, tmp_path)


def test_inverted_labels_are_refused_until_the_user_says_what_they_are(tmp_path):
    drawn(tmp_path / "data", [box(64, n, inverted=True) for n in range(8)])
    with pytest.raises(InputError, match=r"train-rle\.csv: 8 of 8 masks .*MASKS_ARE"):
        prepared(tmp_path)
    right = prepared(tmp_path, masks_are="right").table
    assert right["area_px"].tolist() == [64 * 64 - 16 * 48, 64 * 64] * 4
    swapped = prepared(tmp_path, masks_are="inverted").table
    assert swapped["rle"].tolist() == [rle.encode(box(64, n)) for n in range(8)]


def test_a_few_masks_that_cover_more_than_half_are_noted(tmp_path, capsys):
    masks = [box(64, n) for n in range(8)]
    masks[5] = 1 - masks[5]
    drawn(tmp_path / "data", masks)
    assert len(prepared(tmp_path)) == 8
    (note,) = [line for line in notes(capsys) if "half an image" in line]
    assert note.startswith("note: 1 ")
    assert note.endswith("5")


def test_labels_drawn_at_another_size_are_refused_with_that_size(tmp_path):
    drawn(tmp_path / "data", [box(32, n) for n in range(8)])
    with pytest.raises(InputError, match=r"train-rle\.csv: .*32 px.*64×64"):
        prepared(tmp_path)
    assert len(prepared(tmp_path, masks_are="right")) == 8


def test_labels_of_the_images_size_pass(tmp_path, capsys):
    drawn(tmp_path / "data", [box(64, n) for n in range(8)])
    assert len(prepared(tmp_path)) == 8
    assert "8 images (images+rle), 4 with pneumothorax, at 32 px" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("broken", "is_refused"), [([1], False), ([1, 3], True), ([2], False), ([2, 4], True)]
)
def test_bad_files_are_skipped_up_to_a_share(tmp_path, broken, is_refused):
    data = drawn(tmp_path / "data", [box(64, n) for n in range(20)])
    for n in broken:
        (data / f"i{n:02d}.png").write_bytes(b"no picture")
    with pytest.raises(InputError, match=f'i{broken[0]:02d}.png.*ON_BAD_FILE="skip"'):
        prepared(tmp_path)
    if is_refused:
        with pytest.raises(InputError, match=f"{len(broken)} of 20 images.*i{broken[0]:02d}.png"):
            prepared(tmp_path, on_bad_file="skip")
    else:
        assert len(prepared(tmp_path, on_bad_file="skip")) == 20 - len(broken)
        assert f"i{broken[0]:02d}: " in LeftOut.load([tmp_path]).lines[0]


def test_labels_that_do_not_fit_are_not_skipped_away(tmp_path):
    drawn(tmp_path / "data", [box(128, n) for n in range(8)])
    with pytest.raises(InputError, match="outside the 64×64") as refused:
        prepared(tmp_path)
    assert "ON_BAD_FILE" not in str(refused.value)
    with pytest.raises(InputError, match="4 of 8 images can't be used, 4 of 4 with a mask"):
        prepared(tmp_path, on_bad_file="skip")


def test_a_mask_file_lost_with_its_image_counts_by_what_it_holds(tmp_path):
    data = tmp_path / "data"
    for kind in ("images", "masks"):
        (data / kind).mkdir(parents=True)
        for n in range(40):
            picture = box(64, n if n < 4 else 1) * 255  # 2 of 40 positive
            if kind == "images":
                picture = np.random.default_rng(n).integers(0, 256, (64, 64), np.uint8)
            cv2.imwrite(str(data / kind / f"i{n:02d}.png"), picture)
    (data / "images" / "i05.png").write_bytes(b"no picture")
    assert len(prepared(tmp_path, on_bad_file="skip")) == 39
    (data / "images" / "i02.png").write_bytes(b"no picture")
    with pytest.raises(InputError, match=r"2 of 40 images .*, 1 of 2 with a mask"):
        prepared(tmp_path, on_bad_file="skip")


def settled(work: Path, dicom: list[str], patients: list[str] | None = None) -> pd.DataFrame:
    """Settle the folds of images by the patients of their DICOMs, or of a table GROUPS beside."""
    ids = [f"i{n:02d}" for n in range(len(dicom))]
    images = PREPARED.table.loc[[0] * len(dicom)].assign(image_id=ids, patient=dicom)
    groups = work.parent / "groups.csv"
    if patients is not None:
        rows = (f"{image},{patient}\n" for image, patient in zip(ids, patients, strict=True))
        groups.write_text("id,patient\n" + "".join(rows))
    given = TrainParameters(n_folds=2, groups=None if patients is None else str(groups))
    prepared = SimpleNamespace(table=images.reset_index(drop=True))
    return preparation.settle_folds(prepared, given, [work])


def notes(capsys) -> list[str]:
    return [line for line in capsys.readouterr().out.splitlines() if line.startswith("note: ")]


def test_placeholders_in_dicoms_are_no_patients_and_are_noted(tmp_path, capsys):
    work = tmp_path / "work"
    taken = settled(work, ["ANONYMOUS"] * 10 + ["P1", "P1", "0", ""])
    assert taken["group"].tolist() == [""] * 10 + ["P1", "P1", "", ""]
    assert folds_file.load(work / "folds.csv")["group"].tolist() == taken["group"].tolist()
    first, _ = notes(capsys)
    for part in ("10 of 14 images", "'ANONYMOUS'", "GROUPS"):
        assert part in first


@pytest.mark.parametrize(("patients", "noted"), [([""] * 6, True), (["p"] + [""] * 5, False)])
def test_patients_of_which_none_is_known_are_noted(tmp_path, capsys, patients, noted):
    settled(tmp_path / "work", patients)
    assert ("GROUPS" in capsys.readouterr().out) == noted


def test_unknown_patients_of_a_table_are_noted_and_a_second_run_accepts_them(tmp_path, capsys):
    given = [""] * 6, ["a", "a", "", "unknown", "nan", "b"]
    taken = settled(tmp_path / "work", *given)
    assert taken["group"].tolist() == ["a", "a", "", "", "", "b"]
    groups = tmp_path / "groups.csv"
    assert f"note: 3 images have no patient in {groups}, i02 first" in capsys.readouterr().out
    again = settled(tmp_path / "work", *given)
    assert folds_file.difference(again, taken[list(folds_file.COLUMNS)]) == ""


def test_images_of_the_same_pixels_are_drawn_into_one_fold(tmp_path, monkeypatch, capsys):
    given = [""] * 6, ["a", "b", "b", "c", "d", "e"]
    plain = settled(tmp_path / "plain", *given)
    codes = [fingerprint.code(CHESTS[n]) for n in (0, 1, 2, 3, 0, 4)]
    monkeypatch.setattr(preparation.fingerprint, "codes", lambda prepared: codes)
    alike = settled(tmp_path / "work", *given)
    assert alike["group"].tolist() == ["a", "b", "b", "c", "a", "e"]
    assert alike["fold"][0] == alike["fold"][4]
    assert "i00 and i04" in capsys.readouterr().out
    settled(tmp_path / "work", *given)
    again = settled(tmp_path / "plain", *given)  # drawn before the pixels were known
    assert again["fold"].tolist() == plain["fold"].tolist()


def test_folds_drawn_with_a_placeholder_as_a_patient_stay_valid(tmp_path):
    patients = ["a", "a", "0", "0", "b", "c"]
    drawn = settled(tmp_path / "other", [""] * 6, patients)
    before = drawn.assign(group=patients, fold=[0, 0, 1, 1, 0, 1])
    folds_file.save(before, tmp_path / "work" / "folds.csv")
    assert settled(tmp_path / "work", [""] * 6, patients)["group"].tolist() == patients


def test_what_was_changed_in_images_is_noted_once(tmp_path, capsys):
    data = tmp_path / "data"
    data.mkdir()
    levels = np.arange(1024, dtype=np.uint8).reshape(32, 32)
    for name, pixels in (("a", levels), ("b", levels % 16), ("c", levels % 9)):
        cv2.imwrite(str(data / f"{name}.png"), pixels)
    (data / "train-rle.csv").write_text("ImageId,EncodedPixels\na,0 9\nb,-1\nc,-1\n")
    given = TrainParameters(cache_dir=str(tmp_path / "cache"))
    preparation.prepare_training(table.discover(data), given, 32, tmp_path)
    (note,) = notes(capsys)
    assert FLAT in note
    assert f"2 of 3 images, {data.resolve() / 'b.png'} first" in note
