"""Tests of experiments, parameters and the messages that refuse them."""

from __future__ import annotations

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from papermill.cli import _resolve_type
from pydantic import ValidationError

from kernel_lib.config import (
    Experiment,
    InferenceParameters,
    ThresholdsParameters,
    TrainParameters,
    parse_value,
)
from kernel_lib.errors import InputError


@pytest.mark.parametrize(
    ("name", "nearest"),
    [("SIZES", "SIZE"), ("EPOCH", "EPOCHS"), ("MAX_HOUR", "MAX_HOURS"), ("SEEDS", "SEED"),
     ("DATADIR", "DATA_DIR"), ("NFOLDS", "N_FOLDS")],
)  # fmt: skip
def test_a_misspelt_parameter_is_named_with_the_nearest_name_beside_other_faults(name, nearest):
    message = f"LR = 'x'.*; unknown parameter {name}; the nearest is {nearest}$"
    with pytest.raises(InputError, match=message):
        TrainParameters.from_namespace({"SEED": 1, "LR": "x", name: 3})


@pytest.mark.parametrize(
    ("name", "value"),
    [("SIZE", "1024"), ("SIZE", 1024.0), ("SIZE", "big"), ("SEED", None), ("FOLD", "0"),
     ("DETERMINISTIC", 1), ("DETERMINISTIC", "yes"), ("DATA_DIR", 3), ("LR", "0.1"),
     ("SIZE", True), ("ON_BAD_FILE", "blank"), ("PRECISION", "half"), ("MAX_HOURS", 0),
     ("FOLD", -1), ("N_FOLDS", 1), ("SEED", -1), ("WORKERS", -1), ("DATA_DIR", ""),
     ("WORK_DIR", " "), ("GROUPS", ""), ("EXPERIMENT", ""), ("LOSS", "")],
)  # fmt: skip
def test_an_ill_typed_parameter_is_refused_by_name_and_value(name, value):
    with pytest.raises(InputError) as error:
        TrainParameters.from_namespace({name: value})
    assert f"{name} = {value!r}: " in str(error.value)


@pytest.mark.parametrize("value", [7, 1e5, math.nan])
@pytest.mark.parametrize("name", ["NAME", "DATA_DIR"])
def test_a_number_given_for_text_names_the_option_that_keeps_text(name, value):
    with pytest.raises(InputError, match=rf"{name} = .*-r {name}"):
        TrainParameters.from_namespace({name: value})


def test_an_int_is_accepted_for_a_float():
    parameters = TrainParameters.from_namespace({"MAX_HOURS": 9, "LR": 1})
    assert (parameters.max_hours, parameters.lr) == (9.0, 1.0)


def test_names_that_are_not_upper_case_are_the_notebook_s_own():
    namespace = {"In": [], "Out": {}, "_": 1, "__name__": "x", "_SIZE": 3, "figures": json}
    assert TrainParameters.from_namespace(namespace) == TrainParameters()


@pytest.mark.parametrize("kind", [TrainParameters, ThresholdsParameters, InferenceParameters])
def test_parameters_are_frozen_and_survive_json(kind):
    parameters = kind()
    with pytest.raises(ValidationError):
        parameters.work_dir = "elsewhere"
    assert kind.model_validate(json.loads(parameters.model_dump_json())) == parameters


def test_a_child_differs_from_its_parent_only_in_what_it_states():
    parent = Experiment(name="parent", leaderboard="0.85", lr=0.5)
    child = parent.differing(name="two", size=64)
    assert (child.parent, child.leaderboard, child.lr, child.size) == ("parent", None, 0.5, 64)
    with pytest.raises(ValidationError):
        parent.differing(name="three", sizes=64)
    with pytest.raises(ValidationError):
        parent.differing(name="three", size="64")


@given(
    st.one_of(
        st.sampled_from(["007", "1_000", " 7 ", "nan", "-inf", "1e-4", "True", "true", "None", ""]),
        st.text(max_size=8),
        st.integers().map(str),
        st.floats().map(str),
    )
)
def test_values_are_parsed_as_papermill_parses_them(text: str):
    ours, theirs = parse_value(text), _resolve_type(text)
    assert type(ours) is type(theirs)
    assert ours == theirs or (math.isnan(ours) and math.isnan(theirs))


def test_help_describes_every_parameter_with_type_and_default():
    described = dict(TrainParameters.described())
    assert described.keys() == {name.upper() for name in TrainParameters.model_fields}
    assert described["SIZE"] == "int or None [None]"
    assert described["SAVE_MINUTES"] == "float [10.0]"
    assert described["ON_BAD_FILE"] == "stop, skip [stop]"


@pytest.mark.parametrize("name", ["", "a/b", "a b", "ä"])
def test_a_name_that_is_no_folder_is_refused(name):
    with pytest.raises(InputError, match=f"NAME = {name!r}: "):
        TrainParameters.checked({"name": name})
    with pytest.raises(ValidationError, match="name"):
        Experiment(name=name)


def test_json_may_be_longer_than_other_texts():
    assert TrainParameters.checked({"experiment": "x" * 5000})
    with pytest.raises(InputError, match="DATA_DIR = 'xxx"):
        TrainParameters.checked({"data_dir": "x" * 5000})
