"""Folds and seeds as separate jobs: in one empty folder at once, and in folders of their own."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from kernel_lib import checkpoints, storage
from kernel_lib.artifacts import fold_run, folds_file
from kernel_lib.config import InferenceParameters, ThresholdsParameters, TrainParameters
from kernel_lib.stages import gather, inference, thresholds
from kernel_lib.stages import train as train_stage
from kernel_lib.training.job import Clock
from tools.phantoms import competition

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("apart", "no_report")]

RUN = "demo_UNetResNet10_128_v1_size64_epochs2_seed1"
OTHER = RUN.replace("seed1", "seed2")


@pytest.fixture(scope="module")
def place(scratch) -> Path:
    competition.write_competition(
        scratch / "data", 24, 4, size=64, seed=1, difficulty=0.1, positives=0.4, workers=1,
        progress=False,
    )  # fmt: skip
    return scratch


def parameters(place: Path, work: str, fold: int, seed: int = 1) -> dict:
    return {
        "experiment": "demo_UNetResNet10_128_v1", "size": 64, "epochs": 2, "n_folds": 2,
        "fold": fold, "seed": seed, "data_dir": str(place / "data"), "threads": 1, "device": "cpu",
        "work_dir": str(place / work), "cache_dir": str(place / "cache"), "workers": 0,
    }  # fmt: skip


def search(place: Path, work: str) -> Path:
    given = ThresholdsParameters(work_dir=str(place / work), runs=RUN, bootstrap=100)
    return thresholds.run(given).folder


def infer(place: Path, work: str) -> None:
    inference.run(
        InferenceParameters(
            ensemble=RUN, data_dir=str(place / "data"), work_dir=str(place / work),
            cache_dir=str(place / "cache"), threads=1, device="cpu", workers=0,
        )
    )  # fmt: skip


@pytest.fixture(scope="module")
def at_once(project_root, place) -> list[str]:
    """What three jobs printed that met at the drawing of the folds, in empty folders."""
    jobs, said = [], []
    with storage.folder_lock(place / "one/folds.csv"):
        for fold, seed in ((0, 1), (1, 1), (0, 2)):
            config = place / f"{seed}-{fold}.json"
            config.write_text(json.dumps(parameters(place, "one", fold, seed)))
            jobs.append(
                subprocess.Popen(
                    [sys.executable, "-m", "kernel_lib", "train", str(config)],
                    cwd=project_root, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                )
            )  # fmt: skip
        for job in jobs:
            lines = []
            while (line := job.stdout.readline()) and "folds.csv: waiting for" not in line:
                lines.append(line)
            assert line, "".join(lines)
            assert f"waiting for process {os.getpid()} on" in line
            said.append("".join(lines))
        assert not (place / "one/folds.csv").exists()
    for number, job in enumerate(jobs):
        said[number] += job.communicate()[0]
        assert job.returncode == 0, said[number]
    return said


def test_jobs_that_start_together_in_empty_folders_agree_on_the_folds(place, at_once):
    work = place / "one"
    assert sorted(said.count("positive_share") for said in at_once) == [0, 0, 1], "drawn once"
    digest = folds_file.digest(folds_file.load(work / "folds.csv"))
    assert fold_run.run_names([work]) == [RUN, OTHER]
    for run, there in ((RUN, [0, 1]), (OTHER, [0])):
        found = fold_run.find([work], run)
        assert list(found) == there
        assert {f.read_config().folds_digest for f in found.values()} == {digest}
    assert not list(place.glob("one/**/.*"))
    assert not list(place.glob("cache/**/.*"))


def test_folds_trained_apart_and_gathered_end_as_those_trained_in_one_folder(
    project_root, place, at_once
):
    for fold, work in enumerate(("a", "b")):
        (place / work).mkdir()
        shutil.copy(place / "one/folds.csv", place / work)
        given = parameters(place, work, fold)
        assert train_stage.run(TrainParameters(**given)).complete
    done = subprocess.run(
        [sys.executable, "-m", "kernel_lib", "gather", "a", "b", "--into", "both"],
        cwd=place, capture_output=True, text=True, check=False,
        env=os.environ | {"PYTHONPATH": str(project_root)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert f"copied into {place / 'both'}: {RUN}/fold0, {RUN}/fold1" in done.stdout
    one, both = (search(place, work) for work in ("one", "both"))
    for name in ("thresholds.json", "members.json", "oof.csv"):
        assert (one / name).read_bytes() == (both / name).read_bytes(), name
    infer(place, "one"), infer(place, "both")
    assert (one / "submission.csv").read_bytes() == (both / "submission.csv").read_bytes()


class OneStep(Clock):
    """Allows what follows the first optimiser step nothing more."""

    asked = 0

    def allows(self, seconds: float) -> bool:
        self.asked += 1
        return self.asked < 3


def test_a_gathered_fold_that_is_unfinished_goes_on_to_the_same_bits(place, at_once, monkeypatch):
    given = TrainParameters(**parameters(place, "stopped", 1))
    with monkeypatch.context() as patch:
        patch.setattr(train_stage, "Clock", OneStep)
        assert not train_stage.run(given).complete
    result = gather.run([place / "stopped"], place / "on")
    assert result.table()[["finished", "unfinished", "missing"]].to_numpy().tolist() == [
        ["-", "1", "0"]
    ]
    state, _ = checkpoints.load(fold_run.find([place / "on"], RUN)[1].last)
    assert state["position"]["step"] > 0
    on = TrainParameters(**parameters(place, "on", 1))
    assert train_stage.run(on).complete
    there, here = (fold_run.find([place / work], RUN)[1] for work in ("one", "on"))
    assert checkpoints.digest(there.last) == checkpoints.digest(here.last)
    assert there.oof.read_bytes() == here.oof.read_bytes()
    # The finished one of another place is the same, and stays behind.
    shutil.copytree(place / "one", place / "as_trained", ignore=shutil.ignore_patterns("test.zip"))
    again = gather.run([place / "as_trained"], place / "on")
    assert again.copied == (f"{RUN}/fold0", f"{OTHER}/fold0")
    assert again.table()["missing"].tolist() == ["-", "1"]
