"""What an item is depends on (seed, epoch, image), and never on who makes it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from kernel_lib.data import cache_store, dataset
from kernel_lib.data.dataset import PlainImages, TrainingImages, plain_loader, training_loader
from kernel_lib.errors import InputError

SIZE, N = 32, 6


class FakePrepared:
    """The reader's interface over arrays that cannot be written to."""

    def __init__(self) -> None:
        self.images = np.random.default_rng(0).integers(0, 256, (N, SIZE, SIZE), dtype=np.uint8)
        self.images.setflags(write=False)
        self.table = pd.DataFrame({"image_id": [f"image{i}" for i in range(N)]})

    def image(self, i: int) -> np.ndarray:
        return self.images[i]

    def mask(self, i: int) -> np.ndarray:
        return (self.images[i] > 127).astype(np.uint8)


def training_images(seed: int = 7, augmentation: str = "notes") -> TrainingImages:
    return TrainingImages(FakePrepared(), augmentation, seed)


def epoch(number: int, workers: int, seed: int = 7, batch: int = 2) -> torch.Tensor:
    """Images and masks (N, 2, S, S) of an epoch, in the rows' order."""
    keys = [(number, row, 0) for row in range(N)]
    batches = [keys[i : i + batch] for i in range(0, N, batch)]
    loader = training_loader(training_images(seed), batches, workers, pin=False)
    result = [(torch.cat([image, mask], 1), rows) for image, mask, rows in loader]
    assert torch.cat([rows for _, rows in result]).tolist() == list(range(N))
    return torch.cat([items for items, _ in result])


def test_an_item_is_an_image_a_mask_and_a_row():
    image, mask, row = training_images()[(3, 4, 0)]
    assert image.shape == mask.shape == (1, SIZE, SIZE)
    assert image.dtype == mask.dtype == torch.uint8
    assert mask.max() == 1
    assert row == 4
    image, mask, _ = training_images(augmentation="none")[(0, 2, 0)]
    assert np.array_equal(image[0].numpy(), FakePrepared().image(2))
    assert np.array_equal(mask[0].numpy(), FakePrepared().mask(2))


def test_an_image_shown_twice_in_an_epoch_looks_different():
    images = training_images()
    first, again = images[(0, 2, 0)][0], images[(0, 2, 1)][0]
    assert not torch.equal(first, again)
    assert torch.equal(again, images[(0, 2, 1)][0])


def test_workers_make_the_same_items_and_do_not_repeat_epochs():
    own = [epoch(number, workers=0) for number in range(2)]
    loaded = [epoch(number, workers=2) for number in range(2)]
    assert all(map(torch.equal, own, loaded))
    assert not torch.equal(loaded[0], loaded[1])


def test_batches_and_order_do_not_matter_and_seeds_do():
    assert torch.equal(epoch(1, 0, batch=2), epoch(1, 0, batch=5))
    images = training_images()
    late = images[(1, 3, 0)]
    images[(0, 1, 0)]
    assert torch.equal(images[(1, 3, 0)][0], late[0])
    assert not torch.equal(epoch(0, 0, seed=7), epoch(0, 0, seed=8))


@pytest.mark.parametrize("workers", [0, 1])
def test_loading_leaves_the_generators_alone(workers):
    """Dropout draws from them: a resumed run makes one loader more, and must not drop others."""
    torch.manual_seed(1)
    np.random.seed(1)
    before = torch.get_rng_state(), np.random.get_state()[1].tolist()
    epoch(0, workers)
    list(plain_loader(PlainImages(FakePrepared(), range(N)), 4, workers, pin=False))
    assert torch.equal(torch.get_rng_state(), before[0])
    assert np.random.get_state()[1].tolist() == before[1]


def test_plain_images_come_once_in_order_the_last_batch_short():
    rows = np.array([5, 0, 3])
    loader = plain_loader(PlainImages(FakePrepared(), rows), 2, 0, pin=False)
    batches = list(loader)
    assert [b[1].tolist() for b in batches] == [[5, 0], [3]]
    assert [b[0].shape for b in batches] == [(2, 1, SIZE, SIZE), (1, 1, SIZE, SIZE)]
    assert np.array_equal(batches[1][0][0, 0].numpy(), FakePrepared().image(3))
    batches[0][0].zero_()  # a tensor of its own, not the read-only cache


KB, MB = 1024, 1_000_000


@pytest.fixture
def set_free(monkeypatch, tmp_path):
    """Let /dev/shm be a folder of so many free bytes."""

    def call(n_bytes: int) -> None:
        monkeypatch.setattr(dataset, "SHARED_MEMORY", tmp_path)
        usage = type("Usage", (), {"free": n_bytes})
        monkeypatch.setattr(dataset.shutil, "disk_usage", lambda folder: usage)

    return call


@pytest.mark.parametrize(
    ("workers", "images", "size", "free", "fits"),
    [
        (2, 16, 256, 64 * KB, False), (2, 16, 256, 4 * MB, False), (2, 16, 256, 16 * MB, True),
        (2, 16, 512, 16 * MB, False), (2, 16, 512, 64 * MB, True), (2, 16, 1024, 64 * MB, False),
        (4, 16, 512, 64 * MB, True), (4, 32, 512, 64 * MB, False), (0, 32, 1024, 0, True),
    ],
)  # fmt: skip
def test_the_batches_of_all_workers_must_fit(set_free, workers, images, size, free, fits):
    set_free(free)
    if fits:
        dataset.check_shared_memory(workers, images, size)
        return
    with pytest.raises(InputError) as error:
        dataset.check_shared_memory(workers, images, size)
    for words in ("has", f"WORKERS {workers}", "-p WORKERS 0", "--shm-size 2g"):
        assert words in str(error.value)
    assert "\n" not in str(error.value)


def test_the_processes_of_one_machine_share_it(set_free, monkeypatch):
    """Of a batch each rank's workers load its share, and each worker prepares as many batches."""
    set_free(30 * MB)
    dataset.check_shared_memory(2, 16, 512)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    monkeypatch.setenv("WORLD_SIZE", "2")
    dataset.check_shared_memory(2, 16, 512)
    monkeypatch.setenv("WORLD_SIZE", "1")
    with pytest.raises(InputError, match=r"has 30\.0 MB free"):
        dataset.check_shared_memory(2, 16, 512)


def test_what_is_free_is_measured_where_there_is_such_a_folder(set_free, monkeypatch, tmp_path):
    set_free(64 * KB)
    with pytest.raises(InputError, match=f"{tmp_path} has 64 KB free, too little for WORKERS 3"):
        dataset.check_shared_memory(3, 8, 64)
    monkeypatch.setattr(dataset, "SHARED_MEMORY", tmp_path / "none")  # as on macOS
    dataset.check_shared_memory(3, 8, 64)


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
    needed = dataset._needed(workers, images, size)
    pages = -(-needed // dataset.PAGE)
    code = [sys.executable, "-c", LOADED, str(workers), str(images), str(size)]
    for share, works in ((1.0, True), (0.3, False)):
        mount = f"mount -t tmpfs -o size={int(pages * share) * 4096} tmpfs /dev/shm"
        script = f'{mount} || exit 77; exec timeout 120 "$@"'
        shell = ["unshare", "-m", "bash", "-c", script, "-", *code]
        done = subprocess.run(shell, capture_output=True, text=True, check=False)
        if done.returncode == 77 or "unshare" in done.stderr:
            pytest.skip(f"no folder can be mounted here: {done.stderr.strip()}")
        assert (done.returncode == 0) == works, done.stderr[-2000:]


def test_a_full_one_leaves_the_decoding_to_one_process(monkeypatch, capsys):
    def full(*args, **how):
        raise OSError(28, "No space left on device")

    tasks = list(range(5))
    monkeypatch.setattr(cache_store, "ProcessPoolExecutor", full)
    monkeypatch.setattr(cache_store, "TRIAL_S", 0.0)
    monkeypatch.setattr(cache_store, "WORTH_S", -1.0)
    monkeypatch.setattr(cache_store, "fill", lambda store, task: task * 2)
    result = list(cache_store.outcomes(Path("store"), tasks, workers=2))
    assert result == [(n, 2 * n) for n in tasks]
    assert "by one process: No space left on device in /dev/shm" in capsys.readouterr().out
