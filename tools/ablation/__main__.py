"""The claims of the reference solution, tried on phantoms.

python -m tools.ablation run [--quick] [--seeds 3]   train what is not done yet, write the table
python -m tools.ablation table [--quick]             the table of what is done
python -m tools.ablation real --data DIR             the lite0 experiments on real radiographs
python -m tools.ablation honesty [--sets 400]        do honest scores hold on new images?
"""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import click

from kernel_lib.command_line import Commands
from kernel_lib.experiments import EXPERIMENTS
from tools.ablation import arms, runner, setting, table
from tools.ablation.claims import SECTIONS
from tools.ablation.setting import Place, Setting

ROOT = Path(__file__).resolve().parents[2]
DOCUMENT = Path("docs") / "results.md"
QUICK_ARMS = ("unet", "unet_hflip", "unet_single_rule", "lovasz", "deeplab", "two_networks")


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
def main() -> None:
    """Try the claims of the reference solution on synthetic radiographs."""


QUICK = click.option("--quick", is_flag=True, help="A few tiny arms; the table is only printed.")
SEEDS = click.option("--seeds", type=int, help="How many seeds: 3, or 1 of --quick.")
FOLDER = click.option("--folder", type=click.Path(file_okay=False, path_type=Path), help="Results.")


@main.command()
@QUICK
@SEEDS
@FOLDER
@click.option("--at-once", default=2, show_default=True, help="Arms trained side by side.")
def run(quick: bool, seeds: int | None, folder: Path | None, at_once: int) -> None:
    """Train what is not done yet, and write the table; stopped, it goes on when called again."""
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # for the workers: they share the cores
    selected, how, place, seed_values = _what(quick, seeds, folder)
    runner.settle(selected, how, place)
    if not quick:
        runner.settle_gpu(EXPERIMENTS["UNetResNet34_512_v1"], place)
    _write(quick, runner.run(selected, seed_values, how, place, at_once=at_once), how)


@main.command("table")
@QUICK
@SEEDS
@FOLDER
def write_table(quick: bool, seeds: int | None, folder: Path | None) -> None:
    """Write the table of what is done so far."""
    selected, how, place, seed_values = _what(quick, seeds, folder)
    _write(quick, runner.of_plan(selected, seed_values, how, place), how)


@main.command("real")
@click.option(
    "--data", type=click.Path(file_okay=False, path_type=Path), required=True,
    help="Real radiographs with labels; where it does not exist nothing is done.",
)  # fmt: skip
@click.option("--only", help="Variants, comma-separated; all without it.")
@click.option("--at-once", default=2, show_default=True, help="Trainings side by side.")
@click.option("--gpu", is_flag=True, help="The experiment for a GPU, not those for a CPU.")
@click.option(
    "--weights-dir", type=click.Path(exists=True, path_type=Path),
    help="Folder of timm-tf_efficientnet_lite0.pth, where its package is not installed.",
)  # fmt: skip
@FOLDER
def run_real(
    data: Path,
    only: str | None,
    at_once: int,
    gpu: bool,
    weights_dir: Path | None,
    folder: Path | None,
) -> None:
    """Train the lite0 experiments and their variants on real radiographs; write both tables."""
    if not data.is_dir():
        click.echo(f"skipped: there are no real radiographs at {data} (DATA=FOLDER names others)")
        return
    from tools.ablation import real

    study = real.GPU_STUDY if gpu else real.STUDY
    if weights_dir:
        weights = {"weights_dir": str(weights_dir.resolve()), "weights_are": "imagenet"}
        study = replace(study, training={**study.training, **weights})
    name = "real-gpu" if gpu else "real"
    place = (folder or ROOT / "ablation-results" / name).resolve()
    variants = tuple(only.split(",")) if only else ()
    text = real.run(data.resolve(), place, at_once, variants, study)
    real.write(ROOT / DOCUMENT, text, study)
    click.echo(f"{text}\nwritten into {DOCUMENT}")


@main.command("honesty")
@click.option("--sets", default=400, show_default=True, help="Simulated sets for each cell.")
@click.option("--images", default=1000, show_default=True, help="Out-of-fold images of a set.")
@click.option("--at-once", default=2, show_default=True, help="Processes side by side.")
@FOLDER
def run_honesty(sets: int, images: int, at_once: int, folder: Path | None) -> None:
    """Simulate whether honest scores hold on new images, in an hour; write the table."""
    from tools.ablation import honesty

    os.environ.setdefault("OMP_NUM_THREADS", "1")
    place = (folder or ROOT / "ablation-results" / "honesty").resolve()
    text = honesty.run(place, sets, images, at_once)
    if folder is None:
        table.write(ROOT / DOCUMENT, text, honesty.BEGIN, honesty.END)
    click.echo(text)


def _what(
    quick: bool, seeds: int | None, folder: Path | None
) -> tuple[dict[str, arms.Arm], Setting, Place, tuple[int, ...]]:
    place = Place((folder or ROOT / "ablation-results" / ("quick" if quick else "full")).resolve())
    if not quick:
        return arms.build(), setting.FULL, place, runner.seeds(seeds or 3)
    tiny = arms.BASELINE.differing(name="unet", size=64, epochs=6, min_epochs=3)
    every = arms.build(tiny, (64, 96, 128))
    return (
        {name: every[name] for name in QUICK_ARMS},
        setting.QUICK,
        place,
        runner.seeds(seeds or 1),
    )


def _write(quick: bool, lines: list[runner.Line], how: Setting) -> None:
    sections = table.known(SECTIONS, {line["arm"] for line in lines}) if quick else SECTIONS
    section = table.render(table.Results(lines), how, sections)
    if quick:
        click.echo(section)
        return
    table.write(ROOT / DOCUMENT, section)
    click.echo(f"written into {DOCUMENT}")


if __name__ == "__main__":
    main()
