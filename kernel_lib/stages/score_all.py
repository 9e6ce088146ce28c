"""A submission's scores in every definition, and by subgroup, as text: `score --all`."""

from __future__ import annotations

import math
from pathlib import Path

import pandas as pd

from kernel_lib.data import cells, metadata
from kernel_lib.data.labels import names_of
from kernel_lib.errors import InputError
from kernel_lib.postprocess import score_definitions, subgroups
from kernel_lib.postprocess.submission import Pairs

PROBABILITIES = ("probability", "label_probability")  # columns, the latter of `predict`


def text(
    pairs: Pairs,
    submission: Path,
    labels: Path,
    files: pd.DataFrame | None = None,
    metadata_csv: Path | None = None,
    probabilities: Path | None = None,
) -> str:
    """Return the tables of scores and subgroups of these pairs, with notes.

    The AUC needs a column of probabilities, in the submission or another table. Metadata come from
    `metadata_csv`, else metadata.csv beside the labels, else the DICOM headers of `files`
    (image_id, path).

    Raises: InputError for a table of probabilities or metadata that is faulty or of other images.
    """
    masks = zip(pairs.ids, pairs.predicted, pairs.truth, strict=True)
    images = score_definitions.measure_images(
        (image_id, predicted, true, shape) for image_id, (predicted, _), (true, shape) in masks
    )
    traits, notes = _traits(pairs, labels, files, metadata_csv)
    images = subgroups.with_traits(images, traits)
    known = read_probabilities(probabilities or submission, required=probabilities is not None)
    if known is None:
        notes.append(
            f"no AUC: {submission} has no column {' or '.join(PROBABILITIES)}; add one, or give a "
            "table of probabilities with --probabilities"
        )
    else:
        images["probability"] = known.reindex(images["image_id"]).to_numpy()
        if lacking := int(images["probability"].isna().sum()):
            notes.append(f"AUC: {lacking} images have no probability and are left out")
    drawn = "patients" if images["group"].nunique() < len(images) else "images"
    notes.append(
        f"95 % intervals: bootstrap over {drawn}, Wilson for sensitivity, specificity, PPV and NPV"
    )
    parts = subgroups.subgroups(images, traits)
    tables = [
        score_definitions.as_table(score_definitions.scores(images)),
        subgroups.as_table(parts),
    ]
    shown = [_as_text(table) for table in tables if len(table)]
    notes += [f"warning: {warning}" for warning in subgroups.warnings(parts)]
    return "\n\n".join([*shown, "\n".join(notes)])


def read_probabilities(csv: Path, *, required: bool) -> pd.Series | None:
    """Return the probability (0–1) of each image by its id; None for a table without the column.

    Raises: InputError for a value outside 0–1 and, if `required`, for a missing column.
    """
    header, _ = cells.read_parts(csv)
    column = next((name for name in PROBABILITIES if name in header), None)
    if column is None:
        if required:
            raise InputError(
                f"{csv} has the columns {header}, no {' or '.join(PROBABILITIES)}: rename the "
                "column of probabilities"
            )
        return None
    id_column = "image_id" if "image_id" in header else cells.ID_COLUMN  # `predict` writes image_id
    table = cells.read_table(csv, [id_column, column])
    values = []
    for row, cell in table[column].items():
        try:
            value = float(cell) if cell else math.nan
        except ValueError:
            value = math.inf
        if value < 0 or value > 1:
            raise InputError(
                f"{csv} row {row}: the {column} {cell!r} is not within 0–1: correct it"
            )
        values.append(value)
    found = pd.Series(values, index=names_of(table[id_column]))
    return found[~found.index.duplicated()]  # an image with several rows repeats its probability


def _traits(
    pairs: Pairs, labels: Path, files: pd.DataFrame | None, metadata_csv: Path | None
) -> tuple[pd.DataFrame | None, list[str]]:
    """Return the metadata by image id (None without any), and notes on their source."""
    csv = metadata_csv or metadata.beside(labels)
    if csv is not None:
        traits = metadata.read(csv)
        lacking = metadata.check_ids(csv, traits, pairs.ids)
        return traits, [f"metadata: {csv}" + (f", which lacks {lacking} images" if lacking else "")]
    if files is not None:
        paths = files.set_index("image_id")["path"].reindex(list(pairs.ids))
        traits = metadata.of_headers(pairs.ids, paths.tolist())
        if traits is not None:
            return traits, ["metadata: the DICOM files' headers"]
    return None, [f"no subgroups by view, sex and age: no {metadata.FILE} beside {labels}"]


def _as_text(table: pd.DataFrame) -> str:
    """Return a left-aligned table, numbers with four decimals, nan as –."""
    texts = table.map(_cell)
    width = {name: max(len(name), *map(len, texts[name])) for name in texts}
    rows = [list(texts), *texts.to_numpy().tolist()]
    lines = ["  ".join(map(str.ljust, row, width.values())).rstrip() for row in rows]
    return "\n".join(lines)


def _cell(value: object) -> str:
    if not isinstance(value, float):
        return str(value)
    return "–" if math.isnan(value) else f"{value:.4f}"
