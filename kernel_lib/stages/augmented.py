"""One image as a run's training sees it, epoch by epoch."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pandas as pd

from kernel_lib.artifacts import fold_run, folds_file
from kernel_lib.artifacts.fold_run import FoldConfig
from kernel_lib.data import augment, images, rle
from kernel_lib.data.cache_store import resized
from kernel_lib.data.masks import resize_mask
from kernel_lib.data.table import Source, discover
from kernel_lib.kaggle import paths
from kernel_lib.reporting import overlays
from kernel_lib.reporting.picture import Picture

EPOCHS = 7  # with the image itself two rows of a grid


def after_training(run: str, work: Path, data_dir: str | None) -> Picture:
    """As `of_run`, for a run in a working folder and DATA_DIR as the train notebook has it."""
    folders = list(fold_run.find([work], run).values())
    if not folders:
        return Picture(None, f"No augmentation: {run} has no fold here.")
    config = folders[0].read_config()
    fold_table = folds_file.find([work], config.folds_digest)
    return of_config(config, fold_table, discover(paths.data_dir(data_dir)))


def of_config(config: FoldConfig, fold_table: pd.DataFrame, source: Source) -> Picture:
    """Draw the competition's image of median mask area as a run's augmentation makes it.

    At the run's size, in its first epochs, from its seed: what training gets of that image.
    """
    experiment, seed = config.experiment, config.seed
    chosen = _median(fold_table, source)
    if chosen is None:
        return Picture(None, f"No augmentation: no image of {config.run} lies in {source.root}.")
    paths_of = dict(zip(source.train["image_id"], source.train["path"], strict=True))
    size, name = experiment.size, chosen["image_id"]
    image = resized(images.read(paths_of[name]), size)
    mask = rle.decode(chosen["rle"], (int(chosen["height"]), int(chosen["width"])))
    mask = resize_mask(mask, (size, size))
    change = augment.Augment(experiment.augment)
    variants = [
        change(image, mask, augment.item_seed(seed, epoch, name)) for epoch in range(EPOCHS)
    ]
    shown = overlays.augmentations(image, mask, variants)
    made = f"augmented by {experiment.augment!r} with seed {seed}, epoch 1 on"
    return replace(shown, sentence=f"Image {name} at {size} px, {made}. {shown.sentence}")


def _median(fold_table: pd.DataFrame, source: Source) -> pd.Series | None:
    """The row of the median mask area among images that are here; of none with a mask any image."""
    here = fold_table[fold_table["image_id"].isin(source.train["image_id"])]
    if here.empty:
        return None
    positive = here[here["area_px"] > 0]
    among = (here if positive.empty else positive).sort_values(["area_px", "image_id"])
    return among.iloc[(len(among) - 1) // 2]
