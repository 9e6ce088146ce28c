"""What the commands of build_kernel.py share: errors without a traceback, and options."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import click

from kernel_build import accelerators, metadata, wheels
from kernel_build.accelerators import ACCELERATORS
from kernel_lib.errors import InputError

FOLDER = click.Path(file_okay=False, path_type=Path)
KIND = click.Choice(metadata.KINDS)
OWNER = click.option("--owner", help="Kaggle user name [KAGGLE_USERNAME or kaggle.json].")
ACCELERATOR = click.option(
    "--accelerator", metavar="NAME",
    help=f"What kernels with a network run on: {', '.join(ACCELERATORS)} [the one that the root's "
    f"{metadata.FILE} names].",
)  # fmt: skip
_SOURCES = (
    click.option(
        "--data", metavar="OWNER/SLUG",
        help="The data set to read, or another competition's slug [the competition].",
    ),
    click.option(
        "--dataset", "datasets", multiple=True, metavar="OWNER/SLUG",
        help="A data set to attach; repeatable.",
    ),
    click.option(
        "--model", "models", multiple=True, metavar="OWNER/MODEL/FRAMEWORK/VARIATION/VERSION",
        help="A Kaggle Model to attach, such as encoder weights; repeatable.",
    ),
    click.option("--offline", "attached", type=FOLDER, help="A folder of `offline` to attach."),
    click.option("--without-wheel", is_flag=True, help=f"Do not carry {wheels.CARRIED}."),
)  # fmt: skip


class Command(click.Command):
    """A command that shows an InputError as one line, with status 1."""

    def invoke(self, context: click.Context):
        try:
            return super().invoke(context)
        except InputError as error:
            raise click.ClickException(str(error)) from None


def accelerator_name(given: str | None) -> str | None:
    """Return what to write for --accelerator, and print where a retired one is replaced.

    Raises: InputError for a TPU or an unknown name.
    """
    if given is None:
        return None
    name = accelerators.find(given).name
    if replaced := accelerators.replacement(given):
        click.echo(f"--accelerator {replaced}; the kernels name {name}")
    return name


def sources(command: Callable) -> Callable:
    """Add the options of what is attached to a kernel, and of what it carries."""
    for option in reversed(_SOURCES):
        command = option(command)
    return command
