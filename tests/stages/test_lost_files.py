"""A file of a finished run is gone: it is named, or what is made without it is the same."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from kernel_lib import checkpoints, storage
from kernel_lib.artifacts import fold_run
from kernel_lib.config import ThresholdsParameters
from kernel_lib.errors import InputError
from kernel_lib.released import Released
from kernel_lib.stages import predict_files, release, report, scores, thresholds
from kernel_lib.viewer.document import viewer
from tests.stages.place import ON_CPU, Place

pytestmark = pytest.mark.usefixtures("no_report")

FOLD, ENSEMBLE = "runs/tiny/fold0", "ensembles/tiny"
READERS = ("thresholds", "inference", "view", "summary", "predict", "release")
# Who needs a file; without it all others come to what they came to with it.
NEEDED_BY = {
    "folds.csv": ("thresholds", "inference", "view"),
    f"{FOLD}/config.json": ("thresholds", "inference", "view", "predict", "release"),
    f"{FOLD}/oof.zip": ("thresholds", "inference", "view", "predict", "release"),
    f"{FOLD}/oof_last.zip": ("thresholds", "release"),
    f"{FOLD}/best_epoch001.pt": ("inference", "predict", "release"),
    f"{FOLD}/last.pt": (),
    f"{FOLD}/log.jsonl": ("release",),
    f"{ENSEMBLE}/members.json": ("inference", "view", "summary", "predict", "release"),
    f"{ENSEMBLE}/thresholds.json": ("inference", "view", "summary", "predict", "release"),
    f"{ENSEMBLE}/oof.csv": ("inference",),
    f"{ENSEMBLE}/oof_statistics.npz": ("inference",),
    f"{ENSEMBLE}/oof_distances.csv": (),
}


@pytest.fixture(scope="module")
def data(phantoms) -> Path:
    """Four test images without a table."""
    return phantoms / "dicom-images-test"


def reader(name: str, work: Path, data: Path) -> Callable[[], object]:
    """A stage or command, and what it comes to."""
    folder, place = work / ENSEMBLE, Place(work.parent, data)
    out, model = place.root / "out", place.root / "small.safetensors"
    return {
        "thresholds": lambda: str(place.search(data_dir=None).scores),
        "inference": lambda: place.infer().submission.read_bytes(),
        "view": lambda: viewer(folder).html,
        "summary": lambda: scores.summary(folder),
        "predict": lambda: (
            predict_files.run([data], out, ensemble=folder, **ON_CPU),
            (out / "predictions.csv").read_bytes(),
        )[1],
        "release": lambda: _counted(
            release.run(work / FOLD, folder, "small", model, last=False, licence="MIT")[0]
        ),
    }[name]


def _counted(given: Released) -> tuple:
    """What counts of a released model."""
    weights = {name: tensor.tolist() for name, tensor in given.model.state_dict().items()}
    return given.rule, given.score, given.lineage, weights


@pytest.fixture(scope="module")
def before(untrained, data, tmp_path_factory) -> dict[str, object]:
    """What every reader comes to where nothing is lost."""
    found = {}
    for name in READERS:
        root = tmp_path_factory.mktemp(name)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(report, "write", lambda *args, **how: None)
            work = shutil.copytree(untrained, root / "work")
            found[name] = _placeless(reader(name, work, data)(), root)
    return found


def _placeless(made: object, root: Path) -> object:
    return made.replace(str(root), "") if isinstance(made, str) else made


@pytest.mark.parametrize("name", READERS)
@pytest.mark.parametrize("lost", NEEDED_BY)
def test_a_lost_file_is_named_or_changes_nothing(untrained, data, before, tmp_path, lost, name):
    work = shutil.copytree(untrained, tmp_path / "work")
    (work / lost).unlink()
    if name not in NEEDED_BY[lost]:
        made = _placeless(reader(name, work, data)(), tmp_path)
        without = _listed_artefacts if name == "summary" else lambda made: made
        assert without(made) == without(before[name])
        return
    with pytest.raises(InputError) as error:
        reader(name, work, data)()
    assert str(work / lost) in str(error.value)
    assert "missing" in str(error.value)


def _listed_artefacts(text: str) -> str:
    """A summary but for the list of the files that are there."""
    return text.split("Artefacts:")[0]


def test_a_fold_whose_checkpoints_are_not_all_there_is_not_released_as_one_of_them(
    untrained, tmp_path
):
    """The best may be the one that is gone, and the score is that of their mean."""
    work = shutil.copytree(untrained, tmp_path / "work")
    (work / FOLD / "best_epoch001.pt").rename(work / FOLD / "best_epoch002.pt")
    with pytest.raises(InputError, match=r"best_epoch001\.pt is missing"):
        reader("release", work, tmp_path)()


@pytest.mark.parametrize("kind", ["run", "fold", "work", "ensembles", "other"])
def test_another_folder_than_an_ensemble_s_is_named_with_those_that_are(untrained, tmp_path, kind):
    (tmp_path / "other").mkdir()
    given = {
        "run": untrained / "runs" / "tiny", "fold": untrained / FOLD, "work": untrained,
        "ensembles": untrained / "ensembles", "other": tmp_path / "other",
    }[kind]  # fmt: skip
    for read in (viewer, scores.summary):
        with pytest.raises(InputError) as error:
            read(given)
        assert f"{given} is no ensemble's folder" in str(error.value)
        assert (str(untrained / ENSEMBLE) in str(error.value)) == (kind != "other")


def search(work: Path, capsys) -> tuple[thresholds.ThresholdsResult, str]:
    result = thresholds.run(ThresholdsParameters(work_dir=str(work), bootstrap=100))
    return result, capsys.readouterr().out


@pytest.mark.parametrize("state", ["not trained", "not trained to the end"])
def test_scores_of_some_folds_say_of_how_many_images_they_are(untrained, tmp_path, capsys, state):
    work = shutil.copytree(untrained, tmp_path / "work")
    fold = work / "runs/tiny/fold1"
    if state == "not trained":
        shutil.rmtree(fold)
    else:
        for name in ("oof.zip", "oof_last.zip"):
            (fold / name).unlink()
    result, printed = search(work, capsys)
    assert f"note: folds [1] of tiny are {state} and not used" in printed
    assert result.scores.coverage == "6 of 12 images"
    assert "rule, nested CV (honest), 6 of 12 images" in printed
    assert "scored: 6 of 12 images, those of fold 0" in printed
    assert "nested CV (honest), 6 of 12 images" in scores.summary(result.folder)
    note = viewer(result.folder).html
    assert "of 6 of 12 images" in note


def test_scores_of_all_folds_need_no_such_words(untrained, tmp_path, capsys):
    result, printed = search(shutil.copytree(untrained, tmp_path / "work"), capsys)
    assert (result.scores.coverage, "12 images" in printed) == ("", False)


@pytest.mark.parametrize("lost", [("oof.zip",), ("oof_last.zip",), ("oof.zip", "oof_last.zip")])
@pytest.mark.parametrize("says", [{"epoch": 3}, {"epoch": 1, "ended": "no better dice"}])
def test_a_finished_fold_without_its_predictions_is_not_left_out(untrained, tmp_path, lost, says):
    work = shutil.copytree(untrained, tmp_path / "work")
    folder = fold_run.fold_folder(work, "tiny", 1)
    n = says["epoch"]
    storage.write_text(folder.log, '{"epoch": 1}\n' * (n - 1) + f"{says}\n".replace("'", '"'))
    for name in lost:
        (folder.path / name).unlink()
    with pytest.raises(InputError, match=f"{folder.path / lost[0]} is missing.* -p FOLD 1"):
        thresholds.run(ThresholdsParameters(work_dir=str(work)))


def made_of(work: Path) -> dict[str, str]:
    """What counts of a run's files: weights, and all of the others."""
    found = {}
    for path in sorted(p for p in work.rglob("*") if p.is_file()):
        found[path.relative_to(work).as_posix()] = (
            checkpoints.digest(path)
            if path.suffix == ".pt"
            else hashlib.sha256(path.read_bytes()).hexdigest()
        )
    return found


@pytest.mark.slow
def test_training_again_names_a_lost_file_or_makes_the_same_one(place, tmp_path):
    """Also where it was another fold's, and with any file of the cache gone."""
    for fold in (0, 1):
        place.fold(fold).test.unlink()
    expected, folder = made_of(place.root / "work"), place.fold(0)
    named = ["config.json", "last.pt", *(path.name for path in folder.kept())]
    again = ["log.jsonl", "oof.zip", "oof_last.zip"]
    assert {path.name for path in folder.path.iterdir()} == {*named, *again}
    lost = [folder.path / name for name in (*named, *again)]
    lost += [place.root / "work" / name for name in ("folds.csv", "left_out.json")]
    lost += [path for path in (place.root / "cache").rglob("*") if path.is_file()]
    for n, path in enumerate(lost):
        own = place.copy(tmp_path / str(n))
        gone = own.root / path.relative_to(place.root)
        gone.unlink()
        if gone.name in (*named, "folds.csv"):
            with pytest.raises(InputError) as error:
                own.train()
            assert str(gone) in str(error.value)
            name = gone.relative_to(own.root / "work").as_posix()
            left = {other: digest for other, digest in expected.items() if other != name}
            assert made_of(own.root / "work") == left, path
        else:
            assert own.train().complete
            assert made_of(own.root / "work") == expected, path
        shutil.rmtree(own.root)
