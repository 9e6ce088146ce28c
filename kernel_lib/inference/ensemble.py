"""Ensembles: which runs and folds speak together, for which images they may, and in what voice.

One run is the ensemble of one member. Out of fold an image is predicted by its own fold of each
member; a test image by every fold of every member. No torch in this file.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Literal, Self

import numpy as np
import pandas as pd
from pydantic import Field, ValidationError

from kernel_lib import files, runs
from kernel_lib.config import Frozen
from kernel_lib.errors import InputError
from kernel_lib.inference import maps
from kernel_lib.postprocess import thresholds
from kernel_lib.progress import bar
from kernel_lib.runs import Lineage

LONGEST_NAME = 200  # file systems take 255 bytes


class Member(Frozen):
    """One run, the folds of it that take part, and its weight in the mean."""

    run: str
    folds: tuple[int, ...] = Field(strict=False, min_length=1)
    weight: float = Field(1.0, gt=0)


class Ensemble(Frozen):
    """What `members.json` holds."""

    name: str
    members: tuple[Member, ...] = Field(strict=False, min_length=1)
    combine: Literal["mean", "vote"] = "mean"
    folds_digest: str

    @property
    def folds(self) -> tuple[int, ...]:
        """The folds that every member has."""
        common = set.intersection(*(set(m.folds) for m in self.members))
        return tuple(sorted(common))

    def save(self, folder: Path) -> None:
        files.write_json(folder / "members.json", self.model_dump(mode="json"))

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Raises InputError where members.json is missing or wrong."""
        path = folder / "members.json"
        try:
            return cls.model_validate_json(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise InputError(f"{path} is missing: the thresholds stage makes it") from None
        except (ValidationError, ValueError) as error:
            raise InputError(f"{path} is damaged ({error}): run the thresholds stage") from None

    @classmethod
    def gather(cls, roots: Sequence[Path], names: Sequence[str], name: str | None, **how) -> Self:
        """The ensemble of the runs named, with every fold whose held-out images are predicted.

        Raises InputError where a run has no such fold, or folds files differ: a fold of one run
        would then hold images that another has trained on.
        """
        members, digests = [], {}
        for run in names:
            folds = {
                k: f
                for k, f in runs.find(roots, run).items()
                if f.oof.is_file() and f.oof_last.is_file()
            }
            if not folds:
                raise InputError(
                    f"run {run} has no held-out predictions yet: finish its training, which "
                    "writes runs/<run>/fold<k>/oof.zip"
                )
            members.append(Member(run=run, folds=tuple(folds)))
            for folder in folds.values():
                digests.setdefault(folder.read_config()["folds_digest"], folder.name)
        if len(digests) > 1:
            raise InputError(
                f"{' and '.join(digests.values())} were trained on different folds files: an "
                "ensemble needs one; train them again in one WORK_DIR"
            )
        name = name or "+".join(names)
        if len(name) > LONGEST_NAME:
            raise InputError(
                f"the runs' names joined have {len(name)} characters, too many for a folder: "
                "name the ensemble with -p ENSEMBLE"
            )
        ensemble = cls(name=name, members=members, folds_digest=next(iter(digests)), **how)
        if not ensemble.folds:
            raise InputError(f"the runs {', '.join(names)} have no fold in common")
        for member in members:
            if alone := sorted(set(member.folds) - set(ensemble.folds)):
                print(f"note: folds {alone} of {member.run} stay out: not every run has them")
        return ensemble


class OutOfFold:
    """Every held-out image's statistics and past, one map an image."""

    def __init__(self, table: pd.DataFrame, stats: thresholds.Stacked, honest: bool) -> None:
        self.table = table  # image_id, fold, group, height, width, area_px, rle
        self.stats = stats
        self.honest = honest  # False: some member's past is unknown


def out_of_fold(
    ensemble: Ensemble,
    roots: Sequence[Path],
    table: pd.DataFrame,
    *,
    allow_unknown_past: bool = False,
    last: bool = False,
) -> OutOfFold:
    """Statistics of every image of the ensemble's folds, by members that never saw it.

    `table` is the folds file. `last` takes the last EMA weights instead of the kept ones. Raises
    InputError where any member saw an image or its patient, and where a past is unknown unless
    `allow_unknown_past`.
    """
    honest, parts, stats = True, [], []
    for fold in ensemble.folds:
        archives = open_archives(ensemble, roots, fold, "oof_last" if last else "oof")
        rows = table[table["image_id"].isin(set(archives[0].ids))]
        for archive in archives:
            honest &= refuse_seen(archive, rows, allow_unknown_past)
        weights = [m.weight for m in ensemble.members]
        parts.append(rows)
        stats += _statistics(rows, archives, weights, f"fold {fold}: maps")
    return OutOfFold(pd.concat(parts, ignore_index=True), thresholds.stack(stats), honest)


def open_archives(
    ensemble: Ensemble, roots: Sequence[Path], fold: int, kind: str
) -> list[maps.Maps]:
    """The members' archives of a fold: `oof`, `oof_last` or `test`; InputError where one lacks."""
    archives = []
    for member in ensemble.members:
        folder = runs.find(roots, member.run).get(fold)
        if kind == "test":  # which this machine made, wherever the checkpoints came from
            folder = runs.fold_folder(roots[0], member.run, fold)
        if folder is None:
            raise InputError(f"{member.run} has no fold {fold} under {', '.join(map(str, roots))}")
        archives.append(maps.Maps(getattr(folder, kind)))
    return archives


def refuse_seen(archive: maps.Maps, rows: pd.DataFrame, allow_unknown_past: bool) -> bool:
    """Whether scoring these images with that archive's maps is honest.

    Raises InputError naming an image that the member had seen, or an unknown past that was not
    allowed: a score counts only if no member saw the image.
    """
    lineage = Lineage.model_validate(archive.meta["lineage"])
    for image_id, group in zip(rows["image_id"], rows["group"], strict=True):
        if lineage.saw(image_id, group):
            raise InputError(
                f"{archive.meta['run']}/fold{archive.meta['fold']} was trained on image {image_id} "
                f"or its patient, or descends from {', '.join(lineage.ancestors) or 'what'} was: "
                "it cannot be scored on it; leave that run out, or train it on this folds file"
            )
    if not lineage.known and not allow_unknown_past:
        raise InputError(
            f"what {archive.meta['run']}/fold{archive.meta['fold']} descends from "
            f"({', '.join(lineage.ancestors)}) may have seen these images: its score would not be "
            "honest; -p ALLOW_UNKNOWN_PAST True prints it as such"
        )
    return lineage.known


def test_masks(
    ensemble: Ensemble,
    roots: Sequence[Path],
    images: pd.DataFrame,
    rule: thresholds.Triplet,
) -> Iterator[tuple[str, np.ndarray]]:
    """Yield (image_id, (H, W) mask 0/1) of each test image, at the image's own size.

    `images` holds image_id, height and width. `mean`: one map of all folds and members, then the
    rule. `vote`: each fold's own map and mask, a pixel kept where more than half the folds agree.
    """
    archives = [open_archives(ensemble, roots, fold, "test") for fold in ensemble.folds]
    weights = [m.weight for m in ensemble.members]

    def one(image: tuple[str, int, int]):
        image_id, height, width = image
        by_fold = [[a[image_id] for a in fold] for fold in archives]
        if ensemble.combine == "vote":
            votes = [
                thresholds.apply(maps.at_shape(maps.mean(fold, weights), (height, width)), rule)
                for fold in by_fold
            ]
            return image_id, (2 * np.sum(votes, axis=0) > len(votes)).astype(np.uint8)
        flat = [level_map for fold in by_fold for level_map in fold]
        level_map = maps.at_shape(maps.mean(flat, weights * len(archives)), (height, width))
        return image_id, thresholds.apply(level_map, rule)

    rows = images[["image_id", "height", "width"]].itertuples(index=False, name=None)
    with ThreadPoolExecutor(2) as pool:
        yield from bar(_windowed(pool, one, rows), total=len(images), desc="masks", unit="image")


def _windowed(pool: ThreadPoolExecutor, work, items: Iterable, ahead: int = 16) -> Iterator:
    """`pool.map` that runs only a little ahead: full-size maps of all images would fill memory."""
    waiting = []
    for item in items:
        waiting.append(pool.submit(work, item))
        if len(waiting) > ahead:
            yield waiting.pop(0).result()
    for future in waiting:
        yield future.result()


def _statistics(
    rows: pd.DataFrame, archives: Sequence[maps.Maps], weights: Sequence[float], title: str
) -> list[thresholds.Statistics]:
    def one(image: tuple[str, str, int, int]) -> thresholds.Statistics:
        image_id, mask_rle, height, width = image
        level_map = maps.mean([a[image_id] for a in archives], weights)
        return maps.statistics(level_map, mask_rle, (height, width))

    images = rows[["image_id", "rle", "height", "width"]].itertuples(index=False, name=None)
    with ThreadPoolExecutor(2) as pool:  # OpenCV works outside the interpreter's lock
        return list(bar(pool.map(one, images), total=len(rows), desc=title, unit="image"))


def find(roots: Sequence[Path], name: str | None) -> Path:
    """The folder of an ensemble, or of the only one there is; InputError otherwise."""
    found: dict[str, Path] = {}
    for root in roots:
        for path in sorted(root.glob("ensembles/*/thresholds.json")):
            found.setdefault(path.parent.name, path.parent)
    if name is None and len(found) == 1:
        return next(iter(found.values()))
    if name in found:
        return found[name]
    there = ", ".join(found) or "none"
    wanted = "name one with -p ENSEMBLE" if name is None else f"{name!r} is not among them"
    raise InputError(
        f"ensembles with thresholds: {there}; {wanted}. The thresholds stage makes them"
    )


def read_rule(folder: Path) -> tuple[thresholds.Triplet, dict]:
    """The chosen rule of an ensemble and the whole of its thresholds.json."""
    path = folder / "thresholds.json"
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        return thresholds.Triplet.from_json(document["rule"]), document
    except FileNotFoundError:
        raise InputError(f"{path} is missing: the thresholds stage makes it") from None
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path} is damaged ({error}): run the thresholds stage") from error
