"""The rows of the notes, as differences from a parent; nothing but rows.

`leaderboard` is the public leaderboard's dice as the notes report it for several seeds: theirs,
never ours. What the notes leave out (momentum, decay, schedule) is their author's published recipe.
"""

from __future__ import annotations

from kernel_lib.config import Experiment

_UNET = Experiment(
    name="UNetResNet34_512_v1",
    says="U-Net with scSE decoder and hypercolumn, BCE",
    leaderboard="0.8265; five seeds 0.85",
)
_DEEPLAB = _UNET.differing(
    name="deeplabv3plus_resnet_512_v1",
    says="DeepLabV3+ with output stride 16, BCE; like the U-Net on the leaderboard",
    network="DeepLabV3Plus",
    encoder="resnet101",
    schedule="poly",
    lr_end_factor=0.0,
    encoder_lr_factor=0.1,
    min_epochs=40,
)
_ROWS = (
    _UNET,
    _UNET.differing(
        name="UNetResNet34_768_v1",
        says="the same at 768, from scratch",
        leaderboard="0.8557 / 0.8530 / 0.8592",
        size=768,
        batch_size=6,
        accumulate=3,
    ),
    _UNET.differing(
        name="UNetResNet34_1024_v1",
        says="the same at 1024, from scratch",
        leaderboard="0.8601 / 0.8592 / 0.8609",
        size=1024,
        batch_size=4,
        accumulate=4,
    ),
    _DEEPLAB,
    _DEEPLAB.differing(
        name="deeplabv3plus_resnet_768_v1",
        says="straight at 768",
        leaderboard="0.8551 / 0.8554 / 0.8605",
        size=768,
        batch_size=4,
        accumulate=4,
    ),
    _DEEPLAB.differing(
        name="deeplabv3plus_resnet_1024_v2",
        says="straight at 1024, the notes' best",
        leaderboard="0.8614 / 0.8597 / 0.8603 / 0.8632, seed 4567: 0.8548",
        size=1024,
        batch_size=2,  # the author's 8 · 2 does not fit a 16 GB card
        accumulate=8,
    ),
    _UNET.differing(
        name="demo_UNetResNet10_128_v1",
        says="what `make demo` trains on phantoms in minutes, from scratch, on a CPU",
        encoder="tu-resnet10t",
        decoder_channels=(64, 48, 32, 24),
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

EXPERIMENTS = {row.name: row for row in _ROWS}
