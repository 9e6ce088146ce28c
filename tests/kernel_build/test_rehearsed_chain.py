"""The project's own kernels rehearsed: three stages in a chain, one training in three sessions."""

from __future__ import annotations

import csv
import shutil
from pathlib import Path

import pytest
import torch

from kernel_build import bundle, metadata, rehearse
from kernel_lib import checkpoints
from kernel_lib.artifacts import fold_run
from tools.phantoms import competition

pytestmark = pytest.mark.slow

TINY = {
    "EXPERIMENT": "demo_UNetResNet10_128_v1",
    "SIZE": "64",
    "EPOCHS": "2",
    "MIN_EPOCHS": "0",
    "N_FOLDS": "2",
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


@pytest.fixture
def data(tmp_path: Path) -> Path:
    folder = tmp_path / "data"
    competition.write_competition(folder, 24, 4, size=128, positives=0.5, progress=False)
    return folder


def build(root: Path, folder: Path, stage: str, kind: str, given: dict[str, str], **meta) -> Path:
    kernel = bundle.build(
        root, stage, kind, given=tuple(given.items()), owner="me", out=folder / "build"
    )
    if meta:
        file = kernel.folder / metadata.FILE
        found = metadata.read_base(kernel.folder) | meta
        file.write_text(metadata.as_text(found))
    return kernel.folder


def passes(folder: Path, out: Path, data: Path, **inputs: Path) -> Path:
    """Rehearse; every check passes. Returns the working folder that is left."""
    by_name = {name.replace("__", "/").replace("_", "-"): path for name, path in inputs.items()}
    done = rehearse.run(folder, out, data=data, inputs=by_name, seconds=900)
    assert done.passed, "\n".join(map(str, done.checks)) + done.log.read_text()[-4000:]
    return done.working


def test_the_three_stages_pass_in_a_chain(project_root: Path, tmp_path: Path, data: Path):
    folder = build(project_root, tmp_path, "train", "script", TINY)
    trained = passes(folder, tmp_path / "out" / "train", data)
    assert (trained / "runs").is_dir() or (trained / "work" / "runs").is_dir()
    folder = build(project_root, tmp_path, "thresholds", "notebook", {"BOOTSTRAP": "100"},
                   kernel_sources=["me/pneumothorax-train-script"])  # fmt: skip
    searched = passes(
        folder, tmp_path / "out" / "thresholds", data, me__pneumothorax_train_script=trained
    )
    sources = ["me/pneumothorax-train-script", "me/pneumothorax-thresholds"]
    folder = build(project_root, tmp_path, "inference", "script", {"WORKERS": "0"},
                   kernel_sources=sources)  # fmt: skip
    left = passes(
        folder, tmp_path / "out" / "inference", data,
        me__pneumothorax_train_script=trained, me__pneumothorax_thresholds=searched,
    )  # fmt: skip
    (submission,) = left.rglob("submission.csv")
    with submission.open() as file, (data / "sample_submission.csv").open() as sample:
        rows, expected = list(csv.reader(file)), list(csv.reader(sample))
    assert [row[0] for row in rows] == [row[0] for row in expected]


def bits(folder: fold_run.FoldRun) -> dict[str, torch.Tensor]:
    found = {}
    for path in [folder.last, *folder.kept()]:
        state, _ = checkpoints.load(path)
        found |= {f"{path.name}/{k}": v for k, v in state["model"].items()}
        if "ema" in state:
            found |= {f"{path.name}/ema/{k}": v for k, v in state["ema"]["model"].items()}
    return found


def test_a_training_in_three_sessions_ends_with_the_bits_of_an_unbroken_one(
    project_root: Path, tmp_path: Path, data: Path
):
    """Each session is a kernel of its own that takes the last one's output as its source."""
    root = tmp_path / "project"
    for name in ("kernel_lib", "notebooks"):
        shutil.copytree(
            project_root / name, root / name, ignore=shutil.ignore_patterns("__pycache__")
        )
    shutil.copy(project_root / metadata.FILE, root)
    with (root / "kernel_lib" / "training" / "clock.py").open("a") as file:
        file.write(PIECES)
    one_fold = TINY | {"FOLD": "0"}
    folder = build(root, tmp_path, "train", "script", one_fold)
    whole = passes(folder, tmp_path / "out" / "whole", data)
    # 2 epochs of 2 steps, 2 scorings and 2 predictions: 8 pieces of work, 3 a session.
    folder = build(root, tmp_path / "parts", "train", "script", one_fold | {"MAX_HOURS": "3"})
    working = passes(folder, tmp_path / "out" / "1", data)
    ended = ["run the same command again" in (tmp_path / "out" / "1" / "log.txt").read_text()]
    for number in ("2", "3"):
        meta = metadata.read_base(folder) | {"kernel_sources": ["me/earlier"]}
        (folder / metadata.FILE).write_text(metadata.as_text(meta))
        working = passes(folder, tmp_path / "out" / number, data, me__earlier=working)
        log = (tmp_path / "out" / number / "log.txt").read_text()
        assert "going on from" in log
        ended.append("run the same command again" in log)
    assert ended == [True, True, False]
    name = next(iter(fold_run.run_names([whole, whole / "work"])))
    one, other = (fold_run.find([p, p / "work"], name)[0] for p in (whole, working))
    there, here = bits(one), bits(other)
    assert len(there) > 100
    assert there.keys() == here.keys()
    assert all(torch.equal(there[k], here[k]) for k in there)
    assert one.oof.read_bytes() == other.oof.read_bytes()
    assert one.oof_last.read_bytes() == other.oof_last.read_bytes()
