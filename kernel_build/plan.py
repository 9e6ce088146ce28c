"""The command `plan`: the cost of an experiment or a recipe on Kaggle, and its kernels."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import get_args

import click

from kernel_build import (
    accelerators,
    account,
    bundle,
    costs,
    graph,
    metadata,
    needs,
    offline,
    options,
    wheels,
)
from kernel_build.accelerators import Accelerator
from kernel_build.costs import Estimate, Measured, Session, Sizes
from kernel_build.graph import Node, PlannedEnsemble
from kernel_lib import experiment_file
from kernel_lib.config import (
    NAME,
    Choose,
    Combine,
    Experiment,
    ThresholdsParameters,
    TrainParameters,
    parse_value,
)
from kernel_lib.errors import InputError
from kernel_lib.experiments import EXPERIMENTS
from kernel_lib.kaggle import paths, quota
from kernel_lib.plan import OVERRIDES, TrainPlan, plan_training
from kernel_lib.registry import lookup
from kernel_lib.stages.table import STAGES

T4S = accelerators.ACCELERATORS[accelerators.DEFAULT]
ROOT = Path(__file__).resolve().parent.parent
FIRST_SEED, SEED_STEP = 3456, 1111  # 3456, 4567, 5678, …, as in the reference solution
# Parameters that a plan sets in each kernel, and what to give the plan instead.
_OWN = {
    "experiment": "it is the first argument",
    "seed": "give --seeds N, or a recipe",
    "n_folds": "give --folds N",
    "fold": "every fold is planned",
    "max_hours": "give --session-hours",
    "with_parents": "parents are kernels of their own",
    "data_dir": "give --data OWNER/SLUG, or leave it to the competition",
    "work_dir": "a kernel's is Kaggle's working folder",
    "cache_dir": "a kernel's is scratch",
    "device": "a kernel's is what Kaggle gives",
}


def as_text(
    estimate: Estimate,
    session: Session,
    now: datetime | None = None,
    machines: tuple[Accelerator, Accelerator] = (T4S, T4S),
) -> str:
    """Return the estimate as text: a table, the weeks, the order, and advice.

    `machines` are that of the kernels, and that on which epochs were measured.
    """
    ensemble, one = estimate.ensemble, "member" if estimate.ensemble.recipe else "seed"
    seeds = ", ".join(str(member.parameters.seed) for member in ensemble.members)
    of = f"{ensemble.recipe}, seeds " if ensemble.recipe else ""
    scaled = any(cost.measured.scaled for cost in estimate.costs)
    elsewhere = machines[0] != machines[1]
    scratch = estimate.later["thresholds"].scratch
    lines = [
        *_table_lines(estimate),
        "",
        f"{_count(len(ensemble.members), one)} ({of}{seeds}) × {ensemble.folds} folds, at most: "
        "patience may end a fold before its last epoch",
        *([estimate.week.line] if estimate.week.line else []),
        *_week_lines(estimate),
        f"the quota is full again on {estimate.week.ends or quota.week_ends(now):%A %d %B, %H:%M} "
        "UTC",
        f"order: {one} by {one}, each fold's parents before it, so that one {one} is complete, and "
        "could be scored, before the next one costs anything; two GPU sessions at once",
        f"assumed: sessions of {session.hours:g} h with {session.margin:g} h left over (MAX_HOURS "
        f"{session.max_hours:g}), {60 * session.start:.0f} minutes to start, "
        f"{costs.TRAIN_IMAGES:,} training and {costs.TEST_IMAGES:,} test images, maps of "
        f"{costs.MAP_BYTES_PER_PX} bytes a pixel, seconds of an epoch at the size in the table"
        f"{'; ~ scaled by pixels and images' * scaled}{', and by speed' * elsewhere}",
        *([f"thresholds write up to {scratch / 1e9:.1f} GB of temporary files"] if scratch else []),
        *([_speed_line(*machines)] if elsewhere else []),
    ]
    if ensemble.recipe and estimate.advice:
        lines.append(
            "a recipe's experiments are planned as they are: what -p would change below is for a "
            "plan of that experiment, or for another experiment in the recipe"
        )
    return "\n".join([*lines, *(f"change: {line}" for line in estimate.advice)])


def _table_lines(estimate: Estimate) -> list[str]:
    rows = [("experiment", "size", "epochs", "s/epoch", "h each", "sessions", "GPU h", "GB",
             "memory")]  # fmt: skip
    runs = [plan.experiment_name for plan in estimate.ensemble.runs]
    for name, cost in zip(estimate.ensemble.experiments, estimate.costs, strict=True):
        times = estimate.ensemble.folds * runs.count(name)
        seconds = cost.measured.train + cost.measured.look
        rows.append((
            cost.experiment.name, str(cost.experiment.size), str(cost.experiment.epochs),
            f"{'~' * cost.measured.scaled}{seconds:.0f}", f"{cost.hours:.2f}",
            f"{times} × {len(cost.sessions)}", f"{cost.gpu_hours * times:.1f}",
            f"{cost.bytes / 1e9:.1f}", "",
        ))  # fmt: skip
    for node in estimate.nodes:
        if not STAGES[node.stage].per_fold:
            name = node.stage if node.gpu else f"{node.stage} (no GPU)"
            cost = estimate.later[node.stage]
            rows.append((
                name, "", "", "", f"{cost.hours:.2f}", "1", f"{node.hours:.1f}",
                f"{cost.output / 1e9:.1f}", f"{cost.memory / 1e9:.1f}",
            ))  # fmt: skip
    rows.append(
        ("together", "", "", "", "", str(len(estimate.nodes)), f"{estimate.gpu_hours:.1f}", "", "")
    )
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    aligned = [
        (text.rjust(width) if i else text.ljust(width) for i, (text, width) in enumerate(pairs))
        for pairs in (tuple(zip(row, widths, strict=True)) for row in rows)
    ]
    return ["  ".join(row).rstrip() for row in aligned]


def _speed_line(accelerator: Accelerator, measured_on: Accelerator) -> str:
    speed = accelerator.speed / measured_on.speed
    return (
        f"estimated: {_shown(accelerator)} {speed:.1f} times as fast as {_shown(measured_on)}, on "
        "which epochs were measured; from NVIDIA's data sheets, no speed of Kaggle's is measured, "
        "and four processor cores may not load images so fast"
    )


def _shown(accelerator: Accelerator) -> str:
    return f"{accelerator.name} ({accelerator.gpus} × {accelerator.memory_gb} GB)"


def _week_lines(estimate: Estimate) -> list[str]:
    lines = []
    for number, week in enumerate(estimate.weeks, 1):
        if not week:
            lines.append(f"week {number}: no kernel fits in what is left of it")
            continue
        hours = sum(node.hours for node in week)
        names = f"{week[0].slug} … {week[-1].slug}" if len(week) > 1 else week[0].slug
        lines.append(f"week {number}: {hours:.1f} h in {_count(len(week), 'kernel')}, {names}")
    return lines


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'s' if number != 1 else ''}"


def from_seeds(asked: TrainParameters, seeds: int, **given: str | int | None) -> PlannedEnsemble:
    """Return the plan of an experiment's seeds.

    `given` are parameters of thresholds. Raises: InputError where they do not fit the seeds.
    """
    numbers = [FIRST_SEED + SEED_STEP * number for number in range(seeds)]
    chains = _chains(asked, [(asked.experiment, seed) for seed in numbers])
    runs = [chain[-1].run for chain in chains]
    name = (asked.name or chains[0][-1].experiment_name) if seeds > 1 else runs[0]
    return _planned(chains, asked.n_folds, given | {"ensemble": name, "runs": ",".join(runs)})


def from_recipe(name: str, asked: TrainParameters, **given: str | int | None) -> PlannedEnsemble:
    """Return the plan of a recipe, a shipped one by its name or one by its file.

    `given` are parameters of thresholds, instead of the recipe's. Raises: InputError where a
    member is not an experiment with its seed, a file gives weights or has a name that kernels
    cannot be given, or the parameters do not fit the members.
    """
    recipes, is_file = _recipes(), name.endswith(".json")
    path = paths.from_root(name) if is_file else recipes.SHIPPED / f"{name}.json"
    recipe = recipes.read(path).differing(**given)
    if named := [member.run for member in recipe.members if member.run]:
        raise InputError(
            f"{name}: member {named[0]} is given by its run, and a plan needs its experiment and "
            'seed: write {"experiment": NAME, "seed": N}'
        )
    if is_file and any(member.weight != 1 for member in recipe.members):
        raise InputError(
            f"{name}: the thresholds kernel would not know the weights: leave them out, or run "
            "that stage on your own machine, with -p ENSEMBLE FILE.json"
        )
    if not (re.fullmatch(NAME, path.stem) and isinstance(parse_value(path.stem), str)):
        raise InputError(
            f"{name}: its ensemble would be named {path.stem}: rename the file to letters, digits, "
            "_ and - that are no number or word of Python"
        )
    chains = _chains(asked, [(member.experiment, member.seed) for member in recipe.members])
    values = {field: getattr(recipe, field) for field in ("combine", "choose", "at_least", "gate")}
    runs = ",".join(chain[-1].run for chain in chains) if is_file else None
    values |= {"ensemble": path.stem, "runs": runs}
    return _planned(chains, asked.n_folds, values, path.stem)


def _chains(
    asked: TrainParameters, members: Sequence[tuple[str, int]]
) -> tuple[tuple[TrainPlan, ...], ...]:
    """Return the runs to train for each member, an experiment and a seed, parents first."""
    chains = []
    for experiment, seed in members:
        own = asked.model_copy(update={"experiment": experiment, "seed": seed})
        wanted = plan_training(own, EXPERIMENTS)
        chains.append((*wanted.needs(), wanted))
    return tuple(chains)


def _planned(
    chains: tuple[tuple[TrainPlan, ...], ...],
    folds: int,
    values: Mapping[str, str | int | None],
    recipe: str | None = None,
) -> PlannedEnsemble:
    """Return a plan whose thresholds kernel will accept its parameters and its members."""
    from kernel_lib.models import networks

    thresholds = ThresholdsParameters.checked(values)
    STAGES["thresholds"].module.check(thresholds)
    ensemble = PlannedEnsemble(chains, folds, thresholds, recipe)
    for member in ensemble.members:
        has_mask = networks.network_class(member.experiment.network).has_mask
        if member.experiment.images == "nih" or not has_mask:
            raise InputError(
                f"{member.experiment_name} predicts no masks of the competition's images: plan the "
                "segmentation experiment that starts from it, or that it gates"
            )
    experiments = {member.run: member.experiment for member in ensemble.members}
    _recipes().resolved_gate(thresholds.gate, experiments)
    return ensemble


def is_recipe(name: str) -> bool:
    """Return whether it is the name of a shipped recipe, or a JSON file that lists members."""
    if not name.endswith(".json"):
        return name not in EXPERIMENTS and name in _recipes().shipped()
    try:
        values = json.loads(paths.from_root(name).read_text("utf-8"))
    except (OSError, ValueError, RecursionError):
        return False  # an error says so when it is read as an experiment
    return isinstance(values, dict) and "members" in values


def _recipes():
    """Import the recipes when they are needed, which takes too long for --help."""
    from kernel_lib.inference import recipes

    return recipes


def sizes_of(experiment: Experiment) -> Sizes:
    """Return the bytes of an experiment's weights, and of its last.pt.

    That holds the weights, their average, and the optimiser's one or two moments.
    """
    from kernel_lib.models import networks

    n_bytes = sum(
        t.numel() * t.element_size() for t in networks.build(experiment).state_dict().values()
    )
    return Sizes(n_bytes, n_bytes * (4 if experiment.optimizer.startswith("adam") else 3))


def _by_experiment(values: Sequence[str], ensemble: PlannedEnsemble) -> dict[str, str]:
    """Return values by experiment, given as `NAME=VALUE`, or `VALUE` of the members' only one."""
    wanted = {member.experiment_name for member in ensemble.members}
    by_name = {}
    for value in values:
        name, equals, rest = value.partition("=")
        if not equals and len(wanted) > 1:
            raise InputError(f"{value}: of which experiment? write {'=, '.join(sorted(wanted))}=")
        if equals and name not in ensemble.experiments:
            raise InputError(
                f"{name!r} is not an experiment of this plan; write one of "
                f"{', '.join(ensemble.experiments)}"
            )
        by_name[name if equals else min(wanted)] = rest if equals else value
    return by_name


def measurements(
    logs: Sequence[str], seconds: Sequence[str], ensemble: PlannedEnsemble
) -> dict[str, Measured]:
    """Return measurements by experiment.

    A log of another size than its experiment's, by the config.json beside it, is scaled by pixels;
    plain seconds are of the experiment's own size.

    Raises: InputError for an experiment that is not of the plan, and for a member without a
        measurement.
    """
    known = ensemble.experiments
    measured = {
        name: costs.from_log(Path(path), known[name].experiment.size)
        for name, path in _by_experiment(logs, ensemble).items()
    }
    for name, text in _by_experiment(seconds, ensemble).items():
        try:
            value = float(text)
        except ValueError:
            value = 0.0
        if not 0 < value < float("inf"):
            raise InputError(f"--seconds-per-epoch {text!r} is not a number of seconds above 0")
        measured[name] = costs.from_seconds(value, ensemble.folds)
    wanted = dict.fromkeys(member.experiment_name for member in ensemble.members)
    if missing := [name for name in wanted if name not in measured]:
        given = missing[0] if missing[0] in EXPERIMENTS else "FILE.json"
        of = f"{missing[0]}=" if len(wanted) > 1 else ""
        raise InputError(
            f"nothing measured for {', '.join(missing)}: give --log {of}FILE of a run "
            f"(runs/RUN/fold0/log.jsonl) or --seconds-per-epoch {of}S; a kernel of one epoch "
            f"measures it: build_kernel.py train -p EXPERIMENT {given} -p FOLD 0 -p EPOCHS 1 "
            "-p WEIGHTS none"
        )
    return measured


@click.command(cls=options.Command)
@click.argument("experiment")
@click.option("--seeds", type=click.IntRange(min=1), help="Number of seeds of an experiment [1].")
@click.option(
    "--folds", type=click.IntRange(min=2), default=5, show_default=True, help="Number of folds."
)
@click.option(
    "--combine", type=click.Choice(get_args(Combine)), help="How members are combined [mean]."
)
@click.option(
    "--choose", type=click.Choice(get_args(Choose)), help="How members of a mean are chosen [none]."
)
@click.option("--at-least", type=int, metavar="K", help="Members that must agree [searched].")
@click.option(
    "-p", "given", nargs=2, multiple=True, metavar="NAME VALUE", help="A parameter of training."
)
@click.option(
    "--log", "logs", multiple=True, metavar="[EXPERIMENT=]FILE",
    help="The log.jsonl of a run, from which an epoch's time is read.",
)  # fmt: skip
@click.option(
    "--seconds-per-epoch", "seconds", multiple=True, metavar="[EXPERIMENT=]S",
    help="An epoch's time, where there is no log.",
)  # fmt: skip
@click.option(
    "--session-hours", "--hours", "hours", type=float, default=quota.SESSION_HOURS,
    show_default=True,
    help=f"Length of a session; {quota.SHORT_SESSION_HOURS:g} are reported for some accounts.",
)  # fmt: skip
@options.ACCELERATOR
@click.option(
    "--measured-on", metavar="NAME", default=accelerators.DEFAULT, show_default=True,
    help="The accelerator of --log and --seconds-per-epoch.",
)  # fmt: skip
@click.option(
    "--quota-left", type=float, metavar="H",
    help="GPU hours left of this week [what `kaggle quota` prints, or all of it].",
)  # fmt: skip
@click.option(
    "--write", "out", type=options.FOLDER,
    help="Build all kernels in this folder, with push_all.py.",
)  # fmt: skip
@options.OWNER
@click.option(
    "--kind", type=options.KIND, default="script", show_default=True, help="Kind of the kernels."
)
@click.option("--slug", help="Beginning of the kernels' names [the run's or recipe's].")
@options.sources
def plan(
    experiment, seeds, folds, combine, choose, at_least, given, logs, seconds, hours, accelerator,
    measured_on, quota_left, out, owner, kind, slug, data, datasets, models, attached,
    without_wheel,
) -> None:  # fmt: skip
    """Estimate the cost of EXPERIMENT on Kaggle; with --write, build its kernels.

    Or of a recipe: a shipped one's name, or a JSON file that lists experiments and seeds.
    """
    session = Session.of(hours)
    week = None if quota_left is None else account.of_hours(quota_left)
    shape = options.accelerator_name(accelerator)
    given_by_root = metadata.read_base(ROOT).get("machine_shape") or accelerators.DEFAULT
    machines = (accelerators.find(shape or given_by_root), accelerators.find(measured_on))
    sources = metadata.Sources(data, datasets, models=models)
    values = {name.lower(): parse_value(text) for name, text in given}
    if own := [name.upper() for name in values if name in _OWN]:
        raise InputError(f"-p {own[0]} is not a plan's: {_OWN[own[0].lower()]}")
    ensemble = _asked(experiment, values, seeds, folds, combine, choose, at_least)
    measured = {
        name: each.on(*machines) for name, each in measurements(logs, seconds, ensemble).items()
    }
    sizes = {name: sizes_of(plan.experiment) for name, plan in ensemble.experiments.items()}
    estimate = costs.estimate(ensemble, measured, session, sizes, slug, week or account.week())
    click.echo(as_text(estimate, session, machines=machines))
    for line in _too_small(machines[0], measured, ensemble):
        click.echo(f"change: {line}")
    if out is not None:
        manifest = offline.manifest(attached) if attached else None
        carried = () if without_wheel else (wheels.carried(ROOT),)
        inputs = bundle.Inputs(sources, carried, manifest, shape)
        _write(estimate, out, owner, kind, inputs)


def _asked(experiment, values, seeds, folds, combine, choose, at_least) -> PlannedEnsemble:
    """Return the ensemble, its parameters checked as its kernels would check them."""
    given = {"combine": combine, "choose": choose, "at_least": at_least}
    if is_recipe(experiment):
        fixed = {"name", "parent_weights", *OVERRIDES} & values.keys()
        if fixed or seeds is not None:
            what = f"-p {min(fixed).upper()}" if fixed else "--seeds"
            raise InputError(
                f"{what} is not for a recipe, whose members are shipped experiments with their "
                "seeds: leave it out, or plan an experiment"
            )
        asked = TrainParameters.checked(values | {"n_folds": folds})
        ensemble = from_recipe(experiment, asked, **given)
    else:
        text = paths.experiment_text(experiment)
        if not experiment_file.is_json(text):
            known = {**EXPERIMENTS, **dict.fromkeys(_recipes().shipped())}
            lookup("experiment or recipe", text, known, "; or give a JSON file of your own")
        asked = TrainParameters.checked(values | {"experiment": text, "n_folds": folds})
        ensemble = from_seeds(asked, seeds or 1, **given)
    for member in {member.experiment_name: member for member in ensemble.members}.values():
        needs.resolve_training(member.parameters.model_copy(update={"with_parents": True}))
    return ensemble


def _too_small(
    accelerator: Accelerator,
    measured: Mapping[str, Measured],
    ensemble: PlannedEnsemble,
) -> Iterator[str]:
    """Yield what to change where a process took more memory, by its log, than a GPU will have."""
    for name, each in measured.items():
        if each.gpu_mb is None:
            continue
        experiment = ensemble.experiments[name].experiment
        text = accelerators.too_small(accelerator, experiment, each.gpu_mb, "by its log")
        if text:
            yield text


def _write(estimate: Estimate, out: Path, owner, kind, inputs: bundle.Inputs) -> None:
    known = metadata.find_owner(ROOT, owner, os.environ, Path.home())
    if known is None:
        raise InputError("sources are named by their owner: give --owner NAME")
    if inputs.offline:
        datasets = (*inputs.sources.datasets, inputs.offline["dataset"])
        inputs = replace(inputs, sources=replace(inputs.sources, datasets=datasets))
    folders = graph.write(estimate.nodes, out, ROOT, known[0], kind, inputs)
    for text in _unmet(estimate.nodes, folders, inputs.offline):
        click.echo(text)
    click.echo(f"{len(folders)} kernels in {out}; push them with\n  python {out / graph.PUSHER}")


def _unmet(nodes: Sequence[Node], folders: Sequence[Path], manifest: dict | None) -> list[str]:
    """Return what the written kernels will miss on Kaggle, each once, with its fix."""
    texts = {}
    for node, folder in zip(nodes, folders, strict=True):
        values = {name: parse_value(text) for name, text in node.given}
        meta = metadata.read_base(folder)
        texts |= dict.fromkeys(metadata.notes(meta))
        texts |= dict.fromkeys(needs.unmet(node.stage, values, meta, manifest))
    return list(texts)
