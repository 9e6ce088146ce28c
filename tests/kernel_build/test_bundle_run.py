"""Built kernels, run as Kaggle runs them: an empty folder, the project nowhere to be imported."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import kernel_lib.errors
from kernel_build import bundle


def run(command: list[str], folder: Path, **variables: str) -> subprocess.CompletedProcess:
    """A process in `folder/working` with its own scratch, without a way to this project."""
    (folder / "tmp").mkdir(exist_ok=True)
    (folder / "working").mkdir(exist_ok=True)
    env = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "RANK")}
    env |= {"TMPDIR": str(folder / "tmp"), **variables}
    return subprocess.run(
        command, cwd=folder / "working", env=env, capture_output=True, text=True, timeout=300
    )


def run_kernel(kernel: bundle.Kernel, folder: Path) -> subprocess.CompletedProcess:
    python = [sys.executable, "-P"]
    if kernel.code_file.suffix == ".py":
        return run([*python, str(kernel.code_file)], folder)
    papermill = [*python, "-m", "papermill", "--log-output"]
    return run([*papermill, str(kernel.code_file), "train.ipynb"], folder)


def outputs_of(notebook: Path) -> str:
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    return json.dumps([cell.get("outputs", []) for cell in cells], ensure_ascii=False)


# One kind each way in the quick tests, the other in the slow ones: a run takes several seconds.
SLOW = pytest.mark.slow


@pytest.mark.parametrize("kind", ["script", pytest.param("notebook", marks=SLOW)])
def test_a_kernel_runs_from_an_empty_folder(project: Path, tmp_path: Path, kind: str):
    name = 'it\'s "so"'
    given = (("SIZE", "1024"), ("RATE", "1e-3"), ("NAME", name))
    done = run_kernel(bundle.build(project, "train", kind, given=given), tmp_path)
    assert done.returncode == 0, done.stderr
    # Nothing but artefacts lies in the working folder.
    left = sorted(path.name for path in (tmp_path / "working").iterdir())
    assert left == ["artefact.txt", "train.ipynb"]
    shown = done.stdout + done.stderr
    # Nothing but the parameters is in upper case: the configuration is made of such names.
    config = {"FAIL": False, "NAME": name, "RATE": 0.001, "SEED": 3456, "SIZE": 1024}
    assert f"config: {config}" in shown
    assert f"library from {tmp_path / 'tmp' / 'kernel_lib-'}" in shown
    assert "worker agrees: True" in shown
    assert "child agrees: True" in shown
    assert "done" in outputs_of(tmp_path / "working" / "train.ipynb")


@pytest.mark.parametrize("kind", ["notebook", pytest.param("script", marks=SLOW)])
def test_a_failing_stage_fails_the_kernel_and_shows_true_file_and_line(
    project: Path, tmp_path: Path, kind: str
):
    done = run_kernel(bundle.build(project, "train", kind, given=(("FAIL", "True"),)), tmp_path)
    assert done.returncode != 0
    assert (tmp_path / "working" / "artefact.txt").read_text() == "written early"
    assert "asked to fail" in outputs_of(tmp_path / "working" / "train.ipynb")
    source = (project / "kernel_lib" / "stages.py").read_text().splitlines()
    number = next(n for n, line in enumerate(source, 1) if "raise ValueError" in line)
    (library,) = (path for path in (tmp_path / "tmp").glob("kernel_lib-*") if path.is_dir())
    plain = re.sub(r"\x1b\[[0-9;]*m", "", done.stderr)
    # Kaggle's IPython 7 writes the number at the arrow alone, later ones behind the file too.
    stages = re.escape(f"{library}/kernel_lib/stages.py")
    assert re.search(rf"^(File {stages}:{number},|{stages}) in run\(fail\)$", plain, re.MULTILINE)
    assert re.search(rf"^-+> {number} +raise ValueError.*the line of the traceback", plain, re.M)


@pytest.mark.parametrize("kind", ["script", pytest.param("notebook", marks=SLOW)])
def test_an_error_of_ours_is_its_sentence(project: Path, tmp_path: Path, kind: str):
    stages = project / "kernel_lib" / "stages.py"
    stages.write_text(
        "from kernel_lib.errors import InputError\n\n\ndef run(fail):\n"
        '    raise InputError("SIZE = 7: give a multiple of 32") from ValueError("within")\n'
    )
    source = Path(kernel_lib.errors.__file__).read_text(encoding="utf-8")
    (project / "kernel_lib" / "errors.py").write_text(source, encoding="utf-8")
    done = run_kernel(bundle.build(project, "train", kind), tmp_path)
    assert done.returncode == 1
    assert done.stderr.rstrip().endswith("\nError: SIZE = 7: give a multiple of 32")
    assert "stages.py" not in done.stderr
    if kind == "script":
        assert "Traceback" not in done.stderr
    cells = json.loads((tmp_path / "working" / "train.ipynb").read_text())["cells"]
    (shown,) = (o for c in cells for o in c.get("outputs", ()) if o["output_type"] == "error")
    assert shown["traceback"] == ["Error: SIZE = 7: give a multiple of 32"]


def test_with_a_rank_the_script_is_a_rank_and_no_notebook(project: Path, tmp_path: Path):
    kernel = bundle.build(project, "train", "script")
    command = [sys.executable, "-P", str(kernel.code_file), "train", "CONFIG.json"]
    done = run(command, tmp_path, RANK="1")
    assert done.returncode == 0, done.stderr
    assert "rank: ['train', 'CONFIG.json']" in done.stdout
    assert list((tmp_path / "working").iterdir()) == []


def test_a_kernel_altered_after_its_build_stops_at_once(project: Path, tmp_path: Path):
    kernel = bundle.build(project, "train", "script")
    text = kernel.code_file.read_text()
    kernel.code_file.write_text(text.replace("asked to fail", "asked to fall"))
    done = run([sys.executable, "-P", str(kernel.code_file)], tmp_path)
    assert done.returncode == 1
    assert "kernel_lib/stages.py has sha256" in done.stderr
    assert list((tmp_path / "working").iterdir()) == []
