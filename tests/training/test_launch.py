"""Several processes, started by themselves: by the stages, on CPUs."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from kernel_lib import runs
from kernel_lib.config import InferenceParameters, ThresholdsParameters, TrainParameters
from kernel_lib.data import phantom
from kernel_lib.errors import InputError
from kernel_lib.inference.maps import Maps
from kernel_lib.stages import inference, report, thresholds, train
from kernel_lib.training import launch


@pytest.mark.parametrize(
    ("asked", "device", "gpus", "expected"),
    [
        (None, "auto", 0, 1),
        (None, "auto", 2, 2),
        (None, "cuda", 2, 2),
        (None, "cuda:1", 2, 1),
        (None, "cpu", 2, 1),
        (1, "auto", 2, 1),
        (2, "cpu", 0, 2),
    ],
)
def test_one_process_a_gpu_unless_asked_otherwise(monkeypatch, asked, device, gpus, expected):
    monkeypatch.delenv("RANK", raising=False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    assert launch.n_processes(asked, device) == expected
    monkeypatch.setenv("RANK", "0")
    assert launch.n_processes(asked, device) == 1, "a rank starts none"


def test_several_processes_on_one_numbered_card_are_refused():
    with pytest.raises(InputError, match="PROCESSES 2, but DEVICE cuda:1 is one card"):
        launch.n_processes(2, "cuda:1")


def test_counting_gpus_makes_no_context():
    script = "from kernel_lib.training import launch; import torch; "
    script += "launch.n_processes(None, 'auto'); print(torch.cuda.is_initialized())"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.stdout.strip() == "False", done.stderr


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("launched")
    phantom.write_competition(
        root / "data", 30, 6, size=64, seed=1, difficulty=0.1, positives=0.4, workers=1,
        progress=False,
    )  # fmt: skip
    return root


@pytest.fixture
def alone(monkeypatch, place):
    monkeypatch.setenv("KERNEL_LIB_MOUNTS", str(place / "none"))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setattr(report, "write", lambda *args, **how: None)


def parameters(place: Path, work: str, **changes) -> TrainParameters:
    values = {
        "experiment": "demo_UNetResNet10_128_v1", "size": 64, "epochs": 2, "n_folds": 2, "fold": 0,
        "data_dir": str(place / "data"), "work_dir": str(place / work), "device": "cpu",
        "cache_dir": str(place / "cache"), "threads": 1, "augment": "none", "processes": 2,
    }  # fmt: skip
    return TrainParameters.checked(values | changes)


@pytest.mark.slow
def test_training_and_inference_start_their_own_processes(place, alone, capfd):
    """Both notebooks call these; what two processes leave is a whole run and a whole submission."""
    done = train.run(parameters(place, "work"))
    said = capfd.readouterr().out
    assert "2 processes, each with its share of every batch" in said
    assert said.count("run demo_UNetResNet10_128_v1") == 1, "the first rank's lines come out here"
    assert (done.finished, done.complete) == ((0,), True)
    assert len(next(iter(done.logs().values()))) == 2
    common = {"work_dir": str(place / "work"), "data_dir": str(place / "data")}
    thresholds.run(ThresholdsParameters(work_dir=common["work_dir"], bootstrap=100))
    here = {"cache_dir": str(place / "cache"), "device": "cpu", "threads": 1, "batch_size": 2}
    shared = inference.run(InferenceParameters(**common, **here, processes=2))
    folder = runs.find([place / "work"], done.run)[0]
    archive = Maps(folder.test)
    theirs = {image_id: archive[image_id] for image_id in archive.ids}
    submitted = shared.submission.read_bytes()
    assert len(theirs) == 6
    folder.test.unlink()
    one = inference.run(InferenceParameters(**common, **here, processes=1))
    assert one.submission.read_bytes() == submitted
    mine = Maps(folder.test)
    assert mine.ids == list(theirs)
    assert all((mine[image_id] == theirs[image_id]).all() for image_id in theirs)


def test_a_submission_is_one_process_s_work(monkeypatch):
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(InputError, match="start it in one process, with PROCESSES for more"):
        inference.run(InferenceParameters())


@pytest.mark.slow
def test_what_a_rank_says_of_a_failure_comes_out_and_fails_the_caller(place, alone, capfd):
    with pytest.raises(RuntimeError, match="train in 2 processes ended with status 1; why stands"):
        train.run(parameters(place, "broken", lr=1e30, optimizer="sgd"))
    said = capfd.readouterr().out
    assert "FloatingPointError: the loss is" in said
    assert "Root Cause" in said, "torch's launcher says which rank ended first, and why"


@pytest.mark.slow
def test_an_interrupted_caller_ends_its_processes(place, project_root):
    """Ctrl-C in a cell: no rank trains on behind the notebook's back."""
    config = place / "long.json"
    asked = parameters(place, "long", epochs=1000, min_epochs=999)
    config.write_text(asked.model_dump_json(), encoding="utf-8")
    environment = os.environ | {"OMP_NUM_THREADS": "1", "KERNEL_LIB_MOUNTS": str(place / "none")}
    with subprocess.Popen(
        [sys.executable, "-u", "-m", "kernel_lib", "train", str(config)], cwd=project_root,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment,
    ) as child:  # fmt: skip
        for line in child.stdout:
            if "run demo_UNetResNet10" in line:
                break
        ranks = descendants(child.pid)
        assert len(ranks) >= 3, "the launcher and two ranks"
        child.send_signal(signal.SIGINT)
        child.communicate(timeout=120)
    assert child.returncode != 0
    deadline = time.monotonic() + 60
    while any(alive(pid) for pid in ranks) and time.monotonic() < deadline:
        os.sched_yield()
    assert not any(alive(pid) for pid in ranks)


def descendants(pid: int) -> list[int]:
    found = []
    for task in Path(f"/proc/{pid}/task").iterdir():
        for child in (task / "children").read_text().split():
            found += [int(child), *descendants(int(child))]
    return found


def alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state != "Z"
