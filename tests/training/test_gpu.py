"""On a GPU: precisions, determinism, compilation, several ranks on a card, memory, signals.

Skipped where there is none. `GPU_TESTS_ON=cpu` runs what a CPU can of them, to try the tests.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import nn

from kernel_lib import checkpoints
from kernel_lib.artifacts import fold_run
from kernel_lib.config import Experiment
from kernel_lib.engine import choose_engine, memory_named, seed_everything
from kernel_lib.errors import InputError
from kernel_lib.experiments import EXPERIMENTS
from kernel_lib.models import losses, networks
from kernel_lib.parallel.world import SINGLE_PROCESS, World
from tests.parallel.test_world import Ranks, command, normalised, settings_file
from tests.training.test_loop import StepsClock, assert_same, training, weights_of, without_times
from tools.phantoms import competition

DEVICE = os.environ.get("GPU_TESTS_ON", "cuda")
CARD = "cuda:0" if DEVICE == "cuda" else DEVICE

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        DEVICE == "cuda" and not torch.cuda.is_available(), reason="there is no GPU here"
    ),
]
only_on_a_gpu = pytest.mark.skipif(DEVICE == "cpu", reason="only a GPU does that")


@pytest.fixture(autouse=True)
def _as_before() -> Iterator[None]:
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize(
    "precision", [pytest.param("float16", marks=only_on_a_gpu), "bfloat16", "float32"]
)
@pytest.mark.parametrize("stop_after", [1, 3, 6])
def test_a_deterministic_training_stopped_and_resumed_ends_with_the_same_bits(
    tmp_path, precision, stop_after
):
    how = {"on": choose_engine(DEVICE, precision), "deterministic": True}
    assert training(tmp_path / "unbroken", **how).run()
    assert not training(tmp_path / "parts", clock=StepsClock(stop_after), **how).run()
    resumed = training(tmp_path / "parts", **how)
    state, _ = checkpoints.load(resumed.job.folder.last)
    assert resumed.scaler.state_dict() == state["scaler"]
    assert bool(state["scaler"]) == (precision == "float16")
    assert resumed.run()
    assert_same(weights_of(tmp_path / "unbroken"), weights_of(tmp_path / "parts"))
    assert without_times(tmp_path / "unbroken") == without_times(tmp_path / "parts")


@only_on_a_gpu
def test_a_float16_overflow_is_skipped_and_the_scale_halved(tmp_path):
    job = training(tmp_path, on=choose_engine(DEVICE, "float16"))
    job.scaler = torch.amp.GradScaler(DEVICE, init_scale=2.0**40)  # which overflows at once
    job.step.scaler = job.step.steps.scaler = job.scaler
    job._train_epoch()
    assert job.position.skipped > 0
    assert job.scaler.get_scale() < 2.0**40
    assert all(torch.isfinite(p).all() for p in job.model.state_dict().values())


def test_an_epoch_s_line_tells_the_most_memory(tmp_path):
    job = training(tmp_path, on=choose_engine(DEVICE))
    assert job.run()
    keys = {"memory_mb"} | ({"gpu_memory_mb"} if DEVICE == "cuda" else set())
    assert all(line[key] > 0 for line in job.job.folder.read_log() for key in keys)


@only_on_a_gpu
def test_a_full_memory_names_size_batch_and_accumulation():
    says = r"SIZE 1024, BATCH_SIZE 8, ACCUMULATE 2: .*ACCUMULATE 4"
    with pytest.raises(InputError, match=says), memory_named(1024, 8, 2):
        torch.empty(1 << 50, dtype=torch.uint8, device=DEVICE)


def test_a_network_s_weights_and_losses_have_the_precision_they_should(tmp_path):
    """Arithmetic in half precision, weights, their average and the loss in float32."""
    job = training(tmp_path, on=choose_engine(DEVICE, "bfloat16"))
    kinds = []
    job.model.rest[3].register_forward_hook(lambda module, given, out: kinds.append(out.dtype))
    assert job._train_epoch()
    assert set(kinds) == {torch.bfloat16}
    floats = [*job.model.parameters(), *job.ema.model.parameters()]
    assert all(p.dtype == torch.float32 and isinstance(p, nn.Parameter) for p in floats)


def test_the_deterministic_step_of_a_real_network_repeats_bit_for_bit(tmp_path):
    """With the operations that have two forms on a GPU: bilinear resizing, pooling, indexing."""
    for name in ("UNetResNet34_512_v1", "deeplabv3plus_resnet_512_v1"):
        experiment = EXPERIMENTS[name].differing(
            name="small", encoder="resnet18", size=64, batch_size=4, accumulate=1,
            loss={"bce": 1.0, "lovasz": 1.0}, mask_loss_images="nonempty", label_weight=0.1,
            side_weight=0.1,
        )  # fmt: skip
        first, second = (_after_steps(experiment) for _ in "ab")
        assert_same(first, second)


def _after_steps(experiment: Experiment) -> dict[str, torch.Tensor]:
    seed_everything(3, deterministic=True)
    on = choose_engine(DEVICE)
    model = networks.build(experiment).to(on.device).train()
    optimizer, loss = torch.optim.SGD(model.parameters(), 0.01), losses.build(experiment)
    images = on.to_device(torch.randint(0, 256, (4, 1, 64, 64), dtype=torch.uint8))
    masks = on.to_device(torch.randint(0, 2, (4, 1, 64, 64), dtype=torch.uint8))
    labels = torch.tensor([1.0, 0.0, 1.0, 1.0], device=on.device)
    for _ in range(3):
        with on.autocast():
            output = model(images)
        loss(output, masks, labels).backward()
        optimizer.step()
        optimizer.zero_grad()
    return {name: value.cpu() for name, value in model.state_dict().items()}


# Processes of their own, so last: they take longest


def normalised_there(world: World, x: torch.Tensor, grad: torch.Tensor, device: str) -> dict:
    result = normalised(world, x.to(device), grad.to(device), affine=True)
    return {
        "y": result["y"].cpu(), "x": result["x"].cpu(),
        "parameters": [g.cpu() for g in result["parameters"]],
        "state": {k: v.cpu() for k, v in result["state"].items()},
    }  # fmt: skip


@pytest.fixture(scope="module")
def two() -> Iterator[Ranks]:
    ranks = Ranks(2, CARD)
    yield ranks
    ranks.close()


@pytest.mark.parametrize("count", [7, 1])
def test_batch_norm_of_two_ranks_on_one_card_is_that_of_the_whole_batch(two, count):
    generator = torch.Generator().manual_seed(count)
    x, grad = (torch.randn(count, 4, 3, 5, generator=generator, dtype=torch.float64) for _ in "ab")
    parts = two(normalised_there, x + 3, grad, CARD)
    whole = normalised_there(SINGLE_PROCESS, x + 3, grad, CARD)
    tolerance = {"rtol": 1e-11, "atol": 1e-11}
    for key in ("y", "x"):
        torch.testing.assert_close(torch.cat([p[key] for p in parts]), whole[key], **tolerance)
    for i, expected in enumerate(whole["parameters"]):
        torch.testing.assert_close(sum(p["parameters"][i] for p in parts), expected, **tolerance)
    for part in parts:
        torch.testing.assert_close(part["state"], whole["state"], **tolerance)


@pytest.fixture(scope="module")
def place(scratch) -> Path:
    competition.write_competition(
        scratch / "data", 30, 2, size=64, seed=1, difficulty=0.1, positives=0.4, workers=1,
        progress=False,
    )  # fmt: skip
    return scratch


def test_two_processes_on_one_card_train_one_fold(project_root, place, monkeypatch):
    """By gloo, since NCCL refuses two ranks on a card; in float32 only the order of sums is new."""
    monkeypatch.setenv("NVIDIA_TF32_OVERRIDE", "0")  # convolutions in all of float32's digits
    how = {"DEVICE": DEVICE, "PRECISION": "float32", "DETERMINISTIC": True}
    logs = []
    for work, processes in (("one", 1), ("two", 2)):
        done = command(project_root, place, work, processes, **how)
        assert done.returncode == 0, done.stderr[-3000:]
        (name,) = fold_run.run_names([place / work])
        logs.append(fold_run.find([place / work], name)[0].read_log())
    for single, shared in zip(*logs, strict=True):
        assert shared["val_loss"] == pytest.approx(single["val_loss"], rel=0.02)


def test_a_signal_saves_and_the_same_command_goes_on(project_root, place):
    """The first command is started and asked to end once it has saved; the second ends."""
    changes = {"DEVICE": DEVICE, "EPOCHS": 400, "PATIENCE": 400, "SAVE_MINUTES": 1e-4}
    config = settings_file(place, "asked", **changes)
    start = [sys.executable, "-m", "kernel_lib", "train", str(config)]
    environment = os.environ | {"KERNEL_LIB_MOUNTS": str(place / "none")}
    with subprocess.Popen(start, cwd=project_root, env=environment) as child:
        deadline = time.monotonic() + 100
        while not list(place.glob("asked/runs/*/fold0/last.pt")):
            assert child.poll() is None
            assert time.monotonic() < deadline, "it does not come to save"
            time.sleep(0.01)
        child.send_signal(signal.SIGTERM)
        assert child.wait(60) == 128 + signal.SIGTERM
    (last,) = place.glob("asked/runs/*/fold0/last.pt")
    before = checkpoints.load(last)[0]["position"]
    config.write_text(json.dumps(json.loads(config.read_text()) | {"MAX_HOURS": 0.003}))
    done = subprocess.run(start, cwd=project_root, env=environment, check=False)
    assert done.returncode == 0
    after = checkpoints.load(last)[0]["position"]
    assert (after["epoch"], after["step"]) > (before["epoch"], before["step"]) >= (0, 1)


@only_on_a_gpu
def test_a_compiled_step_is_that_of_the_network(tmp_path):
    """With torch's own compiler; the losses agree to what half precision gives."""
    # In float16 either might skip a step that the other takes.
    on = choose_engine(DEVICE, "bfloat16")
    plain, compiled = (training(tmp_path / str(how), on=on, compile=how) for how in (False, True))
    for job in (plain, compiled):
        job.model.rest[2].p = 0.0
        assert job._train_epoch()
    assert compiled.position.loss_sum == pytest.approx(plain.position.loss_sum, rel=2e-2)
