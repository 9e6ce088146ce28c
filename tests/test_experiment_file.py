"""Tests of a user's own experiments as JSON, and of each fault in them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from kernel_lib import experiment_file
from kernel_lib.artifacts import fold_run
from kernel_lib.config import LONGEST_JSON, Experiment, TrainParameters
from kernel_lib.errors import InputError
from kernel_lib.experiments import EXPERIMENTS
from kernel_lib.kaggle import paths
from kernel_lib.plan import TrainPlan, how_to_make, plan_training
from kernel_lib.stages import train
from tools.phantoms import competition

UNET = "UNetResNet34_512_v1"
MINE = {"name": "mine_384", "parent": UNET, "size": 384, "lr": 0.5}
CHAIN = [
    {"name": "gate", "network": "Classifier", "label_weight": 1.0, "monitor": "auc"},
    {"name": "first", "parent": UNET, "weights": "none"},
    {"name": "second", "parent": "first", "weights": "first", "gate": "gate"},
]


def planned(rows: dict | list, **parameters) -> TrainPlan:
    return plan_training(TrainParameters(experiment=json.dumps(rows), **parameters), EXPERIMENTS)


def test_an_experiment_is_a_difference_from_its_parent():
    result = planned(MINE, seed=7)
    assert result.run == "mine_384_seed7"
    expected = EXPERIMENTS[UNET].differing(name="mine_384", size=384, lr=0.5, says="")
    assert result.experiment == expected
    assert result.experiment_name == "mine_384"


def test_an_experiment_without_a_parent_differs_from_the_defaults():
    row = {"name": "mine", "decoder_channels": [64, 48], "sampling_options": {"start": 0.5}}
    expected = Experiment(name="mine", decoder_channels=(64, 48), sampling_options={"start": 0.5})
    assert planned(row).experiment == expected


def test_overrides_and_sizes_apply_to_the_experiment_itself():
    result = planned(MINE, size=512, lr=0.02)
    assert result.run == "mine_384_size512_lr0.02_seed3456"
    assert result.experiment.name == "mine_384", "not the shipped experiment of that size"


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"loss": {"dice": 1.0}}, {}),
        ({"loss": {"weighted_bce": 1.0}}, {"weighted_bce": {"positive": 0.25, "negative": 0.75}}),
        ({"loss": {"dice": 1.0}, "loss_options": {"dice": {"smooth": 2.0}}},
         {"dice": {"smooth": 2.0}}),
    ],
)  # fmt: skip
def test_options_of_another_loss_are_not_inherited(changes, expected):
    result = planned({"name": "mine", "parent": "UNetResNet34_512_v6", **changes})
    assert result.experiment.loss_options == expected


def test_experiments_of_a_list_refer_to_each_other_and_the_last_is_trained():
    result = planned(CHAIN, seed=1, fold=0)
    assert result.run == "second_seed1"
    assert result.experiment.weights == "first_seed1"
    assert result.experiment.gate == "gate_seed1"
    assert [plan.run for plan in result.needs()] == ["first_seed1", "gate_seed1"]
    reversed_list = planned([CHAIN[2], CHAIN[0], CHAIN[1]], seed=1, fold=0)
    assert reversed_list.run == "first_seed1", "order is free, but for the last"


def test_the_parameters_of_a_needed_run_train_it_alone():
    result = planned(CHAIN, seed=1, fold=0)
    for needed in result.needs():
        assert plan_training(needed.parameters, EXPERIMENTS) == needed
    assert list(experiment_file.read(result.parent.parameters.experiment)) == ["first"]
    assert f"-p EXPERIMENT '{result.parent.parameters.experiment}' " in how_to_make(result.parent)


def test_a_shipped_parent_in_training_is_named_as_such():
    result = planned({"name": "mine", "parent": UNET, "weights": "UNetResNet34_512_v2"})
    assert result.parent.parameters.experiment == "UNetResNet34_512_v2"
    assert result.experiment.weights == "UNetResNet34_512_v2_seed3456"


def test_a_copy_of_a_shipped_experiment_keeps_its_name():
    row = EXPERIMENTS["UNetResNet34_512_v2"]
    given = json.loads(row.model_dump_json()) | {"says": "in other words"}
    assert planned(given).run == f"{row.name}_seed3456"


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"encodr": "resnet18"}, "EXPERIMENT mine: unknown field encodr; the nearest is encoder"),
        ({"size": "512"}, "EXPERIMENT mine: size = '512': Input should be a valid integer"),
        ({"size": 500}, "size = 500: .*the nearest is 512"),
        ({"lr": 0}, "lr = 0: Input should be greater than 0"),
        ({"epochs": 3}, "min_epochs 45 is not below epochs 3"),
        ({"decoder_channels": [64, 8]}, "decoder_channels = 8: .* greater than or equal to 16"),
        ({"loss": {}}, "loss = {}: "),
        ({"self": 1}, "unknown field self"),
        ({"parent": "UNetResNet34_512_v7"}, "parent 'UNetResNet34_512_v7' is unknown.*UNetResNet"),
        ({"parent": 5}, "parent = 5: give an experiment's name"),
        ({"parent": "mine"}, "EXPERIMENT mine → mine: a cycle by parent"),
        ({"weights": "mine"}, "EXPERIMENT mine → mine: a cycle by weights or gate"),
        ({"gate": "mine", "label_weight": 1.0}, "mine → mine: a cycle by weights or gate"),
        ({"gate": "two_step_classifer"}, "gate .*; nearest: two_step_classifier_"),
        ({"gate": UNET}, f"gate {UNET} predicts no label"),
        ({"name": "a/b"}, "EXPERIMENT a/b: name = 'a/b': "),
        ({"name": "mine_384"}, "mine_384 has 384 in its name, but its size is 512"),
        ({"name": "mine_384_v1"}, "mine_384_v1 has 384 in its name"),
        ({"name": "mine_512_384"}, "mine_512_384 has 384 in its name"),
        ({"name": UNET}, f"{UNET} is the name of a shipped experiment"),
        ({"name": "imagenet"}, "name 'imagenet' is a value of weights"),
        ({"name": ""}, "EXPERIMENT has no name"),
        ({"name": 5}, "EXPERIMENT has no name"),
    ],
)  # fmt: skip
def test_a_fault_of_an_experiment_is_named(row, words):
    with pytest.raises(InputError, match=words):
        planned({"name": "mine", "lr": 0.5} | row)


@pytest.mark.parametrize("name", ["mine_v2", "mine_100", "mine_2024", "mine384", "mine_384px"])
def test_a_number_that_is_no_size_is_part_of_the_name(name):
    assert planned({"name": name}).experiment_name == name


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ([{"name": "a"}, {"lr": 0.1}], "EXPERIMENT 2 of 2 has no name"),
        ([{"name": "a"}, {"name": "a"}], "a occurs twice"),
        ([{"name": "a", "parent": "b"}, {"name": "b", "parent": "a"}], "cycle by parent"),
        ([{"name": "a", "weights": "b"}, {"name": "b", "weights": "a"}], "cycle by weights"),
        # b starts from itself, as it inherits
        ([{"name": "a", "weights": "b"}, {"name": "b", "parent": "a"}], "cycle by weights"),
        ([{"name": "first"}, {"name": "b", "parent": "frist"}], "nearest: first"),
        ([], "without an experiment"),
        ([1], "without an experiment"),
    ],
)  # fmt: skip
def test_a_fault_of_a_list_is_named(rows, words):
    with pytest.raises(InputError, match=words):
        planned(rows)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", "EXPERIMENT is not valid JSON: Expecting property name"),
        ('{"name": "a", "name": "b"}', "it holds name twice"),
        ('{"name": "a", "lr": NaN}', "NaN is not a finite number"),
        ('{"name": "a", "lr": 1e999}', "lr = inf: Input should be a finite number"),
        ("[" * 100_000, "nested too deep"),
    ],
)
def test_text_that_is_no_json_is_refused(text, words):
    with pytest.raises(InputError, match=words):
        plan_training(TrainParameters().model_copy(update={"experiment": text}), EXPERIMENTS)


def test_a_file_s_text_takes_the_place_of_its_path(tmp_path):
    path = tmp_path / "mine.json"
    path.write_text(json.dumps(MINE, indent=2))
    assert json.loads(paths.experiment_text(str(path))) == MINE
    assert paths.experiment_text(json.dumps(MINE)) == json.dumps(MINE)
    assert paths.experiment_text(UNET) == UNET


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (None, "mine.json does not exist"),
        ("UNet", "mine.json: EXPERIMENT is not "),
        ('"UNet"', "mine.json: EXPERIMENT is JSON without an experiment"),
        ('{"name": "a", "says": "%s"}' % ("x" * LONGEST_JSON), "mine.json: .* characters"),
        (b"\xff", "mine.json cannot be read"),
    ],
)
def test_a_file_without_an_experiment_is_refused_by_its_path(tmp_path, text, words):
    path: Path = tmp_path / "mine.json"
    if text is not None:
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(InputError, match=words):
        train.run(TrainParameters(experiment=str(path)))


@pytest.mark.parametrize(
    ("changes", "words"),
    [({"encoder": "resnet35"}, "resnet35"), ({"network": "UNt"}, "UNt"),
     ({"loss": {"dise": 1}}, "dise"), ({"sampling": "al"}, "'al'"), ({"augment": "x"}, "x"),
     ({"sampling_options": {"a": 1}}, "'a'")],
)  # fmt: skip
def test_names_are_checked_before_any_data_is_read(tmp_path, changes, words):
    text = json.dumps({"name": "mine", "weights": "none"} | changes)
    with pytest.raises(InputError, match=words):
        train.run(TrainParameters(experiment=text, work_dir=str(tmp_path), device="cpu"))


@pytest.mark.slow
def test_a_chain_of_one_s_own_is_trained_searched_submitted_and_viewed(project_root, tmp_path):
    """Through the command line and through papermill, on phantoms."""
    competition.write_competition(
        tmp_path / "data", 24, 3, size=64, seed=1, difficulty=0.1, positives=0.5, workers=1,
    )  # fmt: skip
    tiny = {"parent": "demo_UNetResNet10_128_v1", "encoder": "tu-test_resnet", "size": 64}
    tiny |= {"epochs": 2, "min_epochs": 1}
    label = {"network": "Classifier", "label_weight": 1.0, "monitor": "auc"}
    rows = [
        {"name": "first_64", **tiny},
        {"name": "gate_64", **tiny, **label},
        {"name": "second_64", **tiny, "weights": "first_64", "gate": "gate_64"},
    ]
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    (tmp_path / "row.json").write_text(json.dumps(rows[0]))
    places = {"WORK_DIR": "work", "CACHE_DIR": "cache", "DATA_DIR": "data"}
    where = [a for name, to in places.items() for a in ("-p", name, str(tmp_path / to))]
    small = ["-p", "THREADS", "1", "-p", "DEVICE", "cpu", *where]
    train_small = ["-p", "N_FOLDS", "2", "-p", "FOLD", "0", *small]
    environment = os.environ | {"KERNEL_LIB_MOUNTS": str(tmp_path / "none")}

    def run(*arguments: str, status: int = 0) -> subprocess.CompletedProcess:
        done = subprocess.run(
            [sys.executable, "-m", *arguments], cwd=project_root, env=environment, check=False,
            capture_output=True, text=True,
        )  # fmt: skip
        assert done.returncode == status, done.stderr
        return done

    given = ["-p", "EXPERIMENT", str(tmp_path / "rows.json")]
    refused = run("kernel_lib", "train", *given, *train_small, status=1)
    assert "second_64_seed3456 starts from fold 0 of first_64_seed3456" in refused.stderr
    run("kernel_lib", "train", *given, "-p", "WITH_PARENTS", "True", *train_small)
    named = ["-p", "EXPERIMENT", str(tmp_path / "row.json"), "-p", "NAME", "short"]
    notebook = ["notebooks/train.ipynb", str(tmp_path / "out.ipynb"), "--no-progress-bar"]
    run("papermill", *notebook, *named, *train_small)
    names = ["first_64_seed3456", "gate_64_seed3456", "second_64_seed3456", "short_seed3456"]
    assert fold_run.run_names([tmp_path / "work"]) == names
    other = run("kernel_lib", "train", *named, "-p", "LR", "0.5", *train_small, status=1)
    assert "lr: 0.001 there, 0.5 here" in other.stderr
    both = ["-p", "RUNS", "second_64_seed3456,short_seed3456", "-p", "ENSEMBLE", "both"]
    run("kernel_lib", "thresholds", *both, "-p", "BOOTSTRAP", "100", *where[:3])
    run("kernel_lib", "inference", "-p", "ENSEMBLE", "both", *small)
    ensemble = tmp_path / "work" / "ensembles" / "both"
    assert len((ensemble / "submission.csv").read_text().splitlines()) == 4
    run("kernel_lib", "view", str(ensemble), "-o", str(tmp_path / "viewer.html"))
    gathered = tmp_path / "gathered"
    run("kernel_lib", "gather", str(tmp_path / "work"), "--into", str(gathered))
    assert fold_run.run_names([gathered]) == names
