"""Where starting weights come from, and that nothing else is ever taken for them."""

from __future__ import annotations

import hashlib
import socket
from pathlib import Path

import pytest
import torch
import torchvision
from safetensors.torch import save_file

from kernel_lib import checkpoints
from kernel_lib.artifacts.lineage import Lineage
from kernel_lib.config import Experiment
from kernel_lib.errors import InputError
from kernel_lib.models import networks, weights

EXPERIMENT = Experiment(
    name="tiny", encoder="resnet18", decoder_channels=(48, 40, 32, 24, 16), size=32, weights="none"
)
DEEPLAB = EXPERIMENT.differing(name="tiny_deeplab", network="DeepLabV3Plus")
OFFER = "-p WEIGHTS none"


@pytest.fixture(autouse=True)
def _far_from_any_network(tmp_path, monkeypatch):
    """An empty torch cache, and no way out: a test that would download fails."""

    def refuse(*args, **how):
        raise OSError("no internet in this test")

    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setattr(torch.hub, "download_url_to_file", refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)


@pytest.fixture(scope="module")
def state() -> dict[str, torch.Tensor]:
    """What torchvision's own file of a ResNet-18 holds, with random numbers."""
    torch.manual_seed(1)
    return torchvision.models.resnet18(weights=None).state_dict()


def named_by_hash(folder: Path, state: dict) -> Path:
    """The state as torchvision names its files: the hash's first eight digits."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "raw.pth"
    torch.save(state, path)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    return path.rename(folder / f"resnet18-{digest[:8]}.pth")


def encoder() -> torch.nn.Module:
    torch.manual_seed(2)
    return networks.build(EXPERIMENT).encoder


def assert_filled(module: torch.nn.Module, state: dict) -> None:
    own = module.state_dict()
    assert all(torch.equal(own[k], state[k]) for k in own)


@pytest.mark.parametrize("place", ["given", "torch/hub/checkpoints"])
def test_a_file_with_the_right_hash_is_found_in_a_folder_or_torch_s_cache(tmp_path, state, place):
    path = named_by_hash(tmp_path / place, state)
    module = encoder()
    assert not torch.equal(module.conv1.weight, state["conv1.weight"])
    for name in ("empty", "given"):
        (tmp_path / name).mkdir(exist_ok=True)
    folders = [tmp_path / "empty", tmp_path / "given"]
    assert weights.load_imagenet(module, "resnet18", folders) == path
    assert_filled(module, state)


def test_a_file_with_the_wrong_hash_is_refused(tmp_path, state):
    path = tmp_path / "resnet18-00000000.pth"
    torch.save(state, path)
    with pytest.raises(InputError, match=r"resnet18-00000000.pth is damaged: its SHA-256 begins"):
        weights.load_imagenet(encoder(), "resnet18", [tmp_path])


def test_the_given_folder_comes_before_the_cache(tmp_path, state):
    named_by_hash(tmp_path / "torch" / "hub" / "checkpoints", state)
    torch.save({k: v + 1 for k, v in state.items()}, tmp_path / "resnet18.pth")
    module = encoder()
    assert weights.load_imagenet(module, "resnet18", [tmp_path]).parent == tmp_path
    assert torch.equal(module.conv1.weight, state["conv1.weight"] + 1)


def test_without_internet_the_error_says_where_it_looked_and_offers_none(tmp_path):
    with pytest.raises(InputError) as error:
        weights.load_imagenet(encoder(), "resnet18", [tmp_path / "given"])
    words = str(error.value)
    for word in (str(tmp_path / "given"), str(tmp_path / "torch"), "resnet18-", "WEIGHTS_DIR",
                 "no internet in this test", "python build_kernel.py offline", OFFER):  # fmt: skip
        assert word in words


def test_a_download_that_is_not_what_its_name_says_is_refused(monkeypatch):
    def corrupt(url, target, hash_prefix):
        raise RuntimeError(f'invalid hash value (expected "{hash_prefix}", got "0")')

    monkeypatch.setattr(torch.hub, "download_url_to_file", corrupt)
    with pytest.raises(InputError, match="invalid hash value"):
        weights.load_imagenet(encoder(), "resnet18", [])


def test_a_download_fills_the_encoder_and_asks_for_the_hash(monkeypatch, state):
    asked = {}

    def fetch(url, target, hash_prefix):
        asked.update(url=url, prefix=hash_prefix)
        torch.save(state, target)

    monkeypatch.setattr(torch.hub, "download_url_to_file", fetch)
    module = encoder()
    weights.load_imagenet(module, "resnet18", [])
    assert_filled(module, state)
    assert asked["url"].startswith("https://")
    assert asked["url"].endswith(f"resnet18-{asked['prefix']}.pth")
    assert len(asked["prefix"]) >= 8


def test_an_encoder_that_torchvision_lacks_is_asked_for_as_a_file(tmp_path):
    with pytest.raises(InputError, match=r"no ImageNet weights for encoder 'tu-x'.*tu-x.pth"):
        weights.load_imagenet(encoder(), "tu-x", [tmp_path])


@pytest.mark.parametrize("form", ["safetensors", "wrapped and prefixed", "without counters"])
def test_every_form_of_a_file_is_read(tmp_path, state, form):
    if form == "safetensors":
        save_file(state, tmp_path / "resnet18.a1_in1k.safetensors")
    elif form == "without counters":
        old = {k: v for k, v in state.items() if not k.endswith("num_batches_tracked")}
        torch.save(old, tmp_path / "resnet18.pth")
    else:
        wrapped = {"state_dict": {f"module.{k}": v for k, v in state.items()}, "epoch": 3}
        torch.save(wrapped, tmp_path / "resnet18.pth")
    module = encoder()
    weights.load_imagenet(module, "resnet18", [tmp_path])
    assert_filled(module, state)


@pytest.mark.parametrize("architecture", ["resnet50", "resnet34"])
def test_a_file_of_another_encoder_is_refused(tmp_path, architecture):
    """A ResNet-34 has every tensor of a ResNet-18 in its shape, and eight blocks more."""
    model = torchvision.models.get_model(architecture, weights=None)
    torch.save(model.state_dict(), tmp_path / "resnet18.pth")
    with pytest.raises(InputError, match=r"resnet18.pth is of another network: .*-p WEIGHTS none"):
        weights.load_imagenet(encoder(), "resnet18", [tmp_path])


@pytest.mark.parametrize("content", [b"", b"not weights at all"])
def test_a_file_that_is_no_weights_is_refused(tmp_path, content):
    (tmp_path / "resnet18.pth").write_bytes(content)
    with pytest.raises(InputError, match=r"resnet18.pth is not a readable weights file"):
        weights.load_imagenet(encoder(), "resnet18", [tmp_path])


def test_a_table_of_anything_but_tensors_is_refused(tmp_path):
    torch.save({"w": 3}, tmp_path / "resnet18.pth")
    with pytest.raises(InputError, match="holds no table of tensors"):
        weights.load_imagenet(encoder(), "resnet18", [tmp_path])


def test_a_whole_network_goes_through_a_checkpoint(tmp_path):
    torch.manual_seed(3)
    first = networks.build(EXPERIMENT)
    checkpoints.save(tmp_path / "best_epoch001.pt", {"model": first.state_dict()}, Lineage())
    torch.manual_seed(4)
    second = networks.build(EXPERIMENT)
    weights.load_model(second, tmp_path / "best_epoch001.pt")
    assert_filled(second, first.state_dict())


def test_a_checkpoint_of_another_network_is_refused(tmp_path):
    checkpoints.save(
        tmp_path / "best.pt", {"model": networks.build(DEEPLAB).state_dict()}, Lineage()
    )
    with pytest.raises(InputError, match="is of another network"):
        weights.load_model(networks.build(EXPERIMENT), tmp_path / "best.pt")


@pytest.mark.parametrize("how", ["checkpoint", "bare", "wrapped", "released"])
def test_a_network_of_this_package_is_never_imagenet_s(tmp_path, state, how):
    """Even where it holds all that the encoder needs under the publisher's names."""
    path = tmp_path / f"resnet18.{'safetensors' if how == 'released' else 'pth'}"
    network = networks.build(EXPERIMENT).state_dict()
    if how == "checkpoint":
        checkpoints.save(path, {"model": state}, Lineage())
    elif how == "released":
        save_file(state, path, {"lineage": "{}"})
    else:
        torch.save({"state_dict": network} if how == "wrapped" else network, path)
    with pytest.raises(InputError, match=r"resnet18\.\w+ holds a network of this package"):
        weights.load_imagenet(encoder(), "resnet18", [tmp_path])
