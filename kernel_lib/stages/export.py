"""Masks for other programs: DICOM segmentations, secondary captures, PNG and NIfTI files.

OUT/<kind>/<image>.…       one file per image
OUT/radiographs/<image>.dcm  the radiograph with the UIDs that the DICOM files refer to, if its
                           own are not valid
OUT/export.csv             one row per image; written last, so if it has rows, all is complete
"""

from __future__ import annotations

import csv
import shutil
from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np

from kernel_lib import storage
from kernel_lib.data import images
from kernel_lib.errors import InputError
from kernel_lib.export import dicom_files, nifti, packages
from kernel_lib.export.dicom_files import Reference
from kernel_lib.notebook import Signals, bar
from kernel_lib.postprocess.units import mask_cells
from kernel_lib.registry import nearest
from kernel_lib.reporting.picture import RESEARCH_ONLY
from kernel_lib.stages import export_results
from kernel_lib.stages.export_results import Result, Results

SEG, CAPTURE, PNG, NIFTI = "seg", "secondary-capture", "png", "nifti"
KINDS, AS_DICOM = (SEG, CAPTURE, PNG, NIFTI), (SEG, CAPTURE)
PACKAGES = {SEG: packages.highdicom, CAPTURE: packages.highdicom, NIFTI: packages.nibabel}
TABLE, RADIOGRAPHS = "export.csv", "radiographs"
ENDINGS = {SEG: ".dcm", CAPTURE: ".dcm", PNG: ".png", NIFTI: ".nii.gz", RADIOGRAPHS: ".dcm"}
COLUMNS = (
    "image_id",
    "height",
    "width",
    "area_px",  # of the mask, in pixels of the image
    "area_px_1024",  # in pixels of a 1024² image, the unit of a rule's min_area_px
    "area_mm2",  # empty if no pixel spacing is known
    "refers_to",  # SOPInstanceUID that the DICOM files refer to
    "rule",
    "written",  # files, separated by spaces
    "notes",
)
NO_SPACING = "no pixel spacing is known: the NIfTI file states 1 mm"
PLANE = (
    "the segmentations state an assumed plane (axial, 1 mm thick, pixels of 1 mm if no spacing is "
    "known), without which OHIF does not show them: --no-plane leaves it out"
)
NO_DICOM = "the image has no DICOM file to refer to"


@dataclass(frozen=True)
class ExportResult:
    """What was written."""

    out: Path
    n_images: int
    n_with_mask: int
    written: dict[str, int]  # files by folder
    notes: tuple[str, ...]

    def __str__(self) -> str:
        lines = [f"note: {note}" for note in self.notes]
        lines += [f"{self.out / kind}: {n:,} files" for kind, n in self.written.items()]
        if NIFTI in self.written:
            lines.append(f"NIfTI: {nifti.CONVENTION}")
        lines.append(
            f"{self.out / TABLE}: {self.n_images:,} images, {self.n_with_mask:,} with a mask; an "
            "empty mask gives a file too, all zeros"
        )
        return "\n".join([*lines, RESEARCH_ONLY])


def run(
    folder: Path,
    out: Path,
    *,
    to: str = PNG,
    data_dir: Path | None = None,
    test: bool = False,
    fractional: bool = False,
    plane: bool = True,
) -> ExportResult:
    """Write the masks of an ensemble's folder, or of one that `predict` wrote.

    to: comma-separated kinds of files, of KINDS. `fractional` writes probability maps instead of
    masks into DICOM segmentations, `plane` states an assumed plane in them.
    Raises: InputError, before anything is written, for an unknown kind, a package that is not
        installed, missing results or radiographs, and an OUT that holds other files.
    """
    kinds, out = _checked_kinds(to, fractional), out.resolve()
    storage.check_output(out, (TABLE, *ENDINGS), lambda: _is_ours(out / TABLE), "export")
    results = export_results.load(folder, data_dir, test)
    _check_sources(kinds, results, data_dir, fractional)
    settings = _Settings(results.algorithm, fractional, plane)
    names = [*kinds, *([RADIOGRAPHS] if SEG in kinds else [])]
    with Signals().caught(), storage.folder_lock(out / "export"):
        with ExitStack() as stack:
            folders = {n: stack.enter_context(storage.atomic_folder(out / n)) for n in names}
            rows = [
                _export_image(result, kinds, folders, settings)
                for result in bar(results.images, desc="export", unit="image")
            ]
            storage.write_text(out / TABLE, ",".join(COLUMNS) + "\n")  # no rows: not complete
        for name in ENDINGS.keys() - folders.keys():  # of an earlier export of other kinds
            shutil.rmtree(out / name, ignore_errors=True)
        notes = (*results.notes, *([PLANE] if plane and SEG in kinds else []))
        return _write_table(out, results, rows, notes)


def _checked_kinds(to: str, fractional: bool) -> list[str]:
    kinds = list(dict.fromkeys(kind.strip() for kind in to.split(",") if kind.strip()))
    if not kinds:
        raise InputError(f"--to {to!r} names no kind: give one or several of {', '.join(KINDS)}")
    for kind in kinds:
        if kind not in KINDS:
            raise InputError(
                f"--to {kind} is not a kind; nearest: {nearest(kind, KINDS)}; give one or several "
                f"of {', '.join(KINDS)}"
            )
        if kind in PACKAGES:
            PACKAGES[kind]()
    if fractional and SEG not in kinds:
        raise InputError(f"--fractional is of DICOM segmentations: add {SEG} to --to {to}")
    return kinds


def _is_ours(table: Path) -> bool:
    if not table.is_file():
        return False
    with table.open(encoding="utf-8", errors="replace") as file:
        return file.readline().strip() == ",".join(COLUMNS)


def _check_sources(
    kinds: Sequence[str], results: Results, data_dir: Path | None, fractional: bool
) -> None:
    """Raise InputError for kinds that need radiographs or maps which are missing."""
    if fractional and any(result.levels is None for result in results.images):
        raise InputError(
            "--fractional needs probability maps, which predict does not keep: leave it out, or "
            "export an ensemble"
        )
    asked = [kind for kind in kinds if kind in AS_DICOM]
    if not asked:
        return
    if data_dir is None:
        raise InputError(
            f"--to {asked[0]} refers to the radiographs' DICOM files: give their folder with "
            "--data DIR, or use --to png,nifti"
        )
    if not any(_is_dicom(result.path) for result in results.images):
        raise InputError(
            f"{data_dir} holds no DICOM file of these images, to which --to {asked[0]} refers: "
            "give the folder that does, or use --to png,nifti"
        )


def _is_dicom(path: Path | None) -> bool:
    """Return whether a file may be DICOM: also if it cannot be opened, which reading it reports."""
    try:
        return path is not None and not images.is_picture(path)
    except images.ImageError:
        return True


def _spacing(path: Path | None) -> tuple[float, float] | None:
    try:
        return None if path is None else images.spacing_of(path)
    except images.ImageError:
        return None


class _Settings(NamedTuple):
    """What all images have in common."""

    algorithm: str
    fractional: bool
    plane: bool


class _Image(NamedTuple):
    """What the writers need of one image."""

    result: Result
    mask: np.ndarray  # (H, W) 0/1
    spacing: tuple[float, float] | None  # between rows and between columns, mm
    reference: Reference | None
    settings: _Settings


def _export_image(
    result: Result, kinds: Sequence[str], folders: dict[str, Path], settings: _Settings
) -> dict[str, Any]:
    """Write the files of one image; return its row, with lists as `written` and `notes`."""
    row = {"image_id": result.image_id, "rule": result.rule, "written": [], "notes": []}
    try:
        mask = result.mask()
    except InputError as error:
        return row | {"notes": [f"not exported: {error}"]}
    spacing = _spacing(result.path)
    row |= mask_cells(mask, spacing)
    reference = None
    if any(kind in AS_DICOM for kind in kinds):
        try:
            reference = _reference(result, mask)
            row["refers_to"] = reference.uid
            row["notes"] += reference.notes
        except InputError as error:
            row["notes"].append(f"no {' and no '.join(k for k in kinds if k in AS_DICOM)}: {error}")
    image = _Image(result, mask, spacing, reference, settings)
    copied = reference is not None and reference.is_derived and RADIOGRAPHS in folders
    for kind in (*kinds, *([RADIOGRAPHS] if copied else [])):
        if kind in AS_DICOM and reference is None:
            continue
        path = _file_in(folders[kind], result.name, ENDINGS[kind])
        try:
            row["notes"] += _WRITERS[kind](path, image)
            row["written"].append(f"{kind}/{result.name}{ENDINGS[kind]}")
        except InputError as error:
            path.unlink(missing_ok=True)
            row["notes"].append(f"no {kind}: {error}")
    return row


def _reference(result: Result, mask: np.ndarray) -> Reference:
    """Return what the DICOM files of an image refer to. Raises: InputError if there is none."""
    if not _is_dicom(result.path):
        raise InputError(NO_DICOM)
    reference = Reference.read(result.path)
    reference.check_shape(mask.shape)
    return reference


def _file_in(folder: Path, name: str, ending: str) -> Path:
    """Return a file's path, whose folder now exists."""
    path = folder / f"{name}{ending}"
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


# Each of these writes one file of an image and returns notes. Raises: InputError.


def _write_seg(path: Path, image: _Image) -> list[str]:
    settings, result = image.settings, image.result
    pixels = result.levels() / np.float32(255) if settings.fractional else image.mask
    plane = (image.spacing or (1, 1)) if settings.plane else None
    return dicom_files.write_segmentation(
        path, image.reference, pixels, settings.algorithm, result.rule, plane
    )


def _write_capture(path: Path, image: _Image) -> list[str]:
    pixels = images.read(image.result.path)
    algorithm, rule = image.settings.algorithm, image.result.rule
    dicom_files.write_secondary_capture(path, image.reference, pixels, image.mask, algorithm, rule)
    return []


def _write_png(path: Path, image: _Image) -> list[str]:
    done, content = cv2.imencode(".png", image.mask * np.uint8(255))
    if not done:
        raise RuntimeError(f"OpenCV could not encode {path}, {image.mask.shape}")
    path.write_bytes(content.tobytes())
    return []


def _write_nifti(path: Path, image: _Image) -> list[str]:
    nifti.write(path, image.mask, image.spacing)
    return [NO_SPACING] if image.spacing is None else []


def _write_radiograph(path: Path, image: _Image) -> list[str]:
    image.reference.save(path)
    return []


_WRITERS = {
    SEG: _write_seg,
    CAPTURE: _write_capture,
    PNG: _write_png,
    NIFTI: _write_nifti,
    RADIOGRAPHS: _write_radiograph,
}


def _write_table(
    out: Path, results: Results, rows: Sequence[dict[str, Any]], notes: Sequence[str]
) -> ExportResult:
    """Write the table of all images, and return the result."""
    text = {"encoding": "utf-8", "errors": "backslashreplace", "newline": ""}
    with storage.atomic_write(out / TABLE, "w", **text) as file:
        table = csv.DictWriter(file, COLUMNS, restval="", lineterminator="\n")
        table.writeheader()
        for row in rows:
            joined = {"written": " ".join(row["written"]), "notes": "; ".join(row["notes"])}
            table.writerow(row | joined)
    of_images = zip(results.images, rows, strict=True)
    of_each = images.noted({result.name: row["notes"] for result, row in of_images})
    folders = Counter(name.split("/")[0] for row in rows for name in row["written"])
    return ExportResult(
        out=out,
        n_images=len(rows),
        n_with_mask=sum(row.get("area_px", 0) > 0 for row in rows),
        written=dict(folders),
        notes=(*notes, *of_each),
    )
