"""What an unfinished life of a stage may leave: files as they were, as they will be, or growing."""

from __future__ import annotations

import json
import re
from contextlib import closing
from pathlib import Path

from kernel_lib import checkpoints
from kernel_lib.artifacts import filenames, fold_run
from kernel_lib.data.cache_store import Journal, Store
from kernel_lib.errors import InputError
from tools.torture.stages import AT_ONCE, SIZE, Place, content

_KEPT = rf"{filenames.BEST}\d+\{filenames.CHECKPOINT_SUFFIX}"
_CACHE = r"rows\.jsonl|pixels\.u8|masks\.bits"
GROWING = re.compile(rf"{re.escape(filenames.LAST)}|{_KEPT}|{re.escape(filenames.LOG)}|{_CACHE}")
# What a stage may remove: a checkpoint of an epoch that comes again, a cache that it makes again,
# and what was made by a rule that is no more.
GOES = re.compile(rf"{_KEPT}|{_CACHE}|{re.escape(filenames.TEST_RUN)}")

# Of each file, by its path within the folder, what changes wherever it is written.
Seen = dict[Path, tuple[int, int, int]]


def seen(folder: Path) -> Seen:
    files = {}
    for path in (path for path in folder.rglob("*") if path.is_file()):
        stat = path.stat()
        files[path.relative_to(folder)] = (stat.st_ino, stat.st_size, stat.st_mtime_ns)
    return files


def broken(name: str, before: Seen, place: Place) -> list[str]:
    """Return what a stage that ended by itself left neither as it was nor as it will be."""
    now, faults, new = seen(place.trial), [], {}
    for path in sorted({*before, *now}):
        if any(part.startswith(".") for part in path.parts):  # a killed life's, never this one's
            faults += [f"{path} is left behind"] * (path in now and path not in before)
        elif path not in now:
            faults += [f"{path} is gone"] * (not GOES.fullmatch(path.name))
        elif now[path] == before.get(path):
            new[path] = False
        elif (place.whole / path).is_file() and _as_in(place.whole, place.trial, path):
            new[path] = True
        elif not GROWING.fullmatch(path.name):
            faults.append(f"{path} is neither as it was nor as it will be")
    if len({new[path] for path in new if path.name in AT_ONCE.get(name, ())}) > 1:
        faults.append(f"of {', '.join(AT_ONCE[name])} some are old and some new")
    return faults + _folds_broken(place.trial) + _caches_broken(place)


def _as_in(undisturbed: Path, trial: Path, path: Path) -> bool:
    try:
        return content(undisturbed / path) == content(trial / path)
    except (InputError, ValueError):
        return False


def _folds_broken(trial: Path) -> list[str]:
    """Return checkpoints that do not load, or that contradict the files beside them."""
    faults = []
    for folder in (fold for work in trial.iterdir() for fold in fold_run.folds_with_training(work)):
        last = folder.last
        if not last.is_file():
            continue
        try:
            position = checkpoints.load(last)[0]["position"]
            for path in folder.kept():
                checkpoints.load(path)
        except InputError as error:
            faults.append(str(error))
            continue
        log = [json.dumps(line) for line in folder.read_log()]
        history = [json.dumps(line) for line in position["history"]]
        if log != history[: len(log)]:  # which the next start completes
            faults.append(f"{folder.log} says otherwise than {last}")
        kept = [folder.best(kept_epoch["epoch"]) for kept_epoch in position["kept"]]
        faults += [f"{path} is gone, which {last} names" for path in kept if not path.is_file()]
    return faults


def _caches_broken(place: Place) -> list[str]:
    """Return slots that count as done and hold something else than the undisturbed run's."""
    faults = []
    for journal in place.trial.glob("cache/**/rows.jsonl"):
        beside = place.whole / journal.relative_to(place.trial)
        mine, theirs = _slots(journal.parent), _slots(beside.parent)
        wrong = [image_id for image_id in mine if mine[image_id] != theirs[image_id]]
        faults += [f"{journal.parent}: {image_id} counts as done and is not" for image_id in wrong]
    return faults


def _slots(folder: Path) -> dict[str, bytes]:
    """Return pixels and mask of each image that is done."""
    store = Store(folder, SIZE)
    if not store.journal.stat().st_size:
        return {}
    with closing(Journal(store)) as journal:
        slots, rows = journal.slots, journal.rows
    parts = {}
    for image_id, slot in slots.items():
        if slot in rows:
            parts[image_id] = _part(store.pixels, slot, store.pixel_bytes)
            if rows[slot].area_px:
                parts[image_id] += _part(store.masks, slot, store.mask_bytes)
    return parts


def _part(path: Path, slot: int, length: int) -> bytes:
    with path.open("rb") as file:
        file.seek(slot * length)
        return file.read(length)
