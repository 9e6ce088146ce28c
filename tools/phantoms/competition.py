"""Phantom chest radiographs with pneumothoraces, and folders of them in the competition's layout.

They stand in for radiographs where there are none to be had: the demo, the tests, the pictures in
the documentation. Everything follows from the seed.
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import cv2
import numpy as np
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.uid import JPEGBaseline8Bit, SecondaryCaptureImageStorage

from kernel_lib.data import rle
from kernel_lib.errors import InputError
from kernel_lib.notebook import bar
from kernel_lib.storage import write_text
from tools.phantoms.anatomy import draw_anatomy
from tools.phantoms.draw import Phantom, draw

# The areas of the 2,669 positive training images of the competition, px of 1024²: a log-normal
# with the real median and the real 5 % and 95 % points, cut at the real extremes.
AREA_MEDIAN_PX, AREA_LOG_DEVIATION = 8_630, 1.07
AREA_RANGE_PX = (55, 161_000)
ROOT_UID = "1.2.276.0.7230010.3.1"
TEST_TRUTH = "phantom-test-truth.csv"  # a name that no layout takes for training labels
JPEG_QUALITY = 92


@dataclass(frozen=True)
class Case:
    """One image to be drawn; `area_px` in px of 1024², 0 without a pneumothorax."""

    image_id: str
    patient: int
    number: int  # of the image among the patient's
    area_px: float
    seed: int

    @property
    def patient_id(self) -> str:
        return f"phantom-{self.seed}-{self.patient:05d}"


def _check(size: int, difficulty: float, positives: float) -> None:
    if size < 64:
        raise InputError(f"size {size} is too small to draw a chest: give 64 or more")
    for name, value in (("difficulty", difficulty), ("positives", positives)):
        if not 0 <= value <= 1:
            raise InputError(f"{name} {value} lies outside 0 to 1: give a share between them")


def cases(
    n_images: int, *, seed: int = 0, positives: float = 0.22, first_patient: int = 0
) -> list[Case]:
    """Return the cases: patients, the number of images of each, and the areas of pneumothorax.

    Two patients in three have one image, the others four on the average, as in the competition;
    exactly round(positives · n) images are positive, and they gather in some patients.
    """
    rng = np.random.default_rng([seed, first_patient, 1])
    patients: list[tuple[int, int]] = []
    patient = first_patient
    while len(patients) < n_images:
        images = 1 if rng.random() < 0.68 else 1 + int(rng.geometric(1 / 3))
        patients += [(patient, number) for number in range(min(images, n_images - len(patients)))]
        patient += 1
    leaning = rng.standard_normal(patient - first_patient)
    inclined = np.array([leaning[p - first_patient] for p, _ in patients])
    rank = np.argsort(-(inclined + 0.7 * rng.standard_normal(n_images)))
    positive = np.zeros(n_images, bool)
    positive[rank[: round(positives * n_images)]] = True
    areas = AREA_MEDIAN_PX * np.exp(AREA_LOG_DEVIATION * rng.standard_normal(n_images))
    areas = np.where(positive, np.clip(areas, *AREA_RANGE_PX), 0)
    return [
        Case(f"{ROOT_UID}.4.9999999.{seed}.{p}.{number}", p, number, float(area), seed)
        for (p, number), area in zip(patients, areas, strict=True)
    ]


def draw_case(case: Case, *, size: int, difficulty: float) -> Phantom:
    """Return the image of a case: the body from the patient, the projection from the image.

    `difficulty` 0..1 as `phantom_draw.draw` says.
    """
    anatomy = draw_anatomy(np.random.default_rng([case.seed, case.patient, 2]))
    rng = np.random.default_rng([case.seed, case.patient, case.number, 3])
    return draw(anatomy, rng, size=size, difficulty=difficulty, area_px=case.area_px)


def generate(
    n_images: int, size: int, seed: int = 0, difficulty: float = 0.5, positives: float = 0.22
) -> Iterator[tuple[Case, Phantom]]:
    """Draw images one after the other; `difficulty` and `positives` 0..1.

    Raises InputError for a size under 64 or a share outside 0..1.
    """
    _check(size, difficulty, positives)
    for case in cases(n_images, seed=seed, positives=positives):
        yield case, draw_case(case, size=size, difficulty=difficulty)


def _write_dicom(path: Path, image: np.ndarray, case: Case, series: str, study: str) -> None:
    """Write an 8-bit MONOCHROME2 secondary capture, JPEG baseline, like the competition's files."""
    done, jpeg = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])
    if not done:
        raise RuntimeError(f"OpenCV could not encode the {image.shape} image of {path} as JPEG")
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = SecondaryCaptureImageStorage
    meta.MediaStorageSOPInstanceUID = case.image_id
    meta.TransferSyntaxUID = JPEGBaseline8Bit
    data = FileDataset(str(path), {}, file_meta=meta, preamble=b"\0" * 128)
    data.SOPClassUID = SecondaryCaptureImageStorage
    data.SOPInstanceUID = case.image_id
    data.StudyInstanceUID, data.SeriesInstanceUID = study, series
    data.Modality, data.ConversionType = "CR", "WSD"
    data.BodyPartExamined, data.ViewPosition = "CHEST", "PA"
    data.PatientID = data.PatientName = case.patient_id
    data.SeriesDescription = "phantom: drawn, not taken"
    data.SamplesPerPixel, data.PhotometricInterpretation = 1, "MONOCHROME2"
    data.Rows, data.Columns = image.shape
    data.BitsAllocated, data.BitsStored, data.HighBit, data.PixelRepresentation = 8, 8, 7, 0
    data.LossyImageCompression, data.LossyImageCompressionMethod = "01", "ISO_10918_1"
    data.PixelData = encapsulate([jpeg.tobytes()])
    data["PixelData"].is_undefined_length = True
    path.parent.mkdir(parents=True, exist_ok=True)
    data.save_as(path, enforce_file_format=True)


def _draw_and_write(job: tuple[Case, Path], size: int, difficulty: float) -> list[str]:
    """Draw one case into its file; returns the RLE of each of its rows, none if empty."""
    case, folder = job
    tail = case.image_id.removeprefix(f"{ROOT_UID}.4.")
    study, series = f"{ROOT_UID}.2.{tail}", f"{ROOT_UID}.3.{tail}"
    phantom = draw_case(case, size=size, difficulty=difficulty)
    _write_dicom(
        folder / study / series / f"{case.image_id}.dcm", phantom.image, case, series, study
    )
    return [rle.encode(part) for part in phantom.parts]


def _alone_in_opencv() -> None:
    """Use one thread in each process: they share the cores, and a forked thread pool would hang."""
    cv2.setNumThreads(0)


def _write_labels(path: Path, cases: list[tuple[Case, list[str]]], lead: str) -> None:
    """Write an RLE table; `lead` stands before values and second name, as in the real file."""
    lines = [f"ImageId,{lead}EncodedPixels\n"]
    for case, rows in cases:
        lines += [f"{case.image_id},{lead}{row}\n" for row in rows or ["-1"]]
    write_text(path, "".join(lines))


def write_competition(
    folder: Path,
    n_train: int,
    n_test: int,
    *,
    size: int = 1024,
    seed: int = 0,
    difficulty: float = 0.5,
    positives: float = 0.22,
    workers: int = 2,
) -> None:
    """Write phantoms as the competition's files: nested DICOMs, labels, a sample submission.

    No patient is in both training and test images. The truth of the test images goes to
    `phantom-test-truth.csv`. `difficulty` 0..1 as `phantom_draw.draw` says. Raises InputError for a
    size under 64, a share outside 0..1, or a folder that already holds such files.
    """
    folder = Path(folder)
    _check(size, difficulty, positives)
    if (folder / "train-rle.csv").exists():
        raise InputError(f"{folder} already holds a train-rle.csv: give an empty folder")
    folder.mkdir(parents=True, exist_ok=True)
    train = cases(n_train, seed=seed, positives=positives)
    beyond = max((case.patient for case in train), default=-1) + 1
    test = cases(n_test, seed=seed, positives=positives, first_patient=beyond)
    jobs = [(case, folder / "dicom-images-train") for case in train]
    jobs += [(case, folder / "dicom-images-test") for case in test]
    shown = partial(bar, total=len(jobs), desc="phantoms", unit="image")
    work = partial(_draw_and_write, size=size, difficulty=difficulty)
    if workers <= 1 or len(jobs) < 16:  # processes cost more than they save
        rows = list(shown(map(work, jobs)))
    else:
        method = "fork" if "fork" in multiprocessing.get_all_start_methods() else "spawn"
        context = multiprocessing.get_context(method)
        with ProcessPoolExecutor(workers, context, initializer=_alone_in_opencv) as pool:
            rows = list(shown(pool.map(work, jobs, chunksize=4)))
    drawn = list(zip((case for case, _ in jobs), rows, strict=True))
    _write_labels(folder / TEST_TRUTH, drawn[n_train:], lead="")
    _write_labels(folder / "sample_submission.csv", [(case, []) for case in test], lead="")
    # Last: whoever finds the labels finds everything.
    _write_labels(folder / "train-rle.csv", drawn[:n_train], lead=" ")
