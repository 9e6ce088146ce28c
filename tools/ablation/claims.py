"""The reference solution's claims, one by one, and the two arms whose difference tries each.

A side is written `arm:measure`; `one|other:measure` is the better of two arms. Where the notes say
nothing of the outcome, as in their to-do list, a claim is `open`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

# more, less: A is above, or below, B. same: the two differ by less than the margin of the measure.
# no gain: A is not above B by more than that.
Expected = Literal["more", "less", "same", "no gain", "open"]


@dataclass(frozen=True)
class Claim:
    """A claim that two arms can try."""

    says: str  # the claim in the reference solution's words, short
    tried: str  # A against B, in words
    a: str
    b: str
    expects: Expected
    why: str  # one line of reason
    otherwise: str = ""  # the reason where it does not hold here


@dataclass(frozen=True)
class Spread:
    """The scores of an arm by seed, and which of them lie apart."""

    says: str
    arm: str
    why: str


@dataclass(frozen=True)
class Explained:
    """One line of the notes that is explained and not measured."""

    says: str
    tried: str
    why: str


@dataclass(frozen=True)
class OnGpu:
    """Training speeds, free and deterministic, where there is a GPU."""

    says: str
    tried: str
    why: str


Line = Claim | Spread | OnGpu | Explained

_FEW = "so few images and epochs say little of seventy epochs on ten thousand"

EXPERIMENTS: tuple[Line, ...] = (
    Claim(
        "mask and has-mask in one model training: worse",
        "U-Net with a label head against without",
        "multitask_v1:dice", "unet:dice", "less",
        "the label repeats what the mask already says, and takes gradient from it",
        "at a weight of 0.05 the label takes little from the mask",
    ),
    Claim(
        "image size 512 (96 stands in), the next is 768 (128)",
        "U-Net at 128 against 96", "unet_middle:dice", "unet:dice", "more",
        "thin rims of air are a pixel or less at the smaller size",
        "at so few steps the smaller picture is learnt as well",
    ),
    Claim(
        "gradient accumulation at batch 8", "8 × 2 against 8 × 1", "accumulated:dice", "unet:dice",
        "more", "the gradient is less noisy",
        "in epochs of a fixed length it halves the number of steps, which weighs more here",
    ),
    Claim(
        "sync batch norm for small batches",
        "16 × 1 against 8 × 2: statistics over 16 images, what two GPUs of 8 would give",
        "batch_16:dice", "accumulated:dice", "more",
        "statistics over more images are closer to those used at prediction",
        "8 images of one kind already give steady statistics",
    ),
    Claim(
        "2 steps: the classifier's AUC is below that of the mask model's sum",
        "AUC of a classifier against that of the U-Net's sum of probabilities",
        "classifier:auc_label", "unet:auc_sum", "less",
        "a mask says where, and teaches more from one image than a yes or no",
    ),
    Claim(
        "2 steps: not working",
        "masks learnt on non-empty images, gated by the classifier, against the U-Net",
        "two_step:dice", "unet:dice", "less",
        "each of the two steps adds its own errors, and the second never saw an empty image",
    ),
    Claim(
        "2 steps: gate by the sum instead",
        "the same masks gated by the classifier against gated by their own sum",
        "two_step:dice", "two_step_own_sum:dice", "less",
        "the better AUC gates better",
        "masks learnt on non-empty images alone are no judge of empty ones",
    ),
    Claim(
        "ensemble of 5 seeds", "mean of all seeds' maps against the single seeds",
        "seed_mean:dice", "unet:dice", "more",
        "errors of one seed's noise are averaged away; no member saw the images",
    ),
    Explained(
        "5 seeds: local CV 0.88+, LB 0.85", "not a pair",
        "the seed drew the split too, so four of five members had trained on the images of that "
        "CV; here a score on an image that a member saw is refused",
    ),
    Claim(
        "multitask on the centre block: no improvement",
        "U-Net with a label head against without", "multitask_v1:dice", "unet:dice", "no gain",
        "the encoder learns the label from the mask anyway",
        "with few images one more signal helps",
    ),
    Claim(
        "DeepSupervision: no significant improvement",
        "side masks and label against none", "deep_supervision_v1:dice", "unet:dice", "no gain",
        "the hypercolumn already looks at every level",
        "with few steps the deep levels learn sooner when they are asked directly",
    ),
    Claim(
        "DeepLabV3+: similar to U-Net", "DeepLabV3+ against U-Net", "deeplab:dice", "unet:dice",
        "same", "with one encoder the decoders differ little",
        "a map at a quarter of the size costs thin masks more at 128 px than at 512",
    ),
    Claim(
        "DeepLabV3+ with 768: better", "DeepLabV3+ at 128 against 96",
        "deeplab_middle:dice", "deeplab:dice", "more",
        "its map is a quarter of the image's size, so it gains from every pixel",
    ),
    Claim(
        "NIH classifier first, its encoder then starts the mask model",
        "encoder of a classifier of other phantoms against random weights",
        "pretrained:dice", "unet:dice", "open",
        "the encoder knows chests before the first mask; other phantoms stand in for NIH",
    ),
)  # fmt: skip

TO_DO: tuple[Line, ...] = (
    Claim(
        "attention U-Net", "gates on the skips against none", "attention:dice", "unet:dice", "open",
        "gates weigh what the scSE decoder already weighs",
    ),
    Claim(
        "DeepLabV3+ with DeepSupervision", "DeepLabV3+ with side masks and label against without",
        "deeplab_supervision:dice", "deeplab:dice", "open",
        "the deep levels are asked directly",
    ),
    Claim(
        "TTA: vertical flip", "image and vflip against image alone",
        "unet_vflip:dice", "unet:dice", "open",
        "training shows no chest upside down, so that view is a guess",
    ),
    Claim(
        "TTA: all flips", "four flips against hflip", "unet_flips:dice", "unet_hflip:dice", "open",
        "training shows no chest upside down, so half of the views are guesses",
    ),
    Claim(
        "TTA: multi-scale", "scales 0.75, 1 and 1.25 against 1",
        "unet_multiscale:dice", "unet:dice", "open",
        "a size never trained on is seen less well, and averages other errors",
    ),
    Claim(
        "hard example mining", "hard images drawn again against each once",
        "hard:dice", "unet:dice", "open",
        "missed masks come oftener; so do wrong alarms, and every epoch is longer",
    ),
    Claim(
        "(of the winner, not the reference solution) a falling share of positives",
        "0.8 to 0.4 positive against as they are", "positive_share:dice", "unet:dice", "open",
        "more masks are seen in as many steps, at the price of more false alarms",
    ),
)  # fmt: skip

KNOWLEDGE: tuple[Line, ...] = (
    Claim(
        "threshold search improves", "searched rule, chosen on other patients, against p > 0.5",
        "unet:dice", "unet:half", "more",
        "an empty image with one stray pixel scores 0: the least area removes such masks",
    ),
    Claim(
        "one threshold and one area is enough (the reference solution's rule)",
        "triplet against one threshold and one area",
        "unet:dice", "unet_single_rule:dice", "no gain",
        "with few images the third number is chosen by chance as much as by reason",
        "what decides that there is a mask and where it ends are two questions",
    ),
    Explained(
        "do not split a mask into instances", "arithmetic",
        "one mask an image is scored: of two equal parts one alone has dice 2 · ½ / (½ + 1) = 0.67 "
        "against the whole, and two rows of an image are refused",
    ),
    Claim(
        "a bigger image helps", "U-Net at 192 against 96",
        "unet_large:dice", "unet:dice", "more",
        "thin rims of air are a pixel or less at the smaller size", _FEW,
    ),
    OnGpu(
        "seed_everything lowers GPU usage?",
        "UNetResNet34_512_v1, images a second: deterministic against free",
        "with it cuDNN may neither time its algorithms nor take those that add in any order; a GPU "
        "that runs slower ones, or waits between them, shows as less used",
    ),
    Claim(
        "DeepLabV3+ at 512, then fine-tuned at 1024: better",
        "96 then 192 against 96", "deeplab_large_warm:dice", "deeplab:dice", "more",
        "what was learnt at the small size holds at the large, and edges are added",
    ),
    Claim(
        "warm start at the large size", "96 then 192 for a third of the epochs against 192 from "
        "scratch", "deeplab_large_warm:dice", "deeplab_large:dice", "less",
        "the reference solution's run from scratch had more epochs at the large size and won",
        "where epochs are few, those at the small size are the cheaper ones",
    ),
    Claim(
        "TTA improves (a little)", "image and hflip against image alone",
        "unet_hflip:dice", "unet:dice", "more",
        "two views of one network err apart a little",
    ),
    Claim(
        "voting improves", "masks kept where more than half of the seeds agree against the single "
        "seeds", "seed_vote:dice", "unet:dice", "more",
        "a false alarm of one seed is outvoted",
    ),
    Claim(
        "voting over different networks", "vote of two U-Nets and two DeepLabs (3 of 4) against "
        "the better single network", "four_vote:dice", "unet|deeplab:dice", "more",
        "a false alarm of one network is outvoted",
        "two of the four votes are the weaker network's, and three must agree on every mask",
    ),
    Claim(
        "different networks together improve significantly",
        "mean of U-Net and DeepLabV3+ against the better of the two",
        "two_networks:dice", "unet|deeplab:dice", "more",
        "different decoders err at different places",
        "the weaker of the two pulls the mean down",
    ),
    Claim(
        "different networks more than different seeds",
        "U-Net with DeepLabV3+ against U-Net with a U-Net of the next seed",
        "two_networks:dice", "two_unets:dice", "more",
        "different decoders err at different places",
        "DeepLabV3+ is weaker here by more than its other errors make good",
    ),
    Claim(
        "empty images are mostly predicted empty, non-empty ones often too",
        "share of empty images with a mask against share of non-empty ones without",
        "unet:false_alarms", "unet:missed", "less",
        "most images are empty, and a stray mask costs a whole point: the rule leans to empty",
    ),
    Claim(
        "small masks are missed", "share missed of the smallest third against of the rest",
        "unet:missed_small", "unet:missed_larger", "more",
        "they have few pixels above the threshold, and the least area removes those",
    ),
    Claim(
        "a minimum of epochs before the best is kept",
        "kept from epoch 4 of 6 against from the first", "unet:dice", "kept_early:dice", "more",
        "an early epoch may be best by chance on few held-out images",
        "the rate falls to the end, so the late epochs are the best ones anyway",
    ),
)  # fmt: skip

CHECKPOINTS: tuple[Line, ...] = (
    Claim(
        "UNetResNet34_512_v1: BCE, the best", "U-Net against the empty submission",
        "unet:dice", "all_empty:dice", "more", "it has learnt something, so the pairs can differ",
    ),
    Claim(
        "UNetResNet34_512_v2: BCE + dice", "BCE + dice against BCE", "bce_dice:dice", "unet:dice",
        "no gain", "dice weighs small masks more; the search of the rule does so already",
        "from scratch the dice term finds the few positive pixels sooner",
    ),
    Claim(
        "UNetResNet34_512_v3: v1 fine-tuned with BCE + dice",
        "fine-tuned with BCE + dice against with BCE", "tuned_bce_dice:dice", "tuned_bce:dice",
        "open", "a third of the epochs at a tenth of the rate moves little",
    ),
    Claim(
        "the same, against v1 itself", "fine-tuned with BCE + dice against not at all",
        "tuned_bce_dice:dice", "unet:dice", "open", "further epochs help whatever their loss",
    ),
    Claim(
        "UNetResNet34_512_v4: non-empty images only", "non-empty images against all",
        "nonempty:dice", "unet:dice", "less", "it never saw an empty image, and calls few so",
    ),
    Claim(
        "the same, on non-empty images", "non-empty images against all, dice of non-empty ones",
        "nonempty:dice_nonempty", "unet:dice_nonempty", "open",
        "it need not doubt; but it had a third of the steps",
    ),
    Claim(
        "UNetResNet34_512_v5: symmetric Lovász", "Lovász against BCE", "lovasz:dice", "unet:dice",
        "no gain", "its maps are nearly 0 or 1, so there is little for the rule to choose",
        "it aims at the overlap itself",
    ),
    Claim(
        "UNetResNet34_512_v5: focal", "focal against BCE", "focal:dice", "unet:dice", "no gain",
        "its probabilities shrink to the middle; a searched threshold undoes that",
        "it spends its gradient on the few pixels that are hard",
    ),
    Claim(
        "UNetResNet34_512_v6: Heng's weighted BCE: difficult", "weighted BCE against BCE",
        "weighted_bce:dice", "unet:dice", "less",
        "positive pixels weigh a hundredfold: everything near looks like air",
        "the search of the rule undoes the raised probabilities",
    ),
    Claim(
        "multitask_v1: similar, maybe lower", "label head against none",
        "multitask_v1:dice", "unet:dice", "same", "the label's weight is small",
    ),
    Claim(
        "multitask_v2: similar to v1", "mask loss on non-empty images and the label's gate against "
        "v1", "multitask_v2:dice", "multitask_v1:dice", "same",
        "the gate does what the mask's own doubt did",
        "a gate is no better than its label, and this one is weighted 0.05",
    ),
    Claim(
        "deep_supervision_v1: LB 0.8389, above v1's 0.8265", "side masks and label against none",
        "deep_supervision_v1:dice", "unet:dice", "more",
        "every level learns from the mask directly",
        "the side masks take their share of so few steps",
    ),
    Claim(
        "deep_supervision_v1: share of masks close to the truth", "share predicted against true",
        "deep_supervision_v1:share", "deep_supervision_v1:true_share", "same",
        "the rule balances missed masks against false alarms",
        "missing a small mask costs less than a false alarm, so the rule gives fewer masks",
    ),
    Claim(
        "deep_supervision_v2: Lovász fine-tuning not working",
        "v1 fine-tuned with Lovász against v1", "deep_supervision_v2:dice",
        "deep_supervision_v1:dice", "no gain", "a new loss at a tenth of the rate moves little",
        "further epochs help whatever their loss",
    ),
    Claim(
        "deeplabv3plus_512_v1: similar to UNetResNet34_512_v1", "both at 96",
        "deeplab:dice", "unet:dice", "same", "with one encoder the decoders differ "
        "little", "a map at a quarter of the size costs thin masks more at 96 px than at 512",
    ),
    Claim(
        "deeplabv3plus_512_v2: fine-tuned with weighted BCE, dice not moving",
        "fine-tuned with weighted BCE against v1", "deeplab_v2:dice", "deeplab:dice", "no gain",
        "other weights raise all probabilities, and the rule lowers them again",
        "further epochs help whatever their loss",
    ),
    Claim(
        "deeplabv3plus_1024_v1: warm start, below 768 (0.8538 against 0.8551 and more)",
        "96 then 192 against 128", "deeplab_large_warm:dice", "deeplab_middle:dice", "less",
        "too few epochs at the large size", "what was learnt at the small size holds at the large",
    ),
    Claim(
        "deeplabv3plus_768_v1: best single model", "DeepLabV3+ at 128 against U-Net at 96",
        "deeplab_middle:dice", "unet:dice", "more", "size, and a wide view at little cost",
        "a map at a quarter of the size costs thin masks more at 128 px than at 768",
    ),
    Claim(
        "UNetResNet34_768_v1: better than 512", "U-Net at 128 against 96",
        "unet_middle:dice", "unet:dice", "more",
        "thin rims of air are a pixel or less at the smaller size", _FEW,
    ),
    Claim(
        "deeplabv3plus_supervision_1024_v1: 0.8561, below 0.8614 without",
        "with side masks and label against without, at 128",
        "deeplab_supervision:dice", "deeplab:dice", "less",
        "side masks at stride 16 ask for what that stride cannot show",
        "side masks help where steps are few",
    ),
)  # fmt: skip

CURRENT_BEST: tuple[Line, ...] = (
    Claim(
        "deeplabv3plus_1024_v2: from scratch, better than 768", "DeepLabV3+ at 192 against 128",
        "deeplab_large:dice", "deeplab_middle:dice", "more",
        "its map is a quarter of the image's size, so it gains from every pixel", _FEW,
    ),
    Spread(
        "seed 4567 is lower: train again?", "deeplab",
        "one of five is always the least; by the rule used here the reported 0.8548 among "
        "0.8597 to 0.8632 is no outlier (3.4, the bound is 3.5)",
    ),
    Spread(
        "spread over seeds", "unet",
        "weights, order and augmentation differ, the images do not",
    ),
    Claim(
        "UNetResNet34_1024_v1: from scratch, near DeepLab's", "U-Net against DeepLabV3+ at 192",
        "unet_large:dice", "deeplab_large:dice", "same", "with one encoder the decoders differ "
        "little", "a U-Net's map is finer, which tells while images are small",
    ),
    Claim(
        "U-Net predicts more: share of images", "U-Net against DeepLabV3+", "unet:share",
        "deeplab:share", "more", "its finer map keeps small masks above the least area",
        "the rule sets the share, whatever the network",
    ),
    Claim(
        "U-Net predicts more: area", "U-Net against DeepLabV3+, px of 1024² an image", "unet:area",
        "deeplab:area", "more", "its finer map keeps more of a mask",
        "a coarse map's masks are broader",
    ),
    Claim(
        "U-Net predicts more: size of the file", "U-Net against DeepLabV3+, characters an image",
        "unet:rle", "deeplab:rle", "more",
        "ragged edges make more runs, so a larger file need not be more area",
        "runs go by columns: a file is as large as its masks are wide, and those are alike",
    ),
    Claim(
        "U-Net and DeepLabV3+ of different seeds: scores good",
        "their mean against the better of the two", "two_networks_other_seed:dice",
        "unet|deeplab:dice", "more", "networks and seeds err apart",
        "the weaker of the two pulls the mean down",
    ),
)  # fmt: skip

SECTIONS: dict[str, tuple[Line, ...]] = {
    "Experiments": EXPERIMENTS,
    "To do": TO_DO,
    "Knowledge": KNOWLEDGE,
    "Model checkpoints": CHECKPOINTS,
    "Current best": CURRENT_BEST,
}
