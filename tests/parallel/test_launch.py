"""Several processes, started by themselves: by the stages, on CPUs."""

from __future__ import annotations

import contextlib
import io
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from kernel_lib import checkpoints
from kernel_lib.artifacts import fold_run
from kernel_lib.artifacts.maps import Maps
from kernel_lib.config import InferenceParameters, ThresholdsParameters, TrainParameters
from kernel_lib.errors import InputError
from kernel_lib.parallel import launch
from kernel_lib.stages import inference, report, thresholds, train


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
    with pytest.raises(InputError, match="PROCESSES 2, but DEVICE cuda:1 is one GPU"):
        launch.n_processes(2, "cuda:1")


def test_counting_gpus_makes_no_context():
    script = "from kernel_lib.parallel import launch; import torch; "
    script += "launch.n_processes(None, 'auto'); print(torch.cuda.is_initialized())"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.stdout.strip() == "False", done.stderr


# How ranks ended, without processes


@pytest.fixture
def end_rank(monkeypatch, tmp_path) -> Callable[[int, BaseException | None], None]:
    """A function that ends one rank, with that error, of a stage with the result `result.json`."""
    monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", str(tmp_path / "error.json"))
    monkeypatch.setattr(launch, "_end_with_starter", lambda: None)

    def end(rank: int, error: BaseException | None) -> None:
        def run(parameters):
            if error is not None:
                raise error

        monkeypatch.setenv("RANK", str(rank))
        with pytest.raises(type(error)) if error is not None else contextlib.nullcontext():
            launch.as_rank(run, tmp_path / "result.json")({})

    return end


@pytest.mark.parametrize(
    ("first", "expected"),
    [
        (SystemExit(143), SystemExit(143)),
        (KeyboardInterrupt(), KeyboardInterrupt()),
        (InputError("no room"), InputError("no room")),
        (RuntimeError("broken"), None),
    ],
)
def test_the_first_failure_is_raised_and_not_those_that_follow(end_rank, tmp_path, first, expected):
    result = tmp_path / "result.json"
    assert launch.first_end(result, 3) is None
    end_rank(2, None)
    end_rank(1, first)
    end_rank(0, SystemExit(143))  # by the launcher
    cause = launch.first_end(result, 3)
    assert (type(cause), str(cause)) == (type(expected), str(expected))


def test_a_report_cut_by_a_kill_is_left_out(tmp_path):
    (tmp_path / "result.json.rank1").write_text('{"at": 1, "sta')
    assert launch.first_end(tmp_path / "result.json", 2) is None


def test_the_launcher_s_sigterm_is_not_the_cause_where_a_rank_was_killed(end_rank, tmp_path):
    end_rank(0, SystemExit(143))
    assert launch.first_end(tmp_path / "result.json", 2) is None, "rank 1 was killed before"
    end_rank(1, None)
    assert launch.first_end(tmp_path / "result.json", 2).code == 143, "rank 1 had ended well"


def test_a_refusal_is_raised_though_another_rank_was_then_killed(end_rank, tmp_path):
    end_rank(0, InputError("no room"))
    assert str(launch.first_end(tmp_path / "result.json", 2)) == "no room"


# By the stages


@pytest.fixture(scope="module")
def quiet(place):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("KERNEL_LIB_MOUNTS", str(place / "none"))
        patch.setenv("OMP_NUM_THREADS", "1")
        patch.setattr(report, "write", lambda *args, **how: None)
        yield


def parameters(place: Path, work: str, **changes) -> TrainParameters:
    values = {
        "experiment": "demo_UNetResNet10_128_v1", "size": 64, "epochs": 2, "n_folds": 2, "fold": 0,
        "encoder": "tu-test_resnet", "data_dir": str(place / "data"), "work_dir": str(place / work),
        "device": "cpu", "cache_dir": str(place / "cache"), "threads": 1, "augment": "none",
        "processes": 2, "batch_size": 2,
    }  # fmt: skip
    return TrainParameters.checked(values | changes)


@pytest.fixture(scope="module")
def trained(place, quiet) -> tuple[train.TrainResult, str]:
    """Train undisturbed in two processes; return the result and the output."""
    output = io.StringIO()
    with contextlib.redirect_stdout(output):
        done = train.run(parameters(place, "work"))
    return done, output.getvalue()


@pytest.mark.slow
def test_training_and_inference_start_their_own_processes(place, trained):
    """Both notebooks call these; two processes leave a complete run and submission."""
    done, output = trained
    assert "2 processes, each with its share of every batch" in output
    assert output.count("run demo_UNetResNet10_128_v1") == 1, "the first rank's lines come out here"
    assert (done.finished, done.complete) == ((0,), True)
    assert len(next(iter(done.logs().values()))) == 2
    common = {"work_dir": str(place / "work"), "data_dir": str(place / "data")}
    thresholds.run(ThresholdsParameters(work_dir=common["work_dir"], bootstrap=100))
    here = {"cache_dir": str(place / "cache"), "device": "cpu", "threads": 1, "batch_size": 2}
    shared = inference.run(InferenceParameters(**common, **here, processes=2))
    folder = fold_run.find([place / "work"], done.run)[0]
    archive = Maps(folder.test)
    theirs = {image_id: archive[image_id] for image_id in archive.ids}
    submitted = shared.submission.read_bytes()
    assert len(theirs) == 6
    folder.test.unlink()
    single = inference.run(InferenceParameters(**common, **here, processes=1))
    assert single.submission.read_bytes() == submitted
    mine = Maps(folder.test)
    assert mine.ids == list(theirs)
    assert all((mine[image_id] == theirs[image_id]).all() for image_id in theirs)


def test_a_submission_is_one_process_s_work(monkeypatch):
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(InputError, match=r"one process.*PROCESSES"):
        inference.run(InferenceParameters())


@pytest.mark.slow
def test_the_failure_of_a_rank_is_printed_and_fails_the_caller(place, quiet, capfd):
    with pytest.raises(RuntimeError, match="train in 2 processes ended with status 1; why stands"):
        train.run(parameters(place, "broken", lr=1e30, optimizer="sgd"))
    output = capfd.readouterr().out
    assert "FloatingPointError: the loss is" in output
    assert "Root Cause" in output, "torch's launcher says which rank ended first, and why"


# Forks the command line, warm, into a file for each line of two paths; says its pid and status.
WARM = """
import os, sys, traceback
from kernel_lib.__main__ import main
from kernel_lib.stages import train
for line in sys.stdin:
    config, says = line.split()
    child = os.fork()
    if not child:
        status = 1
        try:
            os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
            for stream in (1, 2):
                os.dup2(os.open(says, os.O_WRONLY | os.O_CREAT | os.O_APPEND), stream)
            main(args=["train", config], prog_name="kernel_lib")
        except SystemExit as ended:
            status = ended.code or 0
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            os._exit(status)
    print(child, flush=True)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


@pytest.fixture
def warm(project_root) -> Iterator[subprocess.Popen]:
    with subprocess.Popen(
        [sys.executable, "-c", WARM], cwd=project_root, stdin=subprocess.PIPE,
        stdout=subprocess.PIPE, text=True,
    ) as process:  # fmt: skip
        yield process
        process.stdin.close()


class Started:
    """The command line in two processes: its `parent`, the `launcher` of that and their `ranks`."""

    def __init__(self, warm: subprocess.Popen, config: Path, saves: Path | None = None) -> None:
        """Start it, and wait until a checkpoint is saved at `saves`."""
        before, deadline = _written(saves), time.monotonic() + 200
        self.warm, self.log = warm, config.with_suffix(f".{time.monotonic_ns()}.txt")
        warm.stdin.write(f"{config} {self.log}\n")
        warm.stdin.flush()
        self.parent, self.started = int(warm.stdout.readline()), []
        while saves is not None and _written(saves) == before:
            assert time.monotonic() < deadline, "it does not come to save"
            assert alive(self.parent), self.log.read_text()
            time.sleep(0.01)
        self.started = descendants(self.parent) if saves is not None else []

    def rank(self, number: int) -> int:
        """Return the process id of this rank."""
        marker = f"\0RANK={number}\0"
        (pid,) = (p for p in self.started if marker in Path(f"/proc/{p}/environ").read_text())
        return pid

    def ended(self) -> tuple[int, str]:
        """Wait until it and all that it started have ended; return its status and the output."""
        status = int(self.warm.stdout.readline())
        deadline = time.monotonic() + 60
        while left := [pid for pid in self.started if alive(pid)]:
            assert time.monotonic() < deadline, f"of a training that ended {left} are left"
            time.sleep(0.05)
        return status, self.log.read_text(errors="replace")


def _written(path: Path | None) -> tuple[int, int] | None:
    if path is None or not path.exists():
        return None
    return path.stat().st_ino, path.stat().st_mtime_ns


@pytest.mark.slow
def test_all_processes_end_together_and_the_same_command_goes_on(place, trained, warm):
    """Send one training SIGTERM, then SIGKILL, to a rank; then SIGKILL, then SIGINT, to the parent.

    A process that is asked to end saves first. The end is that of an undisturbed training.
    """
    config = place / "disturbed.json"
    asked = parameters(place, "disturbed", save_minutes=0.002)
    config.write_text(asked.model_dump_json(), encoding="utf-8")
    here = fold_run.fold_folder(place / "disturbed", trained[0].run, 0)

    def left() -> list[str]:
        return [path.name for path in place.glob("disturbed/**/.*")]

    def disturbed(who: str, number: int) -> tuple[int, str, int]:
        """Return the status, the output and the number of optimiser steps that are saved."""
        started = Started(warm, config, here.last)
        os.kill(started.parent if who == "parent" else started.rank(1), number)
        status, output = started.ended()
        at = checkpoints.load(here.last)[0]["position"]
        return status, output, 8 * at["epoch"] + at["step"]

    status, output, steps = disturbed("rank", signal.SIGTERM)
    assert (status, left()) == (143, []), output
    assert "asked to end in epoch 1 after step" in output
    status, output, after = disturbed("rank", signal.SIGKILL)
    assert status == 1, output
    assert after > steps > 0
    assert "Signal 9 (SIGKILL) received by PID" in output
    assert "train in 2 processes ended with status 1; why stands above" in output
    status, output, steps = disturbed("parent", signal.SIGKILL)
    assert (status, left()) == (-9, []), "its ranks ended as if asked to, and hold nothing"
    status, output, after = disturbed("parent", signal.SIGINT)
    assert (status, left()) == (130, []), output
    assert "all saved; run the same command again to go on" in output
    assert 16 > after > steps
    status, output = Started(warm, config).ended()
    assert (status, left()) == (0, []), output
    undisturbed = fold_run.find([place / "work"], trained[0].run)[0]
    assert checkpoints.digest(here.last) == checkpoints.digest(undisturbed.last)
    for name in ("oof.zip", "oof_last.zip"):
        assert (here.path / name).read_bytes() == (undisturbed.path / name).read_bytes()


def descendants(pid: int) -> list[int]:
    pids = []
    for task in Path(f"/proc/{pid}/task").iterdir():
        for child in (task / "children").read_text().split():
            pids += [int(child), *descendants(int(child))]
    return pids


def alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state != "Z"
