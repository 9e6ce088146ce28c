"""The lite0 experiments on real radiographs, and each of their choices tried by itself.

    python -m ablation real --data DIR

Trains every fold of `lite0_256` and `lite0_384`, scores them by nested cross-validation, and trains
variants that differ in one choice on some folds, to compare image by image. Stopped, it goes on
when called again. The tables go between the markers of docs/results.md.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from itertools import chain
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pandas as pd

from ablation import jobs, score, table
from ablation.paired import Draws
from kernel_lib import runs
from kernel_lib.config import Experiment, ThresholdsParameters, TrainParameters
from kernel_lib.data import folds
from kernel_lib.data.table import discover
from kernel_lib.experiments import EXPERIMENTS
from kernel_lib.inference import ensemble as ensembles
from kernel_lib.inference.maps import Maps
from kernel_lib.postprocess.honest_report import HonestReport
from kernel_lib.stages import preparation, thresholds, train

BEGIN, END = "<!-- real:begin -->", "<!-- real:end -->"
SEED = TrainParameters.model_fields["seed"].default
MEASURES = ("dice", "dice_nonempty", "auc_sum")


@dataclass(frozen=True)
class Variant:
    """A training that differs from the smaller experiment in one choice."""

    tries: str  # what differs, in a few words
    changes: Mapping[str, object]  # fields of Experiment
    folds: tuple[int, ...] = (0,)


@dataclass(frozen=True)
class Study:
    """What is trained: a chain of two experiments on every fold, and variants of the first."""

    small: Experiment
    large: Experiment  # starts from `small`
    variants: Mapping[str, Variant]
    n_folds: int = 5

    @property
    def rows(self) -> dict[str, Experiment]:
        """All experiments by name, those that ship among them."""
        rows = EXPERIMENTS | {row.name: row for row in (self.small, self.large)}
        for name, variant in self.variants.items():
            rows[self.name(name)] = self.small.differing(name=self.name(name), **variant.changes)
        return rows

    def name(self, variant: str) -> str:
        return f"{self.small.name}_{variant}"

    @property
    def compared(self) -> list[tuple[str, str, tuple[int, ...]]]:
        """Name, what differs and the folds of all that is compared with `small`."""
        started = f"{self.large.size} px, warm start from {self.small.size}"
        listed = [(self.large.name, started, tuple(range(self.n_folds)))]
        return listed + [(self.name(k), v.tries, v.folds) for k, v in self.variants.items()]


STUDY = Study(
    small=EXPERIMENTS["lite0_256"],
    large=EXPERIMENTS["lite0_384"],
    variants={
        "scratch": Variant("random initial weights, not ImageNet's", {"weights": "none"}),
        "dice": Variant("3 · BCE + dice, not BCE alone", {"loss": {"bce": 3.0, "dice": 1.0}}),
        "all": Variant(
            "every image once an epoch, no share of positives",
            {"sampling": "all", "sampling_options": {}},
        ),
        "nolabel": Variant("no label head", {"label_weight": 0.0}),
        "hflip": Variant("flips alone, no small affine or contrast", {"augment": "hflip"}),
        "noema": Variant("no average of the weights", {"ema_decay": 0.0}),
    },
)


def run(
    data: Path, folder: Path, at_once: int = 2, only: Sequence[str] = (), study: Study = STUDY
) -> str:
    """Train what is not done yet, so many at once; return the section for docs/results.md.

    `only` names variants; empty: all.
    """
    os.environ["OMP_NUM_THREADS"] = "1"  # the trainings share the cores
    _prepare(data, folder, study)  # by one process, before several read it
    every = [study.small.name, study.large.name]
    todo = [(k, every) for k in range(study.n_folds)]
    for name, variant in study.variants.items():
        if not only or name in only:
            todo += [(k, [study.name(name)]) for k in variant.folds]
    with ProcessPoolExecutor(at_once, get_context("spawn"), initializer=jobs.alone) as pool:
        for future in [pool.submit(_train, data, folder, study, *one) for one in todo]:
            future.result()
    return section(folder / "work", study)


def _prepare(data: Path, folder: Path, study: Study) -> None:
    source, given = discover(data), _parameters(data, folder, study, study.small.name, 0)
    for size in (study.small.size, study.large.size):
        prepared = preparation.prepare_training(source, given, size, folder / "work")
        preparation.settle_folds(prepared, given, [folder / "work"])


def _train(data: Path, folder: Path, study: Study, fold: int, names: Sequence[str]) -> None:
    for name in names:
        train.run(_parameters(data, folder, study, name, fold), study.rows)


def _parameters(data: Path, folder: Path, study: Study, name: str, fold: int) -> TrainParameters:
    return TrainParameters(
        experiment=name, fold=fold, n_folds=study.n_folds, data_dir=str(data),
        work_dir=str(folder / "work"), cache_dir=str(folder / "cache"),
        precision="bfloat16", device="cpu", threads=1, workers=0,
    )  # fmt: skip


def section(work: Path, study: Study) -> str:
    """Return both tables: nested cross-validated scores over all folds, and paired differences.

    Only what is trained to its end is in them.
    """
    drawn = folds.load(work / "folds.csv")
    pair = (study.small.name, study.large.name)
    rows = [_scored(work, name) for name in pair if len(_finished(work, name)) == study.n_folds]
    gaps = (_compared(work, study.small.name, *one, drawn) for one in study.compared)
    lines = [
        "| experiment | honest score (95 %) | dice on positives | ROC AUC | sensitivity | "
        "specificity | empty baseline |",
        "|---|---|---|---|---|---|---|",
        *rows,
        "",
        f"| against `{study.small.name}` | folds | honest dice | dice on positives | ROC AUC |",
        "|---|---|---|---|---|",
        *(line for line in gaps if line),
    ]
    return "\n".join([*lines, ""])


def _run(name: str) -> str:
    return f"{name}_seed{SEED}"


def _finished(work: Path, name: str) -> list[int]:
    found = runs.find([work], _run(name))
    return [k for k, fold in found.items() if fold.oof.is_file() and fold.oof_last.is_file()]


def _scored(work: Path, name: str) -> str:
    """Return the table row of an experiment whose folds are all there, by the thresholds stage."""
    thresholds.run(ThresholdsParameters(runs=_run(name), work_dir=str(work)))
    folder = work / "ensembles" / _run(name)
    report = HonestReport.from_json(ensembles.read_choice(folder)[1]["honest"])
    sensitivity, specificity = image_level(pd.read_csv(folder / "oof.csv"))
    roc_auc = report.auc_sum if report.auc_label is None else report.auc_label
    low, high = report.interval
    return (
        f"| `{name}` | {report.honest.dice:.4f} ({low:.4f}–{high:.4f}) | "
        f"{report.honest.dice_nonempty:.4f} | {roc_auc:.4f} | {sensitivity:.3f} | "
        f"{specificity:.3f} | {report.all_empty.dice:.4f} |"
    )


def image_level(per_image: pd.DataFrame) -> tuple[float, float]:
    """Return sensitivity and specificity of "has a mask" from the columns of an oof.csv."""
    predicted = per_image["area_px"].to_numpy() > 0
    positive = per_image["true_area_px"].to_numpy() > 0
    return float(predicted[positive].mean()), float((~predicted[~positive]).mean())


def _compared(
    work: Path, against: str, name: str, tries: str, wanted: Sequence[int], drawn: pd.DataFrame
) -> str | None:
    """Return a table row of differences over the folds that both have; None where there is none."""
    shared = sorted({*_finished(work, name)} & {*_finished(work, against)} & {*wanted})
    if not shared:
        return None
    truths = [_truth(drawn, k) for k in shared]
    draws = Draws(
        list(chain(*(truth["group"] for truth in truths))),
        list(chain(*(score.of_truth(truth)["true_area_px"] for truth in truths))),
    )
    columns = [_columns(work, one, shared, truths) for one in (name, against)]
    cells = []
    for measure in MEASURES:
        mine, other = (draws.value(one, measure) for one in columns)
        gap = draws.difference([(mine, other)])
        cells.append(f"{gap.value:+.4f} [{gap.low:+.4f}, {gap.high:+.4f}]")
    return f"| {tries} (`{name}`) | {', '.join(map(str, shared))} | {' | '.join(cells)} |"


def _truth(drawn: pd.DataFrame, fold: int) -> pd.DataFrame:
    """Return a fold's held-out images; one without a known patient is its own group."""
    truth = drawn[drawn["fold"] == fold].reset_index(drop=True)
    group = truth["group"].fillna("").astype(str)
    return truth.assign(group=np.where(group == "", truth["image_id"], group))


def _columns(
    work: Path, name: str, numbers: Sequence[int], truths: Sequence[pd.DataFrame]
) -> score.Columns:
    """Return per-image numbers of these folds, each rule chosen on the fold's other images."""
    found = []
    for number, truth in zip(numbers, truths, strict=True):
        archive = Maps(runs.fold_folder(work, _run(name), number).oof)
        score.refuse_seen([archive], truth)
        found.append(score.of_mean([archive], truth))
    return {key: list(chain(*(one[key] for one in found))) for key in found[0]}


def write(document: Path, text: str) -> None:
    """Put the section between its markers in a document."""
    table.write(document, text, BEGIN, END)
