"""What is tried: small rows that differ from one baseline in one thing, and what is made of them.

Sizes of 96, 128 and 192 stand in for 512, 768 and 1024. Networks share one small
encoder, so that a pair of networks differs in nothing else.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from kernel_lib.config import Experiment
from kernel_lib.experiments import EXPERIMENTS

SMALL, MIDDLE, LARGE = 96, 128, 192
_DEEPLAB = {"network": "DeepLabV3Plus", "decoder_channels": (256,)}  # as wide as the paper's

BASELINE = EXPERIMENTS["demo_UNetResNet10_128_v1"].differing(
    name="unet",
    says="the baseline: a small U-Net, BCE",
    size=SMALL,
    epochs=6,
    min_epochs=4,
    patience=6,
    monitor="dice",
    lr=0.002,
    tta="none",
)


@dataclass(frozen=True)
class Trained:
    """An arm that is trained on one fold, and predicts the evaluation images by its own row."""

    row: Experiment
    gated: bool = False  # whether the label's threshold is part of the rule
    phantoms: Literal["own", "other"] = "own"  # what it is trained on
    encoder_of: str = ""  # the arm whose encoder stands in for ImageNet's

    @property
    def name(self) -> str:
        return self.row.name

    @property
    def needs(self) -> tuple[tuple[str, int], ...]:
        """Return arms that come first, each with how many seeds further on it is taken."""
        started = self.row.weights if self.row.weights not in ("none", "imagenet") else ""
        return tuple((name, 0) for name in (started, self.encoder_of) if name)


@dataclass(frozen=True)
class Viewed:
    """The checkpoints of a trained arm, looking at the evaluation images in other views."""

    name: str
    of: Trained
    tta: str

    @property
    def needs(self) -> tuple[tuple[str, int], ...]:
        return ((self.of.name, 0),)


@dataclass(frozen=True)
class Joined:
    """What is made of finished maps; a member is an arm and how many seeds further on it is taken.

    `mean`: of the maps. `vote`: of the masks, a pixel kept where more than half agree. `label`: the
    first member's maps, gated by the second's label. `sum`: maps gated by their own sum.
    `single`: by rules of one threshold and one area, as the reference solution.
    """

    name: str
    needs: tuple[tuple[str, int], ...]
    how: Literal["mean", "vote", "label", "sum", "single"] = "mean"
    every_seed: bool = False  # members are the arms named at every seed there is


Arm = Trained | Viewed | Joined


def build(base: Experiment = BASELINE, sizes: tuple[int, int, int] | None = None) -> dict[str, Arm]:
    """Return every arm by name, of a baseline and the sizes small (its own), middle and large."""
    _, middle, large = sizes or (base.size, MIDDLE, LARGE)
    trained = {arm.name: arm for arm in (*_one_change(base), *_sized(base, middle, large))}
    for arm in _descended(trained, large):
        trained[arm.name] = arm
    return trained | {arm.name: arm for arm in _made_of(trained["unet"])}


def _one_change(base: Experiment) -> Sequence[Trained]:
    """Return the baseline, and rows at its size that differ in one thing."""
    weighted = {
        "loss": {"weighted_bce": 1.0},
        "loss_options": {"weighted_bce": {"positive": 0.25, "negative": 0.75}},
    }
    heads = {"label_weight": 0.05, "side_weight": 0.1}
    changes = {
        "accumulated": {"accumulate": 2},
        "batch_16": {"batch_size": 16},
        "kept_early": {"min_epochs": 0},
        "bce_dice": {"loss": {"bce": 1.0, "dice": 1.0}},
        "lovasz": {"loss": {"lovasz": 1.0}},
        "focal": {"loss": {"focal": 1.0}},
        "weighted_bce": weighted,
        "nonempty": {"sampling": "nonempty"},
        "positive_share": {"sampling": "positive_share"},
        "hard": {"sampling": "hard"},
        "multitask_v1": {"label_weight": 0.05},
        "deep_supervision_v1": heads,
        "attention": {"network": "AttentionUNet"},
        "deeplab": _DEEPLAB,
        "deeplab_supervision": {**_DEEPLAB, **heads},
    }
    rows = [Trained(base)] + [Trained(base.differing(name=n, **c)) for n, c in changes.items()]
    gated = base.differing(
        name="multitask_v2", label_weight=0.05, mask_loss_images="nonempty", monitor="dice_gated"
    )
    classifier = base.differing(
        name="classifier", network="Classifier", label_weight=1.0, monitor="auc", keep=1
    )
    other = Trained(classifier.differing(name="classifier_of_others"), phantoms="other")
    return (*rows, Trained(gated, gated=True), Trained(classifier), other)


def _sized(base: Experiment, middle: int, large: int) -> Sequence[Trained]:
    """Return U-Net and DeepLab at the other two sizes; the small one is the baseline's."""
    return [
        Trained(base.differing(name=f"{arm}_{word}", size=size, **changes))
        for arm, changes in (("unet", {}), ("deeplab", _DEEPLAB))
        for word, size in (("middle", middle), ("large", large))
    ]


def _descended(trained: dict[str, Trained], large: int) -> Sequence[Trained]:
    """Return experiments that start from another, a third of the epochs at a tenth of the rate.

    A warm start at a larger size has half the rate.
    """
    base = trained["unet"].row
    fewer = max(2, round(base.epochs * 20 / 70))
    tuned = {"epochs": fewer, "min_epochs": fewer - 1, "lr": base.lr / 10}

    def after(parent: str, name: str, **changes) -> Trained:
        return Trained(trained[parent].row.differing(name=name, weights=parent, **tuned | changes))

    weighted = trained["weighted_bce"].row
    return (
        after("unet", "tuned_bce"),
        after("unet", "tuned_bce_dice", loss={"bce": 1.0, "dice": 1.0}),
        after("deep_supervision_v1", "deep_supervision_v2", loss={"lovasz": 1.0}),
        after("deeplab", "deeplab_v2", loss=weighted.loss, loss_options=weighted.loss_options),
        after("deeplab", "deeplab_large_warm", size=large, lr=base.lr / 2),
        # The exported encoder of another classifier is given where ImageNet's would be.
        Trained(
            base.differing(name="pretrained", weights="imagenet"), encoder_of="classifier_of_others"
        ),
    )


def _made_of(unet: Trained) -> Sequence[Viewed | Joined]:
    """Return views and ensembles: nothing more is trained for them."""
    views = [Viewed(f"unet_{tta}", unet, tta) for tta in ("hflip", "vflip", "flips", "multiscale")]
    two = (("unet", 0), ("deeplab", 0))
    return (
        *views,
        Joined("unet_single_rule", (("unet", 0),), "single"),
        Joined("seed_mean", (("unet", 0),), every_seed=True),
        Joined("seed_vote", (("unet", 0),), "vote", every_seed=True),
        Joined("two_networks", two),
        Joined("two_networks_other_seed", (("unet", 0), ("deeplab", 1))),
        Joined("two_unets", (("unet", 0), ("unet", 1))),
        Joined("four_vote", (("unet", 0), ("deeplab", 0), ("unet", 1), ("deeplab", 1)), "vote"),
        Joined("two_step", (("nonempty", 0), ("classifier", 0)), "label"),
        Joined("two_step_own_sum", (("nonempty", 0),), "sum"),
    )


def cost(arm: Arm) -> float:
    """Return the rough work of an arm, its epochs times its pixels, to order arms by."""
    if isinstance(arm, Joined):
        return 0.0
    experiment = arm.row if isinstance(arm, Trained) else arm.of.row
    return float(experiment.size**2 * (experiment.epochs if isinstance(arm, Trained) else 1))
