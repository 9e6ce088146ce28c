"""Held-out maps of many runs as trained networks predict them, without training any.

A run's maps are a mixture of a few predictions of the same radiographs, with smooth noise of its
own, so that runs differ as seeds do. With a folder of radiographs these are the released model's
predictions of slightly changed images; without one they are drawn. In either case 3 % of a map's
pixels are above level 0. More images than maps are flipped copies of them.
"""

from __future__ import annotations

import json
import os
import zipfile
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pandas as pd

from kernel_lib import storage
from kernel_lib.artifacts import fold_run, folds_file, maps
from kernel_lib.artifacts.fold_run import FoldConfig, FoldRun
from kernel_lib.artifacts.lineage import Lineage
from kernel_lib.config import Experiment
from kernel_lib.data import images, rle, table
from kernel_lib.notebook import bar
from tools.benchmarks.thresholds import POSITIVES

MODEL = Path(__file__).resolve().parents[2] / "models" / "stage2_lite0_384.safetensors"
SIDE, FULL = 512, 1024  # of maps and of images
N_FOLDS, VARIANTS = 5, 4
ABOVE = 0.03  # the share of pixels above level 0, as the released model has it
LEAST = float(np.log(0.5 / 254.5))  # the logit from which a pixel is above level 0
FLIPS: tuple[Callable[[np.ndarray], np.ndarray], ...] = (
    lambda a: a, lambda a: a[:, ::-1], lambda a: a[::-1], lambda a: a[::-1, ::-1],
)  # fmt: skip

Predicted = tuple[np.ndarray, np.ndarray]  # logits (VARIANTS, SIDE, SIDE), true mask (FULL, FULL)


@dataclass(frozen=True)
class Source:
    """What all runs are mixed from."""

    logits: np.ndarray  # (VARIANTS, N, SIDE, SIDE) float16, mapped from a file
    masks: list[str]  # N true masks of FULL² as RLE

    @classmethod
    def made(cls, root: Path, n_maps: int, data: Path | None) -> Source:
        """Return the source in a folder, made there first unless it is there."""
        folder = root / f"source-{n_maps}"
        file, listed = folder / "logits.npy", folder / "masks.json"
        if not listed.exists():
            folder.mkdir(parents=True, exist_ok=True)
            shape = (VARIANTS, n_maps, SIDE, SIDE)
            logits, masks = np.lib.format.open_memmap(file, "w+", np.float16, shape), []
            every = predicted(data, n_maps) if data else map(drawn, range(n_maps))
            for at, (levels, mask) in enumerate(bar(every, total=n_maps, desc="logits")):
                logits[:, at] = levels
                masks.append(rle.encode(mask))
            logits.flush()
            storage.write_json(listed, masks)
        return cls(np.load(file, mmap_mode="r"), json.loads(listed.read_text()))

    def run(self, run: int) -> np.ndarray:
        """Return the maps (N, SIDE, SIDE) uint8 of a run."""
        rng = np.random.default_rng([3, run])
        shares, scale = rng.dirichlet(np.full(VARIANTS, 0.7)), rng.uniform(0.85, 1.15)
        some = self.logits[:, :, ::8, ::8].reshape(VARIANTS, -1).astype(np.float32)
        shift = shares @ np.quantile(some, 1 - ABOVE, axis=1)
        found = np.empty(self.logits.shape[1:], np.uint8)
        for at in range(len(found)):
            mixed = np.tensordot(shares, self.logits[:, at].astype(np.float32), 1) - shift
            mixed = scale * mixed + smooth(rng, 12, 0.5) - 0.15
            found[at] = maps.quantise(1 / (1 + np.exp(-(mixed + LEAST))))
        return found


def smooth(rng: np.random.Generator, cells: int, height: float) -> np.ndarray:
    """Return noise (SIDE, SIDE) float32 that varies over cells of the image."""
    noise = height * rng.normal(size=(cells, cells)).astype(np.float32)
    return cv2.resize(noise, (SIDE, SIDE), interpolation=cv2.INTER_CUBIC)


def drawn(at: int) -> Predicted:
    """Return an image's logits and mask: slopes of likely places, and for some images a lesion."""
    rng = np.random.default_rng([1, at])
    logits = smooth(rng, 10, 4) + np.stack([smooth(rng, 20, 1.5) for _ in range(VARIANTS)])
    mask = np.zeros((FULL, FULL), np.uint8)
    if rng.random() < POSITIVES:
        centre = rng.integers(200, FULL - 200, 2).tolist()
        axes = (rng.integers(20, 60), rng.integers(40, 160))
        cv2.ellipse(mask, centre, axes, float(rng.integers(180)), 0, 360, 1, -1)
        seen = cv2.GaussianBlur(cv2.resize(mask * np.float32(1), (SIDE, SIDE)), (0, 0), 6)
        logits += rng.uniform(8, 14, (VARIANTS, 1, 1)) * seen
    return logits, mask


def predicted(data: Path, n: int) -> Iterator[Predicted]:
    """Yield the released model's logits of radiographs, each a little turned, scaled, brightened.

    The images are spread evenly over the folder's labelled ones.
    """
    import torch

    from kernel_lib.released import Released

    train = table.discover(data).train
    if len(train) < n:
        raise SystemExit(f"{data} has {len(train)} labelled images: give --maps at most so many")
    model, rng = Released.load(MODEL).model.eval(), np.random.default_rng(7)
    turns = [
        cv2.getRotationMatrix2D((SIDE / 2, SIDE / 2), rng.uniform(-6, 6), rng.uniform(0.92, 1.08))
        for _ in range(VARIANTS)
    ]
    gammas = rng.uniform(0.8, 1.25, VARIANTS)
    for row in train.iloc[np.linspace(0, len(train) - 1, n).astype(int)].itertuples():
        pixels = images.read(row.path)
        mask = rle.decode(row.rle, pixels.shape)
        pixels = cv2.resize(pixels, (SIDE, SIDE), interpolation=cv2.INTER_AREA) / 255
        batch = [
            cv2.warpAffine(np.rint(255 * pixels**gamma).astype(np.uint8), turn, (SIDE, SIDE),
                           borderMode=cv2.BORDER_REPLICATE)
            for gamma, turn in zip(gammas, turns, strict=True)
        ]  # fmt: skip
        with torch.inference_mode():
            logits = model(torch.from_numpy(np.stack(batch))[:, None]).mask[:, 0].float().numpy()
        back = [
            cv2.warpAffine(one, turn, (SIDE, SIDE), flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP,
                           borderValue=-12)
            for one, turn in zip(logits, turns, strict=True)
        ]  # fmt: skip
        yield np.stack(back), cv2.resize(mask, (FULL, FULL), interpolation=cv2.INTER_NEAREST)


def names(n_runs: int) -> list[str]:
    return [f"run{run:02d}" for run in range(n_runs)]


def make(
    work: Path, source: Source, n_images: int, n_runs: int, write: Callable = maps.write
) -> Path:
    """Make a working folder of runs, all folds predicted, but for what is there, and return it."""
    work.mkdir(parents=True, exist_ok=True)
    copies = copies_of(n_images, len(source.masks))
    if not (work / "folds.csv").exists():
        folds_file.save(_folds(source, copies), work / "folds.csv")
    folds = folds_file.load(work / "folds.csv")
    digest = folds_file.digest(folds)
    # Labels of a good classifier: noise that the runs share, and half as much of each run.
    apart = 2 * (folds["area_px"] > 0) - 1 + np.random.default_rng(4).normal(size=n_images)

    def one(run: int, folders: list[FoldRun]) -> None:
        if all(folder.oof_last.exists() for folder in folders):
            return
        levels = source.run(run)
        own = np.random.default_rng([5, run]).normal(size=n_images)
        labels = 1 / (1 + np.exp(-1.6 * (apart + 0.5 * own)))
        for folder in folders:
            folder.path.mkdir(parents=True, exist_ok=True)
            row = Experiment(name=folder.run, label_weight=0.1)
            folder.write_config(
                FoldConfig(run=folder.run, fold=folder.fold, seed=run, n_folds=N_FOLDS,
                           folds_digest=digest, experiment=row)
            )  # fmt: skip
            inside = folds["fold"] == folder.fold
            lineage = Lineage(images=tuple(folds.loc[~inside, "image_id"]), chosen_on=())
            meta = {"run": folder.run, "fold": folder.fold, "lineage": lineage.to_json(),
                    "checkpoints": {"last.pt": folder.name}}  # fmt: skip
            held_out = (
                (folds["image_id"][i], maps.Prediction(flipped(levels, copies[i]), labels[i]))
                for i in np.flatnonzero(inside)
            )
            write(folder.oof, held_out, meta)
            os.link(folder.oof, folder.oof_last)

    _of_each_run(work, n_runs, one, "runs")
    return work


def make_test(work: Path, source: Source, n_images: int, n_runs: int) -> None:
    """Add maps of test images, the same by each fold of a run."""
    ids = [f"test-{i:05d}" for i in range(n_images)]
    copies = copies_of(n_images, len(source.masks))

    def one(run: int, folders: list[FoldRun]) -> None:
        missing = [folder for folder in folders if not folder.test.exists()]
        levels = source.run(run) if missing else None
        for folder in missing:
            made = (
                (image_id, maps.Prediction(flipped(levels, copy), 0.5))
                for image_id, copy in zip(ids, copies, strict=True)
            )
            maps.write(folder.test, made, {"run": folder.run, "fold": folder.fold})

    _of_each_run(work, n_runs, one, "test images")


def _of_each_run(
    work: Path, n_runs: int, make_one: Callable[[int, list[FoldRun]], None], title: str
) -> None:
    def one(run: int) -> None:
        name = names(n_runs)[run]
        make_one(run, [fold_run.fold_folder(work, name, k) for k in range(N_FOLDS)])

    with ThreadPoolExecutor(2) as pool:
        made = pool.map(one, range(n_runs))
        list(bar(made, total=n_runs, desc=f"{title} in {work.name}", unit="run"))


def copies_of(n_images: int, n_maps: int) -> list[tuple[int, int]]:
    """Return which map each image has, and how it is flipped."""
    return [(i % n_maps, i // n_maps % len(FLIPS)) for i in range(n_images)]


def flipped(levels: np.ndarray, copy: tuple[int, int]) -> np.ndarray:
    """Return one of N maps (N, SIDE, SIDE), flipped."""
    at, flip = copy
    return np.ascontiguousarray(FLIPS[flip](levels[at]))


def _folds(source: Source, copies: list[tuple[int, int]]) -> pd.DataFrame:
    """Return the table of folds: all copies of an image in one fold, as one patient's images."""
    masks = {}
    for at, flip in set(copies):
        runs = rle.runs_of(FLIPS[flip](rle.decode(source.masks[at], (FULL, FULL))))
        masks[at, flip] = rle.to_string(runs), rle.area(runs)
    rows = [
        (f"image-{i:05d}", at % N_FOLDS, "", FULL, FULL, masks[at, flip][1], masks[at, flip][0])
        for i, (at, flip) in enumerate(copies)
    ]
    return pd.DataFrame(rows, columns=folds_file.COLUMNS)


def write_png(
    path: Path, predictions: Iterable[tuple[str, maps.Prediction]], meta: dict[str, Any]
) -> None:
    """Write an archive as `maps.write` did before maps had a form of their own: PNGs, stored."""
    pngs = {}

    def without_maps() -> Iterator[tuple[str, maps.Prediction]]:
        for image_id, one in predictions:
            pngs[image_id] = cv2.imencode(".png", one.levels, [cv2.IMWRITE_PNG_COMPRESSION, 3])[1]
            yield image_id, one._replace(levels=None)

    maps.write(path, without_maps(), meta)
    with zipfile.ZipFile(path, "a") as archive:
        for image_id, png in pngs.items():
            archive.writestr(zipfile.ZipInfo(f"{image_id}.png"), png.tobytes())
