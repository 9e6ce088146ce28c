"""The rows as a table for people: what each is, where it starts, and what the notes reported."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from kernel_lib.config import Experiment

HEAD = ("row", "what it is", "starts from", "public LB in the notes (theirs)")


def as_markdown(rows: Mapping[str, Experiment]) -> str:
    """One line a row, in the registry's order."""
    lines = [HEAD, ("---",) * len(HEAD), *_cells(rows)]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _cells(rows: Mapping[str, Experiment]) -> Iterator[tuple[str, ...]]:
    for row in rows.values():
        yield f"`{row.name}`", row.says, _start(row, rows), row.leaderboard or "–"


def _start(row: Experiment, rows: Mapping[str, Experiment]) -> str:
    """Its weights, and the classifier before it where it has one."""
    names = {"imagenet": "ImageNet", "none": "scratch"}
    start = f"`{row.weights}`" if row.weights in rows else names.get(row.weights, row.weights)
    return start + (f"; gated by `{row.gate}`" if row.gate else "")
