"""CSV tables: what is read must be what Python's own csv module reads."""

from __future__ import annotations

import csv
import io
import math
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pandas as pd

from kernel_lib.artifacts import folds_file
from kernel_lib.data import folds, labels, rle
from kernel_lib.postprocess import submission
from tools.fuzz.case import Case, Desk, Target
from tools.fuzz.mutate import damaged, garbled
from tools.fuzz.runs import naive

SIDE = 16
WORDS = (",", ",,", '"', '""', "\n", "\r\n", "\r", "\n\n", "\x00", "\ufeff", "-1", " ", "\t", ";",
         "ImageId", "EncodedPixels", ".dcm", "\u00e9", "NA", "nan", "None", "1e5", "#", "'", "\x1a",
         "0 1", "3 2 1 4", "99999999999", "\u2028", "\x85", "\x0c", "\\")  # fmt: skip


def rows_of(data: bytes) -> list[list[str]]:
    """Return header and rows that are not blank, cells stripped, as the csv module reads them."""
    csv.field_size_limit(sys.maxsize)
    text = data.decode("utf-8-sig")
    rows = csv.reader(io.StringIO(text, newline=""), strict=True, skipinitialspace=True)
    cells = [[cell.strip() for cell in row] for row in rows]
    return [row for at, row in enumerate(cells) if at == 0 or any(row)]


def _expected(data: bytes, columns: tuple[str, ...] | None) -> list[list[str]] | str:
    """Return the rows in these columns; or why the table cannot be read at all."""
    try:
        header, *rows = rows_of(data)
    except (UnicodeDecodeError, csv.Error, ValueError) as error:
        return f"the csv module cannot read it: {error}"
    for row in rows:
        if len(row) != len(header):
            return f"a row has {len(row)} cells under {len(header)} names"
    if columns is None:
        return rows
    if any(header.count(name) != 1 for name in columns):
        return f"the header is {header}"
    return [[row[header.index(name)] for name in columns] for row in rows]


def _case(
    desk: Desk,
    data: bytes,
    read: Callable[[Path], object],
    columns: tuple[str, ...] | None,
    compare: Callable[[object, list[list[str]]], str | None],
) -> Case:
    path = desk.put("table.csv", data)

    def wrong(result: object) -> str | None:
        rows = _expected(data, columns)
        return f"read, though {rows}" if isinstance(rows, str) else compare(result, rows)

    return Case(data, lambda: read(path), wrong)


def _changed(desk: Desk, data: bytes) -> bytes:
    """Return a table as an editor or a transfer may leave it; sometimes as it was."""
    kind = desk.rng.random()
    if kind < 0.1:
        return data
    if kind < 0.7:
        return garbled(desk.rng, data.decode(), WORDS).encode("utf-8", "surrogatepass")
    return damaged(desk.rng, data, head=64)


def _differ(actual: list, expected: list) -> str | None:
    for at, (cell, other) in enumerate(zip(actual, expected, strict=False)):
        if cell != other:
            return f"row {at}: {cell!r}, expected {other!r}"[:300]
    return None if len(actual) == len(expected) else f"{len(actual)} rows, not {len(expected)}"


# --- Labels, samples, groups, submissions ---------------------------------------------------


def _label_rows(desk: Desk) -> bytes:
    """Return some real rows and some made ones, under one of the headers."""
    rng = desk.rng
    head, *lines = desk.corpus.labels.decode().splitlines()
    made = [f"id{rng.randrange(4)},{rng.choice(('-1', '0 3', ' 5 2 1 1', ''))}" for _ in range(3)]
    chosen = rng.sample(lines, min(len(lines), 2)) + made[: rng.randrange(4)]
    head = rng.choice((head, "ImageId,EncodedPixels", '"ImageId","EncodedPixels"'))
    end = rng.choice(("\n", "\n", "\r\n"))
    return (end.join([head, *chosen]) + rng.choice(("", end))).encode()


def read_labels(desk: Desk, data: bytes | None = None) -> Case:
    def compare(table: pd.DataFrame, rows: list[list[str]]) -> str | None:
        many: dict[str, list[rle.Runs]] = {}
        names = labels.names_of([name for name, _ in rows])
        for name, (_, text) in zip(names, rows, strict=True):
            if not name or (naive(text, (4096, 4096)) is None and _is_small(text)):
                return f"read, though a row is {name!r}, {text!r}"[:300]
            many.setdefault(name, []).append(rle.parse(text))
        united = {name: rle.to_string(rle.union(runs)) for name, runs in many.items()}
        return _differ(
            table[["image_id", "rle"]].to_numpy().tolist(), list(map(list, united.items()))
        )

    data = _changed(desk, _label_rows(desk)) if data is None else data
    return _case(desk, data, labels.read_labels, submission.COLUMNS, compare)


def _is_small(text: str) -> bool:
    """Return whether a naive reading of 4096² pixels can judge an RLE: it ends within it."""
    return not any(len(token) > 6 for token in text.split()) and len(text) < 200


def read_sample(desk: Desk) -> Case:
    def compare(sample: labels.Sample, rows: list[list[str]]) -> str | None:
        return _differ(sample.image_id, list(dict.fromkeys(name for name, _ in rows)))

    data = _changed(desk, _label_rows(desk))
    return _case(desk, data, labels.read_sample, submission.COLUMNS, compare)


def read_groups(desk: Desk) -> Case:
    head, *lines = desk.corpus.groups.splitlines(keepends=True)
    data = _changed(desk, head + b"".join(desk.rng.sample(lines, min(len(lines), 4))))

    def compare(groups: dict[str, str], rows: list[list[str]]) -> str | None:
        if any(len(row) != 2 for row in rows):
            return "read, though a row has not two cells"
        nih = folds.NIH_NAME
        names = labels.names_of([name for name, _ in rows])
        given = (group for _, group in rows)
        expected = {
            n: (m[1] if (m := nih.fullmatch(g)) else g) for n, g in zip(names, given, strict=True)
        }
        expected = {n: math.nan if folds.is_placeholder(g) else g for n, g in expected.items()}
        return None if groups == expected else f"{groups}, expected {expected}"[:300]

    return _case(desk, data, labels.read_groups, None, compare)


def read_submission(desk: Desk) -> Case:
    def compare(table: pd.DataFrame, rows: list[list[str]]) -> str | None:
        return _differ(table[["image_id", "rle"]].to_numpy().tolist(), rows)

    data = _changed(desk, _label_rows(desk))
    return _case(desk, data, submission.read, submission.COLUMNS, compare)


def score(desk: Desk) -> Case:
    """Return the case of a changed submission, scored by masks instead of runs."""
    rng = desk.rng
    ids = [f"id{at}" for at in range(4)]
    texts = [rng.choice(("-1", "0 3", "5 2 1 1", "250 6", "0 256")) for _ in ids]
    truth = pd.DataFrame({"image_id": ids, "rle": texts})
    lines = [f"{name},{rng.choice(('-1', '0 3', '4 4', '255 1', '256 1'))}" for name in ids]
    data = _changed(desk, "\n".join(["ImageId,EncodedPixels", *lines, ""]).encode())
    shapes = {"id0": (8, 32)} if rng.random() < 0.5 else {}

    def compare(result: submission.ScoreResult, rows: list[list[str]]) -> str | None:
        masks: dict[str, list] = {}
        names = labels.names_of([name for name, _ in rows])
        for name, (_, text) in zip(names, rows, strict=True):
            if name not in ids:
                continue
            mask = naive(text, shapes.get(name, (SIDE, SIDE)))
            if mask is None:
                return f"scored, though {name} has {text!r}"
            masks.setdefault(name, []).append(mask)
        dice = []
        for name, text in zip(ids, texts, strict=True):
            if name in masks:
                predicted, true = (
                    sum(masks[name]) > 0,
                    naive(text, shapes.get(name, (SIDE, SIDE))) > 0,
                )
                total = int(predicted.sum()) + int(true.sum())
                dice.append(2 * int((predicted & true).sum()) / total if total else 1.0)
        expected = sum(dice) / len(dice)
        right = abs(result.dice - expected) < 1e-12 and result.n_images == len(dice)
        return None if right else f"dice {result.dice}, expected {expected}"

    read = partial(submission.score, labels=truth, shapes=shapes, shape=(SIDE, SIDE))
    return _case(desk, data, read, submission.COLUMNS, compare)


# --- Folds ----------------------------------------------------------------------------------


def read_folds(desk: Desk) -> Case:
    rng = desk.rng
    rows = []
    for at in range(6):
        text, area = rng.choice((("-1", 0), ("0 3", 3), ("5 2 1 1", 3), ("250 6", 6)))
        rows.append((f"id{at}", at % 2, f"p{at % 2}", SIDE, SIDE, area, text))
    lines = [",".join(folds_file.COLUMNS), *(",".join(map(str, row)) for row in rows)]
    data = _changed(desk, ("\n".join(lines) + "\n").encode())

    def compare(table: pd.DataFrame, rows: list[list[str]]) -> str | None:
        actual = [[str(cell).strip() for cell in row] for row in table.to_numpy().tolist()]
        expected = [[n, *(str(int(x)) if at in (0, 2, 3, 4) else x for at, x in enumerate(rest))]
                    for n, *rest in rows]  # fmt: skip
        if wrong := _differ(actual, expected):
            return wrong
        group_folds: dict[str, str] = {}
        for name, fold, group, height, width, area, text in expected:
            if int(height) * int(width) > 1 << 26:
                return f"{name} is said to have {height}×{width} px"
            mask = naive(text, (int(height), int(width)))
            if mask is None or int(mask.sum()) != int(area):
                return f"{name} has {area} px by the table, and {text!r}"
            if group and group_folds.setdefault(group, fold) != fold:
                return f"group {group} in two folds"
        if len({row[0] for row in expected}) < len(expected):
            return "an id twice"
        return None

    return _case(desk, data, folds_file.load, folds_file.COLUMNS, compare)


TARGETS = {
    "labels": Target(read_labels, 0.03),
    "sample": Target(read_sample, 0.02),
    "groups": Target(read_groups, 0.02),
    "submission": Target(read_submission, 0.08),
    "score": Target(score, 0.02),
    "folds": Target(read_folds, 0.02),
}
