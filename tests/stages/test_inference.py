"""The inference stage on images alone, with a sample from anywhere, beside an earlier data set."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

import pytest

from kernel_lib import __main__ as main
from kernel_lib import checkpoints
from kernel_lib.artifacts import fold_run, maps
from kernel_lib.artifacts.lineage import Lineage
from kernel_lib.config import InferenceParameters
from kernel_lib.data import fingerprint, images
from kernel_lib.errors import InputError
from kernel_lib.postprocess import submission
from kernel_lib.stages import inference, past, report, report_images, scores
from kernel_lib.viewer.data import load_viewer_data
from tools.phantoms import competition

pytestmark = pytest.mark.usefixtures("apart")


@pytest.fixture
def place(untrained, tmp_path, monkeypatch) -> Path:
    """A WORK_DIR, and two folders of DICOMs without tables; no report is drawn, which is slow."""
    monkeypatch.setattr(
        report, "write", lambda folder, *args, **how: (folder / "report.html").write_text("new")
    )
    shutil.copytree(untrained, tmp_path / "work")
    for name, seed in (("first", 1), ("second", 2)):
        competition.write_competition(
            tmp_path / "drawn" / name, 0, 3, size=64, seed=seed, workers=1, progress=False
        )
        (tmp_path / name).mkdir()
        for n, path in enumerate(sorted((tmp_path / "drawn" / name).rglob("*.dcm"))):
            shutil.copy(path, tmp_path / name / (path.name if n else path.stem))
    return tmp_path


def infer(place: Path, data: str, **changes) -> inference.InferenceResult:
    return inference.run(
        InferenceParameters(
            data_dir=str(place / data), work_dir=str(place / "work"),
            cache_dir=str(place / "cache"), device="cpu", threads=1, **changes,
        )
    )  # fmt: skip


def contents(folder: Path) -> dict[str, str]:
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file()
    }


def test_another_data_set_lies_beside_the_first(place):
    first = infer(place, "first")
    assert (first.folder / "report.html").read_text() == "new"
    (first.folder / "report.html").write_text("the training's")
    before = contents(place / "work")
    second = infer(place, "second", output="own")
    after = contents(place / "work")
    assert {name: after[name] for name in before} == before
    new = {
        name.removeprefix("ensembles/tiny/outputs/own/") for name in after.keys() - before.keys()
    }
    assert new == {"submission.csv", "test.json", *(f"runs/tiny/fold{k}/test.zip" for k in (0, 1))}
    assert submission.read(second.submission)["image_id"].tolist() == sorted(
        path.name.removesuffix(".dcm") for path in (place / "second").iterdir()
    )
    assert "report" not in str(second)
    for result, name in ((first, "first"), (second, "second")):
        data_dir = place / name
        shown = load_viewer_data(result.folder, test=True, data_dir=data_dir, roots=result.roots)
        assert len(shown.table) == 3
        assert report_images.on_test(result.rles, result.source).sentence
    assert contents(place / "work") == after


def test_an_unreadable_image_whose_id_holds_a_colon_gets_an_empty_mask(place):
    name = "left: 3"
    (place / "first" / f"{name}.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    result = infer(place, "first")
    assert result.unreadable == (name,)
    assert json.loads((result.folder / "test.json").read_text())["unreadable"] == [name]
    rows = submission.read(result.submission).set_index("image_id")["rle"]
    assert rows[name] == "-1"
    assert len(rows) == 4


def test_a_sample_from_anywhere_names_the_test_images(place):
    ids = sorted(path.name.removesuffix(".dcm") for path in (place / "first").iterdir())
    sample = place / "elsewhere.csv"
    submission.write(sample, [ids[2], ids[0]], ["-1", "-1"])
    result = infer(place, "first", sample=str(sample))
    assert submission.read(result.submission)["image_id"].tolist() == [ids[2], ids[0]]
    with pytest.raises(InputError, match=r"elsewhere\.csv row 2: test image .* has no file"):
        infer(place, "second", sample=str(sample))


def test_a_submission_has_the_form_of_its_sample(place):
    ids = sorted(path.name.removesuffix(".dcm") for path in (place / "first").iterdir())
    rows = [f"{n},Public,test/{one}.dcm,-1" for n, one in enumerate(ids[::-1])]
    sample = place / "sample.csv"
    sample.write_text("\n".join([",Usage,ImageId,EncodedPixels", *rows, ""]))
    result = infer(place, "first", sample=str(sample))
    written = result.submission.read_text().splitlines()
    assert [line.rpartition(",")[0] for line in written] == [
        line.rpartition(",")[0] for line in sample.read_text().splitlines()
    ]
    assert submission.validate(result.submission, sample, shape=(64, 64)) == []
    assert submission.by_image(result.submission).index.tolist() == ids[::-1]
    assert report_images.on_test(result.rles, result.source).sentence


def test_a_sample_that_cannot_be_written_back_is_refused_before_predicting(place):
    ids = sorted(path.name.removesuffix(".dcm") for path in (place / "first").iterdir())
    sample = place / "sample.csv"
    sample.write_text(f"ImageId,EncodedPixels\n{ids[0]}.dcm,-1\n{ids[0]},-1\n")
    before = contents(place / "work")
    with pytest.raises(InputError, match="row 3"):
        infer(place, "first", sample=str(sample))
    assert contents(place / "work") == before


@pytest.mark.parametrize("name", ["..", ".hidden", "a/b", ""])
def test_an_output_s_name_is_a_folder_of_its_own(name):
    with pytest.raises(InputError, match="OUTPUT"):
        InferenceParameters.checked({"output": name})


def retold(work: Path, fold: int, stated: Lineage, had: Lineage | None = None) -> None:
    """Give a fold's archive of held-out images another past, and its checkpoints that, or `had`."""
    folder = fold_run.fold_folder(work, "tiny", fold)
    for path in folder.kept():
        checkpoints.save(path, checkpoints.load(path)[0], had or stated)
    old = maps.Maps(folder.oof)
    shown = [(i, maps.Prediction(old[i], old.label(i))) for i in old.ids]
    maps.write(folder.oof, shown, old.meta | {"lineage": stated.to_json()})


def test_a_test_image_that_was_trained_on_is_named_beside_its_scores(place, capsys):
    path = sorted((place / "first").iterdir())[1]
    codes = (fingerprint.code(images.read(path)), "")
    retold(place / "work", 1, Lineage(images=("copy", "i02"), fingerprints=codes))
    result = infer(place, "first")
    noted = json.loads((result.folder / "test.json").read_text())["trained_on"]
    assert [line.split(", by")[0] for line in noted] == [f"{path.stem} is the training image copy"]
    assert f"warning: {past.leak(noted)}" in capsys.readouterr().out
    assert scores.trained_on(result.submission) == [f"warning: {past.leak(noted)}"]
    labels = place / "labels.csv"
    shutil.copy(result.submission, labels)
    main.main(["score", str(result.submission), str(labels)], standalone_mode=False)
    assert past.leak(noted) in capsys.readouterr().out
    copy = shutil.copy(result.submission, result.folder / "best.csv")
    voted = ["vote", str(copy), str(labels), "--at-least", "1", "-o", str(place / "vote.csv")]
    main.main(voted, standalone_mode=False)
    assert past.leak(noted) in capsys.readouterr().out
    other = infer(place, "second", output="own")
    assert scores.trained_on(other.submission) == []


def test_maps_of_another_past_than_the_checkpoints_are_refused(place):
    retold(place / "work", 1, Lineage(images=("i02",)), had=Lineage(images=("i02", "i04")))
    with pytest.raises(InputError, match=r"tiny/fold1/oof.zip states another lineage"):
        infer(place, "first")
