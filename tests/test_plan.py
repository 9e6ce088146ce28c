"""Tests of plans: names, sizes, overrides, and what a run needs first."""

from __future__ import annotations

import pytest

from kernel_lib import plan as plans
from kernel_lib.config import Experiment, TrainParameters
from kernel_lib.errors import InputError
from kernel_lib.experiments import EXPERIMENTS
from kernel_lib.plan import TrainPlan, plan_training

DEFAULT = "UNetResNet34_512_v1"


def planned(**parameters) -> TrainPlan:
    return plan_training(TrainParameters(**parameters), EXPERIMENTS)


def test_the_default_run_is_named_by_experiment_and_seed():
    result = planned()
    assert result.run == f"{DEFAULT}_seed3456"
    assert result.experiment == EXPERIMENTS[DEFAULT]
    assert result.notes == ()


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
def test_size_selects_the_experiment_of_that_size(experiment, size, row):
    result = planned(experiment=experiment, size=size)
    assert result.run == f"{row}_seed3456"
    assert result.experiment == EXPERIMENTS[row]
    assert result.notes == (f"SIZE {size} selects the experiment {row}",)


@pytest.mark.parametrize("size", [64, 128, 256, 640])
def test_a_size_without_an_experiment_is_an_override_with_a_note(size):
    result = planned(size=size)
    assert result.run == f"{DEFAULT}_size{size}_seed3456"
    assert result.experiment == EXPERIMENTS[DEFAULT].model_copy(update={"size": size})
    (note,) = result.notes
    assert f"{DEFAULT} with another size" in note


def test_every_override_shows_in_the_name_and_no_two_alike():
    values = {
        "size": 64, "encoder": "resnet18", "weights": "none", "loss": "bce+dice",
        "sampling": "hard", "epochs": 3, "min_epochs": 1, "patience": 2, "batch_size": 4,
        "accumulate": 1, "optimizer": "adamw", "lr": 0.001, "schedule": "poly",
        "augment": "none", "ema_decay": 0.9, "freeze_batch_norm": True,
        "monitor": "val_loss", "keep": 1, "tta": "none",
    }  # fmt: skip
    assert tuple(values) == plans.OVERRIDES
    parsed = values | {"loss": {"bce": 1.0, "dice": 1.0}}
    names = set()
    for field, value in values.items():
        extra = {"epochs": 50} if field == "min_epochs" else {}
        result = planned(**{field: value}, **extra)
        assert getattr(result.experiment, field) == parsed[field]
        assert plans.suffix(field, value) in result.run
        names.add(result.run)
    assert len(names) == len(values)
    together = planned(**values)
    assert {k: getattr(together.experiment, k) for k in values} == parsed
    assert together.run == (
        f"{DEFAULT}_size64_resnet18_fromnone_lossbce+dice_samplinghard_epochs3_min1_patience2_batch4"
        "_acc1_adamw_lr0.001_poly_augmentnone_ema0.9_frozenbnTrue_monitorval-loss_keep1_ttanone_seed3456"
    )


@pytest.mark.parametrize(
    ("given", "run"),
    [
        ({"size": 512}, f"{DEFAULT}_seed3456"),
        ({"encoder": "resnet34", "lr": 0.02}, f"{DEFAULT}_seed3456"),
        ({"name": DEFAULT}, f"{DEFAULT}_seed3456"),
        ({"weights": "/a/resnet 34.pth"}, f"{DEFAULT}_froma-resnet-34.pth_seed3456"),
    ],
)
def test_a_run_s_name_shows_what_differs_and_is_one_folder(given, run):
    assert planned(**given).run == run


@pytest.mark.parametrize(("epochs", "expected"), [(35, 22), (7, 4), (2, 1), (1, 0), (140, 90)])
def test_epochs_scale_min_epochs_with_a_note(epochs, expected):
    result = planned(epochs=epochs)
    assert result.experiment.min_epochs == expected
    assert f"min_epochs scaled from 45 of 70 to {expected}" in result.notes[0]
    assert result.run == f"{DEFAULT}_epochs{epochs}_seed3456"
    given = planned(epochs=epochs, min_epochs=epochs - 1)
    assert (given.experiment.min_epochs, given.notes) == (epochs - 1, ())
    assert given.run == f"{DEFAULT}_epochs{epochs}_min{epochs - 1}_seed3456"


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"min_epochs": 70}, r"min_epochs 70 is not below epochs 70.*lower MIN_EPOCHS"),
        ({"epochs": 5, "min_epochs": 5}, "min_epochs 5 is not below epochs 5"),
        ({"size": 500}, "SIZE = 500: .* the nearest is 512"),
        ({"size": 1000}, "SIZE = 1000: .* the nearest is 992"),
        ({"size": 33}, "SIZE = 33: .* the nearest is 32"),
        *(
            ({field: value}, f"{field.upper()} = {value}: ")
            for field, value in [
                ("size", 0), ("size", 4096), ("batch_size", 0), ("lr", 0.0), ("lr", -1.0),
                ("keep", 0), ("epochs", 0), ("accumulate", 0), ("ema_decay", 1.0), ("patience", 0),
            ]
        ),
    ],
)  # fmt: skip
def test_impossible_numbers_are_refused_by_name_and_value(wrong, words):
    with pytest.raises(InputError, match=words):
        planned(**wrong)


def test_an_unknown_experiment_is_refused_with_the_nearest():
    with pytest.raises(InputError, match=r"'UNetResnet34_512_v1' is unknown.*UNetResNet34_512_v1"):
        planned(experiment="UNetResnet34_512_v1")


def needed(result: TrainPlan) -> list[str]:
    return [plan.run for plan in result.needs()]


def test_weights_that_name_an_experiment_are_its_run():
    result = planned(experiment="UNetResNet34_512_v3", seed=7, fold=1)
    assert result.run == "UNetResNet34_512_v3_seed7"
    assert result.experiment.weights == "UNetResNet34_512_v1_seed7"
    assert result.parent.experiment == EXPERIMENTS["UNetResNet34_512_v1"]
    assert (result.parent.parameters.fold, result.gate) == (1, None)
    assert needed(result) == ["UNetResNet34_512_v1_seed7"]


def test_overrides_reach_the_parents_but_not_where_they_start_or_what_they_learn():
    result = planned(
        experiment="UNetResNet34_512_v3", size=64, epochs=2, encoder="resnet18", loss="dice",
        sampling="hard", monitor="val_loss", parent_weights="none",
    )  # fmt: skip
    assert result.run == (
        "UNetResNet34_512_v3_size64_resnet18_lossdice_samplinghard_epochs2_monitorval-loss_seed3456"
    )
    assert needed(result) == ["UNetResNet34_512_v1_size64_resnet18_fromnone_epochs2_seed3456"]
    assert result.parent.experiment.loss == {"bce": 1.0}


def test_weights_given_take_the_parent_s_place():
    result = planned(experiment="UNetResNet34_512_v3", weights="none")
    assert (result.parent, result.experiment.weights) == (None, "none")
    other = planned(experiment="UNetResNet34_512_v3", weights="UNetResNet34_512_v2")
    assert needed(other) == ["UNetResNet34_512_v2_seed3456"], "an experiment's name is its run"


def test_a_warm_start_keeps_its_parent_s_own_size():
    name = "deeplabv3plus_resnet_1024_v1"
    for result in (planned(experiment=name), planned(experiment=name, size=1024)):
        assert result.run == f"{name}_seed3456"
        assert needed(result) == ["deeplabv3plus_resnet_512_v1_seed3456"]
        assert result.parent.experiment.size == 512


def test_a_gated_experiment_needs_its_classifier():
    result = planned(experiment="two_step", weights="none", parent_weights="none")
    assert needed(result) == ["two_step_classifier_512_v1_fromnone_seed3456"]
    assert result.experiment.gate == result.gate.run
    assert result.parent is None


def test_chains_are_in_the_order_of_training_and_name_no_run_twice():
    rows = {"a": Experiment(name="a", weights="none")}
    rows["b"] = rows["a"].differing(name="b", weights="a")
    rows["c"] = rows["a"].differing(name="c", weights="b", gate="a")
    result = plan_training(TrainParameters(experiment="c", seed=1), rows)
    assert needed(result) == ["a_seed1", "b_seed1"]


def test_the_words_that_make_a_parent_are_a_command_that_names_it():
    result = planned(experiment="UNetResNet34_512_v3", size=64, fold=2, parent_weights="none")
    words = plans.how_to_make(result.parent)
    assert words.startswith(
        "train it first with -p EXPERIMENT UNetResNet34_512_v1 -p FOLD 2 -p SIZE 64 -p WEIGHTS none"
    )
    given = dict(zip(*[iter(words.split(", or")[0].removeprefix("train it first with -p ")
                            .replace(" -p ", " ").split())] * 2, strict=True))  # fmt: skip
    parameters = {k.lower(): int(v) if v.isdigit() else v for k, v in given.items()}
    assert planned(**parameters).run == result.parent.run


@pytest.mark.parametrize(
    ("text", "weights"),
    [
        ("bce", {"bce": 1.0}),
        ("bce+dice", {"bce": 1.0, "dice": 1.0}),
        ("3*bce + dice+4*focal", {"bce": 3.0, "dice": 1.0, "focal": 4.0}),
        ("0.5*lovasz", {"lovasz": 0.5}),
    ],
)
def test_a_loss_is_a_sum_of_names_with_weights(text, weights):
    result = planned(experiment="UNetResNet34_512_v6", loss=text)
    assert result.experiment.loss == weights
    assert result.experiment.loss_options == {}, "they were for the experiment's loss"


@pytest.mark.parametrize("text", ["+", "bce+", "two*bce", "bce+bce", "nan*bce", "*bce"])
def test_a_malformed_loss_is_refused(text):
    with pytest.raises(InputError, match=r"LOSS .*; write names with weights"):
        planned(loss=text)


def test_a_name_takes_the_place_of_experiment_and_overrides():
    result = planned(name="short", size=64, lr=0.5, epochs=3, seed=7)
    assert result.run == "short_seed7"
    same = planned(size=64, lr=0.5, epochs=3, seed=7)
    assert result.experiment == same.experiment
    assert result.parameters.experiment == DEFAULT


def test_a_name_is_the_run_s_own_and_not_its_parents():
    result = planned(name="short", experiment="UNetResNet34_512_v3", size=64)
    assert result.run == "short_seed3456"
    assert needed(result) == ["UNetResNet34_512_v1_size64_seed3456"]
    assert "NAME" not in plans.how_to_make(result.parent)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"name": DEFAULT, "lr": 0.5}, f"NAME {DEFAULT} is a shipped experiment"),
        ({"name": DEFAULT, "size": 1024}, f"NAME {DEFAULT} is a shipped experiment"),
        ({"name": "UNetResNet34_512_v2"}, "NAME UNetResNet34_512_v2 is a shipped experiment"),
        ({"name": "UNetResNet34_512_v1_size64", "size": 64, "experiment": "UNetResNet34_512_v3"},
         "NAME UNetResNet34_512_v1_size64 is the name of a run that this one needs"),
        ({"name": "x" * 200}, "at most 200"),
    ],
)  # fmt: skip
def test_a_name_of_another_run_is_refused(given, words):
    with pytest.raises(InputError, match=words):
        planned(**given)


def test_too_many_overrides_are_refused_and_a_name_is_the_fix():
    weights = f"{'x' * 190}.pth"
    with pytest.raises(InputError, match=r"at most 200.*-p NAME SHORT"):
        planned(weights=weights)
    assert planned(weights=weights, name="short").run == "short_seed3456"
