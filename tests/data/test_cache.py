"""The cache: right pixels and masks, nothing decoded twice, and no kill at any moment harms it."""

from __future__ import annotations

import errno
import os
import pickle
import signal
import subprocess
import sys
from contextlib import closing, nullcontext
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest
from PIL import Image

from kernel_lib.data import cache, cache_store, images, rle, table
from kernel_lib.data.levels import FLAT
from kernel_lib.data.masks import resize_mask
from kernel_lib.errors import InputError

SIZE = 32
OTHER = np.arange(64 * 48, dtype=np.uint8).reshape(64, 48)  # none of `make_images`


def make_images(folder: Path, n: int, shape=(64, 48)) -> pd.DataFrame:
    """n noise images as PNG; every second one has a mask."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(n)
    rows = []
    for i in range(n):
        path = folder / f"img{i:02d}.png"
        cv2.imwrite(str(path), rng.integers(0, 256, shape, dtype=np.uint8))
        mask = np.zeros(shape, np.uint8)
        mask[5 + i : 25 + i, 10:30] = i % 2
        rows.append((path.stem, str(path), rle.encode(mask), "", f"t.csv row {i + 2}"))
    return pd.DataFrame(rows, columns=["image_id", "path", "rle", "mask_path", "label_at"])


@pytest.fixture
def frame(tmp_path):
    return make_images(tmp_path / "data", 6)


@pytest.fixture
def prepare(tmp_path):
    def call(frame, **options):
        defaults = {
            "root": tmp_path / "data", "size": SIZE, "cache_dir": tmp_path / "cache",
            "split": "train", "workers": 1,
        }  # fmt: skip
        return cache.prepare(frame, **defaults | options)

    return call


@pytest.fixture
def decoded(monkeypatch):
    """Names of the files decoded in this process."""
    names, read = [], images.open_radiograph

    def counted(path):
        names.append(Path(path).stem)
        return read(path)

    monkeypatch.setattr(images, "open_radiograph", counted)
    return names


def at_once(monkeypatch) -> None:
    """Let processes work from the second image on."""
    monkeypatch.setattr(cache_store, "TRIAL_S", 0)
    monkeypatch.setattr(cache_store, "WORTH_S", 0)


def check_row(prepared, i: int, pixels: np.ndarray, text: str) -> None:
    """Image i is these pixels, with this mask."""
    mask = rle.decode(text, pixels.shape)
    small = cv2.resize(pixels, (SIZE, SIZE), interpolation=cv2.INTER_AREA)
    np.testing.assert_array_equal(prepared.image(i), small)
    np.testing.assert_array_equal(prepared.mask(i), resize_mask(mask, (SIZE, SIZE)))
    facts = prepared.table.iloc[i]
    assert (facts.height, facts.width, facts.area_px) == (*pixels.shape, mask.sum())
    assert facts.rle == text


def check(prepared, frame):
    assert prepared.table["image_id"].tolist() == frame["image_id"].tolist()
    for i, row in enumerate(frame.itertuples()):
        check_row(prepared, i, images.read(row.path), row.rle)


def ids_skipped(prepared) -> list[str]:
    return [image.image_id for image in prepared.skipped]


def write_masks(frame) -> None:
    """Write the frame's masks as pictures, and name them in it."""
    for i, path in enumerate(frame["path"]):
        frame.loc[i, "mask_path"] = path.replace("img", "mask")
        cv2.imwrite(frame["mask_path"][i], rle.decode(frame["rle"][i], (64, 48)) * 255)


def test_notes_on_images_are_counted_and_kept(prepare, frame, decoded):
    for at in (1, 4):
        cv2.imwrite(frame["path"][at], OTHER % 16)
    (note,) = prepare(frame).notes
    assert note.startswith(FLAT)
    assert f"2 of 6 images, {frame['path'][1]} first" in note
    decoded.clear()
    assert prepare(frame).notes == [note]
    frame.loc[1, "rle"] = "0 7"  # another label, the same pixels
    assert prepare(frame).notes == [note]
    assert decoded == []
    (alone,) = prepare(frame.iloc[[4]].reset_index(drop=True)).notes
    assert f"1 of 1 images, {frame['path'][4]} first" in alone


def test_a_mask_lies_on_the_image_as_viewers_show_it(prepare, frame, tmp_path):
    exif, shown = Image.Exif(), np.rot90(OTHER, -1)  # (48, 64)
    exif[0x0112] = 6  # stored a quarter to the left of how it is shown
    Image.fromarray(OTHER).save(frame["path"][0], exif=exif)
    Image.fromarray(OTHER).save(frame["path"][1], exif=exif)
    mask = np.zeros(shown.shape, np.uint8)
    mask[4:20, 30:60] = 1
    frame.loc[0, "rle"] = rle.encode(mask)
    frame.loc[1, ["rle", "mask_path"]] = "", str(tmp_path / "mask.png")
    cv2.imwrite(str(tmp_path / "mask.png"), mask * 255)
    prepared = prepare(frame)
    for row in (0, 1):
        check_row(prepared, row, shown, rle.encode(mask))
    assert any(note.startswith(images.TURNED) for note in prepared.notes)


def test_an_image_of_one_level_is_a_bad_file(prepare, frame):
    cv2.imwrite(frame["path"][2], OTHER * 0 + 9)
    with pytest.raises(InputError, match=r"img02\.png"):
        prepare(frame)
    assert ids_skipped(prepare(frame, on_bad_file="skip")) == ["img02"]


def test_rows_are_the_resized_files(prepare, frame):
    prepared = prepare(frame)
    check(prepared, frame)
    assert (len(prepared), prepared.size, prepared.skipped) == (6, SIZE, [])
    assert prepared.image(0).dtype == np.uint8
    assert not prepared.image(0).flags.writeable
    text = pickle.dumps(prepared)
    assert len(text) < 20_000
    np.testing.assert_array_equal(pickle.loads(text).image(2), prepared.image(2))


def test_only_what_changed_is_made_again(prepare, frame, decoded):
    prepare(frame)
    assert decoded == frame["image_id"].tolist()

    def now_decoded(of=frame) -> list[str]:
        decoded.clear()
        prepared = prepare(of)
        names = decoded.copy()
        check(prepared, of)
        return names

    assert now_decoded() == []
    cv2.imwrite(frame["path"][3], OTHER)
    assert now_decoded() == ["img03"]
    os.utime(frame["path"][1], ns=(1, 1))
    assert now_decoded() == ["img01"]
    frame.loc[1, "rle"], frame.loc[2, "rle"] = "-1", "100 30 34 30"
    assert now_decoded() == []  # only the masks are made again
    frame.loc[6] = frame.loc[5].replace("img05", "img06")
    frame.loc[6, "path"] = frame["path"][5].replace("img05", "img06")
    cv2.imwrite(frame["path"][6], OTHER)
    assert now_decoded(frame.iloc[[6, 2, 0]].reset_index(drop=True)) == ["img06"]


def test_test_split_has_no_labels(prepare, frame):
    prepared = prepare(frame[["image_id", "path"]], split="test")
    assert prepared.table["area_px"].tolist() == [0] * 6
    assert not prepared.mask(1).any()
    assert len(prepare(frame.iloc[:0], split="test")) == 0


def test_enlarging_is_bilinear(prepare, frame):
    prepared = prepare(frame, size=128)
    pixels = images.read(frame["path"][0])
    wanted = cv2.resize(pixels, (128, 128), interpolation=cv2.INTER_LINEAR)
    np.testing.assert_array_equal(prepared.image(0), wanted)


def test_two_data_folders_never_mix(prepare, frame, tmp_path):
    other = tmp_path / "other" / "data"
    both = prepare(frame), prepare(make_images(other, 3), root=other)
    assert both[0].folder != both[1].folder
    assert cache.data_key(tmp_path / "data") != cache.data_key(other)
    assert cache.data_key(other) == cache.data_key(other / ".." / "data")


def test_mask_images_become_rle(prepare, frame):
    write_masks(frame)
    for _ in range(2):  # the second time from what is stored
        check(prepare(frame.assign(rle="")), frame)


def test_masks_are_made_again_where_they_are_said_to_be_inverted(prepare, frame, decoded):
    inverted = [rle.encode(1 - rle.decode(text, (64, 48))) for text in frame["rle"]]
    wanted = frame.assign(rle=inverted)
    write_masks(frame)
    prepare(frame)
    decoded.clear()
    check(prepare(frame, masks_are="inverted"), wanted)
    check(prepare(frame.assign(mask_path=""), masks_are="inverted"), wanted)
    check(prepare(frame.assign(rle="")), frame)
    assert set(decoded) == set(frame["image_id"])  # by `check` alone, once each time
    assert len(decoded) == 3 * len(frame)


@pytest.mark.parametrize(
    ("left_out", "word"),
    [
        ("i0 i1 i2 i3 i4", None),
        ("i0 i1 i2 i3 i4 i5", "6 of 100 images"),
        ("i0 p0 p1", None),
        ("p0 p1 p2", "3 of 20 with a mask"),
        ("", None),
    ],
)
def test_skipping_stops_at_a_share_of_the_images_and_of_those_with_a_mask(
    prepare, frame, left_out, word
):
    names = left_out.split()
    skipped = [images.Skipped(name, "", f"{name}.png is damaged") for name in names]
    prepared = replace(prepare(frame), skipped=skipped)
    refusal = pytest.raises(InputError, match=rf"{word}.*ON_BAD_FILE.*{left_out[:2]}\.png is")
    with refusal if word else nullcontext():
        cache.check_skipped(prepared, 100, {f"p{n}" for n in range(20)})


@pytest.mark.parametrize(
    ("shape", "fix"),
    [((48, 64), "swap its rows and columns"), ((48, 48), "resize it"), ((32, 24), "resize it")],
)
def test_a_mask_of_another_size_is_named(prepare, frame, shape, fix):
    frame.loc[1, "mask_path"] = frame["path"][1].replace("img", "mask")
    cv2.imwrite(frame["mask_path"][1], np.zeros(shape, np.uint8))
    size = rf"{shape[1]}×{shape[0]}"
    with pytest.raises(InputError, match=rf"mask01\.png is {size} and its image .*48×64.*{fix}"):
        prepare(frame)


# --- bad files ------------------------------------------------------------------------------


@pytest.fixture
def broken(frame):
    Path(frame["path"][2]).write_bytes(Path(frame["path"][2]).read_bytes()[:100])
    return frame


@pytest.mark.parametrize("workers", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_bad_file_stops(prepare, broken, monkeypatch, workers):
    at_once(monkeypatch)
    order = broken.iloc[[0, 1, 3, 4, 5, 2]]  # the first is filled by this process
    with pytest.raises(InputError, match=r"img02\.png is cut short.*ON_BAD_FILE"):
        prepare(order, workers=workers)


def test_bad_file_is_skipped_until_it_is_corrected(prepare, broken, decoded):
    for _ in range(2):
        prepared = prepare(broken, on_bad_file="skip")
        check(prepared, broken.drop(index=2))
        (skipped,) = prepared.skipped
        assert (skipped.image_id, skipped.path) == ("img02", broken["path"][2])
        assert str(skipped).startswith("img02: ")
    decoded.clear()
    cv2.imwrite(broken["path"][2], OTHER)
    corrected = prepare(broken, on_bad_file="skip")
    assert decoded == ["img02"]
    check(corrected, broken)


def test_bad_test_image_is_blank(prepare, broken):
    prepared = prepare(broken[["image_id", "path"]], split="test", on_bad_file="blank")
    assert len(prepared) == 6
    assert not prepared.image(2).any()
    assert prepared.image(3).any()
    assert prepared.table.loc[2, ["height", "width", "area_px"]].tolist() == [64, 48, 0]
    assert ids_skipped(prepared) == ["img02"]


def test_image_gone(prepare, frame):
    prepare(frame)
    Path(frame["path"][4]).unlink()
    with pytest.raises(InputError, match=r"img04\.png can't be read: No such file"):
        prepare(frame)
    prepared = prepare(frame, on_bad_file="blank", split="test")
    assert prepared.table.loc[4, ["height", "width"]].tolist() == [1024, 1024]


def test_image_gone_after_it_was_found(prepare, frame, monkeypatch):
    path = Path(frame["path"][4])

    def after_it_went(*arguments):
        path.unlink(missing_ok=True)
        return cache_store.outcomes(*arguments)

    monkeypatch.setattr(cache, "outcomes", after_it_went)
    with pytest.raises(InputError, match=rf"{path} can't be read: No such file"):
        prepare(frame)
    check(prepare(frame, on_bad_file="skip"), frame.drop(index=4))


def test_rle_outside_the_image(prepare, frame):
    frame.loc[3, "rle"] = "3070 10"
    with pytest.raises(InputError, match=r"t\.csv row 5, .*img03.*outside the 64×48") as refused:
        prepare(frame)
    assert "skip" not in str(refused.value)
    assert len(prepare(frame, on_bad_file="skip")) == 5


def test_wrong_arguments_are_refused(prepare, frame, tmp_path):
    for options in ({"split": "valid"}, {"on_bad_file": "ignore"}, {"size": 0}):
        with pytest.raises(InputError, match="must be at least 1, split"):
            prepare(frame, **options)
    with pytest.raises(InputError, match="img00 stands twice"):
        prepare(pd.concat([frame, frame.iloc[:1]]))
    (tmp_path / "file").write_text("x")
    with pytest.raises(InputError, match="can't be written: Not a directory"):
        prepare(frame, cache_dir=tmp_path / "file")


def test_full_disk(prepare, frame, monkeypatch):
    pwrite, calls = os.pwrite, []

    def full(*arguments):
        calls.append(1)
        if len(calls) > 5:
            raise OSError(errno.ENOSPC, "No space left on device")
        return pwrite(*arguments)

    monkeypatch.setattr(os, "pwrite", full)
    with pytest.raises(InputError, match=r"disk is full.*CACHE_DIR"):
        prepare(frame)
    monkeypatch.undo()
    check(prepare(frame), frame)


def test_too_small_a_disk_is_seen_before_the_work(prepare, frame, decoded, monkeypatch):
    usage = type("Usage", (), {"free": 1000})
    monkeypatch.setattr(cache.shutil, "disk_usage", lambda folder: usage)
    with pytest.raises(InputError, match="GB free: make room"):
        prepare(frame)
    assert decoded == []


@pytest.mark.parametrize("name", ["pixels.u8", "masks.bits"])
@pytest.mark.parametrize("damage", ["gone", "cut"])
def test_a_cache_that_vanishes_in_use_is_named_and_made_again(prepare, frame, name, damage):
    prepared = prepare(frame)
    path = prepared.folder / name
    path.write_bytes(path.read_bytes()[:7]) if damage == "cut" else path.unlink()
    read = prepared.image if name == "pixels.u8" else prepared.mask
    positive = int(prepared.table["area_px"].to_numpy().argmax())
    with pytest.raises(InputError, match=rf"{name} is gone, or was cut, .* the same command again"):
        read(positive)
    check(prepare(frame), frame)


def test_slots_without_room_yet_cost_no_others(prepare, frame, decoded):
    """A process that ends between the two: what is done stays."""
    store = cache_store.Store(prepare(frame).folder, SIZE)
    with closing(cache_store.Journal(store)) as journal:
        journal.assign(["new"])
    decoded.clear()
    again = prepare(frame)
    assert decoded == []
    check(again, frame)


@pytest.mark.parametrize("name", ["pixels.u8", "masks.bits", "rows.jsonl"])
@pytest.mark.parametrize("damage", ["gone", "cut"])
def test_damaged_cache_is_made_again(prepare, frame, name, damage):
    path = prepare(frame).folder / name
    path.write_bytes(path.read_bytes()[:-99]) if damage == "cut" else path.unlink()
    check(prepare(frame), frame)


@pytest.mark.parametrize(("part", "other"), [(b'"row"', b'"rwo"'), (b'"format":2', b'"format":1')])
def test_a_cache_of_another_format_is_made_again(prepare, frame, decoded, part, other):
    path = prepare(frame).folder / "rows.jsonl"
    path.write_bytes(path.read_bytes().replace(part, other))
    decoded.clear()
    prepared = prepare(frame)
    assert len(decoded) == 6
    check(prepared, frame)


# --- killed ---------------------------------------------------------------------------------

DYING = """
import os, pickle, signal, sys
from kernel_lib.data import cache, cache_store

counts = {}

def dying(owner, name, half=False):
    real = getattr(owner, name)
    def patched(self, *args, **kwargs):
        counts[name] = counts.get(name, 0) + 1
        if counts[name] == call and half:
            self._file.write(b'{"slot":1,"row":{"sou'); self._file.flush()
            os.kill(os.getpid(), signal.SIGKILL)
        result = real(self, *args, **kwargs)
        if counts[name] == call:
            os.kill(os.getpid(), signal.SIGKILL)
        return result
    setattr(owner, name, patched)

if __name__ == "__main__":
    moment, call, arguments = pickle.loads(sys.stdin.buffer.read())
    owner = cache_store.Store if moment.startswith("write") else cache_store.Journal
    dying(owner, moment.removesuffix(" half"), moment.endswith("half"))
    if arguments.pop("at once"):
        cache_store.TRIAL_S = cache_store.WORTH_S = 0
    cache.prepare(**arguments)
"""


def killed(root, moment, call, frame, workers, project_root):
    arguments = {
        "frame": frame, "root": root / "data", "size": SIZE, "cache_dir": root / "cache",
        "split": "train", "workers": workers, "at once": workers > 1,
    }  # fmt: skip
    script = root / "dying.py"
    script.write_text(DYING)
    done = subprocess.run(
        [sys.executable, script],
        input=pickle.dumps((moment, call, arguments)),
        env={**os.environ, "PYTHONPATH": str(project_root)},
        stdout=subprocess.PIPE,  # ends only when every process that holds it has ended
        timeout=120,
    )
    assert done.returncode == -signal.SIGKILL


@pytest.mark.parametrize(
    ("moment", "call", "n_done"),
    [("assign", 1, 0), ("undo", 1, 0), ("write_pixels", 3, 2), ("write_mask", 2, 3),
     ("done", 4, 4), ("done half", 3, 2)],
)  # fmt: skip
@pytest.mark.slow
def test_goes_on_after_a_kill(
    prepare, frame, tmp_path, project_root, decoded, moment, call, n_done
):
    killed(tmp_path, moment, call, frame, 1, project_root)
    prepared = prepare(frame)
    assert decoded == frame["image_id"].tolist()[n_done:]
    check(prepared, frame)


@pytest.mark.slow
def test_killed_while_redoing_a_slot(prepare, frame, tmp_path, project_root):
    """The old file comes back with its old date after half a rewrite: it must not count as done."""
    prepare(frame)
    path = Path(frame["path"][3])
    old, date = path.read_bytes(), path.stat().st_mtime_ns
    path.write_bytes(cv2.imencode(".png", OTHER)[1].tobytes())
    killed(tmp_path, "write_pixels", 1, frame, 1, project_root)
    path.write_bytes(old)
    os.utime(path, ns=(date, date))
    check(prepare(frame), frame)


@pytest.mark.slow
def test_killed_with_workers_leaves_none_behind(prepare, tmp_path, project_root, decoded):
    frame = make_images(tmp_path / "data", 30, shape=(64, 40))
    killed(tmp_path, "done", 12, frame, 2, project_root)
    prepared = prepare(frame)
    assert len(decoded) == 18
    check(prepared, frame)


@pytest.mark.slow
def test_processes_give_the_same(prepare, tmp_path, monkeypatch):
    frame = make_images(tmp_path / "data", 30, shape=(64, 40))
    at_once(monkeypatch)
    check(prepare(frame, workers=2), frame)


def test_lock_keeps_a_second_call_waiting(prepare, frame, monkeypatch):
    """While one call works, the lock is taken; afterwards it is free."""
    import fcntl

    folder, seen = prepare(frame.iloc[:1]).folder, []
    fill = cache_store.fill

    def tried(store, task):
        with open(folder.with_name(f".{folder.name}.lock")) as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                seen.append("taken")
        return fill(store, task)

    monkeypatch.setattr(cache_store, "fill", tried)
    prepare(frame)
    assert seen == ["taken"] * 5


def test_real_masks_hold_their_area(shared_data, tmp_path):
    root = shared_data / "labelled-dicom"
    prepared = cache.prepare(table.discover(root).train, root, 256, tmp_path, "train")
    assert prepared.table["area_px"].tolist() == [10133, 0]
    assert int(prepared.mask(0).sum()) == round(10133 / 16)
    assert prepared.table["patient"].map(len).tolist() == [36, 36]
