"""Command line: library + notebook + parameters -> one file that Kaggle can run, and its push."""

from __future__ import annotations

import os
from pathlib import Path

import click

from kernel_build import bundle, metadata
from kernel_lib.errors import InputError

ROOT = Path(__file__).resolve().parent


class BuildUnlessNamed(click.Group):
    """A group whose `build` need not be said: what is no command's name is build's argument."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if not args or args[0] not in (*self.commands, *ctx.help_option_names):
            args = ["build", *args]
        return super().parse_args(ctx, args)


@click.group(cls=BuildUnlessNamed, context_settings={"help_option_names": ["-h", "--help"]})
def main() -> None:
    """What `kaggle kernels push` needs: kernels as one file each.

    `build_kernel.py STAGE …` is `build_kernel.py build STAGE …`.
    """


@main.command()
@click.argument("stage", required=False, type=click.Choice(list(metadata.STAGES)))
@click.option(
    "-p",
    "parameters",
    nargs=2,
    multiple=True,
    metavar="NAME VALUE",
    help="Bake in a parameter of the notebook, read as papermill reads it; may be repeated.",
)
@click.option(
    "--kind",
    type=click.Choice(metadata.KINDS),
    help="Default: notebook for a stage, both for all stages.",
)
@click.option("--owner", help="Kaggle user name; default: KAGGLE_USERNAME or kaggle.json.")
@click.option(
    "--out",
    type=click.Path(file_okay=False, path_type=Path),
    help="Where the kernels' folders go; default: build in the project.",
)
def build(stage, parameters, kind, owner, out) -> None:
    """Write what `kaggle kernels push` needs, one folder a kernel, for STAGE or for all stages."""
    try:
        known = metadata.find_owner(ROOT, owner, os.environ, Path.home())
        if known is None:
            click.echo(
                f"owner unknown: {metadata.PLACEHOLDER} stays in the metadata, and Kaggle refuses "
                "the push; give --owner NAME or set KAGGLE_USERNAME"
            )
        kinds = (kind,) if kind else ("notebook",) if stage else metadata.KINDS
        for one_stage in (stage,) if stage else metadata.STAGES:
            for one_kind in kinds:
                kernel = bundle.build(
                    ROOT,
                    one_stage,
                    one_kind,
                    given=parameters,
                    owner=known and known[0],
                    out=out,
                )
                click.echo(
                    f"{_shown(kernel.code_file)}: {kernel.size_bytes:,} bytes, "
                    f"{kernel.members} library files"
                )
                click.echo(f"  kaggle kernels push -p {_shown(kernel.folder)}")
        if known and metadata.fill_owner(ROOT, known[0]):
            click.echo(f"owner {known[0]} ({known[1]}) filled into {metadata.FILE}")
    except InputError as error:
        raise click.ClickException(str(error)) from None


def _shown(path: Path) -> Path:
    """A path as it can be typed: relative where it lies below the current folder."""
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path


if __name__ == "__main__":
    main()
