"""The project's own three kernels in a chain, each from an empty folder, on phantoms."""

from __future__ import annotations

import csv
import os
import subprocess
import sys
from pathlib import Path

import pytest

from kernel_build import bundle
from tools.phantoms import competition

COMPETITION = "siim-acr-pneumothorax-segmentation"
TINY = {
    "EXPERIMENT": "demo_UNetResNet10_128_v1",
    "SIZE": "64",
    "EPOCHS": "2",
    "MIN_EPOCHS": "0",
    "N_FOLDS": "2",
    "WORKERS": "0",
}


def run_stage(root: Path, folder: Path, stage: str, kind: str, given: dict[str, str]) -> Path:
    """Build a kernel and run it as Kaggle would; its working folder becomes a mounted output."""
    kernel = bundle.build(root, stage, kind, given=tuple(given.items()), out=folder / "build")
    working = folder / "working" / stage
    working.mkdir(parents=True)
    (folder / "tmp").mkdir(exist_ok=True)
    env = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "RANK")}
    env |= {
        "TMPDIR": str(folder / "tmp"),
        "XDG_CACHE_HOME": str(folder / "cache"),
        "KERNEL_LIB_MOUNTS": str(folder / "input"),
    }
    python = [sys.executable, "-P"]
    if kind == "notebook":
        python += ["-m", "papermill", "--log-output"]
    command = [*python, str(kernel.code_file), *([f"{stage}.ipynb"] if kind == "notebook" else [])]
    done = subprocess.run(command, cwd=working, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-5000:]
    mounted = folder / "input" / "notebooks" / "me"
    mounted.mkdir(parents=True, exist_ok=True)
    (mounted / f"pneumothorax-{stage}").symlink_to(working)
    return working


@pytest.mark.slow
def test_three_kernels_in_a_chain_make_a_submission(project_root: Path, tmp_path: Path):
    """Each finds what the one before left wherever it is mounted; both kinds take part."""
    data = tmp_path / "input" / "competitions" / COMPETITION
    competition.write_competition(data, 24, 4, size=128, positives=0.5, progress=False)
    run_stage(project_root, tmp_path, "train", "script", TINY)
    run_stage(project_root, tmp_path, "thresholds", "notebook", {"BOOTSTRAP": "100"})
    working = run_stage(project_root, tmp_path, "inference", "script", {"WORKERS": "0"})
    (submission,) = working.rglob("submission.csv")
    with submission.open() as file, (data / "sample_submission.csv").open() as sample:
        rows, expected = list(csv.reader(file)), list(csv.reader(sample))
    assert [row[0] for row in rows] == [row[0] for row in expected]
