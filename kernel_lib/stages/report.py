"""Everything an ensemble's folder holds, as one page to look at."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from kernel_lib.artifacts import fold_run, folds_file
from kernel_lib.artifacts.decision import Decision
from kernel_lib.artifacts.ensemble import Ensemble, named_if_damaged
from kernel_lib.artifacts.filenames import LOG, REPORT, THRESHOLDS
from kernel_lib.artifacts.fold_run import FoldConfig, LogLine
from kernel_lib.artifacts.folds_file import LeftOut
from kernel_lib.artifacts.oof import OofStatistics, load_distances, load_per_image
from kernel_lib.artifacts.test_run import TestRun
from kernel_lib.data.table import Source
from kernel_lib.inference.ensemble_maps import EnsembleMaps, check_predicted_by, open_maps
from kernel_lib.postprocess import search
from kernel_lib.postprocess.search import SearchResult
from kernel_lib.reporting import figures, report
from kernel_lib.reporting.picture import Picture
from kernel_lib.reporting.report import Section
from kernel_lib.stages import leaks, report_certainty, report_images, report_scores, scores


@dataclass(frozen=True)
class ReportData:
    """What is known of an ensemble, complete and consistent."""

    decision: Decision
    folds: pd.DataFrame  # the folds file
    per_image: pd.DataFrame  # as `load_per_image` has it
    distances: pd.DataFrame | None  # as `load_distances` has it
    statistics: OofStatistics
    maps: Mapping[int, EnsembleMaps]  # held-out maps of the ensemble, by fold; {} if elsewhere
    candidate_maps: Mapping[int, EnsembleMaps]  # the same of all candidate members
    config: FoldConfig | None  # of a fold of the first member, if one is here
    logs: Mapping[str, Sequence[LogLine]]  # by run and fold
    left_out: LeftOut
    test: TestRun | None  # once the inference stage has run
    scores: pd.DataFrame
    by_fold: pd.DataFrame
    summary: tuple[tuple[str, str], ...]  # name and text of rule, weights, gate, image-level AUC

    @property
    def summary_lines(self) -> tuple[str, ...]:
        """The summary as lines."""
        return tuple(f"{name}: {text}" for name, text in self.summary)


def load(folder: Path, roots: Sequence[Path]) -> ReportData:
    """Read everything that the report says of an ensemble.

    Maps are opened, and read when they are drawn.

    Raises: InputError naming the file, and the stage that makes it, where one of them is missing,
        damaged, or of another ensemble.
    """
    decision = Decision.load(folder)
    ensemble, candidates = decision.ensemble, decision.candidates
    with named_if_damaged(folder / THRESHOLDS):
        table = scores.table(decision.scores)
        by_fold = scores.chosen_by_part(candidates, decision.scores.kept)
        summary = scores.summary_items(ensemble, decision.choice, decision.scores)
    check_predicted_by(decision, roots)
    fold_table = folds_file.find(roots, ensemble.folds_digest)
    maps = _held_out_maps(ensemble, roots, decision.from_statistics)
    per_image = load_per_image(folder, decision, fold_table)
    return ReportData(
        decision=decision,
        folds=fold_table,
        per_image=per_image,
        distances=load_distances(folder, per_image),
        statistics=OofStatistics.load(folder, decision),
        maps=maps,
        candidate_maps=maps if candidates == ensemble else _held_out_maps(candidates, roots),
        config=_config(ensemble, roots),
        logs=_logs(ensemble, roots),
        left_out=LeftOut.load(roots),
        test=TestRun.load(folder),
        scores=table,
        by_fold=by_fold,
        summary=tuple(summary),
    )


def _held_out_maps(
    ensemble: Ensemble, roots: Sequence[Path], may_lack: bool = False
) -> dict[int, EnsembleMaps]:
    if may_lack:  # searched from statistics
        here = fold_run.folds_with_maps(roots, [member.run for member in ensemble.all_members])
        if not here.issuperset(ensemble.folds):
            return {}
    return {fold: open_maps(ensemble, roots, [fold], "oof") for fold in ensemble.folds}


def _config(ensemble: Ensemble, roots: Sequence[Path]) -> FoldConfig | None:
    folders = fold_run.find(roots, ensemble.members[0].run)
    return next(iter(folders.values())).read_config() if folders else None


def write(
    folder: Path,
    data: ReportData,
    source: Source | None = None,
    searches: Mapping[str, SearchResult] | None = None,
    submitted: Mapping[str, str] | None = None,
) -> Path:
    """Write report.html into an ensemble's folder.

    Pictures of images need `source`, the data folder, and those of test images also `submitted`,
    the RLE of each. `searches` saves making them again.
    """
    for name, lines in data.logs.items():
        if not lines:
            print(f"note: {name}/{LOG} is missing: no learning curve; training again writes it")
    ensemble = data.decision.ensemble
    meta = {
        "ensemble": ensemble.name,
        "members": ", ".join(f"{m.run} folds {list(m.folds)}" for m in ensemble.members),
        "combine": ensemble.combine,
    }
    meta |= dict(data.summary)
    target = folder / REPORT
    parts = sections(data, source, searches, submitted)
    report.write_report(target, f"Ensemble {ensemble.name}", parts, meta)
    return target


def sections(
    data: ReportData,
    source: Source | None = None,
    searches: Mapping[str, SearchResult] | None = None,
    submitted: Mapping[str, str] | None = None,
) -> list[Section]:
    """Return the report's sections in order; as `write`."""
    ensemble, per_image, test = data.decision.ensemble, data.per_image, data.test
    scored = data.decision.scores
    shown = [
        Section("Scores", data.scores),
        Section("Score chart", figures.scores(scored.first, scored.first_is_honest)),
        *report_scores.sections(data, source),
        Section('How the nested cross-validated ("honest") score was computed', _method(data)),
        Section("Rule chosen for each fold", data.by_fold),
        Section("Learning curves", figures.learning_curves(data.logs)),
        Section("Thresholds", _surfaces(searches or _search_again(data))),
        Section("Dice against area", figures.dice_against_area(per_image)),
        Section("False negatives by size", figures.false_negatives_by_size(per_image)),
        Section(
            "Share of images with a mask",
            figures.share_nonempty(scored.kept, test.summary if test else None),
        ),
        Section("Mask areas", _areas_picture(per_image, test.areas if test else None)),
        Section("Folds", figures.folds(data.folds)),
    ]
    agreement = None
    if len(ensemble.members) > 1 and data.maps:
        agreement = report_images.member_agreement(data)
        if pictures := tuple(filter(None, (agreement.matrices(), agreement.votes()))):
            shown.append(Section("Member agreement", pictures))
    shown += report_certainty.sections(data, agreement)
    if source is not None:
        if data.maps:
            shown += report_images.out_of_fold(data, source)
        if submitted is not None:
            masks = report_images.on_test(submitted, source)
            shown.append(Section("Test images with a predicted mask", masks))
        shown.append(Section("Augmentations of one image", _augmented(data, source)))
    if data.left_out.lines:
        shown.append(Section("Excluded training images", list(data.left_out.lines)))
    if test is not None:
        shown += _test_problems(test)
    return shown


def _areas_picture(per_image: pd.DataFrame, on_test: np.ndarray | None) -> Picture:
    """Areas of predicted masks, out of fold beside test."""
    areas = per_image["predicted_px"].to_numpy()
    return figures.mask_areas(areas[areas > 0], on_test)


def _method(data: ReportData) -> str:
    both = data.decision.scores
    warning = "" if both.past_known else "NOT HONEST: what a member descends from is unknown. "
    selected = "No epoch was selected on labels of held-out images."
    if both.kept_selected:
        gap = both.kept.honest.dice - both.last.honest.dice
        selected = (
            "Epochs were, or may have been, selected on labels of these images: the selected "
            f"checkpoints score {gap:+.4f} against the last ones, which is the gain of the "
            "selection and its optimism."
        )
    if both.last_selected:
        selected += (
            " The last checkpoints are not free of it either: these labels stopped the training "
            "early, or selected the weights that it started from."
        )
    return (
        f"{warning}{both.kept.method} A mask is kept if at least the minimum area (px of 1024²) "
        "exceeds the detection threshold (top), and then covers what exceeds the mask threshold "
        "(bottom); with a classification threshold (label), an image whose probability does not "
        "exceed it has no mask. Rule of the submission: "
        f"{'; '.join(data.summary_lines)}. "
        f"{selected}"
    )


def _surfaces(searches: Mapping[str, SearchResult]) -> tuple:
    """The surface of each search, under its member's name where there are several."""
    named = len(searches) > 1
    return tuple(
        part
        for name, result in searches.items()
        for part in ([f"{name}:"] * named + [figures.threshold_surface(result)])
    )


def _search_again(data: ReportData) -> dict[str, SearchResult]:
    """Repeat the searches on what the thresholds stage kept, in seconds."""
    searches = zip(data.decision.searches.items(), data.statistics.searched, strict=True)
    return {
        name: search.search(stats, search.SearchOptions(how.single, how.label_swept))
        for (name, how), stats in searches
    }


def _logs(ensemble: Ensemble, roots: Sequence[Path]) -> dict[str, list[LogLine]]:
    folders = {m.run: fold_run.find(roots, m.run) for m in ensemble.members}
    # A fold that another member lacks takes no part in predicting, and may be elsewhere.
    kept = [folders[m.run][k] for m in ensemble.members for k in m.folds if k in folders[m.run]]
    return {folder.name: folder.read_log() for folder in kept}


def _augmented(data: ReportData, source: Source) -> Picture:
    """Return one image as the first member's training saw it."""
    # Here: the augmentations import torch, without which the thresholds are to start.
    from kernel_lib.stages import augmented

    if data.config is None:
        return Picture(None, "No augmentation: no fold of the first member is here.")
    return augmented.of_config(data.config, data.folds, source)


def _test_problems(test: TestRun) -> list[Section]:
    trained = [leaks.warning(test.trained_on), *test.trained_on] if test.trained_on else []
    lines = [*test.summary.warnings, *trained]
    lines += [f"empty mask, unreadable image: {name}" for name in test.unreadable]
    return [Section("Notes on the test images", lines)] if lines else []
