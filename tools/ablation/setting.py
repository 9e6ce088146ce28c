"""What all arms share: the phantoms, the fold, and where everything lies."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path

import pandas as pd

from kernel_lib.data import cache, rle, table
from kernel_lib.errors import InputError
from tools.phantoms import competition


@dataclass(frozen=True)
class Phantoms:
    """One set of phantoms; those of another seed share no patient with it."""

    train: int
    evaluate: int  # further patients, on whom no checkpoint was chosen
    size: int  # px, of the images themselves
    difficulty: float
    positives: float
    seed: int


@dataclass(frozen=True)
class Setting:
    """What all arms share."""

    own: Phantoms
    other: Phantoms  # what stands in for NIH
    n_folds: int = 5
    fold: int = 0


FULL = Setting(
    own=Phantoms(250, 300, 192, difficulty=0.1, positives=0.35, seed=1),
    other=Phantoms(300, 2, 192, difficulty=0.1, positives=0.35, seed=2),
)
# Enough for every stage to run, and for little to be learnt.
QUICK = Setting(
    own=Phantoms(150, 80, 128, difficulty=0.0, positives=0.5, seed=1),
    other=Phantoms(20, 2, 128, difficulty=0.0, positives=0.5, seed=2),
)


@dataclass(frozen=True)
class Place:
    """The folder of a trial: results, and what they were made from."""

    folder: Path

    @property
    def results(self) -> Path:
        return self.folder / "results.jsonl"

    @property
    def cache(self) -> Path:
        return self.folder / "cache"

    def data(self, which: str) -> Path:
        return self.folder / "phantoms" / which

    def work(self, which: str) -> Path:
        return self.folder / "work" / which

    def maps(self, arm: str, seed: int) -> Path:
        return self.folder / "maps" / f"{arm}_seed{seed}.zip"

    def weights(self, arm: str, seed: int) -> Path:
        return self.folder / "weights" / f"{arm}_seed{seed}"

    def log(self, arm: str, seed: int) -> Path:
        return self.folder / "logs" / f"{arm}_seed{seed}.txt"


def draw(setting: Setting, place: Place) -> None:
    """Draw the phantoms, each set once; InputError where others lie there."""
    for which in ("own", "other"):
        phantoms, folder = getattr(setting, which), place.data(which)
        note = folder / "phantoms.txt"
        if (folder / "train-rle.csv").is_file():
            if not note.is_file() or note.read_text(encoding="utf-8") != repr(phantoms):
                raise InputError(f"{folder} holds other phantoms: delete it, or another --folder")
            continue
        folder.mkdir(parents=True, exist_ok=True)
        note.write_text(repr(phantoms), encoding="utf-8")
        how = asdict(phantoms)
        counts = how.pop("train"), how.pop("evaluate")
        competition.write_competition(folder, *counts, **how)


def prepare(place: Place, which: str, size: int, split: str) -> cache.Prepared:
    """Return the phantoms of a split at one size, decoded once."""
    source = table.discover(place.data(which))
    frame = source.train if split == "train" else source.test
    return cache.prepare(frame, source.root, size, place.cache, split)


def truth(place: Place) -> pd.DataFrame:
    """Return the evaluation images: image_id, height, width, group (the patient) and rle."""
    images = prepare(place, "own", 32, "test").table  # at any size: it states the images' own
    rows = pd.read_csv(place.data("own") / competition.TEST_TRUTH, dtype=str)
    runs = rows.groupby("ImageId")["EncodedPixels"].agg(
        lambda parts: rle.to_string(rle.union(rle.parse(part.strip()) for part in parts))
    )
    frame = images[["image_id", "height", "width"]].copy()
    frame["group"], frame["rle"] = images["patient"].to_numpy(), images["image_id"].map(runs)
    return frame
