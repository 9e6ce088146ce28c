"""How far an ensemble's members agree, with each other and with the truth."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes

from kernel_lib.data import rle
from kernel_lib.postprocess.votes import dice
from kernel_lib.reporting.picture import DARK, INK, Picture, counted, legend, panels, plain, title

LONGEST_NAME = 30  # of a member, beside a matrix


@dataclass(frozen=True)
class Agreement:
    """The masks of n members for N images, compared pair by pair."""

    names: tuple[str, ...]
    dice: np.ndarray  # (N, n + 1, n) 0–1, of each member, and last of the truth, with each member
    has_mask: np.ndarray  # (N, n) bool
    positive: np.ndarray  # (N,) bool, by the truth
    n_images: int  # of which these N were drawn evenly
    rule: str  # whose rule makes the masks, in words

    def matrices(self) -> Picture | None:
        """Mean dice of each pair of members, and of the truth with each; the numbers in the cells.

        Once over all images, once over those with a true mask. None of one member or no image.
        """
        n = len(self.names)
        if n < 2 or not len(self.dice):
            return None
        kinds = [("All images", self.dice)]
        if self.positive.any():
            kinds.append(("Images with a true mask", self.dice[self.positive]))
        side = max(2.6, 0.62 * n)
        figure, axes = panels(1, len(kinds), width=2.4 + side * len(kinds), height=side + 0.9)
        means = [pairs.mean(axis=0) for _, pairs in kinds]
        low = min(mean.min() for mean in means)
        for one, (name, pairs), mean in zip(axes[0], kinds, means, strict=True):
            _cells(one, mean, low)
            title(one, f"{name}: {len(pairs):,}", x="member")
            one.set_xticks(range(n), [str(k + 1) for k in range(n)])
            one.set_yticks(range(n + 1), [])
        labels = [f"{k}  {name}" for k, name in enumerate(_shortened(self.names), 1)]
        axes[0, 0].set_yticks(range(n + 1), [plain(label) for label in [*labels, "with the truth"]])
        return Picture(figure, _pairs_read(self, means[0], means[-1]))

    def votes(self) -> Picture | None:
        """How many images truly have a mask, of those in which exactly k members see one.

        None of one member or no image.
        """
        n, total = len(self.names), len(self.has_mask)
        if n < 2 or not total:
            return None
        k = self.has_mask.sum(axis=1)
        counts = np.bincount(k, minlength=n + 1)
        true = np.bincount(k[self.positive], minlength=n + 1)
        shares = true / np.maximum(counts, 1)
        figure, axes = panels(1, 1, height=3.2)
        one = axes[0, 0]
        one.bar(range(n + 1), shares, color=DARK, width=0.7)
        overall = self.positive.mean()
        one.axhline(overall, color=INK, linestyle="--", linewidth=1.2, label="of all images")
        for place, (number, of_them) in enumerate(zip(counts, true, strict=True)):
            text = f"{of_them:,} of {number:,}" if number else "none"
            one.annotate(text, (place, shares[place] + 0.02), ha="center", fontsize=8.5, color=INK)
        one.set_ylim(0, 1.12)
        one.set_xticks(range(n + 1))
        title(
            one,
            "Images that truly have a mask, by how many members see one",
            x=f"members of {n} that see a mask",
            y="share with a true mask",
        )
        legend(one, loc="upper left", bbox_to_anchor=(1.0, 1.0))
        return Picture(figure, _votes_read(self, counts, true))


def compared(many: Sequence[rle.Runs], truth: rle.Runs) -> np.ndarray:
    """Dice (0–1) of one image's n masks with each other, and last of the truth with each.

    Shapes: runs (m, 2) each → (n + 1, n). Empty against empty is 1.
    """
    n = len(many)
    found = np.ones((n + 1, n))
    for one in range(n):
        for other in range(one):
            found[one, other] = found[other, one] = dice(many[one], many[other])
        found[n, one] = dice(truth, many[one])
    return found


def measured(
    names: Sequence[str],
    images: Iterable[tuple[Sequence[rle.Runs], rle.Runs]],
    n_images: int,
    rule: str,
) -> Agreement:
    """The agreement over images, each given as its members' runs and the true ones."""
    pairs, has_mask, positive = [], [], []
    for many, truth in images:
        pairs.append(compared(many, truth))
        has_mask.append([len(runs) > 0 for runs in many])
        positive.append(len(truth) > 0)
    n = len(names)
    return Agreement(
        tuple(names),
        np.array(pairs, dtype=float).reshape(-1, n + 1, n),
        np.array(has_mask, dtype=bool).reshape(-1, n),
        np.array(positive, dtype=bool),
        n_images,
        rule,
    )


def _cells(axes: Axes, mean: np.ndarray, low: float) -> None:
    """A matrix in colours and numbers, its last row, that of the truth, set apart."""
    axes.imshow(mean, cmap="cividis", vmin=min(low, 0.999), vmax=1.0, aspect="auto")
    digits = 3 if mean.shape[1] <= 8 else 2
    for (row, column), value in np.ndenumerate(mean):
        dark = value < (low + 1) / 2
        text = f"{value:.{digits}f}"
        colour = "white" if dark else "black"
        axes.text(column, row, text, ha="center", va="center", fontsize=8.5, color=colour)
    axes.axhline(mean.shape[1] - 0.5, color="white", linewidth=4)
    axes.grid(False)


def _pairs_read(found: Agreement, mean: np.ndarray, of_positive: np.ndarray) -> str:
    n = len(found.names)
    pairs = mean[:n][~np.eye(n, dtype=bool)]
    text = (
        f"{_drawn(found)}: each member's mask under {found.rule}. Two members' masks agree with a "
        f"mean dice of {_span(pairs)}, the truth with each of them with "
        f"{_span(mean[n])}"
    )
    if found.positive.any():
        theirs = of_positive[:n][~np.eye(n, dtype=bool)]
        text += (
            f"; on images with a true mask {_span(theirs)}, and "
            f"{_span(of_positive[n])} with the truth"
        )
    return f"{text}. Of equally good members those that agree least help each other most."


def _votes_read(found: Agreement, counts: np.ndarray, true: np.ndarray) -> str:
    n, total = len(found.names), len(found.has_mask)
    alone = found.has_mask.mean(axis=0)
    right = ", ".join(
        f"{share / number:.0%} where {k} do"
        for k, (share, number) in enumerate(zip(true, counts, strict=True))
        if number
    )
    return (
        f"{_drawn(found)}: {found.positive.mean():.1%} have a true mask. A member alone sees one "
        f"in {_span(alone, '.1%')}, at least one of {n} in "
        f"{1 - counts[0] / total:.1%}, all of them in {counts[n] / total:.1%}. By how many see "
        f"one, a mask is truly there in {right}."
    )


def _span(values: np.ndarray, form: str = ".3f") -> str:
    """'0.812 to 0.853', or one number where both would read alike."""
    ends = format(values.min(), form), format(values.max(), form)
    return ends[0] if ends[0] == ends[1] else " to ".join(ends)


def _drawn(found: Agreement) -> str:
    if len(found.positive) == found.n_images:
        return counted(found.n_images, "image")
    return f"{len(found.positive):,} images drawn evenly from {found.n_images:,}"


def _shortened(names: Sequence[str]) -> list[str]:
    """Return long names without the beginning that these share; of what is still long both ends."""
    many = [name for name in names if len(name) > LONGEST_NAME]
    shared = os.path.commonprefix(many) if len(many) > 1 else ""  # noqa: RUF071 (no paths)
    cut, half = shared.rfind("_") + 1, LONGEST_NAME // 2
    shown = [f"…{name[cut:]}" if cut and name in many else name for name in names]
    return [s if len(s) <= LONGEST_NAME else f"{s[:half]}…{s[1 - half :]}" for s in shown]
