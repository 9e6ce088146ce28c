"""Out-of-fold predictions of which only each image's histograms are here, and not the maps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from kernel_lib.artifacts import fold_run, fold_statistics, folds_file
from kernel_lib.artifacts.ensemble import Ensemble, Member
from kernel_lib.artifacts.fold_statistics import KINDS, FoldStatistics
from kernel_lib.errors import InputError
from kernel_lib.inference import recipes
from kernel_lib.inference.ensemble_maps import trained_again
from kernel_lib.inference.out_of_fold import OutOfFold, out_of_fold
from kernel_lib.inference.recipes import Recipe
from kernel_lib.postprocess.histograms import Stacked

COMPUTE = "python -m kernel_lib statistics"


@dataclass(frozen=True, eq=False)
class FromStatistics(OutOfFold):
    """Predictions of which only the statistics under the ensemble's own weights are known."""

    checkpoints: Mapping[str, Any]
    views: np.ndarray  # (N,) how much each image's views differ, 0–1

    @property
    def predicted_by(self) -> dict[str, Any]:
        return dict(self.checkpoints)

    def view_disagreements(self) -> np.ndarray:
        return self.views


def predictions(
    roots: Sequence[Path], recipe: Recipe, name: str | None, *, allow_unknown_past: bool = False
) -> tuple[OutOfFold, OutOfFold]:
    """Return the predictions by the kept and by the last checkpoints of a recipe's ensemble.

    From its members' maps where these cover all folds with statistics, else from the statistics.
    Raises: InputError as `build_ensemble` and `out_of_fold` do; for statistics of another ensemble
        or of weights that changed; where neither covers the folds of the other; and where the
        recipe needs maps.
    """
    name = name or "+".join(member.name for member in recipe.members)
    found = fold_statistics.find(roots, name)
    runs = [member.name for member in recipe.members]
    if found and recipe.gate in ("auto", "label"):
        runs += [m.run for m in next(iter(found.values())).origin.ensemble.gate_members]
    mapped = fold_run.folds_with_maps(roots, runs)
    if mapped >= set(found):
        ensemble = recipes.build_ensemble(roots, recipe, name)
        table = folds_file.find(roots, ensemble.folds_digest)
        allow = {"allow_unknown_past": allow_unknown_past}
        kept = out_of_fold(ensemble, roots, table, **allow)
        return kept, out_of_fold(ensemble, roots, table, last=True, **allow)
    refuse_strategy(recipe, f"{name} has statistics of folds whose maps are not here")
    if apart := mapped - set(found):
        raise InputError(
            f"of {name}, folds {sorted(apart)} have maps here and no statistics, folds "
            f"{sorted(set(found) - mapped)} statistics and no maps: run `{COMPUTE}` here too, with "
            "the same members, or gather the runs' folders"
        )
    ensemble = _ensemble(found, recipe, name)
    table = folds_file.find(roots, ensemble.folds_digest)
    kept, last = (_of_kind(kind, ensemble, found, table) for kind in KINDS)
    if changed := trained_again(kept.predicted_by | last.predicted_by, ensemble, roots):
        raise InputError(
            f"{changed} was trained again after the statistics of {name}: run `{COMPUTE}` again"
        )
    if not kept.past_known and not allow_unknown_past:
        raise InputError(
            f"what a member of {name} descends from may have seen these images: its score would "
            "not be honest; -p ALLOW_UNKNOWN_PAST True prints it, marked NOT HONEST"
        )
    print(
        f"note: {name} is scored from statistics of its folds {list(found)}: without the maps the "
        "report has no radiographs with masks, no agreement of members and no distances of "
        "boundaries"
    )
    return kept, last


def recipe_of(
    roots: Sequence[Path], runs: str | None, name: str | None
) -> tuple[str, Recipe] | None:
    """Return the name and recipe of the statistics that RUNS or ENSEMBLE asks for, or None.

    If neither is given and there are no runs, these are the only statistics there are.
    """
    names = fold_statistics.names(roots)
    if runs is not None:
        given = fold_run.parse_runs(runs)
        name = name or "+".join(given)
        return (name, recipes.of_runs(given)) if name in names else None
    if name is None and not fold_run.run_names(roots) and names:
        if len(names) > 1:
            raise InputError(
                f"there are statistics of several ensembles and no runs; name one with "
                f"-p ENSEMBLE: {', '.join(names)}"
            )
        (name,) = names
    if name not in names:
        return None
    origin = next(iter(fold_statistics.find(roots, name).values())).origin
    members = [{"run": m.run, "weight": m.weight} for m in origin.ensemble.members]
    return name, Recipe.model_validate({"members": members})


def refuse_strategy(recipe: Recipe, why: str) -> None:
    """Refuse a recipe that needs the maps; COMBINE vote only votes on test images."""
    asked = f"CHOOSE {recipe.choose}" if recipe.choose != "none" else f"COMBINE {recipe.combine}"
    if recipe.choose != "none" or recipe.combine not in ("mean", "vote"):
        raise InputError(
            f"{asked} needs the maps of the held-out images, and {why}: one run, and COMBINE mean "
            "or vote with CHOOSE none, work from statistics; for the others bring the runs' "
            "folders with their maps, `python -m kernel_lib gather FOLDER … --into WORK_DIR`"
        )


def _ensemble(found: Mapping[int, FoldStatistics], recipe: Recipe, name: str) -> Ensemble:
    """Return the recipe's ensemble of these folds; InputError unless they are of its maps."""
    origin = next(iter(found.values())).origin
    brought = {m.run: m.weight for m in origin.ensemble.members}
    if (asked := {m.name: m.weight for m in recipe.members}) != brought:
        shown = [", ".join(f"{run} × {w:g}" for run, w in of.items()) for of in (brought, asked)]
        raise InputError(
            f"the statistics of {name} are of {shown[0]}, not of {shown[1]}: run `{COMPUTE}` with "
            "those members and weights where the maps are, or gather the runs' folders"
        )
    experiments = {c.run: c.experiment for c in origin.configs if c.run in brought}
    gate, gate_runs = recipes.resolved_gate(recipe.gate, experiments)
    gated_by = tuple(m.run for m in origin.ensemble.gate_members)
    if gate == "label" and gate_runs != gated_by:
        raise InputError(
            f"the statistics of {name} have no label of {', '.join(gate_runs)}: run `{COMPUTE}` "
            "with -p GATE label where the maps are, or give -p GATE sum or -p GATE none here"
        )
    folds = tuple(found)
    members = tuple(m.model_copy(update={"folds": folds}) for m in origin.ensemble.members)
    return Ensemble(
        name=name,
        members=members,
        combine=recipe.combine,
        gate=gate,
        gate_members=tuple(Member(run=run, folds=folds) for run in gate_runs),
        folds_digest=origin.ensemble.folds_digest,
    )


def _of_kind(
    kind: str, ensemble: Ensemble, found: Mapping[int, FoldStatistics], table: pd.DataFrame
) -> FromStatistics:
    parts, stats, views = [], [], []
    for fold, each in found.items():
        rows = table[(table["fold"] == fold) & table["image_id"].isin(each.image_ids)]
        order = pd.Index(each.image_ids).get_indexer(rows["image_id"])
        of_fold = each.stacked(kind, ensemble.gate).take(order)
        same = len(rows) == len(each.image_ids)
        same &= (of_fold.n_px == rows["height"] * rows["width"]).all()
        if not same or (of_fold.true_px != rows["area_px"]).any():
            raise InputError(
                f"the statistics of fold {fold} of {ensemble.name} are of other images or labels "
                f"than folds.csv: run `{COMPUTE}` again, with this folds.csv"
            )
        parts.append(rows)
        stats.append(of_fold)
        views.append(each.arrays["view_disagreement"][order])
    origins = [each.origin for each in found.values()]
    part = FromStatistics(
        ensemble,
        pd.concat(parts, ignore_index=True),
        ensemble_maps={},
        past_known=all(origin.past_known for origin in origins),
        selected=any(origin.selected[kind] for origin in origins),
        checkpoints={  # names are <run>/fold<k>/<file>
            name: by
            for origin in origins
            for name, by in origin.predicted_by[kind].items()
            if name.split("/")[0] in {member.run for member in ensemble.all_members}
        },
        views=np.concatenate(views),
    )
    names = [column.name for column in fields(Stacked)]
    columns = ([getattr(of_fold, name) for of_fold in stats] for name in names)
    part.remember(ensemble.weights, Stacked(*map(np.concatenate, columns)))
    return part
