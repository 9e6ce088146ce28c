"""Out-of-fold maps → every rule searched → the rule, and an honest score of it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from kernel_lib import storage
from kernel_lib.artifacts import fold_run
from kernel_lib.artifacts.ensemble import Ensemble, Scores
from kernel_lib.config import NAME, ThresholdsParameters
from kernel_lib.data import folds, table
from kernel_lib.errors import InputError
from kernel_lib.inference import members, recipes, selection
from kernel_lib.inference.ensemble_maps import alone
from kernel_lib.inference.out_of_fold import OutOfFold, out_of_fold, predicted_by
from kernel_lib.inference.recipes import Recipe
from kernel_lib.kaggle import paths
from kernel_lib.postprocess import nested_cv, search
from kernel_lib.postprocess.bootstrap import Resampler
from kernel_lib.postprocess.nested_cv_report import HonestReport
from kernel_lib.postprocess.strategies import Choice, Fitted
from kernel_lib.signals import Signals
from kernel_lib.stages import report, scores, session_budget


@dataclass(frozen=True)
class ThresholdsResult:
    """The search, its honest report, and the folder that keeps them."""

    folder: Path
    ensemble: Ensemble  # as it goes on to the test images
    among: Ensemble  # the members among which greedy chose; else the same
    choice: Choice
    searches: dict[str, search.SearchResult]  # of the ensemble's map, or of each member's
    scores: Scores

    @property
    def honest(self) -> HonestReport:
        """The score of the kept checkpoints."""
        return self.scores.kept

    @property
    def last(self) -> HonestReport:
        """The score of the last EMA weights."""
        return self.scores.last

    @property
    def past_known(self) -> bool:
        """Whether no member may have seen these images."""
        return self.scores.past_known

    @property
    def search(self) -> search.SearchResult:
        """The search; where members have rules of their own, the first one's."""
        return next(iter(self.searches.values()))

    def by_part(self) -> pd.DataFrame:
        """What was chosen for each fold or part without it, and its score there."""
        return scores.chosen_by_part(self.among, self.honest)

    def __str__(self) -> str:
        lines = [
            scores.as_text(scores.table(self.scores)),
            *scores.summary_lines(self.ensemble, self.choice, self.scores),
            f"written: {self.folder / 'thresholds.json'}",
            f"report: {self.folder / 'report.html'}",
        ]
        return "\n".join(lines)


def run(parameters: ThresholdsParameters) -> ThresholdsResult:
    """Gather the runs' held-out maps, search every rule exactly, score it honestly.

    Needs neither GPU nor images. Raises InputError where a member saw an image that it would be
    scored on, where the train stage has not finished a fold, and where a recipe's run is missing.
    """
    work = paths.work_dir(parameters.work_dir)
    storage.check_writable(work, "WORK_DIR")
    roots = paths.artefact_roots(work)
    source = table.discover(paths.data_dir(parameters.data_dir)) if parameters.data_dir else None
    recipe, name = _recipe(parameters, roots)
    ensemble = members.gather(roots, recipe, name)
    drawn = folds.find(roots, ensemble.folds_digest)
    allow = {"allow_unknown_past": parameters.allow_unknown_past}
    kept = out_of_fold(ensemble, roots, drawn, **allow)
    last = out_of_fold(ensemble, roots, drawn, last=True, **allow)
    folder = work / "ensembles" / ensemble.name
    with Signals().caught(), storage.folder_lock(folder):
        of_images = None if set(ensemble.folds) == set(drawn["fold"]) else len(drawn)
        result = _search(folder, parameters, recipe, kept, last, of_images)
        report.write(folder, roots, source=source, searches=result.searches)
    print(result)
    session_budget.say(work)
    return result


def _search(
    folder: Path,
    parameters: ThresholdsParameters,
    recipe: Recipe,
    kept: OutOfFold,
    last: OutOfFold,
    of_images: int | None,
) -> ThresholdsResult:
    found, scored = _honest(kept, recipe, parameters, progress=True)
    _, scored_last = _honest(last, recipe, parameters)
    past_known = kept.honest and last.honest
    both = Scores(scored, scored_last, past_known, kept.selected, last.selected, of_images)
    searches = _write(folder, kept, found, both, predicted_by([kept, last]))
    return ThresholdsResult(
        folder=folder,
        ensemble=Ensemble.load(folder),
        among=kept.ensemble,
        choice=found.choice,
        searches=searches,
        scores=both,
    )


def _recipe(parameters: ThresholdsParameters, roots: Sequence[Path]) -> tuple[Recipe, str | None]:
    """What to gather, and the ensemble's name, None where the runs' names are to be joined.

    ENSEMBLE names a recipe, shipped or in a file, unless RUNS names the members.
    """
    given = parameters.ensemble
    check(parameters)
    if given is not None and given.endswith(".json"):
        name, found = Path(given).stem, recipes.read(paths.from_root(given))
    elif given in recipes.shipped() and parameters.runs is None:
        name, found = given, recipes.read(recipes.SHIPPED / f"{given}.json")
    else:
        name, found = given, recipes.of_runs(fold_run.named(roots, parameters.runs))
        if given is not None and parameters.runs is None:
            print(f"note: {given} is no shipped recipe ({', '.join(recipes.shipped())}): it names "
                  f"the ensemble of {found.members[0].name}")  # fmt: skip
    return _as_asked(found, parameters), name


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
        _as_asked(recipes.of_runs(fold_run.listed(parameters.runs)), parameters)
    elif given in recipes.shipped():
        _as_asked(recipes.read(recipes.SHIPPED / f"{given}.json"), parameters)


def _as_asked(recipe: Recipe, parameters: ThresholdsParameters) -> Recipe:
    asked = {k: getattr(parameters, k) for k in ("combine", "choose", "at_least")}
    asked["gate"] = None if parameters.gate == "auto" else parameters.gate
    return recipe.differing(**asked)


def _honest(
    part: OutOfFold, recipe: Recipe, parameters: ThresholdsParameters, progress: bool = False
) -> tuple[Fitted, nested_cv.HonestReport]:
    """What is chosen on all images, and the honest score of choosing so."""
    strategy = selection.strategy_of(part, recipe, single=parameters.single)
    found = strategy.fit(np.arange(len(part.table)), progress)
    groups = part.table["group"]
    return found, nested_cv.of_strategy(
        strategy,
        found,
        part.stats,
        part.table["image_id"].tolist(),
        part.table["fold"].tolist(),
        groups.tolist() if (groups != "").any() else None,
        Resampler(n_bootstrap=parameters.bootstrap),
    )


def _write(
    folder: Path,
    part: OutOfFold,
    found: Fitted,
    scored: Scores,
    made_of: dict[str, Any],
) -> dict[str, search.SearchResult]:
    """members.json, what the searches saw and scored, and last of all the rule; the searches."""
    ensemble, weights = part.ensemble, found.choice.weights
    weightings = [weights or ensemble.weights]
    names, document = [ensemble.name], {}
    if ensemble.by_members:
        names = [m.run for m in ensemble.members]
        weightings = [alone(len(names), at) for at in range(len(names))]
        rules = zip(names, found.choice.rules, strict=True)
        document["rules"] = {name: rule.to_json() for name, rule in rules}
        document["at_least"] = found.choice.at_least
    else:
        document["rule"] = found.choice.triplet.to_json()
    searches = dict(zip(names, found.searches, strict=True))
    told = {name: one.to_json() for name, one in searches.items()}
    document |= {"searches": told} if ensemble.by_members else {"search": told[ensemble.name]}
    if weights is not None:
        among = [m.model_dump(mode="json") for m in ensemble.members]
        document["selection"] = {"choose": "greedy", "candidates": among, "weights": list(weights)}
    if ensemble.gate != "none":
        by = [m.run for m in ensemble.gate_members or ensemble.members]
        document["gate"] = {"by": ensemble.gate, "runs": by}
    final = ensemble if weights is None else ensemble.taking(weights)
    document |= {
        "past_known": scored.past_known,
        "epochs_selected": {"honest": scored.kept_selected, "last": scored.last_selected},
        "honest": scored.kept.to_json(),
        "last": scored.last.to_json(),
        "ensemble": final.to_json(),
        "predicted_by": made_of,
    }
    if scored.of_images is not None:
        document["of_images"] = scored.of_images
    # What another search wrote goes first, and thresholds.json, last by name, comes last.
    with storage.replace_files(folder, without=("thresholds.json", "test.json")) as aside:
        final.save(aside)
        with storage.atomic_write(aside / "oof.csv", "w", encoding="utf-8", newline="") as file:
            scored.kept.per_image.to_csv(file, index=False)
        saw = [part.gated(some) for some in weightings]
        report.save_statistics(aside, part.table["image_id"], saw)
        storage.write_json(aside / "thresholds.json", document)
    return searches
