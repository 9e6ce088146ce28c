"""The project's own kernels rehearsed: three stages in a chain, one training in its sessions."""

from __future__ import annotations

import csv
import shutil
from pathlib import Path

import pytest

from kernel_build import bundle, metadata, rehearse
from kernel_lib.artifacts import fold_run
from tests.stages.place import RUN, TINY, Place, assert_same_training

pytestmark = pytest.mark.slow

GIVEN = {name.upper(): str(value) for name, value in TINY.items()} | {
    "WORKERS": "0",
    "THREADS": "1",
}
# In the place of the clock: MAX_HOURS says how many pieces of work a session allows, so that
# sessions end at the same places however fast the machine is.
PIECES = """

class Clock(Clock):
    def __init__(self, max_hours):
        super().__init__(max_hours)
        self.left_over = max_hours

    def left(self):
        return float("inf")

    def allows(self, seconds):
        if self.max_hours is None:
            return True
        self.left_over -= 1
        return self.left_over >= 0

    def allows_uninterrupted(self, seconds, what):
        return self.allows(seconds)
"""


def build(root: Path, folder: Path, stage: str, kind: str, given: dict[str, str], **meta) -> Path:
    options = {"given": tuple(given.items()), "owner": "me", "out": folder / "build"}
    built = bundle.build(root, stage, kind, **options).folder
    (built / metadata.FILE).write_text(metadata.as_text(metadata.read_base(built) | meta))
    return built


def passes(folder: Path, out: Path, data: Path, inputs: dict[str, Path] | None = None) -> Path:
    """Rehearse; every check passes. Returns the working folder that is left."""
    done = rehearse.run(folder, out, data=data, inputs=inputs, seconds=900)
    assert done.passed, "\n".join(map(str, done.checks)) + done.log.read_text()[-4000:]
    return done.working


def test_the_three_stages_pass_in_a_chain(project_root: Path, tmp_path: Path, phantoms: Path):
    train, thresholds = "me/pneumothorax-train-script", "me/pneumothorax-thresholds"
    left: dict[str, Path] = {}
    for stage, kind, given, sources in (
        ("train", "script", GIVEN, []),
        ("thresholds", "notebook", {"BOOTSTRAP": "100"}, [train]),
        ("inference", "script", {"WORKERS": "0"}, [train, thresholds]),
    ):
        folder = build(project_root, tmp_path, stage, kind, given, kernel_sources=sources)
        working = passes(folder, tmp_path / "out" / stage, phantoms, dict(left))
        left[f"me/{folder.name}"] = working
    assert list(left)[:2] == [train, thresholds]
    (submission,) = working.rglob("submission.csv")
    with submission.open() as file, (phantoms / "sample_submission.csv").open() as sample:
        rows, expected = list(csv.reader(file)), list(csv.reader(sample))
    assert [row[0] for row in rows] == [row[0] for row in expected]


def test_a_training_in_several_sessions_ends_with_the_bits_of_an_unbroken_one(
    project_root: Path, tmp_path: Path, phantoms: Path, phantom_run: Path
):
    """Each session is a kernel of its own that takes the last one's output as its source."""
    root = tmp_path / "project"
    for name in ("kernel_lib", "notebooks"):
        shutil.copytree(
            project_root / name, root / name, ignore=shutil.ignore_patterns("__pycache__")
        )
    shutil.copy(project_root / metadata.FILE, root)
    with (root / "kernel_lib" / "training" / "job.py").open("a") as file:
        file.write(PIECES)
    # 2 epochs of 2 steps, 2 scorings and 2 predictions: 8 pieces of work, 3 a session.
    folder = build(root, tmp_path, "train", "script", GIVEN | {"FOLD": "0", "MAX_HOURS": "3"})
    inputs: dict[str, Path] = {}
    logs = []
    while not logs or "run the same command again" in logs[-1]:
        out = tmp_path / "out" / str(len(logs))
        inputs = {"me/earlier": passes(folder, out, phantoms, inputs)}
        logs.append((out / "log.txt").read_text())
        meta = metadata.read_base(folder) | {"kernel_sources": ["me/earlier"]}
        (folder / metadata.FILE).write_text(metadata.as_text(meta))
    assert ["resuming from" in log for log in logs] == [False, True, True]
    (working,) = inputs.values()
    found = fold_run.find([working, working / "work"], RUN)[0]
    assert_same_training(found, Place(phantom_run, phantoms).fold(0))
