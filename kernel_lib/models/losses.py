"""Losses by name, and the loss of a row. A new loss is a function here and a line in `LOSSES`.

Every loss takes logits (B, 1, H, W) and masks (B, 1, H, W) in 0/1, both float32 and B at least 1,
and returns a scalar. Its options are its keyword-only arguments: their names, bounds and defaults
stand in its signature and nowhere else.

The training loop weighs the batches of one step by their shares of its images. For `bce`, `dice`,
`focal` and `lovasz` over all images, and for the label, that is exactly the loss of the step's
images as one batch. `weighted_bce`, and every term that counts non-empty images alone, is a mean
over what its batch happens to hold: there it is an approximation, in which a batch's few positives
weigh as much as another's many.

A batch may be spread over several processes. Each then computes its part, and for every loss the
parts sum to that of the whole batch: what a mean divides by is counted over all (`Total`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Annotated

import torch
from pydantic import Field
from torch.nn import functional as F

from kernel_lib.config import Experiment
from kernel_lib.errors import InputError
from kernel_lib.models.networks import Logits
from kernel_lib.registry import check_options, lookup

Loss = Callable[..., torch.Tensor]  # logits, masks, its own options → scalar
# counts of this process's part of a batch → those of the whole batch, in the same shape
Total = Callable[[torch.Tensor], torch.Tensor]
# output, masks (B, 1, H, W), labels (B,) → scalar
RowLoss = Callable[[Logits, torch.Tensor, torch.Tensor], torch.Tensor]

Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NotNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]


def whole(counts: torch.Tensor) -> torch.Tensor:
    """The `Total` of one process: its part is the batch."""
    return counts


def bce(logits: torch.Tensor, masks: torch.Tensor) -> torch.Tensor:
    """Binary cross-entropy from logits z, mean over pixels; 0 or more, ln 2 at logit 0.

    All-empty masks: mean ln(1 + e^z); all-full: mean ln(1 + e^−z).
    Shape: (B, 1, H, W), (B, 1, H, W) → scalar; or (B,), (B,) for labels.
    """
    return F.binary_cross_entropy_with_logits(logits, masks)


def dice(logits: torch.Tensor, masks: torch.Tensor, *, smooth: Positive = 1.0) -> torch.Tensor:
    """Soft dice loss, 1 − (2 Σpy + s) / (Σp + Σy + s) in each image, mean over images; 0–1.

    An empty mask gives Σp / (Σp + s): next to 1 and almost flat until less than about s pixels
    are predicted in all, and 0 for none; so alone it hardly teaches emptiness. A full one of N
    pixels gives (N − Σp) / (N + Σp + s). A larger `smooth`, in pixels, widens the slope.
    Shape: (B, 1, H, W), (B, 1, H, W) → scalar. Reference: Milletari 2016, without the squares.
    """
    prob, truth = torch.sigmoid(logits).flatten(1), masks.flatten(1)  # (B, H·W)
    both = (prob * truth).sum(dim=1)  # (B,)
    either = prob.sum(dim=1) + truth.sum(dim=1)
    return (1 - (2 * both + smooth) / (either + smooth)).mean()


def focal(logits: torch.Tensor, masks: torch.Tensor, *, gamma: NotNegative = 2.0) -> torch.Tensor:
    """Focal loss, (1 − p_t)^γ · −ln p_t with p_t the true class's probability, mean over pixels.

    0 or more, ln 2 / 2^γ at logit 0; γ = 0 is `bce`. No class weights (α). With p = σ(z),
    all-empty masks give mean p^γ ln(1 + e^z), all-full ones mean (1 − p)^γ ln(1 + e^−z).
    Shape: (B, 1, H, W), (B, 1, H, W) → scalar. Reference: Lin 2017.
    """
    margin = logits * (2 * masks - 1)  # z where the truth is 1, −z where it is 0
    # 1 − p_t = exp(−ln(1 + e^margin)): a power of a probability that rounds to 0 has, for γ < 1,
    # no gradient.
    return (torch.exp(-gamma * F.softplus(margin)) * F.softplus(-margin)).mean()


def lovasz(logits: torch.Tensor, masks: torch.Tensor) -> torch.Tensor:
    """Symmetric Lovász hinge, ½[L(z, y) + L(−z, 1 − y)] in each image, mean over images.

    L is the Lovász extension of the Jaccard loss over hinge errors 1 − z(2y − 1). 0 or more, 1 at
    logit 0; with every logit ±m, m ≥ 1, it is (1 + m)/2 times the sum of the Jaccard losses of
    mask and background. An empty mask gives ½[relu(1 + max z) + mean relu(1 + z)], so half of its
    gradient falls on the one highest pixel; a full mask ½[relu(1 − min z) + mean relu(1 − z)].
    Shape: (B, 1, H, W), (B, 1, H, W) → scalar. Reference: Berman 2018.
    """
    truth = masks.flatten(1)  # (B, H·W)
    # −z and 1 − y have the errors of z and y, so one sort serves both halves. The order among
    # equal errors does not change the value; stable, it does not change from run to run either.
    errors = 1 - logits.flatten(1) * (2 * truth - 1)
    errors, order = errors.sort(dim=1, descending=True, stable=True)
    inside = truth.gather(1, order) > 0
    steps = (_jaccard_steps(inside) + _jaccard_steps(~inside)) / 2
    return (F.relu(errors) * steps).sum(dim=1).mean()


def _jaccard_steps(inside: torch.Tensor) -> torch.Tensor:
    """What each pixel adds to the Jaccard loss of a class when pixels go wrong in this order.

    `inside` (B, N) says whether the k-th pixel belongs to the class. After k errors the loss is
    1 − (total − missed) / (total + added). Steps sum to 1 in each image: all wrong costs 1, and
    for a class without a pixel so does the first error.
    """
    # Integers: exact, and torch has no deterministic cumulative sum of floats on a GPU.
    missed = inside.cumsum(dim=1, dtype=torch.int32)  # (B, N)
    total = missed[:, -1:]
    wrong = torch.arange(1, inside.shape[1] + 1, dtype=torch.int32, device=inside.device)
    left = (total - missed).float()
    union = (total + wrong - missed).float()
    # The differences are written out: at 1024² they are about 1e-6, and subtracting one loss near
    # 1 from the next would leave them a digit or two of float32.
    outside_step = left / (union * (union - 1).clamp(min=1))
    return torch.where(inside | (union == 1), 1 / union, outside_step)


def weighted_bce(
    logits: torch.Tensor,
    masks: torch.Tensor,
    total: Total = whole,
    *,
    positive: Positive = 0.25,
    negative: Positive = 0.75,
) -> torch.Tensor:
    """`positive` × mean cross-entropy of positive pixels + `negative` × that of negative ones.

    The means run over the whole batch, not over images, and a class without a pixel gives 0. 0 or
    more, (positive + negative) · ln 2 at logit 0 with both classes there. All-empty masks:
    negative × mean ln(1 + e^z); all-full: positive × mean ln(1 + e^−z). Of a batch spread over
    processes it gives this one's part, from its images, of which there may be none.
    Shape: (B, 1, H, W), (B, 1, H, W) → scalar. Source: the notes' v6, after Heng.
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
BY_COUNTS = ("weighted_bce",)  # no means over images: they take a `Total` as a third argument


def check(row: Experiment) -> None:
    """InputError for losses, weights or options of a row that cannot be trained with.

    An unknown loss or option, with the nearest names; an option outside its bounds, or of a loss
    that the row does not use; a weight that is not above 0; a row that weighs nothing at all. That
    all numbers are finite is the row's own rule.
    """
    for name, weight in row.loss.items():
        lookup("loss", name, LOSSES)
        if weight <= 0:
            raise InputError(f"loss {name!r} weighs {weight}: give it more than 0, or leave it out")
    if not row.loss and row.label_weight == 0:
        raise InputError("the row weighs neither a mask loss nor a label: set loss or label_weight")
    for name, options in row.loss_options.items():
        if name not in row.loss:
            raise InputError(
                f"loss_options sets {name!r}, which the row does not use (its losses: "
                f"{', '.join(row.loss) or 'none'}): leave it out, or add it to loss"
            )
        check_options(f"loss {name!r}", LOSSES[name], options)


def of_row(row: Experiment, total: Total = whole) -> RowLoss:
    """The loss that the row trains with, in float32 whatever the network computed in.

    Σ weight · loss of the mask, over all images or over non-empty ones (`mask_loss_images`),
    + label_weight · BCE of the label, + side_weight · the same mask losses of every side mask, over
    non-empty images only. Non-empty is what the labels say, not the resized masks. Where a batch
    has no such image these terms are 0, and so are their gradients. A classifier has the label's
    term alone; an output without side masks (validation needs none) has none of theirs.

    With a `total` over processes it is this one's part of the batch's loss; every process must
    call it, one without an image too.

    Raises InputError as `check` does; and on the first batch, where the row weighs a label that
    the network does not give, or nothing that it gives.
    """
    check(row)
    terms = [(weight, _part(name, row, total)) for name, weight in row.loss.items()]

    def loss(output: Logits, masks: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        nonempty = labels > 0  # (B,)
        counts = torch.stack([torch.ones_like(nonempty).sum(), nonempty.sum()])
        of_all, of_nonempty = counts / total(counts).clamp(min=1)  # this process's shares, 0–1
        parts = []
        if output.mask is not None and terms:
            if row.mask_loss_images == "nonempty":
                shown = (output.mask[nonempty], masks[nonempty], of_nonempty)
            else:
                shown = (output.mask, masks, of_all)
            parts.append(_weighted(terms, *shown))
            if row.side_weight > 0:
                parts += [
                    row.side_weight * _weighted(terms, side[nonempty], masks[nonempty], of_nonempty)
                    for side in output.sides
                ]
        if row.label_weight > 0:
            parts.append(row.label_weight * _label_loss(row, output, labels, of_all))
        if not parts:
            raise InputError(f"{row.network} gives no mask: set label_weight above 0")
        return torch.stack(parts).sum()

    return loss


Part = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]


def _part(name: str, row: Experiment, total: Total) -> Part:
    """A loss's part from logits, masks, and the share of the batch's images that these are."""
    loss = partial(LOSSES[name], **row.loss_options.get(name, {}))
    if name in BY_COUNTS:
        return lambda logits, masks, share: loss(logits, masks, total)
    return partial(_of_mean, loss)


def _of_mean(
    loss: Loss, logits: torch.Tensor, truth: torch.Tensor, share: torch.Tensor
) -> torch.Tensor:
    """The part of a mean over images; without an image 0."""
    if not len(logits):
        return logits.sum()  # still in the graph: every parameter gets its gradient of zeros
    return share * loss(logits, truth)


def _label_loss(
    row: Experiment, output: Logits, labels: torch.Tensor, share: torch.Tensor
) -> torch.Tensor:
    if output.label is None:
        raise InputError(
            f"label_weight is {row.label_weight}, but {row.network} gives no label: set it to 0, "
            "or take a network with a label head"
        )
    return _of_mean(bce, output.label.float(), labels.float(), share)


def _weighted(
    terms: Sequence[tuple[float, Part]],
    logits: torch.Tensor,
    masks: torch.Tensor,
    share: torch.Tensor,
) -> torch.Tensor:
    """Σ weight · loss's part of these images (B, 1, H, W), in float32; 0 where there are none."""
    logits, masks = logits.float(), masks.float()
    return torch.stack([weight * part(logits, masks, share) for weight, part in terms]).sum()
