"""Build, check and rehearse kernels: library, notebook and parameters in one file for Kaggle."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import click

from kernel_build import bundle, check, costs, metadata, names, offline, options, parameters, wheels
from kernel_build.options import FOLDER, OWNER
from kernel_build.plan import plan
from kernel_build.rehearse import rehearse
from kernel_lib.errors import InputError
from kernel_lib.registry import nearest
from kernel_lib.stages.table import STAGES

ROOT = Path(__file__).resolve().parent
FILE = click.Path(dir_okay=False, path_type=Path)


class BuildUnlessNamed(click.Group):
    """A group that runs `build` where the first argument is a stage or an option."""

    command_class = options.Command

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if not args or args[0] in STAGES or args[0].startswith("-"):
            args = args if args and args[0] in ctx.help_option_names else ["build", *args]
        return super().parse_args(ctx, args)

    def resolve_command(self, ctx: click.Context, args: list[str]):
        if args[0] not in self.commands:
            ctx.fail(
                f"{args[0]!r} is neither a stage ({', '.join(STAGES)}) nor a command "
                f"({', '.join(sorted(self.commands))}); nearest: "
                f"{nearest(args[0], (*STAGES, *sorted(self.commands)))}"
            )
        return super().resolve_command(ctx, args)


@click.group(cls=BuildUnlessNamed, context_settings={"help_option_names": ["-h", "--help"]})
def main() -> None:
    """Build kernels for `kaggle kernels push`, each as one file.

    `build_kernel.py STAGE …` is short for `build_kernel.py build STAGE …`.
    """


@main.command()
@click.argument("stage", required=False, type=click.Choice(list(STAGES)))
@click.option(
    "-p", "given", nargs=2, multiple=True, metavar="NAME VALUE",
    help="Set a parameter of the notebook, parsed as papermill does; repeatable.",
)  # fmt: skip
@click.option(
    "--kind", type=options.KIND, help="Kind of kernel [notebook for a stage, both for all stages]."
)
@OWNER
@click.option("--out", type=FOLDER, help="Folder of the kernels' folders [build].")
@click.option("--slug", help="The kernel's name [that of its run or ensemble].")
@click.option(
    "--kernel-source", "kernels", multiple=True, metavar="OWNER/SLUG",
    help="A kernel whose output to attach; repeatable [those of the stages before].",
)  # fmt: skip
@options.ACCELERATOR
@click.option(
    "--session-hours", "hours", type=float,
    help="Length of a session: sets MAX_HOURS of training to half an hour less [what Kaggle's 12 "
    "hours leave].",
)  # fmt: skip
@options.sources
@click.option(
    "--root", "fill_root", is_flag=True,
    help=f"Write the owner into the root's {metadata.FILE} too: `kaggle kernels push` there pushes "
    "the train notebook.",
)  # fmt: skip
def build(
    stage, given, kind, owner, out, slug, accelerator, hours, attached, without_wheel, fill_root,
    **sources,
) -> None:  # fmt: skip
    """Write one folder per kernel for `kaggle kernels push`, of STAGE or of all stages."""
    from kernel_build import needs  # takes half a second to import

    if not stage and (given or slug):
        raise InputError("-p and --slug need a single kernel: name its STAGE")
    limits = _limits(stage, given, hours)
    if accelerator and stage and not STAGES[stage].needs_gpu:
        raise InputError(f"{stage} needs no GPU: leave --accelerator out")
    shape = options.accelerator_name(accelerator)
    known = metadata.find_owner(ROOT, owner, os.environ, Path.home())
    if known is None:
        click.echo(
            f"owner unknown: {metadata.PLACEHOLDER} stays in the metadata, and Kaggle refuses "
            "the push; give --owner NAME or set KAGGLE_USERNAME"
        )
    if fill_root and known is None:
        raise InputError("--root writes the owner: give --owner NAME or set KAGGLE_USERNAME")
    manifest = offline.manifest(attached) if attached else None
    if manifest:
        sources["datasets"] = (*sources["datasets"], manifest["dataset"])
    subject, fold = _subject(stage, given) if given else (None, None)
    kinds = (kind,) if kind else ("notebook",) if stage else metadata.KINDS
    for name in (stage,) if stage else tuple(STAGES):
        inputs = bundle.Inputs(metadata.Sources(**sources))
        if STAGES[name].needs_gpu:
            carried = () if without_wheel else (wheels.carried(ROOT),)
            inputs = replace(inputs, wheels=carried, offline=manifest, accelerator=shape)
        baked = given + limits.get(name, ())
        for each in kinds:
            kernel = bundle.compose(
                ROOT, name, each, given=baked, owner=known and known[0], out=out,
                slug=slug or names.slug(name, each, subject, fold), inputs=inputs,
            )  # fmt: skip
            unmet = list(needs.unmet(name, kernel.parameters, kernel.metadata, manifest))
            kernel.write()
            _print_built(kernel, unmet)
    if fill_root and metadata.fill_owner(ROOT, known[0]):
        click.echo(f"owner {known[0]} ({known[1]}) filled into {metadata.FILE}")


@main.command("check")
@click.argument("folders", nargs=-1, type=FOLDER)
def check_folders(folders) -> None:
    """Print what Kaggle would refuse, or accept silently, in FOLDERS [all that are built].

    Status 1 if there is anything to fix.
    """
    by_folder = check.check(folders or check.built(ROOT))
    for folder, problems in by_folder.items():
        for note in check.notes(folder):
            click.echo(f"{_shown(folder)}: note: {note}")
        for problem in problems:
            click.echo(f"{_shown(folder)}: {problem}")
        if not problems:
            click.echo(f"{_shown(folder)}: fine")
    if any(by_folder.values()):
        raise SystemExit(1)


@main.command("offline")
@click.argument("out", type=FOLDER)
@click.option("--weights", multiple=True, type=FILE, help="A file of encoder weights.")
@click.option(
    "--fetch", multiple=True, metavar="ENCODER", help="Download torchvision's ImageNet weights."
)
@click.option(
    "--wheel", "named", multiple=True, metavar="NAME==VERSION",
    help="Download a wheel for Kaggle's Python.",
)  # fmt: skip
@OWNER
@click.option("--slug", default=offline.SLUG, show_default=True, help="The data set's name.")
def write_offline(out, weights, fetch, named, owner, slug) -> None:
    """Write a data set of weights and wheels into OUT, for kernels without internet."""
    known = metadata.find_owner(ROOT, owner, os.environ, Path.home())
    if known is None:
        raise InputError("owner of the data set unknown: give --owner NAME or set KAGGLE_USERNAME")
    contents = offline.Contents(weights, fetch, named)
    cache = wheels.cache_folder()
    for line in offline.write(out, contents, owner=known[0], slug=slug, cache=cache):
        click.echo(line)
    click.echo(f"  kaggle datasets create -p {_shown(out)}")
    click.echo(f"  python build_kernel.py train --offline {_shown(out)}")


main.add_command(plan)
main.add_command(rehearse)


def _limits(
    stage: str | None, given: tuple[tuple[str, str], ...], hours: float | None
) -> dict[str, tuple[tuple[str, str], ...]]:
    """Return by stage the parameters that --session-hours sets: MAX_HOURS, where a stage has it."""
    if hours is None:
        return {}
    name = "MAX_HOURS"
    limited = [key for key, row in STAGES.items() if name.lower() in row.parameters.model_fields]
    if stage and stage not in limited:
        raise InputError(f"{stage} cannot stop in between: --session-hours is for {limited[0]}")
    if name in dict(given):
        raise InputError(f"--session-hours sets {name}: leave it or -p {name} out")
    pair = (name, f"{costs.Session.of(hours).max_hours:g}")
    return dict.fromkeys(limited, (pair,))


def _subject(stage: str, given: tuple[tuple[str, str], ...]) -> tuple[str | None, int | None]:
    """Return the run and fold, or the ensemble, of a stage with these parameters."""
    from kernel_build import needs

    notebook = f"notebooks/{stage}.py"
    values = parameters.read(bundle.read_notebook(ROOT, stage), notebook, given)
    trained = needs.resolve(stage, values)
    if trained:
        return trained[-1].run, trained[-1].parameters.fold
    return names.ensemble(values), None


def _print_built(kernel: bundle.Kernel, unmet: Sequence[str]) -> None:
    """Print what was built, what it takes in and will miss, and how it is pushed."""
    click.echo(
        f"{_shown(kernel.code_file)}: {kernel.size_bytes:,} bytes, {kernel.n_members} library files"
    )
    inputs = [name for key in metadata.SOURCES for name in kernel.metadata[key]]
    click.echo(f"  from {', '.join(inputs) or 'nothing'}")
    for text in (*metadata.notes(kernel.metadata), *unmet):
        click.echo(f"  {text}")
    click.echo(f"  kaggle kernels push -p {_shown(kernel.folder)}")


def _shown(path: Path) -> Path:
    """Return a path as a user would type it: relative if it is below the current folder."""
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path


if __name__ == "__main__":
    main()
