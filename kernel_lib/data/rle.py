"""The competition's RLE: pairs of (gap since the last run's end, run length), down the columns.

All other modules see `(H, W)` masks, or `Runs`: an (n, 2) int64 array of absolute (start, length),
0-based in column-major order, ascending, disjoint and merged (two runs never touch).
"""

from __future__ import annotations

from collections.abc import Iterable

import cv2
import numpy as np

from kernel_lib.competition import COMPETITION
from kernel_lib.errors import InputError

EMPTY = "-1"
# Any larger number is an error in the RLE; sums of smaller ones fit into int64.
LARGEST_NUMBER = 2**31 - 1

Runs = np.ndarray
NO_RUNS = np.zeros((0, 2), dtype=np.int64)


class RleError(InputError):
    """An RLE, or an array of runs, that describes no mask."""


def encode(mask: np.ndarray) -> str:
    """Return the RLE of a mask (H, W), nonzero as 1: "gap length gap length …", or "-1" when empty.

    Raises: RleError when the mask is not two-dimensional.
    Source: competition page, "Evaluation"; also correct where the last run reaches the last pixel.
    """
    return to_string(runs_of(mask))


def decode(rle: str, shape: tuple[int, int] = (COMPETITION.side_px,) * 2) -> np.ndarray:
    """Return the mask (H, W) of an RLE, uint8 0/1, C-contiguous. Raises: RleError as `parse`."""
    return _paint(parse(rle, shape), *_checked_shape(shape))


def parse(rle: str, shape: tuple[int, int] | None = None) -> Runs:
    """Return the runs (n, 2) of an RLE; none for "-1", " -1" and "". Touching runs are merged.

    Raises: RleError for text, an odd count, a negative number, a run of 0 pixels or, when the
    shape (H, W) is given, an end outside the image; it names the token or the pair (from 1).
    """
    if not isinstance(rle, str):
        raise RleError(
            f"the RLE is {rle!r}, not text: read its table with dtype=str, keep_default_na=False"
        )
    rle = rle.strip()
    if rle in ("", EMPTY):
        return NO_RUNS.copy()
    # Only digits and blanks: then fromstring reads every token, five times as fast as int() would.
    if rle.encode("ascii", "replace").translate(None, b"0123456789 \t\r\n"):
        raise _bad_token(rle)
    numbers = np.fromstring(rle, dtype=np.int64, sep=" ")
    if len(numbers) % 2:
        raise RleError(
            f"the RLE has {len(numbers)} numbers, an odd count: pair {len(numbers) // 2 + 1} has "
            "no run length; the end may be cut off"
        )
    if numbers.max() > LARGEST_NUMBER:
        at = int(np.argmax(numbers > LARGEST_NUMBER))
        raise RleError(
            f"pair {at // 2 + 1}: {rle.split()[at]} is above {LARGEST_NUMBER:,}: two numbers may "
            "have run together"
        )
    gaps, lengths = numbers[0::2], numbers[1::2]
    if lengths.min() == 0:
        raise RleError(
            f"pair {int(np.argmin(lengths)) + 1}: the run length is 0: remove the pair and add its "
            "gap to the next one"
        )
    ends = np.cumsum(gaps + lengths)
    if shape is not None:
        height, width = _checked_shape(shape)
        if ends[-1] > height * width:
            at = int(np.argmax(ends > height * width))
            raise RleError(
                f"pair {at + 1}: the run ends at pixel {ends[at]:,}, outside the {height}×{width} "
                f"image of {height * width:,} pixels: check the image's size, and that each pair "
                "begins with the gap since the last run, not an absolute start"
            )
    return _merged(ends - lengths, ends)


def to_string(runs: Runs) -> str:
    """Return the RLE of runs (n, 2); "-1" without any."""
    if not len(runs):
        return EMPTY
    numbers = np.array(runs, dtype=np.int64)  # (n, 2) (gap, length), a copy
    numbers[1:, 0] -= runs[:-1, 0] + runs[:-1, 1]
    return " ".join(map(str, numbers.ravel().tolist()))


def union(many: Iterable[Runs]) -> Runs:
    """Return the runs (n, 2) of the pixels that lie in any of the given runs."""
    many = [runs for runs in many if len(runs)]
    if not many:
        return NO_RUNS.copy()
    runs = np.concatenate(many)
    runs = runs[np.argsort(runs[:, 0], kind="stable")]
    # A long run may end after later ones: what counts is the furthest end so far.
    return _merged(runs[:, 0], np.maximum.accumulate(runs[:, 0] + runs[:, 1]))


def area(runs: Runs) -> int:
    """Return the number of pixels in the runs (n, 2)."""
    return int(runs[:, 1].sum())


def shared_px(first: Runs, second: Runs) -> int:
    """Return the number of pixels in both of two lists of runs, (n, 2) and (m, 2)."""
    if not len(first) or not len(second):
        return 0
    starts, lengths = second.T
    before = np.append(0, np.cumsum(lengths))

    def covered(position: np.ndarray) -> np.ndarray:  # pixels of `second` before each position
        run = np.searchsorted(starts, position, side="right") - 1
        inside = np.minimum(position - starts[run], lengths[run])
        return np.where(run < 0, 0, before[run] + inside)

    return int((covered(first.sum(axis=1)) - covered(first[:, 0])).sum())


def check_inside(runs: Runs, shape: tuple[int, int]) -> None:
    """Raise RleError unless runs (n, 2) are ascending, disjoint and inside an image (H, W).

    It names the first run at fault (from 1).
    """
    height, width = _checked_shape(shape)
    if not len(runs):
        return
    starts, lengths = runs[:, 0], runs[:, 1]
    ends = starts + lengths
    faults = (starts < np.append(0, ends[:-1])) | (lengths < 1) | (ends > height * width)
    if faults.any():
        at = int(np.argmax(faults))
        raise RleError(
            f"run {at + 1}: start {starts[at]:,}, length {lengths[at]:,} must have a length of at "
            f"least 1 and lie between the last run's end ({ends[at - 1] if at else 0:,}) and "
            f"{height * width:,} ({height}×{width}): check the image's size; `union` joins runs"
        )


def runs_of(mask: np.ndarray) -> Runs:
    """Return the runs (n, 2) of a mask's nonzero pixels; mask (H, W), any dtype.

    Raises: RleError when the mask is not two-dimensional.
    """
    mask = np.asarray(mask)
    if mask.ndim != 2:
        raise RleError(f"the mask has shape {mask.shape}, not (H, W): give one channel, one image")
    if mask.dtype.kind not in "iu":
        mask = (mask != 0).view(np.uint8)
    # A pneumothorax covers a small part of the image: the rest is done within its bounding box.
    columns = np.flatnonzero(np.bitwise_or.reduce(mask, axis=0))
    if not len(columns):
        return NO_RUNS.copy()
    left, right = columns[0], columns[-1] + 1
    rows = np.flatnonzero(np.bitwise_or.reduce(mask[:, left:right], axis=1))
    top, bottom = rows[0], rows[-1] + 1
    box = mask[top:bottom, left:right] != 0  # (h, w)
    # Where a column changes, read row by row and then sorted: cheaper than transposing the mask.
    changes = np.empty((bottom - top + 1, right - left), dtype=bool)  # (h + 1, w)
    changes[0], changes[-1] = box[0], box[-1]
    np.not_equal(box[1:], box[:-1], out=changes[1:-1])
    row, column = np.divmod(np.flatnonzero(changes), right - left)
    edges = (column + left) * mask.shape[0] + (row + top)
    edges.sort()
    return _merged(edges[0::2], edges[1::2])  # a run may go on at the top of the next column


def mask_of(runs: Runs, shape: tuple[int, int]) -> np.ndarray:
    """Return the mask (H, W) of runs (n, 2), uint8 0/1, C-contiguous.

    Raises: RleError as `check_inside` does.
    """
    check_inside(runs, shape)
    return _paint(runs, *_checked_shape(shape))


def _paint(runs: Runs, height: int, width: int) -> np.ndarray:
    mask = np.zeros((height, width), dtype=np.uint8)
    if not len(runs):
        return mask
    # Only the columns from the first run to the last are filled and transposed.
    left, right = runs[0, 0] // height, -(-runs[-1].sum() // height)
    edges = np.concatenate([[left * height], runs.cumsum(axis=1).ravel(), [right * height]])
    values = np.zeros(len(edges) - 1, dtype=np.uint8)
    values[1::2] = 1
    columns = np.repeat(values, np.diff(edges)).reshape(right - left, height)  # (w, H)
    cv2.transpose(columns, dst=mask[:, left:right])
    return mask


def _merged(starts: np.ndarray, ends: np.ndarray) -> Runs:
    """Return runs of ascending starts and ends; merge runs that touch or overlap."""
    first = np.ones(len(starts), dtype=bool)
    np.greater(starts[1:], ends[:-1], out=first[1:])
    last = np.append(first[1:], True)
    starts = starts[first]
    return np.stack([starts, ends[last] - starts], axis=1)


def _bad_token(rle: str) -> RleError:
    for at, token in enumerate(rle.split()):
        if token.isascii() and token.isdigit():
            continue
        pair, part = at // 2 + 1, ("gap", "run length")[at % 2]
        if token.startswith("-") and token[1:].isascii() and token[1:].isdigit():
            return RleError(
                f"pair {pair}: the {part} is {token}, below {at % 2}: only a lone {EMPTY} means an "
                "empty mask"
            )
        return RleError(f"pair {pair}: the {part} is {token!r}, not a whole number")
    return RleError("the RLE holds non-ASCII whitespace: put plain spaces between its numbers")


def _checked_shape(shape: tuple[int, int]) -> tuple[int, int]:
    if len(shape) != 2 or min(shape) < 1:
        raise RleError(f"the shape is {tuple(shape)}, not (height, width) of at least 1 each")
    return int(shape[0]), int(shape[1])
