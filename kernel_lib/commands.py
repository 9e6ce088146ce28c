"""The commands beside those of the stages; kernels do not carry them."""

from __future__ import annotations

from pathlib import Path

import click

from kernel_lib.command_line import FILE, FOLDER, GivenPath, add_stage, main
from kernel_lib.errors import InputError

OUT_FILE = GivenPath(dir_okay=False)
SHAPE = click.option(
    "--shape", nargs=2, default=(1024, 1024), show_default=True, help="Height and width, px."
)


@main.command()
@click.argument("submission", type=FILE)
@click.argument("labels", type=GivenPath(exists=True), required=False)
@click.option("--split", type=click.Choice(["test", "train"]), help="Of a data folder [test].")
@click.option(
    "--masks-are", type=click.Choice(["right", "inverted"]),
    help="How to read a data folder's masks that look inverted.",
)  # fmt: skip
@click.option(
    "--all", "everything", is_flag=True,
    help="Print every published definition of the score too, with intervals, and subgroups.",
)  # fmt: skip
@click.option("--metadata", type=FILE, help="With --all: view, sex, age of images [metadata.csv].")
@click.option("--probabilities", type=FILE, help="With --all: for the AUC [SUBMISSION].")
@SHAPE
def score(
    submission: Path,
    labels: Path | None,
    split,
    masks_are,
    everything,
    metadata,
    probabilities,
    shape,
) -> None:
    """Print the mean dice of SUBMISSION against LABELS, over the images in both.

    LABELS is an RLE table or a data folder. Of a folder, the labelled test images (or, with --split
    train, the training images) are scored, each at its own size. With --split and without LABELS,
    the folder is looked for in Kaggle's mounts.
    """
    from kernel_lib.postprocess import submission as submissions
    from kernel_lib.stages import scores

    for option, value in (("metadata", metadata), ("probabilities", probabilities)):
        if value is not None and not everything:
            raise InputError(f"--{option} {value} needs --all: give both")
    files = None
    if labels is not None and not labels.is_dir():
        for option, value in (("split", split), ("masks-are", masks_are)):
            if value is not None:
                raise InputError(f"--{option} {value} needs a data folder, but {labels} is a file")
        pairs = submissions.pair(submission, labels, shape=shape)
    elif labels is None and split is None:
        raise click.UsageError("Missing argument 'LABELS'.")
    else:
        from kernel_lib.kaggle import paths

        labels = paths.data_dir(None) if labels is None else labels
        pairs, files = scores.pair_with_split(submission, labels, split or "test", masks_are)
    result = submissions.score_of(pairs)
    click.echo(f"mean dice {result.dice:.8f} over {result.n_images} images")
    click.echo(f"positives {result.dice_nonempty:.8f} over {result.n_nonempty} images with a mask")
    click.echo(f"empty baseline {result.dice_all_empty:.8f} (no mask in any image)")
    click.echo(f"false negatives {result.n_false_negative}")
    click.echo(f"false positives {result.n_false_positive}")
    for doubt in result.doubts:
        click.echo(f"warning: {doubt}")
    for warning in scores.trained_on(submission):
        click.echo(warning)
    if result.n_only_submission or result.n_only_labels:
        click.echo(
            f"not scored: {result.n_only_submission} images without a label, "
            f"{result.n_only_labels} labels without a prediction"
        )
    if everything:
        from kernel_lib.stages import score_all

        click.echo("")
        click.echo(score_all.text(pairs, submission, labels, files, metadata, probabilities))


@main.command()
@click.argument("submission", type=FILE)
@click.option("--sample", type=FILE, required=True, help="The competition's sample submission.")
@SHAPE
def validate(submission: Path, sample: Path, shape) -> None:
    """Check SUBMISSION against the sample: ids, RLE, one mask per image. Status 1 if wrong."""
    from kernel_lib.postprocess import submission as submissions

    problems = submissions.validate(submission, sample, shape=shape)
    for problem in problems:
        click.echo(problem)
    if problems:
        raise click.exceptions.Exit(1)
    if note := submissions.order_note(submission, sample):
        click.echo(note)
    if doubt := submissions.doubt(submission, shape=shape):
        click.echo(f"warning: {doubt}")
    click.echo(f"{submission} is valid")


@main.command()
@click.argument("submissions", type=FILE, nargs=-1, required=True)
@click.option(
    "--at-least",
    "k",
    type=int,
    required=True,
    help="Minimum votes of a pixel (with --union: of a mask).",
)
@click.option("-o", "--out", type=OUT_FILE, required=True, help="File to write.")
@click.option("--union", is_flag=True, help="Unite masks that overlap with enough others instead.")
@SHAPE
def vote(submissions: tuple[Path, ...], k: int, out: Path, union: bool, shape) -> None:
    """Combine SUBMISSIONS by vote: keep the pixels that at least so many of them contain."""
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
@click.option("--train", "n_train", default=400, show_default=True, help="Training images.")
@click.option("--test", "n_test", default=100, show_default=True, help="Test images.")
@click.option("--size", default=1024, show_default=True, help="Side of the images, px.")
@click.option("--difficulty", default=0.5, show_default=True, help="From 0, easy, to 1, hard.")
@click.option("--seed", default=0, show_default=True, help="Of all that is drawn.")
def phantoms(folder: Path, n_train: int, n_test: int, size: int, **options) -> None:
    """Draw synthetic radiographs (phantoms) into FOLDER, in the competition's file layout."""
    try:
        from tools.phantoms import competition
    except ModuleNotFoundError:
        raise InputError(
            "phantoms need tools/phantoms of the repository: run this in a clone of it"
        ) from None

    competition.write_competition(folder, n_train, n_test, size=size, **options)
    click.echo(
        f"{folder}: {n_train} training and {n_test} test images of {size} px, train-rle.csv, "
        f"sample_submission.csv and the test images' masks, {competition.TEST_TRUTH}"
    )


@main.command()
@click.argument("inputs", type=GivenPath(), nargs=-1, required=True)
@click.option(
    "-o", "--out", type=GivenPath(), required=True,
    help="Folder to write, new or empty, or of an earlier prediction.",
)  # fmt: skip
@click.option("--ensemble", type=GivenPath(), help="The ensemble to use, WORK_DIR/ensembles/NAME.")
@click.option("--model", help="A released model's name or file [the only one in models/].")
@click.option("--onnx", metavar="FILE[,FILE…]", help="ONNX files of export-onnx; needs no torch.")
@click.option(
    "--engine", type=click.Choice(["auto", "torch", "onnxruntime"]),
    help="What computes networks on a CPU [the faster one, where it is installed].",
)  # fmt: skip
@click.option("--device", help="cpu, cuda or cuda:1 [a GPU if there is one].")
@click.option("--precision", help="float32, float16 or bfloat16 [by device].")
@click.option("--batch-size", type=int, help="Images per batch [twice the training's; --onnx 4].")
@click.option("--processes", type=int, help="Processes that share the images [one per GPU].")
@click.option("--workers", type=int, help="Processes that load images [up to 4 with a GPU].")
@click.option("--threads", type=int, help="CPU threads [all].")
def predict(inputs: tuple[Path, ...], out: Path, **options) -> None:
    """Predict masks for INPUTS: DICOM, PNG or JPEG files, or folders of them.

    DICOM files need no suffix. The default is the released model in models/.
    """
    given = [f"--{name}" for name in ("ensemble", "model", "onnx") if options[name] is not None]
    if len(given) > 1:
        raise InputError(f"{' and '.join(given)} exclude each other: give one of them")
    from kernel_lib.stages import predict_files

    click.echo(predict_files.run(inputs, out, **options))


@main.command()
@click.argument("fold", type=FOLDER)
@click.option(
    "--ensemble", type=FOLDER, required=True,
    help="The ensemble of that run only, as thresholds wrote it: its rule and honest score.",
)  # fmt: skip
@click.option("--name", required=True, help="The model's name.")
@click.option("-o", "--out", type=OUT_FILE, help="File to write [models/NAME.safetensors].")
@click.option("--last", is_flag=True, help="Take the last EMA weights, not the best checkpoint.")
@click.option("--licence", default="not stated", show_default=True, help="The model's licence.")
def release(fold: Path, ensemble: Path, name: str, out: Path | None, **options) -> None:
    """Release FOLD, a folder WORK_DIR/runs/RUN/foldK, as one model file with rule and lineage."""
    from kernel_lib.kaggle import paths
    from kernel_lib.stages import release as stage

    target = out or paths.models_dir() / f"{name}.safetensors"
    given, n_bytes = stage.run(fold, ensemble, name, target, **options)
    click.echo(f"{target}: {n_bytes / 1e6:.2f} MB, {len(given.lineage.images)} images seen")
    click.echo(f"rule: {given.rule}")
    click.echo(f"honest dice: {given.score['honest']['dice']:.4f}")


@main.command("export-onnx")
@click.argument("given", metavar="RUN_OR_MODEL")
@click.option("-o", "--out", type=GivenPath(file_okay=False), required=True, help="Their folder.")
@click.option(
    "--ensemble", type=FOLDER,
    help="The ensemble of that run only, for its rule [WORK_DIR/ensembles/RUN].",
)  # fmt: skip
def export_onnx(given: str, out: Path, ensemble: Path | None) -> None:
    """Write a run's folds, or a released model, as ONNX files that `predict --onnx` takes.

    RUN_OR_MODEL is a folder WORK_DIR/runs/RUN, or a released model's name or file.
    """
    from kernel_lib.stages import export_onnx as stage

    for path, n_bytes in stage.run(given, out, ensemble).items():
        click.echo(f"{path}: {n_bytes / 1e6:.1f} MB")


@main.command()
def experiments() -> None:
    """List the experiments: what each is, where it starts, the reference solution's score."""
    from kernel_lib.experiments import EXPERIMENTS, experiments_table

    click.echo(experiments_table(EXPERIMENTS), nl=False)


@main.command()
@click.argument("ensemble", type=FOLDER)
@click.option("-o", "--out", type=OUT_FILE, help="File to write [ENSEMBLE/viewer.html].")
@click.option("--data", "data_dir", type=FOLDER, help="The radiographs' folder [masks only].")
@click.option("--test", is_flag=True, help="Show the test images instead of the held-out ones.")
@click.option("--ids", help="Images to embed, comma-separated [the most informative].")
@click.option("--count", default=200, show_default=True, help="Images to embed at most.")
@click.option("--size", default=512, show_default=True, help="Their longer side, px.")
@click.option("--max-mb", default=25.0, show_default=True, help="The file's limit, MB.")
def view(ensemble: Path, out: Path | None, **options) -> None:
    """Write the viewer of an ENSEMBLE folder's masks: one HTML file for any browser."""
    from kernel_lib.artifacts.filenames import VIEWER
    from kernel_lib.viewer.document import viewer

    page = viewer(ensemble, **options)
    target = page.save(out or ensemble / VIEWER)
    click.echo(f"{target}: {page}; open it in a browser")


@main.command()
@click.argument("results", type=FOLDER)
@click.option(
    "-o", "--out", type=GivenPath(), required=True,
    help="Folder to write, new or empty, or of an earlier export.",
)  # fmt: skip
@click.option(
    "--to", default="png", show_default=True,
    help="Kinds, comma-separated: seg (DICOM), secondary-capture (DICOM), png, nifti.",
)  # fmt: skip
@click.option("--data", "data_dir", type=FOLDER, help="The radiographs' folder [masks only].")
@click.option("--test", is_flag=True, help="Export the submitted masks of the test images.")
@click.option("--fractional", is_flag=True, help="Write probability maps into DICOM SEG files.")
@click.option(
    "--plane/--no-plane", default=True, show_default=True,
    help="State an assumed plane in DICOM SEG files, which OHIF needs.",
)  # fmt: skip
def export(results: Path, out: Path, **options) -> None:
    """Write the masks of RESULTS for other programs, each at its image's own size.

    RESULTS is an ENSEMBLE folder, of which each held-out image's mask is by the rule that was
    chosen without it, or a folder that `predict` wrote. Needs `pip install .[export]` for all kinds
    but png.
    """
    from kernel_lib.stages import export as stage

    click.echo(stage.run(results, out, **options))


@main.command()
@click.argument("ensemble", type=FOLDER)
@click.option(
    "--truth", type=GivenPath(exists=True),
    help="Labels of the test images, if known: a table, or the data folder that holds them.",
)  # fmt: skip
def summary(ensemble: Path, truth: Path | None) -> None:
    """Print the scores of an ENSEMBLE folder and the paths of its files."""
    from kernel_lib.stages import scores

    click.echo(scores.summary(ensemble, truth))


@main.command()
@click.argument("folders", type=FOLDER, nargs=-1, required=True)
@click.option(
    "--into", "work", type=GivenPath(file_okay=False), required=True,
    help="The WORK_DIR to copy into; folds already in it count too.",
)  # fmt: skip
def gather(folders: tuple[Path, ...], work: Path) -> None:
    """Copy folds that several machines or kernels trained into one WORK_DIR.

    Each of FOLDERS is a WORK_DIR or a kernel's output, or holds one up to two levels down.
    Everything is checked before anything is copied: a different folds file, a different
    configuration of the same run, or damaged files are refused. If a fold exists twice, the one
    trained further is taken; unfinished folds are copied too. Running it again copies what is new.
    Ensembles are not copied, except what `statistics` wrote: the thresholds stage makes them again
    in seconds.
    """
    from kernel_lib.stages import gather as stage

    click.echo(stage.run(folders, work))


add_stage(
    "statistics",
    "Write statistics of held-out maps, with which `gather` and thresholds need no maps elsewhere",
    "statistics",
    "statistics",
)
