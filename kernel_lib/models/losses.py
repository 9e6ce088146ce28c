"""Losses by name, and the loss of an experiment. A new loss is a function and a line in `LOSSES`.

A loss takes logits (B, 1, H, W) and masks (B, 1, H, W) in 0/1, both float32 with B at least 1, and
returns a scalar. Its options are its keyword-only arguments; their bounds and defaults are in the
signature.

Training weights the batches of an optimiser step by their share of its images. For `bce`, `dice`,
`focal` and `lovasz` over all images, and for the label, this equals the loss of one large batch.
`weighted_bce`, and every term over positive images only, is a mean over the content of its batch,
where this is an approximation: the few positives of one batch weigh as much as the many of another.

A batch may be split over several processes. Each then computes its part, with denominators counted
over all of them (`Total`), and the parts sum to the loss of the complete batch.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from functools import partial
from typing import Annotated

import torch
from pydantic import Field
from torch.nn import functional as F

from kernel_lib.config import Experiment
from kernel_lib.errors import InputError
from kernel_lib.models.base import Logits
from kernel_lib.registry import check_options, lookup

Loss = Callable[..., torch.Tensor]  # logits, masks, options → scalar
# counts in this process's part of a batch → counts in the complete batch, same shape
Total = Callable[[torch.Tensor], torch.Tensor]
# output, masks (B, 1, H, W), labels (B,) → scalar
TrainingLoss = Callable[[Logits, torch.Tensor, torch.Tensor], torch.Tensor]

Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NotNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]


def single_process(counts: torch.Tensor) -> torch.Tensor:
    """Return the counts unchanged: the `Total` of a process that has the complete batch."""
    return counts


def bce(logits: torch.Tensor, masks: torch.Tensor) -> torch.Tensor:
    """Return the binary cross-entropy, mean over pixels, or labels (B,); ln 2 at logit 0."""
    return F.binary_cross_entropy_with_logits(logits, masks)


def dice(logits: torch.Tensor, masks: torch.Tensor, *, smooth: Positive = 1.0) -> torch.Tensor:
    """Return the soft dice loss, 1 − (2 Σpy + s) / (Σp + Σy + s), mean over images; 0–1.

    An empty mask gives Σp / (Σp + s): 0 for an empty prediction, close to 1 and almost flat above
    about s predicted pixels, so this loss alone hardly teaches emptiness. A full mask of N pixels
    gives (N − Σp) / (N + Σp + s). A larger `smooth`, in pixels, widens the slope.
    Reference: Milletari 2016, without the squares.
    """
    prob, truth = torch.sigmoid(logits).flatten(1), masks.flatten(1)  # (B, H·W)
    both = (prob * truth).sum(dim=1)  # (B,)
    either = prob.sum(dim=1) + truth.sum(dim=1)
    return (1 - (2 * both + smooth) / (either + smooth)).mean()


def focal(logits: torch.Tensor, masks: torch.Tensor, *, gamma: NotNegative = 2.0) -> torch.Tensor:
    """Return (1 − p_t)^γ · −ln p_t with the true class's probability p_t, mean over pixels.

    ln 2 / 2^γ at logit 0; γ = 0 is `bce`. No class weights (α). Reference: Lin 2017.
    """
    margin = logits * (2 * masks - 1)  # z where the truth is 1, −z where it is 0
    # 1 − p_t as exp(−ln(1 + e^margin)): for γ < 1 the power of a probability that rounds to 0 has
    # no gradient.
    return (torch.exp(-gamma * F.softplus(margin)) * F.softplus(-margin)).mean()


def lovasz(logits: torch.Tensor, masks: torch.Tensor) -> torch.Tensor:
    """Return the symmetric Lovász hinge, ½[L(z, y) + L(−z, 1 − y)], mean over images.

    L is the Lovász extension of the Jaccard loss over hinge errors 1 − z(2y − 1). At least 0, 1 at
    logit 0; with every logit ±m, m ≥ 1, it is (1 + m)/2 times the sum of the Jaccard losses of
    mask and background. An empty mask gives ½[relu(1 + max z) + mean relu(1 + z)], so half of its
    gradient is that of the highest pixel; a full mask ½[relu(1 − min z) + mean relu(1 − z)].
    Reference: Berman 2018.
    """
    truth = masks.flatten(1)  # (B, H·W)
    # −z and 1 − y have the errors of z and y, so one sort serves both halves. The order of equal
    # errors does not change the value; a stable sort makes it the same in every run.
    errors = 1 - logits.flatten(1) * (2 * truth - 1)
    errors, order = errors.sort(dim=1, descending=True, stable=True)
    inside = truth.gather(1, order) > 0
    steps = (_jaccard_steps(inside) + _jaccard_steps(~inside)) / 2
    return (F.relu(errors) * steps).sum(dim=1).mean()


def _jaccard_steps(inside: torch.Tensor) -> torch.Tensor:
    """Return the increase of a class's Jaccard loss at each pixel, as pixels become wrong in order.

    `inside` (B, N) says whether the k-th pixel belongs to the class. After k errors the loss is
    1 − (total − missed) / (total + added). The steps of an image sum to 1; for a class without a
    pixel the first error costs 1.
    """
    # Integers are exact, and torch has no deterministic cumulative sum of floats on a GPU.
    missed = inside.cumsum(dim=1, dtype=torch.int32)  # (B, N)
    total = missed[:, -1:]
    wrong = torch.arange(1, inside.shape[1] + 1, dtype=torch.int32, device=inside.device)
    left = (total - missed).float()
    union = (total + wrong - missed).float()
    # Differences in closed form: at 1024² they are about 1e-6, and subtracting consecutive losses
    # near 1 would leave one or two digits of float32.
    outside_step = left / (union * (union - 1).clamp(min=1))
    return torch.where(inside | (union == 1), 1 / union, outside_step)


def weighted_bce(
    logits: torch.Tensor,
    masks: torch.Tensor,
    total: Total = single_process,
    *,
    positive: Positive = 0.25,
    negative: Positive = 0.75,
) -> torch.Tensor:
    """Return `positive` × mean cross-entropy of positive pixels + `negative` × that of negatives.

    The means are over the batch, not over images; a class without a pixel gives 0. Of a batch split
    over processes it returns the part of this one's images, of which there may be none.
    Source: v6 of the reference solution, after Heng.
    """
    each = F.binary_cross_entropy_with_logits(logits, masks, reduction="none")
    classes = (masks, 1 - masks)
    counts = total(torch.stack([of_class.sum() for of_class in classes])).clamp(min=1)
    return sum(
        weight * (each * of_class).sum() / count
        for weight, of_class, count in zip((positive, negative), classes, counts, strict=True)
    )


LOSSES: dict[str, Loss] = {
    "bce": bce,
    "dice": dice,
    "focal": focal,
    "lovasz": lovasz,
    "weighted_bce": weighted_bce,
}


def check(experiment: Experiment) -> None:
    """Raise InputError for an unknown loss or option, a wrong value, or no loss at all."""
    for name, weight in experiment.loss.items():
        lookup("loss", name, LOSSES)
        if weight <= 0:
            raise InputError(f"loss {name!r} weighs {weight}: give it more than 0, or leave it out")
    if not experiment.loss and experiment.label_weight == 0:
        raise InputError(
            "the experiment weighs neither a mask loss nor a label: set loss or label_weight"
        )
    for name, options in experiment.loss_options.items():
        if name not in experiment.loss:
            raise InputError(
                f"loss_options sets {name!r}, which the experiment does not use (its losses: "
                f"{', '.join(experiment.loss) or 'none'}): leave it out, or add it to loss"
            )
        check_options(f"loss {name!r}", LOSSES[name], options)


def build(experiment: Experiment, total: Total = single_process) -> TrainingLoss:
    """Return the loss of an experiment, computed in float32 whatever the network computed in.

    Σ weight · mask loss, over all images or positive ones (`mask_loss_images`), + label_weight ·
    BCE of the label, + side_weight · the same mask losses of every side mask, over positive images
    only. An image is positive by its label, not by its resized mask. Terms over positive images,
    and their gradients, are 0 where a batch has none. A network without masks has only the term of
    the label; an output without side masks (in validation) has no term for them.

    With a `total` over processes it returns this one's part of the loss; every process must call
    it, even without an image. InputError as `check`, and on the first batch if the network lacks
    an output that the experiment weighs, or every one.
    """
    check(experiment)
    terms = [(weight, _part(name, experiment, total)) for name, weight in experiment.loss.items()]

    def loss(output: Logits, masks: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        positive = labels > 0  # (B,)
        counts = torch.stack([torch.ones_like(positive).sum(), positive.sum()])
        share, positive_share = counts / total(counts).clamp(min=1)  # of this process, 0–1
        parts = []
        if output.mask is not None and terms:
            if experiment.mask_loss_images == "nonempty":
                parts.append(
                    _weighted(terms, output.mask[positive], masks[positive], positive_share)
                )
            else:
                parts.append(_weighted(terms, output.mask, masks, share))
            if experiment.side_weight > 0:
                parts += [
                    experiment.side_weight
                    * _weighted(terms, side[positive], masks[positive], positive_share)
                    for side in output.sides
                ]
        if experiment.label_weight > 0:
            if output.label is None:
                raise InputError(
                    f"label_weight is {experiment.label_weight}, but {experiment.network} gives no "
                    "label: set it to 0, or take a network with a label head"
                )
            label_loss = _share_of_mean(bce, output.label.float(), labels.float(), share)
            parts.append(experiment.label_weight * label_loss)
        if not parts:
            raise InputError(f"{experiment.network} gives no mask: set label_weight above 0")
        return torch.stack(parts).sum()

    return loss


# logits, masks, their share of the batch's images → their part of the loss
Part = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]


def _part(name: str, experiment: Experiment, total: Total) -> Part:
    loss = partial(LOSSES[name], **experiment.loss_options.get(name, {}))
    if "total" in inspect.signature(loss).parameters:  # no mean over images
        return lambda logits, masks, share: loss(logits, masks, total)
    return partial(_share_of_mean, loss)


def _share_of_mean(
    loss: Loss, logits: torch.Tensor, truth: torch.Tensor, share: torch.Tensor
) -> torch.Tensor:
    if not len(logits):
        return logits.sum()  # 0, still in the graph: every parameter gets a gradient of zeros
    return share * loss(logits, truth)


def _weighted(
    terms: Sequence[tuple[float, Part]],
    logits: torch.Tensor,
    masks: torch.Tensor,
    share: torch.Tensor,
) -> torch.Tensor:
    """Return Σ weight · part of these images (B, 1, H, W), in float32; 0 without an image."""
    logits, masks = logits.float(), masks.float()
    return torch.stack([weight * part(logits, masks, share) for weight, part in terms]).sum()
