"""The command line: `python -m kernel_lib COMMAND`. Heavy imports wait for the command's turn."""

from __future__ import annotations

import importlib
import os
from collections.abc import Iterable
from pathlib import Path

import click

from kernel_lib.errors import InputError, nearest
from kernel_lib.stages.table import STAGES


class Commands(click.Group):
    """Commands whose InputErrors are one clear line, not a traceback, and Ctrl-C a status."""

    def invoke(self, context: click.Context):
        try:
            return super().invoke(context)
        except InputError as error:
            raise click.ClickException(str(error)) from error
        except KeyboardInterrupt:
            raise click.exceptions.Exit(130) from None  # as a shell has it

    def resolve_command(self, context: click.Context, args: list[str]):
        if args[0] not in self.commands:
            shown = [name for name, command in self.commands.items() if not command.hidden]
            context.fail(f"{args[0]!r} is no command; nearest: {nearest(args[0], shown)}")
        return super().resolve_command(context, args)


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
def main() -> None:
    """Pneumothorax segmentation: train, search thresholds, infer, vote, score, check."""


class GivenPath(click.Path):
    """A path that is not empty, as an unset variable of a shell leaves it."""

    def __init__(self, **how: bool) -> None:
        super().__init__(path_type=Path, **how)

    def convert(self, value, param, ctx):
        if not str(value).strip():
            self.fail("it is empty: is a variable unset?", param, ctx)
        return super().convert(value, param, ctx)


Pairs = Iterable[tuple[str, str]]
FILE = GivenPath(exists=True, dir_okay=False)
SHAPE = click.option(
    "--shape", nargs=2, type=int, default=(1024, 1024), show_default=True, help="H W of the images"
)


def _parameters(config: Path | None, kind: str, given: Pairs = (), as_text: Pairs = ()):
    """Return the parameters of a JSON file; names and texts given win over those of the file."""
    from kernel_lib import config as settings

    values = {}
    if config is not None:
        if config.suffix in (".ipynb", ".py"):
            raise InputError(
                f"CONFIG {config} is a notebook, and not a JSON of parameters: give those with -p, "
                f"or run the notebook: papermill {config.with_suffix('.ipynb')} out.ipynb"
            )
        try:
            values = settings.from_json(config.read_text(encoding="utf-8"))
        except ValueError as error:
            raise InputError(f"{config} is not JSON that can be used: {error}") from None
    values |= {name.lower(): settings.parse_value(text) for name, text in given}
    values |= {name.lower(): text for name, text in as_text}
    return getattr(settings, kind).checked(values)


class StageCommand(click.Command):
    """A command whose help lists the parameters of a stage's notebook."""

    kind = ""  # the class of its parameters

    def format_epilog(self, context: click.Context, formatter: click.HelpFormatter) -> None:
        from kernel_lib import config

        with formatter.section("Parameters [default]"):
            formatter.write_dl(getattr(config, self.kind).described())


def _add_stage(
    name: str, does: str, stage_name: str, function: str = "run", *, module: str | None = None
) -> None:
    """Add the command of a stage, which takes the parameters of its notebook."""
    kind = f"{stage_name.capitalize()}Parameters"

    @main.command(
        name,
        cls=type("StageCommand", (StageCommand,), {"kind": kind}),
        help=f"{does}, with parameters of the {stage_name} notebook from CONFIG (JSON) or -p.",
    )
    @click.argument("config", type=FILE, required=False)
    @click.option(
        "-p", "given", nargs=2, multiple=True, metavar="NAME VALUE",
        help="A parameter, read as papermill reads it; wins over CONFIG; may be repeated.",
    )  # fmt: skip
    @click.option(
        "-r", "as_text", nargs=2, multiple=True, metavar="NAME TEXT",
        help="A parameter as text, also where that looks like a number, as papermill's -r.",
    )  # fmt: skip
    @click.option("--result", type=GivenPath(), hidden=True)
    def stage(config: Path | None, given, as_text, result: Path | None) -> None:
        # Before torch is loaded.
        parameters = _parameters(config, kind, given, as_text)
        run = getattr(
            importlib.import_module(f"kernel_lib.stages.{module or stage_name}"), function
        )
        if "RANK" in os.environ:  # one of several processes
            from kernel_lib.parallel import ranks

            run = ranks.of(run, result)
        came_to = run(parameters)
        if result is not None and os.environ.get("RANK", "0") == "0":
            from kernel_lib import storage

            storage.write_json(result, came_to.to_json())


for _stage in STAGES.values():
    _add_stage(_stage.name, _stage.does, _stage.name)
_add_stage("predict-test", "Predict the test images", "inference", "predict")
main.commands["predict-test"].hidden = True  # what several processes of one inference run
_add_stage("predict-files", "Predict files", "predict", "predict", module="predict_files")
main.commands["predict-files"].hidden = True  # what several processes of one `predict` run


@main.command()
@click.argument("submission", type=FILE)
@click.argument("labels", type=GivenPath(exists=True), required=False)
@click.option("--split", type=click.Choice(["test", "train"]), help="of a data folder [test]")
@click.option(
    "--masks-are",
    type=click.Choice(["right", "inverted"]),
    help="where those of a data folder look inverted",
)
@SHAPE
def score(
    submission: Path,
    labels: Path | None,
    split: str | None,
    masks_are: str | None,
    shape: tuple[int, int],
) -> None:
    """Mean dice of SUBMISSION against LABELS, over the images in both.

    LABELS is an RLE table, or a data folder, whose labelled test (or training) images count, each
    at its own size; without it, and with --split, the folder is sought on Kaggle's mounts.
    """
    from kernel_lib.postprocess import submission as storage
    from kernel_lib.stages import scores

    if labels is not None and not labels.is_dir():
        for option, value in (("split", split), ("masks-are", masks_are)):
            if value is not None:
                raise InputError(f"--{option} {value} is of a data folder, and {labels} is a file")
        result = storage.score(submission, labels, shape=shape)
    elif labels is None and split is None:
        raise click.UsageError("Missing argument 'LABELS'.")
    else:
        from kernel_lib.kaggle import paths

        folder = paths.data_dir(None) if labels is None else labels
        result = scores.of_split(submission, folder, split or "test", masks_are)
    click.echo(f"mean dice {result.dice:.8f} over {result.n_images} images")
    click.echo(f"non-empty {result.dice_nonempty:.8f} over {result.n_nonempty} images")
    click.echo(f"all empty {result.dice_all_empty:.8f} would be the score of no mask anywhere")
    click.echo(f"missed    {result.n_false_negative}, false alarms {result.n_false_positive}")
    for warning in [*(f"warning: {one}" for one in result.doubts), *scores.trained_on(submission)]:
        click.echo(warning)
    if result.n_only_submission or result.n_only_labels:
        click.echo(
            f"left out  {result.n_only_submission} images without a label, "
            f"{result.n_only_labels} labels without a prediction"
        )


@main.command()
@click.argument("submission", type=FILE)
@click.option("--sample", type=FILE, required=True, help="the competition's sample submission")
@SHAPE
def validate(submission: Path, sample: Path, shape: tuple[int, int]) -> None:
    """Check SUBMISSION against the sample: ids, RLE, one mask an image. Status 1 if it is wrong."""
    from kernel_lib.postprocess import submission as storage

    problems = storage.validate(submission, sample, shape=shape)
    for problem in problems:
        click.echo(problem)
    if problems:
        raise click.exceptions.Exit(1)
    if note := storage.order_note(submission, sample):
        click.echo(note)
    if doubt := storage.doubt(submission, shape=shape):
        click.echo(f"warning: {doubt}")
    click.echo(f"{submission} is valid")


@main.command()
@click.argument("submissions", type=FILE, nargs=-1, required=True)
@click.option("--at-least", "k", type=int, required=True, help="submissions that must agree")
@click.option("-o", "--out", type=GivenPath(dir_okay=False), required=True, help="the vote")
@click.option("--union", is_flag=True, help="unite the masks that agree, instead of voting a pixel")
@SHAPE
def vote(
    submissions: tuple[Path, ...], k: int, out: Path, union: bool, shape: tuple[int, int]
) -> None:
    """Vote of SUBMISSIONS, one voice each: the pixels that at least so many of them hold."""
    from kernel_lib.postprocess import votes
    from kernel_lib.stages import scores

    result = votes.of_files(submissions, out, k, union=union, shape=shape)
    for path, n in zip(submissions, result.n_with_mask, strict=True):
        click.echo(f"{path} has a mask in {n} images")
    click.echo(f"{out}: {result.n_images} images, {result.n_kept} kept a mask")
    for path in submissions:
        for warning in scores.trained_on(path):
            click.echo(f"{path}: {warning}")


@main.command()
@click.argument("folder", type=GivenPath(file_okay=False))
@click.option("--train", "n_train", default=400, show_default=True, help="training images")
@click.option("--test", "n_test", default=100, show_default=True, help="test images")
@click.option("--size", default=1024, show_default=True, help="side of the images, px")
@click.option("--difficulty", default=0.5, show_default=True, help="0 easy to 1 hard")
@click.option("--seed", default=0, show_default=True)
def phantoms(
    folder: Path, n_train: int, n_test: int, size: int, difficulty: float, seed: int
) -> None:
    """Draw phantom radiographs into FOLDER, as the competition's files are."""
    try:
        from tools.phantoms import competition
    except ModuleNotFoundError:
        raise InputError(
            "phantoms are drawn by tools/phantoms of the repository: call this in a clone of it"
        ) from None

    competition.write_competition(
        folder, n_train, n_test, size=size, seed=seed, difficulty=difficulty
    )
    click.echo(
        f"{folder}: {n_train} training and {n_test} test images of {size} px, train-rle.csv, "
        f"sample_submission.csv and the test images' masks, {competition.TEST_TRUTH}"
    )


@main.command()
@click.argument("inputs", type=GivenPath(), nargs=-1, required=True)
@click.option(
    "-o", "--out", type=GivenPath(), required=True,
    help="masks/, overlays/ and predictions.csv; a new or empty folder, or an earlier prediction",
)  # fmt: skip
@click.option("--ensemble", type=GivenPath(), help="WORK_DIR/ensembles/<name>")
@click.option("--model", help="a released model's name or file [the only one in models/]")
@click.option("--device", help="cpu, cuda, cuda:1 [a GPU if there is one]")
@click.option("--precision", help="float32, float16 or bfloat16 [the device's own]")
@click.option("--batch-size", type=int, help="images at once [twice the training's]")
@click.option("--processes", type=int, help="that share the images [one for each GPU]")
@click.option("--workers", type=int, help="processes that load images [up to 4 beside a GPU]")
@click.option("--threads", type=int, help="of the CPU [all]")
def predict(
    inputs: tuple[Path, ...], out: Path, ensemble: Path | None, model: str | None, **how
) -> None:
    """Draw masks on INPUTS: radiographs, or folders of them, as DICOM, PNG or JPEG.

    DICOMs need no ending. Without --ensemble the released model in models/ predicts.
    """
    if ensemble is not None and model is not None:
        raise InputError("--ensemble and --model both say who predicts: give one of them")
    from kernel_lib.stages import predict_files

    click.echo(predict_files.run(inputs, out, ensemble=ensemble, model=model, **how))


@main.command()
@click.argument("fold", type=GivenPath(exists=True, file_okay=False))
@click.option(
    "--ensemble", type=GivenPath(exists=True, file_okay=False), required=True,
    help="the thresholds stage's folder of that run alone: its rule and honest score",
)  # fmt: skip
@click.option("--name", required=True, help="what the model is called")
@click.option("-o", "--out", type=GivenPath(dir_okay=False), help="[models/NAME.safetensors]")
@click.option("--last", is_flag=True, help="the last EMA weights instead of the best checkpoint")
@click.option("--licence", default="not stated", show_default=True, help="under which it is given")
def release(
    fold: Path, ensemble: Path, name: str, out: Path | None, last: bool, licence: str
) -> None:
    """Write one model file from FOLD, WORK_DIR/runs/<run>/fold<k>, with its rule and lineage."""
    from kernel_lib.kaggle import paths
    from kernel_lib.stages import release as stage

    target = out or paths.models_dir() / f"{name}.safetensors"
    given, n_bytes = stage.run(fold, ensemble, name, target, last=last, licence=licence)
    click.echo(f"{target}: {n_bytes / 1e6:.2f} MB, {len(given.lineage.images)} images seen")
    click.echo(f"rule: {given.rule}")
    click.echo(f"honest dice: {given.score['honest']['dice']:.4f}")


@main.command()
def experiments() -> None:
    """List the experiments: what each is, where it starts, and what the notes reported."""
    from kernel_lib import catalogue
    from kernel_lib.experiments import EXPERIMENTS

    click.echo(catalogue.as_markdown(EXPERIMENTS), nl=False)


FOLDER = GivenPath(exists=True, file_okay=False)


@main.command()
@click.argument("ensemble", type=FOLDER)
@click.option("-o", "--out", type=GivenPath(dir_okay=False), help="[ENSEMBLE/viewer.html]")
@click.option("--data", "data_dir", type=FOLDER, help="the radiographs; without it masks alone")
@click.option("--test", is_flag=True, help="the test images instead of those held out")
@click.option("--ids", help="images to embed, comma-separated; else the most telling ones")
@click.option("--count", default=200, show_default=True, help="images to embed at most")
@click.option("--size", default=512, show_default=True, help="their longer side, px")
@click.option("--max-mb", default=25.0, show_default=True, help="the file's limit, MB")
def view(
    ensemble: Path,
    out: Path | None,
    data_dir: Path | None,
    test: bool,
    ids: str | None,
    count: int,
    size: int,
    max_mb: float,
) -> None:
    """Write a page to look at the masks of an ENSEMBLE folder: one file, for any browser."""
    from kernel_lib.viewer.document import viewer

    page = viewer(
        ensemble, test=test, data_dir=data_dir, ids=ids, count=count, size=size, max_mb=max_mb
    )
    target = page.save(out or ensemble / "viewer.html")
    click.echo(f"{target}: {page}; open it in a browser")


@main.command()
@click.argument("ensemble", type=FOLDER)
@click.option(
    "--truth", type=GivenPath(exists=True),
    help="labels of the test images, where they are known, or the data folder that holds them",
)  # fmt: skip
def summary(ensemble: Path, truth: Path | None) -> None:
    """Print an ENSEMBLE folder's scores side by side, and where its artefacts lie."""
    from kernel_lib.stages import scores

    click.echo(scores.summary(ensemble, truth))


@main.command()
@click.argument("folders", type=FOLDER, nargs=-1, required=True)
@click.option(
    "--into", "work", type=GivenPath(file_okay=False), required=True,
    help="the WORK_DIR; what lies there counts too",
)  # fmt: skip
def gather(folders: tuple[Path, ...], work: Path) -> None:
    """Bring the folds that several machines or kernels trained into one WORK_DIR.

    Each of FOLDERS is a WORK_DIR or a kernel's output, itself or up to two levels down. All is
    checked before the first byte is copied: another folds file, another configuration of the same
    run, or damage is refused. Of the same fold in two places the further one is taken; unfinished
    folds come too. Run again, it copies what is new. Ensembles stay behind: the thresholds stage
    makes them anew in seconds.
    """
    from kernel_lib.stages import gather as stage

    click.echo(stage.run(folders, work))


if __name__ == "__main__":
    main(prog_name="python -m kernel_lib")
