"""What can be exported: an ensemble's held-out or test masks, or the masks of `predict`.

Mask and, if it was kept, probability map of each image are read on demand.
"""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from kernel_lib.artifacts import folds_file
from kernel_lib.artifacts.decision import Decision
from kernel_lib.artifacts.filenames import PREDICTIONS, SUBMISSION
from kernel_lib.artifacts.oof import load_per_image
from kernel_lib.data import images, rle
from kernel_lib.data.folder import Images, survey
from kernel_lib.data.table import discover
from kernel_lib.errors import InputError
from kernel_lib.inference.ensemble_maps import check_predicted_by, open_maps
from kernel_lib.inference.out_of_fold import out_of_fold
from kernel_lib.kaggle import paths
from kernel_lib.postprocess.submission import by_image
from kernel_lib.stages.scores import rule_lines
from kernel_lib.viewer.data import match_radiographs

NOT_STATED = "not stated"


@dataclass(frozen=True)
class Result:
    """The prediction for one image."""

    image_id: str
    name: str  # of the files to write, without ending
    path: Path | None  # of its radiograph, if one is known
    rule: str  # that made the mask
    mask: Callable[[], np.ndarray]  # (H, W) uint8 0/1, at the image's own size; or an InputError
    levels: Callable[[], np.ndarray] | None = None  # (H, W) uint8, round(255 · p); None: not kept


@dataclass(frozen=True)
class Results:
    """The results of one ensemble or call of `predict`, with notes for the user."""

    algorithm: str  # name of what predicted, for DICOM headers
    images: list[Result]
    notes: tuple[str, ...]


def load(folder: Path, data: Path | None, test: bool) -> Results:
    """Return the results in an ensemble's folder, or in one that `predict` wrote.

    `data` is the folder of their radiographs; test images need it for their sizes.
    Raises: InputError if a file is missing, damaged or does not belong to the ensemble, or `data`
        holds none of the images.
    """
    folder = folder.resolve()
    if (folder / PREDICTIONS).is_file():
        if test:
            raise InputError(
                f"--test is of an ensemble, and {folder} was written by predict: leave --test out"
            )
        return _predicted(folder / PREDICTIONS, data)
    return _test(folder, data) if test else _held_out(folder, data)


def _held_out(folder: Path, data: Path | None) -> Results:
    """Return the held-out images, the mask of each by the rule that was chosen without it."""
    decision = Decision.load(folder)
    ensemble, candidates, scores = decision.ensemble, decision.candidates, decision.scores
    roots = paths.artefact_roots(folder.parents[1])
    check_predicted_by(decision, roots)
    fold_table = folds_file.find(roots, ensemble.folds_digest)
    per_image = load_per_image(folder, decision, fold_table)
    part = out_of_fold(candidates, roots, fold_table, allow_unknown_past=True)
    files, notes = {}, ()
    if data is not None:
        files, notes = match_radiographs(ensemble.name, part, Images.of(survey(data, True)))
    if not scores.is_honest(scores.kept_selected):
        notes = (*notes, "an epoch may have been selected by these images' labels: NOT HONEST")
    sizes = fold_table.set_index("image_id")[["height", "width"]]
    choices = {rule.fold: rule.choice for rule in scores.kept.rules}

    def result(row: tuple) -> Result:
        shape = tuple(map(int, sizes.loc[row.image_id]))
        choice, ensemble_maps = choices[row.part], part.ensemble_maps[row.fold]
        weights = choice.weights or candidates.weights
        rule = "; ".join(rule_lines(candidates, choice))
        return Result(
            image_id=row.image_id,
            name=row.image_id,
            path=files.get(row.image_id),
            rule=f"chosen without this image: {rule}",
            mask=lambda: part.mask_by(choice, row.image_id, row.fold, shape),
            levels=lambda: ensemble_maps.full_map(row.image_id, shape, weights)[0],
        )

    results = [result(row) for row in per_image.itertuples(index=False)]
    return Results(f"{ensemble.name}, out of fold", results, notes)


def _test(folder: Path, data: Path | None) -> Results:
    """Return the masks that were submitted."""
    decision = Decision.load(folder)
    ensemble = decision.ensemble
    if not (folder / SUBMISSION).is_file():
        raise InputError(f"{folder / SUBMISSION} is missing: the inference stage makes it")
    if data is None:
        raise InputError(
            "test images are exported at their own sizes, which their files state: give their "
            "folder, --data DIR"
        )
    submitted = by_image(folder / SUBMISSION)
    listed = discover(data, for_inference=True).test
    files = {i: Path(p) for i, p in listed.set_index("image_id")["path"].items() if i in submitted}
    if not files:
        raise InputError(
            f"{data} holds none of the {len(submitted):,} test images of {ensemble.name}, "
            f"{submitted.index[0]} first: give the folder that the inference stage had"
        )
    maps = open_maps(ensemble, paths.artefact_roots(folder.parents[1]), ensemble.folds, "test")
    rule = "; ".join(rule_lines(ensemble, decision.choice))

    def result(image_id: str, path: Path) -> Result:
        def levels() -> np.ndarray:
            return maps.full_map(image_id, images.size_of(path), ensemble.weights)[0]

        def mask() -> np.ndarray:
            return rle.decode(submitted[image_id], images.size_of(path))

        return Result(image_id, image_id, path, rule, mask, levels)

    n_lost = len(submitted) - len(files)
    notes = (f"{data} lacks {n_lost:,} of {len(submitted):,} test images",) if n_lost else ()
    results = [result(*item) for item in files.items()]
    return Results(f"{ensemble.name}, test images", results, notes)


def _predicted(table: Path, data: Path | None) -> Results:
    """Return the images in the table that `predict` wrote."""
    try:
        with table.open(encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file))
        stems = {row["file"]: _stem(row["file"]) for row in rows}
        count = Counter(stems.values())
        names = {file: stem if count[stem] == 1 else file for file, stem in stems.items()}
        results = [_of_row(row, names[row["file"]], data) for row in rows]
    except (KeyError, TypeError, ValueError, csv.Error) as error:
        raise InputError(f"{table} is damaged ({error!r}): run predict again") from None
    if not results:
        raise InputError(f"{table} lists no image: run predict again")
    if data is not None and not any(result.path for result in results):
        raise InputError(
            f"{data} holds none of the {len(results):,} files of {table}, {rows[0]['file']} first: "
            "give the folder that was predicted"
        )
    return Results(rows[0].get("model") or NOT_STATED, results, ())


def _stem(file: str) -> str:
    return Path(file).with_name(images.image_id(file)).as_posix()


def _of_row(row: dict[str, str], name: str, data: Path | None) -> Result:
    path = None if data is None else data / row["file"]
    error, text = row["error"], row["rle"]
    shape = None if error else (int(row["height"]), int(row["width"]))

    def mask() -> np.ndarray:
        if error:
            raise InputError(error)
        return rle.decode(text, shape)

    there = path if path is not None and path.is_file() else None
    return Result(row["image_id"], name, there, row.get("rule") or NOT_STATED, mask)
