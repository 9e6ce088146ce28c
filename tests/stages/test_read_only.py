"""A working folder that cannot be written is named before anything else is looked at."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner

from kernel_lib.__main__ import main
from kernel_lib.config import InferenceParameters, ThresholdsParameters, TrainParameters
from kernel_lib.errors import InputError
from kernel_lib.stages import inference, thresholds, train

STAGES = [
    (train, TrainParameters),
    (thresholds, ThresholdsParameters),
    (inference, InferenceParameters),
]


@pytest.fixture
def read_only(disk) -> Path:
    """A disk that is mounted to be read."""
    return disk("ro,size=1m")


@pytest.fixture
def file(tmp_path) -> Path:
    """A file where a folder is meant."""
    path = tmp_path / "file"
    path.write_text("no folder")
    return path


def run(stage, parameters, work: Path) -> None:
    places = {"work_dir": str(work), "data_dir": "no-such-folder"}
    if stage is train:
        places["experiment"] = "demo_UNetResNet10_128_v1"
    stage.run(parameters(**places))


def gather(tmp_path: Path, work: Path) -> str:
    """What the command says that refuses to gather a folder without runs."""
    source = tmp_path / "source"
    source.mkdir(exist_ok=True)
    done = CliRunner().invoke(main, ["gather", str(source), "--into", str(work)])
    assert done.exit_code == 1, done.output
    assert isinstance(done.exception, SystemExit), "no traceback"
    return done.output


@pytest.mark.parametrize(("stage", "parameters"), STAGES)
def test_each_stage_says_so_with_the_mend(read_only, stage, parameters):
    work = read_only / "work"
    with pytest.raises(InputError, match=r"^WORK_DIR .*Read-only file system.*-p WORK_DIR") as it:
        run(stage, parameters, work)
    assert str(work) in str(it.value)


@pytest.mark.parametrize(("stage", "parameters"), STAGES)
@pytest.mark.parametrize("below", ["x", "x/y"])
def test_each_stage_names_a_folder_that_would_lie_in_a_file(file, stage, parameters, below):
    with pytest.raises(InputError, match=rf"^WORK_DIR {file / below} .*Not a directory.*-p WORK_"):
        run(stage, parameters, file / below)


@pytest.mark.parametrize(("stage", "parameters"), [STAGES[0], STAGES[-1]])
@pytest.mark.parametrize("below", ["", "x"])
def test_a_cache_in_a_file_is_named_before_data_is_looked_for(
    tmp_path, file, stage, parameters, below
):
    places = {"cache_dir": str(file / below), "data_dir": str(tmp_path / "none")}
    with pytest.raises(InputError, match=rf"^CACHE_DIR {file / below} .*Not a dir.*-p CACHE_DIR"):
        stage.run(parameters(work_dir=str(tmp_path / "work"), **places))


def test_gathering_says_so_with_its_own_option(tmp_path, read_only):
    work = read_only / "work"
    said = f"Error: --into {work} cannot be written (Read-only file system): fix that, or --into"
    assert said in gather(tmp_path, work)


@pytest.mark.parametrize("below", ["x", "x/y"])
def test_gathering_names_a_folder_that_would_lie_in_a_file(tmp_path, file, below):
    said = f"Error: --into {file / below} cannot be written (Not a directory): fix that, or --into"
    assert said in gather(tmp_path, file / below)
