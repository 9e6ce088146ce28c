"""The scores of an ensemble side by side, worst first, as they are printed and reported."""

from __future__ import annotations

import pandas as pd

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
