"""Baked parameters: read and written as papermill does, and refused before a push."""

from __future__ import annotations

from pathlib import Path

import nbformat
import papermill
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kernel_build import parameters
from kernel_lib.errors import InputError

NAMES = {
    "SIZE": "Optional[int]",
    "SEED": "int",
    "MAX_HOURS": "Optional[float]",
    "WEIGHTS": "Optional[str]",
    "DETERMINISTIC": "bool",
    "EITHER": "Union[int, str, None]",
    "CHOICE": "Literal['mean', 'vote']",
    "FOLDS": "List[int]",
    "FREE": "",
}


VALUES = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False), st.text())


@given(st.dictionaries(st.sampled_from(["SIZE", "RATE", "NAME"]), VALUES))
def test_the_injected_cell_gives_back_the_values(values: dict):
    namespace: dict = {}
    exec(parameters.cell_source(values), namespace)
    assert {name: namespace[name] for name in values} == values


def test_the_injected_cell_reads_as_papermill_s(tmp_path: Path):
    values = {"SIZE": 1024, "RATE": 0.001, "DETERMINISTIC": True, "FOLD": None}
    notebook = {
        "cells": [],
        "metadata": {"kernelspec": {"display_name": "P", "language": "python", "name": "python3"}},
        "nbformat": 4,
        "nbformat_minor": 4,
    }
    nbformat.write(nbformat.from_dict(notebook), tmp_path / "in.ipynb")
    made = papermill.execute_notebook(
        str(tmp_path / "in.ipynb"), None, parameters=values, prepare_only=True, progress_bar=False
    )
    assert parameters.cell_source(values).strip() == made.cells[0].source.strip()


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("SIZE", "1024", 1024), ("SIZE", "None", None), ("SEED", "007", 7), ("MAX_HOURS", "9", 9),
        ("MAX_HOURS", "8.5", 8.5), ("WEIGHTS", "none", "none"), ("DETERMINISTIC", "True", True),
        ("EITHER", "x", "x"), ("CHOICE", "vote", "vote"), ("FREE", "anything", "anything"),
    ],
)  # fmt: skip
def test_a_fitting_value_is_taken(name: str, text: str, value: object):
    assert parameters.check([(name, text)], NAMES, "n") == {name: value}


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("SIZE", "large"), ("SIZE", "512.0"), ("SIZE", "True"), ("SEED", "None"),
        ("MAX_HOURS", "nine"), ("WEIGHTS", "7"), ("DETERMINISTIC", "1"), ("DETERMINISTIC", "true"),
        ("EITHER", "0.5"), ("CHOICE", "median"), ("FOLDS", "[0,1]"),
    ],
)  # fmt: skip
def test_an_ill_typed_value_is_refused_with_the_type(name: str, text: str):
    with pytest.raises(InputError) as caught:
        parameters.check([(name, text)], NAMES, "notebooks/train.py")
    for word in (f"-p {name} {text}", NAMES[name], "notebooks/train.py"):
        assert word in str(caught.value)


@pytest.mark.parametrize("wrong", ["SIZES", "size", "SZIE"])
def test_an_unknown_name_is_refused_with_the_nearest(wrong: str):
    with pytest.raises(InputError, match=f"parameter '{wrong}' is unknown; nearest: .*SIZE"):
        parameters.check([(wrong, "1024")], NAMES, "notebooks/train.py")


def test_the_last_value_of_a_name_counts():
    assert parameters.check([("SEED", "1"), ("SEED", "2")], NAMES, "n") == {"SEED": 2}


def test_names_and_annotations_are_those_of_the_parameters_cell():
    percent = '# %%\nX = 1\n# %% tags=["parameters"]\nA: Optional[int] = None\nB = C = 2\nA2: str\n'
    declared = {"A": "Optional[int]", "B": "", "C": "", "A2": "str"}
    assert parameters.declared(percent, "n") == declared
    with pytest.raises(InputError, match="0 cells tagged `parameters`"):
        parameters.declared("# %%\nX = 1\n", "notebooks/train.py")
