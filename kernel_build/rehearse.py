"""A built kernel run as Kaggle would run it, and what came of it: pass or fail, a line each."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

import click

from kernel_build import metadata
from kernel_build.rehearsal import checks, sandbox, watch
from kernel_build.rehearsal.checks import Check
from kernel_build.rehearsal.sandbox import Ended, Place
from kernel_lib.errors import InputError
from kernel_lib.kaggle import quota

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOK = "__notebook__.ipynb"  # where Kaggle puts a notebook that it runs
REPORT = "rehearsal.json"  # marks a folder as a rehearsal's, which the next one may empty
REHEARSALS = "rehearsals"  # beside the built kernels, a folder for each
# Where a source of each kind is mounted; the name is what the metadata say.
_MOUNTS = {
    "competition_sources": "competitions",
    "dataset_sources": "datasets",
    "kernel_sources": "notebooks",
    "model_sources": "models",
}


@dataclass(frozen=True)
class Rehearsal:
    """What a rehearsal came to; `working` is what the next kernel takes as its input."""

    checks: tuple[Check, ...]
    working: Path
    log: Path

    @property
    def passed(self) -> bool:
        return all(check.passed for check in self.checks)


def run(
    folder: Path,
    out: Path,
    *,
    data: Path | None = None,
    inputs: dict[str, Path] | None = None,
    seconds: float = quota.SESSION_HOURS * 3600,
    level: str | None = None,
    project: Path = ROOT,
) -> Rehearsal:
    """Run the kernel in `folder` once and check what it did; outputs and log stay in `out`.

    `data` stands for the competition, or for the only data set; `inputs` gives folders by the names
    of the metadata's sources. Raises InputError for a kernel that is none, a source without a
    folder, a folder that is no source, and an `out` that holds something else.
    """
    meta, code_file = read_kernel(folder)
    mounted = mounts(meta, data, inputs or {})
    _empty(out)
    working, log = out / "working", out / "log.txt"
    with tempfile.TemporaryDirectory(prefix="rehearsal-") as scratch:
        chosen = level or sandbox.best_level()
        place = Place(chosen, Path(scratch).resolve(), working, folder, mounted, project.resolve())
        sandbox.prepare(place)
        _put_watch(place)
        before = None if place.level == "bwrap" else _state(mounted)
        ended = _run(place, code_file, log, seconds)
        changed = [] if before is None else _changes(before, _state(mounted))
        found = _verdict(place, meta, folder / code_file, log, ended, seconds, changed)
    written = [{"check": c.name, "passed": c.passed, "says": c.says} for c in found]
    (out / REPORT).write_text(
        json.dumps({"kernel": meta["id"], "level": chosen, "checks": written}, indent=1) + "\n"
    )
    return Rehearsal(tuple(found), working, log)


def read_kernel(folder: Path) -> tuple[dict, str]:
    """A built kernel's metadata and the name of its code file; InputError where it is none."""
    file = folder / metadata.FILE
    try:
        meta = json.loads(file.read_text(encoding="utf-8"))
        code_file = meta["code_file"]
    except FileNotFoundError:
        raise InputError(
            f"{file} does not exist; give a folder that build_kernel.py wrote"
        ) from None
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{file} is no kernel's metadata ({error!r}); build it again") from None
    if not (folder / code_file).is_file():
        raise InputError(
            f"{folder / code_file}, which {file} names, does not exist; build it again"
        )
    if Path(code_file).suffix not in (".py", ".ipynb"):
        raise InputError(f"{code_file} is neither a script (.py) nor a notebook (.ipynb)")
    return meta, code_file


def rehearsed(folder: Path) -> dict[str, Path]:
    """What rehearsals beside this kernel's left, by source, of the kernels that it takes."""
    meta, _ = read_kernel(folder)
    found = {
        name: folder.parent / REHEARSALS / name.rpartition("/")[2] / "working"
        for name in meta.get("kernel_sources", [])
    }
    return {name: path for name, path in found.items() if path.is_dir()}


def mounts(meta: dict, data: Path | None, inputs: dict[str, Path]) -> dict[str, Path]:
    """Folder by path below /kaggle/input, for every source that the metadata name."""
    names = {name: _mounted_at(key, name) for key in _MOUNTS for name in meta.get(key, [])}
    given = dict(inputs)
    for name in given:
        if name not in names:
            there = ", ".join(names) or "none"
            raise InputError(
                f"--input {name} is no source of this kernel, so Kaggle would not mount it; its "
                f"sources: {there}"
            )
    if data is not None:
        sets = [*meta.get("competition_sources", []), *meta.get("dataset_sources", [])]
        free = [name for name in sets if name not in given]
        if not free:
            raise InputError("--data stands for a competition or data set, and the kernel has none")
        given[free[0]] = data
    absent = [name for name in names if name not in given]
    if absent:
        raise InputError(
            f"no folder for {', '.join(absent)}: give --data DIR for the competition or data set, "
            "--input NAME=FOLDER for others (a kernel's is what its own rehearsal left, a model's "
            "its files)"
        )
    for name, folder in given.items():
        if not folder.is_dir():
            raise InputError(f"{folder}, given for {name}, is no folder")
    return {names[name]: folder for name, folder in given.items()}


def _mounted_at(key: str, name: str) -> str:
    """Return where Kaggle mounts a source, below /kaggle/input: versions only of a model."""
    parts = name.split("/")
    if key == "model_sources" and len(parts) == 5:
        parts[2] = parts[2].lower()  # named pyTorch, mounted as pytorch (seen in public notebooks)
    return "/".join([_MOUNTS[key], *(parts if key == "model_sources" else parts[:2])])


def _empty(out: Path) -> None:
    if out.is_dir() and any(out.iterdir()) and not (out / REPORT).is_file():
        raise InputError(f"{out} holds something that no rehearsal wrote; give another --out")
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)


def _put_watch(place: Place) -> None:
    """The watch under the name that Python loads at each start, and what it looks at."""
    shutil.copy(watch.__file__, place.watch / "sitecustomize.py")
    hidden = place.level == "bwrap"
    settings = {
        "inputs": ["/kaggle/input"] if hidden else sorted(_real(place.inputs.values())),
        "project": [] if hidden else [str(place.project)],
        "allowed": [
            str(p) for p in (*sandbox.environments(), place.scratch, place.working.resolve())
        ],
    }
    (place.watch / "watch.json").write_text(json.dumps(settings))


def _real(folders) -> set[str]:
    return {str(folder.resolve()) for folder in folders}


def _run(place: Place, code_file: str, log: Path, seconds: float) -> Ended:
    """A script as it is; a notebook in place by papermill, then its page by nbconvert."""
    python = str(sandbox.interpreter())
    if code_file.endswith(".py"):
        command = [python, f"{place.seen('src')}/{code_file}"]
        return sandbox.run(place, command, log, seconds, os.environ)
    notebook = place.working / NOTEBOOK
    shutil.copy(place.source / code_file, notebook)
    command = [python, "-m", "papermill", "--log-output", "--no-progress-bar"]
    ended = sandbox.run(place, [*command, NOTEBOOK, NOTEBOOK], log, seconds, os.environ)
    if ended.stopped or importlib.util.find_spec("nbconvert") is None:
        return ended
    # A page that cannot be made fails a notebook that ran, as on Kaggle.
    page = [python, "-m", "nbconvert", "--to", "html", "--log-level", "WARN", "--output",
            "__results__", NOTEBOOK]  # fmt: skip
    rest = sandbox.run(place, page, log, seconds - ended.seconds, os.environ)
    whole = ended.seconds + rest.seconds
    return Ended(ended.status or rest.status, rest.stopped, whole)


def _verdict(
    place: Place,
    meta: dict,
    code_file: Path,
    log: Path,
    ended: Ended,
    seconds: float,
    changed: list[str],
) -> list[Check]:
    text = log.read_text(encoding="utf-8", errors="replace")
    notebook = place.working / NOTEBOOK if code_file.suffix == ".ipynb" else None
    stage = checks.stage_of(code_file.read_text(encoding="utf-8"))
    # Off Kaggle's own paths the library keeps its artefacts in `work` below the current folder.
    inner = "" if place.level == "bwrap" else "work/"
    files = sorted(
        path.relative_to(place.working).as_posix().removeprefix(inner)
        for path in place.working.rglob("*")
        if not path.is_dir() or path.is_symlink()
    )
    seen_file = place.watch / "seen.jsonl"
    lines = seen_file.read_text(encoding="utf-8").splitlines() if seen_file.is_file() else []
    seen = [json.loads(line) for line in lines]
    return [
        checks.of_metadata(meta, code_file),
        *checks.of_end(ended, seconds),
        checks.of_log(text, notebook),
        checks.of_watch("network", seen),
        checks.of_watch("project", seen),
        checks.of_watch("input", seen, changed),
        checks.of_outputs(files, stage, text),
        checks.of_litter(files, stage),
        checks.of_size(quota.usage(place.working)),
    ]


def _state(mounted: dict[str, Path]) -> dict[str, tuple[int, int]]:
    """Size and time of every input file, to find what was changed where nothing forbids it."""
    found = {}
    for name, folder in mounted.items():
        for path in folder.rglob("*"):
            if path.is_file():
                stat = path.stat()
                key = f"{name}/{path.relative_to(folder).as_posix()}"
                found[key] = (stat.st_size, stat.st_mtime_ns)
    return found


def _changes(before: dict, after: dict) -> list[str]:
    return sorted(k for k in {*before, *after} if before.get(k) != after.get(k))


def _named_folder(context, parameter, values: tuple[str, ...]) -> dict[str, Path]:
    found = {}
    for value in values:
        name, equals, folder = value.partition("=")
        if not equals or not name or not folder:
            raise click.BadParameter(f"{value!r} is not NAME=FOLDER")
        found[name] = Path(folder)
    return found


@click.command()
@click.argument("folder", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option(
    "--data",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="Stands for the competition, or for the data set that holds its files.",
)
@click.option(
    "--input",
    "inputs",
    multiple=True,
    metavar="NAME=FOLDER",
    callback=_named_folder,
    help="Stands for another source, NAME as the metadata has it; may be repeated. Default for a "
    "kernel: what its rehearsal beside this one left.",
)
@click.option(
    "--session-hours",
    "--hours",
    "hours",
    type=float,
    default=quota.SESSION_HOURS,
    show_default=True,
    help="What a session lasts.",
)
@click.option(
    "--scale",
    type=float,
    default=1.0,
    show_default=True,
    help="Of the time limit: 0.01 makes a session of 12 h one of 7 minutes.",
)
@click.option(
    "--out",
    type=click.Path(file_okay=False, path_type=Path),
    help="Where outputs and log stay; default: rehearsals/SLUG beside FOLDER.",
)
@click.option("--level", type=click.Choice(sandbox.LEVELS), help="Default: the strictest possible.")
def rehearse(folder, data, inputs, hours, scale, out, level) -> None:
    """Run the built kernel in FOLDER as Kaggle would, and check what it leaves."""
    try:
        if hours * scale <= 0:
            raise InputError(
                f"--session-hours {hours} × --scale {scale} leave no time; give both above 0"
            )
        chosen = level or sandbox.best_level()
        folder = folder.resolve()
        click.echo(f"rehearsal of {folder.name}; {sandbox.SAYS[chosen]}")
        inputs = rehearsed(folder) | inputs
        out = out or folder.parent / REHEARSALS / folder.name
        done = run(
            folder, out.resolve(), data=data, inputs=inputs,
            seconds=hours * scale * 3600, level=chosen,
        )  # fmt: skip
    except InputError as error:
        raise click.ClickException(str(error)) from None
    for check in done.checks:
        click.echo(str(check))
    click.echo(f"outputs: {done.working}\nlog: {done.log}")
    failed = sum(not check.passed for check in done.checks)
    click.echo(f"{len(done.checks) - failed} passed, {failed} failed")
    if failed:
        raise SystemExit(1)


if __name__ == "__main__":
    rehearse()
