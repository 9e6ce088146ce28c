"""The command line with the commands of the stages, which is all that a kernel carries of it.

Each command imports what it needs when it runs, so that `--help` starts without NumPy or torch.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Iterable
from pathlib import Path

import click

from kernel_lib.errors import InputError
from kernel_lib.registry import nearest
from kernel_lib.stages.table import STAGES


class Commands(click.Group):
    """A group that shows an InputError as one line without a traceback; Ctrl-C is status 130."""

    def invoke(self, context: click.Context):
        try:
            return super().invoke(context)
        except InputError as error:
            raise click.ClickException(str(error)) from error
        except KeyboardInterrupt:
            raise click.exceptions.Exit(130) from None  # the status that shells use

    def resolve_command(self, context: click.Context, args: list[str]):
        if args[0] not in self.commands:
            shown = [name for name, command in self.commands.items() if not command.hidden]
            context.fail(f"{args[0]!r} is not a command; nearest: {nearest(args[0], shown)}")
        return super().resolve_command(context, args)


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
def main() -> None:
    """Segment pneumothorax on chest radiographs: train, search thresholds, predict, score.

    `COMMAND --help` explains a command; docs/glossary.md explains the words.
    """


class GivenPath(click.Path):
    """A path type that refuses the empty text of an unset shell variable."""

    def __init__(self, **options: bool) -> None:
        super().__init__(path_type=Path, **options)

    def convert(self, value, param, ctx):
        if not str(value).strip():
            self.fail("it is empty: is a variable unset?", param, ctx)
        return super().convert(value, param, ctx)


Pairs = Iterable[tuple[str, str]]
FILE = GivenPath(exists=True, dir_okay=False)
FOLDER = GivenPath(exists=True, file_okay=False)


def read_parameters(config: Path | None, kind: str, given: Pairs = (), as_text: Pairs = ()):
    """Return the parameters of a JSON file, overridden by those of `-p` and `-r`."""
    from kernel_lib import config as settings

    values = {}
    if config is not None:
        if config.suffix in (".ipynb", ".py"):
            raise InputError(
                f"CONFIG {config} is a notebook, not a JSON file of parameters: give parameters "
                f"with -p, or run papermill {config.with_suffix('.ipynb')} out.ipynb"
            )
        try:
            values = settings.from_json(config.read_text(encoding="utf-8"))
        except ValueError as error:
            raise InputError(f"{config} is not valid JSON: {error}") from None
    values |= {name.lower(): settings.parse_value(text) for name, text in given}
    values |= {name.lower(): text for name, text in as_text}
    return getattr(settings, kind).checked(values)


class StageCommand(click.Command):
    """A stage's command, whose help lists the parameters of its notebook."""

    kind = ""  # name of the class of its parameters

    def format_epilog(self, context: click.Context, formatter: click.HelpFormatter) -> None:
        from kernel_lib import config

        with formatter.section("Parameters [default]"):
            formatter.write_dl(getattr(config, self.kind).described())


def add_stage(name: str, does: str, stage_name: str, module: str, function: str = "run") -> None:
    """Add a command that calls kernel_lib.stages.<module>.<function> with a stage's parameters."""
    kind = f"{stage_name.capitalize()}Parameters"
    whose = f"the {stage_name} notebook's " if stage_name in STAGES else ""

    @main.command(
        name,
        hidden=function != "run",  # is run by each of several processes
        cls=type("StageCommand", (StageCommand,), {"kind": kind}),
        help=f"{does}, with {whose}parameters from CONFIG (JSON) or -p.",
    )
    @click.argument("config", type=FILE, required=False)
    @click.option(
        "-p", "given", nargs=2, multiple=True, metavar="NAME VALUE",
        help="Set a parameter, parsed as papermill does; overrides CONFIG; repeatable.",
    )  # fmt: skip
    @click.option(
        "-r", "as_text", nargs=2, multiple=True, metavar="NAME TEXT",
        help="Set a parameter as text, even if it looks like a number, as papermill's -r.",
    )  # fmt: skip
    @click.option("--result", type=GivenPath(), hidden=True)
    def stage(config: Path | None, given, as_text, result: Path | None) -> None:
        parameters = read_parameters(config, kind, given, as_text)  # checked before torch is loaded
        run = getattr(importlib.import_module(f"kernel_lib.stages.{module}"), function)
        if "RANK" in os.environ:  # one of several processes
            from kernel_lib.parallel import launch

            run = launch.as_rank(run, result)
        outcome = run(parameters)
        if result is not None and os.environ.get("RANK", "0") == "0":
            from kernel_lib import storage

            storage.write_json(result, outcome.to_json())


for _stage in STAGES.values():
    add_stage(_stage.name, _stage.does, _stage.name, _stage.name)
add_stage("predict-test", "Predict the test images", "inference", "inference", "predict")
add_stage("predict-files", "Predict files", "predict", "predict_files", "predict")
