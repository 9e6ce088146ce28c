"""Fixtures shared by all tests: real data, if there is any; phantoms; disks of their own."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import hypothesis
import pytest

from kernel_lib import storage
from tests.browser import browser, open_page  # noqa: F401

# A shared machine is slow at times: no test fails by its time.
hypothesis.settings.register_profile(
    "untimed", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
hypothesis.settings.load_profile("untimed")

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def project_root() -> Path:
    return ROOT


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Real labels and radiographs, kept outside the project; tests skip without them."""
    folder = Path(os.environ.get("PNEUMO_SHARED_DATA", ROOT.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"no real data in {folder} (set PNEUMO_SHARED_DATA)")
    return folder


def made_once(factory: pytest.TempPathFactory, name: str, make: Callable[[Path], None]) -> Path:
    """Return a folder that all processes of pytest-xdist share, made by the first that asks."""
    base = factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / name
    complete = folder / ".complete"
    with storage.folder_lock(folder, wait=True):
        if not complete.exists():
            shutil.rmtree(folder, ignore_errors=True)
            make(folder)
            complete.touch()
    return folder


@pytest.fixture(scope="session")
def phantoms(tmp_path_factory) -> Path:
    """A data folder, to be read alone: 24 training and 4 test phantoms of 128 px."""
    from tools.phantoms import competition

    def write(folder: Path) -> None:
        competition.write_competition(
            folder, 24, 4, size=128, seed=1, difficulty=0.1, positives=0.5, workers=1,
        )  # fmt: skip

    return made_once(tmp_path_factory, "phantoms", write)


@pytest.fixture(scope="session")
def phantom_run(tmp_path_factory, phantoms) -> Path:
    """A folder, to be read alone: `work` after train, thresholds and inference, and the `cache`."""
    import torch

    from tests.stages.place import Place

    def run(folder: Path) -> None:
        place, threads = Place(folder, phantoms), torch.get_num_threads()
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("KERNEL_LIB_MOUNTS", str(folder / "mounts"))
            place.train(), place.search(), place.infer()
        torch.set_num_threads(threads)

    return made_once(tmp_path_factory, "phantom_run", run)


@pytest.fixture(scope="module")
def scratch(tmp_path_factory) -> Iterator[Path]:
    """A folder that goes with its module: trainings of all modules together fill a small disk."""
    folder = tmp_path_factory.mktemp("scratch")
    yield folder
    shutil.rmtree(folder)


@pytest.fixture
def disk(tmp_path) -> Iterator[Callable[[str], Path]]:
    """A disk in memory, by the options that it is mounted with; tests skip where none can be."""
    folder = tmp_path / "disk"
    folder.mkdir()

    def mounted(options: str) -> Path:
        command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", folder]
        made = subprocess.run(command, capture_output=True, check=False)
        if made.returncode:
            pytest.skip(f"no disk can be mounted here: {made.stderr.decode().strip()}")
        return folder

    yield mounted
    if folder.is_mount():
        subprocess.run(["umount", folder], check=True)


@pytest.fixture(scope="module")
def place(scratch) -> Path:
    """A folder with synthetic radiographs of 64 px in `data`, for small trainings."""
    from tools.phantoms import competition

    competition.write_competition(
        scratch / "data", 30, 6, size=64, seed=1, difficulty=0.1, positives=0.4, workers=1,
    )  # fmt: skip
    return scratch


@pytest.fixture
def one_thread() -> Iterator[None]:
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
