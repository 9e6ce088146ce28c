"""The folds file: drawn once, also by trainings that start together in one empty folder."""

from __future__ import annotations

import threading
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pandas as pd
import pytest

from kernel_lib import files
from kernel_lib.config import TrainParameters
from kernel_lib.data import contrast, folds, table
from kernel_lib.errors import InputError
from kernel_lib.stages import preparation

PREPARED = SimpleNamespace(
    table=pd.DataFrame(
        {"image_id": [f"i{i}" for i in range(6)], "height": 9, "width": 9, "area_px": 4,
         "rle": "0 4", "patient": ""}
    )
)  # fmt: skip


def settle(work: Path, n_folds: int) -> pd.DataFrame:
    return preparation.settle_folds(PREPARED, TrainParameters(n_folds=n_folds), [work])


def test_a_training_that_starts_while_another_draws_waits_and_takes_what_it_drew(
    tmp_path, monkeypatch
):
    """The second asks for three folds: where both drew, the file would not be the first one's."""
    refused, arrived = [], threading.Event()
    draw, named = folds.draw, files._named

    def second() -> None:
        try:
            settle(tmp_path, 3)
        except InputError as error:
            refused.append(str(error))
        arrived.set()

    thread = threading.Thread(target=second)

    def drawn_meanwhile(table, n_folds):
        if n_folds == 2:
            thread.start()
            assert arrived.wait(60)
        return draw(table, n_folds)

    def waits(owner):
        arrived.set()
        return named(owner)

    monkeypatch.setattr(folds, "draw", drawn_meanwhile)
    monkeypatch.setattr(files, "_named", waits)
    first = settle(tmp_path, 2)
    thread.join(60)
    assert len(refused) == 1
    assert "folds.csv has 2 folds, N_FOLDS is 3: -p N_FOLDS 2, or another" in refused[0]
    assert folds.difference(folds.load(tmp_path / "folds.csv"), first[list(folds.COLUMNS)]) == ""
    assert [path.name for path in tmp_path.iterdir()] == ["folds.csv"]


def test_folds_of_an_earlier_kernel_are_copied_and_kept(tmp_path):
    work, earlier = tmp_path / "work", tmp_path / "earlier"
    before = settle(earlier, 3).assign(fold=[0, 0, 1, 1, 2, 2])
    folds.save(before, earlier / "folds.csv")
    taken = preparation.settle_folds(PREPARED, TrainParameters(n_folds=3), [work, earlier])
    assert taken["fold"].tolist() == [0, 0, 1, 1, 2, 2]
    assert (work / "folds.csv").read_bytes() == (earlier / "folds.csv").read_bytes()
    with pytest.raises(InputError, match="has 3 folds, N_FOLDS is 2"):
        settle(work, 2)


def test_what_was_changed_in_images_is_noted_once(tmp_path, capsys):
    data = tmp_path / "data"
    data.mkdir()
    levels = np.arange(1024, dtype=np.uint8).reshape(32, 32)
    for name, pixels in (("a", levels), ("b", levels % 16), ("c", levels % 9)):
        cv2.imwrite(str(data / f"{name}.png"), pixels)
    (data / "train-rle.csv").write_text("ImageId,EncodedPixels\na,0 9\nb,-1\nc,-1\n")
    given = TrainParameters(cache_dir=str(tmp_path / "cache"))
    preparation.prepare_training(table.discover(data), given, 32, tmp_path)
    (note,) = (line for line in capsys.readouterr().out.splitlines() if line.startswith("note: "))
    assert contrast.FLAT in note
    assert f"2 of 3 images, {data.resolve() / 'b.png'} first" in note
