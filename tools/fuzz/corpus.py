"""What is mutated: real files where they are on this machine, else phantoms. None is ever kept."""

from __future__ import annotations

import os
import tempfile
from dataclasses import dataclass
from pathlib import Path

from kernel_lib.data.rle import EMPTY
from tools.phantoms import competition

ROOT = Path(__file__).resolve().parents[2]
MAX_ROWS = 40
MAX_DICOM_BYTES = 400_000  # larger ones take a second each to decode


@dataclass(frozen=True)
class Corpus:
    """Files as bytes; `says` where they are from."""

    says: str
    labels: bytes  # train-rle.csv, some rows of it
    groups: bytes  # nih_id.csv, some rows of it
    rles: tuple[str, ...]  # none empty
    dicoms: tuple[bytes, ...]


def gather(folder: Path | None = None) -> Corpus:
    """Return real files of the shared folder, or of `folder`; phantoms where there is none."""
    folder = folder or Path(os.environ.get("PNEUMO_SHARED_DATA", ROOT.parent / "shared" / "data"))
    if not (folder / "siim-labels" / "train-rle.csv").is_file():
        with tempfile.TemporaryDirectory() as scratch:
            competition.write_competition(Path(scratch), 12, 4, size=64, positives=0.5, workers=1)
            labels = (Path(scratch) / "train-rle.csv").read_bytes()
            dicoms = sorted(Path(scratch).rglob("*.dcm"))[:4]
            return _corpus("phantoms", labels, _groups_of(labels), dicoms)
    labels = folder / "siim-labels"
    return _corpus(
        f"real files of {folder}",
        _head(labels / "train-rle.csv"),
        _head(labels / "nih_id.csv"),
        sorted([*folder.glob("dicom-edge/*.dcm"), *folder.glob("labelled-dicom/**/*.dcm")]),
    )


def _corpus(says: str, labels: bytes, groups: bytes, dicoms: list[Path]) -> Corpus:
    cells = [line.split(",")[1].strip() for line in labels.decode().splitlines()[1:]]
    small = [path for path in dicoms if path.stat().st_size <= MAX_DICOM_BYTES]
    return Corpus(
        says,
        labels,
        groups,
        tuple(cell for cell in cells if cell != EMPTY),
        tuple(path.read_bytes() for path in small),
    )


def _head(path: Path) -> bytes:
    return b"".join(path.read_bytes().splitlines(keepends=True)[: MAX_ROWS + 1])


def _groups_of(labels: bytes) -> bytes:
    ids = [line.split(",")[0] for line in labels.decode().splitlines()[1:]]
    rows = [f"{name},{at // 2:08d}_000.png" for at, name in enumerate(dict.fromkeys(ids))]
    return "\n".join(["ImageId,NIH", *rows, ""]).encode()
