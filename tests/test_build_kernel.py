"""The command line that builds kernels, in a copy of the project with small notebooks."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

NOTEBOOK = """\
# %% tags=["parameters"]
SIZE: int = 512

# %%
print(SIZE)
"""


@pytest.fixture
def clone(tmp_path: Path, project_root: Path) -> Path:
    root = tmp_path / "clone"
    ignore = shutil.ignore_patterns("__pycache__")
    for folder in ("kernel_lib", "kernel_build"):
        shutil.copytree(project_root / folder, root / folder, ignore=ignore)
    for file in ("build_kernel.py", "kernel-metadata.json"):
        shutil.copy(project_root / file, root)
    (root / "notebooks").mkdir()
    for stage in ("train", "thresholds", "inference"):
        (root / "notebooks" / f"{stage}.py").write_text(NOTEBOOK)
    # A base as committed, also where somebody has built with an owner before.
    base = json.loads((root / "kernel-metadata.json").read_text())
    base["id"] = "OWNER_TO_FILL/pneumothorax-train"
    (root / "kernel-metadata.json").write_text(json.dumps(base))
    return root


def build(clone: Path, *arguments: str, cwd: Path | None = None, **variables: str):
    env = {k: v for k, v in os.environ.items() if not k.startswith(("KAGGLE_", "XDG_"))}
    env |= {"HOME": str(clone), **variables}
    command = [sys.executable, str(clone / "build_kernel.py"), *arguments]
    return subprocess.run(command, cwd=cwd or clone, env=env, capture_output=True, text=True)


def folders(clone: Path) -> list[str]:
    return sorted(path.name for path in (clone / "build").iterdir())


def test_without_a_stage_every_kernel_is_built_and_the_root_can_be_pushed(clone: Path):
    done = build(clone, "--owner", "somebody")
    assert done.returncode == 0, done.stderr
    stages = ("inference", "thresholds", "train")
    assert folders(clone) == sorted(
        f"pneumothorax-{stage}{end}" for stage in stages for end in ("", "-script")
    )
    root = json.loads((clone / "kernel-metadata.json").read_text())
    assert root["id"] == "somebody/pneumothorax-train"
    assert (clone / root["code_file"]).is_file()
    assert "owner somebody (--owner) filled into kernel-metadata.json" in done.stdout


def test_a_stage_alone_is_a_notebook_unless_a_kind_is_said(clone: Path, tmp_path: Path):
    done = build(clone, "thresholds", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert folders(clone) == ["pneumothorax-thresholds"]
    assert "owner unknown: OWNER_TO_FILL stays" in done.stdout
    done = build(clone, "train", "--kind", "script", "-p", "SIZE", "1024", KAGGLE_USERNAME="me")
    assert folders(clone) == ["pneumothorax-thresholds", "pneumothorax-train-script"]
    code = clone / "build/pneumothorax-train-script/pneumothorax-train-script.py"
    assert "'SIZE': 1024" in code.read_text()
    assert "kaggle kernels push -p build/pneumothorax-train-script" in done.stdout
    meta = json.loads((code.parent / "kernel-metadata.json").read_text())
    assert meta["id"] == "me/pneumothorax-train-script"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("train", "-p", "SIZES", "1024"), "Error: notebooks/train.py has no parameter SIZES"),
        (("train", "-p", "SIZE", "big"), "SIZE: int"),
        (("trian",), "'trian' is not one of 'train'"),
        (("train", "--owner", "not a name"), "no Kaggle user name"),
    ],
)
def test_a_mistake_is_one_clear_error_and_builds_nothing(
    clone: Path, arguments: tuple[str, ...], words: str
):
    done = build(clone, *arguments)
    assert done.returncode != 0
    assert words in done.stderr
    assert "Traceback" not in done.stderr
    assert not (clone / "build").exists()


def test_the_command_line_starts_without_torch(project_root: Path):
    code = "import sys, build_kernel; print({'torch', 'pandas', 'cv2'} & set(sys.modules))"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=project_root, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "set()"
