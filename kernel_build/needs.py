"""What a stage with these parameters will look for, held against what is attached, at the build."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from kernel_lib import plan
from kernel_lib.config import InferenceParameters, ThresholdsParameters, TrainParameters
from kernel_lib.experiments import EXPERIMENTS

_PARAMETERS = {
    "train": TrainParameters,
    "thresholds": ThresholdsParameters,
    "inference": InferenceParameters,
}


def unmet(stage: str, values: Mapping[str, object], meta: Mapping) -> Iterator[str]:
    """What the kernel will miss on Kaggle, with its mend; `meta` is its metadata.

    Raises InputError for parameters that the stage would refuse, an unknown row among them.
    """
    parameters = _PARAMETERS[stage].from_namespace(values)
    if not isinstance(parameters, TrainParameters):
        return
    planned = plan.plan(parameters, EXPERIMENTS)
    trained = [*(planned.needs() if parameters.with_parents else ()), planned]
    weights = {one.experiment.weights for one in trained}
    if "imagenet" in weights and not (meta["dataset_sources"] or meta["enable_internet"]):
        yield (
            "ImageNet weights cannot be downloaded without internet: attach them with --offline "
            f"FOLDER or --dataset OWNER/SLUG ({planned.experiment.encoder}), or train from scratch "
            "with -p WEIGHTS none"
        )
    if not (parameters.with_parents or meta["kernel_sources"] or meta["dataset_sources"]):
        for one in planned.needs():
            yield f"needs the run {one.run}: attach its kernel with --kernel-source OWNER/SLUG"
    if any(one.experiment.images == "nih" for one in trained) and not meta["dataset_sources"]:
        yield "learns from NIH ChestX-ray14: attach a data set of it with --dataset OWNER/SLUG"
