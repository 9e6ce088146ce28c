"""Real processes of the command line: signalled, and two in one folder."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from kernel_lib import checkpoints, files, runs
from kernel_lib.data import phantom

pytestmark = pytest.mark.slow

# The command line, with a signal to itself while the third optimiser step is under way.
SIGNALLED = """
import os, signal, sys
from kernel_lib.__main__ import main
from kernel_lib.training.step import Step
take, count = Step.take, 0
def taken(self, *given):
    global count
    count += 1
    if count == 3:
        os.kill(os.getpid(), int(sys.argv.pop()))
    return take(self, *given)
Step.take = taken
main(prog_name="kernel_lib", args=sys.argv[1:-1])
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("faults")
    phantom.write_competition(
        root / "data", 24, 2, size=64, seed=1, difficulty=0.1, positives=0.4, workers=1,
        progress=False,
    )  # fmt: skip
    return root


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


@pytest.mark.parametrize(("number", "status"), [("15", 143), ("2", 130)])
def test_a_signal_saves_and_the_same_command_ends_the_same(project_root, place, number, status):
    whole = train(project_root, place, "whole")
    assert whole.returncode == 0, whole.stderr
    work = f"signal{number}"
    ended = train(project_root, place, work, "-c", SIGNALLED, more=[number])
    assert ended.returncode == status, ended.stderr
    assert "all saved; run the same command again to go on" in ended.stdout
    assert "Traceback" not in ended.stderr
    (name,) = runs.names([place / work])
    there, here = (runs.find([place / one], name)[0] for one in ("whole", work))
    state, _ = checkpoints.load(here.last)
    assert 3 * state["position"]["epoch"] + state["position"]["step"] in (3, 4)
    assert not list(place.glob(f"{work}/**/.*")), "no lock, nothing half written"
    again = train(project_root, place, work)
    assert again.returncode == 0, again.stderr
    assert checkpoints.digest(here.last) == checkpoints.digest(there.last)
    assert here.oof.read_bytes() == there.oof.read_bytes()


def test_a_second_training_of_a_fold_is_refused_and_of_another_is_not(project_root, place):
    assert train(project_root, place, "whole").returncode == 0
    (name,) = runs.names([place / "whole"])
    folder = runs.find([place / "whole"], name)[0]
    with files.alone(folder.path):
        refused = train(project_root, place, "whole")
    assert refused.returncode == 1
    assert f"fold0 is being worked in by process {os.getpid()} on" in refused.stderr
    with files.alone(folder.path.with_name("fold1")):
        assert train(project_root, place, "whole").returncode == 0
