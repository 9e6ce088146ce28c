"""The compiled step trains the same network, under the same names."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from kernel_lib import checkpoints
from kernel_lib.engine import peak_memory
from kernel_lib.errors import InputError
from kernel_lib.training import step
from kernel_lib.training.loop import Training
from tests.training.test_loop import (
    StepsClock,
    assert_same,
    assert_same_end,
    tiny,
    training,
    weights_of,
)


@pytest.fixture(autouse=True)
def _without_a_compiler(monkeypatch):
    """Trace the network as for any backend, and run it as it is: no C++ compiler is needed."""
    monkeypatch.setattr(step, "COMPILER", "aot_eager")
    yield
    torch.compiler.reset()


@pytest.mark.slow
def test_a_compiled_training_stops_resumes_and_ends_with_the_same_bits(tmp_path):
    """Of batches of 2 and a last one of 1, so that more than one graph is made."""
    experiment = tiny(batch_size=2, accumulate=1, epochs=3)
    assert training(tmp_path / "complete", experiment, compile=True).run()
    parts = training(tmp_path / "parts", experiment, StepsClock(5), compile=True)
    assert not parts.run()
    assert training(tmp_path / "parts", experiment, compile=True).run()
    assert_same_end(tmp_path / "complete", tmp_path / "parts")


def test_compilation_is_used_and_changes_no_name_in_a_checkpoint(tmp_path):
    plain = training(tmp_path / "plain")
    compiled = training(tmp_path / "compiled", compile=True)
    assert compiled.model._compiled_call_impl is not None
    assert plain.model._compiled_call_impl is None
    assert compiled.ema.model._compiled_call_impl is None, "validation runs it as it is"
    compiled._save()
    state, _ = checkpoints.load(compiled.job.folder.last)
    assert state["model"].keys() == plain.model.state_dict().keys()
    assert training(tmp_path / "compiled").run(), "what began compiled goes on without"


NAN, INF = float("nan"), float("inf")


def broken(job: Training, what: str, at: set[int], by: float) -> Training:
    """Return the training with a loss, or gradient, times `by` in the batches `at`, from 1."""
    real, count = job.step.loss, 0

    def loss(output, target, labels):
        nonlocal count
        count += 1
        value = real(output, target, labels)
        if count not in at:
            return value
        if what == "loss":
            return value * by
        value.register_hook(lambda gradient: gradient * by)
        return value * 1.0

    job.step.loss = loss
    return job


def scaled(job: Training) -> Training:
    """Return the training with a scaler, as in float16."""
    job.scaler = torch.amp.GradScaler("cpu", enabled=True)
    job.step.scaler = job.scaler
    return job


@pytest.mark.parametrize(("what", "by"), [("loss", NAN), ("loss", INF), ("gradient", NAN)])
def test_without_a_scaler_it_stops_with_the_images_named_and_the_checkpoint_intact(
    tmp_path, what, by
):
    job = broken(training(tmp_path, save_minutes=1e-9), what, {6}, by)  # of three an epoch
    with pytest.raises(FloatingPointError, match=r" (nan|inf) in epoch 2 on image\d.*lower LR"):
        job.run()
    state, _ = checkpoints.load(job.job.folder.last)
    assert (state["position"]["epoch"], state["position"]["step"]) == (1, 1)
    assert training(tmp_path).run()
    assert training(tmp_path / "unbroken").run()
    assert_same(weights_of(tmp_path), weights_of(tmp_path / "unbroken"))


@pytest.mark.parametrize(("what", "by"), [("loss", NAN), ("loss", INF), ("gradient", INF)])
def test_with_a_scaler_a_step_is_skipped_as_if_it_had_not_been(tmp_path, what, by):
    job = broken(scaled(training(tmp_path)), what, {3}, by)  # in the second step of two
    before, taken, real = [], [], job.step.take

    def take(*given) -> bool:
        before.append({k: v.clone() for k, v in state_of(job).items()})
        taken.append(real(*given))
        return taken[-1]

    job.step.take = take
    assert job._train_epoch()
    assert taken == [True, False]
    assert_same(before[1], state_of(job))
    assert job.position.skipped == 1
    assert job.scaler.get_scale() == 32768
    assert math.isfinite(job.position.loss_sum)
    assert job._end_epoch()
    assert job.position.history[0]["skipped_steps"] == 1
    assert job.position.skipped == 0


def state_of(job: Training) -> dict[str, torch.Tensor]:
    parts = {"model": job.model.state_dict(), "ema": job.ema.model.state_dict()}
    return {f"{part}/{k}": v for part, state in parts.items() for k, v in state.items()}


def test_so_many_skips_in_a_row_stop_it_and_fewer_do_not(tmp_path):
    few = tiny(epochs=30, patience=30, accumulate=4)  # a step an epoch, of three batches
    bad = set(range(1, 3 * (step.MAX_SKIPPED - 1) + 1))
    job = broken(scaled(training(tmp_path / "few", few)), "loss", bad, NAN)
    assert job.run()
    assert [line["skipped_steps"] for line in job.position.history] == [1] * 15 + [0] * 15
    job = broken(scaled(training(tmp_path / "all", few)), "loss", set(range(1, 99)), NAN)
    with pytest.raises(FloatingPointError, match=r"16 steps in a row overflowed .* in epoch 16 on"):
        job.run()


def test_broken_weights_are_never_saved(tmp_path):
    job = training(tmp_path)
    job._save()
    before = job.job.folder.last.read_bytes()
    with torch.no_grad():
        job.model.rest[0].running_var[0] = INF
    with pytest.raises(FloatingPointError, match="weights are not finite in epoch 1 after step 0"):
        job._save()
    assert job.job.folder.last.read_bytes() == before


@pytest.mark.parametrize("value", [NAN, INF, -INF])
def test_an_epoch_whose_metric_is_not_a_number_is_never_the_best(tmp_path, value):
    job = training(tmp_path, tiny(monitor="val_loss", min_epochs=1, keep=1))
    real = job._validate
    job._validate = lambda: real() | ({"val_loss": value} if job.position.epoch == 1 else {})
    assert job.run()
    assert not job.position.history[1]["best"]
    assert all(kept["epoch"] != 2 for kept in job.position.kept)
    assert len(job.job.folder.kept()) == 1


def test_a_training_without_any_metric_says_so(tmp_path):
    job = training(tmp_path, tiny(monitor="val_loss"))
    real = job._validate
    job._validate = lambda: real() | {"val_loss": NAN}
    for _ in range(2):
        with pytest.raises(FloatingPointError, match="val_loss was a number in no epoch from"):
            job.run()
        job = training(tmp_path, tiny(monitor="val_loss"))  # which has nothing left to do


@pytest.mark.parametrize("images", ["all", "nonempty"])
def test_images_that_are_all_empty_train_to_finite_weights(tmp_path, images):
    losses = {"bce": 1.0, "dice": 1.0, "focal": 1.0, "lovasz": 1.0, "weighted_bce": 1.0}
    job = training(tmp_path, tiny(loss=losses, mask_loss_images=images))
    job.job.prepared.masks[:] = 0
    job.job.truth["positive"] = False
    job.job.truth["rle"] = "-1"
    job.step.positive[:] = 0
    assert job.run()
    step.check_weights(job.model, "now")
    assert all(math.isfinite(line["train_loss"]) for line in job.position.history)
    assert {line["dice_nonempty"] for line in job.position.history} == {0.0}


def test_full_memory_names_what_it_goes_by(tmp_path):
    def full(*_) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nmore")

    job = training(tmp_path)
    job.step.loss = full
    with pytest.raises(InputError, match=r"at SIZE 32, BATCH_SIZE 2, ACCUMULATE 2: .*2.00 GiB"):
        job.run()


def test_the_peak_of_memory_holds_what_was_held():
    before = peak_memory(torch.device("cpu"))["memory_mb"]
    held = nn.Parameter(torch.ones(50_000_000))
    peak = peak_memory(torch.device("cpu"))["memory_mb"]
    assert peak >= 200
    assert before <= peak
    del held
    # Linux counts in batches of pages, so the reading may fall by a little.
    assert peak_memory(torch.device("cpu"))["memory_mb"] >= peak - 2
