"""What may be set: rows, parameters, the plan that joins them, and the words of each refusal."""

from __future__ import annotations

import json

import pytest
from pydantic import ValidationError

from kernel_lib import config
from kernel_lib.config import (
    Experiment,
    InferenceParameters,
    ThresholdsParameters,
    TrainParameters,
    plan,
)
from kernel_lib.errors import InputError
from kernel_lib.experiments import EXPERIMENTS

DEFAULT = "UNetResNet34_512_v1"


def planned(**parameters) -> config.TrainPlan:
    return plan(TrainParameters(**parameters), EXPERIMENTS)


def test_the_default_run_is_named_by_row_and_seed():
    decided = planned()
    assert decided.run == f"{DEFAULT}_seed3456"
    assert decided.experiment == EXPERIMENTS[DEFAULT]
    assert decided.says == ()


@pytest.mark.parametrize(
    ("experiment", "size", "row"),
    [
        (DEFAULT, 1024, "UNetResNet34_1024_v1"),
        (DEFAULT, 768, "UNetResNet34_768_v1"),
        ("UNetResNet34_1024_v1", 512, DEFAULT),
        ("deeplabv3plus_resnet_512_v1", 768, "deeplabv3plus_resnet_768_v1"),
        ("deeplabv3plus_resnet_512_v1", 1024, "deeplabv3plus_resnet_1024_v2"),
    ],
)
def test_size_selects_the_row_that_the_notes_have(experiment, size, row):
    decided = planned(experiment=experiment, size=size)
    assert decided.run == f"{row}_seed3456"
    assert decided.experiment == EXPERIMENTS[row]
    assert decided.says == (f"SIZE {size} selects the row {row}",)


@pytest.mark.parametrize("size", [64, 128, 256, 640])
def test_a_size_that_the_notes_lack_is_an_override_and_says_so(size):
    decided = planned(size=size)
    assert decided.run == f"{DEFAULT}_size{size}_seed3456"
    assert decided.experiment == EXPERIMENTS[DEFAULT].model_copy(update={"size": size})
    assert decided.says == (f"the notes have no {DEFAULT} at {size}: {DEFAULT} with another size",)


def test_the_row_s_own_size_changes_nothing():
    assert planned(size=512).run == f"{DEFAULT}_seed3456"


def test_every_override_shows_in_the_name_and_no_two_alike():
    values = {
        "size": 64, "encoder": "resnet18", "weights": "none", "epochs": 3, "min_epochs": 1,
        "patience": 2, "batch_size": 4, "accumulate": 1, "optimizer": "adamw", "lr": 0.001,
        "schedule": "poly", "augment": "none", "ema_decay": 0.9, "freeze_batch_norm": True,
        "monitor": "val_loss", "keep": 1, "tta": "none",
    }  # fmt: skip
    assert tuple(values) == config.OVERRIDES
    names = set()
    for field, value in values.items():
        extra = {"epochs": 50} if field == "min_epochs" else {}
        decided = planned(**{field: value}, **extra)
        assert getattr(decided.experiment, field) == value
        assert config.suffix(field, value) in decided.run
        names.add(decided.run)
    assert len(names) == len(values)
    together = planned(**values)
    assert {k: getattr(together.experiment, k) for k in values} == values
    assert together.run == (
        f"{DEFAULT}_size64_resnet18_fromnone_epochs3_min1_patience2_batch4_acc1_adamw_lr0.001_poly"
        "_augmentnone_ema0.9_frozenbnTrue_monitorval-loss_keep1_ttanone_seed3456"
    )


def test_an_override_that_says_what_the_row_says_adds_no_suffix():
    assert planned(encoder="resnet34", lr=0.02).run == f"{DEFAULT}_seed3456"


def test_a_file_of_weights_makes_a_name_that_is_one_folder():
    run = planned(weights="/some/where/resnet 34.pth").run
    assert "/" not in run
    assert " " not in run


@pytest.mark.parametrize(("epochs", "expected"), [(35, 22), (7, 4), (2, 1), (1, 0), (140, 90)])
def test_epochs_alone_scale_min_epochs_and_say_so(epochs, expected):
    decided = planned(epochs=epochs)
    assert decided.experiment.min_epochs == expected
    assert f"min_epochs scaled from 45 of 70 to {expected}" in decided.says[0]
    assert decided.run == f"{DEFAULT}_epochs{epochs}_seed3456"


def test_min_epochs_given_is_taken_as_it_is():
    decided = planned(epochs=20, min_epochs=12)
    assert (decided.experiment.epochs, decided.experiment.min_epochs) == (20, 12)
    assert decided.says == ()
    assert decided.run == f"{DEFAULT}_epochs20_min12_seed3456"


@pytest.mark.parametrize("wrong", [{"min_epochs": 70}, {"epochs": 5, "min_epochs": 5}])
def test_min_epochs_not_below_epochs_is_refused(wrong):
    with pytest.raises(InputError, match=r"min_epochs \d+ is not below epochs \d+.*lower MIN_EPO"):
        planned(**wrong)


@pytest.mark.parametrize(("size", "near"), [(500, 512), (1000, 992), (33, 32)])
def test_a_size_not_divisible_by_32_is_refused_with_the_nearest(size, near):
    with pytest.raises(InputError, match=f"SIZE = {size}: .* the nearest that is: {near}"):
        planned(size=size)


@pytest.mark.parametrize(
    ("field", "value"),
    [("size", 0), ("size", 4096), ("batch_size", 0), ("lr", 0.0), ("lr", -1.0), ("keep", 0),
     ("epochs", 0), ("accumulate", 0), ("ema_decay", 1.0), ("patience", 0)],
)  # fmt: skip
def test_impossible_numbers_are_refused_by_name_and_value(field, value):
    with pytest.raises(InputError, match=f"{field.upper()} = {value}: "):
        planned(**{field: value})


def test_an_unknown_experiment_is_refused_with_the_nearest():
    with pytest.raises(InputError, match=r"'UNetResnet34_512_v1' is no row.*UNetResNet34_512_v1"):
        planned(experiment="UNetResnet34_512_v1")


@pytest.mark.parametrize(
    ("name", "nearest"),
    [("SIZES", "SIZE"), ("EPOCH", "EPOCHS"), ("MAX_HOUR", "MAX_HOURS"), ("SEEDS", "SEED"),
     ("DATADIR", "DATA_DIR"), ("NFOLDS", "N_FOLDS")],
)  # fmt: skip
def test_a_misspelt_parameter_stops_with_the_nearest_name(name, nearest):
    message = f"unknown parameter {name}; the nearest is {nearest}$"
    with pytest.raises(InputError, match=message):
        TrainParameters.from_namespace({"SEED": 1, name: 3})


@pytest.mark.parametrize(
    ("name", "value"),
    [("SIZE", "1024"), ("SIZE", 1024.0), ("SIZE", "big"), ("SEED", None), ("FOLD", "0"),
     ("DETERMINISTIC", 1), ("DETERMINISTIC", "yes"), ("DATA_DIR", 3), ("LR", "0.1"),
     ("SIZE", True), ("ON_BAD_FILE", "blank"), ("PRECISION", "half"), ("MAX_HOURS", 0),
     ("FOLD", -1), ("N_FOLDS", 1), ("SEED", -1), ("WORKERS", -1)],
)  # fmt: skip
def test_an_ill_typed_parameter_is_refused_by_name_and_value(name, value):
    with pytest.raises(InputError) as error:
        TrainParameters.from_namespace({name: value})
    assert f"{name} = {value!r}: " in str(error.value)


def test_all_faults_are_told_at_once():
    with pytest.raises(InputError, match=r"SIZE = 'x'.*; unknown parameter SEEDS"):
        TrainParameters.from_namespace({"SIZE": "x", "SEEDS": 1})


def test_whole_numbers_serve_where_papermill_cannot_tell_them_from_fractions():
    parameters = TrainParameters.from_namespace({"MAX_HOURS": 9, "LR": 1})
    assert (parameters.max_hours, parameters.lr) == (9.0, 1.0)


def test_names_that_are_not_upper_case_are_the_notebook_s_own():
    namespace = {"In": [], "Out": {}, "_": 1, "__name__": "x", "_SIZE": 3, "figures": plan}
    assert TrainParameters.from_namespace(namespace) == TrainParameters()


@pytest.mark.parametrize("kind", [TrainParameters, ThresholdsParameters, InferenceParameters])
def test_parameters_are_frozen_and_survive_json(kind):
    parameters = kind()
    with pytest.raises(ValidationError):
        parameters.work_dir = "elsewhere"
    assert kind.model_validate(json.loads(parameters.model_dump_json())) == parameters


def test_a_child_differs_from_its_parent_in_what_it_states_alone():
    parent = Experiment(name="one", leaderboard="0.85", lr=0.5)
    child = parent.differing(name="two", size=64)
    assert (child.parent, child.leaderboard, child.lr, child.size) == ("one", None, 0.5, 64)
    with pytest.raises(ValidationError):
        parent.differing(name="three", sizes=64)
    with pytest.raises(ValidationError):
        parent.differing(name="three", size="64")


def test_a_row_without_a_loss_is_refused():
    with pytest.raises(ValidationError, match="loss"):
        Experiment(name="x", loss={})
