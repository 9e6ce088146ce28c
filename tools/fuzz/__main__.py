"""Damaged and hostile inputs for all that reads files: an error that names the cause, or right.

python -m tools.fuzz [--cases 100000] [--seed 0] [--target NAME …]
python -m tools.fuzz --target NAME --seed S --case I     one case again, with its traceback
"""

from __future__ import annotations

import sys
import tempfile
from itertools import accumulate
from pathlib import Path

import click

from tools.fuzz import corpus, runner
from tools.fuzz.case import Outcome, desk_of, judge
from tools.fuzz.targets import TARGETS

KEPT = Path("fuzz-faults")
COLUMNS = "{:<14}{:>10}{:>10}{:>10}{:>8}{:>9}"


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--cases", default=100_000, show_default=True, help="of all targets together")
@click.option("--seed", default=0, show_default=True)
@click.option("--target", "names", multiple=True, type=click.Choice(list(TARGETS)))
@click.option("--case", "index", type=int, help="This one case alone, its error as a traceback.")
def main(cases: int, seed: int, names: tuple[str, ...], index: int | None) -> None:
    """Feed damaged and hostile inputs to every reader; faults go to fuzz-faults/, status 1."""
    names = names or tuple(TARGETS)
    files = corpus.gather()
    if index is not None:
        _repeat(names, seed, index, files)
        return
    click.echo(f"seed {seed}, {files.says}")
    click.echo(COLUMNS.format("target", "cases", "refused", "right", "faults", "seconds"))
    tallies = []
    for name, count in _shared(cases, names).items():
        tallies.append(runner.run(name, TARGETS[name], range(count), seed, files, KEPT))
        click.echo(_line(tallies[-1]))
    total = runner.Tally("all")
    for tally in tallies:
        total.cases, total.refused = total.cases + tally.cases, total.refused + tally.refused
        total.right, total.seconds = total.right + tally.right, total.seconds + tally.seconds
        total.faults += [f"{tally.name} {fault}" for fault in tally.faults]
    click.echo(_line(total))
    if total.faults:
        click.echo("\n".join(total.faults[:50]))
        click.echo(f"the inputs, and how to repeat them, are in {KEPT}/")
        raise click.exceptions.Exit(1)


def _shared(cases: int, names: tuple[str, ...]) -> dict[str, int]:
    """Return the number of cases of each target, at least one."""
    shares = list(accumulate(TARGETS[name].share for name in names))
    ends = [0, *(round(cases * share / shares[-1]) for share in shares)]
    return {name: max(1, b - a) for name, a, b in zip(names, ends, ends[1:], strict=False)}


def _line(tally: runner.Tally) -> str:
    return COLUMNS.format(
        tally.name,
        f"{tally.cases:,}",
        f"{tally.refused:,}",
        f"{tally.right:,}",
        f"{len(tally.faults):,}",
        f"{tally.seconds:.0f}",
    )


def _repeat(names: tuple[str, ...], seed: int, index: int, files: corpus.Corpus) -> None:
    if len(names) != 1:
        raise click.UsageError("--case wants one --target")
    with tempfile.TemporaryDirectory(prefix="fuzz-") as folder:
        case = TARGETS[names[0]].make(desk_of(names[0], seed, index, files, Path(folder)))
        click.echo(repr(case.data[:2000]))
        outcome, what = judge(case)
        click.echo(f"{outcome.value} {what}")
        try:
            click.echo(repr(case.attempt())[:2000])
        except Exception as error:
            sys.excepthook(type(error), error, error.__traceback__)
    if outcome is Outcome.FAULT:
        raise click.exceptions.Exit(1)


if __name__ == "__main__":
    main(prog_name="python -m tools.fuzz")
