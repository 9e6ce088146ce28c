"""Agreement of an ensemble's members with each other and with the ground truth."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes

from kernel_lib.data import rle
from kernel_lib.postprocess.votes import dice
from kernel_lib.reporting.picture import (
    DARK,
    INK,
    Picture,
    counted,
    escape_dollars,
    label_axes,
    legend,
    panels,
)

LONGEST_NAME = 30  # of a member, beside a matrix


@dataclass(frozen=True)
class Agreement:
    """The masks of n members for N images, compared pair by pair."""

    names: tuple[str, ...]
    dice: np.ndarray  # (N, n + 1, n) 0–1, of each member, last the ground truth, with each member
    has_mask: np.ndarray  # (N, n) bool
    positive: np.ndarray  # (N,) bool, by the ground truth
    n_images: int  # from which these N were sampled evenly
    rule: str  # the rule that made the masks, in words
    image_ids: tuple[str, ...] = ()  # of these N, where they are known

    def matrices(self) -> Picture | None:
        """Draw the mean Dice of each pair of members, and of the ground truth with each member.

        One matrix for all images, one for positive images. None for one member or no image.
        """
        n = len(self.names)
        if n < 2 or not len(self.dice):
            return None
        groups = [("All images", self.dice)]
        if self.positive.any():
            groups.append(("Positive images", self.dice[self.positive]))
        side = max(2.6, 0.62 * n)
        figure, grid = panels(1, len(groups), width=2.4 + side * len(groups), height=side + 0.9)
        means = [pairs.mean(axis=0) for _, pairs in groups]
        lowest = min(mean.min() for mean in means)
        for axes, (name, pairs), mean in zip(grid[0], groups, means, strict=True):
            _draw_matrix(axes, mean, lowest)
            label_axes(axes, f"{name}: {len(pairs):,}", x="member")
            axes.set_xticks(range(n), [str(k + 1) for k in range(n)])
            axes.set_yticks(range(n + 1), [])
        labels = [f"{k}  {name}" for k, name in enumerate(_shortened(self.names), 1)]
        labels = [escape_dollars(label) for label in [*labels, "ground truth"]]
        grid[0, 0].set_yticks(range(n + 1), labels)
        members = ~np.eye(n, dtype=bool)
        text = (
            f"{self._images}: the mask of each member under {self.rule}. Mean Dice is "
            f"{_range(means[0][:n][members])} between two members and {_range(means[0][n])} "
            "between a member and the ground truth"
        )
        if self.positive.any():
            text += (
                f"; on positive images {_range(means[1][:n][members])} and {_range(means[1][n])}"
            )
        text += ". Among equally good members, those that agree least improve an ensemble most."
        return Picture(figure, text)

    def votes(self) -> Picture | None:
        """Plot the share of positive images among those that exactly k members predict positive.

        None for one member or no image.
        """
        n, total = len(self.names), len(self.has_mask)
        if n < 2 or not total:
            return None
        k = self.has_mask.sum(axis=1)
        counts = np.bincount(k, minlength=n + 1)
        true = np.bincount(k[self.positive], minlength=n + 1)
        shares, prevalence = true / np.maximum(counts, 1), self.positive.mean()
        figure, grid = panels(1, 1, height=3.2)
        axes = grid[0, 0]
        bars = axes.bar(range(n + 1), shares, color=DARK, width=0.7)
        texts = [f"{a:,} of {b:,}" if b else "none" for a, b in zip(true, counts, strict=True)]
        axes.bar_label(bars, texts, padding=2, fontsize=8.5, color=INK)
        axes.axhline(prevalence, color=INK, linestyle="--", linewidth=1.2, label="of all images")
        axes.set_ylim(0, 1.12)
        axes.set_xticks(range(n + 1))
        label_axes(
            axes,
            "Positive images, by how many members predict a mask",
            x=f"members of {n} that predict a mask",
            y="share with a ground-truth mask",
        )
        legend(axes, loc="upper left", bbox_to_anchor=(1.0, 1.0))
        listed = ", ".join(f"{shares[k]:.0%} where {k} do" for k in range(n + 1) if counts[k])
        return Picture(
            figure,
            f"{self._images}: {prevalence:.1%} are positive. A single member predicts a mask in "
            f"{_range(self.has_mask.mean(axis=0), '.1%')}, at least one of {n} in "
            f"{1 - counts[0] / total:.1%}, all of them in {counts[n] / total:.1%}. By the number "
            f"of members that predict a mask, the share of positive images is {listed}.",
        )

    @property
    def _images(self) -> str:
        n = len(self.positive)
        if n == self.n_images:
            return counted(n, "image")
        return f"{n:,} images sampled evenly from {self.n_images:,}"


def pairwise_dice(masks: Sequence[rle.Runs], truth: rle.Runs) -> np.ndarray:
    """Return the Dice (0–1) of an image's n masks with each other, last of the truth with each.

    Shapes: runs (m, 2) each → (n + 1, n). Empty against empty is 1.
    """
    n = len(masks)
    pairs = np.ones((n + 1, n))
    for i, mask in enumerate(masks):
        for j in range(i):
            pairs[i, j] = pairs[j, i] = dice(mask, masks[j])
        pairs[n, i] = dice(truth, mask)
    return pairs


def measure(
    names: Sequence[str],
    images: Iterable[tuple[Sequence[rle.Runs], rle.Runs]],
    n_images: int,
    rule: str,
) -> Agreement:
    """Return the agreement over images, each given as (masks of the members, ground truth)."""
    pairs, has_mask, positive = [], [], []
    for masks, truth in images:
        pairs.append(pairwise_dice(masks, truth))
        has_mask.append([len(runs) > 0 for runs in masks])
        positive.append(len(truth) > 0)
    n = len(names)
    return Agreement(
        names=tuple(names),
        dice=np.array(pairs, dtype=float).reshape(-1, n + 1, n),
        has_mask=np.array(has_mask, dtype=bool).reshape(-1, n),
        positive=np.array(positive, dtype=bool),
        n_images=n_images,
        rule=rule,
    )


def _draw_matrix(axes: Axes, mean: np.ndarray, lowest: float) -> None:
    """Draw a matrix (n + 1, n) with its numbers; a line sets the last row apart."""
    axes.imshow(mean, cmap="cividis", vmin=min(lowest, 0.999), vmax=1.0, aspect="auto")
    digits = 3 if mean.shape[1] <= 8 else 2
    for (row, column), value in np.ndenumerate(mean):
        colour = "white" if value < (lowest + 1) / 2 else "black"
        style = {"ha": "center", "va": "center", "fontsize": 8.5, "color": colour}
        axes.text(column, row, f"{value:.{digits}f}", **style)
    axes.axhline(mean.shape[1] - 0.5, color="white", linewidth=4)
    axes.grid(False)


def _range(values: np.ndarray, form: str = ".3f") -> str:
    """Return '0.812 to 0.853', or a single number where both ends read alike."""
    ends = format(values.min(), form), format(values.max(), form)
    return ends[0] if ends[0] == ends[1] else " to ".join(ends)


def _shortened(names: Sequence[str]) -> list[str]:
    """Return long names without their common prefix; those still long keep both ends."""
    long = [name for name in names if len(name) > LONGEST_NAME]
    shared = os.path.commonprefix(long) if len(long) > 1 else ""  # noqa: RUF071 (no paths)
    cut, half = shared.rfind("_") + 1, LONGEST_NAME // 2
    shown = [f"…{name[cut:]}" if cut and name in long else name for name in names]
    return [s if len(s) <= LONGEST_NAME else f"{s[:half]}…{s[1 - half :]}" for s in shown]
