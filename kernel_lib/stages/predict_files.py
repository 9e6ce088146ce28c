"""Any radiographs → masks, pictures and a table, by an ensemble, a released model or ONNX files.

    OUT/masks/<file>.png      the mask, 8 bits, 0 and 255, at the image's own size
    OUT/overlays/<file>.jpg   its contour drawn over the radiograph
    OUT/predictions.csv       one row a file; written last, so if it exists, all is complete

Needs neither labels nor folds. Everything from decoding to the rule is what the inference stage
does, in a scratch folder within OUT. With ONNX files no torch is imported.
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
from kernel_lib.postprocess.units import FULL_AREA
from kernel_lib.reporting import overlays
from kernel_lib.reporting.picture import RESEARCH_ONLY
from kernel_lib.stages import predictors, scores
from kernel_lib.stages.predictors import Predictor

TABLE, MASKS, OVERLAYS = PREDICTIONS, "masks", "overlays"
COLUMNS = (
    "file",  # relative to the input given
    "image_id",
    "height",
    "width",
    "label_probability",  # 0–1, of the label head; empty where the model has none
    "max_probability",  # 0–1, the probability map's largest value
    "calibrated_probability",  # 0–1, recalibrated out of fold; empty where the model has no curve
    "uncertainty",  # its entropy in bits, 0–1
    "area_px",  # of the mask, in pixels of the image
    "area_px_1024",  # in pixels of a 1024² image, the unit of a rule's min_area_px
    "area_mm2",  # empty where the file states no pixel spacing
    "rle",  # relative, down the columns, as the competition writes it; -1: no mask
    "model",  # the ensemble or released model
    "rule",  # by which its maps became masks
    "error",  # why the file could not be read; the rest is then empty
)


@dataclass(frozen=True)
class PredictResult:
    """What was written, and the files that could not be read."""

    out: Path
    rules: tuple[str, ...]
    n_images: int
    n_with_mask: int
    skipped: tuple[Skipped, ...]  # those files, under the names they would be written by
    notes: tuple[str, ...]  # on the images

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
    **how: str | int | None,
) -> PredictResult:
    """Write masks, pictures and a table of every radiograph in these files and folders.

    `ensemble` is a folder that the thresholds stage made, `onnx` files of `export-onnx`,
    comma-separated, which need no torch; without either the released model of that name or file
    predicts, or the only one there is. `how` holds `device`, `precision`, `batch_size`,
    `processes`, `workers`, `threads` and `engine`, as PredictParameters has them.

    Raises: InputError, before anything is predicted, where there is no model or image, or OUT holds
        anything else; also where no image could be read. OUT is then as it was.
    """
    out = out.resolve()
    _check_out(out)
    scratch = out / ".scratch"
    parameters = PredictParameters.checked(
        {k: v for k, v in how.items() if v is not None}
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
    with Signals().caught(), storage.folder_lock(out / "predict"), _emptied(scratch):
        predicted = predictor.predict(parameters)
        _refuse_nothing_read(predicted)
        return _write(out, predictor, listed, predicted)


def predict(parameters: PredictParameters) -> Predicted:
    """Write every map as one of several processes that `run` started."""
    with Signals().caught():
        return _of_networks(parameters).predict(parameters)


def _of_networks(parameters: PredictParameters) -> Predictor:
    from kernel_lib.stages import predict_networks  # torch, which ONNX files do without

    return predict_networks.of_parameters(parameters)


def find_images(inputs: Sequence[Path], leave_out: Path | None = None) -> dict[str, Path]:
    """Return the files to predict by the name that each is written under, in that order.

    A folder's images, also in folders in it, are named by their path in it; a file by its name.
    Of several inputs the input's own name stands before that, and numbers tell equal ones apart.
    Hidden files are left out, files of other endings where their content is no image, masks by
    their names or folders, and all in `leave_out`.

    Raises: InputError where an input does not exist, or none of them holds an image.
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
    """Return a folder's images, and notes on what else lies in it."""
    pictures, others = [], []
    for path in _below(folder, leave_out):
        known = path.suffix.lower() in images.SUFFIXES or images.is_image(path)
        (pictures if known else others).append(path)
    masks, notes = masks_among(pictures), []
    if masks:
        notes.append(f"{len(masks)} masks by their names are left out, {min(masks)} first")
    if others:
        endings = Counter(path.suffix.lower() or "without suffix" for path in others)
        kinds = ", ".join(f"{n} {ending}" for ending, n in endings.most_common(5))
        notes.append(
            f"{len(others)} files are neither DICOM, PNG nor JPEG and left out ({kinds}), "
            f"{others[0]} first: save radiographs among them as PNG"
        )
    return [path for path in pictures if path not in masks], notes


def _below(folder: Path, leave_out: Path | None) -> Iterator[Path]:
    """Yield a folder's files, and those of folders in it, sorted, without hidden ones."""
    for place, names, files in os.walk(folder):
        at = Path(place)
        if at.resolve() == leave_out:
            names.clear()
            continue
        names[:] = sorted(name for name in names if not name.startswith((".", "__")))
        yield from (at / name for name in sorted(files) if not name.startswith("."))


def _free(name: str, taken: Iterable[str]) -> str:
    """Return that name, or with a number where files of several inputs share it."""
    path, n = Path(name), 1
    while name in taken:
        n += 1
        name = path.with_name(f"{path.stem}-{n}{path.suffix}").as_posix()
    return name


def _check_out(out: Path) -> None:
    """Refuse a folder that holds anything but what an earlier call wrote."""
    if out.exists() and not out.is_dir():
        raise InputError(f"-o {out} is a file: give a folder")
    storage.check_writable(out, "-o")
    if not out.exists():
        return
    existing = {path.name for path in out.iterdir() if not path.name.startswith(".")}
    foreign = sorted(existing - {TABLE, MASKS, OVERLAYS})
    table = out / TABLE
    if not foreign and existing and not _is_ours(table):
        foreign = sorted(existing)
    if foreign:
        raise InputError(
            f"-o {out} holds {foreign[0]}, and no earlier prediction: give a new folder, or an "
            "empty one"
        )


def _is_ours(table: Path) -> bool:
    if not table.is_file():
        return False
    with table.open(encoding="utf-8", errors="replace") as file:
        names = file.readline().strip().split(",")
    # Earlier versions wrote fewer columns.
    return names[:2] == list(COLUMNS[:2]) and set(names) <= set(COLUMNS)


@contextmanager
def _emptied(folder: Path) -> Iterator[None]:
    """A folder that is empty before and gone afterwards."""
    shutil.rmtree(folder, ignore_errors=True)  # of a killed process
    try:
        with storage.disk_full_as_input_error(folder):
            yield
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _refuse_nothing_read(predicted: Predicted) -> None:
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
            row |= _facts(mask, images.spacing_of(path)) | {
                "label_probability": "" if label is None else f"{label:.4f}",
                "max_probability": f"{levels.max() / 255:.4f}",
            }
            row |= _certainty(predictor.calibration, levels, label, mask.shape)
            n_with_mask += bool(mask.any())
            _save(masks / f"{name}.png", mask * np.uint8(255))
            _save(pictures / f"{name}.jpg", overlays.outlined(images.read(path), mask))
        (out / TABLE).unlink(missing_ok=True)  # from here on the old table is not of these masks
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


def _certainty(
    curve: Logistic | None, levels: np.ndarray, label: float | None, shape: tuple[int, int]
) -> dict[str, str]:
    """Return the columns of the image-level probability; none without a curve."""
    if curve is None:
        return {}
    stats = stack([maps.statistics(levels, rle.EMPTY, shape, label)])
    (prob,) = curve(calibration.image_scores(stats)[curve.score])
    uncertainty = float(calibration.entropy(prob))
    return {"calibrated_probability": f"{prob:.4f}", "uncertainty": f"{uncertainty:.4f}"}


def _facts(mask: np.ndarray, spacing: tuple[float, float] | None) -> dict[str, object]:
    """Return the columns that a mask (H, W) 0/1 fills, with the spacing in mm where it is known."""
    height, width = mask.shape
    area = int(np.count_nonzero(mask))
    return {
        "height": height,
        "width": width,
        "area_px": area,
        "area_px_1024": f"{area * FULL_AREA / mask.size:.1f}",
        "area_mm2": "" if spacing is None else f"{area * spacing[0] * spacing[1]:.2f}",
        "rle": rle.encode(mask),
    }


def _save(path: Path, picture: np.ndarray) -> None:
    done, content = cv2.imencode(path.suffix, picture)
    if not done:
        raise RuntimeError(f"OpenCV could not encode {path}, {picture.shape}")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.tobytes())
