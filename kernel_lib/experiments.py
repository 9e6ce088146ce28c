"""The shipped experiments, each as a difference from its parent, and their table.

Most are those of the reference solution, https://github.com/niudd/SIIM; `leaderboard` is the dice
on the public leaderboard that it reports, for several seeds, never ours. What its README leaves out
(momentum, weight decay, schedule) is from its code, and otherwise our choice, which the experiment
states.
"""

from __future__ import annotations

from collections.abc import Mapping

from kernel_lib.config import Experiment

# Twenty epochs from a trained run, at the final rate of its cosine.
_FINE_TUNED = {"epochs": 20, "min_epochs": 12, "lr": 0.002}
# For a GPU of 16 GB: the author's batches at these sizes, or the nearest that fit.
_UNET_768 = {"size": 768, "batch_size": 6, "accumulate": 3}
_UNET_1024 = {"size": 1024, "batch_size": 4, "accumulate": 4}
_DEEPLAB_768 = {"size": 768, "batch_size": 4, "accumulate": 4}
_DEEPLAB_1024 = {"size": 1024, "batch_size": 2, "accumulate": 8}  # the author's 8 · 2 does not fit

_UNET = Experiment(
    name="UNetResNet34_512_v1",
    says="U-Net with scSE decoder and hypercolumn, BCE",
    leaderboard="0.8265; five seeds 0.85",
)
_LOVASZ = {"loss": {"lovasz": 1.0}}
_MULTITASK = _UNET.differing(
    name="multitask_UNetResNet34_512_v1",
    says="a label head on the centre block beside the mask; its weight is our choice",
    leaderboard="like the best model, maybe lower",
    label_weight=0.05,
)
_SUPERVISED = _UNET.differing(
    name="deep_supervision_UNetResNet34_512_v1",
    says="three terms: 0.05 · label + 0.1 · Σ side masks of positives + fused, all BCE",
    leaderboard="0.8389",
    label_weight=0.05,
    side_weight=0.1,
)
_CLASSIFIER = _UNET.differing(
    name="two_step_classifier_512_v1",
    says="has a pneumothorax or not, trained on all images: the first of two steps",
    leaderboard="AUC below that of the U-Net's own sum of probabilities",
    network="Classifier",
    label_weight=1.0,
)
_DEEPLAB = _UNET.differing(
    name="deeplabv3plus_resnet_512_v1",
    says="DeepLabV3+ with output stride 16, BCE",
    leaderboard="like UNetResNet34_512_v1",
    network="DeepLabV3Plus",
    encoder="resnet101",
    schedule="poly",
    lr_end_factor=0.0,
    encoder_lr_factor=0.1,
    min_epochs=40,
)
_DEEPLAB_1024_V2 = _DEEPLAB.differing(
    name="deeplabv3plus_resnet_1024_v2",
    says="straight at 1024, the best single model of the reference solution",
    leaderboard="0.8614 / 0.8597 / 0.8603 / 0.8632, seed 4567: 0.8548",
    **_DEEPLAB_1024,
)
_LITE0 = _UNET.differing(
    name="lite0_256",
    says="for two CPU cores and some 2,000 radiographs of your own: a narrow U-Net at 256",
    encoder="timm-tf_efficientnet_lite0",
    decoder_channels=(64, 48, 32),  # stops at a quarter of the size, which loses little
    centre_block=False,  # would be a third of the weights, and random
    size=256,
    label_weight=0.05,
    sampling="positive_share",
    sampling_options={"start": 0.6, "end": 0.2},
    augment="flips",
    epochs=4,
    min_epochs=3,
    batch_size=16,
    accumulate=1,
    optimizer="adamw",
    lr=0.001,
    weight_decay=0.01,
    lr_end_factor=0.01,
    warmup_epochs=0.5,
    ema_decay=0.99,
    keep=1,
)
# What a competitor would take in 2026, in the optimisers' terms of the encoders' papers; epochs,
# sampling, the weight of the label and the rates of EfficientNetV2 are our choice, and so are
# batches that fit a T4. As elsewhere weight decay is on all parameters.
_MODERN = _UNET.differing(
    name="unet_effnetv2s_512_v1",
    says="U-Net on EfficientNetV2-S with a label head; drop path, layer-wise rates, AdamW",
    encoder="tu-tf_efficientnetv2_s",
    drop_path=0.2,  # survival 0.8 (Tan and Le 2021, EfficientNetV2-S)
    label_weight=0.05,
    sampling="positive_share",
    sampling_options={"start": 0.6, "end": 0.2},
    augment="distortions",
    epochs=30,
    min_epochs=24,
    batch_size=8,
    accumulate=2,
    optimizer="adamw",
    lr=0.0003,
    layer_decay=0.9,
    weight_decay=0.05,
    lr_end_factor=0.01,
    warmup_epochs=1.0,
    clip_grad_norm=1.0,
)
# Of ConvNeXt-S with UPerNet on ADE20K (Liu 2022, appendix A.3, and its published configuration):
# 16 images a step by AdamW. Its decay is by stage; ours by the twelve parts of its fine-tuning.
_CONVNEXT = {"drop_path": 0.3, "lr": 0.0001, "layer_decay": 0.9, "weight_decay": 0.05}
_ALL = (
    _UNET,
    _UNET.differing(name="UNetResNet34_512_v2", says="BCE + dice", loss={"bce": 1.0, "dice": 1.0}),
    _UNET.differing(
        name="UNetResNet34_512_v3",
        says="v1 fine-tuned with BCE + dice",
        weights="UNetResNet34_512_v1",
        loss={"bce": 1.0, "dice": 1.0},
        **_FINE_TUNED,
    ),
    _UNET.differing(
        name="UNetResNet34_512_v4",
        says="trained on positives only; predicted and scored on all images",
        sampling="nonempty",
    ),
    _UNET.differing(name="UNetResNet34_512_v5", says="symmetric Lovász hinge", **_LOVASZ),
    _UNET.differing(
        name="UNetResNet34_512_v5_focal",
        says="focal loss, the other v5 of the reference solution",
        loss={"focal": 1.0},
    ),
    _UNET.differing(
        name="UNetResNet34_512_v6",
        says="Heng's weighted BCE: 0.25 · mean over positive pixels + 0.75 · over negative ones",
        leaderboard="training is difficult",
        loss={"weighted_bce": 1.0},
        loss_options={"weighted_bce": {"positive": 0.25, "negative": 0.75}},
    ),
    _UNET.differing(
        name="UNetResNet34_768_v1",
        says="the same, straight at 768",
        leaderboard="0.8557 / 0.8530 / 0.8592",
        **_UNET_768,
    ),
    _UNET.differing(
        name="UNetResNet34_1024_v1",
        says="the same, straight at 1024",
        leaderboard="0.8601 / 0.8592 / 0.8609",
        **_UNET_1024,
    ),
    _MULTITASK,
    _MULTITASK.differing(
        name="multitask_UNetResNet34_512_v2",
        says="mask loss on positives only; the label gates the mask, also in the score",
        leaderboard="similar to v1",
        mask_loss_images="nonempty",
        monitor="dice_gated",
    ),
    _SUPERVISED,
    _SUPERVISED.differing(
        name="deep_supervision_UNetResNet34_512_v2",
        says="v1 fine-tuned with symmetric Lovász",
        leaderboard="training process not working",
        weights="deep_supervision_UNetResNet34_512_v1",
        **_LOVASZ,
        **_FINE_TUNED,
    ),
    _DEEPLAB,
    _DEEPLAB.differing(
        name="deeplabv3plus_resnet_512_v2",
        says="v1 fine-tuned with Heng's weighted BCE",
        leaderboard="validation dice does not move",
        weights="deeplabv3plus_resnet_512_v1",
        loss={"weighted_bce": 1.0},
        loss_options={"weighted_bce": {"positive": 0.25, "negative": 0.75}},
        **_FINE_TUNED,
    ),
    _DEEPLAB.differing(
        name="deeplabv3plus_resnet_768_v1",
        says="straight at 768",
        leaderboard="0.8551 / 0.8554 / 0.8605",
        **_DEEPLAB_768,
    ),
    _DEEPLAB.differing(
        name="deeplabv3plus_resnet_1024_v1",
        says="warm start from the 512 run, 20 epochs at 1024",
        leaderboard="0.8538 / 0.8503",
        weights="deeplabv3plus_resnet_512_v1",
        epochs=20,
        min_epochs=12,
        lr=0.01,
        **_DEEPLAB_1024,
    ),
    _DEEPLAB_1024_V2,
    _DEEPLAB_1024_V2.differing(
        name="deeplabv3plus_supervision_resnet_1024_v1",
        says="deep supervision on DeepLabV3+",
        leaderboard="0.8561, below 0.8614 without",
        label_weight=0.05,
        side_weight=0.1,
    ),
    _UNET.differing(
        name="attention_UNetResNet34_512_v1",
        says="attention U-Net: gates on the skips; on the reference solution's to-do list",
        network="AttentionUNet",
    ),
    _CLASSIFIER,
    _UNET.differing(
        name="two_step",
        says="masks learnt on positives, emptied by the classifier's label",
        leaderboard="first step not working",
        sampling="nonempty",
        gate="two_step_classifier_512_v1",
    ),
    _CLASSIFIER.differing(
        name="nih_UNetResNet34_v1",
        says="has a pneumothorax or not, on NIH ChestX-ray14 without the fold's patients",
        images="nih",
        epochs=10,  # ten times as many images
        min_epochs=6,
        batch_size=32,
        accumulate=1,
    ),
    _UNET.differing(
        name="nih_UNetResNet34_512_v1",
        says="a mask model whose encoder starts from the NIH classifier",
        weights="nih_UNetResNet34_v1",
    ),
    _LITE0,
    _LITE0.differing(
        name="lite0_384",
        says="the same, taken on from 256 for two more epochs at 384",
        size=384,
        weights="lite0_256",
        sampling_options={"start": 0.3, "end": 0.2},
        epochs=2,
        min_epochs=1,
        lr=0.0003,
        warmup_epochs=0.25,
    ),
    _MODERN,
    _MODERN.differing(
        name="unet_convnexts_dinov3_512_v1",
        says="the same on ConvNeXt-S as DINOv3 distilled it; its weights have Meta's own licence",
        encoder="tu-convnext_small.dinov3_lvd1689m",
        **_CONVNEXT,
    ),
    _MODERN.differing(
        name="upernet_convnexts_512_v1",
        says="UPerNet on ConvNeXt-S of ImageNet-22k, as its authors segment",
        network="UPerNet",
        encoder="tu-convnext_small.fb_in22k_ft_in1k",
        **_CONVNEXT,
    ),
    _MODERN.differing(
        name="segformer_b2_512_v1",
        says="SegFormer-B2; its weights are for research and evaluation alone (NVIDIA's licence)",
        network="SegFormer",
        encoder="mit_b2",
        # Xie 2021 (SegFormer, section 4.1 and its code): AdamW at 6e-5, ten times that in the
        # decoder, weight decay 0.01, poly, 16 images a step, drop path 0.1, 768 channels.
        decoder_channels=(768,),
        drop_path=0.1,
        lr=0.0006,
        encoder_lr_factor=0.1,
        layer_decay=1.0,
        weight_decay=0.01,
        schedule="poly",
        lr_end_factor=0.0,
    ),
    _MODERN.differing(
        name="unet_effnetv2s_768_v1",
        says="the first of these, taken on from 512 for ten more epochs at 768",
        size=768,
        weights="unet_effnetv2s_512_v1",
        sampling_options={"start": 0.3, "end": 0.2},
        epochs=10,
        min_epochs=8,
        batch_size=4,
        accumulate=4,
        lr=0.0001,
        warmup_epochs=0.5,
    ),
    _UNET.differing(
        name="demo_UNetResNet10_128_v1",
        says="what `make demo` trains on phantoms in minutes, from scratch, on a CPU",
        encoder="tu-resnet10t",
        decoder_channels=(32, 24, 16, 16),
        weights="none",
        augment="hflip",
        size=128,
        epochs=7,
        min_epochs=4,
        patience=5,
        batch_size=8,
        accumulate=1,
        optimizer="adamw",
        lr=0.001,
        weight_decay=0.01,
        lr_end_factor=0.01,
        warmup_epochs=1.0,
        ema_decay=0.9,
        keep=2,
    ),
)

EXPERIMENTS = {experiment.name: experiment for experiment in _ALL}


def experiments_table(experiments: Mapping[str, Experiment]) -> str:
    """Return a table with a line for each experiment, in the order of the registry."""
    head = ("experiment", "what it is", "starts from", "public LB of the reference solution")
    lines = [head, ("---",) * len(head)]
    names = {"imagenet": "ImageNet", "none": "scratch"}
    for experiment in experiments.values():
        weights = experiment.weights
        start = f"`{weights}`" if weights in experiments else names.get(weights, weights)
        if experiment.gate:
            start += f"; gated by `{experiment.gate}`"
        score = experiment.leaderboard or "–"
        lines.append((f"`{experiment.name}`", experiment.says, start, score))
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)
