"""The augmentations that are shown are those that training gets."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

from kernel_lib.artifacts import fold_run, folds_file
from kernel_lib.data import cache, rle
from kernel_lib.data.dataset import TrainingImages
from kernel_lib.data.table import Source, discover
from kernel_lib.reporting import overlays
from kernel_lib.reporting.picture import Picture
from kernel_lib.stages import augmented
from tests.configs import write_config

RUN, SIZE, SEED = "run", 32, 7


@pytest.fixture
def data(tmp_path):
    """Three images with masks of 12, 40 and 60 px and one without, and a run of them."""
    rng = np.random.default_rng(0)
    rows = {"a": "70 12", "b": "70 40", "c": "70 60", "d": "-1"}
    for name in rows:
        pixels = rng.integers(0, 256, (48, 40), np.uint8)
        (tmp_path / f"{name}.png").write_bytes(cv2.imencode(".png", pixels)[1].tobytes())
    lines = ["ImageId,EncodedPixels", *(f"{i},{text}" for i, text in rows.items()), ""]
    (tmp_path / "train-rle.csv").write_text("\n".join(lines))
    source = discover(tmp_path)
    prepared = cache.prepare(source.train, tmp_path, SIZE, tmp_path / "cache", "train")
    drawn = prepared.table[["image_id", "height", "width", "area_px", "rle"]].assign(
        group="", fold=[0, 1, 0, 1]
    )[list(folds_file.COLUMNS)]
    folds_file.save(drawn, tmp_path / "work" / "folds.csv")
    folder = fold_run.fold_folder(tmp_path / "work", RUN, 0)
    write_config(folder, folds_file.digest(drawn), seed=SEED, size=SIZE, augment="notes")
    return tmp_path, source, prepared


def of_run(root: Path, source: Source) -> Picture:
    (folder,) = fold_run.find([root / "work"], RUN).values()
    fold_table = folds_file.load(root / "work" / "folds.csv")
    return augmented.of_config(folder.read_config(), fold_table, source)


def test_they_are_what_the_loader_gives(data, monkeypatch):
    root, source, prepared = data
    given = []
    real = overlays.augmentations
    monkeypatch.setattr(overlays, "augmentations", lambda *all_: given.append(all_) or real(*all_))
    picture = of_run(root, source)
    ((image, mask, variants),) = given
    row = prepared.table["image_id"].tolist().index("b")  # the median of 12, 40 and 60 px
    assert np.array_equal(image, prepared.image(row))
    assert np.array_equal(mask, prepared.mask(row))
    loaded = TrainingImages(prepared, "notes", SEED)
    assert len(variants) == augmented.EPOCHS
    for epoch, (pixels, outline) in enumerate(variants):
        one, other, _ = loaded[epoch, row, 0]
        assert np.array_equal(pixels, one[0].numpy())
        assert np.array_equal(outline, other[0].numpy())
    assert picture.sentence.startswith("Image b at 32 px, augmented by 'notes' with seed 7")
    assert picture.png(dpi=40)


def test_after_training_by_the_notebook_s_words(data):
    root, source, _ = data
    picture = augmented.after_training(RUN, root / "work", str(root))
    assert picture.sentence == of_run(root, source).sentence


def test_of_nothing_a_sentence(data, tmp_path_factory):
    root, *_ = data
    assert augmented.after_training("other", root / "work", str(root)).figure is None
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    (elsewhere / "train-rle.csv").write_text("ImageId,EncodedPixels\nz,-1\n")
    (elsewhere / "z.png").write_bytes(cv2.imencode(".png", np.zeros((8, 8), np.uint8))[1].tobytes())
    assert of_run(root, discover(elsewhere)).figure is None


def test_of_images_without_a_mask_any_is_taken(data):
    _, source, prepared = data
    drawn = prepared.table.assign(area_px=0)
    assert augmented._median(drawn, source)["image_id"] == "b"
    assert rle.area(rle.parse(augmented._median(prepared.table, source)["rle"])) == 40
