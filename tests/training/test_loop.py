"""The loop on tiny phantoms: what is kept, how it stops, and that it ends the same."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from kernel_lib import checkpoints
from kernel_lib.artifacts import fold_run
from kernel_lib.artifacts.lineage import Lineage
from kernel_lib.config import Experiment, TrainParameters
from kernel_lib.data import rle
from kernel_lib.engine import Engine, choose_engine
from kernel_lib.errors import InputError
from kernel_lib.models import base
from kernel_lib.parallel.world import SINGLE_PROCESS, World
from kernel_lib.plan import TrainPlan
from kernel_lib.training.job import Clock
from kernel_lib.training.loop import Job, Training
from kernel_lib.training.sampling import SAMPLERS

SIZE, N = 32, 11


class FakePrepared:
    """Bright discs on noise, with the reader's interface."""

    def __init__(self) -> None:
        generator = np.random.default_rng(0)
        self.images = generator.integers(0, 120, (N, SIZE, SIZE), dtype=np.uint8)
        self.masks = np.zeros((N, SIZE, SIZE), np.uint8)
        for i in range(0, N, 2):
            y, x = generator.integers(4, 20, 2)
            self.masks[i, y : y + 9, x : x + 9] = 1
            self.images[i][self.masks[i] > 0] += 120
        self.table = pd.DataFrame(
            {
                "image_id": [f"image{i}" for i in range(N)],
                "rle": [rle.encode(m) for m in self.masks],
                "height": SIZE,
                "width": SIZE,
                "area_px": self.masks.sum(axis=(1, 2)),
            }
        )

    def image(self, i: int) -> np.ndarray:
        return self.images[i]

    def mask(self, i: int) -> np.ndarray:
        return self.masks[i]


class TinyNet(nn.Module):
    """A network with batch norm and dropout, which a resumed run must repeat."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Conv2d(1, 8, 3, padding=1)
        self.rest = nn.Sequential(
            nn.BatchNorm2d(8), nn.ReLU(), nn.Dropout(0.3), nn.Conv2d(8, 1, 3, padding=1)
        )

    def forward(self, levels: torch.Tensor) -> base.Logits:
        return base.Logits(mask=self.rest(self.encoder(levels.float() / 255)))


def tiny(**changes) -> Experiment:
    base = Experiment(
        name="tiny", size=SIZE, epochs=4, min_epochs=2, batch_size=2, accumulate=2, lr=0.05,
        optimizer="adamw", keep=2, ema_decay=0.9, weights="none",
    )  # fmt: skip
    return base.differing(name="tiny", **changes) if changes else base


def training(
    folder: Path, experiment: Experiment | None = None, clock: Clock | None = None,
    on: Engine | None = None, network: Callable[[], nn.Module] = TinyNet, held_from: int = 7,
    world: World = SINGLE_PROCESS, **parameters,
) -> Training:  # fmt: skip
    torch.manual_seed(5)
    prepared = FakePrepared()
    settings = TrainParameters(seed=7, **parameters)
    job = Job(
        folder=fold_run.fold_folder(folder, "tiny_seed7", 0),
        plan=TrainPlan(run="tiny_seed7", experiment=experiment or tiny(), parameters=settings),
        prepared=prepared,
        train_rows=np.arange(min(7, held_from)),
        held_rows=np.arange(held_from, N),
        truth=prepared.table.assign(positive=prepared.table["rle"] != "-1"),
        lineage=Lineage(images=("image0",), chosen_on=("elsewhere",)),
        engine=on or choose_engine("cpu"),
        workers=0,
        world=world,
    )
    return Training(job, network(), clock or Clock(None))


def weights_of(folder: Path) -> dict[str, torch.Tensor]:
    """Return every tensor that a finished training leaves, by file and name."""
    weights = {}
    for path in sorted((folder / "runs/tiny_seed7/fold0").glob("*.pt")):
        state, _ = checkpoints.load(path)
        for part in ("model", "ema"):
            tensors = state.get(part, {})
            tensors = tensors.get("model", tensors)
            weights |= {f"{path.name}/{part}/{k}": v for k, v in tensors.items()}
    return weights


def assert_same(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> None:
    assert first.keys() == second.keys()
    for name in first:
        assert torch.equal(first[name], second[name]), name


def assert_same_end(first: Path, second: Path) -> None:
    """Assert that trainings in two folders have the same weights, bit for bit, and the same log."""
    assert_same(weights_of(first), weights_of(second))
    assert without_times(first) == without_times(second)


def without_times(folder: Path) -> list[dict]:
    lines = fold_run.fold_folder(folder, "tiny_seed7", 0).read_log()
    timed = ("seconds", "val_seconds", "images_per_second", "memory_mb", "gpu_memory_mb")
    return [{k: v for k, v in line.items() if k not in timed} for line in lines]


@pytest.mark.parametrize("stop_after", [None, 1, 2, 3, 5, 6, 7])
def test_stopped_after_any_step_and_resumed_it_ends_with_the_same_bits(tmp_path, stop_after):
    assert training(tmp_path / "unbroken").run()
    if stop_after is not None:
        assert not training(tmp_path / "parts", clock=StepsClock(stop_after)).run()
    # Something else used the generators meanwhile.
    torch.rand(3), np.random.rand(3)
    assert training(tmp_path / "parts").run()
    assert_same_end(tmp_path / "unbroken", tmp_path / "parts")


def test_a_checkpoint_of_another_version_is_named_with_the_fix(tmp_path):
    first = training(tmp_path)
    assert first.run()
    last = first.job.folder.last
    state, lineage = checkpoints.load(last)
    for change in ({"random": {"torch": 1}}, {"position": {"epoch": 1, "unheard_of": 2}}):
        checkpoints.save(last, state | change, lineage)
        with pytest.raises(InputError, match=r"last\.pt holds no training that .*delete"):
            training(tmp_path)


@pytest.mark.parametrize("sampling", SAMPLERS)
def test_stopped_at_every_step_every_sampler_ends_with_the_same_bits(tmp_path, sampling):
    experiment, sessions = tiny(sampling=sampling), 1
    assert training(tmp_path / "unbroken", experiment).run()
    while not training(tmp_path / "parts", experiment, StepsClock(1)).run():
        sessions += 1
    assert sessions > 4  # epochs with a validation; of several steps if not `nonempty`
    assert_same_end(tmp_path / "unbroken", tmp_path / "parts")


def test_hard_images_come_again_in_the_epoch_after(tmp_path):
    """Each epoch's order follows from what the one before thought of each training image."""
    job = training(tmp_path, tiny(sampling="hard", epochs=2, min_epochs=1))
    shown, real = [], job._step

    def step(stream, batches) -> None:
        shown.extend(key for batch in batches for key in batch.tolist())
        real(stream, batches)

    job._step = step
    job._train_epoch()
    assert sorted(row for _, row, _ in shown) == list(range(7)), "at first nothing is known"
    assert job.hardness[:7].any()
    assert not job.hardness_before.any()
    assert not job.hardness[7:].any(), "held-out images are never looked at"
    job._end_epoch()
    assert torch.equal(job.hardness, job.hardness_before)
    before, shown[:] = job.hardness.clone(), []
    job._train_epoch()
    extra = min(float(before[:7].sum()), 0.5 * 7)
    assert len(shown) == 7 + int(extra + 0.5)
    again = [row for _, row, turn in shown if turn]
    assert again
    assert all(before[row] > 0 for row in again)


class StepsClock(Clock):
    """Allows so many pieces of work, then no more: a limit without waiting for it."""

    def __init__(self, allowed: int) -> None:
        super().__init__(None)
        self.allowed = allowed

    def allows(self, seconds: float) -> bool:
        self.allowed -= 1
        return self.allowed >= 0


def test_a_kill_between_the_best_and_the_last_checkpoint_loses_nothing(tmp_path, monkeypatch):
    assert training(tmp_path / "unbroken").run()
    broken = training(tmp_path / "parts")
    real, calls = checkpoints.save, []

    def dies_on_last(path, state, lineage):
        calls.append(path.name)
        if calls.count("last.pt") == 3 and path.name == "last.pt":
            raise KeyboardInterrupt
        real(path, state, lineage)

    monkeypatch.setattr(checkpoints, "save", dies_on_last)
    with pytest.raises(KeyboardInterrupt):
        broken.run()
    monkeypatch.undo()
    assert training(tmp_path / "parts").run()
    assert_same(weights_of(tmp_path / "unbroken"), weights_of(tmp_path / "parts"))


def test_a_checkpoint_that_others_speak_of_and_that_is_gone_is_named(tmp_path):
    """Not trained again in silence, over what is left of hours of training."""
    training(tmp_path).run()
    folder = fold_run.fold_folder(tmp_path, "tiny_seed7", 0)
    best = folder.kept()[0]
    for path in (best, folder.last):
        path.rename(tmp_path / "away")
        with pytest.raises(InputError, match=rf"{path} is gone, .* delete {folder.path}"):
            training(tmp_path)
        (tmp_path / "away").rename(path)
    assert training(tmp_path).position.ended
    folder.oof.touch()
    for path in (folder.log, folder.last):  # the maps say that there was one
        path.unlink()
    with pytest.raises(InputError, match=rf"{folder.last} is gone"):
        training(tmp_path)


def test_nothing_is_kept_and_patience_does_not_count_before_min_epochs(tmp_path):
    experiment = tiny(epochs=8, min_epochs=5, patience=1, lr=1e-9, keep=1, monitor="dice")
    job = training(tmp_path, experiment)  # which learns nothing
    job.run()
    log = job.job.folder.read_log()
    assert next(line["epoch"] for line in log if line["best"]) == 5
    *before, last = log
    assert len(before) >= 5
    assert last["ended"] == job.position.ended == "no better dice for 1 epochs"
    assert not any("ended" in line for line in before)


def test_without_a_monitor_the_last_epochs_stay_and_no_label_chooses_them(tmp_path):
    job = training(tmp_path, tiny(epochs=5, min_epochs=1, patience=1, keep=2))
    assert job.run()
    folder = job.job.folder
    assert folder.kept_epochs() == [4, 5]
    assert job.position.ended == "all 5 epochs"
    for path in (*folder.kept(), folder.last):
        assert checkpoints.lineage(path).chosen_on == ("elsewhere",)


@pytest.mark.parametrize(("patience", "last_chosen"), [(1, True), (8, False)])
def test_labels_that_select_epochs_or_end_a_training_are_in_its_lineage(
    tmp_path, patience, last_chosen
):
    experiment = tiny(epochs=8, min_epochs=1, patience=patience, lr=1e-9, keep=1, monitor="dice")
    job = training(tmp_path, experiment)
    job.run()
    held_out = (f"image{n}" for n in range(7, N))
    folder, chosen = job.job.folder, tuple(sorted(("elsewhere", *held_out)))
    assert checkpoints.lineage(*folder.kept()).chosen_on == chosen
    assert checkpoints.lineage(folder.last).chosen_on == (chosen if last_chosen else ("elsewhere",))


def test_only_the_best_k_checkpoints_stay(tmp_path):
    job = training(tmp_path, tiny(epochs=6, min_epochs=1, keep=2, monitor="val_loss"))
    assert job.run()
    log = job.job.folder.read_log()
    best = sorted(log, key=lambda line: (line["val_loss"], line["epoch"]))[:2]
    expected = sorted(job.job.folder.best(line["epoch"]).name for line in best)
    assert [p.name for p in job.job.folder.kept()] == expected


def test_the_log_is_rewritten_from_the_checkpoint(tmp_path):
    job = training(tmp_path)
    job.run()
    lines = job.job.folder.log.read_text()
    job.job.folder.log.write_text(lines + '{"epoch": 99')  # half a line, as a kill leaves it
    training(tmp_path)
    assert job.job.folder.log.read_text() == lines
    assert [json.loads(line)["epoch"] for line in lines.splitlines()] == [1, 2, 3, 4]


@pytest.mark.parametrize("accumulate", [2, 4])
def test_accumulated_gradients_equal_those_of_the_whole_batch(tmp_path, accumulate):
    """7 images in batches of 2: the last group, and the last batch, are shorter."""
    gradients = []
    for batch, groups, name in ((2, accumulate, "a"), (2 * accumulate, 1, "b")):
        job = training(tmp_path / name, tiny(batch_size=batch, accumulate=groups, augment="none",
                                            freeze_batch_norm=True, optimizer="sgd",
                                            momentum=0.0, weight_decay=0.0))  # fmt: skip
        job.model.rest[2].p = 0.0
        collected = []
        real = job.optimizer.step
        job.optimizer.step = lambda *a, real=real, job=job, into=collected: (
            into.append([p.grad.clone() for p in job.model.parameters()]), real(*a)
        )  # fmt: skip
        job._train_epoch()
        gradients.append(collected)
    first, second = gradients
    assert len(first) == len(second)
    for step_a, step_b in zip(first, second, strict=True):
        for a, b in zip(step_a, step_b, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)
