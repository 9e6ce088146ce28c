"""Submission files: written whole, checked row by row, scored against a table of labels."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from kernel_lib.data import cells, label_checks, labels, rle
from kernel_lib.data.labels import Sample, names_of, parse_cell
from kernel_lib.errors import InputError
from kernel_lib.postprocess.metrics import dice_of_counts, mean_dice
from kernel_lib.storage import write_text

COLUMNS = (cells.ID_COLUMN, cells.RLE_COLUMN)
SHAPE = (1024, 1024)  # (H, W) of every image of the competition

Shapes = Mapping[str, tuple[int, int]]


@dataclass(frozen=True)
class ScoreResult:
    """The competition's score of a submission, over images that stand in both tables."""

    dice: float  # mean over images, 0–1
    n_images: int
    dice_nonempty: float  # mean over images whose truth has a mask; nan: none has
    n_nonempty: int
    dice_all_empty: float  # what predicting nothing anywhere would score
    n_false_negative: int  # truth has a mask, none predicted
    n_false_positive: int  # truth empty, a mask predicted
    n_only_submission: int  # images left out, since they have no label
    n_only_labels: int  # images left out, since they were not predicted
    doubts: tuple[str, ...] = ()  # masks that seem drawn at another size than their images


def write(path: Path | str, ids: Sequence[str] | Sample, rles: Sequence[str]) -> None:
    """Write a submission, one row an image in the order given, whole or not at all.

    A sample in the place of ids is written back with these masks: its ids, columns and order.

    Shapes: ids and rles of one length; an empty mask is "-1" or "".
    Raises: InputError for different lengths or an id twice.
    """
    sample = ids if isinstance(ids, Sample) else None
    ids = list(sample.image_id if sample else ids)
    if len(ids) != len(rles):
        raise InputError(f"{len(rles)} masks for {len(ids)} images: give one mask an image")
    twice = _first_repeated(ids)
    if twice is not None:
        raise InputError(f"image {twice} stands there twice: unite its masks into one row")
    masks = [text.strip() or rle.EMPTY for text in rles]
    rows = sample.rows(masks) if sample else [COLUMNS, *zip(ids, masks, strict=True)]
    write_text(Path(path), cells.as_text(rows))


def read(path: Path | str) -> pd.DataFrame:
    """Rows of an RLE table as they stand: columns row, image_id, rle.

    `row` counts as an editor does, the header being 1. Columns may be more than the two, in any
    order; blanks around values and quotes go, empty lines are passed over, and nothing is united or
    checked within the RLE.
    Raises: InputError when it is missing, no text, lacks a column, or a row's values are not those
    of the header in number.
    """
    _, table, ragged = _read(Path(path))
    if ragged:
        raise InputError(f"{path}, {ragged[0][1]}")
    return table


def by_image(path: Path | str) -> pd.Series:
    """The RLE of each row of a submission by image id, as `labels.names_of` has it."""
    table = read(path)
    return pd.Series(table["rle"].to_numpy(), index=names_of(table["image_id"]))


def validate(
    path: Path | str,
    sample: Path | str | Sample | Sequence[str],
    shapes: Shapes | None = None,
    shape: tuple[int, int] = SHAPE,
) -> list[str]:
    """What is wrong with a submission, each with its row and the fix; [] when nothing is.

    Every id of the sample once, as the sample writes it, and no other, and no column that it lacks;
    each RLE inside its image, without overlap, a run of 0 pixels or an odd count. The order of rows
    and columns is no fault, since the competition matches by name: `order_note` names it. `sample`
    is the sample submission, or its ids in order.

    Shapes: `shapes` holds (H, W) by id as the sample writes it; images not in it have `shape`.
    Raises: InputError when the sample itself cannot be read; what is wrong in `path` is returned.
    """
    columns, wanted = _of_sample(sample)
    try:
        header, table, ragged = _read(Path(path))
    except InputError as error:
        return [str(error)]
    problems = [
        *(
            (
                1,
                f"row 1: the column {c!r} is not the sample's: write the table without it, or "
                "without an index column",
            )
            for c in header
            if c not in columns
        ),
        *ragged,
        *_problems_of_ids(table, wanted),
        *_problems_of_masks(table, shapes or {}, shape),
    ]
    problems.sort(key=lambda problem: problem[0])
    given, last = set(table["image_id"]), max([1, *table["row"]])
    return [text for _, text in problems] + [
        f"after row {last}: image {one} of the sample is missing: add the row "
        f"{cells.as_text([[one, rle.EMPTY]]).strip()!r}, or its mask"
        for one in wanted
        if one not in given
    ]


def order_note(path: Path | str, sample: Path | str | Sample | Sequence[str]) -> str | None:
    """A sentence when columns or ids are not in the sample's order, no fault; else None."""
    columns, wanted = _of_sample(sample)
    header, given, _ = _read(Path(path))
    if header != columns:
        return f"row 1: the columns are {header}, the sample's {columns}: no fault"
    ids = given["image_id"].tolist()
    if ids == wanted or sorted(ids) != sorted(wanted):
        return None
    at = next(at for at, one in enumerate(ids) if one != wanted[at])
    return (
        f"row {given['row'].iloc[at]}: from here on the order is not the sample's ({ids[at]}, "
        f"there {wanted[at]}): no fault, since the score does not depend on it"
    )


def doubt(
    path: Path | str, shapes: Shapes | None = None, shape: tuple[int, int] = SHAPE
) -> str | None:
    """Return what is odd of a valid submission's masks: cut, or drawn at another size; else None.

    A predicted mask may be as long as a cut one by chance, so that neither makes it invalid.
    """
    table = read(path)
    for row, text in zip(table["row"], table["rle"], strict=True):
        try:
            parse_cell(text)
        except rle.RleError as error:
            return f"{path}, row {row}: {error}"
    own = [(shapes or {}).get(one, shape) for one in table["image_id"]]
    found = label_checks.doubt_of_drawing(
        [(rle.parse(text, of), of) for text, of in zip(table["rle"], own, strict=True)]
    )
    return f"{path}: {found}" if found else None


def score(
    submission: Path | str | pd.DataFrame,
    labels: Path | str | pd.DataFrame,
    shapes: Shapes | None = None,
    shape: tuple[int, int] = SHAPE,
) -> ScoreResult:
    """Mean dice of a submission over the images that it shares with the labels.

    Several rows of an image are united, and ids are compared as `labels.names_of` has them. Counted
    on runs, so that no mask is drawn. Tables are as `read` returns them (image_id, rle), or files.

    Shapes: `shapes` holds (H, W) by image id; images not in it have `shape`.
    Raises: InputError naming file and row of an RLE at fault, or when no image stands in both.
    """
    sides = [_grouped(_table(side), str(_name(side))) for side in (submission, labels)]
    predicted, truth = sides
    both = [one for one in predicted if one in truth]
    if not both:
        examples = ", ".join(next(iter(side), "none") for side in sides)
        raise InputError(
            f"{_name(submission)} and {_name(labels)} share no image (the first are {examples}): "
            "give the labels of the same set"
        )
    counts = np.empty((len(both), 3), dtype=np.int64)  # (N, 3) intersection, predicted, truth
    masks: list[list[label_checks.Label]] = [[], []]  # of the sides
    for at, one in enumerate(both):
        own = (shapes or {}).get(one, shape)
        first, second = (_united(side[one], own) for side in sides)
        counts[at] = rle.shared_px(first, second), rle.area(first), rle.area(second)
        for of_side, runs in zip(masks, (first, second), strict=True):
            of_side.append((runs, own))
    doubts = zip((submission, labels), map(label_checks.doubt_of_drawing, masks), strict=True)
    dice, has_mask, has_pred = dice_of_counts(*counts.T), counts[:, 2] > 0, counts[:, 1] > 0
    return ScoreResult(
        dice=mean_dice(dice),
        n_images=len(both),
        dice_nonempty=mean_dice(dice[has_mask]),
        n_nonempty=int(has_mask.sum()),
        dice_all_empty=float(np.mean(~has_mask)),
        n_false_negative=int((has_mask & ~has_pred).sum()),
        n_false_positive=int((~has_mask & has_pred).sum()),
        n_only_submission=len(predicted) - len(both),
        n_only_labels=len(truth) - len(both),
        doubts=tuple(f"{_name(side)}: {doubt}" for side, doubt in doubts if doubt),
    )


def _problems_of_ids(table: pd.DataFrame, wanted: list[str]) -> Iterator[tuple[int, str]]:
    """(row, problem) of ids that the sample lacks, or that stand in more than one row."""
    written = dict(zip(names_of(wanted), wanted, strict=True))
    without_zeros = {name.lstrip("0"): as_written for name, as_written in written.items()}
    in_sample, ids = set(wanted), table["image_id"]
    first_row: dict[str, int] = {}
    for row, one, name in zip(table["row"], ids, names_of(ids), strict=True):
        if one not in in_sample:
            known = written.get(name) or without_zeros.get(name.lstrip("0"))
            fix = f"write it {known!r}" if known else "remove the row"
            yield row, f"row {row}: image {one!r} is not in the sample: {fix}"
        if one in first_row:
            yield (
                row,
                f"row {row}: image {one!r} stands in row {first_row[one]} already: unite its masks "
                "into one row, since the competition takes one mask an image",
            )
        first_row.setdefault(one, row)


def _problems_of_masks(
    table: pd.DataFrame, shapes: Shapes, shape: tuple[int, int]
) -> Iterator[tuple[int, str]]:
    """(row, problem) of RLEs that describe no mask of their image, or overlap an earlier row's."""
    seen: dict[str, list[tuple[int, rle.Runs]]] = {}
    for row, one, text in zip(table["row"], table["image_id"], table["rle"], strict=True):
        if not text:
            yield row, f"row {row} ({one}): no RLE: write {rle.EMPTY} for an empty mask"
            continue
        try:
            runs = rle.parse(text, shapes.get(one, shape))
        except rle.RleError as error:
            yield row, f"row {row} ({one}): {error}"
            continue
        for earlier, others in seen.get(one, []):
            shared = rle.shared_px(runs, others)
            if shared:
                yield (
                    row,
                    f"row {row} ({one}): {shared} px overlap the mask in row {earlier}: "
                    "unite the two",
                )
        if len(runs):
            seen.setdefault(one, []).append((row, runs))


def _of_sample(sample: Path | str | Sample | Sequence[str]) -> tuple[list[str], list[str]]:
    """The sample's columns, and its ids, each once, in the order in which they first appear."""
    if isinstance(sample, str | Path):
        sample = labels.read_sample(sample)
    if isinstance(sample, Sample):
        return sample.cells.columns.tolist(), sample.image_id
    if not len(sample):
        raise InputError("the sample names no image: give the competition's own")
    return list(COLUMNS), list(dict.fromkeys(sample))


def _table(side: Path | str | pd.DataFrame) -> pd.DataFrame:
    return side if isinstance(side, pd.DataFrame) else read(side)


def _name(side: Path | str | pd.DataFrame) -> Path | str:
    return "the table given" if isinstance(side, pd.DataFrame) else side


def _grouped(table: pd.DataFrame, name: str) -> dict[str, list[tuple[str, str]]]:
    """By id, (where it stands, RLE) of each of its rows."""
    rows = table["row"] if "row" in table else range(2, len(table) + 2)
    grouped: dict[str, list[tuple[str, str]]] = {}
    for row, one, text in zip(rows, names_of(table["image_id"]), table["rle"], strict=True):
        grouped.setdefault(one, []).append((f"{name}, row {row} ({one})", text))
    return grouped


def _united(rows: list[tuple[str, str]], shape: tuple[int, int]) -> rle.Runs:
    many = []
    for where, text in rows:
        try:
            many.append(parse_cell(text, shape))
        except rle.RleError as error:
            raise InputError(f"{where}: {error}") from None
    return rle.union(many) if len(many) > 1 else many[0]


def _read(path: Path) -> tuple[list[str], pd.DataFrame, list[tuple[int, str]]]:
    """The header, the table of `read` without its ragged rows, and those as (row, problem)."""
    (_, header), *given = cells.read(path) or [cells.Row(1, [])]
    if any(header.count(name) != 1 for name in COLUMNS):
        found = f"the header is {','.join(header)[:80]!r}" if any(header) else "there is no header"
        raise InputError(
            f"{path}, row 1: {found}, not {','.join(COLUMNS)!r}: give an RLE table with both "
            "columns, once each"
        )
    at_id, at_rle = map(header.index, COLUMNS)
    rows, ragged = [], []
    for at, row in given:
        if len(row) == len(header) and row[at_id]:
            rows.append((at, row[at_id], row[at_rle]))
        else:
            n = len(header)
            found = "no id" if len(row) == n else f"{len(row)} values instead of {n}"
            shown = repr(",".join(row)[:60])
            ragged.append(
                (at, f"row {at}: {found} ({shown}): write 'id,RLE', blanks within the RLE")
            )
    table = pd.DataFrame(rows, columns=["row", "image_id", "rle"])
    return header, table.astype({"row": np.int64}), ragged


def _first_repeated(ids: list[str]) -> str | None:
    seen: set[str] = set()
    for one in ids:
        if one in seen:
            return one
        seen.add(one)
    return None
