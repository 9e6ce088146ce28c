"""Who saw what: no score on an image that a member, or what it descends from, was trained on."""

from __future__ import annotations

import base64
import hashlib
import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import torchvision

from kernel_lib import checkpoints, released, storage
from kernel_lib.artifacts import fold_run, folds_file, maps
from kernel_lib.artifacts.fold_run import FoldRun
from kernel_lib.artifacts.lineage import UNKNOWN, Lineage
from kernel_lib.config import Experiment, ThresholdsParameters, TrainParameters
from kernel_lib.data import rle
from kernel_lib.errors import InputError
from kernel_lib.kaggle import paths
from kernel_lib.models import imagenet, networks
from kernel_lib.plan import TrainPlan
from kernel_lib.postprocess.triplet import Triplet
from kernel_lib.released import Released
from kernel_lib.stages import initial_weights, report
from kernel_lib.stages import thresholds as stage
from kernel_lib.stages.leaks import ImageSet
from kernel_lib.stages.preparation import TrainingSet
from tests.stages.place import fold_table, write_fold

ROW = Experiment(
    name="tiny", encoder="resnet18", decoder_channels=(48, 40, 32, 24, 16), size=32,
    epochs=3, min_epochs=1, weights="none",
)  # fmt: skip
SIZE = 16
real_write = report.write

pytestmark = pytest.mark.usefixtures("no_report")  # but where a test reads it


def table(groups: bool = False) -> pd.DataFrame:
    """Twelve images in two folds by turns, every third with a mask; two a patient with groups."""
    mask = np.zeros((SIZE, SIZE), np.uint8)
    mask[4:12, 3:9] = 1
    numbers = range(12)
    return fold_table(
        [mask * (i % 3 == 0) for i in numbers],
        [(i // 2) % 2 for i in numbers],
        [f"patient{i // 2}" for i in numbers] if groups else None,
    )


DIGEST = folds_file.digest(table())


def plan(run: str, weights: str = "none") -> TrainPlan:
    row = ROW.model_copy(update={"weights": weights})
    return TrainPlan(run=run, experiment=row, parameters=TrainParameters(seed=1, n_folds=2))


def settled(work: Path, run: str, fold: int, weights: str = "none", digest=DIGEST) -> FoldRun:
    folder = fold_run.fold_folder(work, run, fold)
    fold_run.write_or_check_config(folder, plan(run, weights), digest)
    return folder


def finished(work: Path, run: str, fold: int, lineage: Lineage | None = None, digest=DIGEST):
    """A fold of a parent run, as training leaves it: epochs 1 and 2 kept, 2 the better."""
    folder = settled(work, run, fold, digest=digest)
    held = table()["fold"] == fold
    past = lineage or Lineage(images=tuple(table().loc[~held, "image_id"]))
    for epoch in (1, 2):
        torch.manual_seed(10 * fold + epoch)
        checkpoints.save(folder.best(epoch), {"model": networks.build(ROW).state_dict()}, past)
    lines = [{"epoch": e, "dice": 0.5 + e / 10, "best": True} for e in (1, 2)]
    meta = {"run": run, "fold": fold, "checkpoints": {path.name: "" for path in folder.kept()}}
    for path in (folder.oof, folder.oof_last):
        maps.write(path, [], meta)
    storage.write_text(folder.log, "".join(json.dumps(line) + "\n" for line in lines))
    return folder


def begin(
    work: Path, fold: int, weights: str, truth: pd.DataFrame | None = None, test=None, **parameters
):
    truth = table() if truth is None else truth
    held = (truth["fold"] == fold).to_numpy()
    folder = settled(work, "child", fold, weights)
    images = TrainingSet(
        None, truth, DIGEST, tuple(map(code, truth["image_id"])), test or ImageSet()
    )
    decided = plan("child", weights)
    given = {"parameters": decided.parameters.model_copy(update=parameters)}
    return initial_weights.network(folder, decided.model_copy(update=given), images, held, [work])


def code(name: str, turned: int = 0) -> str:
    """A fingerprint's code for a picture of that name, so many of its 512 bits turned over."""
    drawn = hashlib.shake_256(name.encode()).digest(64)
    bits = np.unpackbits(np.frombuffer(drawn, np.uint8))
    bits[:turned] ^= 1
    return "2:" + base64.b64encode(np.packbits(bits).tobytes()).decode().rstrip("=")


def test_a_first_run_has_seen_what_it_trains_on(tmp_path):
    _, lineage = begin(tmp_path, 0, "none", table(groups=True))
    assert lineage.images == ("i02", "i03", "i06", "i07", "i10", "i11")
    assert lineage.groups == ("patient1", "patient3", "patient5")
    assert (lineage.known, lineage.ancestors) == (True, ())


def test_a_child_s_fold_starts_from_its_parent_s_same_fold(tmp_path):
    finished(tmp_path, "parent", 0), finished(tmp_path, "parent", 1)
    for fold in (0, 1):
        model, lineage = begin(tmp_path, fold, "parent")
        best, _ = checkpoints.load(fold_run.fold_folder(tmp_path, "parent", fold).best(2))
        assert torch.equal(model.head.logit.weight, best["model"]["head.logit.weight"])
        held = set(table().loc[table()["fold"] == fold, "image_id"])
        assert held.isdisjoint(lineage.images)
        assert (lineage.known, lineage.ancestors) == (True, ("parent",))


def test_a_parent_of_another_folds_file_is_refused(tmp_path):
    finished(tmp_path, "parent", 0, digest="another")
    with pytest.raises(InputError, match=r"parent/fold0 was trained on another folds file"):
        begin(tmp_path, 0, "parent")


def test_a_parent_without_this_fold_is_refused_with_the_runs_there(tmp_path):
    finished(tmp_path, "parent", 0)
    with pytest.raises(InputError, match=r"'parent' .* fold 1.*child, parent"):
        begin(tmp_path, 1, "parent")
    with pytest.raises(InputError, match=r"'parnt' is neither imagenet, none, a file, nor a run"):
        begin(tmp_path, 0, "parnt")


def test_a_parent_that_saw_a_held_out_image_is_refused_before_training(tmp_path):
    """The other fold's checkpoint, given as a file, has trained on what this fold holds out."""
    other = finished(tmp_path, "parent", 1).best(2)
    with pytest.raises(InputError, match=r"was trained on image i00 or its patient, which fold 0"):
        begin(tmp_path, 0, str(other))
    assert not fold_run.fold_folder(tmp_path, "child", 0).last.exists()


@pytest.mark.parametrize(
    ("past", "groups"),
    [
        (Lineage(images=("i02",)).joined(Lineage(images=("i04",)), "grandparent"), False),
        (Lineage(images=("elsewhere",), groups=("patient2",)), True),
    ],
)
def test_what_a_grandparent_saw_and_a_held_out_patient_count_too(tmp_path, past, groups):
    finished(tmp_path, "parent", 0, past)
    with pytest.raises(InputError, match="was trained on image i04 or its patient"):
        begin(tmp_path, 0, "parent", table(groups))


# A past of other folds files, as files state it.


def other_past(tmp_path, images: dict[str, str], **past) -> str:
    """The path of a checkpoint that has seen these images, with these fingerprints."""
    path = tmp_path / "other.pt"
    lineage = Lineage(images=tuple(images), fingerprints=tuple(images.values()), **past)
    torch.manual_seed(3)
    checkpoints.save(path, {"model": networks.build(ROW).state_dict()}, lineage)
    return str(path)


def test_an_image_that_is_not_here_and_has_no_fingerprint_makes_the_past_unknown(tmp_path, capsys):
    images = {"i02": "", "png_5": "", "png_6": code("elsewhere")}
    _, lineage = begin(tmp_path, 0, other_past(tmp_path, images))
    assert not lineage.known
    assert "png_5" in capsys.readouterr().out
    old = {"png_6": "1:" + "A" * 86}  # of another version of fingerprints
    _, lineage = begin(tmp_path / "b", 0, other_past(tmp_path, old))
    assert not lineage.known


def test_an_image_that_is_not_here_is_cleared_by_its_fingerprint(tmp_path):
    images = {"png_5": code("elsewhere"), "png_6": "2:"}  # a blank film leaks nothing
    _, lineage = begin(tmp_path, 0, other_past(tmp_path, images))
    assert lineage.known
    assert dict(lineage.pairs)["png_5"] == code("elsewhere")
    assert dict(lineage.pairs)["i02"] == code("i02")


@pytest.mark.parametrize(
    "seen", [{"png_5": code("i04")}, {"png_5": code("i04", 80)}, {"i04": code("elsewhere")},
             {"i02": code("i04")}],
)  # fmt: skip
def test_a_held_out_image_is_refused_by_its_id_and_by_its_pixels(tmp_path, seen):
    with pytest.raises(InputError, match="was trained on image i04 or its patient"):
        begin(tmp_path, 0, other_past(tmp_path, seen))


def test_a_test_image_that_an_ancestor_saw_is_named(tmp_path, capsys):
    path = other_past(tmp_path, {"png_5": code("of the test set")})
    begin(tmp_path, 0, path, test=ImageSet(["t7", "t8"], [code("t7"), code("of the test set")]))
    assert "t8 is the training image png_5" in capsys.readouterr().out


def test_a_copy_of_a_training_image_is_that_image(tmp_path, capsys):
    _, lineage = begin(tmp_path, 0, other_past(tmp_path, {"png_5": code("i02", 30)}))
    assert lineage.known
    assert lineage.pairs.count(("i02", code("i02"))) == 1
    assert "(png_5 is i02)" in capsys.readouterr().out


@pytest.mark.parametrize("as_copy", [False, True])
def test_the_patient_of_a_seen_image_counts_though_its_training_knew_none(tmp_path, as_copy):
    truth = table(groups=True)
    truth.loc[truth["image_id"] == "i02", "group"] = "patient2"  # as i04, which fold 0 holds out
    path = other_past(tmp_path, {"png": code("i02")} if as_copy else {"i02": ""})
    with pytest.raises(InputError, match="was trained on image i04 or its patient"):
        begin(tmp_path, 0, path, truth)


def test_two_pictures_of_one_id_are_both_remembered(tmp_path):
    _, lineage = begin(tmp_path, 0, other_past(tmp_path, {"i02": code("another")}))
    assert {c for i, c in lineage.pairs if i == "i02"} == {code("i02"), code("another")}
    assert lineage.images.count("i02") == 2


def test_a_network_of_this_package_is_never_imagenet_s(tmp_path):
    path = tmp_path / "found.pth"
    torch.save(networks.build(ROW).state_dict(), path)
    assert not begin(tmp_path, 0, str(path))[1].known
    for weights in (str(path), other_past(tmp_path, {"i02": ""}), "none"):
        decided = plan("child", weights)
        given = decided.parameters.model_copy(update={"weights_are": "imagenet"})
        with pytest.raises(InputError, match="WEIGHTS_ARE"):
            initial_weights.check_weights_are(decided.model_copy(update={"parameters": given}))


def test_another_picture_of_an_id_that_is_here_makes_the_selection_unknown(tmp_path):
    path = other_past(tmp_path, {"i02": code("another")}, chosen_on=("i02",))
    assert begin(tmp_path, 0, path)[1].chosen_on is None


@pytest.mark.parametrize("said", [None, "imagenet"])
@pytest.mark.parametrize("published", [False, True])
def test_what_is_known_of_imagenet_s_weights_is_part_of_the_past(
    tmp_path, monkeypatch, said, published, capsys
):
    torch.manual_seed(1)
    path = tmp_path / "weights" / "resnet18.pth"
    path.parent.mkdir()
    torch.save(torchvision.models.resnet18(weights=None).state_dict(), path)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    monkeypatch.setattr(imagenet, "_hashes", lambda encoder: {digest[:8] if published else "0" * 8})
    _, lineage = begin(tmp_path, 0, "imagenet", weights_dir=str(path.parent), weights_are=said)
    assert lineage.known == (published or said is not None)
    assert ("WEIGHTS_ARE imagenet" in capsys.readouterr().out) == (not lineage.known)
    assert lineage.ancestors == (() if lineage.known else ("resnet18.pth",))
    assert lineage.imagenet.startswith("resnet18.pth, ") == lineage.known
    assert lineage.images == ("i02", "i03", "i06", "i07", "i10", "i11")


def test_a_file_that_does_not_tell_makes_the_past_unknown(tmp_path):
    path = tmp_path / "found.pth"
    torch.save(networks.build(ROW).state_dict(), path)
    _, lineage = begin(tmp_path, 0, str(path))
    assert not lineage.known
    assert set(lineage.images) == {"i02", "i03", "i06", "i07", "i10", "i11"}


def test_a_file_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"absent.pth does not exist; .*-p WEIGHTS none"):
        begin(tmp_path, 0, str(tmp_path / "absent.pth"))


# A released model as a start.


@pytest.fixture
def release_of(tmp_path, monkeypatch):
    """Write models/small.safetensors of a network of this row, which has seen these images."""
    monkeypatch.setattr(paths, "models_dir", lambda: tmp_path / "models")
    monkeypatch.setattr(released, "MAX_BYTES", 10**9)

    def write(row: Experiment, images: tuple[str, ...] = ("elsewhere",)) -> Released:
        codes = tuple(map(code, images))
        given = Released(
            name="small", experiment=row, rule=Triplet(0.5, 0, 0.5), gate="none", tta="hflip",
            score={}, licence="", model=networks.build(row),
            lineage=Lineage(images=images, fingerprints=codes, ancestors=("older",)),
        )  # fmt: skip
        given.save(tmp_path / "models" / "small.safetensors")
        return given

    return write


@pytest.mark.parametrize("by_name", [True, False])
def test_a_released_model_starts_a_run_and_its_lineage_comes_along(tmp_path, release_of, by_name):
    given = release_of(ROW)
    name = "small" if by_name else str(tmp_path / "models" / "small.safetensors")
    model, lineage = begin(tmp_path / "work", 0, name)
    weight = given.model.head.logit.weight.half().float()
    assert torch.equal(model.head.logit.weight, weight)
    assert "elsewhere" in lineage.images
    assert (lineage.known, lineage.ancestors) == (True, ("older", "small"))
    folds_file.save(table(), tmp_path / "work" / "folds.csv")
    initial_weights.check(plan("child", name), [0], [tmp_path / "work"])
    with pytest.raises(InputError, match="nor a released model"):
        initial_weights.check(plan("other", "smaller"), [0], [tmp_path / "work"])


def test_a_released_model_that_saw_a_held_out_image_is_refused(tmp_path, release_of):
    release_of(ROW, ("i04",))
    with pytest.raises(InputError, match="WEIGHTS small was trained on image i04"):
        begin(tmp_path / "work", 0, "small")


@pytest.mark.parametrize(
    "changes", [{"decoder_channels": (32,) * 5}, {"network": "Classifier", "label_weight": 1.0}]
)
def test_of_a_released_model_of_another_network_the_encoder_starts_a_run(
    tmp_path, release_of, changes
):
    given = release_of(ROW.model_copy(update=changes))
    model, lineage = begin(tmp_path / "work", 0, "small")
    theirs = given.model.encoder.state_dict()
    for name, tensor in model.encoder.state_dict().items():
        assert torch.equal(tensor, theirs[name].to(torch.float16).to(tensor.dtype)), name
    assert lineage.ancestors == ("older", "small")


def test_a_released_model_of_another_encoder_is_refused(tmp_path, release_of):
    release_of(ROW.model_copy(update={"encoder": "tu-test_efficientnet"}))
    with pytest.raises(InputError, match=r"small.safetensors is of another network"):
        begin(tmp_path / "work", 0, "small")


# What the thresholds stage does with a past.


def predicted(work: Path, run: str, pasts: dict[int, Lineage] | None = None, groups=False) -> None:
    """Both folds of a run with maps of their held-out images, and the folds file."""
    drawn = table(groups)
    folds_file.save(drawn, work / "folds.csv")
    noise = np.random.default_rng(len(run)).integers(0, 90, (12, SIZE, SIZE))
    shown = [
        (i, (rle.decode(text, (SIZE, SIZE)) * 150 + noise[at]).astype(np.uint8))
        for at, (i, text) in enumerate(zip(drawn["image_id"], drawn["rle"], strict=True))
    ]
    for fold in (0, 1):
        kept = [image for image, own in zip(shown, drawn["fold"], strict=True) if own == fold]
        write_fold(work, run, fold, drawn, kept, lineage=(pasts or {}).get(fold))


def search(work: Path, **parameters):
    return stage.run(ThresholdsParameters(work_dir=str(work), bootstrap=100, **parameters))


@pytest.mark.parametrize(
    ("past", "words"),
    [
        ({1: Lineage(images=("i00", "i07"))}, r"leaky/fold1 was trained on image i07 or its pati"),
        ({0: Lineage(images=("x",), groups=("patient4",))}, r"fold0 was trained on image i08 or"),
        ({0: Lineage(images=("i02",)).joined(Lineage(images=("i04",)), "grandparent")},
         r"image i04 .* descends from grandparent"),
    ],
)  # fmt: skip
def test_a_member_that_saw_an_image_or_its_patient_is_refused(tmp_path, past, words):
    predicted(tmp_path, "clean", groups=True)
    predicted(tmp_path, "leaky", past, groups=True)
    for runs in ("leaky", "clean,leaky"):
        with pytest.raises(InputError, match=words):
            search(tmp_path, runs=runs, allow_unknown_past=True)
    assert not (tmp_path / "ensembles").exists()
    assert search(tmp_path, runs="clean").past_known


def test_an_unknown_past_is_refused_unless_asked_for_and_then_not_honest(tmp_path, monkeypatch):
    past = Lineage(images=("i02",)).joined(UNKNOWN, "found.pth")
    predicted(tmp_path, "foundling", {0: past})
    with pytest.raises(InputError, match=r"\(found.pth\) may .* -p ALLOW_UNKNOWN_PAST True"):
        search(tmp_path)
    monkeypatch.setattr(report, "write", real_write)
    result = search(tmp_path, allow_unknown_past=True)
    assert not result.past_known
    rows = [line for line in str(result).splitlines() if line.strip().startswith(("rule,", "last"))]
    assert ["NOT HONEST" in line for line in rows] == [True, True, False]
    assert "honest" not in " ".join(rows).replace("NOT HONEST", "")
    document = json.loads((result.folder / "thresholds.json").read_text())
    assert document["past_known"] is False
    assert "NOT HONEST" in (result.folder / "report.html").read_text(encoding="utf-8")


def test_an_ancestor_s_image_that_folds_csv_lacks_makes_the_past_unknown(tmp_path):
    """As archives of an earlier version have it, which state no fingerprints."""
    past = Lineage(images=("i02",)).joined(Lineage(images=("png_5",)), "grandparent")
    predicted(tmp_path, "foundling", {0: past})
    with pytest.raises(InputError, match=r"png_5 .* -p ALLOW_UNKNOWN_PAST True"):
        search(tmp_path)
    assert not search(tmp_path, allow_unknown_past=True).past_known


def test_an_ancestor_s_image_with_a_fingerprint_was_cleared_when_its_training_began(tmp_path):
    past = Lineage(images=("png_5",), fingerprints=(code("elsewhere"),))
    predicted(tmp_path, "clean", {0: past})
    assert search(tmp_path).past_known


def test_maps_that_state_another_past_than_the_checkpoints_are_refused(tmp_path):
    predicted(tmp_path, "forged")
    folder = fold_run.fold_folder(tmp_path, "forged", 1)
    fold_run.record_lineage(folder, Lineage(images=("i00", "i01", "i04", "i05", "i08", "i09")))
    assert search(tmp_path).past_known
    other = {"lineage_digest": Lineage(images=("i02",)).digest()}
    folder.write_config(folder.read_config().model_copy(update=other))
    with pytest.raises(InputError, match=r"forged/fold1/oof.zip states another lineage"):
        search(tmp_path)


@pytest.mark.parametrize(("groups", "over"), [(True, "patients"), (False, "images")])
def test_folds_without_a_leak_are_honest_over_patients_or_images(tmp_path, groups, over):
    predicted(tmp_path, "clean", groups=groups)
    result = search(tmp_path)
    assert result.past_known
    assert result.search.score > 0.9
    assert "NOT HONEST" not in str(result)
    assert result.honest.resampled == over


def test_a_table_of_groups_is_read_before_any_image(tmp_path):
    decided = plan("child", "none")
    groups = tmp_path / "groups.csv"
    given = decided.parameters.model_copy(update={"groups": str(groups)})
    decided = decided.model_copy(update={"parameters": given})
    with pytest.raises(InputError, match=r"GROUPS .*groups\.csv"):
        initial_weights.check(decided, [0], [tmp_path])
    groups.write_text("n,image,patient\n0,a,p\n")
    with pytest.raises(InputError, match=r"groups\.csv .*'patient'"):
        initial_weights.check(decided, [0], [tmp_path])
    groups.write_text("image,patient\na,p\n")
    initial_weights.check(decided, [0], [tmp_path])
