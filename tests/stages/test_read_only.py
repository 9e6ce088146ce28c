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
def file(tmp_path) -> Path:
    """A file where a folder is meant."""
    path = tmp_path / "file"
    path.write_text("no folder")
    return path


@pytest.fixture(params=["disk", "x", "x/y"])
def unwritable(request, file) -> tuple[Path, str]:
    """A working folder on a read-only disk or below a file, and what the system says of it."""
    if request.param == "disk":
        return request.getfixturevalue("disk")("ro,size=1m") / "work", "Read-only file system"
    return file / request.param, "Not a directory"


def run(stage, parameters, **places: str) -> None:
    if stage is train:
        places["experiment"] = "demo_UNetResNet10_128_v1"
    stage.run(parameters(**({"data_dir": "no-such-folder"} | places)))


@pytest.mark.parametrize(("stage", "parameters"), STAGES)
def test_each_stage_names_it_with_the_fix(unwritable, stage, parameters):
    work, why = unwritable
    with pytest.raises(InputError, match=rf"^WORK_DIR {work} .*{why}.*-p WORK_DIR"):
        run(stage, parameters, work_dir=str(work))


@pytest.mark.parametrize(("stage", "parameters"), [STAGES[0], STAGES[-1]])
@pytest.mark.parametrize("below", ["", "x"])
def test_a_cache_in_a_file_is_named_before_data_is_looked_for(
    tmp_path, file, stage, parameters, below
):
    with pytest.raises(InputError, match=rf"^CACHE_DIR {file / below} .*Not a dir.*-p CACHE_DIR"):
        run(stage, parameters, work_dir=str(tmp_path / "work"), cache_dir=str(file / below))


def test_gathering_names_it_with_its_own_option(tmp_path, unwritable):
    work, why = unwritable
    source = tmp_path / "source"  # without runs, which would be refused too
    source.mkdir()
    done = CliRunner().invoke(main, ["gather", str(source), "--into", str(work)])
    assert done.exit_code == 1, done.output
    assert isinstance(done.exception, SystemExit), "no traceback"
    assert f"Error: --into {work} cannot be written ({why}): fix that, or --into" in done.output
