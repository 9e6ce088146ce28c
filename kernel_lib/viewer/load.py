"""Load what a viewer shows from the folder of an ensemble and a folder of radiographs."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path

import pandas as pd

from kernel_lib.artifacts import folds_file
from kernel_lib.artifacts.decision import Decision
from kernel_lib.artifacts.lineage import stated_lineage
from kernel_lib.data import fingerprint, images
from kernel_lib.data.folder import Images, survey
from kernel_lib.data.table import Source, discover
from kernel_lib.errors import InputError
from kernel_lib.inference.ensemble_maps import open_maps
from kernel_lib.inference.out_of_fold import OutOfFold, check_predicted_by, out_of_fold
from kernel_lib.kaggle import paths
from kernel_lib.viewer.data import ModelView, ViewerData, measure, model_views

COMPARED = 20  # radiographs whose pixels are compared with those of the training


def load_viewer_data(
    folder: Path | str,
    *,
    test: bool = False,
    data_dir: Path | str | None = None,
    roots: Sequence[Path] | None = None,
) -> ViewerData:
    """Return what a viewer of an ensemble's folder shows, for any number of pages.

    Parameters and errors are those of `document.viewer`.
    """
    folder = Path(folder).resolve()
    roots = roots or paths.artefact_roots(folder.parent.parent)
    data = None
    if data_dir is not None or paths.on_kaggle():
        data = paths.data_dir(None if data_dir is None else str(data_dir))
    if test:
        return load_test(folder, roots, data and discover(data, for_inference=True))
    # Only the files: labels and splits are those of the ensemble.
    return load_held_out(folder, roots, data and Images.of(survey(data, by_content=True)))


def load_held_out(folder: Path, roots: Sequence[Path], data: Images | None = None) -> ViewerData:
    """Return the images of an ensemble's folds, predicted by members not trained on them.

    `data` holds their radiographs. Raises InputError where the thresholds stage has not run, where
    a file that it read is gone, and where the radiographs differ from those trained on.
    """
    decision = Decision.load(folder)
    ensemble, choice, scores = decision.ensemble, decision.choice, decision.scores
    check_predicted_by(decision, roots)
    fold_table = folds_file.find(roots, ensemble.folds_digest)
    part = out_of_fold(ensemble, roots, fold_table, allow_unknown_past=True)
    low, high = scores.first.interval
    score = f"{scores.first.honest.dice:.4f} (95 % {low:.4f} to {high:.4f})"
    coverage = f", of {scores.coverage}" if scores.coverage else ""
    caveat = "" if scores.first_is_honest else ", NOT honest here"
    note = (
        "Means over all images are in sample, since the rule was chosen on these images; "
        f'the nested cross-validated ("honest") score{caveat}: {score}{coverage}.'
    )
    radiographs, notes = {}, ()
    if data is not None:
        radiographs, notes = _match_radiographs(ensemble.name, part, data)
    models = model_views(ensemble, choice, part.ensemble_maps)
    stats, vote = measure(ensemble, choice, part.table, models)
    title = f"{ensemble.name}, out of fold"
    return ViewerData(title, part.table, models, stats, vote, radiographs, (note, *notes))


def load_test(folder: Path, roots: Sequence[Path], source: Source | None) -> ViewerData:
    """Return the test images as the inference stage predicted them, without ground truth.

    Raises InputError where that stage has not run here, and without the images, whose sizes count.
    """
    if source is None:
        raise InputError(
            "test images are shown at their own sizes, which their files state: give the data "
            "folder, --data DIR or data_dir=…"
        )
    decision = Decision.load(folder)
    ensemble, choice = decision.ensemble, decision.choice
    maps = open_maps(ensemble, roots, ensemble.folds, "test")
    models = model_views(ensemble, choice, {None: maps})
    if ensemble.combine == "vote":
        of_fold = {k: open_maps(ensemble, roots, [k], "test") for k in ensemble.folds}
        models = models[:1] + tuple(
            ModelView(f"fold {k}", choice.triplet, {None: fold_maps}, ensemble.weights)
            for k, fold_maps in of_fold.items()
        )
    predicted = set(maps.archives[0].ids)
    table, unreadable = _read_sizes(source.test[source.test["image_id"].isin(predicted)])
    if table.empty:
        raise InputError(
            f"none of the {len(source.test)} test images in the data folder was predicted: give "
            "the folder that the inference stage had"
        )
    notes = [f"Left out, since it cannot be read: {problem}." for problem in unreadable]
    n_here = len(table) + len(unreadable)
    if n_here < len(predicted):
        notes.append(f"{source.root} holds {n_here:,} of {len(predicted):,} test images predicted.")
    radiographs = {i: Path(p) for i, p in source.test.set_index("image_id")["path"].items()}
    stats, vote = measure(ensemble, choice, table, models)
    title = f"{ensemble.name}, test images"
    return ViewerData(title, table, models, stats, vote, radiographs, tuple(notes))


def _read_sizes(listed: pd.DataFrame) -> tuple[pd.DataFrame, list[str]]:
    """Return the images with the sizes that their files state, and why others are unreadable."""
    rows, unreadable = [], []
    for image_id, path in listed[["image_id", "path"]].itertuples(index=False):
        try:
            rows.append((image_id, None, *images.size_of(path), None))
        except images.ImageError as problem:
            unreadable.append(str(problem))
    return pd.DataFrame(rows, columns=["image_id", "fold", "height", "width", "rle"]), unreadable


def _match_radiographs(
    name: str, part: OutOfFold, data: Images
) -> tuple[dict[str, Path], tuple[str, ...]]:
    """Return the files of an ensemble's images in a data folder, and notes on missing ones.

    Raises InputError where it holds none of them, or other radiographs under their ids: a mask over
    a wrong image would look like a wrong mask.
    """
    wanted = part.table["image_id"].tolist()
    meant = {image_id: data.meant(image_id) for image_id in wanted}
    files = {image_id: data.path(own) for image_id, own in meant.items() if own is not None}
    which, notes = f"{len(wanted):,} images of {name}", []
    if not files:
        raise InputError(
            f"{data.root} holds none of the {which}, {wanted[0]} first: give the data folder "
            "that they were trained on, or none, to see masks without radiographs"
        )
    if len(files) < len(wanted):
        notes.append(
            f"{data.root} holds {len(files):,} of the {which}: the others are shown without "
            "their radiograph."
        )
    n_compared, other = _compare_radiographs(part, files)
    if other and 2 * len(other) >= n_compared:
        raise InputError(
            f"{data.root} shows other radiographs under the ids of {name}: {len(other)} of "
            f"{n_compared} compared are not those trained on, {other[0]} first; give the data "
            "folder that they were trained on"
        )
    if other:
        notes.append(
            f"{len(other)} of {n_compared} radiographs compared are not those trained on: "
            f"{', '.join(other)}."
        )
    return files, tuple(notes)


def _compare_radiographs(part: OutOfFold, files: Mapping[str, Path]) -> tuple[int, list[str]]:
    """Return how many radiographs were compared with those trained on, and ids that differ.

    They are sampled evenly from those of which a member of another fold keeps the fingerprint.
    """
    archives = {a.path: a for maps in part.ensemble_maps.values() for a in maps.archives}
    known: dict[str, set[str]] = defaultdict(set)
    for path, archive in archives.items():
        for image_id, code in stated_lineage(archive.meta, path).pairs:
            if image_id in files and fingerprint.shows(code):
                known[image_id].add(code)
    n_compared, other = 0, []
    for image_id in sorted(known)[:: max(1, len(known) // COMPARED)][:COMPARED]:
        try:
            code = fingerprint.code(images.read(files[image_id]))
        except images.ImageError:
            continue
        if fingerprint.shows(code):
            n_compared += 1
            if not len(fingerprint.matches([code], sorted(known[image_id]))):
                other.append(image_id)
    return n_compared, other
