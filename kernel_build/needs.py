"""What a stage with these parameters will look for, held against what is attached, at the build."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

from kernel_lib import experiment_file, plan
from kernel_lib.config import InferenceParameters, ThresholdsParameters, TrainParameters
from kernel_lib.errors import InputError
from kernel_lib.experiments import EXPERIMENTS
from kernel_lib.kaggle.paths import WEIGHT_ENDINGS

_PARAMETERS = {
    "train": TrainParameters,
    "thresholds": ThresholdsParameters,
    "inference": InferenceParameters,
}


def unmet(
    stage: str, values: Mapping[str, object], meta: Mapping, offline: Mapping | None = None
) -> Iterator[str]:
    """What the kernel will miss on Kaggle, with its mend; `meta` is its metadata.

    `offline` is the manifest of the data set that `build_kernel.py offline` wrote, where one is
    attached; what other data sets and models hold is not known, and they are trusted. Raises
    InputError for parameters that the stage would refuse, an unknown row among them.
    """
    parameters = _PARAMETERS[stage].from_namespace(values)
    views = getattr(parameters, "tta", None)
    if views is not None:
        from kernel_lib.inference import tta  # torch's two seconds, and only where it is given

        tta.views(views)
    if not isinstance(parameters, TrainParameters):
        return
    if parameters.fold is not None and parameters.fold >= parameters.n_folds:
        raise InputError(
            f"FOLD {parameters.fold} is not below N_FOLDS {parameters.n_folds}; folds count from 0"
        )
    planned = plan.plan(parameters, EXPERIMENTS)
    if experiment_file.is_json(parameters.experiment):  # ours are tested
        from kernel_lib.stages import train

        for one in (*planned.needs(), planned):
            train.check(one)
    trained = [*(planned.needs() if parameters.with_parents else ()), planned]
    # Without the competition the first data set holds the images.
    attached = meta["dataset_sources"][0 if meta["competition_sources"] else 1 :]
    unknown = [name for name in attached if not offline or name != offline["dataset"]]
    models = meta["model_sources"]
    for encoder in sorted(
        {one.experiment.encoder for one in trained if one.experiment.weights == "imagenet"}
    ):
        if unknown or models or meta["enable_internet"] or _holds(offline, encoder):
            continue
        lacks = f"{offline['dataset']} holds none, and they" if offline else "they"
        yield (
            f"needs ImageNet weights of {encoder}: {lacks} cannot be downloaded without internet; "
            "attach them with --offline FOLDER, --dataset OWNER/SLUG or --model, or train from "
            "scratch with -p WEIGHTS none"
        )
    if not (parameters.with_parents or meta["kernel_sources"] or unknown or models):
        for one in planned.needs():
            yield f"needs the run {one.run}: attach its kernel with --kernel-source OWNER/SLUG"
    if any(one.experiment.images == "nih" for one in trained) and not unknown:
        yield "learns from NIH ChestX-ray14: attach a data set of it with --dataset OWNER/SLUG"


def _holds(offline: Mapping | None, encoder: str) -> bool:
    """Whether a data set of ours holds weights by an encoder's name."""
    pattern = rf"{re.escape(encoder)}([-._].*)?"
    names = offline["files"] if offline else ()
    return any(n.endswith(WEIGHT_ENDINGS) and re.fullmatch(pattern, n) for n in names)
