"""DETERMINISTIC True on a GPU, tried without one: tensors that only claim to be on a GPU.

They take the Python code of a GPU. The backward pass that autograd has written down for them
must hold nothing of what torch's documentation lists as stopping in deterministic mode.
"""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional as F

from kernel_lib.config import Experiment
from kernel_lib.experiments import EXPERIMENTS
from kernel_lib.models import base, losses, networks

# Of `torch.use_deterministic_algorithms`, what a network or a loss could reach. The GPU's kernels
# themselves raise, so a tensor without memory does not.
STOPS = ("AdaptiveAvgPool", "AdaptiveMaxPool", "AvgPool3D", "FractionalMaxPool", "UpsampleLinear",
         "UpsampleBilinear", "UpsampleBicubic", "ReflectionPad", "GridSampler", "NllLoss", "Median",
         "Kthvalue", "ScatterReduce", "Put", "MaxUnpool")  # fmt: skip


def backward_names(result: torch.Tensor) -> set[str]:
    """Return the names of all functions of a result's backward pass, which is not run."""
    seen, waiting = {}, [result.grad_fn]
    while waiting:
        function = waiting.pop()
        if function is not None and function not in seen:
            seen[function] = function.name()
            waiting += [following for following, _ in function.next_functions]
    return set(seen.values())


def claim_to_be_on_a_gpu(model: nn.Module) -> None:
    """Replace all tensors; `Module.to` cannot with such as these."""
    for module in model.modules():
        for name, value in module._parameters.items():
            if value is not None:
                module._parameters[name] = nn.Parameter(_there(value))
        for name, value in module._buffers.items():
            if value is not None:
                module._buffers[name] = _there(value)


def _there(value: torch.Tensor) -> torch.Tensor:
    return torch.empty(value.shape, dtype=value.dtype, device="cuda")


def stopping(names: set[str]) -> set[str]:
    return {name for name in names if name.startswith(STOPS)}


@pytest.fixture(autouse=True)
def _deterministic():
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


def small(name: str, **changes) -> Experiment:
    experiment = EXPERIMENTS[name]
    channels = tuple(16 for _ in experiment.decoder_channels)
    encoder = experiment.encoder if "lite" in experiment.encoder else "resnet18"
    return experiment.differing(
        name="small", encoder=encoder, size=64, decoder_channels=channels, **changes
    )


@pytest.mark.parametrize(
    "name",
    [
        "deep_supervision_UNetResNet34_512_v1",
        "attention_UNetResNet34_512_v1",
        "deeplabv3plus_supervision_resnet_1024_v1",
        "two_step_classifier_512_v1",
        "lite0_256",
    ],
)
def test_no_network_needs_what_stops_in_deterministic_mode(name):
    _check(small(name))


@pytest.mark.parametrize(
    ("network", "heads"),
    [("UNetPlusPlus", {"side_weight": 0.1}), ("UPerNet", {"side_weight": 0.1}), ("SegFormer", {})],
)
def test_nor_does_a_network_that_no_row_above_has(network, heads):
    _check(small("lite0_256", network=network, **heads))


def _check(experiment: Experiment) -> None:
    model = networks.build(experiment).train()
    with FakeTensorMode():
        claim_to_be_on_a_gpu(model)
        output = model(torch.zeros(2, 1, 64, 64, dtype=torch.uint8, device="cuda"))
        given = [
            tensor for tensor in (output.mask, output.label, *output.sides) if tensor is not None
        ]
        names = backward_names(sum(tensor.sum() for tensor in given))
    assert "ConvolutionBackward0" in names
    assert not stopping(names)


@pytest.mark.parametrize("name", losses.LOSSES)
def test_no_loss_needs_what_stops_in_deterministic_mode(name):
    """Its code does not ask for the device, so these tensors are on a CPU."""
    experiment = small("deep_supervision_UNetResNet34_512_v1", loss={name: 1.0})
    mask, side = (torch.zeros(3, 1, 8, 8, requires_grad=True) for _ in "ab")
    output = base.Logits(mask, torch.zeros(3, requires_grad=True), (side,))
    labels = torch.tensor([1.0, 0.0, 1.0])
    for images in ("all", "nonempty"):
        loss = losses.build(experiment.differing(name="small", mask_loss_images=images))
        assert not stopping(backward_names(loss(output, torch.zeros(3, 1, 8, 8), labels)))


def test_what_would_stop_is_seen():
    with FakeTensorMode():
        x = torch.zeros(1, 1, 8, 8, device="cuda", requires_grad=True)
        assert stopping(backward_names(F.adaptive_avg_pool2d(x, 2)))
        grid = torch.zeros(1, 4, 4, 2, device="cuda")
        assert stopping(backward_names(F.grid_sample(x, grid, align_corners=False)))


def test_pooling_to_one_pixel_is_a_mean():
    """Which has a deterministic form, unlike other sizes: ASPP and scSE pool so."""
    with FakeTensorMode():
        x = torch.zeros(1, 3, 8, 8, device="cuda", requires_grad=True)
        names = backward_names(nn.AdaptiveAvgPool2d(1)(x))
    assert any(name.startswith("Mean") for name in names)
    assert not stopping(names)


def test_the_deterministic_form_of_bilinear_resizing_is_the_same_function():
    x = torch.randn(2, 3, 5, 7, dtype=torch.float64, requires_grad=True)
    for corners, size in ((False, (20, 28)), (True, (10, 13)), (False, (5, 3))):
        plain = F.interpolate(x, size=size, mode="bilinear", align_corners=corners)
        decomposed = torch._decomp.decompositions._upsample_linear_vec(x, size, corners, None)
        torch.testing.assert_close(decomposed, plain)
        grad = torch.randn_like(plain)
        torch.testing.assert_close(
            *(torch.autograd.grad(y, x, grad)[0] for y in (decomposed, plain))
        )
