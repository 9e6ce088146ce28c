"""Run folders: what lies where, which runs are meant, and that no two trainings mix."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from kernel_lib import storage
from kernel_lib.artifacts import fold_run
from kernel_lib.artifacts.lineage import UNKNOWN, Lineage
from kernel_lib.config import TrainParameters
from kernel_lib.errors import InputError
from kernel_lib.experiments import EXPERIMENTS
from kernel_lib.plan import TrainPlan, plan_training


def decided(**parameters) -> TrainPlan:
    return plan_training(TrainParameters(**parameters), EXPERIMENTS)


def make(root: Path, run: str, fold: int) -> fold_run.FoldRun:
    folder = fold_run.fold_folder(root, run, fold)
    fold_run.write_or_check_config(folder, decided(), "digest")
    return folder


def test_a_past_knows_images_and_their_patients():
    lineage = Lineage(images=("a", "b"), groups=("p1",))
    assert lineage.saw("a", "")
    assert lineage.saw("c", "p1")
    assert not lineage.saw("c", "p2")
    assert not lineage.saw("c", "")
    assert not Lineage(images=("a",), groups=("",)).saw("c", ""), "no patient is not one patient"


def test_a_child_s_past_holds_its_parent_s_and_unknown_stays_unknown():
    grand = Lineage(images=("a",), groups=("p",))
    parent = Lineage(images=("b",)).joined(grand, "first")
    child = Lineage(images=("c",), groups=("q",)).joined(parent, "second")
    assert child.images == ("a", "b", "c")
    assert child.groups == ("p", "q")
    assert child.ancestors == ("first", "second")
    assert child.known
    assert not Lineage(images=("c",)).joined(UNKNOWN, "found.pth").known
    assert Lineage.model_validate_json(child.model_dump_json()) == child


def test_images_whose_labels_selected_an_epoch_go_down_to_descendants():
    parent = Lineage(images=("a",), chosen_on=()).chosen_by(("h", "g"))
    assert parent.chosen_on == ("g", "h")
    child = Lineage(images=("b",), chosen_on=()).joined(parent, "parent")
    assert child.selected_by(["x", "h"])
    assert not child.selected_by(["a", "b"])


def test_selected_and_last_weights_share_one_digest():
    last = Lineage(images=("a",), chosen_on=())
    assert last.chosen_by(("h",)).digest() == last.digest()
    assert last.digest() != Lineage(images=("b",), chosen_on=()).digest()


def test_whether_an_older_lineage_was_selected_is_not_known():
    older = Lineage.model_validate({"images": ["a"]})
    child = Lineage(images=("b",), chosen_on=("c",)).joined(older, "older")
    for one in (older, child, older.chosen_by(("a",))):
        assert one.chosen_on is None
        assert one.selected_by(["x"])


def test_the_working_folder_wins_over_other_roots(tmp_path):
    work, other = tmp_path / "work", tmp_path / "other"
    make(other, "run", 0), make(other, "run", 1), make(work, "run", 1), make(work, "run", 10)
    found = fold_run.find([work, other], "run")
    assert list(found) == [0, 1, 10]
    assert [f.path.parents[2] for f in found.values()] == [other, work, work]
    assert fold_run.find([work], "none") == {}


def test_a_folder_without_a_configuration_is_no_fold(tmp_path):
    make(tmp_path, "run", 0)
    (tmp_path / "runs/run/fold1").mkdir()
    (tmp_path / "runs/run/foldx").mkdir()
    storage.write_json(tmp_path / "runs/run/foldx/config.json", {})
    assert list(fold_run.find([tmp_path], "run")) == [0]


@pytest.mark.parametrize("left", ["last.pt", "log.jsonl", "oof.zip", "best_epoch001.pt"])
def test_a_fold_whose_configuration_is_gone_is_named(tmp_path, left):
    folder = make(tmp_path, "run", 0)
    (folder.path / "test.zip").touch()
    folder.config.unlink()
    assert fold_run.find([tmp_path], "run") == {}, (
        "inference leaves no more where a fold was elsewhere"
    )
    (folder.path / left).touch()
    assert fold_run.run_names([tmp_path]) == ["run"]
    with pytest.raises(InputError, match=f"^{folder.config} is missing.*restore it, or delete"):
        fold_run.find([tmp_path], "run")


def test_kept_checkpoints_come_by_epoch(tmp_path):
    folder = make(tmp_path, "run", 0)
    for epoch in (12, 3, 100):
        folder.best(epoch).touch()
    folder.last.touch()
    assert folder.kept() == [folder.best(e) for e in (3, 12, 100)]


def test_the_only_run_needs_no_name_and_several_do(tmp_path):
    with pytest.raises(InputError, match=r"no runs under .*: the train stage makes them"):
        fold_run.chosen_runs([tmp_path], None)
    make(tmp_path, "b", 0)
    assert fold_run.chosen_runs([tmp_path], None) == ["b"]
    make(tmp_path, "a", 0)
    with pytest.raises(InputError, match="RUNS: a, b"):
        fold_run.chosen_runs([tmp_path], None)
    assert fold_run.chosen_runs([tmp_path], " b, a,") == ["b", "a"]
    with pytest.raises(InputError, match="RUNS: there is no run 'c'"):
        fold_run.chosen_runs([tmp_path], "a,c")


@pytest.mark.parametrize("wanted", ["", " , "])
def test_an_empty_list_of_runs_is_refused(tmp_path, wanted):
    make(tmp_path, "a", 0)
    with pytest.raises(InputError, match="RUNS"):
        fold_run.chosen_runs([tmp_path], wanted)


def test_the_same_configuration_settles_twice(tmp_path):
    folder = fold_run.fold_folder(tmp_path, "run", 0)
    fold_run.write_or_check_config(folder, decided(), "digest")
    written = folder.config.read_bytes()
    fold_run.write_or_check_config(folder, decided(max_hours=3.0, workers=2, threads=1), "digest")
    assert folder.config.read_bytes() == written
    config = folder.read_config()
    assert (config.fold, config.seed, config.folds_digest) == (0, 3456, "digest")


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"lr": 0.5}, "lr: 0.02 there, 0.5 here"),
        ({"seed": 1}, "seed: 3456 there, 1 here"),
        ({"n_folds": 4}, "n_folds: 5 there, 4 here"),
        ({"deterministic": True}, "deterministic: False there, True here"),
        ({"encoder": "resnet18"}, "encoder: 'resnet34' there, 'resnet18' here"),
    ],
)
def test_another_configuration_in_the_folder_is_refused_with_the_field(tmp_path, change, named):
    folder = fold_run.fold_folder(tmp_path, "run", 0)
    fold_run.write_or_check_config(folder, decided(), "digest")
    other = decided(**change).model_copy(update={"run": decided().run})
    with pytest.raises(InputError, match=named):
        fold_run.write_or_check_config(folder, other, "digest")


def test_other_folds_are_another_configuration(tmp_path):
    folder = fold_run.fold_folder(tmp_path, "run", 0)
    fold_run.write_or_check_config(folder, decided(), "one")
    with pytest.raises(InputError, match="folds_digest: 'one' there, 'two' here"):
        fold_run.write_or_check_config(folder, decided(), "two")


def test_all_folds_of_a_run_share_one_experiment(tmp_path):
    work, other = tmp_path / "work", tmp_path / "other"
    fold_run.check_experiment([work, other], decided(name="short"))
    fold_run.write_or_check_config(
        fold_run.fold_folder(other, "short_seed3456", 1), decided(name="short"), "one"
    )
    fold_run.check_experiment([work, other], decided(name="short", workers=2))
    fold_run.check_experiment([work, other], decided(name="another", lr=0.5))
    with pytest.raises(InputError, match=r"fold1 .*lr: 0.02 there, 0.5 here.*another NAME"):
        fold_run.check_experiment([work, other], decided(name="short", lr=0.5))


def test_prose_is_no_configuration(tmp_path):
    folder = fold_run.fold_folder(tmp_path, "run", 0)
    fold_run.write_or_check_config(folder, decided(), "one")
    config = json.loads(folder.config.read_text())
    config["experiment"] |= {"says": "in other words", "leaderboard": "0.9", "parent": "x"}
    storage.write_json(folder.config, config)
    fold_run.write_or_check_config(folder, decided(), "one")


def test_a_broken_or_missing_configuration_is_named(tmp_path):
    folder = fold_run.fold_folder(tmp_path, "run", 0)
    with pytest.raises(InputError, match=r"config.json is missing: the train stage makes it"):
        folder.read_config()
    for content in ("{", "[]", '{"run": "run", "fold": "0"}'):
        storage.write_text(folder.config, content)
        with pytest.raises(InputError, match=r"config\.json does not fit"):
            folder.read_config()


def test_a_field_that_an_earlier_version_did_not_write_has_its_default(tmp_path):
    folder = make(tmp_path, "run", 0)
    config = json.loads(folder.config.read_text())
    del config["deterministic"], config["experiment"]["keep"]
    storage.write_json(folder.config, config)
    fold_run.write_or_check_config(folder, decided(), "digest")
    with pytest.raises(InputError, match="keep: 3 there, 1 here"):
        fold_run.write_or_check_config(folder, decided(keep=1), "digest")


def test_a_run_without_a_log_has_an_empty_one(tmp_path):
    folder = fold_run.fold_folder(tmp_path, "run", 0)
    assert folder.read_log() == []
    storage.write_text(folder.log, '{"epoch": 1}\n{"epoch": 2}\n')
    assert [line["epoch"] for line in folder.read_log()] == [1, 2]
    storage.write_text(folder.log, '{"epoch": 1}\n{"epo')
    with pytest.raises(InputError, match=r"log.jsonl is damaged .*: run the train stage there"):
        folder.read_log()


def test_a_log_is_read_as_it_was_written(tmp_path):
    """Also fields that are not declared, in their order, and scores that are not finite."""
    folder = make(tmp_path, "run", 0)
    lines = [{"gpu_bytes": 1, "epoch": 1, "dice": float("nan"), "best": False}]
    folder.write_log(lines)
    assert repr(folder.read_log()) == repr(lines)
