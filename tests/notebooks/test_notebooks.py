"""Tests of the notebooks: their cells, and that a wrong parameter stops at once."""

from __future__ import annotations

import ast
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import jupytext
import nbformat
import pytest

from kernel_lib import config

KINDS = {
    "train": config.TrainParameters,
    "thresholds": config.ThresholdsParameters,
    "inference": config.InferenceParameters,
    "explore": config.ExploreParameters,
}
STAGES = pytest.mark.parametrize("stage", KINDS)


def read(root: Path, stage: str) -> dict:
    return json.loads((root / "notebooks" / f"{stage}.ipynb").read_text(encoding="utf-8"))


def source(cell: dict) -> str:
    return "".join(cell["source"])


def parameters(root: Path, stage: str) -> str:
    tagged = [
        c for c in read(root, stage)["cells"] if "parameters" in c["metadata"].get("tags", [])
    ]
    assert len(tagged) == 1
    return source(tagged[0])


def papermill(folder: Path, *arguments: str) -> subprocess.CompletedProcess:
    environment = os.environ | {
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    }
    return subprocess.run(
        [sys.executable, "-m", "papermill", *arguments],
        cwd=folder, capture_output=True, text=True, check=False, env=environment,
    )  # fmt: skip


@STAGES
def test_the_pair_agrees_without_outputs_and_names_its_kernel(project_root, stage):
    text = jupytext.read(project_root / "notebooks" / f"{stage}.py")
    notebook = read(project_root, stage)
    theirs = [(c["cell_type"], source(c), c["metadata"]) for c in notebook["cells"]]
    ours = [(c.cell_type, c.source, dict(c.metadata)) for c in text.cells]
    assert theirs == ours, "run `make notebooks`"
    code = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert all((cell["outputs"], cell["execution_count"]) == ([], None) for cell in code)
    kernel = notebook["metadata"]["kernelspec"]
    assert (kernel["name"], kernel["language"]) == ("python3", "python")


def assigned(root: Path, stage: str) -> list[ast.AnnAssign]:
    """The assignments of the cell of parameters."""
    statements = ast.parse(parameters(root, stage)).body
    return [statement for statement in statements if isinstance(statement, ast.AnnAssign)]


@STAGES
def test_parameters_and_fields_are_one_to_one_with_equal_defaults(project_root, stage):
    given = {one.target.id: ast.literal_eval(one.value) for one in assigned(project_root, stage)}
    assert KINDS[stage].from_namespace(given) == KINDS[stage]()
    defaults = {k.upper(): v for k, v in KINDS[stage]().model_dump().items()}
    assert {k: (type(v), v) for k, v in given.items()} == {
        k: (type(v), v) for k, v in defaults.items()
    }


@STAGES
def test_annotations_are_those_of_the_fields(project_root, stage):
    """As papermill reads them; a field narrower than its annotation checks more, never less."""
    known = {"int": int, "float": float, "str": str, "bool": bool}
    for statement in assigned(project_root, stage):
        text = ast.unparse(statement.annotation)
        inner = re.fullmatch(r"(?:Optional\[(\w+)\]|(\w+) \| None|(\w+))", text)
        assert inner, text
        base, optional = next(g for g in inner.groups() if g), inner[3] is None
        field = KINDS[stage].model_fields[statement.target.id.lower()]
        shown = str(field.annotation)
        assert base in shown or (known[base] is field.annotation) or "Literal" in shown
        # Of a Literal and None, Python shows an Optional.
        assert optional == ("None" in shown or "Optional" in shown), statement.target.id


@STAGES
def test_every_other_cell_is_thin(project_root, stage):
    banned = (ast.For, ast.While, ast.FunctionDef, ast.ClassDef, ast.ListComp, ast.Lambda)
    for cell in read(project_root, stage)["cells"]:
        if cell["cell_type"] == "code":
            assert not any(isinstance(n, banned) for n in ast.walk(ast.parse(source(cell))))


@STAGES
def test_papermill_shows_the_parameters_and_their_types(project_root, stage):
    done = papermill(project_root, "--help-notebook", f"notebooks/{stage}.ipynb")
    assert done.returncode == 0, done.stderr
    shown = dict(re.findall(r"^\s+([A-Z_]+): (.+?) \(default", done.stdout, re.MULTILINE))
    assert shown.keys() == {name.upper() for name in KINDS[stage].model_fields}, done.stdout
    assert "Unknown type" not in done.stdout


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (("SIZES", "1024"), "unknown parameter SIZES; the nearest is SIZE"),
        (("SIZE", "big"), "SIZE = 'big': "),
    ],
)
def test_a_wrong_parameter_stops_papermill_at_once(project_root, tmp_path, given, words):
    done = papermill(
        project_root, "notebooks/train.ipynb", str(tmp_path / "out.ipynb"), "-p", *given,
        "-p", "WORK_DIR", str(tmp_path / "work"), "-p", "CACHE_DIR", str(tmp_path / "cache"),
        "--no-progress-bar",
    )  # fmt: skip
    assert done.returncode != 0
    assert f"\nError: {words}" in done.stderr
    assert "config.py" not in done.stderr, "a sentence, and no traceback of the library"
    assert not (tmp_path / "work").exists()
    assert not (tmp_path / "cache").exists()
    cells = json.loads((tmp_path / "out.ipynb").read_text())["cells"]
    ran = [c for c in cells if c["cell_type"] == "code" and c["execution_count"]]
    assert "from_namespace" in source(ran[-1]), "it stops in the cell that checks"
    (shown,) = ran[-1]["outputs"]
    assert len(shown["traceback"]) == 1
    assert shown["traceback"][0].startswith(f"Error: {words}")


@pytest.mark.parametrize("ours", [True, False])
def test_papermill_s_own_frames_stand_only_above_a_true_traceback(project_root, tmp_path, ours):
    cell = "from kernel_lib.errors import InputError\nraise "
    cell += 'InputError("SIZE = 7: no")' if ours else 'ValueError("a fault")'
    written = nbformat.read(project_root / "notebooks" / "explore.ipynb", as_version=4)
    written.cells = [nbformat.v4.new_code_cell(cell)]
    nbformat.write(written, tmp_path / "in.ipynb")
    start = "import papermill_sentences; from papermill.cli import papermill; papermill()"
    done = subprocess.run(
        [sys.executable, "-c", start, "in.ipynb", "out.ipynb", "--no-progress-bar"], cwd=tmp_path,
        capture_output=True, text=True, check=False,
        env=os.environ | {"PYTHONPATH": f"{project_root}{os.pathsep}{project_root / 'notebooks'}"},
    )  # fmt: skip
    assert done.returncode == 1
    assert ("Traceback" in done.stderr) != ours
    last = "Error: SIZE = 7: no" if ours else "ValueError: a fault"
    assert done.stderr.rstrip().splitlines()[-1] == last


def test_a_notebook_finds_its_clone_from_elsewhere(project_root, tmp_path):
    original = str(project_root / "notebooks" / "thresholds.ipynb")
    for path in (original, os.path.relpath(original, tmp_path)):
        done = papermill(tmp_path, path, "out.ipynb", "-p", "SINGEL", "1", "--no-progress-bar")
        assert "\nError: unknown parameter SINGEL; the nearest is SINGLE\n" in done.stderr
    copied = tmp_path / "notebooks" / "thresholds.ipynb"
    copied.parent.mkdir()
    shutil.copy(original, copied)
    done = papermill(tmp_path, str(copied), "out.ipynb", "--no-progress-bar")
    assert "SystemExit: kernel_lib is not found: start papermill in the clone" in done.stderr
    assert "ModuleNotFoundError" not in done.stderr


def test_a_notebook_s_python_text_finds_its_clone_from_elsewhere(project_root, tmp_path):
    done = subprocess.run(
        [sys.executable, str(project_root / "notebooks" / "explore.py")], cwd=tmp_path,
        capture_output=True, text=True, check=False,
        env=os.environ | {"KERNEL_LIB_MOUNTS": str(tmp_path)},
    )  # fmt: skip
    assert done.returncode == 1
    assert "InputError: no data: DATA_DIR is not set" in done.stderr


@pytest.mark.slow
def test_explore_runs_on_phantoms_and_shows_what_is_bad(project_root, phantoms, tmp_path):
    shutil.copytree(phantoms, tmp_path / "data")
    broken = sorted((tmp_path / "data" / "dicom-images-test").rglob("*.dcm"))[0]
    broken.write_bytes(b"")
    done = papermill(
        project_root, "notebooks/explore.ipynb", str(tmp_path / "out.ipynb"), "--no-progress-bar",
        "-p", "DATA_DIR", str(tmp_path / "data"), "-p", "WORK_DIR", str(tmp_path / "work"),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    cells = json.loads((tmp_path / "out.ipynb").read_text())["cells"]
    shown = [out for c in cells for out in c.get("outputs", ())]
    text = "".join("".join(out.get("text", ())) for out in shown if out.get("name") == "stdout")
    assert "24 labelled images, 4 test images" in text
    assert "opened: 27 of 28 images" in text
    assert text.count(str(broken)) == 1  # in the table of bad files
    pages = ["".join(out.get("data", {}).get("text/html", ())) for out in shown]
    as_text = ["".join(out.get("data", {}).get("text/plain", ())) for out in shown]
    assert any(text.startswith("12 masks over the images: each should") for text in as_text)
    assert not any("Figure" in text or "Picture" in text for text in as_text)
    assert sum("data:image/png;base64," in page for page in pages) == 3
    assert any("12 masks over the images" in page for page in pages)
    assert "No viewer: -p ENSEMBLE NAME" in pages[-1]
