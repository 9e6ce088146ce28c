"""On a GPU: precisions, a scaler that goes on, synchronised batch norm, memory that is full.

Skipped where there is none. `GPU_TESTS_ON=cpu` runs what a CPU can of them, to try the tests.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
import torch
from torch import nn

from kernel_lib import checkpoints
from kernel_lib.engine import engine, memory_named
from kernel_lib.errors import InputError
from kernel_lib.training.distributed import ALONE, World
from tests.training.test_distributed import Ranks, normalised
from tests.training.test_loop import StepsClock, assert_same, training, weights_of, without_times

DEVICE = os.environ.get("GPU_TESTS_ON", "cuda")

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
    how = {"on": engine(DEVICE, precision), "deterministic": True}
    assert training(tmp_path / "whole", **how).run()
    assert not training(tmp_path / "parts", clock=StepsClock(stop_after), **how).run()
    resumed = training(tmp_path / "parts", **how)
    state, _ = checkpoints.load(resumed.job.folder.last)
    assert resumed.scaler.state_dict() == state["scaler"]
    assert bool(state["scaler"]) == (precision == "float16")
    assert resumed.run()
    assert_same(weights_of(tmp_path / "whole"), weights_of(tmp_path / "parts"))
    assert without_times(tmp_path / "whole") == without_times(tmp_path / "parts")


@only_on_a_gpu
def test_a_float16_overflow_is_skipped_and_the_scale_halved(tmp_path):
    job = training(tmp_path, on=engine(DEVICE, "float16"))
    job.scaler = torch.amp.GradScaler(DEVICE, init_scale=2.0**40)  # which overflows at once
    job.step.scaler = job.step.steps.scaler = job.scaler
    job._train_epoch()
    assert job.position.skipped > 0
    assert job.scaler.get_scale() < 2.0**40
    assert all(torch.isfinite(p).all() for p in job.model.state_dict().values())


def test_an_epoch_s_line_tells_the_most_memory(tmp_path):
    job = training(tmp_path, on=engine(DEVICE))
    assert job.run()
    keys = {"memory_mb"} | ({"gpu_memory_mb"} if DEVICE == "cuda" else set())
    assert all(line[key] > 0 for line in job.job.folder.read_log() for key in keys)


@only_on_a_gpu
def test_a_full_memory_names_size_batch_and_accumulation():
    says = r"SIZE 1024, BATCH_SIZE 8, ACCUMULATE 2: .*ACCUMULATE 4"
    with pytest.raises(InputError, match=says), memory_named(1024, 8, 2):
        torch.empty(1 << 50, dtype=torch.uint8, device=DEVICE)


def normalised_there(world: World, x: torch.Tensor, grad: torch.Tensor, device: str) -> dict:
    found = normalised(world, x.to(device), grad.to(device), affine=True)
    return {
        "y": found["y"].cpu(), "x": found["x"].cpu(),
        "parameters": [g.cpu() for g in found["parameters"]],
        "state": {k: v.cpu() for k, v in found["state"].items()},
    }  # fmt: skip


@pytest.mark.parametrize("count", [7, 1])
def test_batch_norm_of_two_ranks_on_one_card_is_that_of_the_whole_batch(count):
    generator = torch.Generator().manual_seed(count)
    x, grad = (torch.randn(count, 4, 3, 5, generator=generator, dtype=torch.float64) for _ in "ab")
    card = "cuda:0" if DEVICE == "cuda" else DEVICE
    two = Ranks(2, card)
    try:
        parts = two(normalised_there, x + 3, grad, card)
    finally:
        two.close()
    whole = normalised_there(ALONE, x + 3, grad, card)
    tolerance = {"rtol": 1e-11, "atol": 1e-11}
    for key in ("y", "x"):
        torch.testing.assert_close(torch.cat([p[key] for p in parts]), whole[key], **tolerance)
    for i, expected in enumerate(whole["parameters"]):
        torch.testing.assert_close(sum(p["parameters"][i] for p in parts), expected, **tolerance)
    for part in parts:
        torch.testing.assert_close(part["state"], whole["state"], **tolerance)


def test_a_network_s_weights_and_losses_have_the_precision_they_should(tmp_path):
    """Arithmetic in half precision, weights, their average and the loss in float32."""
    job = training(tmp_path, on=engine(DEVICE, "bfloat16"))
    kinds = []
    job.model.rest[3].register_forward_hook(lambda module, given, out: kinds.append(out.dtype))
    assert job._train_epoch()
    assert set(kinds) == {torch.bfloat16}
    floats = [*job.model.parameters(), *job.ema.model.parameters()]
    assert all(p.dtype == torch.float32 and isinstance(p, nn.Parameter) for p in floats)
