"""The command `plan`: the cost of an experiment on Kaggle, as a table, and its kernels."""

from __future__ import annotations

import os
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
from kernel_build.graph import Node
from kernel_lib.config import (
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
from kernel_lib.plan import TrainPlan, plan_training
from kernel_lib.stages.table import STAGES

T4S = accelerators.ACCELERATORS[accelerators.DEFAULT]
ROOT = Path(__file__).resolve().parent.parent
FIRST_SEED, SEED_STEP = 3456, 1111  # 3456, 4567, 5678, …, as in the reference solution
# Parameters that a plan sets in each kernel, and what to give the plan instead.
_OWN = {
    "experiment": "it is the first argument",
    "seed": "give --seeds N",
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
    seeds = ", ".join(map(str, estimate.seeds))
    scaled = any(cost.measured.scaled for cost in estimate.costs)
    elsewhere = machines[0] != machines[1]
    scratch = estimate.later["thresholds"].scratch
    lines = [
        *_table_lines(estimate),
        "",
        f"{_count(len(estimate.seeds), 'seed')} ({seeds}) × {estimate.folds} folds, at most: "
        "patience may end a fold before its last epoch",
        *([estimate.week.line] if estimate.week.line else []),
        *_week_lines(estimate),
        f"the quota is full again on {estimate.week.ends or quota.week_ends(now):%A %d %B, %H:%M} "
        "UTC",
        "order: seed by seed, each fold's parents before it, so that one seed is complete, and "
        "could be scored, before the next one costs anything; two GPU sessions at once",
        f"assumed: sessions of {session.hours:g} h with {session.margin:g} h left over (MAX_HOURS "
        f"{session.max_hours:g}), {60 * session.start:.0f} minutes to start, "
        f"{costs.TRAIN_IMAGES:,} training and {costs.TEST_IMAGES:,} test images, maps of "
        f"{costs.MAP_BYTES_PER_PX} bytes a pixel, seconds of an epoch at the size in the table"
        f"{'; ~ scaled by pixels and images' * scaled}{', and by speed' * elsewhere}",
        *([f"thresholds write up to {scratch / 1e9:.1f} GB of temporary files"] if scratch else []),
        *([_speed_line(*machines)] if elsewhere else []),
    ]
    return "\n".join([*lines, *(f"change: {line}" for line in estimate.advice)])


def _table_lines(estimate: Estimate) -> list[str]:
    rows = [("experiment", "size", "epochs", "s/epoch", "h each", "sessions", "GPU h", "GB",
             "memory")]  # fmt: skip
    times = estimate.folds * len(estimate.seeds)
    for cost in estimate.costs:
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


def plans_of(given: TrainParameters, seeds: int) -> dict[int, tuple[TrainPlan, ...]]:
    """Return by seed the runs to train, parents first."""
    plans = {}
    for number in range(seeds):
        seed = FIRST_SEED + SEED_STEP * number
        wanted = plan_training(given.model_copy(update={"seed": seed}), EXPERIMENTS)
        plans[seed] = (*wanted.needs(), wanted)
    return plans


def _decided(
    plans: Mapping[int, Sequence[TrainPlan]], **given: str | int | None
) -> ThresholdsParameters:
    """Return how the seeds are combined. Raises: InputError where that does not fit them."""
    runs = ",".join(chain[-1].run for chain in plans.values())
    decided = ThresholdsParameters.checked({"runs": runs} | given)
    STAGES["thresholds"].module.check(decided)
    return decided


def sizes_of(experiment: Experiment) -> Sizes:
    """Return the bytes of an experiment's weights, and of its last.pt.

    That holds the weights, their average, and the optimiser's one or two moments.
    """
    from kernel_lib.models import networks

    n_bytes = sum(
        t.numel() * t.element_size() for t in networks.build(experiment).state_dict().values()
    )
    return Sizes(n_bytes, n_bytes * (4 if experiment.optimizer.startswith("adam") else 3))


def _by_experiment(values: Sequence[str], experiment: str) -> dict[str, str]:
    """Return values by experiment, given as `NAME=VALUE`, or `VALUE` of the wanted one."""
    by_name = {}
    for value in values:
        name, equals, rest = value.partition("=")
        by_name[name if equals else experiment] = rest if equals else value
    return by_name


def measurements(
    logs: Sequence[str], seconds: Sequence[str], experiments: Mapping[str, Experiment], folds: int
) -> dict[str, Measured]:
    """Return measurements by experiment; `experiments` are the plan's, the wanted one last.

    A log of another size than its experiment's, by the config.json beside it, is scaled by pixels;
    plain seconds are of the experiment's own size.

    Raises: InputError for an experiment that is not of the plan, and without a measurement of the
        wanted one.
    """
    wanted = list(experiments)[-1]
    by_log, by_seconds = _by_experiment(logs, wanted), _by_experiment(seconds, wanted)
    for name in (*by_log, *by_seconds):
        if name not in experiments:
            raise InputError(
                f"{name!r} is not an experiment of this plan; write one of {', '.join(experiments)}"
            )
    measured = {
        name: costs.from_log(Path(path), experiments[name].size) for name, path in by_log.items()
    }
    for name, text in by_seconds.items():
        try:
            value = float(text)
        except ValueError:
            value = 0.0
        if not 0 < value < float("inf"):
            raise InputError(f"--seconds-per-epoch {text!r} is not a number of seconds above 0")
        measured[name] = costs.from_seconds(value, folds)
    if wanted not in measured:
        given = wanted if wanted in EXPERIMENTS else "FILE.json"
        raise InputError(
            f"nothing measured for {wanted}: give --log of a run (runs/RUN/fold0/log.jsonl) or "
            f"--seconds-per-epoch S; a kernel of one epoch measures it: build_kernel.py train "
            f"-p EXPERIMENT {given} -p FOLD 0 -p EPOCHS 1 -p WEIGHTS none"
        )
    return measured


@click.command(cls=options.Command)
@click.argument("experiment")
@click.option(
    "--seeds", type=click.IntRange(min=1), default=1, show_default=True, help="Number of seeds."
)
@click.option(
    "--folds", type=click.IntRange(min=2), default=5, show_default=True, help="Number of folds."
)
@click.option(
    "--combine", type=click.Choice(get_args(Combine)), help="How the seeds are combined [mean]."
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
@click.option("--slug", help="Beginning of the kernels' names [their run's name].")
@options.sources
def plan(
    experiment, seeds, folds, combine, choose, at_least, given, logs, seconds, hours, accelerator,
    measured_on, quota_left, out, owner, kind, slug, data, datasets, models, attached,
    without_wheel,
) -> None:  # fmt: skip
    """Estimate the cost of EXPERIMENT on Kaggle; with --write, build its kernels."""
    session = Session.of(hours)
    week = None if quota_left is None else account.of_hours(quota_left)
    shape = options.accelerator_name(accelerator)
    given_by_root = metadata.read_base(ROOT).get("machine_shape") or accelerators.DEFAULT
    machines = (accelerators.find(shape or given_by_root), accelerators.find(measured_on))
    sources = metadata.Sources(data, datasets, models=models)
    values = {name.lower(): parse_value(text) for name, text in given}
    if own := [name.upper() for name in values if name in _OWN]:
        raise InputError(f"-p {own[0]} is not a plan's: {_OWN[own[0].lower()]}")
    text = paths.experiment_text(experiment)
    asked = TrainParameters.checked(values | {"experiment": text, "n_folds": folds})
    needs.resolve_training(asked.model_copy(update={"with_parents": True}))
    plans = plans_of(asked, seeds)
    decided = _decided(plans, combine=combine, choose=choose, at_least=at_least)
    experiments = {plan.experiment_name: plan.experiment for plan in next(iter(plans.values()))}
    measured = measurements(logs, seconds, experiments, folds)
    measured = {name: each.on(*machines) for name, each in measured.items()}
    estimate = _estimate(plans, folds, measured, session, slug, week or account.week(), decided)
    click.echo(as_text(estimate, session, machines=machines))
    for line in _too_small(machines[0], measured, experiments):
        click.echo(f"change: {line}")
    if out is not None:
        manifest = offline.manifest(attached) if attached else None
        carried = () if without_wheel else (wheels.carried(ROOT),)
        inputs = bundle.Inputs(sources, carried, manifest, shape)
        _write(estimate, out, owner, kind, inputs)


def _estimate(plans, folds, measured, session, slug, week, decided) -> Estimate:
    chain = next(iter(plans.values()))
    sizes = {plan.experiment_name: sizes_of(plan.experiment) for plan in chain}
    return costs.estimate(plans, folds, measured, session, sizes, slug, week, decided)


def _too_small(
    accelerator: Accelerator,
    measured: Mapping[str, Measured],
    experiments: Mapping[str, Experiment],
) -> Iterator[str]:
    """Yield what to change where a process took more memory, by its log, than a GPU will have."""
    for name, each in measured.items():
        if each.gpu_mb is None:
            continue
        text = accelerators.too_small(accelerator, experiments[name], each.gpu_mb, "by its log")
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
