"""Find at the build what a stage would refuse, or miss, on Kaggle."""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterator, Mapping
from pathlib import PurePosixPath

from kernel_build import accelerators
from kernel_lib.artifacts import fold_run
from kernel_lib.config import Parameters, TrainParameters
from kernel_lib.errors import InputError
from kernel_lib.experiment_file import STARTS
from kernel_lib.experiments import EXPERIMENTS
from kernel_lib.kaggle.paths import INPUT, WEIGHT_ENDINGS, WORKING
from kernel_lib.plan import RUN_NAME, TrainPlan, plan_training
from kernel_lib.registry import nearest
from kernel_lib.stages.table import STAGES

_CHECKED: set[str] = set()  # experiments: a plan has many kernels of one, seconds each to check
_READ = ("data_dir", "groups", "weights_dir", "nih_dir", "sample")  # parameters that are paths


def resolve(stage: str, values: Mapping[str, object]) -> tuple[TrainPlan, ...]:
    """Return the runs that a train kernel trains, the wanted one last; of another stage none.

    Raises: InputError for parameters that the stage refuses before it reads data, and for a path
        that does not exist on Kaggle.
    """
    kind = STAGES[stage].parameters
    parameters = kind.from_namespace(values)
    if parameters == kind():  # the defaults are tested, and a stage takes seconds to import
        return (plan_training(parameters, EXPERIMENTS),) if STAGES[stage].per_fold else ()
    if isinstance(parameters, TrainParameters):
        return resolve_training(parameters)
    _check_paths(parameters)
    STAGES[stage].module.check(parameters)
    names = getattr(parameters, "runs", None)
    for name in fold_run.parse_runs(names) if names else ():
        seeded = nearest(name, (f"{experiment}_seed3456" for experiment in EXPERIMENTS))
        _check_run(f"RUNS: {name}", name, seeded)
    return ()


def resolve_training(parameters: TrainParameters) -> tuple[TrainPlan, ...]:
    """Return the runs that a training with these parameters trains, as `resolve` does."""
    from kernel_lib.stages import train

    _check_paths(parameters)
    plans, _ = train.resolve(parameters)
    for each in plans:
        _check_weights(each)
        key = each.experiment.model_dump_json() + str(parameters.weights_are)
        if key not in _CHECKED:
            train.check(each)
            _CHECKED.add(key)
    return plans


def unmet(
    stage: str, values: Mapping[str, object], meta: Mapping, offline: Mapping | None = None
) -> Iterator[str]:
    """Yield what the kernel will miss on Kaggle, with its fix.

    Args:
        meta: Its metadata.
        offline: The manifest of an attached data set that `build_kernel.py offline` wrote. The
            contents of other data sets and of models are unknown, and are trusted.

    Raises: InputError as `resolve` does.
    """
    trained = resolve(stage, values)
    if not trained:
        return
    # Without the competition the first data set holds the images.
    attached = meta["dataset_sources"][0 if meta["competition_sources"] else 1 :]
    unknown = [name for name in attached if not offline or name != offline["dataset"]]
    unknown += meta["model_sources"]
    experiments = [each.experiment for each in trained]
    for encoder in sorted({e.encoder for e in experiments if e.weights == "imagenet"}):
        if unknown or meta["enable_internet"] or _holds(offline, encoder):
            continue
        _check_published(encoder)
        lacks = f"{offline['dataset']} holds none, and they" if offline else "they"
        yield (
            f"needs ImageNet weights of {encoder}: {lacks} cannot be downloaded without internet; "
            "attach them with --offline FOLDER, --dataset OWNER/SLUG or --model, or train from "
            "scratch with -p WEIGHTS none"
        )
    if not (meta["kernel_sources"] or unknown):
        own, wanted = {each.run for each in trained}, trained[-1]
        if wanted.parent and wanted.parent.run not in own:
            raise InputError(
                f"{wanted.run} starts from the run {wanted.parent.run}, and no kernel with it is "
                "attached: give --kernel-source OWNER/SLUG, or -p WITH_PARENTS True"
            )
        if wanted.gate and wanted.gate.run not in own:
            yield (
                f"the thresholds will need the run {wanted.gate.run}, which gates these masks: "
                "train it too, and attach its kernel there"
            )
    if any(e.images == "nih" for e in experiments) and not unknown:
        yield "learns from NIH ChestX-ray14: attach a data set of it with --dataset OWNER/SLUG"
    accelerator = accelerators.ACCELERATORS[meta.get("machine_shape") or accelerators.DEFAULT]
    for plan in trained:
        yield from _too_small(accelerator, plan)


def _too_small(accelerator: accelerators.Accelerator, plan: TrainPlan) -> Iterator[str]:
    """Yield that a training does not fit the memory of a GPU, where that is known."""
    processes = plan.parameters.processes or accelerator.gpus
    needed_mb = accelerators.training_mb(plan.experiment, processes)
    if needed_mb is None or plan.parameters.precision == "float32":  # measured in bfloat16
        return
    source = "scaled by pixels and batch from a measurement at 512 px"
    if text := accelerators.too_small(accelerator, plan.experiment, needed_mb, source):
        yield text


def _check_paths(parameters: Parameters) -> None:
    """Refuse a file or folder to read where Kaggle mounts nothing."""
    for name in _READ:
        _check_path(name.upper(), getattr(parameters, name, None))
    recipe = getattr(parameters, "ensemble", None) or ""
    _check_path("ENSEMBLE", recipe if recipe.endswith(".json") else None)


def _check_path(name: str, value: str | None) -> None:
    if value is None:
        return
    place = posixpath.normpath(posixpath.join(WORKING.as_posix(), value))
    if not PurePosixPath(place).is_relative_to(INPUT.as_posix()):
        raise InputError(
            f"{name} {value} is not there on Kaggle, where inputs lie below {INPUT}: attach it "
            f"with --data or --dataset OWNER/SLUG, and give its path there, or leave {name} out"
        )


def _check_weights(plan: TrainPlan) -> None:
    """Refuse WEIGHTS that cannot be a run, a file or an experiment."""
    name = plan.experiment.weights
    if plan.parent is not None or name in STARTS:
        return
    if name.endswith(WEIGHT_ENDINGS):
        _check_path("WEIGHTS", name)
    else:
        what = "is neither imagenet, none, an experiment nor a file (a released model is one), and"
        near = nearest(name, (*STARTS, *EXPERIMENTS))
        _check_run(f"WEIGHTS {name!r} {what}", name, near)


def _check_run(what: str, name: str, near: str) -> None:
    if not RUN_NAME.fullmatch(name):
        raise InputError(f"{what} is not a run, whose name ends in _seedN; nearest: {near}")


def _check_published(encoder: str) -> None:
    """Refuse WEIGHTS imagenet of an encoder that nobody publishes them for."""
    from kernel_lib.models import imagenet

    if imagenet.official_url(encoder) is None and imagenet.repository(encoder) is None:
        raise InputError(
            f"nobody publishes ImageNet weights of ENCODER {encoder}: -p WEIGHTS none, another "
            "ENCODER, or a data set of your own file with --dataset OWNER/SLUG"
        )


def _holds(offline: Mapping | None, encoder: str) -> bool:
    """Return whether an offline data set holds weights by an encoder's name."""
    pattern = rf"{re.escape(encoder)}([-._].*)?"
    names = offline["files"] if offline else ()
    return any(n.endswith(WEIGHT_ENDINGS) and re.fullmatch(pattern, n) for n in names)
