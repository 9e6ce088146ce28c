"""Encoders are found by name and fed as their weights were trained."""

from __future__ import annotations

import copy
import subprocess
import sys

import pytest
import timm
import torch
from segmentation_models_pytorch import encoders as smp_encoders
from timm.data.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

from kernel_lib.errors import InputError
from kernel_lib.models import encoders

IMAGENET = (IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD)
HALF = ((0.5,) * 3, (0.5,) * 3)


@pytest.mark.parametrize(
    ("encoder", "wanted"),
    [
        ("resnet34", IMAGENET),
        ("mit_b0", IMAGENET),
        ("timm-efficientnet-b0", IMAGENET),
        ("timm-efficientnet-b8", IMAGENET),
        ("timm-tf_efficientnet_lite0", HALF),
        ("tu-tf_efficientnet_lite0", HALF),
        ("tu-tf_efficientnet_b0.ap_in1k", HALF),
        ("xception", HALF),
        ("inceptionv4", HALF),
        ("tu-resnet10t", IMAGENET),
        ("tu-tf_efficientnetv2_b0", IMAGENET),
    ],
)
def test_statistics_are_those_that_the_weights_were_trained_with(encoder, wanted):
    assert encoders.input_statistics(encoder) == wanted


@pytest.mark.parametrize("encoder", ["dpn68", "dpn68b", "dpn92", "dpn98", "dpn107", "dpn131"])
def test_statistics_of_dual_path_networks_are_those_of_their_port(encoder):
    config = timm.models.get_pretrained_cfg(f"{encoder}.mx_in1k")
    assert encoders.input_statistics(encoder) == (config.mean, config.std)


def test_every_encoder_has_statistics_without_a_look_at_the_hub(monkeypatch):
    def refuse(*args, **how):
        raise OSError("no internet in this test")

    monkeypatch.setattr(smp_encoders, "hf_hub_download", refuse)
    names = [*smp_encoders.encoders, *(f"tu-{name}" for name in timm.list_models())]
    for mean, std in map(encoders.input_statistics, names):
        assert len(mean) == len(std) == 3
        assert all(0 < s <= 1 for s in std)


@pytest.mark.parametrize(
    ("encoder", "words"),
    [
        ("resnet43", "is unknown; nearest: .*resnet34"),
        ("tu-convnext_ato", "is unknown; nearest: .*tu-convnext_atto"),
        ("§§", "is unknown"),
        ("tu-nonsense", "is unknown"),
        ("tu-resnet18.a9", r"resnet18 has no weights .* take one of .*tu-resnet18\.a1_in1k"),
        ("timm-regnetx_002", "is unknown"),
    ],
)
def test_an_unknown_encoder_or_tag_is_refused_with_the_nearest(encoder, words):
    with pytest.raises(InputError, match=words):
        encoders.check(encoder)


@pytest.mark.parametrize("encoder", ["resnet34", "tu-resnet18", "tu-resnet18.a1_in1k", "mit_b0"])
def test_known_names_pass(encoder):
    encoders.check(encoder)


@pytest.mark.parametrize("encoder", ["resnet18", "mit_b0", "tu-convnext_atto"])
def test_the_trial_leaves_the_numbers_that_a_seed_draws(encoder):
    torch.manual_seed(5)
    built = encoders.build(encoder, 64)
    torch.manual_seed(5)
    plain = smp_encoders.get_encoder(encoder, depth=5, weights=None)
    wanted = plain.state_dict()
    assert all(torch.equal(v, wanted[k]) for k, v in built.state_dict().items())


def test_a_size_that_an_encoder_cannot_take_is_refused_with_sizes_that_it_takes(monkeypatch):
    monkeypatch.setattr(
        encoders, "_problem", lambda name, size, options: "too small" if size < 256 else None
    )
    with pytest.raises(InputError, match=r"too small\): take -p SIZE 256 or 512, or a ResNet"):
        encoders.build("resnet18", 64)


TRAINED = """
import torch
from kernel_lib.config import Experiment
from kernel_lib.models import networks
torch.set_num_threads(1)
experiment = Experiment(name="x", encoder="mobileone_s0", decoder_channels=(16,) * 5, size=64)
model = networks.build(experiment)
for _ in range(3):
    model(torch.zeros(2, 1, 64, 64, dtype=torch.uint8)).mask.mean().backward()
"""


def test_an_encoder_that_begins_with_a_strided_pixel_wise_layer_trains_on_a_cpu(project_root):
    """In a process of its own, which oneDNN would end by writing beyond its memory."""
    done = subprocess.run(
        [sys.executable, "-c", TRAINED], cwd=project_root, capture_output=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]


def test_such_a_layer_gives_the_same_and_is_copied_with_the_network():
    torch.manual_seed(1)
    built = encoders.build("mobileone_s0", 64).eval()
    plain = smp_encoders.get_encoder("mobileone_s0", depth=5, weights=None).eval()
    plain.load_state_dict(built.state_dict())
    image = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        for own, copied, expected in zip(
            built(image), copy.deepcopy(built)(image), plain(image), strict=True
        ):
            assert torch.equal(own, copied)
            torch.testing.assert_close(own, expected)


ORDERED = {  # how many parts, and what is in the first
    "tu-convnext_atto": (12, "model.stem_0.weight"),
    "tu-tf_efficientnetv2_b0": (12, "model.conv_stem.weight"),
    "timm-tf_efficientnet_lite0": (12, "conv_stem.weight"),
    "resnet34": (12, "conv1.weight"),
    "tu-resnet10t": (5, "model.conv1.0.weight"),
    "tu-pvt_v2_b0": (5, "model.patch_embed.proj.weight"),
    "tu-swin_tiny_patch4_window7_224": (12, "model.patch_embed.proj.weight"),
}


@pytest.mark.parametrize("name", ORDERED)
def test_parts_hold_every_parameter_once_from_shallow_to_deep(name):
    encoder = encoders.build(name, 64)
    names = {id(p): k for k, p in encoder.named_parameters()}
    parts = [[names[id(p)] for p in part] for part in encoders.parts(encoder, name)]
    count, first = ORDERED[name]
    assert len(parts) == count
    assert all(parts)
    assert parts[0][0] == first
    assert sorted(k for part in parts for k in part) == sorted(names.values())
    # Named in the order in which the network uses them, but for what normalises a stage's output.
    if name != "tu-pvt_v2_b0":
        assert [k for part in parts for k in part] == list(names.values())


@pytest.mark.parametrize("name", ["mit_b0", "mobileone_s0", "tu-efficientformerv2_s0"])
def test_an_encoder_whose_layers_timm_cannot_order_has_no_parts(name):
    with pytest.raises(InputError, match=rf"ENCODER '{name}' has no layers in an order"):
        encoders.parts(encoders.build(name, 64), name)


@pytest.mark.parametrize("name", ["tu-convnext_atto", "tu-resnet10t", "mit_b0"])
def test_drop_path_grows_with_depth_and_leaves_the_numbers_that_a_seed_draws(name):
    plain, skipping = (_drawn(name, drop_path) for drop_path in (0.0, 0.3))
    state = plain.state_dict()
    assert all(torch.equal(state[k], v) for k, v in skipping.state_dict().items())
    rates = [m.drop_prob for m in skipping.modules() if getattr(m, "drop_prob", 0)]
    assert rates == sorted(rates)
    assert rates[-1] == pytest.approx(0.3)
    image = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(plain.eval()(image)[-1], skipping.eval()(image)[-1])
        torch.manual_seed(1)
        for norm in (m for m in skipping.modules() if isinstance(m, torch.nn.BatchNorm2d)):
            norm.weight.fill_(1)  # timm begins a ResNet's blocks at nothing
        deepest = [skipping.train()(image)[-1] for _ in range(8)]
    assert any(not torch.equal(deepest[0], other) for other in deepest[1:])


def _drawn(name: str, drop_path: float) -> torch.nn.Module:
    torch.manual_seed(0)
    return encoders.build(name, 64, drop_path=drop_path)


@pytest.mark.parametrize("name", ["resnet18", "vgg11", "tu-vgg11", "timm-tf_efficientnet_lite0"])
def test_an_encoder_that_skips_no_blocks_refuses_drop_path(name):
    with pytest.raises(InputError, match=r"skips no blocks, as drop_path 0\.3 asks"):
        encoders.build(name, 64, drop_path=0.3)
