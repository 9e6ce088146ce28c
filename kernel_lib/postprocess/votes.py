"""Pixel-wise votes of masks and of submission files, counted on runs so that no mask is drawn."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from kernel_lib.data import labels, rle
from kernel_lib.errors import InputError
from kernel_lib.notebook import bar
from kernel_lib.postprocess import submission
from kernel_lib.postprocess.metrics import dice_of_counts


@dataclass(frozen=True)
class VoteResult:
    """Counts of the images of a vote."""

    n_images: int
    n_kept: int  # images with a mask after the vote
    n_with_mask: tuple[int, ...]  # images with a mask in each file, in the files' order


def at_least(many: Sequence[rle.Runs], k: int) -> rle.Runs:
    """Return the runs (n, 2) of the pixels that lie in at least k of the masks.

    Raises: InputError unless k is 1 to the number of masks.
    Source: the reference solution's vote, k = 4 of nine submissions, no area rule afterwards.
    """
    _check_k(k, len(many))
    if sum(len(runs) > 0 for runs in many) < k:
        return rle.union([])
    edges, steps, _ = _edges(many)
    last = np.append(edges[1:] != edges[:-1], True)  # of the edges at a pixel
    inside = np.cumsum(steps)[last] >= k  # from each last edge to the next
    turns = edges[last][np.diff(inside, prepend=False)]
    return np.stack([turns[0::2], turns[1::2] - turns[0::2]], axis=1)


def union_of_agreeing(many: Sequence[rle.Runs], at_least: int) -> rle.Runs:
    """Return the runs (n, 2) of the union of the masks that agree with enough others.

    Two masks agree when they share a pixel. The union is of the masks that agree with
    `at_least - 1` others or more, which need not agree with each other.

    Raises: InputError unless `at_least` is 1 to the number of masks.
    Source: an idea of the competition's 11th place; this definition of agreeing is ours.
    """
    _check_k(at_least, len(many))
    many = [runs for runs in many if len(runs)]
    if len(many) < at_least:
        return rle.union([])
    agrees = _agree(many).sum(axis=1) >= at_least  # a mask with pixels agrees with itself
    return rle.union(runs for runs, enough in zip(many, agrees, strict=True) if enough)


def dice(pred: rle.Runs, true: rle.Runs) -> float:
    """Return the dice (0–1) of an image's runs, (n, 2) and (m, 2); empty against empty is 1."""
    return float(dice_of_counts(rle.shared_px(pred, true), rle.area(pred), rle.area(true)))


def of_files(
    paths: Sequence[Path],
    out: Path,
    k: int,
    union: bool = False,
    shape: tuple[int, int] = submission.SHAPE,
) -> VoteResult:
    """Write the vote of submissions to `out`, in the form of the first: `at_least` k, or a `union`.

    Shapes: `shape` is the (H, W) of every image.
    Raises: InputError naming a file that is given twice or is `out`, holds other ids than the first
    or a repeated one, or has a faulty RLE; also unless k is 1 to the number of files.
    """
    _check_k(k, len(paths))
    resolved = [path.resolve() for path in paths]
    for at, path in enumerate(paths):
        if resolved[at] in resolved[:at]:
            raise InputError(f"{path} is given twice: each submission has one vote, give it once")
        if resolved[at] == out.resolve():
            raise InputError(f"{out} is one of the submissions voted on: give another output file")
    columns = [_column(path) for path in paths]
    for path, column in zip(paths[1:], columns[1:], strict=True):
        _check_ids(path, column, paths[0], columns[0])
    vote, voted, has_mask = union_of_agreeing if union else at_least, [], []
    for image in bar(columns[0], desc="vote", unit="image"):
        many = []
        for path, column in zip(paths, columns, strict=True):
            row, text = column[image]
            many.append(submission.parse(f"{path}, row {row} ({image})", text, shape))
        has_mask.append([len(runs) > 0 for runs in many])
        voted.append(rle.to_string(vote(many, k)))
    submission.write(out, labels.read_sample(paths[0]), voted)
    n_kept = sum(text != rle.EMPTY for text in voted)
    return VoteResult(len(voted), n_kept, tuple(map(sum, zip(*has_mask, strict=True))))


def _edges(many: Sequence[rle.Runs]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return pixel, step (+1 or −1) and mask of the ends of runs, ascending by pixel, each (E,)."""
    edges = np.concatenate(many)  # (E / 2, 2) (start, length), a copy
    edges[:, 1] += edges[:, 0]
    # Each mask's edges ascend already: the stable sort merges them, much faster than the default.
    # Positions are even at starts, odd at ends.
    order = np.argsort(edges, axis=None, kind="stable")
    of_mask = np.repeat(np.arange(len(many)), [2 * len(runs) for runs in many])
    return edges.ravel()[order], 1 - 2 * (order % 2), of_mask[order]


def _agree(many: Sequence[rle.Runs]) -> np.ndarray:
    """Return which masks share a pixel, (n, n) bool; each does with itself, unless it is empty."""
    edges, steps, of_mask = _edges(many)
    inside = np.zeros((len(many), len(edges)), dtype=np.int8)  # (n, E) of each mask, 0/1
    inside[of_mask, np.arange(len(edges))] = steps
    np.cumsum(inside, axis=1, out=inside)
    last = np.append(edges[1:] != edges[:-1], True)
    # Floats for the fast product: a sum of ones stays above 0, however it is rounded.
    inside = inside.compress(last, axis=1).astype(np.float32)
    return inside @ inside.T > 0


def _check_k(k: int, n: int) -> None:
    if not 1 <= k <= n:
        raise InputError(
            f"at least {k} of {n} masks must agree: give a number from 1 to {n}"
            if n
            else "no mask is given: give one or more"
        )


def _column(path: Path) -> dict[str, tuple[int, str]]:
    """Return (row, RLE) of each image id, in the file's order."""
    column: dict[str, tuple[int, str]] = {}
    for row, image, text in submission.read(path).itertuples(index=False):
        if image in column:
            raise InputError(
                f"{path}, row {row}: image {image} stands in row {column[image][0]} already: "
                "merge its masks into one row"
            )
        column[image] = row, text
    if not column:
        raise InputError(f"{path} names no image: give a submission")
    return column


def _check_ids(path: Path, column: dict, first_path: Path, first: dict) -> None:
    odd = [i for i in first if i not in column] or [i for i in column if i not in first]
    if odd:
        verbs = ("lacks", "has") if odd[0] in first else ("has", "lacks")
        raise InputError(
            f"{path} {verbs[0]} image {odd[0]}, which {first_path} {verbs[1]}: "
            "vote on submissions of the same set of images"
        )
