from __future__ import annotations

import itertools

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from kernel_lib.config import Experiment, TrainParameters
from kernel_lib.errors import InputError
from kernel_lib.models import architectures, base, networks, weights
from kernel_lib.plan import plan_training
from kernel_lib.stages import train
from kernel_lib.training import validation

UNET = Experiment(
    name="tiny",
    encoder="tu-resnet10t",
    decoder_channels=(48, 40, 32, 24, 16),
    size=64,
    weights="none",
)
ATTENTION = UNET.differing(name="tiny_attention", network="AttentionUNet")
DEEPLAB = UNET.differing(name="tiny_deeplab", network="DeepLabV3Plus")
PLUSPLUS = UNET.differing(name="tiny_plusplus", network="UNetPlusPlus")
UPERNET = UNET.differing(name="tiny_upernet", network="UPerNet")
SEGFORMER = UNET.differing(name="tiny_segformer", network="SegFormer")
CLASSIFIER = UNET.differing(name="tiny_classifier", network="Classifier", label_weight=1.0)
UNETS = [UNET, ATTENTION, PLUSPLUS]
SIDES = [*UNETS, DEEPLAB, UPERNET]  # which have levels to read side masks from
MASKS = [*SIDES, SEGFORMER]
PLAIN = [*MASKS, CLASSIFIER]
HEADS = {
    "label": {"label_weight": 0.05},
    "sides": {"side_weight": 0.1},
    "both": {"label_weight": 0.05, "side_weight": 0.1},
}
HEADED = [experiment.differing(name=head, **HEADS[head]) for experiment in SIDES for head in HEADS]
HEADED.append(SEGFORMER.differing(name="label", **HEADS["label"]))
EVERY = [*PLAIN, *HEADED]
FULL = [
    *PLAIN,
    *(
        experiment
        for experiment in HEADED
        if experiment.name == "both" or experiment.network == "SegFormer"
    ),
]
N_SIDES = {"UNet": 5, "AttentionUNet": 5, "UNetPlusPlus": 5, "DeepLabV3Plus": 2, "UPerNet": 4}


def title(experiment: Experiment) -> str:
    return f"{experiment.network}-{experiment.name}"


@pytest.fixture(autouse=True)
def _seeded(one_thread):
    torch.manual_seed(0)


def levels(batch: int = 2, size: int = 64) -> torch.Tensor:
    return torch.randint(0, 256, (batch, 1, size, size), dtype=torch.uint8)


def test_grey_levels_become_what_an_imagenet_encoder_expects():
    levels = torch.tensor([0, 255], dtype=torch.uint8).view(2, 1, 1, 1)
    black, white = base.GreyInput("resnet34")(levels)
    of_imagenet = zip((0.485, 0.456, 0.406), (0.229, 0.224, 0.225), strict=True)
    for channel, (mean, std) in enumerate(of_imagenet):
        assert black[channel].item() == pytest.approx(-mean / std, abs=1e-6)
        assert white[channel].item() == pytest.approx((1 - mean) / std, abs=1e-6)


def test_a_checkpoint_keeps_the_statistics_that_it_was_trained_with(tmp_path):
    """Also one from before an encoder had its own, where all had ImageNet's."""
    experiment = UNET.differing(name="x", encoder="timm-tf_efficientnet_lite0")
    model, old = networks.build(experiment), networks.build(experiment)
    assert torch.equal(model.input.mean, torch.full((1, 3, 1, 1), 127.5))
    old.input = base.GreyInput("resnet34")
    torch.save({"model": old.state_dict()}, tmp_path / "best.pt")
    weights.load_model(model, tmp_path / "best.pt")
    assert torch.equal(model.input.mean, old.input.mean)
    assert torch.equal(model.input.std, old.input.std)


def everything(output: base.Logits) -> list[torch.Tensor]:
    """All tensors of an output, in order."""
    return [t for t in (output.mask, output.label, *output.sides) if t is not None]


def shape_of(tensor: torch.Tensor | None) -> tuple[int, ...] | None:
    return None if tensor is None else tuple(tensor.shape)


def without_dropout(model: nn.Module) -> nn.Module:
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.eval()
    return model


def loud(model: nn.Module) -> nn.Module:
    """The network with last layers that do not, as fresh ones do, hide what comes before them."""
    for name, layer in model.named_modules():
        if name == "head.0" or name.split(".")[-1] == "logit" or name.startswith("sides.logits."):
            nn.init.normal_(layer.weight, std=layer.weight[0].numel() ** -0.5)
            nn.init.zeros_(layer.bias)
    return model


def built(experiment: Experiment, seed: int = 3) -> nn.Module:
    torch.manual_seed(seed)
    return networks.build(experiment)


@pytest.mark.parametrize("experiment", EVERY, ids=title)
def test_every_head_has_its_shape(experiment):
    model = networks.build(experiment)
    shapes = [(64, 64), (32, 32), (32, 96), (160, 32)]
    for training, shape in itertools.product([True, False], shapes):
        with torch.no_grad():
            output = model.train(training)(torch.randint(0, 256, (2, 1, *shape), dtype=torch.uint8))
        full = (2, 1, *shape)
        assert shape_of(output.mask) == (full if model.has_mask else None)
        assert shape_of(output.label) == ((2,) if experiment.label_weight > 0 else None)
        taught = experiment.side_weight > 0 and training
        n_sides = N_SIDES[experiment.network] if taught else 0
        assert [s.shape for s in output.sides] == [full] * n_sides
        assert all(torch.isfinite(tensor).all() for tensor in everything(output))


@pytest.mark.parametrize("experiment", EVERY, ids=title)
def test_every_parameter_gets_a_gradient(experiment):
    model = networks.build(experiment).train()
    sum(F.softplus(tensor).mean() for tensor in everything(model(levels()))).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert torch.isfinite(parameter.grad).all(), name
        if name.startswith(("head.", "label.", "sides.", "gates.")):
            assert parameter.grad.any(), name
    groups = networks.parameter_groups(model, experiment)
    assert sorted(id(p) for g in groups for p in g["params"]) == sorted(
        id(p) for p in model.parameters()
    )


@pytest.mark.parametrize(
    ("experiment", "head"),
    [(experiment, head) for experiment in SIDES for head in ("label", "sides")],
    ids=lambda value: value if isinstance(value, str) else title(value),
)
def test_what_only_teaches_reaches_encoder_and_decoder(experiment, head):
    model = networks.build(experiment.differing(name="x", **HEADS[head])).train()
    output = model(levels())
    sum(F.softplus(tensor).mean() for tensor in everything(output)[1:]).backward()
    reached = {n.split(".")[0] for n, p in model.named_parameters() if p.grad is not None}
    gated = {"gates"} if experiment is ATTENTION and head == "sides" else set()
    assert reached == {"encoder", "decoder", head} | gated


@pytest.mark.parametrize("experiment", FULL, ids=title)
def test_feature_maps_stay_channels_last(experiment):
    model = networks.build(experiment).train()
    four = [p for p in model.parameters() if p.ndim == 4]
    assert all(p.is_contiguous(memory_format=torch.channels_last) for p in four)
    seen = []
    for name, module in model.named_modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_pre_hook(lambda _, x, name=name: seen.append((name, x[0])))
    model(levels())
    strange = {n for n, x in seen if not x.is_contiguous(memory_format=torch.channels_last)}
    # The first takes the image as it comes; ASPP and PSP concatenate a branch pooled to one pixel.
    assert strange <= {seen[0][0], "decoder.aspp.0.project.0", "decoder.psp.out_conv.0"}
    assert len(seen) > 10


@pytest.mark.parametrize("experiment", FULL, ids=title)
def test_the_same_image_gives_the_same_logits_with_every_dropout_a_module(experiment):
    images, model = levels(), networks.build(experiment)

    def repeats() -> bool:
        with torch.no_grad():
            pairs = zip(everything(model(images)), everything(model(images)), strict=True)
        return all(torch.equal(a, b) for a, b in pairs)

    model.eval()
    assert repeats()
    model.train()
    assert repeats() == (experiment.network != DEEPLAB.network), "which alone drops out"
    without_dropout(model)
    assert repeats()


@pytest.mark.parametrize("experiment", FULL, ids=title)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.bfloat16, 0.02), (torch.float16, 0.003)])
def test_half_precision_is_near_single(experiment, dtype, tolerance):
    model = without_dropout(loud(networks.build(experiment)).train())
    images = levels()
    with torch.no_grad():
        single = everything(model(images))
        with torch.autocast("cpu", dtype=dtype):
            half = everything(model(images))
    for first, other in zip(single, half, strict=True):
        assert torch.isfinite(other).all()
        assert (torch.sigmoid(first) - torch.sigmoid(other.float())).abs().mean() < tolerance


@pytest.mark.parametrize("experiment", PLAIN, ids=title)
def test_images_of_a_batch_do_not_meet_when_predicting(experiment):
    model = loud(networks.build(experiment.differing(name="x", label_weight=0.05))).eval()
    images = levels(3, 64)
    with torch.inference_mode():
        together = everything(model(images))
        alone = [everything(model(image[None])) for image in images]
    for all_at_once, one_by_one in zip(together, zip(*alone, strict=True), strict=True):
        torch.testing.assert_close(all_at_once, torch.cat(one_by_one), rtol=1e-4, atol=1e-4)


def test_the_decoder_s_levels_are_the_library_s_own():
    model = networks.build(UNET).eval()
    with torch.inference_mode():
        features = model.encoder(model.input(levels(size=32)))
        ours = model._decode(model.decoder.center(features[-1]), features)
        assert [o.shape[1:] for o in ours] == [
            (channels, 2**k, 2**k) for k, channels in enumerate((48, 40, 32, 24, 16), start=1)
        ]
        torch.testing.assert_close(ours[-1], model.decoder(features))


def test_deeplab_s_fused_features_are_the_library_s_own():
    model = networks.build(DEEPLAB).eval()
    with torch.inference_mode():
        features = model.encoder(model.input(levels()))
        ours = model._decode(model.decoder.aspp(features[-1]), features)
        assert ours.shape == (2, 48, 16, 16)  # as wide as the first of decoder_channels
        torch.testing.assert_close(ours, model.decoder(features))


def test_upernet_s_fused_features_are_the_library_s_own():
    model = networks.build(UPERNET).eval()
    with torch.inference_mode():
        features = model.encoder(model.input(levels()))
        pairs = zip(model.decoder.feature_norms, features[2:], strict=True)
        normed = [norm(feature) for norm, feature in pairs]
        pooled = model.decoder.psp(normed[-1])
        ours = model._fuse(model._decode(pooled, normed))
        assert ours.shape == (2, 48, 16, 16)
        torch.testing.assert_close(ours, model.decoder(features))


@pytest.mark.parametrize("channels", [(48, 40, 32, 24, 16), (32, 24), (48,)], ids=len)
def test_the_nodes_of_unetplusplus_are_the_library_s_own(channels):
    model = networks.build(PLUSPLUS.differing(name="x", decoder_channels=channels)).eval()
    with torch.inference_mode():
        features = model.encoder(model.input(levels()))
        centre = model.decoder.center(features[-1])
        ours = model._decode(centre, features)
        assert [o.shape[1:] for o in ours] == [
            (width, 4 * 2**k, 4 * 2**k) for k, width in enumerate(channels)
        ]
        torch.testing.assert_close(ours[-1], model.decoder([*features[:-1], centre]))


@pytest.mark.parametrize("channels", [(48, 40, 32, 24, 16), (48, 40, 32, 24), (32, 24)], ids=len)
@pytest.mark.parametrize("experiment", MASKS, ids=title)
def test_an_encoder_without_features_at_half_size_fits_every_decoder(experiment, channels):
    experiment = experiment.differing(
        name="x", encoder="tu-convnext_atto", decoder_channels=channels, label_weight=0.05
    )
    model = networks.build(experiment).train()
    output = model(levels())
    assert output.mask.shape == (2, 1, 64, 64)
    sum(F.softplus(tensor).mean() for tensor in everything(output)).backward()
    assert all(p.grad is not None and p.numel() for p in model.parameters())


def test_segformer_takes_the_four_levels_of_its_paper():
    """Whether or not the encoder has features at half size, as MiT has not and ResNet has."""
    for encoder in ("tu-resnet10t", "mit_b0"):
        model = networks.build(SEGFORMER.differing(name="x", encoder=encoder))
        widths = [layer.linear.in_features for layer in model.decoder.mlp_stage]
        assert widths == list(model.encoder.out_channels[:1:-1])
        assert model(levels()).mask.shape == (2, 1, 64, 64)


@pytest.mark.parametrize("experiment", PLAIN, ids=title)
def test_a_label_is_read_from_pooled_deep_features(experiment):
    """The centre block's output, the pooling module's, or the encoder's deepest level."""
    model = networks.build(experiment.differing(name="x", label_weight=0.05)).eval()
    images = levels()
    with torch.inference_mode():
        deep = model.encoder(model.input(images))[-1]
        if experiment in UNETS:
            deep = model.decoder.center(deep)
        elif experiment is UPERNET:
            deep = model.decoder.psp(model.decoder.feature_norms[-1](deep))
        elif experiment is DEEPLAB:
            deep = model.decoder.aspp(deep)
        mean = deep.flatten(2).sum(2) / deep[0, 0].numel()
        by_hand = mean @ model.label.logit.weight[0] + model.label.logit.bias
        torch.testing.assert_close(model(images).label, by_hand)


@pytest.mark.parametrize("experiment", SIDES, ids=title)
def test_side_masks_are_read_from_their_levels_coarse_to_fine(experiment):
    model = without_dropout(networks.build(experiment.differing(name="x", side_weight=0.1)).train())
    images = levels()
    with torch.no_grad():
        sides = model(images).sides
        features = model.encoder(model.input(images))
        if experiment is DEEPLAB:
            wanted = [features[4], model.decoder.aspp(features[-1])]
        elif experiment is UPERNET:
            pairs = zip(model.decoder.feature_norms, features[2:], strict=True)
            normed = [norm(feature) for norm, feature in pairs]
            wanted = model._decode(model.decoder.psp(normed[-1]), normed)
        else:
            wanted = model._decode(model.decoder.center(features[-1]), features)
        heights = [w.shape[2] for w in wanted]
        assert heights == sorted(heights)
        for side, level, conv in zip(sides, wanted, model.sides.logits, strict=True):
            full = F.interpolate(conv(level), size=(64, 64), mode="bilinear", align_corners=False)
            torch.testing.assert_close(side, full)


@pytest.mark.parametrize("experiment", UNETS, ids=title)
def test_with_fewer_levels_side_masks_are_still_at_full_size(experiment):
    experiment = experiment.differing(name="x", decoder_channels=(32, 24), side_weight=0.1)
    output = networks.build(experiment).train()(levels())
    assert [s.shape for s in (output.mask, *output.sides)] == [(2, 1, 64, 64)] * 3


@pytest.mark.parametrize("channels", [(48, 40, 32, 24, 16), (32, 24)], ids=len)
def test_an_attention_unet_with_open_gates_is_the_plain_unet(channels):
    plain, gated = (
        loud(built(experiment.differing(name="x", decoder_channels=channels))).eval()
        for experiment in (UNET, ATTENTION)
    )
    gated.load_state_dict(plain.state_dict(), strict=False)  # the same last layer
    assert len(gated.gates) == min(len(channels), 4)
    images, masks = levels(), {}
    with torch.inference_mode():
        for bias in (100, -100):
            for gate in gated.gates.values():
                nn.init.zeros_(gate.psi.weight)
                nn.init.constant_(gate.psi.bias, bias)
            masks[bias] = gated(images).mask
        torch.testing.assert_close(masks[100], plain(images).mask, rtol=1e-5, atol=1e-5)
        assert (masks[-100] - plain(images).mask).abs().max() > 0.01


def test_with_closed_gates_only_the_deepest_level_is_heard():
    model = built(ATTENTION).eval()
    images = levels()
    with torch.inference_mode():
        features = model.encoder(model.input(images))
        centre = model.decoder.center(features[-1])
        for gate in model.gates.values():
            nn.init.zeros_(gate.psi.weight)
            nn.init.constant_(gate.psi.bias, -1000)
        other = [torch.randn_like(f) for f in features[:-1]]
        first = model._decode(centre, features)
        another = model._decode(centre, [*other, features[-1]])
    assert all(torch.equal(a, b) for a, b in zip(first, another, strict=True))


def test_a_skip_without_channels_has_no_gate():
    experiment = ATTENTION.differing(name="x", encoder="tu-convnext_atto")  # nothing at half size
    model = networks.build(experiment).eval()
    assert sorted(model.gates) == ["0", "1", "2"]
    with torch.inference_mode():
        assert model(levels(1)).mask.shape == (1, 1, 64, 64)


def test_the_encoder_learns_at_its_own_rate():
    experiment = UNET.differing(name="x", encoder_lr_factor=0.25)
    model = networks.build(experiment)
    groups = networks.parameter_groups(model, experiment)
    assert [g["lr_factor"] for g in groups] == [0.25, 1.0]
    encoder = {id(p) for p in model.encoder.parameters()}
    assert {id(p) for p in groups[0]["params"]} == encoder
    assert not encoder & {id(p) for p in groups[1]["params"]}


def test_each_part_of_the_encoder_learns_slower_than_the_next():
    experiment = UNET.differing(name="x", encoder_lr_factor=0.5, layer_decay=0.8)
    model = networks.build(experiment)
    groups = networks.parameter_groups(model, experiment)
    assert [g["lr_factor"] for g in groups] == pytest.approx(
        [0.5 * 0.8**5, 0.5 * 0.8**4, 0.5 * 0.8**3, 0.5 * 0.8**2, 0.5 * 0.8, 1.0]
    )
    assert model.encoder.model.conv1[0].weight in set(groups[0]["params"])
    assert model.encoder.model.layer4[0].conv1.weight in set(groups[4]["params"])
    ids = [id(p) for g in groups for p in g["params"]]
    assert sorted(ids) == sorted(id(p) for p in model.parameters())


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"drop_path": 0.2, "encoder": "resnet18"}, r"not fit UNet at 64 px \(it skips no blocks"),
        ({"layer_decay": 0.9, "encoder": "mit_b0"}, "'mit_b0' has no layers in an order"),
    ],
)
def test_what_an_encoder_does_not_have_is_refused_before_any_data(fields, words):
    planned = plan_training(
        TrainParameters(experiment="x", tta="none"), {"x": UNET.differing(name="x", **fields)}
    )
    with pytest.raises(InputError, match=words):
        train.check(planned)


@pytest.mark.parametrize("experiment", FULL, ids=title)
def test_a_seed_builds_the_same_network(experiment):
    first, other = built(experiment).state_dict(), built(experiment).state_dict()
    assert all(torch.equal(first[k], other[k]) for k in first)
    another = built(experiment, seed=4).state_dict()
    assert not all(torch.equal(first[k], another[k]) for k in first)


@pytest.mark.parametrize("experiment", [*HEADED, ATTENTION], ids=title)
def test_heads_and_gates_leave_the_weights_that_a_seed_draws_elsewhere(experiment):
    less = {"network": "UNet"} if experiment is ATTENTION else {}
    bare = experiment.differing(name="x", label_weight=0.0, side_weight=0.0, **less)
    plain, more = built(bare).state_dict(), built(experiment).state_dict()
    assert all(torch.equal(plain[k], more[k]) for k in plain)
    added = {
        "label": experiment.label_weight > 0,
        "sides": experiment.side_weight > 0,
        "gates": experiment is ATTENTION,
    }
    assert {k.split(".")[0] for k in more.keys() - plain.keys()} == {
        k for k, v in added.items() if v
    }


@pytest.mark.parametrize("experiment", MASKS, ids=title)
def test_a_classifier_s_encoder_can_start_a_mask_model(experiment):
    classifier, model = built(CLASSIFIER, seed=1), built(experiment, seed=2)
    encoder = {
        k.removeprefix("encoder."): v
        for k, v in classifier.state_dict().items()
        if k.startswith("encoder.")
    }
    model.encoder.load_state_dict(encoder)  # strict: every name finds its place
    images = model.input(levels())
    with torch.inference_mode():
        early = [m.eval().encoder(images)[3] for m in (classifier, model)]
    assert torch.equal(*early)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"network": "Unet"}, "network 'Unet' is unknown; nearest: UNet"),
        ({"encoder": "resnet43"}, "ENCODER 'resnet43' is unknown"),
    ],
)
def test_an_unknown_network_or_encoder_is_refused(fields, words):
    with pytest.raises(InputError, match=words):
        networks.build(UNET.differing(name="x", **fields))


@pytest.mark.parametrize("encoder", ["densenet121", "tu-pvt_v2_b0", "tu-hgnetv2_b0"])
def test_deeplab_takes_an_encoder_that_cannot_be_dilated_at_stride_32(encoder):
    experiment = DEEPLAB.differing(name="x", encoder=encoder, side_weight=0.1, label_weight=0.05)
    model = networks.build(experiment).train()
    assert model.encoder.output_stride == 32
    assert encoder in model.note
    dilated = networks.build(DEEPLAB)
    assert (dilated.encoder.output_stride, dilated.note) == (16, None)
    assert [t.shape[2:] for t in everything(model(levels())) if t.ndim == 4] == [(64, 64)] * 3


def test_an_encoder_without_the_features_of_a_decoder_is_refused():
    experiment = UNET.differing(name="x", encoder="tu-vit_tiny_patch16_224")
    with pytest.raises(InputError, match=r"does not fit UNet at 64 px \(.*downsampling.*ResNet"):
        networks.build(experiment)


class _Odd(nn.Module):
    """An encoder whose trial passes and whose features are not what it says they are."""

    out_channels = (3, 8, 8, 8, 8, 8)
    output_stride = 32

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, channels, 1)

    def forward(self, x):
        return [x, *(F.avg_pool2d(self.stem(x), 2**level) for level in range(1, 6))]


@pytest.mark.parametrize("experiment", PLAIN, ids=title)
def test_a_network_that_cannot_take_a_step_is_refused_before_any_data(monkeypatch, experiment):
    monkeypatch.setattr(networks.encoders, "build", lambda *given, **how: _Odd(8))
    networks.check_sizes(networks.build(experiment), experiment, [])
    monkeypatch.setattr(networks.encoders, "build", lambda *given, **how: _Odd(5))
    model = networks.build(experiment)
    with pytest.raises(InputError, match=r"^ENCODER 'tu-resnet10t' does not fit .* at 64 px \("):
        networks.check_sizes(model, experiment, [])


def test_side_masks_of_a_network_without_levels_are_refused():
    with pytest.raises(InputError, match=r"side_weight 0\.1 asks a SegFormer for side masks, and"):
        networks.build(SEGFORMER.differing(name="x", side_weight=0.1))


def test_a_decoder_that_cannot_be_built_is_the_encoder_s_fault(monkeypatch):
    class Broken(architectures.UNet):
        def __init__(self, experiment):
            raise TypeError("unsupported operand")

    monkeypatch.setitem(networks.NETWORKS, "UNet", Broken)
    with pytest.raises(InputError, match=r"does not fit UNet at 64 px \(unsupported operand\)"):
        networks.build(UNET)


@pytest.mark.parametrize("tied", [False, True])  # as timm's coat ties its weights
def test_a_look_at_what_fits_leaves_the_model_and_the_generator(tied):
    model = networks.build(UNET.differing(name="x", encoder="tu-resnet10t", label_weight=0.1))
    if tied:
        block = model.encoder.model.layer1[0]
        block.conv2.weight = block.conv1.weight
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    torch.manual_seed(3)
    wanted = torch.rand(1)
    torch.manual_seed(3)
    networks.check_sizes(model, UNET, [])
    assert torch.equal(torch.rand(1), wanted)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name]), name
    assert model(levels()).mask.shape == (2, 1, 64, 64)


# One of each kind: convolutions, windows of a fixed size, tokens of one scale, NCHW and NHWC,
# features that a decoder lacks, constants that the meta device does not know.
KINDS = (
    "tu-swin_tiny_patch4_window7_224", "tu-swinv2_tiny_window8_256", "tu-maxvit_tiny_rw_224",
    "tu-coatnet_pico_rw_224", "tu-vit_tiny_patch16_224", "tu-deit_tiny_patch16_224",
    "tu-convnext_atto", "tu-mixer_s32_224", "tu-pvt_v2_b0", "tu-xcit_nano_12_p16_224",
    "tu-mobilevitv2_050", "tu-efficientformerv2_s0", "tu-gcvit_xxtiny", "tu-hiera_tiny_224",
    "tu-levit_128s", "tu-test_vit", "mit_b0", "vgg11_bn", "xception", "mobileone_s0",
)  # fmt: skip
WINDOWED = ("tu-swin_tiny_patch4_window7_224", "tu-maxvit_tiny_rw_224")  # built for the size


@pytest.mark.slow
@pytest.mark.parametrize("size", [64, 224])
@pytest.mark.parametrize("network", [experiment.network for experiment in MASKS])
@pytest.mark.parametrize("encoder", KINDS)
def test_every_kind_of_encoder_takes_a_step_or_is_refused(encoder, network, size):
    experiment = UNET.differing(
        name="x", encoder=encoder, network=network, size=size,
        **HEADS["label" if network == "SegFormer" else "both"],
    )  # fmt: skip
    refused = None
    try:
        model = networks.build(experiment)
        networks.check_sizes(model, experiment, [size])
    except InputError as error:
        refused = str(error)
    if refused is not None:
        assert refused.startswith(f"ENCODER {encoder!r} does not fit {network} at {size} px")
        assert "\n" not in refused
        assert not (encoder in WINDOWED and network == "UNet" and size == 64)
        return
    output = model(levels(2, size))
    assert output.mask.shape == (2, 1, size, size)
    sum(tensor.float().mean() for tensor in everything(output)).backward()


def test_views_of_a_size_that_the_encoder_cannot_take_are_refused():
    experiment = UNET.differing(name="x", encoder="tu-gcvit_xxtiny", tta="multiscale")
    model = networks.build(experiment)
    networks.check_sizes(model, experiment, [64])
    with pytest.raises(InputError, match=r"TTA multiscale looks at 96 px, and ENCODER 'tu-gcvit"):
        networks.check_sizes(model, experiment, [64, 96])


class Other(architectures.Classifier):
    """A new network without a mask: a class and a line in `NETWORKS`."""

    min_batch = 4


def test_another_network_without_a_mask_is_a_class_and_a_line(monkeypatch):
    monkeypatch.setitem(networks.NETWORKS, "Other", Other)
    other = CLASSIFIER.differing(name="x", network="Other", monitor="auc")
    assert networks.build(other)(levels(4)).mask is None
    for checked in (networks.check, validation.check):
        checked(other)
    for fields, words in (
        ({"label_weight": 0.0}, "label_weight 0 leaves a Other nothing to learn"),
        ({"side_weight": 0.1}, r"side_weight 0\.1 asks a Other for masks"),
        ({"batch_size": 3}, "BATCH_SIZE 3 .*: take 4 "),
    ):
        with pytest.raises(InputError, match=words):
            networks.check(other.differing(name="x", **fields))
    with pytest.raises(InputError, match="MONITOR 'dice' needs a mask"):
        validation.check(other.differing(name="x", monitor="dice"))


@pytest.mark.parametrize("experiment", PLAIN, ids=title)
@pytest.mark.parametrize("size", [32, 64])
@pytest.mark.parametrize("frozen", [False, True])
def test_a_batch_below_the_least_cannot_be_trained_on(experiment, size, frozen):
    """Frozen batch norm takes a single image, and keeps its statistics."""
    pools = experiment in (DEEPLAB, UPERNET)
    experiment = experiment.differing(name="x", size=size, freeze_batch_norm=frozen)
    model = networks.build(experiment).train()
    norms = list(networks.batch_norms(model))
    assert len(norms) > 10
    before = [norm.running_mean.clone() for norm in norms]
    for norm in norms:
        norm.train(not frozen)
    needs_two = not frozen and (pools or size == 32)
    assert networks.min_batch(experiment) == (2 if needs_two else 1)
    single = experiment.differing(name="x", batch_size=1)
    if needs_two:
        with pytest.raises(ValueError, match="more than 1 value per channel"):
            model(levels(1, size))
        with pytest.raises(InputError, match=f"BATCH_SIZE 1 .* {experiment.network} at {size} px"):
            networks.check(single)
        return
    networks.check(single)
    sum(F.softplus(tensor).mean() for tensor in everything(model(levels(1, size)))).backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters())
    kept = [torch.equal(b, n.running_mean) for b, n in zip(before, norms, strict=True)]
    assert all(kept) if frozen else not any(kept)
