"""The inference stage on images alone, with a sample from anywhere, beside an earlier data set."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from kernel_lib import __main__ as main
from kernel_lib import checkpoints, storage
from kernel_lib.artifacts import fold_run
from kernel_lib.artifacts.lineage import Lineage
from kernel_lib.config import InferenceParameters
from kernel_lib.data import fingerprint, images, rle
from kernel_lib.errors import InputError
from kernel_lib.inference import engines
from kernel_lib.postprocess import submission
from kernel_lib.stages import inference, leaks, report, report_images, scores
from kernel_lib.viewer.data import load_viewer_data
from tests.stages.place import Place, rewrite


@pytest.fixture
def place(untrained, phantoms, tmp_path, monkeypatch) -> Path:
    """A WORK_DIR, and two folders of three DICOMs without tables; no report, which is slow."""
    monkeypatch.setattr(
        report, "write", lambda folder, *args, **how: (folder / "report.html").write_text("new")
    )
    shutil.copytree(untrained, tmp_path / "work")
    for name, split in (("first", "test"), ("second", "train")):
        (tmp_path / name).mkdir()
        paths = sorted((phantoms / f"dicom-images-{split}").rglob("*.dcm"))[:3]
        for n, path in enumerate(paths):
            shutil.copy(path, tmp_path / name / (path.name if n else path.stem))
    return tmp_path


def infer(place: Path, data: str, **changes) -> inference.InferenceResult:
    return Place(place, place / data).infer(**changes)


def ids_of(data: Path) -> list[str]:
    return sorted(path.name.removesuffix(".dcm") for path in data.iterdir())


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
    assert submission.read(second.submission)["image_id"].tolist() == ids_of(place / "second")
    assert "report" not in str(second)
    for result, name in ((first, "first"), (second, "second")):
        data_dir = place / name
        shown = load_viewer_data(result.folder, test=True, data_dir=data_dir, roots=result.roots)
        assert len(shown.table) == 3
        assert report_images.on_test(result.rles, result.source).sentence
    assert contents(place / "work") == after


@pytest.mark.parametrize("content", [None, b"cut sho"], ids=["gone", "damaged"])
def test_a_lost_submission_is_made_again(place, content):
    first = infer(place, "first").submission
    expected = first.read_bytes()
    first.unlink()
    if content is not None:
        first.write_bytes(content)
    assert infer(place, "first").submission.read_bytes() == expected


def test_onnxruntime_in_the_place_of_torch_submits_the_same_masks(place, capsys, monkeypatch):
    pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    masks = {}
    for engine in ("torch", "onnxruntime"):
        done = infer(place, "first", engine=engine, output=engine)
        assert f"engine: {engine} " in capsys.readouterr().out
        masks[engine] = [rle.decode(text, (128, 128)) for text in done.rles.values()]
    for one, other in zip(*masks.values(), strict=True):
        assert np.count_nonzero(one != other) <= 8  # of 16,384, whose probability is a threshold
    assert any(mask.any() for mask in masks["torch"])
    monkeypatch.setattr(engines, "PAYS_FROM_PX", 1)
    assert infer(place, "first", output="auto").rles == done.rles
    assert "engine: onnxruntime " in capsys.readouterr().out
    with pytest.raises(InputError, match=r"ENGINE onnxruntime .* PRECISION bfloat16"):
        infer(place, "first", engine="onnxruntime", precision="bfloat16")


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
    ids = ids_of(place / "first")
    sample = place / "elsewhere.csv"
    submission.write(sample, [ids[2], ids[0]], ["-1", "-1"])
    result = infer(place, "first", sample=str(sample))
    assert submission.read(result.submission)["image_id"].tolist() == [ids[2], ids[0]]
    with pytest.raises(InputError, match=r"elsewhere\.csv row 2: test image .* has no file"):
        infer(place, "second", sample=str(sample))


def test_a_submission_has_the_form_of_its_sample(place):
    ids = ids_of(place / "first")
    rows = [f"{n},Public,test/{one}.dcm,-1" for n, one in enumerate(ids[::-1])]
    sample = place / "sample.csv"
    sample.write_text("\n".join([",Usage,ImageId,EncodedPixels", *rows, ""]))
    result = infer(place, "first", sample=str(sample))
    written = result.submission.read_text().splitlines()
    assert [line.rpartition(",")[0] for line in written] == [
        line.rpartition(",")[0] for line in sample.read_text().splitlines()
    ]
    assert submission.validate(result.submission, sample, shape=(128, 128)) == []
    assert submission.by_image(result.submission).index.tolist() == ids[::-1]
    assert report_images.on_test(result.rles, result.source).sentence


def test_a_sample_that_cannot_be_written_back_is_refused_before_predicting(place):
    ids = ids_of(place / "first")
    sample = place / "sample.csv"
    sample.write_text(f"ImageId,EncodedPixels\n{ids[0]}.dcm,-1\n{ids[0]},-1\n")
    before = contents(place / "work")
    with pytest.raises(InputError, match="row 3"):
        infer(place, "first", sample=str(sample))
    assert contents(place / "work") == before


@pytest.mark.parametrize("how", ["gone", "cut short", "of another kind"])
@pytest.mark.parametrize(
    "name", ["members.json", "thresholds.json", "oof.csv", "oof_statistics.npz", "left_out.json"]
)
def test_what_inference_needs_is_complete_before_it_predicts(place, monkeypatch, name, how):
    """All of it, also what only the report reads, which comes last."""
    work = place / "work"
    storage.write_json(work / "left_out.json", [])
    path = work / name if name == "left_out.json" else work / "ensembles" / "tiny" / name
    content = path.read_bytes()
    path.unlink()
    if how != "gone":
        path.write_bytes(content[: len(content) // 2] if how == "cut short" else b"{}\n")
    before = contents(work)
    monkeypatch.setattr(inference, "_predict", lambda setup: pytest.fail("it predicts"))
    if (name, how) == ("left_out.json", "gone"):
        with pytest.raises(pytest.fail.Exception, match="it predicts"):
            infer(place, "first")
    else:
        fix = rf"(?s)/{name} is (missing|damaged) ?.*: (run the thresholds|the thresholds|delete)"
        with pytest.raises(InputError, match=fix):
            infer(place, "first")
    assert contents(work) == before


@pytest.mark.parametrize("name", ["..", ".hidden", "a/b", ""])
def test_an_output_s_name_is_a_folder_of_its_own(name):
    with pytest.raises(InputError, match="OUTPUT"):
        InferenceParameters.checked({"output": name})


def state_lineage(work: Path, fold: int, stated: Lineage, had: Lineage | None = None) -> None:
    """Give a fold's archive of held-out images another past, and its checkpoints that, or `had`."""
    folder = fold_run.fold_folder(work, "tiny", fold)
    for path in folder.kept():
        checkpoints.save(path, checkpoints.load(path)[0], had or stated)
    rewrite(folder.oof, lineage=stated.to_json())


def test_a_test_image_that_was_trained_on_is_named_beside_its_scores(place, capsys):
    path = sorted((place / "first").iterdir())[1]
    codes = (fingerprint.code(images.read(path)), "")
    state_lineage(place / "work", 1, Lineage(images=("copy", "i02"), fingerprints=codes))
    result = infer(place, "first")
    noted = json.loads((result.folder / "test.json").read_text())["trained_on"]
    assert [line.split(", by")[0] for line in noted] == [f"{path.stem} is the training image copy"]
    assert f"warning: {leaks.warning(noted)}" in capsys.readouterr().out
    assert scores.trained_on(result.submission) == [f"warning: {leaks.warning(noted)}"]
    labels = place / "labels.csv"
    shutil.copy(result.submission, labels)
    main.main(["score", str(result.submission), str(labels)], standalone_mode=False)
    assert leaks.warning(noted) in capsys.readouterr().out
    copy = shutil.copy(result.submission, result.folder / "best.csv")
    voted = ["vote", str(copy), str(labels), "--at-least", "1", "-o", str(place / "vote.csv")]
    main.main(voted, standalone_mode=False)
    assert leaks.warning(noted) in capsys.readouterr().out
    other = infer(place, "second", output="own")
    assert scores.trained_on(other.submission) == []


def test_maps_of_another_past_than_the_checkpoints_are_refused(place):
    state_lineage(place / "work", 1, Lineage(images=("i02",)), had=Lineage(images=("i02", "i04")))
    with pytest.raises(InputError, match=r"tiny/fold1/oof.zip states another lineage"):
        infer(place, "first")
