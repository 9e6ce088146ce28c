"""One fold's network, with its ensemble's rule and honest score, as a released model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from kernel_lib import checkpoints
from kernel_lib.artifacts.decision import Decision
from kernel_lib.artifacts.ensemble import Ensemble
from kernel_lib.artifacts.fold_run import FoldConfig, FoldRun
from kernel_lib.artifacts.lineage import Lineage
from kernel_lib.config import Experiment
from kernel_lib.errors import InputError
from kernel_lib.inference.ensemble_maps import check_predicted_by
from kernel_lib.models import networks
from kernel_lib.postprocess.nested_cv_report import NestedCVReport
from kernel_lib.released import SUFFIX, Released
from kernel_lib.stages import initial_weights


def run(
    fold_folder: Path, ensemble_folder: Path, name: str, out: Path, *, last: bool, licence: str
) -> tuple[Released, int]:
    """Write the best kept checkpoint of a fold, or its last EMA weights; return it and its bytes.

    Raises: InputError where the ensemble is of other runs than that one, since its rule and score
        would not be this network's, or a stage's output is missing or damaged.
    """
    if out.suffix != SUFFIX:
        raise InputError(f"-o {out}: a released model is a {SUFFIX} file")
    folder = _fold(fold_folder.resolve())
    config = folder.read_config()
    decision = _decision(ensemble_folder, folder, config)
    ensemble, scores = decision.ensemble, decision.scores
    report = scores.last if last else scores.kept
    selected = scores.last_selected if last else scores.kept_selected
    # All kept ones are there.
    checkpoint = folder.last if last else initial_weights.best_kept(folder)
    single = last or len(folder.kept()) == 1
    holds = scores.is_honest(selected) and single
    state, lineage = checkpoints.load(checkpoint)
    model = networks.build(config.experiment)
    model.load_state_dict(state["ema"]["model"] if "ema" in state else state["model"])
    model_file = Released(
        name=name,
        experiment=given_away(config.experiment),
        rule=report.chosen if last else decision.choice.triplet,
        gate=ensemble.gate,
        tta=config.experiment.tta,
        lineage=without_paths(lineage),
        score=score_of(ensemble, report, folder, holds),
        licence=licence,
        model=model,
    )
    return model_file, model_file.save(out)


def _fold(path: Path) -> FoldRun:
    number = path.name.removeprefix("fold")
    if not number.isdigit():
        raise InputError(f"{path} is no fold of a run: give WORK_DIR/runs/<run>/fold<k>")
    return FoldRun(path.parent.name, int(number), path)


def _decision(ensemble_folder: Path, folder: FoldRun, config: FoldConfig) -> Decision:
    """Return the decision for that fold's run alone, made on its present predictions."""
    decision = Decision.load(ensemble_folder)
    ensemble = decision.ensemble
    check_alone(decision, ensemble_folder, folder.run)
    if folder.fold not in ensemble.folds or config.folds_digest != ensemble.folds_digest:
        raise InputError(
            f"{ensemble_folder} holds no rule of {folder.path}: run the thresholds stage"
        )
    check_predicted_by(decision, [folder.path.parents[2]])
    return decision


def check_alone(decision: Decision, ensemble_folder: Path, run: str) -> None:
    """Raise InputError where a decision is not one rule, of that run alone."""
    ensemble = decision.ensemble
    if [m.run for m in ensemble.all_members] != [run] or decision.choice.triplet is None:
        raise InputError(
            f"{ensemble_folder} decides for {', '.join(m.run for m in ensemble.all_members)} "
            f"({ensemble.combine}): what is given away needs the rule of {run} alone, of the "
            f"thresholds stage with -p RUNS {run}"
        )


def without_paths(lineage: Lineage) -> Lineage:
    """Return a lineage whose ancestors are named by their files alone."""
    names = tuple(Path(name).name for name in lineage.ancestors)
    return lineage.model_copy(update={"ancestors": names})


def given_away(experiment: Experiment) -> Experiment:
    """Return an experiment without paths, which are the training machine's own.

    A file's name is enough to know what the weights were.
    """
    return experiment.model_copy(update={"weights": Path(experiment.weights).name})


def score_of(
    ensemble: Ensemble, report: NestedCVReport, folder: FoldRun, holds: bool
) -> dict[str, Any]:
    """Return the honest figures of a run's ensemble, for people who get one of its folds."""
    figures = report.to_json()
    kept = (
        "n_images", "n_nonempty", "honest", "interval", "all_empty", "share_true",
        "share_predicted", "auc_label", "auc_sum",
    )  # fmt: skip
    return {
        "what": (
            "mean dice out of fold, each image predicted by the fold that did not see it, with a "
            f"rule chosen on other folds; this network is fold {folder.fold} of "
            f"{list(ensemble.folds)}"
        ),
        # False: some ancestor's training images are unknown, labels selected an epoch, or the
        # score is of a mean of several checkpoints
        "honest_score_holds": holds,
        **{name: figures[name] for name in kept if name in figures},
    }
