"""What loader processes need in /dev/shm, before a training that would run out of it begins."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from kernel_lib.data import shared_memory
from kernel_lib.errors import InputError

KB, MB = 1024, 1_000_000


@pytest.mark.parametrize(
    ("workers", "images", "size", "free", "fits"),
    [
        (2, 16, 256, 64 * KB, False), (2, 16, 256, 4 * MB, False), (2, 16, 256, 16 * MB, True),
        (2, 16, 512, 16 * MB, False), (2, 16, 512, 64 * MB, True), (2, 16, 1024, 64 * MB, False),
        (4, 16, 512, 64 * MB, True), (4, 32, 512, 64 * MB, False), (0, 32, 1024, 0, True),
    ],
)  # fmt: skip
def test_the_batches_of_all_workers_must_fit(workers, images, size, free, fits):
    if fits:
        shared_memory.check(workers, images, size, free=free)
        return
    with pytest.raises(InputError) as error:
        shared_memory.check(workers, images, size, free=free)
    for words in ("/dev/shm has", f"WORKERS {workers}", "-p WORKERS 0", "--shm-size 2g"):
        assert words in str(error.value)
    assert "\n" not in str(error.value)


def test_the_processes_of_one_machine_share_it(monkeypatch):
    """Of a batch each rank's workers load its share, and each worker prepares as many batches."""
    shared_memory.check(2, 16, 512, free=30 * MB)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    monkeypatch.setenv("WORLD_SIZE", "2")
    shared_memory.check(2, 16, 512, free=30 * MB)
    monkeypatch.setenv("WORLD_SIZE", "1")
    with pytest.raises(InputError, match=r"has 30\.0 MB free"):
        shared_memory.check(2, 16, 512, free=30 * MB)


def test_what_is_free_is_measured(monkeypatch, tmp_path):
    monkeypatch.setattr(shared_memory, "FOLDER", tmp_path)
    used = type("Used", (), {"free": 64 * KB})
    monkeypatch.setattr(shared_memory.shutil, "disk_usage", lambda folder: used)
    with pytest.raises(InputError, match=f"{tmp_path} has 64 KB free, too little for WORKERS 3"):
        shared_memory.check(3, 8, 64)
    monkeypatch.setattr(shared_memory, "FOLDER", tmp_path / "none")  # as on macOS
    shared_memory.check(3, 8, 64)


# A loader's epoch beside the batch in use, as training and prediction hold them.
LOADED = """
import sys, numpy as np, torch
from torch.utils.data import DataLoader
workers, images, size = map(int, sys.argv[1:])
class Images(torch.utils.data.Dataset):
    def __len__(self): return 12 * images
    def __getitem__(self, i): return torch.full((1, size, size), 1, dtype=torch.uint8), i
for batch, _ in DataLoader(Images(), images, num_workers=workers): int(batch.sum())
"""


@pytest.mark.slow
@pytest.mark.parametrize(("workers", "images", "size"), [(2, 8, 64), (2, 16, 256), (3, 4, 1024)])
def test_where_it_says_that_there_is_room_a_loader_runs(disk, workers, images, size):
    """In a mount namespace of its own, whose /dev/shm has just what is asked for."""
    needed = shared_memory._needed(workers, images, size)
    pages = -(-needed // shared_memory.PAGE)
    code = [sys.executable, "-c", LOADED, str(workers), str(images), str(size)]
    for share, works in ((1.0, True), (0.3, False)):
        mount = f"mount -t tmpfs -o size={int(pages * share) * 4096} tmpfs /dev/shm"
        shell = [
            "unshare",
            "-m",
            "bash",
            "-c",
            f'{mount} || exit 77; exec timeout 120 "$@"',
            "-",
            *code,
        ]
        done = subprocess.run(shell, capture_output=True, text=True, check=False)
        if done.returncode == 77 or "unshare" in done.stderr:
            pytest.skip(f"no folder can be mounted here: {done.stderr.strip()}")
        assert (done.returncode == 0) == works, done.stderr[-2000:]


def test_a_full_one_leaves_the_decoding_to_one_process(monkeypatch, capsys):
    from kernel_lib.data import cache_workers

    def full(*args, **how):
        raise OSError(28, "No space left on device")

    tasks = list(range(5))
    monkeypatch.setattr(cache_workers, "ProcessPoolExecutor", full)
    monkeypatch.setattr(cache_workers, "TRIAL_S", 0.0)
    monkeypatch.setattr(cache_workers, "WORTH_S", -1.0)
    monkeypatch.setattr(cache_workers, "fill", lambda store, task: task * 2)
    found = list(cache_workers.outcomes(Path("store"), tasks, workers=2))
    assert found == [(n, 2 * n) for n in tasks]
    assert "by one process: No space left on device in /dev/shm" in capsys.readouterr().out
