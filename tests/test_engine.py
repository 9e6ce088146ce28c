from __future__ import annotations

import random
import subprocess
import sys

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from kernel_lib.engine import (
    DepthwiseInFloat32,
    choose_engine,
    memory_named,
    random_states,
    restore_random_states,
    seed_everything,
)
from kernel_lib.errors import InputError


@pytest.fixture(autouse=True)
def _generators_and_flags_as_before():
    states, flags = random_states(), torch.backends.cudnn.benchmark
    yield
    restore_random_states(states)
    torch.use_deterministic_algorithms(False)
    torch.backends.cudnn.deterministic = False
    torch.backends.cudnn.benchmark = flags


def draw() -> list[float]:
    return [random.random(), float(np.random.rand()), float(torch.rand(1)), np.random.randn()]


def test_a_seed_repeats_every_generator():
    seed_everything(5, deterministic=False)
    first = draw()
    seed_everything(5, deterministic=False)
    assert draw() == first
    for other in (6, 2**40):  # beyond NumPy's seeds
        seed_everything(other, deterministic=False)
        assert draw() != first


def test_the_two_modes_differ_in_the_flags():
    seed_everything(1, deterministic=True)
    assert torch.are_deterministic_algorithms_enabled()
    assert not torch.backends.cudnn.benchmark
    seed_everything(1, deterministic=False)
    assert not torch.are_deterministic_algorithms_enabled()
    assert torch.backends.cudnn.benchmark


def test_random_states_come_back_also_through_a_file(tmp_path):
    np.random.randn()  # leaves a second normal number waiting
    states = random_states()
    torch.save(states, tmp_path / "states.pt")
    expected = draw()
    restore_random_states(states)
    assert draw() == expected
    restore_random_states(torch.load(tmp_path / "states.pt", weights_only=True))
    assert draw() == expected
    restore_random_states(states)
    assert draw() == expected, "restoring does not use the states up"


def test_a_cpu_computes_in_float32_unless_told():
    engine = choose_engine("cpu")
    assert (engine.device.type, engine.dtype, engine.scales) == ("cpu", torch.float32, False)
    with engine.autocast():
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == torch.float32
    half = choose_engine("cpu", "bfloat16")
    with half.autocast():
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == torch.bfloat16
    assert not half.scales


@pytest.mark.parametrize(
    ("capability", "dtype", "scales"),
    [((7, 5), torch.float16, True), ((8, 0), torch.bfloat16, False)],
)
def test_a_t4_has_no_bfloat16_of_its_own(monkeypatch, capability, dtype, scales):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr(torch, "empty", lambda *args, **how: None)
    engine = choose_engine("cuda")
    assert (engine.dtype, engine.scales) == (dtype, scales)


@pytest.mark.parametrize("device", ["gpu", "cuda:9", ""])
def test_a_device_that_is_not_there_is_refused_with_the_fix(device):
    with pytest.raises(InputError, match=r"DEVICE .* is not there .*-p DEVICE cpu"):
        choose_engine(device)


def test_float16_on_a_cpu_is_refused():
    with pytest.raises(InputError, match="PRECISION float16 needs a GPU; -p PRECISION float32"):
        choose_engine("cpu", "float16")


@pytest.mark.parametrize(
    "how",
    [{"padding": 1}, {"stride": 2, "padding": 1}, {"dilation": 2, "padding": 2}, {"bias": False}],
    ids=str,
)
def test_a_depthwise_convolution_is_computed_in_float32_under_bfloat16(how):
    torch.manual_seed(0)
    conv = nn.Conv2d(8, 8, 3, groups=8, **how)
    x = torch.randn(2, 8, 9, 9).bfloat16()
    with choose_engine("cpu", "bfloat16").autocast():
        result = conv(x)
    assert result.dtype == torch.bfloat16
    assert torch.equal(result, conv(x.float()).bfloat16()), "float32, rounded once"
    result.float().square().sum().backward()
    gradient, conv.weight.grad = conv.weight.grad, None
    conv(x.float()).square().sum().backward()
    assert gradient.dtype == torch.float32
    torch.testing.assert_close(gradient, conv.weight.grad, rtol=2e-2, atol=2e-1)


def test_arguments_of_a_depthwise_convolution_may_be_keywords():
    x, weight = torch.randn(1, 4, 6, 6).bfloat16(), torch.randn(4, 1, 3, 3)
    given = {"stride": 2, "padding": 1, "groups": 4}
    with torch.autocast("cpu", torch.bfloat16), DepthwiseInFloat32():
        positional = F.conv2d(x, weight, None, 2, 1, 1, 4)
        keywords = F.conv2d(x, weight, **given)
        all_keywords = F.conv2d(input=x, weight=weight, **given)
    expected = F.conv2d(x.float(), weight, **given).bfloat16()
    for result in (positional, keywords, all_keywords):
        assert torch.equal(result, expected)


def test_other_convolutions_stay_in_bfloat16():
    x = torch.randn(1, 8, 6, 6)
    for groups in (1, 2):
        conv = nn.Conv2d(8, 8, 3, groups=groups)
        with torch.autocast("cpu", torch.bfloat16):
            plain = conv(x)
            with DepthwiseInFloat32():
                result = conv(x)
        assert result.dtype == torch.bfloat16
        assert torch.equal(result, plain)


@pytest.mark.parametrize(
    ("sizes", "words"),
    [
        ((4, 2), "-p BATCH_SIZE 2 -p ACCUMULATE 4,"),
        ((6, 1), "-p BATCH_SIZE 3 -p ACCUMULATE 2,"),
        ((2, 3), "-p BATCH_SIZE 1 -p ACCUMULATE 6,"),
        ((5, 2), "-p BATCH_SIZE 2 -p ACCUMULATE 5,"),
        ((5, 1), "-p BATCH_SIZE 1 -p ACCUMULATE 5,"),
        ((9, 1), "-p BATCH_SIZE 3 -p ACCUMULATE 3,"),
        ((7, 4), "-p BATCH_SIZE 2 -p ACCUMULATE 14,"),
        ((3, 2), "-p BATCH_SIZE 1 -p ACCUMULATE 6,"),
        ((1, 3), "a smaller SIZE,"),
        ((1,), "a smaller SIZE,"),
        ((8,), "-p BATCH_SIZE 4;"),
        ((9,), "-p BATCH_SIZE 4;"),
    ],
)
def test_full_memory_names_smaller_batches_for_the_same_step_or_a_smaller_size(sizes, words):
    given = ", ".join(f"{k} {v}" for k, v in zip(("BATCH_SIZE", "ACCUMULATE"), sizes, strict=False))
    with pytest.raises(InputError) as error, memory_named(64, *sizes):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nmore")
    assert f"at SIZE 64, {given}: {words}" in str(error.value)
    assert "(CUDA out of memory. Tried to allocate 2.00 GiB.)" in str(error.value)


KEPT = """
import ctypes, sys
import torch
from kernel_lib.engine import choose_engine
if not hasattr(ctypes.CDLL(None), "mallopt"):
    sys.exit(77)
def held():
    with open("/proc/self/status") as file:
        return 1024 * int(file.read().split("VmRSS:")[1].split()[0])
choose_engine("cpu")
def several():
    return [torch.ones(24 << 20, dtype=torch.uint8) for _ in range(8)]
for _ in range(3):
    several()
before = held()
again = several()
print(held() - before)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="of Linux's C library")
def test_what_a_tensor_on_the_cpu_leaves_the_next_one_takes(project_root):
    done = subprocess.run(
        [sys.executable, "-c", KEPT], cwd=project_root, capture_output=True, text=True, check=False
    )
    if done.returncode == 77:
        pytest.skip("this C library has no mallopt")
    assert done.returncode == 0, done.stderr
    assert abs(int(done.stdout)) < 8 << 20, "no new pages"
