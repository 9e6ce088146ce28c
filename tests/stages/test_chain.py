"""The whole way through on phantoms: every stage, stopped and resumed, twice, and on bad input."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pydicom
import pytest
import torch
from pydicom.uid import ExplicitVRLittleEndian

from kernel_lib import checkpoints
from kernel_lib.artifacts import ensemble as ensembles
from kernel_lib.artifacts import fold_run, maps
from kernel_lib.config import InferenceParameters, ThresholdsParameters, TrainParameters
from kernel_lib.data import rle
from kernel_lib.errors import InputError
from kernel_lib.inference import members, recipes
from kernel_lib.postprocess import submission
from kernel_lib.postprocess.triplet import Triplet, apply_rule
from kernel_lib.stages import inference as inference_stage
from kernel_lib.stages import thresholds as thresholds_stage
from kernel_lib.stages import train as train_stage
from kernel_lib.training.job import Clock
from tools.phantoms import competition

pytestmark = pytest.mark.slow

RUN = "demo_UNetResNet10_128_v1_size64_tu-test-resnet_epochs2_seed3456"


@pytest.fixture(scope="module", autouse=True)
def _apart(tmp_path_factory):
    """No mounts, no download, an empty torch cache, one thread."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("KERNEL_LIB_MOUNTS", str(tmp_path_factory.mktemp("mounts")))
        patch.setenv("TORCH_HOME", str(tmp_path_factory.mktemp("torch")))

        def refuse(*args, **how):
            raise OSError("no internet in this test")

        patch.setattr(torch.hub, "download_url_to_file", refuse)
        before = torch.get_num_threads()
        yield
        torch.set_num_threads(before)


@pytest.fixture(scope="module")
def place(scratch) -> Path:
    """Phantoms of 128 px in `data`, one test image neither square nor of their size."""
    competition.write_competition(
        scratch / "data", 40, 8, size=128, seed=1, difficulty=0.1, positives=0.4, workers=1,
        progress=False,
    )  # fmt: skip
    image = test_files(scratch / "data")[2]
    reshape(image, 160, 96)
    return scratch


def test_files(data: Path) -> list[Path]:
    return sorted((data / "dicom-images-test").rglob("*.dcm"))


test_files.__test__ = False


def reshape(path: Path, height: int, width: int) -> None:
    """Put an uncompressed image of that shape in the place of a DICOM's own."""
    data = pydicom.dcmread(path)
    pixels = np.random.default_rng(0).integers(0, 256, (height, width), dtype=np.uint8)
    fresh = pydicom.Dataset({e.tag: e for e in data if e.tag != 0x7FE00010})
    fresh.file_meta = data.file_meta
    fresh.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    fresh.Rows, fresh.Columns, fresh.PixelData = height, width, pixels.tobytes()
    fresh["PixelData"].VR = "OW"
    pydicom.dcmwrite(path, fresh, enforce_file_format=True)


def train(place: Path, work: str, data: str = "data", **changes) -> train_stage.TrainResult:
    given = {"experiment": "demo_UNetResNet10_128_v1", "size": 64, "encoder": "tu-test_resnet"}
    given |= {"epochs": 2, "n_folds": 2}
    return train_stage.run(
        TrainParameters(
            data_dir=str(place / data), work_dir=str(place / work), cache_dir=str(place / "cache"),
            threads=1, device="cpu", **(given | changes),
        )
    )  # fmt: skip


def choose_rule(place: Path, work: str, **changes) -> thresholds_stage.ThresholdsResult:
    given = {"work_dir": str(place / work), "data_dir": str(place / "data"), "bootstrap": 100}
    return thresholds_stage.run(ThresholdsParameters(**(given | changes)))


def infer(place: Path, work: str, data: str = "data", **changes):
    return inference_stage.run(
        InferenceParameters(
            data_dir=str(place / data), work_dir=str(place / work), cache_dir=str(place / "cache"),
            threads=1, device="cpu", **changes,
        )
    )  # fmt: skip


@pytest.fixture(scope="module")
def whole(place) -> dict:
    """One run through all stages, which the tests below look at and go on from."""
    return {
        "train": train(place, "work"),
        "search": choose_rule(place, "work"),
        "infer": infer(place, "work"),
    }


def command(root: Path, *arguments: object) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", "kernel_lib", *map(str, arguments)],
        cwd=root, capture_output=True, text=True, check=False,
    )  # fmt: skip


def check_submission(project_root: Path, place: Path, result) -> None:
    sample = place / "data" / "sample_submission.csv"
    done = command(project_root, "validate", result.submission, "--sample", sample)
    assert done.returncode == 0, done.stdout + done.stderr
    rows = submission.read(result.submission)
    assert rows["image_id"].tolist() == submission.read(sample)["image_id"].tolist()


def snapshot(folder: Path, *patterns: str) -> dict[str, tuple[int, int]]:
    paths = sorted(p for pattern in patterns for p in folder.rglob(pattern))
    return {str(p): (p.stat().st_mtime_ns, p.stat().st_ino) for p in paths}


def test_every_stage_leaves_what_the_next_one_reads(project_root, place, whole):
    result = whole["train"]
    assert (result.run, result.complete, result.finished) == (RUN, True, (0, 1))
    assert str(result).endswith(f" trained and predicted in {place / 'work' / 'runs' / RUN}")
    for fold, folder in fold_run.find([place / "work"], RUN).items():
        config = folder.read_config()
        assert (config.fold, config.experiment.min_epochs) == (fold, 1)
        assert [line["epoch"] for line in folder.read_log()] == [1, 2]
        assert 1 <= len(folder.kept()) <= 2
        oof, last = maps.Maps(folder.oof), maps.Maps(folder.oof_last)
        assert sorted(oof.ids) == sorted(last.ids)
        trained_on = set(checkpoints.past(folder.last).images)
        assert trained_on.isdisjoint(oof.ids)
        assert len(trained_on) + len(oof) == 40
        assert oof[oof.ids[0]].shape == (64, 64)
    folder = whole["search"].folder
    assert str(whole["search"]).endswith(f"\nreport: {folder / 'report.html'}")
    assert whole["search"].past_known
    assert 0 < whole["search"].honest.honest.dice <= 1
    assert whole["search"].search.score >= whole["search"].honest.honest.dice
    assert len(whole["search"].honest.per_image) == 40
    for name in ("members.json", "thresholds.json", "oof.csv", "submission.csv", "report.html"):
        assert (folder / name).stat().st_size > 0, name
    assert whole["infer"].unreadable == ()
    check_submission(project_root, place, whole["infer"])


def test_the_command_line_scores_and_sums_up(project_root, place, whole):
    truth = place / "data" / competition.TEST_TRUTH
    done = command(project_root, "summary", whole["search"].folder, "--truth", truth)
    assert done.returncode == 0, done.stderr
    for words in (
        "empty baseline",
        "probability > 0.5",
        "rule, nested CV (honest)",
        "submission.csv",
    ):
        assert words in done.stdout


def test_the_same_commands_again_do_nothing_again(place, whole):
    patterns = ("*.pt", "*.zip", "folds.csv", "config.json")
    before = snapshot(place / "work", *patterns)
    caches = snapshot(place / "cache", "pixels.u8", "masks.bits")
    assert len(before) > 12
    assert train(place, "work").complete
    found = choose_rule(place, "work")
    again = infer(place, "work")
    assert snapshot(place / "work", *patterns) == before
    assert snapshot(place / "cache", "pixels.u8", "masks.bits") == caches
    assert found.search.chosen == whole["search"].search.chosen
    assert again.submission.read_text() == whole["infer"].submission.read_text()


def test_what_vanished_between_two_stages_is_named_and_what_can_be_is_made_again(place, whole):
    folder, away = fold_run.fold_folder(place / "work", RUN, 0), place / "away"
    best = folder.kept()[0]
    best.rename(away)
    with pytest.raises(InputError, match=rf"{best} is gone, .*restore it, or delete"):
        train(place, "work", fold=0)
    with pytest.raises(InputError, match=rf"{best} is missing, and .* needs it: restore it"):
        infer(place, "work")
    away.rename(best)
    content = folder.oof.read_bytes()
    folder.oof.unlink()
    with pytest.raises(InputError, match=r"oof.zip is missing: the train stage"):
        infer(place, "work")
    with pytest.raises(InputError, match=rf"{folder.oof} is missing, and the training of fold 0"):
        members.gather([place / "work"], recipes.of_runs([RUN]), None)
    assert train(place, "work", fold=0).complete
    assert folder.oof.read_bytes() == content
    again = infer(place, "work")
    assert again.submission.read_text() == whole["infer"].submission.read_text()


@pytest.mark.parametrize("how", ["gone", "cut short", "of another kind"])
@pytest.mark.parametrize(
    "name", ["members.json", "thresholds.json", "oof.csv", "oof_statistics.npz", "left_out.json"]
)
def test_what_inference_needs_of_earlier_stages_is_whole_before_it_predicts(
    place, whole, tmp_path, monkeypatch, name, how
):
    """All of it, also what only the report reads, which comes last."""
    folder = tmp_path / "work" / "ensembles" / RUN
    shutil.copytree(place / "work" / "ensembles" / RUN, folder)
    shutil.copy(place / "work" / "folds.csv", tmp_path / "work")
    shutil.copy(place / "work" / "left_out.json", tmp_path / "work")
    (tmp_path / "work" / "runs").symlink_to(place / "work" / "runs")
    (folder / "submission.csv").unlink()
    path = folder / name if name != "left_out.json" else tmp_path / "work" / name
    content = path.read_bytes()
    path.unlink()
    if how != "gone":
        path.write_bytes(content[: len(content) // 2] if how == "cut short" else b"{}\n")
    before = snapshot(tmp_path / "work", "ensembles/*/*")
    monkeypatch.setattr(inference_stage, "_predict", lambda asked: pytest.fail("it predicts"))
    if (name, how) == ("left_out.json", "gone"):
        with pytest.raises(pytest.fail.Exception, match="it predicts"):
            infer(tmp_path, "work", str(place / "data"))
        return
    mend = rf"(?s)/{name} is (missing|damaged) ?.*: (run the thresholds|the thresholds|delete it)"
    with pytest.raises(InputError, match=mend):
        infer(tmp_path, "work", str(place / "data"))
    assert snapshot(tmp_path / "work", "ensembles/*/*") == before


def test_another_configuration_in_the_folder_is_refused_by_field(place, whole):
    with pytest.raises(InputError, match="deterministic: False there, True here"):
        train(place, "work", deterministic=True)
    with pytest.raises(InputError, match="has 2 folds, N_FOLDS is 3"):
        train(place, "work", n_folds=3)


def test_test_images_keep_their_own_geometry(place, whole):
    """Maps with shapes in them, which two epochs do not give, in the place of the networks'."""
    odd, work = test_files(place / "data")[2].stem, place / "shaped"
    shutil.copytree(place / "work", work)
    generator, shown = np.random.default_rng(0), {}
    for fold, folder in fold_run.find([work], RUN).items():
        archive = maps.Maps(folder.test)
        for image_id in archive.ids:
            rough = generator.integers(0, 256, (5, 5), dtype=np.uint8)
            shown[fold, image_id] = cv2.resize(rough, (64, 64))
        drawn = [(i, maps.Prediction(shown[fold, i])) for i in archive.ids]
        maps.write(folder.test, drawn, archive.meta)  # as complete as the one that was there
    rule = Triplet(0.6, 500, 0.5)
    document = work / "ensembles" / RUN / "thresholds.json"
    document.write_text(json.dumps(json.loads(document.read_text()) | {"rule": rule.to_json()}))
    result = infer(place, "shaped")
    found = submission.read(result.submission).set_index("image_id")["rle"]
    assert (found != "-1").sum() >= 6
    for image_id, text in found.items():
        shape = (160, 96) if image_id == odd else (128, 128)
        mixed = maps.mean([shown[fold, image_id] for fold in (0, 1)])
        expected = apply_rule(maps.at_shape(mixed, shape), rule)
        assert np.array_equal(rle.decode(text, shape), expected), image_id


def test_two_seeds_speak_together_in_mean_and_vote(project_root, place, whole, no_report):
    other = train(place, "work", seed=4567)
    both = f"{RUN},{other.run}"
    found = choose_rule(place, "work", runs=both)
    assert found.folder.name == f"{RUN}+{other.run}"
    mixed = infer(place, "work", ensemble=found.folder.name)
    check_submission(project_root, place, mixed)
    voted = choose_rule(place, "work", runs=both, ensemble="voted", combine="vote")
    assert voted.search.chosen == found.search.chosen, "out of fold each image has one map"
    assert ensembles.Ensemble.load(voted.folder).combine == "vote"
    check_submission(project_root, place, infer(place, "work", ensemble="voted"))
    with pytest.raises(InputError, match="-p RUNS"):
        choose_rule(place, "work")
    with pytest.raises(InputError, match="name one with -p ENSEMBLE"):
        infer(place, "work")


def test_the_second_network_goes_the_same_way(project_root, place, no_report):
    result = train(
        place, "deeplab", experiment="deeplabv3plus_resnet_512_v1", encoder="resnet18",
        weights="none",
    )  # fmt: skip
    assert result.complete
    assert result.run == ("deeplabv3plus_resnet_512_v1_size64_resnet18_fromnone_epochs2_seed3456")
    choose_rule(place, "deeplab", single=True)
    check_submission(project_root, place, infer(place, "deeplab"))


class FewSteps(Clock):
    """Allows so many pieces of work in a session, however long they take."""

    def __init__(self, max_hours: float | None) -> None:
        super().__init__(None)
        self.pieces = 2

    def allows(self, seconds: float) -> bool:
        self.pieces -= 1
        return self.pieces >= 0


def bits(folder: fold_run.FoldRun) -> dict[str, torch.Tensor]:
    found = {}
    for path in [folder.last, *folder.kept()]:
        state, _ = checkpoints.load(path)
        found |= {f"{path.name}/{k}": v for k, v in state["model"].items()}
        if "ema" in state:
            found |= {f"{path.name}/ema/{k}": v for k, v in state["ema"]["model"].items()}
    return found


def test_stopped_by_the_clock_and_resumed_it_ends_with_the_same_bits(place, whole, monkeypatch):
    monkeypatch.setattr(train_stage, "Clock", FewSteps)
    sessions = 1
    while not (result := train(place, "parts", max_hours=1.0)).complete:
        assert "run the same command again" in str(result)
        sessions += 1
        assert sessions < 30
    assert sessions > 4
    one, other = (fold_run.find([place / work], RUN) for work in ("work", "parts"))
    for fold in (0, 1):
        there, here = bits(one[fold]), bits(other[fold])
        assert there.keys() == here.keys()
        assert all(torch.equal(there[k], here[k]) for k in there)
        assert one[fold].oof.read_bytes() == other[fold].oof.read_bytes()
        assert one[fold].oof_last.read_bytes() == other[fold].oof_last.read_bytes()


def test_a_child_goes_on_from_its_parent_and_stays_honest(place, whole, no_report):
    result = train(place, "work", weights=RUN, fold=0, epochs=2)
    child = fold_run.find([place / "work"], result.run)[0]
    assert checkpoints.past(child.last).ancestors == (RUN,)
    assert choose_rule(place, "work", runs=result.run).past_known


def damaged(place: Path, name: str, pick) -> tuple[Path, Path, bytes]:
    """A copy of the data with one file cut short: its folder, the file, and what it held."""
    data = place / name
    shutil.copytree(place / "data", data)
    path = pick(data)
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    return data, path, content


def test_a_bad_training_file_stops_or_is_left_out_and_listed(place):
    _, bad, _ = damaged(
        place, "bad-train", lambda d: sorted((d / "dicom-images-train").rglob("*.dcm"))[5]
    )
    with pytest.raises(InputError, match=bad.name):
        train(place, "skipping", "bad-train")
    result = train(place, "skipping", "bad-train", on_bad_file="skip", fold=0)
    assert result.complete
    found = choose_rule(place, "skipping", data_dir=str(place / "bad-train"))
    assert bad.stem not in (found.folder / "oof.csv").read_text()
    assert bad.stem in (found.folder / "report.html").read_text(encoding="utf-8")


def test_an_unreadable_test_image_gets_no_mask_is_named_and_once_mended_is_predicted(
    place, whole, no_report, capsys
):
    _, bad, content = damaged(place, "bad-test", lambda d: test_files(d)[4])
    shutil.copytree(place / "work" / "runs" / RUN, place / "mending" / "runs" / RUN)
    shutil.copy(place / "work" / "folds.csv", place / "mending")
    choose_rule(place, "mending")
    result = infer(place, "mending", "bad-test")
    assert result.unreadable == (bad.stem,)
    assert f"unreadable image: {bad.stem}" in capsys.readouterr().out
    rows = submission.read(result.submission).set_index("image_id")["rle"]
    assert rows[bad.stem] == "-1"
    assert len(rows) == 8
    bad.write_bytes(content)
    result = infer(place, "mending", "bad-test")
    assert result.unreadable == ()
    mended = maps.Maps(fold_run.fold_folder(place / "mending", RUN, 0).test)[bad.stem]
    right = maps.Maps(fold_run.fold_folder(place / "work", RUN, 0).test)[bad.stem]
    assert np.array_equal(mended, right)


def test_a_start_that_fails_leaves_no_run_behind(place):
    with pytest.raises(InputError, match="-p WEIGHTS none"):
        train(place, "failing", encoder="resnet18", weights="imagenet")
    assert fold_run.run_names([place / "failing"]) == []
