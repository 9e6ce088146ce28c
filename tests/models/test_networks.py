from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from kernel_lib.config import Experiment
from kernel_lib.errors import InputError
from kernel_lib.models import networks

UNET = Experiment(
    name="tiny", encoder="resnet18", decoder_channels=(48, 40, 32, 24, 16), size=32, weights="none"
)
DEEPLAB = UNET.differing(name="tiny_deeplab", network="DeepLabV3Plus")


@pytest.fixture(autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    yield
    torch.set_num_threads(before)


def levels(batch: int = 2, size: int = 32) -> torch.Tensor:
    return torch.randint(0, 256, (batch, 1, size, size), dtype=torch.uint8)


def test_grey_levels_become_what_an_imagenet_encoder_expects():
    black, white = networks.GreyInput()(torch.tensor([0, 255], dtype=torch.uint8).view(2, 1, 1, 1))
    for channel, (mean, std) in enumerate(
        zip(networks.IMAGENET_MEAN, networks.IMAGENET_STD, strict=True)
    ):
        assert black[channel].item() == pytest.approx(-mean / std, abs=1e-6)
        assert white[channel].item() == pytest.approx((1 - mean) / std, abs=1e-6)


@pytest.mark.parametrize("row", [UNET, DEEPLAB], ids=lambda row: row.network)
@pytest.mark.parametrize("shape", [(32, 32), (64, 96)])
def test_logits_have_the_images_shape(row, shape):
    model = networks.build(row).eval()
    with torch.inference_mode():
        output = model(torch.zeros(1, 1, *shape, dtype=torch.uint8))
    assert output.mask.shape == (1, 1, *shape)


@pytest.mark.parametrize("row", [UNET, DEEPLAB], ids=lambda row: row.network)
def test_images_of_a_batch_do_not_meet_when_predicting(row):
    model = networks.build(row).eval()
    images = levels(3, 64)
    with torch.inference_mode():
        together = model(images).mask
        alone = torch.cat([model(image[None]).mask for image in images])
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-4)


def test_the_decoder_s_levels_are_the_library_s_own():
    model = networks.build(UNET).eval()
    with torch.inference_mode():
        features = model.encoder(model.input(levels()))
        ours = model._decode(features)
        assert [o.shape[1:] for o in ours] == [
            (channels, 2**k, 2**k) for k, channels in enumerate((48, 40, 32, 24, 16), start=1)
        ]
        torch.testing.assert_close(ours[-1], model.decoder(features))


def test_the_encoder_learns_at_its_own_rate():
    row = UNET.differing(name="x", encoder_lr_factor=0.25)
    model = networks.build(row)
    groups = networks.parameter_groups(model, row)
    assert [g["lr_factor"] for g in groups] == [0.25, 1.0]
    encoder = {id(p) for p in model.encoder.parameters()}
    assert {id(p) for p in groups[0]["params"]} == encoder
    assert not encoder & {id(p) for p in groups[1]["params"]}


@pytest.mark.parametrize("row", [UNET, DEEPLAB], ids=lambda row: row.network)
def test_frozen_batch_norm_keeps_its_statistics_and_takes_one_image(row):
    model = networks.build(row).train()
    norms = list(networks.batch_norms(model))
    assert len(norms) > 20
    before = [norm.running_mean.clone() for norm in norms]
    for norm in norms:
        norm.eval()
    loss = F.softplus(model(levels(1, 64)).mask).mean()
    loss.backward()
    assert all(torch.equal(b, n.running_mean) for b, n in zip(before, norms, strict=True))
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.requires_grad)


def test_a_seed_builds_the_same_network():
    states = []
    for _ in range(2):
        torch.manual_seed(3)
        states.append(networks.build(UNET).state_dict())
    assert all(torch.equal(states[0][k], states[1][k]) for k in states[0])


def test_an_unknown_network_or_encoder_is_refused_with_the_nearest():
    with pytest.raises(InputError, match="network 'Unet' is none of UNet, DeepLabV3Plus"):
        networks.build(UNET.differing(name="x", network="Unet"))
    with pytest.raises(InputError, match=r"ENCODER 'resnet43' is unknown; nearest: .*resnet34"):
        networks.build(UNET.differing(name="x", encoder="resnet43"))


def test_an_encoder_like_nothing_known_is_refused_too():
    with pytest.raises(InputError, match=r"ENCODER '§§' is unknown"):
        networks.check(UNET.differing(name="x", encoder="§§"))


def test_an_encoder_that_timm_does_not_have_is_refused():
    with pytest.raises(InputError, match=r"ENCODER 'tu-nonsense'"):
        networks.check(UNET.differing(name="x", encoder="tu-nonsense"))
