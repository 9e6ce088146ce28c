"""A folder like NIH ChestX-ray14 beside a phantom competition whose images came out of it."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pandas as pd

from kernel_lib.competition import NIH_TABLES
from kernel_lib.data import images, nih, table
from kernel_lib.data.cache_store import resized
from kernel_lib.data.labels import read_labels
from kernel_lib.errors import InputError
from kernel_lib.storage import write_text
from tools.phantoms.competition import TEST_TRUTH, Case, cases, draw_case

GROUPS_TABLE = "nih_id.csv"
N_FOLDERS = 12
# Numbers that a competition's phantoms do not reach: of a patient's images, and of patients.
BEYOND_IMAGES, BEYOND_PATIENTS = 1_000, 1_000_000
# The real header, whose brackets hold commas, and whose rows end in one.
HEADER = (
    "Image Index,Finding Labels,Follow-up #,Patient ID,Patient Age,Patient Gender,View Position,"
    "OriginalImage[Width,Height],OriginalImagePixelSpacing[x,y],\n"
)
POSITIVES, DIFFICULTY = 0.22, 0.5  # of the images drawn here
WITHOUT = ("No Finding", "Effusion|Infiltration")  # findings of images without pneumothorax


def write_nih(
    folder: Path,
    competition_folder: Path,
    n_other: int,
    *,
    n_patients: int | None = None,
    n_test: int | None = None,
    n_more: int = 1,
    size: int | None = None,
    seed: int = 0,
) -> dict[str, str]:
    """Write PNGs, NIH's table, and the `nih_id.csv` that maps the competition's training images.

    competition_folder: as `phantom.write_competition` made it. The NIH images are the training
    images of its first `n_patients` patients (None: all) under NIH names, its first `n_test` test
    images (None: all), `n_more` other images of each patient of these, and `n_other` images of
    patients that it does not have. size: of the PNGs (None: the competition's).
    Returns the test image of each NIH image that is its copy, by image ids.
    Raises InputError where the one folder is no phantom competition, or the other already NIH's.
    """
    folder = Path(folder)
    if (folder / NIH_TABLES[1]).exists():
        raise InputError(f"{folder} already holds a {NIH_TABLES[1]}: give an empty folder")
    competition = table.discover(competition_folder)
    if competition.train.empty:
        raise InputError(f"{competition_folder} holds no labelled images: write_competition first")
    writer = _Writer(folder, size)
    groups = writer.copy(competition.train, n_patients)
    planted = writer.copy(_labelled_test(competition).head(n_test), None)
    writer.draw_more(n_more)
    for case in cases(n_other, seed=seed, positives=POSITIVES, first_patient=BEYOND_PATIENTS):
        writer.draw(case.patient_id, case)
    lines = [f"{','.join(map(str, row))},\n" for row in sorted(writer.rows)]
    write_text(folder / NIH_TABLES[1], "".join([HEADER, *lines]))
    lines = [f"{image_id},{name}\n" for image_id, name in groups.items()]
    write_text(folder / GROUPS_TABLE, "".join(["Kaggle_ID,NIH_ID\n", *lines]))
    return {name.removesuffix(".png"): image_id for image_id, name in planted.items()}


def _labelled_test(competition: table.Source) -> pd.DataFrame:
    """Return the test images with their phantom truth: image_id, path, rle."""
    truth = competition.root / TEST_TRUTH
    if competition.test.empty or not truth.is_file():
        return competition.test.assign(rle="-1")
    labels = read_labels(truth)[["image_id", "rle"]]
    return competition.test.merge(labels, on="image_id", how="left")


class _Writer:
    """Gives NIH's names to images as they come, and puts the files in the folders by turns."""

    def __init__(self, folder: Path, size: int | None) -> None:
        self.folder, self.size = folder, size
        self.rows: list[tuple] = []  # of NIH's table
        self._patients: dict[str, str] = {}  # phantom patient → NIH patient
        self._n_images: dict[str, int] = {}  # NIH patient → names given
        self._copied: dict[str, Case] = {}  # phantom patient → one of the images copied

    def copy(self, frame: pd.DataFrame, n_patients: int | None) -> dict[str, str]:
        """Return the NIH name of each image, and write those of the first `n_patients` patients."""
        names = {}
        patients: set[str] = set()
        for record in frame.itertuples(index=False):
            case = _case_of(record.image_id)
            names[record.image_id] = name = self._name(case.patient_id)
            if n_patients is None or len(patients) < n_patients or case.patient_id in patients:
                patients.add(case.patient_id)
                self._copied.setdefault(case.patient_id, case)
                self._write(name, images.read(record.path), record.rle != "-1")
        return names

    def draw_more(self, n_more: int) -> None:
        """Draw other images, without pneumothorax, of each patient of whom some were copied."""
        for who, case in self._copied.items():
            for number in range(BEYOND_IMAGES, BEYOND_IMAGES + n_more):
                self.draw(who, Case("", case.patient, number, 0.0, case.seed))

    def draw(self, who: str, case: Case) -> None:
        """Draw an image that the competition does not have."""
        phantom = draw_case(case, size=self.size or 1024, difficulty=DIFFICULTY)
        self._write(self._name(who), phantom.image, case.area_px > 0)

    def _name(self, who: str) -> str:
        patient = self._patients.setdefault(who, f"{len(self._patients) + 1:08d}")
        number = self._n_images.get(patient, 0)
        self._n_images[patient] = number + 1
        return f"{patient}_{number:03d}.png"

    def _write(self, name: str, levels: np.ndarray, positive: bool) -> None:
        self.size = self.size or levels.shape[0]  # what is drawn later is as large
        inside = self.folder / f"images_{len(self.rows) % N_FOLDERS + 1:03d}" / "images"
        inside.mkdir(parents=True, exist_ok=True)
        if not cv2.imwrite(str(inside / name), resized(levels, self.size)):
            raise OSError(f"{inside / name} can't be written")
        without = WITHOUT[len(self.rows) % len(WITHOUT)]
        findings = f"Effusion|{nih.FINDING}" if positive else without
        number, patient = int(name[9:12]), int(name[:8])
        self.rows.append((name, findings, number, patient, 50, "F", "PA", 2500, 2048, 0.17, 0.17))


def _case_of(image_id: str) -> Case:
    """Return the case of a phantom's id, which ends in seed, patient and number."""
    try:
        seed, patient, number = map(int, image_id.split(".")[-3:])
    except ValueError as error:
        raise InputError(f"{image_id} is no phantom's id: write_competition first") from error
    return Case(image_id, patient, number, 0.0, seed)
