"""Any radiographs → masks, pictures and a table, by an ensemble, a released model or ONNX files.

    OUT/masks/<file>.png      the mask, 8 bits, 0 and 255, at the image's own size
    OUT/overlays/<file>.jpg   its contour drawn over the radiograph
    OUT/predictions.csv       one row per file; written last, so if it has rows, all is complete

Needs neither labels nor folds. Everything from decoding to the rule is as in the inference stage,
with a scratch folder in OUT. With ONNX files torch is not imported.
"""

from __future__ import annotations

import csv
import os
import shutil
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import cv2
import numpy as np

from kernel_lib import storage
from kernel_lib.artifacts import maps
from kernel_lib.artifacts.filenames import PREDICTIONS
from kernel_lib.config import PredictParameters
from kernel_lib.data import images, rle
from kernel_lib.data.folder import masks_among
from kernel_lib.data.images import Skipped
from kernel_lib.errors import InputError
from kernel_lib.inference.ensemble_maps import Predicted, open_maps, test_masks
from kernel_lib.notebook import Signals
from kernel_lib.postprocess import calibration
from kernel_lib.postprocess.calibration import Logistic
from kernel_lib.postprocess.histograms import stack
from kernel_lib.postprocess.units import mask_cells
from kernel_lib.reporting import overlays
from kernel_lib.reporting.picture import RESEARCH_ONLY
from kernel_lib.stages import predictors, scores
from kernel_lib.stages.predictors import Predictor

TABLE, MASKS, OVERLAYS = PREDICTIONS, "masks", "overlays"
COLUMNS = (
    "file",  # relative to the input folder
    "image_id",
    "height",
    "width",
    "label_probability",  # 0–1, of the label head; empty if the model has none
    "max_probability",  # 0–1, largest value of the probability map
    "calibrated_probability",  # 0–1, by the curve in thresholds.json; empty if there is none
    "uncertainty",  # entropy of calibrated_probability in bits, 0–1
    "area_px",  # of the mask, in pixels of the image
    "area_px_1024",  # in pixels of a 1024² image, the unit of a rule's min_area_px
    "area_mm2",  # empty if the file states no pixel spacing
    "rle",  # relative starts, column by column, as in the competition; -1: no mask
    "model",  # the ensemble or released model
    "rule",  # the post-processing rule
    "error",  # why the file could not be read; most other cells are then empty
)


@dataclass(frozen=True)
class PredictResult:
    """What was written, and the files that could not be read."""

    out: Path
    rules: tuple[str, ...]
    n_images: int
    n_with_mask: int
    skipped: tuple[Skipped, ...]  # files not read; image_id is the name in the table
    notes: tuple[str, ...]  # on the images read

    def __str__(self) -> str:
        lines = [*self.rules]
        lines += [f"not read: {image.reason}" for image in self.skipped]
        lines += [f"note: {note}" for note in self.notes]
        lines += [
            f"{self.out / MASKS}: {self.n_images} masks as PNG, 0 and 255",
            f"{self.out / OVERLAYS}: {self.n_images} radiographs with their masks' contours",
            f"{self.out / TABLE}: {self.n_images} images, {self.n_with_mask} with a mask, "
            f"{len(self.skipped)} files not read",
            RESEARCH_ONLY,
        ]
        return "\n".join(lines)


def run(
    inputs: Sequence[Path],
    out: Path,
    *,
    ensemble: Path | None = None,
    model: str | None = None,
    onnx: str | None = None,
    **settings: str | int | None,
) -> PredictResult:
    """Write masks, pictures and a table of every radiograph in these files and folders.

    `ensemble` is a folder that the thresholds stage made, `onnx` comma-separated files of
    `export-onnx`, which need no torch; without either the released model with the name or file
    `model` predicts, by default the only one there is. `settings` holds `device`, `precision`,
    `batch_size`, `processes`, `workers`, `threads` and `engine`, as in PredictParameters.

    Raises: InputError, before anything is predicted, if there is no model or image, or OUT holds
        other files; also if no image could be read. OUT is then unchanged.
    """
    out = out.resolve()
    storage.check_output(out, (TABLE, MASKS, OVERLAYS), lambda: _is_ours(out / TABLE), "prediction")
    scratch = out / ".scratch"
    parameters = PredictParameters.checked(
        {k: v for k, v in settings.items() if v is not None}
        | {"cache_dir": str(scratch / "cache"), "scratch": str(scratch), "listed": {}}
        | {"ensemble_folder": None if ensemble is None else str(ensemble.resolve())}
        | {"model": model}
    )
    if onnx is not None:
        predictors.check_onnx(parameters)
        predictor = predictors.of_onnx(onnx, scratch, parameters.threads)
    else:
        predictor = _of_networks(parameters)
    listed = find_images(inputs, leave_out=out)
    files = {name: str(path) for name, path in listed.items()}
    parameters = parameters.model_copy(update={"listed": files})
    with Signals().caught(), storage.folder_lock(out / "predict"), _scratch_folder(scratch):
        predicted = predictor.predict(parameters)
        _check_any_read(predicted)
        return _write(out, predictor, listed, predicted)


def predict(parameters: PredictParameters) -> Predicted:
    """Write the maps, as one of several processes that `run` started."""
    with Signals().caught():
        return _of_networks(parameters).predict(parameters)


def _of_networks(parameters: PredictParameters) -> Predictor:
    from kernel_lib.stages import predict_networks  # it imports torch, which ONNX files do not need

    return predict_networks.of_parameters(parameters)


def find_images(inputs: Sequence[Path], leave_out: Path | None = None) -> dict[str, Path]:
    """Return the files to predict, in order, by the name under which each result is written.

    Images in a folder or its subfolders are named by their path in it, single files by their name.
    With several inputs a folder's own name is put first, and equal names get numbers. Left out are
    hidden files, files without a known ending or image content, masks (by name or folder), and all
    in `leave_out`.

    Raises: InputError if an input does not exist, or none of them holds an image.
    """
    files: dict[str, Path] = {}
    seen: set[Path] = set()
    left_out: list[str] = []
    for argument in inputs:
        if not argument.exists():
            raise InputError(f"{argument} does not exist: give files or folders of radiographs")
        top = Path(os.path.abspath(argument))
        in_folder = top.is_dir()
        prefix = _free(top.name, {name.split("/")[0] for name in files}) + "/"
        listed = [top]
        if in_folder:
            listed, notes = _radiographs(top, leave_out)
            left_out += notes
        for path in listed:
            if path.resolve() in seen:
                continue
            seen.add(path.resolve())
            name = path.relative_to(top).as_posix() if in_folder else path.name
            if in_folder and len(inputs) > 1:
                name = prefix + name
            files[_free(name, files)] = path
    if not files:
        raise InputError(
            f"no DICOM, PNG or JPEG file in {', '.join(map(str, inputs))}: give radiographs, or "
            f"a folder that holds some{''.join(f'; {note}' for note in left_out)}"
        )
    for note in left_out:
        print(f"note: {note}")
    return files


def _radiographs(folder: Path, leave_out: Path | None) -> tuple[list[Path], list[str]]:
    """Return the images in a folder and its subfolders, and notes on other files."""
    pictures, others = [], []
    for path in _below(folder, leave_out):
        known = path.suffix.lower() in images.SUFFIXES or images.is_image(path)
        (pictures if known else others).append(path)
    masks, notes = masks_among(pictures), []
    if masks:
        notes.append(f"{len(masks)} masks, recognised by name, are left out, {min(masks)} first")
    if others:
        endings = Counter(path.suffix.lower() or "without suffix" for path in others)
        kinds = ", ".join(f"{n} {ending}" for ending, n in endings.most_common(5))
        notes.append(
            f"{len(others)} files are neither DICOM, PNG nor JPEG and left out ({kinds}), "
            f"{others[0]} first: if some are radiographs, save them as PNG"
        )
    return [path for path in pictures if path not in masks], notes


def _below(folder: Path, leave_out: Path | None) -> Iterator[Path]:
    """Yield the files in a folder and its subfolders, sorted, without hidden ones."""
    for place, names, files in os.walk(folder):
        at = Path(place)
        if at.resolve() == leave_out:
            names.clear()
            continue
        names[:] = sorted(name for name in names if not name.startswith((".", "__")))
        yield from (at / name for name in sorted(files) if not name.startswith("."))


def _free(name: str, taken: Iterable[str]) -> str:
    """Return the name, with a number appended if it is taken."""
    path, n = Path(name), 1
    while name in taken:
        n += 1
        name = path.with_name(f"{path.stem}-{n}{path.suffix}").as_posix()
    return name


def _is_ours(table: Path) -> bool:
    if not table.is_file():
        return False
    with table.open(encoding="utf-8", errors="replace") as file:
        names = file.readline().strip().split(",")
    # Earlier versions wrote fewer columns.
    return names[:2] == list(COLUMNS[:2]) and set(names) <= set(COLUMNS)


@contextmanager
def _scratch_folder(folder: Path) -> Iterator[None]:
    """Remove a folder before and after the block."""
    shutil.rmtree(folder, ignore_errors=True)  # left by a killed process
    try:
        with storage.disk_full_as_input_error(folder):
            yield
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _check_any_read(predicted: Predicted) -> None:
    skipped = predicted.skipped
    if len(skipped) == len(predicted.images):
        raise InputError(
            f"none of the {len(skipped)} files can be read; the first: {skipped[0].reason}"
        )


def _write(
    out: Path, predictor: Predictor, listed: dict[str, Path], predicted: Predicted
) -> PredictResult:
    ensemble, weights = predictor.ensemble, predictor.ensemble.weights
    ensemble_maps = open_maps(ensemble, predictor.roots, ensemble.folds, "test")
    names = dict(zip(predicted.images["image_id"], listed, strict=True))
    skipped = {image.image_id: image for image in predicted.skipped}
    rows, n_with_mask = [], 0
    rules = tuple(scores.rule_lines(ensemble, predictor.choice))
    made_by = {"model": ensemble.name, "rule": "; ".join(rules)}
    with (
        storage.atomic_folder(out / MASKS) as masks,
        storage.atomic_folder(out / OVERLAYS) as pictures,
    ):
        for number, mask in test_masks(
            ensemble, predictor.roots, predicted.images, predictor.choice
        ):
            name, path = names[number], listed[names[number]]
            row = {"file": name, "image_id": images.image_id(path)} | made_by
            rows.append(row)
            if number in skipped:
                row["error"] = skipped[number].reason
                continue
            label = ensemble_maps.label(number, weights)
            levels = ensemble_maps.level_map(number, weights)
            row |= mask_cells(mask, images.spacing_of(path)) | {
                "rle": rle.encode(mask),
                "label_probability": "" if label is None else f"{label:.4f}",
                "max_probability": f"{levels.max() / 255:.4f}",
            }
            row |= _calibration_cells(predictor.calibration, levels, label, mask.shape)
            n_with_mask += bool(mask.any())
            _save(masks / f"{name}.png", mask * np.uint8(255))
            _save(pictures / f"{name}.jpg", overlays.outlined(images.read(path), mask))
        storage.write_text(out / TABLE, ",".join(COLUMNS) + "\n")  # no rows: not complete
    with storage.atomic_write(
        out / TABLE, "w", encoding="utf-8", errors="backslashreplace", newline=""
    ) as file:
        table = csv.DictWriter(file, COLUMNS, restval="", lineterminator="\n")
        table.writeheader()
        table.writerows(rows)
    return PredictResult(
        out=out,
        rules=rules,
        n_images=len(rows) - len(skipped),
        n_with_mask=n_with_mask,
        skipped=tuple(replace(image, image_id=names[n]) for n, image in skipped.items()),
        notes=tuple(predicted.notes),
    )


def _calibration_cells(
    curve: Logistic | None, levels: np.ndarray, label: float | None, shape: tuple[int, int]
) -> dict[str, str]:
    """Return the row's cells for the calibrated probability; none without a curve."""
    if curve is None:
        return {}
    stats = stack([maps.statistics(levels, rle.EMPTY, shape, label)])
    (prob,) = curve(calibration.image_scores(stats)[curve.score])
    uncertainty = float(calibration.entropy(prob))
    return {"calibrated_probability": f"{prob:.4f}", "uncertainty": f"{uncertainty:.4f}"}


def _save(path: Path, picture: np.ndarray) -> None:
    done, content = cv2.imencode(path.suffix, picture)
    if not done:
        raise RuntimeError(f"OpenCV could not encode {path}, {picture.shape}")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.tobytes())
