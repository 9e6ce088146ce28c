"""Real processes of the command line: signalled, and two in one folder."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from kernel_lib import checkpoints, storage
from kernel_lib.artifacts import fold_run
from tools.phantoms import competition

pytestmark = pytest.mark.slow

# The command line, with a signal to itself while its second optimiser step is under way.
SIGNALLED = """
import os, signal, sys
from kernel_lib.__main__ import main
from kernel_lib.training.step import Step
take, count = Step.take, 0
def taken(self, *given):
    global count
    count += 1
    if count == 2:
        os.kill(os.getpid(), int(sys.argv.pop()))
    return take(self, *given)
Step.take = taken
main(prog_name="kernel_lib", args=sys.argv[1:-1])
"""


@pytest.fixture(scope="module")
def place(scratch) -> Path:
    competition.write_competition(
        scratch / "data", 24, 2, size=64, seed=1, difficulty=0.1, positives=0.4, workers=1,
        progress=False,
    )  # fmt: skip
    return scratch


def train(project_root, place, work, *start, more=()) -> subprocess.CompletedProcess:
    config = place / f"{work}.json"
    config.write_text(json.dumps({
        "EXPERIMENT": "demo_UNetResNet10_128_v1", "SIZE": 64, "EPOCHS": 2, "N_FOLDS": 2, "FOLD": 0,
        "DATA_DIR": str(place / "data"), "WORK_DIR": str(place / work), "DEVICE": "cpu",
        "CACHE_DIR": str(place / "cache"), "THREADS": 1,
    }))  # fmt: skip
    return subprocess.run(
        [sys.executable, *(start or ("-m", "kernel_lib")), "train", str(config), *more],
        cwd=project_root, capture_output=True, text=True, check=False,
        env=os.environ | {"KERNEL_LIB_MOUNTS": str(place / "none")},
    )  # fmt: skip


@pytest.fixture(scope="module")
def whole(project_root, place) -> fold_run.FoldRun:
    """The fold of an undisturbed training."""
    done = train(project_root, place, "whole")
    assert done.returncode == 0, done.stderr
    (name,) = fold_run.run_names([place / "whole"])
    return fold_run.find([place / "whole"], name)[0]


def test_a_signal_saves_and_the_same_command_ends_the_same(project_root, place, whole):
    """SIGTERM at the second step, Ctrl-C at the second of what is left, then to the end."""
    for number, status, steps in (("15", 143, (2, 3)), ("2", 130, (4, 5))):
        ended = train(project_root, place, "signalled", "-c", SIGNALLED, more=[number])
        assert ended.returncode == status, ended.stderr
        assert "all saved; run the same command again to go on" in ended.stdout
        assert "Traceback" not in ended.stderr
        here = fold_run.find([place / "signalled"], whole.run)[0]
        state, _ = checkpoints.load(here.last)
        assert 3 * state["position"]["epoch"] + state["position"]["step"] in steps
        assert not list(place.glob("signalled/**/.*")), "no lock, nothing half written"
    again = train(project_root, place, "signalled")
    assert again.returncode == 0, again.stderr
    assert checkpoints.digest(here.last) == checkpoints.digest(whole.last)
    assert here.oof.read_bytes() == whole.oof.read_bytes()


def test_a_second_training_of_a_fold_is_refused_and_of_another_is_not(project_root, place, whole):
    with storage.folder_lock(whole.path):
        refused = train(project_root, place, "whole")
    assert refused.returncode == 1
    assert f"fold0 is being worked in by process {os.getpid()} on" in refused.stderr
    with storage.folder_lock(whole.path.with_name("fold1")):
        assert train(project_root, place, "whole").returncode == 0
