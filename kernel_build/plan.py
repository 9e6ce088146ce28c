"""The command `plan`: what an experiment costs on Kaggle, as a table, and its kernels."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from pathlib import Path

import click

from kernel_build import bundle, costs, graph, metadata, needs, offline, wheels
from kernel_build.costs import Estimate, Measured, Session, Sizes
from kernel_lib.config import Experiment, TrainParameters, parse_value
from kernel_lib.errors import InputError
from kernel_lib.experiments import EXPERIMENTS
from kernel_lib.kaggle import paths, quota
from kernel_lib.plan import TrainPlan
from kernel_lib.plan import plan as decide

ROOT = Path(__file__).resolve().parent.parent
FIRST_SEED, SEED_STEP = 3456, 1111  # 3456, 4567, 5678, …, as the notes count
# Parameters that each kernel of a plan has its own of, and how to say it to the plan.
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


def as_text(found: Estimate, session: Session, now: datetime | None = None) -> str:
    """The estimate as a person reads it: a table, the weeks, the order, what to change."""
    rows = [("row", "size", "epochs", "s/epoch", "h/fold", "sessions", "GPU h", "GB")]
    times = found.folds * len(found.seeds)
    for cost in found.costs:
        seconds = cost.measured.train + cost.measured.look
        rows.append((
            cost.row.name, str(cost.row.size), str(cost.row.epochs),
            f"{'~' * cost.measured.scaled}{seconds:.0f}", f"{cost.hours:.2f}",
            f"{times} × {len(cost.sessions)}", f"{cost.gpu_hours * times:.1f}",
            f"{cost.bytes / 1e9:.1f}",
        ))  # fmt: skip
    rows.append(("thresholds (no GPU)", "", "", "", "", "1", "0.0", ""))
    rows.append(("inference", "", "", "", "", "1", f"{found.inference_hours:.1f}", ""))
    rows.append(("together", "", "", "", "", str(found.gpu_sessions + 1),
                 f"{found.gpu_hours:.1f}", ""))  # fmt: skip
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = [
        "  ".join(
            text.ljust(width) if i == 0 else text.rjust(width)
            for i, (text, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
    seeds = ", ".join(map(str, found.seeds))
    lines += [
        "",
        f"{_count(len(found.seeds), 'seed')} ({seeds}) × {found.folds} folds, at most: patience "
        "may end a fold before its last epoch",
    ]
    lines += [
        *_week_lines(found),
        f"the quota is full again on {quota.week_ends(now):%A %d %B}, 00:00 UTC",
    ]
    lines += [
        "order: seed by seed, each fold's parents before it, so that one seed is whole, and could "
        "be scored, before the next one costs anything; two GPU sessions at once",
        f"assumed: sessions of {session.hours:g} h with {session.margin:g} h left over (MAX_HOURS "
        f"{session.max_hours:g}), "
        f"{60 * session.start:.0f} minutes to start, {costs.TRAIN_IMAGES:,} training and "
        f"{costs.TEST_IMAGES:,} test images, maps of {costs.MAP_BYTES_PER_PX} bytes a pixel, "
        "seconds of an epoch at the size in the table"
        + (
            "; ~ scaled by pixels and images" if any(c.measured.scaled for c in found.costs) else ""
        ),
    ]
    return "\n".join([*lines, *(f"change: {line}" for line in found.advice)])


def _week_lines(found: Estimate) -> list[str]:
    lines = []
    for number, week in enumerate(found.weeks, 1):
        hours = sum(node.hours for node in week)
        names = f"{week[0].slug} … {week[-1].slug}" if len(week) > 1 else week[0].slug
        lines.append(f"week {number}: {hours:.1f} h in {_count(len(week), 'kernel')}, {names}")
    return lines


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'s' if number != 1 else ''}"


def plans_of(given: TrainParameters, seeds: int) -> dict[int, tuple[TrainPlan, ...]]:
    """By seed the runs to train, those that are needed first before those that need them."""
    found = {}
    for number in range(seeds):
        seed = FIRST_SEED + SEED_STEP * number
        decided = decide(given.model_copy(update={"seed": seed}), EXPERIMENTS)
        found[seed] = (*decided.needs(), decided)
    return found


def sizes_of(row: Experiment) -> Sizes:
    """Bytes of a row's weights, and of its last.pt: the weights, their average, the optimiser's."""
    from kernel_lib.models import networks

    n_bytes = sum(t.numel() * t.element_size() for t in networks.build(row).state_dict().values())
    return Sizes(n_bytes, n_bytes * (4 if row.optimizer.startswith("adam") else 3))


def _by_row(values: Sequence[str], experiment: str) -> dict[str, str]:
    """`ROW=VALUE` or `VALUE`, which is the experiment's own."""
    found = {}
    for value in values:
        name, equals, rest = value.partition("=")
        found[name if equals else experiment] = rest if equals else value
    return found


def measurements(
    logs: Sequence[str], seconds: Sequence[str], rows: Mapping[str, Experiment], folds: int
) -> dict[str, Measured]:
    """What was measured, by row; `rows` are the plan's, the wanted one last.

    A log of another size than its row's, as the config.json beside it says, is scaled by pixels;
    plain seconds are of the row's own size. Raises InputError for a row that is not of the plan,
    and where nothing was measured for the wanted one.
    """
    experiment = list(rows)[-1]
    by_log, by_seconds = _by_row(logs, experiment), _by_row(seconds, experiment)
    for name in (*by_log, *by_seconds):
        if name not in rows:
            raise InputError(f"{name!r} is no row of this plan; write one of {', '.join(rows)}")
    found = {name: costs.from_log(Path(p), rows[name].size) for name, p in by_log.items()}
    for name, text in by_seconds.items():
        try:
            value = float(text)
        except ValueError:
            value = 0.0
        if not 0 < value < float("inf"):
            raise InputError(f"--seconds-per-epoch {text!r} is no number of seconds above 0")
        found[name] = costs.from_seconds(value, folds)
    if experiment not in found:
        given = experiment if experiment in EXPERIMENTS else "FILE.json"
        raise InputError(
            f"nothing measured for {experiment}: give --log of a run (runs/RUN/fold0/log.jsonl) or "
            f"--seconds-per-epoch S; a kernel of one epoch measures it: build_kernel.py train "
            f"-p EXPERIMENT {given} -p FOLD 0 -p EPOCHS 1 -p WEIGHTS none"
        )
    return found


@click.command()
@click.argument("experiment")
@click.option("--seeds", type=click.IntRange(min=1), default=1, show_default=True)
@click.option("--folds", type=click.IntRange(min=2), default=5, show_default=True)
@click.option("-p", "given", nargs=2, multiple=True, metavar="NAME VALUE", help="As for training.")
@click.option("--log", "logs", multiple=True, metavar="[ROW=]FILE", help="A run's log.jsonl.")
@click.option("--seconds-per-epoch", "seconds", multiple=True, metavar="[ROW=]S")
@click.option(
    "--session-hours",
    "--hours",
    "hours",
    type=float,
    default=quota.SESSION_HOURS,
    show_default=True,
    help=f"What a session lasts; {quota.SHORT_SESSION_HOURS:g} are reported for some accounts.",
)
@click.option(
    "--write", "out", type=click.Path(file_okay=False, path_type=Path),
    help="Build every kernel here, and push_all.py.",
)  # fmt: skip
@click.option("--owner", help="Kaggle user name; default: KAGGLE_USERNAME or kaggle.json.")
@click.option("--kind", type=click.Choice(metadata.KINDS), default="script", show_default=True)
@click.option("--slug", help="What all kernels' names begin with; default: their run's name.")
@click.option("--data", metavar="OWNER/SLUG", help="The images' data set; default: competition.")
@click.option("--dataset", "datasets", multiple=True, metavar="OWNER/SLUG", help="Also attached.")
@click.option(
    "--model",
    "models",
    multiple=True,
    metavar="OWNER/MODEL/FRAMEWORK/VARIATION/VERSION",
    help="A Kaggle Model, also attached.",
)
@click.option("--offline", "attached", metavar="FOLDER", help="A data set of `offline`, attached.")
@click.option("--without-wheel", is_flag=True, help=f"Do not carry {wheels.CARRIED}.")
def plan(
    experiment, seeds, folds, given, logs, seconds, hours, out, owner, kind, slug, data, datasets,
    models, attached, without_wheel,
) -> None:  # fmt: skip
    """What EXPERIMENT costs on Kaggle; with --write, the kernels that it takes."""
    try:
        session = Session(hours)
        if not 0 < session.usable < float("inf"):
            raise InputError(
                f"--session-hours {hours:g} leaves no hours after start and end; give over 1"
            )
        sources = metadata.Sources(data, datasets, models=models)
        values = {name.lower(): parse_value(text) for name, text in given}
        if own := [name.upper() for name in values if name in _OWN]:
            raise InputError(f"-p {own[0]} is not a plan's: {_OWN[own[0].lower()]}")
        row = paths.experiment_text(experiment)
        asked = TrainParameters.checked(values | {"experiment": row, "n_folds": folds})
        needs.resolve_training(asked.model_copy(update={"with_parents": True}))
        plans = plans_of(asked, seeds)
        rows = {one.row: one.experiment for one in next(iter(plans.values()))}
        measured = measurements(logs, seconds, rows, folds)
        found = _estimate(plans, folds, measured, session, slug)
        click.echo(as_text(found, session))
        if out is not None:
            wanted = offline.manifest(Path(attached)) if attached else None
            carried = () if without_wheel else (wheels.carried(ROOT),)
            _write(found, out, owner, kind, sources, bundle.Cargo(carried, wanted))
    except InputError as error:
        raise click.ClickException(str(error)) from None


def _estimate(plans, folds, measured, session, slug) -> Estimate:
    from kernel_lib.inference import tta

    rows = {one.row: one.experiment for one in next(iter(plans.values()))}
    views = {name: len(tta.views(row.tta)) for name, row in rows.items()}
    sizes = {name: sizes_of(row) for name, row in rows.items()}
    return costs.estimate(plans, folds, measured, session, views, sizes, slug)


def _write(
    found: Estimate, out: Path, owner, kind, sources: metadata.Sources, cargo: bundle.Cargo
) -> None:
    known = metadata.find_owner(ROOT, owner, os.environ, Path.home())
    if known is None:
        raise InputError("sources are named by their owner: give --owner NAME")
    if cargo.wanted:
        sources = replace(sources, datasets=(*sources.datasets, cargo.wanted["dataset"]))
    build = graph.builder(ROOT, known[0], kind, sources, cargo)
    folders = graph.write(found.nodes, out, known[0], build)
    for words in _unmet(found.nodes, folders, cargo.wanted):
        click.echo(words)
    click.echo(f"{len(folders)} kernels in {out}; push them with\n  python {out / graph.PUSHER}")


def _unmet(nodes: Sequence[graph.Node], folders: Sequence[Path], wanted: dict | None) -> list[str]:
    """What the written kernels will miss on Kaggle, each once, with its mend."""
    found = {}
    for node, folder in zip(nodes, folders, strict=True):
        values = {name: parse_value(text) for name, text in node.given}
        meta = metadata.read_base(folder)
        found |= dict.fromkeys(metadata.notes(meta))
        found |= dict.fromkeys(needs.unmet(node.stage, values, meta, wanted))
    return list(found)


if __name__ == "__main__":
    plan()
