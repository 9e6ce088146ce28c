"""Folds that several machines or kernels trained → one working folder, complete or not at all."""

from __future__ import annotations

import shlex
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
from tqdm import tqdm

from kernel_lib import storage
from kernel_lib.artifacts import filenames, fold_run, fold_statistics, folds_file
from kernel_lib.artifacts.fold_run import FoldRun
from kernel_lib.artifacts.folds_file import LeftOut
from kernel_lib.errors import InputError
from kernel_lib.kaggle import paths
from kernel_lib.notebook import Signals, bar
from kernel_lib.stages import gather_check
from kernel_lib.stages.gather_check import Fold, Stamp

Places = dict[tuple[str, int], list[Fold]]  # by run and fold, the working folder's first

_BLOCK = 1 << 22  # bytes read at a time
# Images left out of training: equal for equal folds files, shown only in reports.
_LEFT_OUT_FILES = (filenames.LEFT_OUT, filenames.NIH_LEFT_OUT)


@dataclass(frozen=True)
class GatherResult:
    """What now lies in the working folder, and where each fold of it came from."""

    work: Path
    folds: tuple[Fold, ...]  # as they were found, by run and fold
    copied: tuple[str, ...]  # run/fold, and files of statistics, that were not there before
    ensembles: tuple[str, ...]  # of which statistics are there
    notes: tuple[str, ...]

    def table(self) -> pd.DataFrame:
        """A row a run: its folds finished, unfinished and missing, and where they came from."""
        rows = []
        for run in dict.fromkeys(fold.folder.run for fold in self.folds):
            mine = [fold for fold in self.folds if fold.folder.run == run]
            finished = [fold.folder.fold for fold in mine if fold.finished]
            begun = [fold.folder.fold for fold in mine if not fold.finished]
            n_folds = mine[0].config.n_folds
            missing = [k for k in range(n_folds) if k not in (*finished, *begun)]
            places: dict[Path, list[int]] = {}
            for fold in mine:
                places.setdefault(fold.root, []).append(fold.folder.fold)
            origin = "; ".join(f"{root} ({_listed(some)})" for root, some in places.items())
            rows.append((run, n_folds, *map(_listed, (finished, begun, missing)), origin))
        columns = ["run", "folds", "finished", "unfinished", "missing", "from"]
        return pd.DataFrame(rows, columns=columns)

    def __str__(self) -> str:
        lines = [*self.notes, *(_columns(self.table()) if self.folds else ())]
        lines += [
            f"{fold.folder.name} is unfinished ({fold.progress}): run the train stage in this "
            "WORK_DIR to continue"
            for fold in self.folds
            if not fold.finished
        ]
        lines.append(
            f"copied into {self.work}: {', '.join(self.copied) or 'nothing, all of it was there'}"
        )
        done = list(dict.fromkeys(fold.folder.run for fold in self.folds if fold.finished))
        runs = f" -p RUNS {','.join(done)}" if len(done) > 1 else ""
        if not done and self.ensembles:
            done, runs = self.ensembles, f" -p ENSEMBLE {self.ensembles[0]}"
        notebook, work = "thresholds" if done else "train", shlex.quote(str(self.work))
        lines.append(
            f"next: papermill notebooks/{notebook}.ipynb out.ipynb -p WORK_DIR {work}{runs}"
        )
        return "\n".join(lines)


def run(sources: Sequence[Path], work: Path) -> GatherResult:
    """Copy folds.csv, every fold of every run and all statistics into a working folder.

    A source is a working folder or another kernel's output, itself or up to two levels down; `work`
    counts as one. Of the same fold in two places the further one is taken. A fold appears complete
    or not at all, and the same call continues after a kill. Of ensembles only the statistics of
    their folds are copied.

    Raises:
        InputError: Before anything is copied, for a source without runs, damaged files, several
            folds files, several configurations in one run, a fold that was trained twice to other
            weights, statistics that differ, and a working folder that cannot be written.
    """
    work = work.absolute()
    storage.check_writable(work, "--into")
    roots = _roots(sources, work)
    with Signals().caught():
        begun = [(root, folder) for root in roots for folder in fold_run.folds_with_training(root)]
        with bar(begun, desc="check", unit="fold", leave=False) as shown:
            found = [gather_check.opened(root, folder) for root, folder in shown]
        counted = gather_check.statistics(roots)
        folds_path, fold_table = gather_check.one_table(roots, found, counted)
        gather_check.refuse_mixed(found)
        LeftOut.load(roots)  # damage is refused here, and not passed on
        places: Places = {}
        for fold in sorted(found, key=lambda fold: fold.key):  # stable: `work` stays first
            places.setdefault(fold.key, []).append(fold)
        taken = [gather_check.furthest(some) for some in places.values()]
        copies = [fold for fold in taken if fold.root != work]
        _check_room(copies, work)
        with _locked(copies, places, work):
            _bring_table(folds_path, fold_table, roots, work)
            _bring(copies, work)
            brought = _bring_statistics(counted, work)
        _tidy(taken, work)
    return GatherResult(
        work=work,
        folds=tuple(taken),
        copied=(*(fold.folder.name for fold in copies), *brought),
        ensembles=tuple(sorted({path.parents[1].name for path in counted})),
        notes=tuple(_notes(taken, places)),
    )


def _roots(sources: Sequence[Path], work: Path) -> list[Path]:
    """Return the working folder, then each folder of artefacts; InputError for a source without."""
    roots = {work.resolve(): work}
    for source in sources:
        inside = paths.artefacts_below(source)
        if not any(
            fold_run.folds_with_training(root) or fold_statistics.paths_below(root)
            for root in inside
        ):
            held = ", ".join(sorted(entry.name for entry in source.iterdir())[:10]) or "nothing"
            raise InputError(
                f"{source} holds no runs, itself or up to two levels down; it holds {held}: give a "
                "WORK_DIR, or a kernel's output, with runs/<run>/fold<k>/ or "
                "ensembles/<name>/statistics/"
            )
        for root in inside:
            roots.setdefault(root.resolve(), root)
    return list(roots.values())


def _target(work: Path, fold: Fold) -> FoldRun:
    return fold_run.fold_folder(work, *fold.key)


def _bytes(copies: Iterable[Fold]) -> int:
    return sum(size for fold in copies for size, _ in fold.stamps.values())


def _check_room(copies: Sequence[Fold], work: Path) -> None:
    needed = _bytes(copies)
    existing = next(path for path in (work, *work.parents) if path.exists())
    free = shutil.disk_usage(existing).free
    if needed > free:
        raise InputError(
            f"{work} would need {needed / 1e9:.2f} GB, and its disk has {free / 1e9:.2f} GB free: "
            "make room, or gather into another folder"
        )


@contextmanager
def _locked(copies: Iterable[Fold], places: Places, work: Path) -> Iterator[None]:
    """Lock all folders to be written, and refuse files that changed since they were checked."""
    with ExitStack() as held:
        for fold in copies:
            here = _target(work, fold)
            held.enter_context(storage.folder_lock(here.path))
            # A file that was missing at the check may have been written since.
            was: dict[Path, Stamp | None] = {here.config: None, here.last: None}
            for one in places[fold.key]:
                was |= one.stamps
            _refuse_changed(was)
        yield


def _refuse_changed(was: Mapping[Path, Stamp | None]) -> None:
    """Refuse files that changed since they were checked."""
    for path, stamp in was.items():
        if gather_check.stamped(path) != stamp:
            raise InputError(
                f"{path} was written to while it was gathered: wait for the training there to end, "
                "and run the same command again"
            )


def _bring_table(table: Path, fold_table: pd.DataFrame, roots: Sequence[Path], work: Path) -> None:
    """Copy folds.csv first, so that a training that starts here meanwhile takes it too."""
    target = work / filenames.FOLDS
    with storage.folder_lock(target, wait=True):
        if target.exists():
            if differs := folds_file.difference(folds_file.load(target), fold_table):
                raise InputError(
                    f"{target} was drawn meanwhile and is not {table} ({differs}): "
                    f"{gather_check.ONE_FILE}"
                )
        else:
            _copy(table, target)
    for name in _LEFT_OUT_FILES:
        first = next((root / name for root in roots if (root / name).is_file()), None)
        if first is not None and first != work / name:
            _copy(first, work / name)


def _bring(copies: Sequence[Fold], work: Path) -> None:
    total = _bytes(copies)
    with bar(
        total=total, desc="gather", unit="B", unit_scale=True, leave=False, disable=not copies
    ) as shown:
        for fold in copies:
            with storage.atomic_folder(_target(work, fold).path) as staging:
                for path in fold.stamps:
                    _copy(path, staging / path.name, shown)
                _refuse_changed(fold.stamps)


def _bring_statistics(paths: Iterable[Path], work: Path) -> list[str]:
    """Copy the first file of each fold of an ensemble, where none is there; return which."""
    brought = []
    for path in paths:
        name = path.parents[1].name
        target = work / filenames.ENSEMBLES / name / filenames.FOLD_STATISTICS / path.name
        with storage.folder_lock(target.parents[1]):
            if not target.exists():
                _copy(path, target)
                brought.append(f"{name}/{target.parent.name}/{path.stem}")
    return brought


def _tidy(taken: Iterable[Fold], work: Path) -> None:
    """Remove what a killed call left beside folds that it had brought by then."""
    for fold in taken:
        path = _target(work, fold).path
        if any(path.parent.glob(f".{path.name}.*")):
            with suppress(InputError), storage.folder_lock(path):  # else a training works there
                storage.recover_folder(path)


def _copy(path: Path, target: Path, shown: tqdm | None = None) -> None:
    with path.open("rb") as source, storage.atomic_write(target) as copy:
        while block := source.read(_BLOCK):
            copy.write(block)
            if shown is not None:
                shown.update(len(block))


def _notes(taken: Iterable[Fold], places: Places) -> Iterator[str]:
    """Yield a line for each fold that was further in one place than in another."""
    for fold in taken:
        behind = [one for one in places[fold.key] if one.further != fold.further]
        if behind:
            others = "; ".join(f"{one.root}: {one.progress}" for one in behind)
            yield (
                f"note: {fold.folder.name} is taken from {fold.root} ({fold.progress}), where its "
                f"training got furthest; elsewhere: {others}"
            )


def _columns(table: pd.DataFrame) -> Iterator[str]:
    """Yield the lines of a table, aligned to the left."""
    cells = [list(table.columns), *table.astype(str).to_numpy().tolist()]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    for row in cells:
        padded = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        yield "  ".join(padded).rstrip()


def _listed(numbers: Iterable[int]) -> str:
    return " ".join(map(str, numbers)) or "-"
