"""Trainings as processes: signalled, two in one folder, and several at once in an empty one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from kernel_lib import checkpoints, storage
from kernel_lib.artifacts import fold_run, folds_file
from tests.stages.place import RUN, Place

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


def start(root: Path, place: Place, work: str, *more: str, code=("-m", "kernel_lib"), **changes):
    """Start the training of fold 0 by the command line."""
    config = place.root / f"{work}-{len(list(place.root.iterdir()))}.json"
    config.write_text(json.dumps(place.training(work, **({"fold": 0} | changes))))
    return subprocess.Popen(
        [sys.executable, *code, "train", str(config), *more],
        cwd=root, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def test_a_signal_saves_and_the_same_command_ends_the_same(project_root, place):
    """SIGTERM at the second step, Ctrl-C at the second of what is left, then to the end."""
    here, expected = place.fold(0, "signalled"), place.fold(0)
    for number, status, steps in (("15", 143, (2, 3)), ("2", 130, (4, 5))):
        job = start(project_root, place, "signalled", number, code=("-c", SIGNALLED))
        printed, errors = job.communicate()
        assert job.returncode == status, errors
        assert "all saved; run the same command again to go on" in printed
        assert "Traceback" not in errors
        state, _ = checkpoints.load(here.last)
        assert 3 * state["position"]["epoch"] + state["position"]["step"] in steps
        assert not list(place.root.glob("signalled/**/.*")), "no lock, nothing half written"
    job = start(project_root, place, "signalled")
    _, errors = job.communicate()
    assert job.returncode == 0, errors
    assert checkpoints.digest(here.last) == checkpoints.digest(expected.last)
    assert here.oof.read_bytes() == expected.oof.read_bytes()


def test_a_second_training_of_a_fold_is_refused_and_of_another_is_not(project_root, place):
    with storage.folder_lock(place.fold(0).path):
        refused = start(project_root, place, "work")
        _, errors = refused.communicate()
    assert refused.returncode == 1
    assert f"fold0 is being worked in by process {os.getpid()} on" in errors
    with storage.folder_lock(place.fold(1).path):
        job = start(project_root, place, "work")
        job.communicate()
        assert job.returncode == 0


def test_jobs_that_start_together_in_empty_folders_agree_on_the_folds(
    project_root, place, tmp_path
):
    """Three of them meet at the drawing of the folds, and train as one after the other would."""
    empty = Place(tmp_path / "empty", place.data)
    work, jobs, printed = empty.root / "work", [], []
    with storage.folder_lock(work / "folds.csv"):
        for fold, seed in ((0, 3456), (1, 3456), (0, 2)):
            jobs.append(start(project_root, empty, "work", fold=fold, seed=seed))
        for job in jobs:
            lines = []
            while (line := job.stdout.readline()) and "folds.csv: waiting for" not in line:
                lines.append(line)
            assert line, "".join(lines)
            assert f"waiting for process {os.getpid()} on" in line
            printed.append("".join(lines))
        assert not (work / "folds.csv").exists()
    for number, job in enumerate(jobs):
        rest, errors = job.communicate()
        printed[number] += rest
        assert job.returncode == 0, errors
    assert sorted(text.count("positive_share") for text in printed) == [0, 0, 1], "drawn once"
    digest = folds_file.digest(folds_file.load(work / "folds.csv"))
    other = RUN.replace("seed3456", "seed2")
    assert fold_run.run_names([work]) == [other, RUN]
    for run, folds in ((RUN, [0, 1]), (other, [0])):
        trained = fold_run.find([work], run)
        assert list(trained) == folds
        assert {f.read_config().folds_digest for f in trained.values()} == {digest}
    for fold in (0, 1):
        here, expected = empty.fold(fold), place.fold(fold)
        assert checkpoints.digest(here.last) == checkpoints.digest(expected.last)
        assert here.oof.read_bytes() == expected.oof.read_bytes()
    assert not list(empty.root.glob("work/**/.*"))
    assert not list(empty.root.glob("cache/**/.*"))
