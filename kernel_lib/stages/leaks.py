from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from kernel_lib.artifacts.lineage import Lineage
from kernel_lib.config import TrainParameters
from kernel_lib.data import cache, fingerprint, table
from kernel_lib.data.cache import Prepared
from kernel_lib.data.images import Skipped
from kernel_lib.kaggle import paths


@dataclass(frozen=True)
class ImageSet:
    """A set of images: their ids, and their fingerprints' codes in the same order."""

    ids: Sequence[str] = ()
    codes: Sequence[str] = ()


NONE = ImageSet()
BY = "by id or pixels"


def test_images(source: table.Source, size: int, parameters: TrainParameters) -> ImageSet:
    """Return the test images of a data folder.

    They are decoded as `inference` does, which then finds them in the cache. Of unreadable ones,
    which are noted, only the id is known.
    """
    if source.test.empty:
        return NONE
    test = cache.prepare(
        source.test,
        source.root,
        size,
        paths.cache_dir(parameters.cache_dir),
        "test",
        workers=parameters.workers or None,
        on_bad_file="blank",
    )
    for image in test.skipped:
        print(f"note: a test image cannot be compared with the training images: {image}")
    return ImageSet(test.table["image_id"].tolist(), fingerprint.codes(test))


def without_test_images(prepared: Prepared, test: ImageSet) -> tuple[Prepared, list[Skipped]]:
    """Leave out the training images that are test images too, by id or by pixels.

    Return the others, and each that is left out. If none would remain, all stay, with a warning.
    """
    if not test.ids:
        return prepared, []
    ids, known = prepared.table["image_id"].tolist(), set(test.ids)
    matches = fingerprint.matches(fingerprint.codes(prepared), test.codes)
    copies = {int(i): test.ids[j] for i, j in matches}
    copies |= {i: image_id for i, image_id in enumerate(ids) if image_id in known}
    if not copies:
        return prepared, []
    skipped = [
        Skipped(ids[i], prepared.table["path"].iat[i], f"it is the test image {test_id}, {BY}")
        for i, test_id in sorted(copies.items())
    ]
    if len(copies) == len(ids):
        print(
            f"warning: every training image is a test image too ({skipped[0]}) and is trained on "
            "all the same: no score on these test images says anything of new ones"
        )
        return prepared, []
    print(
        f"note: {len(copies)} of {len(ids)} training images are test images too and are left out, "
        f"for their test score would say nothing; {skipped[0]}"
    )
    kept = [i for i in range(len(ids)) if i not in copies]
    return prepared.subset(np.array(kept)), skipped


def note_copies_across_folds(truth: pd.DataFrame, codes: Sequence[str]) -> None:
    """Warn of copies of one radiograph in different folds: each leaks into the other's score.

    truth: image_id and fold by row, whose codes these are.
    """
    fold, ids = truth["fold"].tolist(), truth["image_id"].tolist()
    pairs = [(i, j) for i, j in fingerprint.matches(codes, codes) if i < j and fold[i] != fold[j]]
    if pairs:
        i, j = pairs[0]
        print(
            f"warning: {len(pairs)} pairs of images show the same radiograph in different folds "
            f"({ids[i]} in fold {fold[i]}, {ids[j]} in fold {fold[j]}): their scores are too high; "
            "give both one patient in GROUPS, with a new WORK_DIR"
        )


def mapped(lineage: Lineage, truth: pd.DataFrame, codes: Sequence[str], name: str) -> Lineage:
    """Return the lineage of `name` in terms of a folds file: which of its images were seen.

    An image of the lineage counts as an image of the folds file if its id or its pixels are the
    same; then its patient in the folds file counts as seen. Any other image must have a
    fingerprint: without one the past is unknown. truth: image_id and group by row, in the order of
    `codes`.
    """
    groups = dict(zip(truth["image_id"], truth["group"], strict=True))
    own = dict(zip(truth["image_id"], codes, strict=True)) if codes else {}
    seen = [(image, code or own.get(image, "")) for image, code in lineage.pairs]
    foreign = [(image, code) for image, code in seen if image not in groups]
    # An id may be here and show another radiograph: 1.png is in many data sets.
    compared, ids = [(image, code) for image, code in seen if own.get(image) != code], list(own)
    matches = fingerprint.matches([code for _, code in compared], list(own.values())).tolist()
    same_id = {i for i, j in matches if compared[i][0] == ids[j]}
    same = [(compared[i][0], ids[j]) for i, j in matches if i not in same_id]
    others = {image for i, (image, _) in enumerate(compared) if image in own and i not in same_id}
    if same:
        print(
            f"note: {len(same)} images that {name} was trained on are images here under other ids "
            f"({same[0][0]} is {same[0][1]})"
        )
    unclear = [image for image, code in foreign if not (own and fingerprint.is_code(code))]
    if unclear:
        print(
            f"warning: {len(unclear)} images that {name} was trained on are not in folds.csv and "
            f"have no fingerprint to compare ({unclear[0]} first): any may be held out here, so no "
            "score of a model that starts from these weights is honest"
        )
    here = [(image, own.get(image, "")) for _, image in same]
    patients = {groups[image] for image, _ in (*seen, *here) if image in groups} - {""}
    changes = {
        "groups": tuple(sorted({*lineage.groups, *patients})),
        "known": lineage.known and not unclear,
    }
    # Images of another folds file may show the same as these do: that is not known.
    elsewhere = lineage.chosen_on and not groups.keys() - others >= set(lineage.chosen_on)
    changes["chosen_on"] = None if elsewhere else lineage.chosen_on
    return lineage.model_copy(update=changes).of_pairs((*seen, *here))


def warning(lines: Sequence[str]) -> str:
    """Return the warning that these test images, a line each, were trained on."""
    return (
        f"{len(lines)} test images were trained on, and their score says nothing of new ones "
        f"({lines[0]})"
    )


def seen_by(images: ImageSet, lineages: Iterable[Lineage]) -> list[str]:
    """Return a line for each of these images that was trained on, by id or by pixels."""
    trained = sorted({pair for lineage in lineages for pair in lineage.pairs})
    at = {image_id: i for i, image_id in enumerate(images.ids)}
    trained_as = {at[image]: image for image, _ in trained if image in at}
    for i, j in fingerprint.matches(images.codes, [code for _, code in trained]):
        trained_as.setdefault(int(i), trained[j][0])
    return [
        f"{images.ids[i]} is the training image {name}, {BY}"
        for i, name in sorted(trained_as.items())
    ]
