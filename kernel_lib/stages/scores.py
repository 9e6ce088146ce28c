"""The scores of an ensemble side by side, worst first, as they are printed and reported."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd

from kernel_lib.errors import InputError
from kernel_lib.postprocess import submission
from kernel_lib.postprocess.honest import HonestReport


def table(report: HonestReport, last: HonestReport, past_known: bool = True) -> pd.DataFrame:
    """One row a way to decide: mean dice over all images, over non-empty ones, and what it is.

    The honest row is called not honest where a member's past is unknown.
    """
    low, high = report.interval
    honest = "searched rule, honest" if past_known else "searched rule, NOT HONEST (unknown past)"
    rows = [
        ("all empty", report.all_empty, "every image without a mask"),
        ("probability > 0.5", report.above_half, "no search, no area"),
        ("searched rule, in sample", report.in_sample, "chosen and scored on the same images"),
        (
            honest,
            report.honest,
            f"chosen on other folds; 95 % {low:.4f}-{high:.4f} over {report.resampled}",
        ),
        ("last weights, honest", last.honest, "no epoch selected; the difference is the optimism"),
    ]
    listed = [(name, score.dice, score.dice_nonempty, what) for name, score, what in rows]
    return pd.DataFrame(listed, columns=["rule", "dice", "dice non-empty", "what it is"])


def as_text(scores: pd.DataFrame) -> str:
    """The table for a terminal or a cell."""
    return scores.to_string(index=False, float_format=lambda v: f"{v:.4f}", justify="left")


def summary(folder: Path, truth: Path | None = None) -> str:
    """An ensemble's scores as text, its submission's where the truth is known, and its files."""
    path = folder / "thresholds.json"
    if not path.exists():
        raise InputError(f"{path} is missing: the thresholds stage makes it")
    document = json.loads(path.read_text(encoding="utf-8"))
    reports = [HonestReport.from_json(document[name]) for name in ("honest", "last")]
    lines = ["Out of fold:", as_text(table(*reports, document["past_known"]))]
    if truth is not None and (folder / "test.json").exists():
        lines += ["", "Test images:", as_text(_on_test(folder / "submission.csv", truth))]
    lines += ["", "Artefacts:"]
    for name in ("submission.csv", "report.html", "thresholds.json", "members.json"):
        if (folder / name).exists():
            lines.append(f"  {folder / name}")
    return "\n".join(lines)


def _on_test(path: Path, truth: Path) -> pd.DataFrame:
    scored = submission.score(path, truth)
    rows = [
        ("all empty", scored.dice_all_empty, 0.0),
        ("submission", scored.dice, scored.dice_nonempty),
    ]
    return pd.DataFrame(rows, columns=["rule", "dice", "dice non-empty"])
