"""The lite0 experiments on real radiographs, and each of their choices tried by itself.

    python -m tools.ablation real --data DIR

Trains every fold of `lite0_256` and of `lite0_384`, which starts from it, scores each and the mean
of their maps by nested cross-validation, and trains variants that differ in one choice on some
folds, to compare image by image. Stopped, it goes on when called again. The tables go between the
markers of docs/results.md.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from itertools import chain, pairwise
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pandas as pd

from kernel_lib.artifacts import fold_run, folds_file
from kernel_lib.artifacts.maps import Maps
from kernel_lib.config import Experiment, ThresholdsParameters, TrainParameters
from kernel_lib.data.table import discover
from kernel_lib.experiments import EXPERIMENTS
from kernel_lib.stages import leaks, preparation, thresholds, train
from tools.ablation import jobs, score, table
from tools.ablation.paired import Draws

SEED = TrainParameters.model_fields["seed"].default
MEASURES = ("dice", "dice_nonempty", "auc_sum")


@dataclass(frozen=True)
class Variant:
    """A training that differs from the smaller experiment in one choice."""

    tries: str  # what differs, in a few words
    changes: Mapping[str, object]  # fields of Experiment
    folds: tuple[int, ...] = (0,)


@dataclass(frozen=True)
class Comparison:
    """Two means of runs' maps, compared image by image."""

    tries: str  # what differs, in a few words
    names: tuple[str, ...]
    against: tuple[str, ...]
    folds: tuple[int, ...]


@dataclass(frozen=True)
class Study:
    """What is trained: a chain of experiments on every fold, and variants of the first."""

    chain: tuple[Experiment, ...]  # each starts from the one before it
    variants: Mapping[str, Variant]
    training: Mapping[str, object]  # parameters of every training that are no experiment's
    marks: tuple[str, str]  # of its section in a document
    n_folds: int = 5

    @property
    def first(self) -> Experiment:
        return self.chain[0]

    @property
    def names(self) -> tuple[str, ...]:
        """Return the chain's experiments by name."""
        return tuple(row.name for row in self.chain)

    @property
    def rows(self) -> dict[str, Experiment]:
        """Return all experiments by name, those that ship among them."""
        rows = EXPERIMENTS | {row.name: row for row in self.chain}
        for key, variant in self.variants.items():
            rows[self.name(key)] = self.first.differing(name=self.name(key), **variant.changes)
        return rows

    def name(self, variant: str) -> str:
        return f"{self.first.name}_{variant}"

    @property
    def scored(self) -> list[tuple[str, ...]]:
        """Return the experiments whose mean is scored over all folds: each, and all of them."""
        every = tuple(range(self.n_folds))
        names = self.names + tuple(
            self.name(key) for key, variant in self.variants.items() if variant.folds == every
        )
        each = [(name,) for name in names]
        return [*each, names] if len(names) > 1 else each

    @property
    def comparisons(self) -> list[Comparison]:
        every = tuple(range(self.n_folds))
        listed = [
            Comparison(
                f"{row.size} px, warm start from {parent.size}", (row.name,), (parent.name,), every
            )
            for parent, row in pairwise(self.chain)
        ]
        if len(together := self.scored[-1]) > 1:
            listed.append(Comparison("the mean of all", together, self.names[-1:], every))
        for key, variant in self.variants.items():
            pair = (self.name(key),), (self.first.name,)
            listed.append(Comparison(variant.tries, *pair, variant.folds))
        return listed


STUDY = Study(
    chain=(EXPERIMENTS["lite0_256"], EXPERIMENTS["lite0_384"]),
    variants={
        "scratch": Variant("random initial weights, not ImageNet's", {"weights": "none"}),
        "decoder": Variant(
            "a decoder up to half the size, not a quarter", {"decoder_channels": (64, 48, 32, 16)}
        ),
        "dice": Variant("3 · BCE + dice, not BCE alone", {"loss": {"bce": 3.0, "dice": 1.0}}),
        "all": Variant(
            "every image once an epoch, no share of positives",
            {"sampling": "all", "sampling_options": {}},
        ),
        "nolabel": Variant("no label head", {"label_weight": 0.0}),
        "hflip": Variant("flips alone, no small affine or contrast", {"augment": "hflip"}),
        "noema": Variant("no average of the weights", {"ema_decay": 0.0}),
        "lite2": Variant(
            "a larger encoder, EfficientNet-Lite2", {"encoder": "timm-tf_efficientnet_lite2"}
        ),
        "unetplusplus": Variant("U-Net++ of the same widths", {"network": "UNetPlusPlus"}),
        "upernet": Variant("UPerNet, 64 channels wide", {"network": "UPerNet"}),
        "deeplab": Variant("DeepLabV3+, 64 channels wide", {"network": "DeepLabV3Plus"}),
        "distortions": Variant(
            "stronger augmentation, with bent images", {"augment": "distortions"}
        ),
        "long": Variant(
            "the same for twice the epochs",
            {"augment": "distortions", "epochs": 8, "min_epochs": 6},
        ),
    },
    training={"precision": "bfloat16", "device": "cpu", "threads": 1, "workers": 0},
    marks=("<!-- real:begin -->", "<!-- real:end -->"),
)
EVERY_FOLD = tuple(range(5))
GPU_STUDY = Study(
    chain=(
        EXPERIMENTS["lite0_256"].differing(
            name="lite0_512",
            size=512,
            augment="distortions",
            epochs=10,
            min_epochs=8,
            warmup_epochs=1.0,
        ),
    ),
    variants={
        "flips": Variant("small affine and contrast alone", {"augment": "flips"}, EVERY_FOLD),
        "short": Variant("six epochs", {"epochs": 6, "min_epochs": 5}, EVERY_FOLD),
        "lite2": Variant(
            "EfficientNet-Lite2, six epochs",
            {"encoder": "timm-tf_efficientnet_lite2", "epochs": 6, "min_epochs": 5},
            EVERY_FOLD,
        ),
    },
    # All trainings share one card and its machine's few processors.
    training={"device": "cuda", "workers": 2, "processes": 1},
    marks=("<!-- real gpu:begin -->", "<!-- real gpu:end -->"),
)


def run(
    data: Path, folder: Path, at_once: int = 2, only: Sequence[str] = (), study: Study = STUDY
) -> str:
    """Train what is not done yet, so many at once; return the section for docs/results.md.

    `only` names variants; empty: all.
    """
    os.environ["OMP_NUM_THREADS"] = "1"  # the trainings share the cores
    _prepare(data, folder, study)  # by one process, before several read it
    todo = [(k, study.names) for k in range(study.n_folds)]
    for name, variant in study.variants.items():
        if not only or name in only:
            todo += [(k, (study.name(name),)) for k in variant.folds]
    with ProcessPoolExecutor(at_once, get_context("spawn"), initializer=jobs.start_worker) as pool:
        for future in [pool.submit(_train, data, folder, study, *job) for job in todo]:
            future.result()
    return section(folder / "work", study)


def _prepare(data: Path, folder: Path, study: Study) -> None:
    source, given = discover(data), _parameters(data, folder, study, study.first.name, 0)
    for row in study.chain:
        test = leaks.test_images(source, row.size, given)
        prepared = preparation.prepare_training(source, given, row.size, folder / "work", test)
    preparation.settle_folds(prepared, given, [folder / "work"])  # the same at every size


def _train(data: Path, folder: Path, study: Study, fold: int, names: Sequence[str]) -> None:
    for name in names:
        train.run(_parameters(data, folder, study, name, fold), study.rows)


def _parameters(data: Path, folder: Path, study: Study, name: str, fold: int) -> TrainParameters:
    return TrainParameters(
        experiment=name, fold=fold, n_folds=study.n_folds, data_dir=str(data),
        work_dir=str(folder / "work"), cache_dir=str(folder / "cache"), **study.training,
    )  # fmt: skip


def section(work: Path, study: Study) -> str:
    """Return both tables: nested cross-validated scores over all folds, and paired differences.

    Only what is trained to its end is in them.
    """
    drawn = folds_file.find([work])
    rows = [
        _scored(work, names)
        for names in study.scored
        if len(_finished(work, names)) == study.n_folds
    ]
    gaps = (_compared(work, comparison, drawn) for comparison in study.comparisons)
    lines = [
        "| experiment | honest score (95 %) | dice on positives | AUC | sensitivity | "
        "specificity | empty baseline |",
        "|---|---|---|---|---|---|---|",
        *rows,
        "",
        "| what differs | experiment | against | folds | honest dice | dice on positives | AUC |",
        "|---|---|---|---|---|---|---|",
        *(line for line in gaps if line),
    ]
    return "\n".join([*lines, ""])


def _run(name: str) -> str:
    return f"{name}_seed{SEED}"


def _finished(work: Path, names: Sequence[str]) -> list[int]:
    """Return the folds that every one of these experiments has finished."""
    every = []
    for name in names:
        folds = fold_run.find([work], _run(name))
        every.append({k for k, f in folds.items() if f.oof.is_file() and f.oof_last.is_file()})
    return sorted(set.intersection(*every))


def _scored(work: Path, names: Sequence[str]) -> str:
    """Return the table row of a mean whose folds are all there, by the thresholds stage."""
    runs_given = ",".join(_run(name) for name in names)
    result = thresholds.run(ThresholdsParameters(runs=runs_given, work_dir=str(work)))
    report = result.honest
    sensitivity, specificity = image_level(result.per_image)
    low, high = report.interval
    return (
        f"| {_shown(names)} | {report.honest.dice:.4f} ({low:.4f}–{high:.4f}) | "
        f"{report.honest.dice_nonempty:.4f} | {report.auc_sum:.4f} | {sensitivity:.3f} | "
        f"{specificity:.3f} | {report.all_empty.dice:.4f} |"
    )


def image_level(per_image: pd.DataFrame) -> tuple[float, float]:
    """Return sensitivity and specificity of "has a mask" from the images of an `oof.csv`."""
    predicted = per_image["predicted_px"].to_numpy() > 0
    positive = per_image["truth_px"].to_numpy() > 0
    return float(predicted[positive].mean()), float((~predicted[~positive]).mean())


def _shown(names: Sequence[str]) -> str:
    return " + ".join(f"`{name}`" for name in names)


def _compared(work: Path, this: Comparison, folds: pd.DataFrame) -> str | None:
    """Return a table row of differences over the folds that both have; None where there is none."""
    finished = _finished(work, [*this.names, *this.against])
    shared = [number for number in finished if number in this.folds]
    if not shared:
        return None
    truths = [_truth(folds, k) for k in shared]
    draws = Draws(
        list(chain(*(truth["group"] for truth in truths))),
        list(chain(*(score.of_truth(truth)["true_area_px"] for truth in truths))),
    )
    columns = [_columns(work, names, shared, truths) for names in (this.names, this.against)]
    cells = []
    for measure in MEASURES:
        mine, other = (draws.value(column, measure) for column in columns)
        gap = draws.difference([(mine, other)])
        cells.append(f"{gap.value:+.4f} [{gap.low:+.4f}, {gap.high:+.4f}]")
    pair = f"{_shown(this.names)} | {_shown(this.against)}"
    return f"| {this.tries} | {pair} | {', '.join(map(str, shared))} | {' | '.join(cells)} |"


def _truth(folds: pd.DataFrame, fold: int) -> pd.DataFrame:
    """Return a fold's held-out images; one without a known patient is its own group."""
    truth = folds[folds["fold"] == fold].reset_index(drop=True)
    group = truth["group"].fillna("").astype(str)
    return truth.assign(group=np.where(group == "", truth["image_id"], group))


def _columns(
    work: Path, names: Sequence[str], numbers: Sequence[int], truths: Sequence[pd.DataFrame]
) -> score.Columns:
    """Return per-image numbers of these folds, each rule chosen on the fold's other images."""
    parts = []
    for number, truth in zip(numbers, truths, strict=True):
        archives = [Maps(fold_run.fold_folder(work, _run(name), number).oof) for name in names]
        score.refuse_seen(archives, truth)
        parts.append(score.of_mean(archives, truth))
    return {key: list(chain(*(part[key] for part in parts))) for key in parts[0]}


def write(document: Path, text: str, study: Study = STUDY) -> None:
    """Put the section between its markers in a document."""
    table.write(document, text, *study.marks)
