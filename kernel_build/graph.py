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


@dataclass(frozen=True)
class PlannedEnsemble:
    """The runs of a plan: one experiment's seeds, or a recipe's members, and what they need."""

    # One chain per member: the runs to train for it, parents first, the member's own last.
    chains: tuple[tuple[TrainPlan, ...], ...]
    folds: int
    thresholds: ThresholdsParameters  # of the thresholds kernel
    recipe: str | None = None  # its name

    @property
    def members(self) -> tuple[TrainPlan, ...]:
        return tuple(chain[-1] for chain in self.chains)

    @property
    def gates(self) -> tuple[TrainPlan, ...]:
        """The runs of classifiers that gate members' masks."""
        return tuple({p.gate.run: p.gate for p in self.members if p.gate is not None}.values())

    @property
    def runs(self) -> tuple[TrainPlan, ...]:
        """All runs to train, each once, parents first."""
        return tuple({plan.run: plan for chain in self.chains for plan in chain}.values())

    @property
    def experiments(self) -> dict[str, TrainPlan]:
        """The first run of each experiment, by the experiment's name."""
        by_name: dict[str, TrainPlan] = {}
        for plan in self.runs:
            by_name.setdefault(plan.experiment_name, plan)
        return by_name

    def first(self, n: int) -> PlannedEnsemble:
        """Return the plan of the first n members."""
        return replace(self, chains=self.chains[:n])

    def how_to_plan(self, n: int) -> str:
        """Return, for advice, how to plan the first n members alone."""
        if not self.recipe:
            return f"--seeds {n}"
        return f"the first {n} members" if n > 1 else "the first member"


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
    ensemble: PlannedEnsemble,
    hours: Mapping[str, Sequence[float]],
    inference_hours: float,
    max_hours: float,
    prefix: str | None = None,
) -> list[Node]:
    """Return the kernels of a plan, in an order in which they can be pushed.

    Folds come member by member, so that one is complete before the next begins; a session after the
    first takes the output of the one before it.

    Args:
        hours: By experiment the hours of each session of one fold.
        inference_hours: Those of a later stage that needs a GPU.
        prefix: The beginning of all kernels' names; None: that of their run, or of the recipe.
    """
    heads, head = _heads(ensemble, hours, prefix)
    kernels: list[Node] = []
    last: dict[tuple[str, int], str] = {}  # (run, fold) → the kernel that ends it
    for chain in ensemble.chains:
        for fold, plan in product(range(ensemble.folds), chain):
            if (plan.run, fold) in last:  # for an earlier member
                continue
            needed = [last[need.run, fold] for need in plan.needs()]
            sessions = hours[plan.experiment_name]
            given = _train_given(plan, fold, ensemble.folds)
            given += (("MAX_HOURS", f"{max_hours:g}"),)
            for part, taken in enumerate(sessions, 1):
                name = names.joined(
                    heads[plan.experiment_name], *_words(plan, fold, part, sessions)
                )
                sources = (*([kernels[-1].slug] if part > 1 else []), *needed)
                kernels.append(Node(name, "train", given, sources, gpu=True, hours=taken))
            last[plan.run, fold] = kernels[-1].slug
    # A run's gate predicts with it; its parents are no longer needed.
    predicting = {plan.run for plan in (*ensemble.members, *ensemble.gates)}
    trained = tuple(kernel for (run, _), kernel in last.items() if run in predicting)
    slugs: dict[str, tuple[str, ...]] = {}  # by stage
    for stage in STAGES.values():
        if stage.per_fold:
            slugs[stage.name] = trained
            continue
        known = stage.parameters.model_fields
        values = ensemble.thresholds.model_dump(exclude_defaults=True)
        given = tuple((n.upper(), str(value)) for n, value in values.items() if n in known)
        sources = tuple(slug for taken in stage.takes for slug in slugs[taken])
        name = names.joined(head, _seeds(ensemble), stage.name)
        hours_taken = inference_hours if stage.needs_gpu else 0.0
        kernels.append(Node(name, stage.name, given, sources, stage.needs_gpu, hours_taken))
        slugs[stage.name] = (name,)
    return kernels


def _heads(
    ensemble: PlannedEnsemble, hours: Mapping[str, Sequence[float]], prefix: str | None
) -> tuple[dict[str, str], str]:
    """Return the beginning of the kernels' names: by experiment, for any seed, and the ensemble's.

    The ensemble has that of its experiment, or of its recipe.
    """
    endings = [
        names.ending(*_words(plan, fold, part, hours[plan.experiment_name]))
        for plan in ensemble.runs
        for fold in range(ensemble.folds)
        for part in range(1, len(hours[plan.experiment_name]) + 1)
    ]
    later = (stage.name for stage in STAGES.values() if not stage.per_fold)
    endings += [names.ending(_seeds(ensemble), stage) for stage in later]
    shown = {name: names.split(plan.run)[0] for name, plan in ensemble.experiments.items()}
    listed, options = [*shown.values()], {}
    if ensemble.recipe:
        listed.append(ensemble.recipe)
        options = {"advice": "name the kernels with --slug NAME", "fallback": "experiment"}
    by_name = names.heads(listed, endings, given=prefix, **options)
    return {name: by_name[each] for name, each in shown.items()}, by_name[listed[-1]]


def _words(plan: TrainPlan, fold: int, part: int, sessions: Sequence[float]) -> tuple[str, ...]:
    """Return what follows the run's in a train kernel's name."""
    parts = [f"p{part}"] if len(sessions) > 1 else []
    return (f"s{plan.parameters.seed}", f"f{fold}", *parts)


def _seeds(ensemble: PlannedEnsemble) -> str:
    """Return what the names of later stages say of the seeds; nothing where a recipe has them."""
    seeds = [member.parameters.seed for member in ensemble.members]
    return "" if ensemble.recipe else f"{len(seeds)}seeds" if len(seeds) > 1 else f"s{seeds[0]}"


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
