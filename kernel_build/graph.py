"""The kernels of a plan, in an order to push them, with the kernels whose output each takes."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import product
from pathlib import Path

from kernel_build import bundle, names
from kernel_build.rehearse import REHEARSALS
from kernel_lib.config import ThresholdsParameters
from kernel_lib.errors import InputError
from kernel_lib.kaggle import quota
from kernel_lib.plan import OVERRIDES, TrainPlan
from kernel_lib.stages.table import STAGES
from kernel_lib.storage import atomic_folder, write_json

FILE = "graph.json"
PUSHER = "push_all.py"
# Parameters of a training that its kernels take from the plan; the graph sets the others.
CARRIED = ("name", *OVERRIDES, "parent_weights", "groups", "weights_dir", "weights_are", "nih_dir",
           "deterministic", "precision", "compile", "on_bad_file", "masks_are", "processes",
           "workers", "threads", "save_minutes")  # fmt: skip

DECIDED = ("combine", "choose", "at_least")  # of thresholds: a plan's own options
BY_DEFAULT = ThresholdsParameters()


@dataclass(frozen=True)
class Node:
    """A kernel, which is a session of its own; `sources` are the slugs whose output it takes.

    Its hours are those that count against the GPU quota.
    """

    slug: str
    stage: str
    given: tuple[tuple[str, str], ...]
    sources: tuple[str, ...]
    gpu: bool
    hours: float


def nodes(
    runs: Mapping[int, Sequence[TrainPlan]],
    folds: int,
    hours: Mapping[str, Sequence[float]],
    inference_hours: float,
    max_hours: float,
    prefix: str | None = None,
    decided: ThresholdsParameters = BY_DEFAULT,
) -> list[Node]:
    """Return the kernels of a plan, in an order in which they can be pushed.

    Folds come seed by seed, so that a seed is complete before the next begins; a session after the
    first takes the output of the one before it.

    Args:
        runs: By seed the runs to train, parents first and the wanted one last.
        hours: By experiment the hours of each session of one fold.
        inference_hours: Those of a later stage that needs a GPU.
        prefix: The beginning of all kernels' names; None: that of their run.
        decided: How the ensemble of the runs is combined.
    """
    heads = _heads(runs, folds, hours, prefix)
    kernels: list[Node] = []
    last: dict[tuple[str, int], str] = {}  # (run, fold) → the kernel that ends it
    for seed, chain in runs.items():
        for fold, plan in product(range(folds), chain):
            needed = [last[need.run, fold] for need in plan.needs()]
            sessions = hours[plan.experiment_name]
            given = (*_train_given(plan, fold, folds), ("MAX_HOURS", f"{max_hours:g}"))
            for part, taken in enumerate(sessions, 1):
                name = names.joined(
                    heads[plan.experiment_name], *_words(seed, fold, part, sessions)
                )
                sources = (*([kernels[-1].slug] if part > 1 else []), *needed)
                kernels.append(Node(name, "train", given, sources, gpu=True, hours=taken))
            last[plan.run, fold] = kernels[-1].slug
    wanted = [chain[-1].run for chain in runs.values()]
    first = next(iter(runs.values()))[-1]
    # A run's gate predicts with it; its parents are no longer needed.
    members = {p.run for c in runs.values() for p in (c[-1], c[-1].gate) if p is not None}
    trained = tuple(kernel for (run, _), kernel in last.items() if run in members)
    ensemble = (first.parameters.name or first.experiment_name) if len(wanted) > 1 else wanted[0]
    values = {"RUNS": ",".join(wanted), "ENSEMBLE": ensemble}
    values |= {n.upper(): str(v) for n in DECIDED if (v := getattr(decided, n)) is not None}
    slugs: dict[str, tuple[str, ...]] = {}  # by stage
    for stage in STAGES.values():
        if stage.per_fold:
            slugs[stage.name] = trained
            continue
        known = stage.parameters.model_fields
        given = tuple((name, value) for name, value in values.items() if name.lower() in known)
        sources = tuple(slug for taken in stage.takes for slug in slugs[taken])
        name = names.joined(heads[first.experiment_name], _seeds(runs), stage.name)
        hours_taken = inference_hours if stage.needs_gpu else 0.0
        kernels.append(Node(name, stage.name, given, sources, stage.needs_gpu, hours_taken))
        slugs[stage.name] = (name,)
    return kernels


def _heads(
    runs: Mapping[int, Sequence[TrainPlan]],
    folds: int,
    hours: Mapping[str, Sequence[float]],
    prefix: str | None,
) -> dict[str, str]:
    """Return by experiment the beginning of its kernels' names, for any seed."""
    endings = [
        names.ending(*_words(seed, fold, part, hours[plan.experiment_name]))
        for seed, chain in runs.items()
        for plan in chain
        for fold in range(folds)
        for part in range(1, len(hours[plan.experiment_name]) + 1)
    ]
    later = (stage.name for stage in STAGES.values() if not stage.per_fold)
    endings += [names.ending(_seeds(runs), stage) for stage in later]
    chain = next(iter(runs.values()))
    by_name = names.heads([names.split(plan.run)[0] for plan in chain], endings, given=prefix)
    return dict(zip((plan.experiment_name for plan in chain), by_name.values(), strict=True))


def _words(seed: int, fold: int, part: int, sessions: Sequence[float]) -> tuple[str, ...]:
    """Return what follows the run's in a train kernel's name."""
    return (f"s{seed}", f"f{fold}", *([f"p{part}"] if len(sessions) > 1 else []))


def _seeds(runs: Mapping[int, Sequence[TrainPlan]]) -> str:
    return f"{len(runs)}seeds" if len(runs) > 1 else f"s{next(iter(runs))}"


def weeks(
    kernels: Sequence[Node],
    weekly_hours: float = quota.GPU_HOURS_A_WEEK,
    hours_left: float | None = None,
) -> list[list[Node]]:
    """Return the kernels by week, each after its sources and within the rest of its week's quota.

    The first week has `hours_left` of it (None: all), which may be too few for any kernel.

    Raises: InputError for a kernel that no week holds.
    """
    too_long = [node for node in kernels if node.hours > weekly_hours]
    if too_long:
        raise InputError(
            f"{too_long[0].slug} takes {too_long[0].hours:.1f} GPU hours and a week has "
            f"{weekly_hours:g}; cut it into sessions with smaller --session-hours"
        )
    by_week: list[list[Node]] = []
    waiting, done = list(kernels), set()
    quota_left = weekly_hours if hours_left is None else hours_left
    while waiting:
        left, week = quota_left, []
        for node in waiting:
            if set(node.sources) <= done and node.hours <= left:
                week.append(node)
                done.add(node.slug)
                left -= node.hours
        if not week and quota_left >= weekly_hours:
            raise InputError(f"{waiting[0].slug} waits for kernels that are not in the plan")
        waiting = [node for node in waiting if node.slug not in done]
        by_week.append(week)
        quota_left = weekly_hours
    return by_week


def write(
    kernels: Sequence[Node], out: Path, root: Path, owner: str, kind: str, inputs: bundle.Inputs
) -> list[Path]:
    """Write the kernels' folders, graph.json and the script that pushes them; nothing if one fails.

    `inputs` are those of all kernels, to which the kernels are added whose output each takes; only
    kernels with a network carry wheels.

    Returns: The kernels' folders.

    Raises: InputError where `out` holds other files, or is being pushed.
    """
    known = {".", FILE, PUSHER, "push_state.json", *(node.slug for node in kernels)}
    others = [p.name for p in out.iterdir() if p.name not in known] if out.is_dir() else []
    if others and not (out / FILE).is_file():
        raise InputError(f"{out} holds {others[0]}, which no plan wrote; give another folder")
    if (out / "push_state.json").is_file():
        raise InputError(
            f"{out} is being pushed (push_state.json): finish it, or give another folder"
        )
    with atomic_folder(out) as fresh:
        for node in kernels:
            sources = tuple(f"{owner}/{source}" for source in node.sources)
            own = replace(inputs, sources=replace(inputs.sources, kernels=sources))
            bundle.build(
                root, node.stage, kind, given=node.given, owner=owner, out=fresh, slug=node.slug,
                inputs=own if node.gpu else bundle.Inputs(own.sources),
            )  # fmt: skip
        listed = [asdict(node) | {"id": f"{owner}/{node.slug}"} for node in kernels]
        write_json(fresh / FILE, {"owner": owner, "kernels": listed})
        shutil.copy(Path(__file__).with_name(PUSHER), fresh / PUSHER)
        if (out / REHEARSALS).is_dir():
            (out / REHEARSALS).rename(fresh / REHEARSALS)
    return [out / node.slug for node in kernels]


def _train_given(plan: TrainPlan, fold: int, folds: int) -> tuple[tuple[str, str], ...]:
    """Return the notebook's parameters of this run's fold, without those at their default."""
    parameters = plan.parameters
    given = {"EXPERIMENT": parameters.experiment, "SEED": parameters.seed}
    given |= {"FOLD": fold, "N_FOLDS": folds}
    defaults = type(parameters).model_fields
    for name in CARRIED:
        value = getattr(parameters, name)
        if value != defaults[name].default:
            given[name.upper()] = value
    return tuple((name, str(value)) for name, value in given.items())
