"""The scores of an ensemble side by side, as they are printed and reported."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from kernel_lib.artifacts.decision import Decision, Scores
from kernel_lib.artifacts.ensemble import Ensemble
from kernel_lib.artifacts.filenames import MEMBERS, REPORT, SUBMISSION, THRESHOLDS, VIEWER
from kernel_lib.artifacts.test_run import TestRun
from kernel_lib.data import images, label_checks, rle
from kernel_lib.data.table import discover
from kernel_lib.errors import InputError
from kernel_lib.postprocess import submission
from kernel_lib.postprocess.nested_cv import NestedCVReport
from kernel_lib.postprocess.strategies import Choice
from kernel_lib.postprocess.submission import Pairs, ScoreResult
from kernel_lib.stages import leaks


def table(scores: Scores) -> pd.DataFrame:
    """Return a row for each rule: mean Dice over all images, over positive ones, what it is.

    First the score in which no label selected an epoch. No score is called honest where a member's
    past is unknown, or where these images' labels selected an epoch. Where folds are missing, each
    name says of how many images it is.
    """
    last = "last checkpoint", scores.last, scores.last_selected
    kept = "rule", scores.kept, scores.kept_selected
    rows = [
        (f"{name}, {claim(scores, selected)}", report.honest, _what(report, selected))
        for name, report, selected in ((last, kept) if scores.kept_selected else (kept,))
    ]
    first = scores.first
    rows += [
        ("rule, in sample", scores.kept.in_sample, "chosen and scored on the same images"),
        ("probability > 0.5", first.above_half, "no search, no minimum area"),
        ("empty baseline", first.all_empty, "no image has a mask"),
    ]
    part = f", {scores.coverage}" if scores.coverage else ""
    listed = [(name + part, score.dice, score.dice_nonempty, what) for name, score, what in rows]
    return pd.DataFrame(listed, columns=["rule", "dice", "dice of positives", "what it is"])


def claim(scores: Scores, selected: bool) -> str:
    """Return whether a nested cross-validated score is honest, in words."""
    if scores.is_honest(selected):
        return "nested CV (honest)"
    return f"nested CV, NOT HONEST ({'epochs selected' if scores.past_known else 'unknown past'})"


def _what(report: NestedCVReport, selected: bool) -> str:
    low, high = report.interval
    text = f"chosen on other images; 95 % {low:.4f}-{high:.4f} over {report.resampled}"
    return f"{text}; epochs selected on these images" if selected else text


def as_text(scores: pd.DataFrame) -> str:
    """Return the table for a terminal or a cell."""
    return scores.to_string(index=False, float_format=lambda v: f"{v:.4f}", justify="left")


def summary_lines(ensemble: Ensemble, choice: Choice, scores: Scores) -> list[str]:
    """Return `summary_items` as lines "name: text"."""
    return [f"{name}: {text}" for name, text in summary_items(ensemble, choice, scores)]


def summary_items(ensemble: Ensemble, choice: Choice, scores: Scores) -> list[tuple[str, str]]:
    """Return name and text of the rule, weights where they differ, gate and image-level ROC AUC.

    First, where folds are missing, of which images the scores are.

    Weights that the greedy search found are the members' own by now.
    """
    items = rule_items(ensemble, choice)
    if scores.coverage:
        folds = ", ".join(map(str, ensemble.folds))
        text = f"{scores.coverage}, those of fold {folds}; no score is of all"
        items.insert(0, ("scored", text))
    if len(set(ensemble.weights)) > 1:
        shares = ", ".join(f"{m.weight:g} · {m.run}" for m in ensemble.members)
        items.append(("weights", shares))
    gate, auc = gate_text(ensemble), auc_text(scores.kept)
    return [*items, ("gate", gate), ("image-level ROC AUC", auc)]


def rule_lines(ensemble: Ensemble, choice: Choice) -> list[str]:
    """Return `rule_items` as lines "name: text"."""
    return [f"{name}: {text}" for name, text in rule_items(ensemble, choice)]


def rule_items(ensemble: Ensemble, choice: Choice) -> list[tuple[str, str]]:
    """Return name and text of the rule, or of each member's and how many must agree."""
    if choice.rules is None:
        return [("rule", str(choice.triplet))]
    named = zip(ensemble.members, choice.rules, strict=True)
    return [
        *((f"rule of {m.run}", str(rule)) for m, rule in named),
        (ensemble.combine, f"at least {choice.at_least} of {len(choice.rules)} agree"),
    ]


def gate_text(ensemble: Ensemble) -> str:
    """Return in words what classifies images as negative before the rule is applied."""
    if ensemble.gate == "none":
        return "none"
    if ensemble.gate == "sum":
        return "the sum of the probability map, log2(1 + Σp) / 20"
    if ensemble.gate_members:
        return (
            f"the classification probability of {', '.join(m.run for m in ensemble.gate_members)}"
        )
    return "the classification probability of the members"


def auc_text(report: NestedCVReport) -> str:
    """Return the image-level ROC AUC of each score that separates positive images."""
    by_label = ""
    if report.auc_label is not None:
        by_label = f"{report.auc_label:.4f} by the classification probability, "
    return (
        f"{by_label}{report.auc_sum:.4f} by the sum of the probability map, "
        f"{report.auc_count:.4f} by the area above the detection threshold (top)"
    )


def chosen_by_part(ensemble: Ensemble, report: NestedCVReport) -> pd.DataFrame:
    """Return the rule chosen for each fold on the other folds, and its score on that fold.

    `ensemble` holds the candidate members.
    """
    rows = []
    for part in report.rules:
        row = {"fold": part.fold, "dice": part.score.dice, "chosen on": part.n_chosen_on}
        if part.weights is not None:
            named = zip(part.weights, ensemble.members, strict=True)
            row["weights"] = ", ".join(f"{w} · {m.run}" for w, m in named if w)
        if part.rules is None:
            row["rule"] = str(part.triplet)
        else:
            row["at least"] = part.at_least
            named = zip(ensemble.members, part.rules, strict=True)
            row |= {m.run: str(rule) for m, rule in named}
        rows.append(row)
    return pd.DataFrame(rows)


def of_split(path: Path, data_dir: Path, split: str, masks_are: str | None = None) -> ScoreResult:
    """Score a submission by the labels of a data folder's images; as `pair_with_split`."""
    pairs, _ = pair_with_split(path, data_dir, split, masks_are)
    return submission.score_of(pairs)


def pair_with_split(
    path: Path, data_dir: Path, split: str, masks_are: str | None = None
) -> tuple[Pairs, pd.DataFrame]:
    """Pair a submission with the labels of a data folder's test or training images.

    `split` is "test" or "train". What is to be known of the folder is printed. The table returned
    beside the pairs has the labelled images' image_id and path.

    Raises: InputError where no image of the split has a label, or labels are in doubt and
    `masks_are` ("right" or "inverted") does not settle it.
    """
    source = discover(data_dir, for_inference=True)
    labelled = source.test_labels if split == "test" else source.train
    if labelled.empty:
        raise InputError(f"{source.root}: no {split} image has a label: give the labels' table")
    for problem in source.problems:
        print(f"note: {problem}")
    rows = list(labelled.itertuples(index=False))
    shapes = {row.image_id: images.size_of(row.path) for row in rows}
    try:
        labels = [(label_checks.runs_of(row, shapes[row.image_id], masks_are), row) for row in rows]
        doubt = masks_are != "right" and label_checks.doubt(
            [(runs, shapes[row.image_id]) for runs, row in labels]
        )
        if doubt:
            raise InputError(f"{source.labels or source.root}: {doubt}")
    except InputError as error:
        raise InputError(str(error).replace("-p MASKS_ARE", "--masks-are")) from error
    rles = [rle.to_string(runs) for runs, _ in labels]
    pairs = submission.pair(path, labelled[["image_id"]].assign(rle=rles), shapes)
    return pairs, labelled[["image_id", "path"]]


def summary(folder: Path, truth: Path | None = None) -> str:
    """An ensemble's scores as text, its submission's where the truth is known, and its files.

    `truth` is a table of labels, or a data folder whose test images have labels.
    """
    decision = Decision.load(folder)
    lines = ["Out of fold:", as_text(table(decision.scores))]
    lines += summary_lines(decision.ensemble, decision.choice, decision.scores)
    if truth is not None and TestRun.load(folder) is not None:
        lines += ["", "Test images:", as_text(_on_test(folder / SUBMISSION, truth))]
        lines += trained_on(folder / SUBMISSION)
    lines += ["", "Artefacts:"]
    for name in (SUBMISSION, REPORT, VIEWER, THRESHOLDS, MEMBERS):
        if (folder / name).exists():
            lines.append(f"  {folder / name}")
    return "\n".join(lines)


def trained_on(submitted: Path) -> list[str]:
    """Return a warning where the inference stage noted leaks beside a submission, else nothing.

    It is of the submission written there; a copy under another name holds the same images.
    """
    test = TestRun.load(submitted.parent)
    return [f"warning: {leaks.warning(test.trained_on)}"] if test and test.trained_on else []


def _on_test(path: Path, truth: Path) -> pd.DataFrame:
    scored = of_split(path, truth, "test") if truth.is_dir() else submission.score(path, truth)
    rows = [
        ("empty baseline", scored.dice_all_empty, 0.0),
        ("submission", scored.dice, scored.dice_nonempty),
    ]
    return pd.DataFrame(rows, columns=["rule", "dice", "dice of positives"])
