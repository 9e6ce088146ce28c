"""Run a built kernel as Kaggle would, and check what it did: a line each, pass or fail."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

import click

from kernel_build import bundle, metadata, options
from kernel_build.rehearsal import checks, sandbox, watch
from kernel_build.rehearsal.checks import Check
from kernel_build.rehearsal.sandbox import Ended, Place
from kernel_lib.errors import InputError
from kernel_lib.kaggle import quota

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOK = "__notebook__.ipynb"  # where Kaggle puts a notebook that it runs
REPORT = "rehearsal.json"  # marks a folder as a rehearsal's, which the next one may empty
EXISTING = click.Path(exists=True, file_okay=False, path_type=Path)
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
    """The checks of a rehearsal; `working` is the input of the next kernel."""

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
    """Run the kernel in `folder` once, and check what it did.

    Args:
        out: Where its outputs and log stay.
        data: Stands for the competition, or the first data set.
        inputs: Folders by the names of the metadata's sources.
        seconds: The length of the session.
        level: How strictly it is enclosed, of `sandbox.LEVELS`; None: as strictly as possible.
        project: The folder that the kernel must not read.

    Raises: InputError for a folder that is not a kernel, a source without a folder, a folder for
        no source, and an `out` that holds something else.
    """
    meta, code_file = read_kernel(folder)
    mounted = mounts(meta, data, inputs or {})
    _empty(out)
    working, log = out / "working", out / "log.txt"
    with tempfile.TemporaryDirectory(prefix="rehearsal-") as scratch:
        level = level or sandbox.best_level()
        place = Place(level, Path(scratch).resolve(), working, folder, mounted, project.resolve())
        sandbox.prepare(place)
        _put_watch(place)
        before = None if place.level == "bwrap" else _state(mounted)
        ended = _run(place, code_file, log, seconds)
        changed = [] if before is None else _changes(before, _state(mounted))
        results = _verdict(place, meta, folder / code_file, log, ended, seconds, changed)
    written = [{"check": c.name, "passed": c.passed, "says": c.text} for c in results]
    (out / REPORT).write_text(
        json.dumps({"kernel": meta["id"], "level": level, "checks": written}, indent=1) + "\n"
    )
    return Rehearsal(tuple(results), working, log)


def read_kernel(folder: Path) -> tuple[dict, str]:
    """Return a built kernel's metadata and the name of its code file.

    Raises: InputError for another folder.
    """
    file = folder / metadata.FILE
    try:
        meta = json.loads(file.read_text(encoding="utf-8"))
        code_file = meta["code_file"]
    except FileNotFoundError:
        raise InputError(
            f"{file} does not exist; give a folder that build_kernel.py wrote"
        ) from None
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{file} is not a kernel's metadata ({error!r}); build it again") from None
    if not (folder / code_file).is_file():
        raise InputError(
            f"{folder / code_file}, which {file} names, does not exist; build it again"
        )
    if Path(code_file).suffix not in (".py", ".ipynb"):
        raise InputError(f"{code_file} is neither a script (.py) nor a notebook (.ipynb)")
    return meta, code_file


def rehearsed(folder: Path) -> dict[str, Path]:
    """Return by source what earlier rehearsals left of the kernels that this one takes."""
    meta, _ = read_kernel(folder)
    left = {
        name: folder.parent / REHEARSALS / name.rpartition("/")[2] / "working"
        for name in meta.get("kernel_sources", [])
    }
    return {name: path for name, path in left.items() if path.is_dir()}


def mounts(meta: dict, data: Path | None, inputs: dict[str, Path]) -> dict[str, Path]:
    """Return folders by path below /kaggle/input, for every source of the metadata."""
    names = {name: _mounted_at(key, name) for key in _MOUNTS for name in meta.get(key, [])}
    given = dict(inputs)
    for name in given:
        if name not in names:
            raise InputError(
                f"--input {name} is not a source of this kernel: Kaggle would not mount it; "
                f"its sources: {', '.join(names) or 'none'}"
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
            raise InputError(f"{folder}, given for {name}, is not a folder")
    return {names[name]: folder for name, folder in given.items()}


def _mounted_at(key: str, name: str) -> str:
    """Return where Kaggle mounts a source, below /kaggle/input: versions only of a model."""
    parts = name.split("/")
    if key == "model_sources" and len(parts) == 5:
        parts[2] = parts[2].lower()  # named pyTorch, mounted as pytorch (seen in public notebooks)
    return "/".join([_MOUNTS[key], *(parts if key == "model_sources" else parts[:2])])


def _empty(out: Path) -> None:
    if out.is_dir() and any(out.iterdir()) and not (out / REPORT).is_file():
        raise InputError(f"{out} holds files that no rehearsal wrote; give another --out")
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)


def _put_watch(place: Place) -> None:
    """Copy the watch under the name that Python loads at each start, with its settings."""
    shutil.copy(watch.__file__, place.watch / "sitecustomize.py")
    hidden, inputs = place.level == "bwrap", place.inputs.values()
    settings = {
        "inputs": ["/kaggle/input"] if hidden else [path.resolve() for path in inputs],
        "project": [] if hidden else [place.project],
        "allowed": [*sandbox.environments(), place.scratch, place.working.resolve()],
    }
    (place.watch / "watch.json").write_text(json.dumps(settings, default=str))


def _run(place: Place, code_file: str, log: Path, seconds: float) -> Ended:
    """Run a script, or a notebook in place by papermill, then make its page by nbconvert."""
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
    return Ended(ended.status or rest.status, rest.stopped, ended.seconds + rest.seconds)


def _verdict(
    place: Place, meta: dict, code: Path, log: Path, ended: Ended, seconds: float, changed: list
) -> list[Check]:
    text = log.read_text(encoding="utf-8", errors="replace")
    notebook = place.working / NOTEBOOK if code.suffix == ".ipynb" else None
    stage = bundle.stage_of(code.read_text(encoding="utf-8"))
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
        checks.of_metadata(meta, code),
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
    """Return size and time of each input file, to see what changed where nothing forbids it."""
    state = {}
    for name, folder in mounted.items():
        for path in folder.rglob("*"):
            if path.is_file():
                stat = path.stat()
                key = f"{name}/{path.relative_to(folder).as_posix()}"
                state[key] = (stat.st_size, stat.st_mtime_ns)
    return state


def _changes(before: dict, after: dict) -> list[str]:
    return sorted(k for k in {*before, *after} if before.get(k) != after.get(k))


def _named_folder(context, parameter, values: tuple[str, ...]) -> dict[str, Path]:
    folders = {}
    for value in values:
        name, equals, folder = value.partition("=")
        if not equals or not name or not folder:
            raise click.BadParameter(f"{value!r} is not NAME=FOLDER")
        folders[name] = Path(folder)
    return folders


@click.command(cls=options.Command)
@click.argument("folder", type=EXISTING)
@click.option(
    "--data", type=EXISTING,
    help="Folder to mount as the competition, or as the data set of its files.",
)  # fmt: skip
@click.option(
    "--input", "inputs", multiple=True, metavar="NAME=FOLDER", callback=_named_folder,
    help="Folder to mount as another input, NAME as in the metadata; repeatable [for a kernel: the "
    "output of its rehearsal beside this one].",
)  # fmt: skip
@click.option(
    "--session-hours", "--hours", "hours", type=float, default=quota.SESSION_HOURS,
    show_default=True, help="Length of a session.",
)  # fmt: skip
@click.option(
    "--scale", type=float, default=1.0, show_default=True,
    help="Factor of the time limit: 0.01 turns a session of 12 h into 7 minutes.",
)  # fmt: skip
@click.option(
    "--out", type=options.FOLDER,
    help="Folder for outputs and log [rehearsals/SLUG beside FOLDER].",
)  # fmt: skip
@click.option(
    "--level", type=click.Choice(list(sandbox.LEVELS)),
    help="How strictly to isolate the kernel [as strictly as possible].",
)  # fmt: skip
def rehearse(folder, data, inputs, hours, scale, out, level) -> None:
    """Run the built kernel in FOLDER as Kaggle would, and check what it leaves."""
    if hours * scale <= 0:
        raise InputError(
            f"--session-hours {hours} × --scale {scale} leave no time; give both above 0"
        )
    level = level or sandbox.best_level()
    folder = folder.resolve()
    click.echo(f"rehearsal of {folder.name}; {sandbox.LEVELS[level]}")
    inputs = rehearsed(folder) | inputs
    out = (out or folder.parent / REHEARSALS / folder.name).resolve()
    seconds = hours * scale * 3600
    done = run(folder, out, data=data, inputs=inputs, seconds=seconds, level=level)
    for check in done.checks:
        click.echo(str(check))
    click.echo(f"outputs: {done.working}\nlog: {done.log}")
    failed = sum(not check.passed for check in done.checks)
    click.echo(f"{len(done.checks) - failed} passed, {failed} failed")
    if failed:
        raise SystemExit(1)
