"""The chain of stages on phantoms: repeated, stopped and resumed, gathered, and on bad input."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import cv2
import numpy as np
import pydicom
import pytest
import torch
from pydicom.uid import ExplicitVRLittleEndian

from kernel_lib import __main__ as main
from kernel_lib import checkpoints
from kernel_lib.artifacts import fold_run, maps
from kernel_lib.data import rle
from kernel_lib.errors import InputError
from kernel_lib.postprocess import submission
from kernel_lib.postprocess.triplet import Triplet, apply_rule
from kernel_lib.stages import gather
from kernel_lib.stages import train as train_stage
from kernel_lib.training.job import Clock
from tests.stages.place import RUN, Place, assert_same_training
from tools.phantoms import competition

pytestmark = pytest.mark.slow


def run_command(*arguments: object) -> None:
    main.main([*map(str, arguments)], standalone_mode=False)


def files(data: Path, split: str) -> list[Path]:
    return sorted((data / f"dicom-images-{split}").rglob("*.dcm"))


def cut_short(path: Path) -> bytes:
    """Leave half of a file, and return what it held."""
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    return content


def reshape(path: Path, height: int, width: int) -> None:
    """Replace the pixels of a DICOM by uncompressed noise of that shape."""
    data = pydicom.dcmread(path)
    pixels = np.random.default_rng(0).integers(0, 256, (height, width), dtype=np.uint8)
    fresh = pydicom.Dataset({e.tag: e for e in data if e.tag != 0x7FE00010})
    fresh.file_meta = data.file_meta
    fresh.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    fresh.Rows, fresh.Columns, fresh.PixelData = height, width, pixels.tobytes()
    fresh["PixelData"].VR = "OW"
    pydicom.dcmwrite(path, fresh, enforce_file_format=True)


def states(root: Path, *patterns: str) -> dict[Path, tuple[int, int]]:
    paths = (p for pattern in patterns for p in root.rglob(pattern))
    return {p: (p.stat().st_mtime_ns, p.stat().st_ino) for p in paths}


def test_every_stage_leaves_what_the_next_one_reads(place):
    for fold in (0, 1):
        folder = place.fold(fold)
        config = folder.read_config()
        assert (config.fold, config.experiment.min_epochs) == (fold, 1)
        assert [line["epoch"] for line in folder.read_log()] == [1, 2]
        assert 1 <= len(folder.kept()) <= 2
        oof, last = maps.Maps(folder.oof), maps.Maps(folder.oof_last)
        assert sorted(oof.ids) == sorted(last.ids)
        trained_on = set(checkpoints.lineage(folder.last).images)
        assert trained_on.isdisjoint(oof.ids)
        assert len(trained_on) + len(oof) == 24
        assert oof[oof.ids[0]].shape == (64, 64)
    folder = place.root / "work" / "ensembles" / RUN
    for name in ("members.json", "thresholds.json", "oof.csv", "submission.csv", "report.html"):
        assert (folder / name).stat().st_size > 0, name
    sample = place.data / "sample_submission.csv"
    run_command("validate", folder / "submission.csv", "--sample", sample)
    written = submission.read(folder / "submission.csv")
    assert written["image_id"].tolist() == submission.read(sample)["image_id"].tolist()


def test_the_same_commands_again_do_nothing_again_and_report_the_same(place):
    ensemble = place.root / "work" / "ensembles" / RUN
    patterns = ("*.pt", "*.zip", "folds.csv", "config.json", "pixels.u8", "masks.bits")
    before = states(place.root, *patterns)
    first = [(ensemble / name).read_bytes() for name in ("thresholds.json", "submission.csv")]
    assert len(before) > 16
    trained, found, submitted = place.train(), place.search(), place.infer()
    assert states(place.root, *patterns) == before
    again = [(ensemble / name).read_bytes() for name in ("thresholds.json", "submission.csv")]
    assert again == first
    assert (trained.run, trained.complete, trained.finished) == (RUN, True, (0, 1))
    assert str(trained).endswith(f" trained and predicted in {place.root / 'work' / 'runs' / RUN}")
    assert str(found).endswith(f"\nreport: {ensemble / 'report.html'}")
    assert found.past_known
    assert 0 < found.honest.honest.dice <= found.search.score <= 1
    assert len(found.honest.per_image) == 24
    assert submitted.unreadable == ()


def test_the_command_line_scores_and_sums_up(place, capsys):
    truth = place.data / competition.TEST_TRUTH
    run_command("summary", place.root / "work" / "ensembles" / RUN, "--truth", truth)
    printed = capsys.readouterr().out
    for words in (
        "empty baseline", "probability > 0.5", "rule, nested CV (honest)", "submission.csv",
    ):  # fmt: skip
        assert words in printed


def test_another_configuration_in_the_folder_is_refused_by_field(place):
    with pytest.raises(InputError, match="deterministic: False there, True here"):
        place.train(deterministic=True)
    with pytest.raises(InputError, match="has 2 folds, N_FOLDS is 3"):
        place.train(n_folds=3)


def test_test_images_keep_their_own_geometry(place, no_report):
    """Maps with shapes in them, which two epochs do not give, in the place of the networks'."""
    own = place.with_data()
    odd = files(own.data, "test")[2]
    reshape(odd, 160, 96)
    own.infer()
    generator, shown = np.random.default_rng(0), {}
    for fold in (0, 1):
        archive = maps.Maps(own.fold(fold).test)
        for image_id in archive.ids:
            rough = generator.integers(0, 256, (5, 5), dtype=np.uint8)
            shown[fold, image_id] = cv2.resize(rough, (64, 64))
        drawn = [(i, maps.Prediction(shown[fold, i])) for i in archive.ids]
        maps.write(own.fold(fold).test, drawn, archive.meta)  # as complete as the one before
    rule = Triplet(0.6, 500, 0.5)
    document = own.root / "work" / "ensembles" / RUN / "thresholds.json"
    document.write_text(json.dumps(json.loads(document.read_text()) | {"rule": rule.to_json()}))
    found = submission.read(own.infer().submission).set_index("image_id")["rle"]
    assert (found != "-1").sum() >= 3
    for image_id, text in found.items():
        shape = (160, 96) if image_id == odd.stem else (128, 128)
        mixed = maps.mean([shown[fold, image_id] for fold in (0, 1)])
        expected = apply_rule(maps.at_shape(mixed, shape), rule)
        assert np.array_equal(rle.decode(text, shape), expected), image_id


class FewSteps(Clock):
    """Allows two pieces of work in a session, however long they take."""

    def __init__(self, max_hours: float | None) -> None:
        super().__init__(None)
        self.pieces = 2

    def allows(self, seconds: float) -> bool:
        self.pieces -= 1
        return self.pieces >= 0


def test_stopped_by_the_clock_and_resumed_it_ends_with_the_same_bits(place, monkeypatch):
    monkeypatch.setattr(train_stage, "Clock", FewSteps)
    sessions = 1
    while not (result := place.train("parts", max_hours=1.0)).complete:
        assert "run the same command again" in str(result)
        sessions += 1
        assert sessions < 30
    assert sessions > 4
    for fold in (0, 1):
        assert_same_training(place.fold(fold), place.fold(fold, "parts"))


def test_a_child_goes_on_from_its_parent_and_stays_honest(place, no_report):
    child = place.train(weights=RUN, fold=0).run
    assert checkpoints.lineage(place.fold(0, run=child).last).ancestors == (RUN,)
    assert place.search(runs=child).past_known


# Folds of several folders


def as_trained(place: Place, name: str, without: str = "test.zip") -> Path:
    """Copy the working folder as it was before inference, or without a fold of it too."""
    ignored = shutil.ignore_patterns("test.zip", "ensembles", without)
    return shutil.copytree(place.root / "work", place.root / name, ignore=ignored)


def test_gathered_folds_end_as_those_trained_in_one_folder(place, no_report, monkeypatch, capsys):
    as_trained(place, "a", without="fold1"), as_trained(place, "b", without="fold0")
    monkeypatch.chdir(place.root)
    run_command("gather", "a", "b", "--into", "both")
    copied = f"copied into {place.root / 'both'}: {RUN}/fold0, {RUN}/fold1"
    assert copied in capsys.readouterr().out
    place.search("both"), place.infer("both")
    for name in ("thresholds.json", "members.json", "oof.csv", "submission.csv"):
        one, both = (place.root / work / "ensembles" / RUN / name for work in ("work", "both"))
        assert one.read_bytes() == both.read_bytes(), name


def test_a_gathered_fold_that_is_unfinished_goes_on_to_the_same_bits(place, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(train_stage, "Clock", FewSteps)
        assert not place.train("stopped", fold=1).complete
    gathered = gather.run([place.root / "stopped"], place.root / "on").table()
    columns = ["finished", "unfinished", "missing"]
    assert gathered[columns].to_numpy().tolist() == [["-", "1", "0"]]
    state, _ = checkpoints.load(place.fold(1, "on").last)
    assert state["position"]["step"] > 0
    assert place.train("on", fold=1).complete
    assert_same_training(place.fold(1), place.fold(1, "on"))
    # The finished one of another place is the same, and stays behind.
    again = gather.run([as_trained(place, "other")], place.root / "on")
    assert again.copied == (f"{RUN}/fold0",)
    assert again.table()["missing"].tolist() == ["-"]


# Bad input


def test_a_bad_training_file_stops_or_is_left_out_and_listed(place):
    own = place.with_data()
    bad = files(own.data, "train")[5]
    cut_short(bad)
    with pytest.raises(InputError, match=bad.name):
        own.train("skipping")
    assert own.train("skipping", on_bad_file="skip", fold=0).complete
    found = own.search("skipping")
    assert bad.stem not in (found.folder / "oof.csv").read_text()
    assert bad.stem in (found.folder / "report.html").read_text(encoding="utf-8")


def test_an_unreadable_test_image_gets_no_mask_is_named_and_once_repaired_is_predicted(
    place, no_report, capsys
):
    before = maps.Maps(place.fold(0).test)
    own = place.with_data()
    bad = files(own.data, "test")[3]
    content = cut_short(bad)
    result = own.infer()
    assert result.unreadable == (bad.stem,)
    assert f"unreadable image: {bad.stem}" in capsys.readouterr().out
    rows = submission.read(result.submission).set_index("image_id")["rle"]
    assert rows[bad.stem] == "-1"
    assert len(rows) == 4
    bad.write_bytes(content)
    expected = before[bad.stem]
    assert own.infer().unreadable == ()
    assert np.array_equal(maps.Maps(own.fold(0).test)[bad.stem], expected)


def test_a_start_that_fails_leaves_no_run_behind(place, monkeypatch):
    def refuse(*args, **how):
        raise OSError("no internet in this test")

    monkeypatch.setenv("TORCH_HOME", str(place.root / "torch"))
    monkeypatch.setattr(torch.hub, "download_url_to_file", refuse)
    with pytest.raises(InputError, match="-p WEIGHTS none"):
        place.train("failing", encoder="resnet18", weights="imagenet")
    assert fold_run.run_names([place.root / "failing"]) == []
