"""Submission files: written atomically, checked row by row, scored against a table of labels."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from kernel_lib.competition import COMPETITION
from kernel_lib.data import cells, label_checks, labels, rle
from kernel_lib.data.labels import Sample, names_of, parse_cell
from kernel_lib.errors import InputError
from kernel_lib.postprocess.metrics import dice_of_counts, mean_dice
from kernel_lib.storage import write_text

COLUMNS = (cells.ID_COLUMN, cells.RLE_COLUMN)
SHAPE = (COMPETITION.side_px,) * 2  # (H, W) of every image of the competition

Shapes = Mapping[str, tuple[int, int]]


@dataclass(frozen=True)
class ScoreResult:
    """The competition's score of a submission, over the images that are in both tables."""

    dice: float  # mean over images, 0–1
    n_images: int
    dice_nonempty: float  # mean over images whose truth has a mask; nan: none has
    n_nonempty: int
    dice_all_empty: float  # what predicting nothing anywhere would score
    n_false_negative: int  # truth has a mask, none predicted
    n_false_positive: int  # truth empty, a mask predicted
    n_only_submission: int  # images left out, since they have no label
    n_only_labels: int  # images left out, since they were not predicted
    doubts: tuple[str, ...] = ()  # on masks that seem drawn at another size than their images


@dataclass(frozen=True)
class Pairs:
    """The masks of the images that a submission and its labels share, in the submission's order."""

    ids: tuple[str, ...]
    predicted: tuple[label_checks.Label, ...]  # runs and (H, W)
    truth: tuple[label_checks.Label, ...]
    names: tuple[str, str]  # of submission and labels, for messages
    n_only_submission: int
    n_only_labels: int


def write(path: Path | str, ids: Sequence[str] | Sample, rles: Sequence[str]) -> None:
    """Write a submission atomically, one row an image in the order given.

    With a sample instead of ids, its ids, columns and order are written with these masks.

    Shapes: ids and rles of one length; an empty mask is "-1" or "".
    Raises: InputError for different lengths or a repeated id.
    """
    sample = ids if isinstance(ids, Sample) else None
    ids = list(sample.image_id if sample else ids)
    if len(ids) != len(rles):
        raise InputError(f"{len(rles)} masks for {len(ids)} images: give one mask an image")
    repeated = [image_id for image_id, n in Counter(ids).items() if n > 1]
    if repeated:
        raise InputError(f"image {repeated[0]} appears twice: merge its masks into one row")
    masks = [text.strip() or rle.EMPTY for text in rles]
    rows = sample.rows(masks) if sample else [COLUMNS, *zip(ids, masks, strict=True)]
    write_text(Path(path), cells.as_text(rows))


def read(path: Path | str) -> pd.DataFrame:
    """Return the rows of an RLE table unchanged: columns row (the header is 1), image_id, rle.

    There may be more columns than the two, in any order; rows are not united, RLEs not checked.

    Raises: InputError when it is missing, not text, lacks a column, or a row has more or fewer
    values than the header.
    """
    _, table, ragged = _read(Path(path))
    if ragged:
        raise InputError(f"{path}, {ragged[0][1]}")
    return table


def by_image(path: Path | str) -> pd.Series:
    """Return the RLE of each row of a submission by image id, as `labels.names_of` has it."""
    table = read(path)
    return pd.Series(table["rle"].to_numpy(), index=names_of(table["image_id"]))


def validate(
    path: Path | str,
    sample: Path | str | Sample | Sequence[str],
    shapes: Shapes | None = None,
    shape: tuple[int, int] = SHAPE,
) -> list[str]:
    """Return what is wrong with a submission, each with its row and the fix; [] when it is valid.

    Valid is every id of the sample once, as the sample writes it, and no other id or column; each
    RLE inside its image, without overlap, a run of 0 pixels or an odd count. The order is free, see
    `order_note`. `sample` is the sample submission, or its ids in order.

    Shapes: `shapes` holds (H, W) by id as the sample writes it; images not in it have `shape`.
    Raises: InputError when the sample itself cannot be read; faults of `path` are returned.
    """
    columns, wanted = _of_sample(sample)
    try:
        header, table, ragged = _read(Path(path))
    except InputError as error:
        return [str(error)]
    problems = [
        (1, f"row 1: the column {name!r} is not the sample's: write the table without it")
        for name in header
        if name not in columns
    ]
    problems += ragged
    problems += _problems_of_ids(table, wanted)
    problems += _problems_of_masks(table, shapes or {}, shape)
    problems.sort(key=lambda problem: problem[0])
    given, last = set(table["image_id"]), max([1, *table["row"]])
    return [text for _, text in problems] + [
        f"after row {last}: image {image_id} of the sample is missing: add the row "
        f"{cells.as_text([[image_id, rle.EMPTY]]).strip()!r}, or its mask"
        for image_id in wanted
        if image_id not in given
    ]


def order_note(path: Path | str, sample: Path | str | Sample | Sequence[str]) -> str | None:
    """Return a sentence when columns or ids are not in the sample's order, else None.

    The order is no fault, since the competition matches by name.
    """
    columns, wanted = _of_sample(sample)
    header, given, _ = _read(Path(path))
    if header != columns:
        return f"row 1: the columns are {header}, the sample's {columns}: no fault"
    ids = given["image_id"].tolist()
    if ids == wanted or sorted(ids) != sorted(wanted):
        return None
    at = next(at for at, image_id in enumerate(ids) if image_id != wanted[at])
    return (
        f"row {given['row'].iloc[at]}: from here on the order is not the sample's ({ids[at]}, "
        f"there {wanted[at]}): no fault"
    )


def doubt(path: Path | str, shape: tuple[int, int] = SHAPE) -> str | None:
    """Return why a valid submission's masks are doubted: cut, or drawn at another size; else None.

    A predicted mask may be as long as a cut one by chance, so that neither makes it invalid.
    """
    table = read(path)
    for row, text in zip(table["row"], table["rle"], strict=True):
        try:
            parse_cell(text)
        except rle.RleError as error:
            return f"{path}, row {row}: {error}"
    doubt = label_checks.doubt_of_drawing(
        [(rle.parse(text, shape), shape) for text in table["rle"]]
    )
    return f"{path}: {doubt}" if doubt else None


def score(
    submission: Path | str | pd.DataFrame,
    labels: Path | str | pd.DataFrame,
    shapes: Shapes | None = None,
    shape: tuple[int, int] = SHAPE,
) -> ScoreResult:
    """Score a submission on the images that it shares with the labels; as `pair`."""
    return score_of(pair(submission, labels, shapes, shape))


def pair(
    submission: Path | str | pd.DataFrame,
    labels: Path | str | pd.DataFrame,
    shapes: Shapes | None = None,
    shape: tuple[int, int] = SHAPE,
) -> Pairs:
    """Return the masks of the images that a submission shares with the labels.

    Several rows of an image are united, and ids are compared as `labels.names_of` has them. Tables
    are as `read` returns them, or files.

    Shapes: `shapes` holds (H, W) by image id; images not in it have `shape`.
    Raises: InputError naming file and row of a faulty RLE, or when the tables share no image.
    """
    names = [
        "the table given" if isinstance(side, pd.DataFrame) else str(side)
        for side in (submission, labels)
    ]
    predicted, truth = sides = list(map(_grouped, (submission, labels), names))
    both = [image_id for image_id in predicted if image_id in truth]
    if not both:
        examples = ", ".join(next(iter(side), "none") for side in sides)
        raise InputError(
            f"{names[0]} and {names[1]} share no image (the first are {examples}): "
            "give the labels of the same set"
        )
    masks: list[list[label_checks.Label]] = [[], []]  # of the sides
    for image_id in both:
        own = (shapes or {}).get(image_id, shape)
        for of_side, side in zip(masks, sides, strict=True):
            of_side.append((_united(side[image_id], own), own))
    n_only = len(predicted) - len(both), len(truth) - len(both)
    return Pairs(tuple(both), *map(tuple, masks), tuple(names), *n_only)


def score_of(pairs: Pairs) -> ScoreResult:
    """Score the pairs. Dice is counted on runs, so that no mask is drawn."""
    counts = np.array(
        [
            (rle.shared_px(pred, true), rle.area(pred), rle.area(true))
            for (pred, _), (true, _) in zip(pairs.predicted, pairs.truth, strict=True)
        ],
        dtype=np.int64,
    )  # (N, 3) intersection, predicted, truth
    masks = pairs.predicted, pairs.truth
    doubts = zip(pairs.names, map(label_checks.doubt_of_drawing, masks), strict=True)
    dice, has_mask, has_pred = dice_of_counts(*counts.T), counts[:, 2] > 0, counts[:, 1] > 0
    return ScoreResult(
        dice=mean_dice(dice),
        n_images=len(pairs.ids),
        dice_nonempty=mean_dice(dice[has_mask]),
        n_nonempty=int(has_mask.sum()),
        dice_all_empty=float(np.mean(~has_mask)),
        n_false_negative=int((has_mask & ~has_pred).sum()),
        n_false_positive=int((~has_mask & has_pred).sum()),
        n_only_submission=pairs.n_only_submission,
        n_only_labels=pairs.n_only_labels,
        doubts=tuple(f"{name}: {doubt}" for name, doubt in doubts if doubt),
    )


def parse(where: str, text: str, shape: tuple[int, int]) -> rle.Runs:
    """Return the runs of a table's RLE; InputError naming `where` the RLE is."""
    try:
        return parse_cell(text, shape)
    except rle.RleError as error:
        raise InputError(f"{where}: {error}") from None


def _problems_of_ids(table: pd.DataFrame, wanted: list[str]) -> Iterator[tuple[int, str]]:
    """Yield (row, problem) of ids that the sample lacks, or that more than one row has."""
    written = dict(zip(names_of(wanted), wanted, strict=True))
    without_zeros = {name.lstrip("0"): as_written for name, as_written in written.items()}
    in_sample, ids = set(wanted), table["image_id"]
    first_row: dict[str, int] = {}
    for row, image_id, name in zip(table["row"], ids, names_of(ids), strict=True):
        where = f"row {row}: image {image_id!r}"
        if image_id not in in_sample:
            known = written.get(name) or without_zeros.get(name.lstrip("0"))
            fix = f"write it {known!r}" if known else "remove the row"
            yield row, f"{where} is not in the sample: {fix}"
        if image_id in first_row:
            first = first_row[image_id]
            yield row, f"{where} stands in row {first} already: merge its masks into one row"
        first_row.setdefault(image_id, row)


def _problems_of_masks(
    table: pd.DataFrame, shapes: Shapes, shape: tuple[int, int]
) -> Iterator[tuple[int, str]]:
    """Yield (row, problem) of RLEs that are no mask of their image, or overlap an earlier row's."""
    seen: dict[str, list[tuple[int, rle.Runs]]] = {}
    for row, image_id, text in zip(table["row"], table["image_id"], table["rle"], strict=True):
        where = f"row {row} ({image_id})"
        if not text:
            yield row, f"{where}: no RLE: write {rle.EMPTY} for an empty mask"
            continue
        try:
            runs = rle.parse(text, shapes.get(image_id, shape))
        except rle.RleError as error:
            yield row, f"{where}: {error}"
            continue
        for earlier, others in seen.get(image_id, []):
            shared = rle.shared_px(runs, others)
            if shared:
                yield row, f"{where}: {shared} px overlap the mask in row {earlier}: merge the two"
        if len(runs):
            seen.setdefault(image_id, []).append((row, runs))


def _of_sample(sample: Path | str | Sample | Sequence[str]) -> tuple[list[str], list[str]]:
    """Return the sample's columns, and its ids without repetition."""
    if isinstance(sample, str | Path):
        sample = labels.read_sample(sample)
    if isinstance(sample, Sample):
        return sample.cells.columns.tolist(), sample.image_id
    if not len(sample):
        raise InputError("the sample names no image: give the competition's own")
    return list(COLUMNS), list(dict.fromkeys(sample))


def _grouped(table: Path | str | pd.DataFrame, name: str) -> dict[str, list[tuple[str, str]]]:
    """Return (file and row, RLE) of the rows of each image id."""
    if not isinstance(table, pd.DataFrame):
        table = read(table)
    rows = table["row"] if "row" in table else range(2, len(table) + 2)
    grouped: dict[str, list[tuple[str, str]]] = {}
    for row, image_id, text in zip(rows, names_of(table["image_id"]), table["rle"], strict=True):
        grouped.setdefault(image_id, []).append((f"{name}, row {row} ({image_id})", text))
    return grouped


def _united(rows: list[tuple[str, str]], shape: tuple[int, int]) -> rle.Runs:
    masks = [parse(where, text, shape) for where, text in rows]
    return rle.union(masks) if len(masks) > 1 else masks[0]


def _read(path: Path) -> tuple[list[str], pd.DataFrame, list[tuple[int, str]]]:
    """Return the header, the table of `read` without ragged rows, and those as (row, problem)."""
    header, given = cells.read_parts(path)
    if any(header.count(name) != 1 for name in COLUMNS):
        shown = f"the header is {','.join(header)[:80]!r}" if any(header) else "there is no header"
        raise InputError(
            f"{path}, row 1: {shown}, not {','.join(COLUMNS)!r}: give an RLE table with both "
            "columns, once each"
        )
    at_id, at_rle = map(header.index, COLUMNS)
    rows, ragged, n = [], [], len(header)
    for at, row in given:
        if len(row) == n and row[at_id]:
            rows.append((at, row[at_id], row[at_rle]))
            continue
        what = "no id" if len(row) == n else f"{len(row)} values instead of {n}"
        shown = repr(",".join(row)[:60])
        ragged.append((at, f"row {at}: {what} ({shown}): write 'id,RLE', blanks within the RLE"))
    table = pd.DataFrame(rows, columns=["row", "image_id", "rle"])
    return header, table.astype({"row": np.int64}), ragged
