"""A working folder that cannot be written is named before anything else is looked at."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from kernel_lib.config import InferenceParameters, ThresholdsParameters, TrainParameters
from kernel_lib.errors import InputError
from kernel_lib.stages import inference, thresholds, train


@pytest.fixture
def read_only(tmp_path) -> Path:
    """A disk that is mounted to be read."""
    folder = tmp_path / "input"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "ro,size=1m", "tmpfs", folder]
    made = subprocess.run(mount, capture_output=True, check=False)
    if made.returncode:
        pytest.skip(f"nothing can be mounted here: {made.stderr.decode().strip()}")
    yield folder
    subprocess.run(["umount", folder], check=True)


@pytest.mark.parametrize(
    ("stage", "parameters"),
    [
        (train, TrainParameters),
        (thresholds, ThresholdsParameters),
        (inference, InferenceParameters),
    ],
)
def test_each_stage_says_so_with_the_mend(read_only, stage, parameters):
    work = read_only / "work"
    places = {"work_dir": str(work), "data_dir": "no-such-folder"}
    if stage is train:
        places["experiment"] = "demo_UNetResNet10_128_v1"
    with pytest.raises(InputError, match=r"^WORK_DIR .*Read-only file system.*-p WORK_DIR") as it:
        stage.run(parameters(**places))
    assert str(work) in str(it.value)
