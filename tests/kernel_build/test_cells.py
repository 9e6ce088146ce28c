"""What a kernel shows of a notebook: a title of its own, and nothing that is of a clone alone."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from kernel_build import boot, cells
from kernel_build.bundle import read_notebook
from kernel_lib.stages.table import STAGES

META = {
    "competition_sources": ["siim"],
    "dataset_sources": [],
    "kernel_sources": ["OWNER_TO_FILL/before"],
    "model_sources": [],
}
NOTEBOOK = """\
# ---
# jupyter:
# ---

# %% [markdown]
# # Stage
# It says *what*.
#
# - a list

# %% [markdown] tags=["local"]
# Run it with papermill.

# %% tags=["local"]
import sys

# %% tags=["locals"]
y = 2  # local
"""


def shown(text: str, stage: str = "train", **values: object) -> list[dict]:
    return boot.cells_of(cells.for_kernel(text, stage, values, META))


def test_the_title_says_what_the_kernel_is_takes_and_leaves():
    title, *_ = shown(NOTEBOOK, EXPERIMENT="lite0_256", SEED=7, FOLD=1, N_FOLDS=5)
    heading, *lines = title["source"].split("\n")
    assert heading == "# Train: lite0_256, seed 7, fold 1 of 5"
    assert lines[:4] == ["It says *what*.", "", "- a list", ""]
    assert lines[4] == "- **Takes** `siim`, `before`"
    assert [line.split("**")[1] for line in lines[4:]] == ["Takes", "Leaves", "Then"]


@pytest.mark.parametrize(
    ("stage", "values", "heading"),
    [
        ("train", {"NAME": "x", "SEED": 1}, "# Train: x, seed 1, every fold"),
        ("train", {"EXPERIMENT": '{"name": "own"}', "SEED": 1}, "# Train: own, seed 1, every fold"),
        ("thresholds", {"RUNS": "a,b"}, "# Thresholds: a,b"),
        ("inference", {"ENSEMBLE": "best"}, "# Inference: best"),
        ("inference", {}, "# Inference: the runs that are attached"),
    ],
)
def test_the_heading_names_the_run_or_the_ensemble(stage: str, values: dict, heading: str):
    assert shown(NOTEBOOK, stage, **values)[0]["source"].startswith(f"{heading}\n")


def test_what_is_marked_local_is_left_out():
    title, code = shown(NOTEBOOK, "inference")
    assert code["source"] == "y = 2  # local"
    assert "papermill" not in title["source"]


def test_a_notebook_without_a_title_gets_one():
    title, code = shown("# %%\nx = 1\n", "inference")
    assert title["source"].startswith("# Inference: ")
    assert code["source"] == "x = 1"


@pytest.mark.parametrize("stage", STAGES)
def test_no_kernel_of_the_project_speaks_of_papermill_or_a_clone(project_root: Path, stage: str):
    text = cells.for_kernel(read_notebook(project_root, stage), stage, {}, META)
    assert not re.search("papermill|clone", text)
    assert len(boot.cells_of(text)) > 5
