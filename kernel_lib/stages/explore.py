"""What is in a data folder, what is wrong with it, and where its masks lie."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

import pandas as pd

from kernel_lib.artifacts import ensemble as ensembles
from kernel_lib.config import ExploreParameters
from kernel_lib.data import folds, images, label_checks, labels, rle, table
from kernel_lib.data.table import Source
from kernel_lib.kaggle import paths
from kernel_lib.notebook import bar
from kernel_lib.postprocess.units import AREA_UNIT
from kernel_lib.reporting import mean_images, overlays
from kernel_lib.reporting.figures import mask_areas
from kernel_lib.reporting.mean_images import RunningMean
from kernel_lib.reporting.picture import Picture, counted
from kernel_lib.stages import explore_files
from kernel_lib.stages.explore_files import LabelRows, Masked, Opened

SHOWN = 4  # images per kind, one row of the grid each
LISTED = 10  # most faults printed; the table has all


@dataclass(frozen=True)
class Explored:
    """The result of a look at a data folder."""

    source: Source
    lines: tuple[str, ...]  # what is there, in words
    kinds: pd.DataFrame  # of the files that were opened: kind, height, width, images
    bad: pd.DataFrame  # image_id, what, where: files and labels with a fault
    areas: Picture
    masks: Picture
    means: Picture

    def faults(self) -> str:
        """Return the table of bad files and labels as text, or that it has no row."""
        return self.bad.to_string(index=False) if len(self.bad) else "no bad file or label"

    def __str__(self) -> str:
        return "\n".join(self.lines)


def run(parameters: ExploreParameters) -> Explored:
    """Look at every row of a data folder's tables, and SAMPLE_IMAGES of its files.

    Lists files that cannot be read and labels that do not fit. Raises InputError without data, and
    for what `table.discover` refuses.
    """
    source = table.discover(paths.data_dir(parameters.data_dir))
    rows = None
    if source.labels is not None and len(source.train):
        rows = explore_files.label_rows(source.labels)
    opened = explore_files.open_some(source, parameters.sample_images, parameters.seed)
    masked = explore_files.masked(source, opened, parameters.masks_are)
    masks = _masks(source, masked, rows, opened)  # which may find more bad files
    areas = Picture(None, "No histogram of mask areas: no image has a label.")
    if len(source.train):
        areas = mask_areas([one.area_px for one in masked], names=("as labelled", ""))
    result = Explored(
        source=source,
        lines=tuple(_lines(source, rows, opened, masked, parameters)),
        kinds=_kinds(opened),
        bad=pd.DataFrame(opened.bad, columns=["image_id", "what", "where"], dtype=object),
        areas=areas,
        masks=masks,
        means=mean_images.plot_means(opened.mean, _mean_mask(masked)),
    )
    print(result)
    return result


def viewer(parameters: ExploreParameters):
    """Return the viewer of an ensemble's masks, or a sentence without ENSEMBLE."""
    if parameters.ensemble is None:
        return Picture(None, "No viewer: -p ENSEMBLE NAME shows the masks of that ensemble.")
    from kernel_lib.viewer.document import viewer as of_folder

    roots = paths.artefact_roots(paths.work_dir(parameters.work_dir))
    return of_folder(
        ensembles.find(roots, parameters.ensemble),
        ids=parameters.ids,
        data_dir=paths.data_dir(parameters.data_dir),
        max_mb=parameters.max_mb,
        roots=roots,
    )


def _lines(
    source: Source,
    rows: LabelRows | None,
    opened: Opened,
    masked: Sequence[Masked],
    parameters: ExploreParameters,
) -> list[str]:
    image_ids = pd.concat([source.train["image_id"], source.test["image_id"]]).drop_duplicates()
    lines = [_counts_line(source, len(image_ids)), *_id_forms(image_ids.tolist())]
    if rows is not None:
        lines.append(_rows_line(source, rows))
    if len(source.train):
        lines.append(_share_line(source, opened, masked))
    lines.append(_sizes_line(opened, len(image_ids)))
    lines += _patients(opened, image_ids, parameters.groups)
    if source.unlabelled:
        lines.append(f"without a label: {_some(source.unlabelled)}")
    lines += [f"note: {problem}" for problem in [*source.problems, *images.noted(opened.notes)]]
    faults = [f"bad: {name}: {what}" for name, what, _ in opened.bad[:LISTED]]
    more = len(opened.bad) - len(faults)
    lines += _doubts(masked, parameters.masks_are)
    lines += faults or ["bad: nothing that was looked at"]
    return [*lines, f"bad: {more:,} more, in the table below"] if more else lines


def _counts_line(source: Source, n: int) -> str:
    text = (
        f"{source.root}: {source.layout}, {counted(len(source.train), 'labelled image')}, "
        f"{counted(len(source.test), 'test image')}"
    )
    both = len(source.train) + len(source.test) - n
    return f"{text}, {both:,} of them both" if both else text


def _sizes_line(opened: Opened, n: int) -> str:
    sizes = sorted({f"{w}×{h}" for h, w in opened.shapes.values()})
    if not sizes:
        return "opened: no image could be read"
    sizes_text = f"{counted(len(sizes), 'size')} ({_some(sizes)})"
    return f"opened: {len(opened.shapes):,} of {counted(n, 'image')}, of {sizes_text}"


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - 3:,} more" if len(names) > 3 else ""
    return f"{', '.join(names[:3])}{more}"


def _id_forms(ids: Sequence[str]) -> list[str]:
    """Return a line for each form that ids have, with its first id."""
    forms = {
        "as in a DICOM (numbers and dots)": r"\d+(\.\d+){5,}",
        "as the competition's second stage (ID_…)": r"ID_[0-9a-f]+",
        "as NIH's files (patient_number)": folds.NIH_NAME.pattern,
        "of another form": r".*",
    }
    by_form: dict[str, list[str]] = {}
    for name in ids:
        form = next(f for f, p in forms.items() if re.fullmatch(p, name, re.DOTALL))
        by_form.setdefault(form, []).append(name)
    return [
        f"ids: {len(by_form[form]):,} {form}, {by_form[form][0]} first"
        for form in forms
        if form in by_form
    ]


def _rows_line(source: Source, rows: LabelRows) -> str:
    text = (
        f"labels: {source.labels.name}, {counted(rows.n_rows, 'row')} of "
        f"{counted(rows.n_images, 'image')}"
    )
    if not rows.of_image:
        return f"{text}, one each"
    text += (
        f"; {counted(len(rows.of_image), 'image')} with several, up to "
        f"{max(rows.of_image.values())}"
    )
    if not rows.overlapping:
        return f"{text}; none of them overlap"
    over = counted(sum(rows.overlapping.values()), "row")
    return (
        f"{text}; {over} in {counted(len(rows.overlapping), 'image')} overlapping an earlier one, "
        "so a mask is the union"
    )


def _share_line(source: Source, opened: Opened, masked: Sequence[Masked]) -> str:
    if source.layout == "images+masks":
        among = sum(name in opened.shapes for name in source.train["image_id"])
        if not among:
            return "masks: no labelled image was opened"
        share = len(masked) / among
        return f"masks: {len(masked):,} of {among:,} opened images have one ({share:.1%})"
    positive = int((source.train["rle"] != rle.EMPTY).sum())
    total = len(source.train)
    return f"masks: {positive:,} of {total:,} images have one ({positive / total:.1%})"


def _doubts(masked: Sequence[Masked], masks_are: str | None) -> list[str]:
    """Return a line for what training would refuse, and for masks that are large for a lung."""
    named = [(one.image_id, (one.runs, one.shape)) for one in masked]
    doubt = label_checks.doubt([label for _, label in named]) if masks_are != "right" else None
    doubts = [doubt, label_checks.doubt_of_large(named)]
    return [f"doubt: {one}" for one in doubts if one]


def _patients(opened: Opened, image_ids: pd.Series, given: str | None) -> list[str]:
    if given is None:
        named = pd.Series(opened.patients, dtype=object)
    else:
        named = image_ids.map(labels.read_groups(paths.from_root(given)))
    named, notes = folds.known_patients(named)
    lines = [f"note: {note}" for note in notes]
    known = named[named != ""]
    n = known.nunique()
    if given is None:
        texts = [f"{n:,} named by the DICOMs that were opened"]
        if known.empty:
            texts = folds.note_unknown_patients(image_ids, named)
        return [*(f"patients: {text}" for text in texts), *lines]
    several = int((known.value_counts() > 1).sum())
    return [
        f"patients: {n:,} of {len(known):,} images by {given}, {several:,} with several images; "
        f"{len(image_ids) - len(known):,} images have none there",
        *lines,
    ]


def _kinds(opened: Opened) -> pd.DataFrame:
    """Count the opened files of each kind and size, most first."""
    columns = ["kind", "height", "width"]
    rows = [(opened.kinds[name], *shape) for name, shape in opened.shapes.items()]
    counts = pd.DataFrame(rows, columns=columns).value_counts(sort=False)
    listed = counts.rename("images").reset_index()
    return listed.sort_values(
        ["images", *columns], ascending=[False, True, True, True]
    ).reset_index(drop=True)


def _mean_mask(masked: Sequence[Masked]) -> RunningMean:
    mean = RunningMean()
    for image in bar(masked, desc="masks", unit="mask"):
        mean.add(rle.mask_of(image.runs, image.shape))
    return mean


def _masks(
    source: Source, masked: Sequence[Masked], rows: LabelRows | None, opened: Opened
) -> Picture:
    """Show masks of each kind over their images; without any mask, radiographs alone."""
    shown = []
    for kind, one in explore_files.samples(masked, rows, SHOWN):
        pixels = explore_files.pixels(one, opened)
        if pixels is None:
            continue
        caption = f"{kind}, {one.area_px:,.0f} {AREA_UNIT}"
        if rows and one.image_id in rows.of_image:
            caption += f", {rows.of_image[one.image_id]} rows"
        mask = rle.mask_of(one.runs, one.shape)
        shown.append(overlays.Example(one.image_id, pixels, mask, caption=caption))
    if shown:
        said = (
            f"{counted(len(shown), 'mask')} over the images: each should outline a lung. Any that "
            "cross the spine, lie off the body or are turned by 90° are decoded wrongly."
        )
        return replace(overlays.examples(shown), sentence=said)
    image_ids = pd.concat([source.train, source.test]).drop_duplicates("image_id")
    paths_of = dict(zip(image_ids["image_id"], image_ids["path"], strict=True))
    some = list(opened.shapes)[: 2 * SHOWN]
    return overlays.examples([overlays.Example(name, images.read(paths_of[name])) for name in some])
