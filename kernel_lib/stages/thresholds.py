"""Out-of-fold maps → every rule searched → the rule, and an honest score of it."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from kernel_lib import storage
from kernel_lib.artifacts import fold_run, folds_file
from kernel_lib.artifacts.decision import Decision, Scores, Searched
from kernel_lib.artifacts.ensemble import Ensemble
from kernel_lib.artifacts.filenames import (
    DISTANCES,
    ENSEMBLES,
    REPORT,
    SEARCH_KEPT,
    SEARCH_LAST,
    TEST_RUN,
    THRESHOLDS,
)
from kernel_lib.artifacts.oof import OofStatistics, save_distances, save_per_image
from kernel_lib.artifacts.search_record import SearchRecord
from kernel_lib.config import NAME, ThresholdsParameters
from kernel_lib.data import table
from kernel_lib.errors import InputError
from kernel_lib.inference import from_statistics, recipes
from kernel_lib.inference.ensemble_maps import one_hot
from kernel_lib.inference.from_statistics import FromStatistics
from kernel_lib.inference.out_of_fold import OutOfFold
from kernel_lib.inference.recipes import Recipe
from kernel_lib.kaggle import paths, quota
from kernel_lib.notebook import Signals
from kernel_lib.postprocess import calibration, nested_cv
from kernel_lib.postprocess.calibration import Logistic
from kernel_lib.postprocess.metrics import Resampler
from kernel_lib.postprocess.nested_cv_report import NestedCVReport
from kernel_lib.postprocess.search import SearchResult
from kernel_lib.postprocess.strategies import Choice, Fitted
from kernel_lib.stages import report, scores
from kernel_lib.stages.report import ReportData


@dataclass(frozen=True)
class ThresholdsResult:
    """The search, its honest report, and the folder that keeps them."""

    folder: Path
    decision: Decision
    searches: dict[str, SearchResult]  # of the ensemble's map, or of each member's
    data: ReportData

    @property
    def per_image(self) -> pd.DataFrame:
        """The held-out images, as `load_per_image` returns them."""
        return self.data.per_image

    @property
    def ensemble(self) -> Ensemble:
        """The ensemble as it goes on to the test images."""
        return self.decision.ensemble

    @property
    def choice(self) -> Choice:
        return self.decision.choice

    @property
    def scores(self) -> Scores:
        return self.decision.scores

    @property
    def honest(self) -> NestedCVReport:
        """The score of the kept checkpoints."""
        return self.scores.kept

    @property
    def last(self) -> NestedCVReport:
        """The score of the last EMA weights."""
        return self.scores.last

    @property
    def past_known(self) -> bool:
        """Whether no member may have seen these images."""
        return self.scores.past_known

    @property
    def search(self) -> SearchResult:
        """The search; where members have rules of their own, the first one's."""
        return next(iter(self.searches.values()))

    def by_part(self) -> pd.DataFrame:
        """What was chosen for each fold or part without it, and its score there."""
        return scores.chosen_by_part(self.decision.candidates, self.honest)

    def __str__(self) -> str:
        lines = [
            scores.as_text(scores.table(self.scores)),
            *scores.summary_lines(self.ensemble, self.choice, self.scores),
            f"written: {self.folder / THRESHOLDS}",
            f"report: {self.folder / REPORT}",
        ]
        return "\n".join(lines)


def run(parameters: ThresholdsParameters) -> ThresholdsResult:
    """Gather the runs' held-out maps, search every rule exactly, score it honestly.

    Needs neither GPU nor images, and no maps where `statistics` computed what a fixed mean needs.
    Raises InputError where a member saw an image that it would be scored on, where the train stage
    has not finished a fold, and where a recipe's run is missing.
    """
    work = paths.work_dir(parameters.work_dir)
    storage.check_writable(work, "WORK_DIR")
    roots = paths.artefact_roots(work)
    source = table.discover(paths.data_dir(parameters.data_dir)) if parameters.data_dir else None
    recipe, name = asked_recipe(parameters, roots)
    allow = {"allow_unknown_past": parameters.allow_unknown_past}
    kept, last = from_statistics.predictions(roots, recipe, name, **allow)
    ensemble = kept.ensemble
    fold_table = folds_file.find(roots, ensemble.folds_digest)
    folder = work / ENSEMBLES / ensemble.name
    with Signals().caught(), storage.folder_lock(folder):
        fitted, report_kept = _fit(kept, recipe, parameters, folder / SEARCH_KEPT)
        _, report_last = _fit(last, recipe, parameters, folder / SEARCH_LAST)
        of_images = None if set(ensemble.folds) == set(fold_table["fold"]) else len(fold_table)
        past_known = kept.past_known and last.past_known
        selected = (kept.selected, last.selected)
        both = Scores(report_kept, report_last, past_known, *selected, of_images)
        made_of = kept.predicted_by | last.predicted_by
        del last  # its statistics, 25 MB a member for 12,047 images
        decision, searches = _decision(kept, fitted, both, made_of)
        _save(folder, decision, searches, kept)
        data = report.load(folder, roots)
        report.write(folder, data, source, searches)
    result = ThresholdsResult(folder, decision, searches, data)
    print(result)
    quota.say_hours_left(work)
    return result


def asked_recipe(
    parameters: ThresholdsParameters, roots: Sequence[Path]
) -> tuple[Recipe, str | None]:
    """What to gather, and the ensemble's name, None where the runs' names are to be joined.

    ENSEMBLE names a recipe, shipped or in a file, unless RUNS names the members.
    """
    given = parameters.ensemble
    check(parameters)
    if given is not None and given.endswith(".json"):
        name, recipe = Path(given).stem, recipes.read(paths.from_root(given))
    elif given in recipes.shipped() and parameters.runs is None:
        name, recipe = given, recipes.read(recipes.SHIPPED / f"{given}.json")
    elif brought := from_statistics.recipe_of(roots, parameters.runs, given):
        name, recipe = brought
    else:
        name, recipe = given, recipes.of_runs(fold_run.chosen_runs(roots, parameters.runs))
        if given is not None and parameters.runs is None:
            print(f"note: {given} is no shipped recipe ({', '.join(recipes.shipped())}): it names "
                  f"the ensemble of {recipe.members[0].name}")  # fmt: skip
    return _with_overrides(recipe, parameters), name


def check(parameters: ThresholdsParameters) -> None:
    """Refuse members and a way to combine them that do not fit together, whatever runs exist."""
    given = parameters.ensemble
    if given is not None and given.endswith(".json"):
        if parameters.runs is not None or not re.match(NAME, Path(given).stem):
            raise InputError(
                f"ENSEMBLE {given} is a recipe's file: it names the members, so leave RUNS out, "
                "and its name, of letters, digits and _.+- alone, is the ensemble's"
            )
    elif parameters.runs is not None:
        _with_overrides(recipes.of_runs(fold_run.parse_runs(parameters.runs)), parameters)
    elif given in recipes.shipped():
        _with_overrides(recipes.read(recipes.SHIPPED / f"{given}.json"), parameters)


def _with_overrides(recipe: Recipe, parameters: ThresholdsParameters) -> Recipe:
    overrides = {k: getattr(parameters, k) for k in ("combine", "choose", "at_least")}
    overrides["gate"] = None if parameters.gate == "auto" else parameters.gate
    return recipe.differing(**overrides)


def _fit(
    part: OutOfFold, recipe: Recipe, parameters: ThresholdsParameters, record_path: Path
) -> tuple[Fitted, NestedCVReport]:
    """Return what is chosen on all images, and the honest score of choosing so."""
    record = None
    if recipe.choose == "greedy" or part.ensemble.by_members:
        record = SearchRecord(record_path, _inputs(part, parameters))
        if record.n_found:
            print(f"note: {record.n_found} searches of an earlier, stopped call are not repeated")
    groups = part.table["group"]
    with part.packed() if recipe.choose == "greedy" else nullcontext():
        return nested_cv.score_strategy(
            recipes.make_strategy(part, recipe, single=parameters.single, record=record),
            part.stats,
            part.table["image_id"].tolist(),
            part.table["fold"].tolist(),
            groups.tolist() if (groups != "").any() else None,
            Resampler(n_bootstrap=parameters.bootstrap),
            progress=True,
        )


def _inputs(part: OutOfFold, parameters: ThresholdsParameters) -> list[Any]:
    """Return all that the scores of a search depend on, as JSON."""
    images = part.table[["image_id", "fold"]].to_csv(index=False)
    return [part.ensemble.to_json(), part.predicted_by, parameters.single, images]


def _decision(
    part: OutOfFold, fitted: Fitted, both: Scores, made_of: Mapping[str, Any]
) -> tuple[Decision, dict[str, SearchResult]]:
    """Return what was decided, and each search by its member's, or the ensemble's, name."""
    candidates, weights = part.ensemble, fitted.choice.weights
    members = candidates.members if candidates.by_members else ()
    names = [m.run for m in members] or [candidates.name]
    searches = dict(zip(names, fitted.searches, strict=True))
    decision = Decision(
        ensemble=candidates if weights is None else candidates.taking(weights),
        candidates=candidates,
        choice=fitted.choice,
        scores=both,
        searches={k: Searched(result.single, result.label_swept) for k, result in searches.items()},
        predicted_by=made_of,
        calibration=_calibration(part, both.kept.per_image, weights),
        from_statistics=isinstance(part, FromStatistics),
    )
    return decision, searches


def _calibration(
    part: OutOfFold, per_image: pd.DataFrame, weights: Sequence[int] | None
) -> Logistic | None:
    """Return the image-level probability of the ensemble as it goes on to the test images."""
    stats = part.statistics(weights or part.ensemble.weights)
    parts, groups = per_image["part"].to_numpy(), per_image["group"].to_numpy()
    return calibration.best_curve(stats, stats.true_px > 0, parts, groups)


def _save(
    folder: Path, decision: Decision, searches: Mapping[str, SearchResult], part: OutOfFold
) -> None:
    """Save what the searches saw and scored, and last of all the decision."""
    candidates, n = decision.candidates, len(searches)
    weightings = [decision.choice.weights or candidates.weights]
    if candidates.by_members:
        weightings = [one_hot(n, at) for at in range(n)]
    per_image, views = decision.scores.kept.per_image, part.view_disagreements()
    if not np.isnan(views).all():
        per_image = per_image.assign(view_disagreement=views)
    # What another search wrote goes first, and thresholds.json, last by name, comes last.
    stale = (THRESHOLDS, TEST_RUN, DISTANCES, SEARCH_KEPT, SEARCH_LAST)
    with storage.replace_files(folder, remove=stale) as staging:
        save_per_image(staging, per_image)
        if not decision.from_statistics:
            save_distances(staging, part.distances(decision.scores.kept))
        seen = tuple(part.gated(weights) for weights in weightings)
        OofStatistics(tuple(part.table["image_id"]), seen).save(staging)
        decision.save(staging, searches)
