"""Everything an ensemble's folder knows, as one page to look at."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from kernel_lib import files, runs
from kernel_lib.data import folds
from kernel_lib.data.table import Source
from kernel_lib.inference import ensemble as ensembles
from kernel_lib.inference.ensemble import Ensemble
from kernel_lib.postprocess import honest, thresholds
from kernel_lib.postprocess.thresholds import SearchResult, Stacked
from kernel_lib.stages import agreement, preparation, report_images, scores
from kernel_lib.viz import figures, report
from kernel_lib.viz.picture import Picture
from kernel_lib.viz.report import Section


def write(
    folder: Path,
    roots: Sequence[Path],
    source: Source | None = None,
    searches: Mapping[str, SearchResult] | None = None,
) -> Path:
    """Write report.html from what the stages left in an ensemble's folder.

    Pictures of images need `source`, the data folder; what the inference stage adds is shown once
    it has run. `searches` saves making them again.
    """
    ensemble = Ensemble.load(folder)
    choice, document = ensembles.read_choice(folder)
    scored = honest.HonestReport.from_json(document["honest"])
    meta = {
        "ensemble": ensemble.name,
        "members": ", ".join(f"{m.run} folds {list(m.folds)}" for m in ensemble.members),
        "combine": ensemble.combine,
    }
    meta |= dict(line.split(": ", 1) for line in scores.told(ensemble, choice, scored))
    target = folder / "report.html"
    found = sections(folder, roots, source, searches)
    report.write_report(target, f"Ensemble {ensemble.name}", found, meta)
    return target


def sections(
    folder: Path,
    roots: Sequence[Path],
    source: Source | None = None,
    searches: Mapping[str, SearchResult] | None = None,
) -> list[Section]:
    """The report's sections in order; as `write`."""
    ensemble = Ensemble.load(folder)
    choice, document = ensembles.read_choice(folder)
    among = ensembles.candidates(ensemble, document)
    scored = honest.HonestReport.from_json(document["honest"])
    last = honest.HonestReport.from_json(document["last"])
    drawn = folds.find(roots, ensemble.folds_digest)
    per_image = read_per_image(folder)
    searches = searches or _searches(folder, document)
    test = _test(folder)
    predicted = _test_areas(folder) if test is not None else None
    found = [
        Section("Scores", scores.table(scored, last, document["past_known"])),
        Section("Scores, drawn", figures.scores(scored, document["past_known"])),
        Section(
            "How the honest score was made",
            _method(scored, last, scores.told(ensemble, choice, scored), document["past_known"]),
        ),
        Section("Chosen for each part", scores.chosen_by_part(among, scored)),
        Section("Learning curves", figures.learning_curves(_logs(ensemble, roots))),
        Section("Thresholds", _surfaces(searches)),
        Section("Dice and area", figures.dice_against_area(per_image)),
        Section("Missed, by size", figures.false_negatives_by_size(per_image)),
        Section("Share of images with a mask", figures.share_nonempty(scored, test)),
        Section("Areas of masks", _areas_picture(per_image, predicted)),
        Section("Folds", figures.folds(drawn)),
    ]
    if len(ensemble.members) > 1:
        alike = agreement.of_folder(folder, roots)
        found.append(Section("The members' agreement", (alike.matrices(), alike.votes())))
    if source is not None:
        found += report_images.out_of_fold(among, roots, source, drawn, per_image, scored)
        if test is not None:
            found.append(Section("Test images with a mask", report_images.on_test(folder, source)))
        found.append(Section("Augmentations of one image", _augmented(ensemble, roots, source)))
    left_out = preparation.read_left_out(roots)
    if left_out:
        found.append(Section("Training images left out", left_out))
    if test is not None:
        found += _test_problems(folder, test)
    return found


def read_per_image(folder: Path) -> pd.DataFrame:
    """oof.csv as the figures want it: areas in px of 1024², dice by the honest rule."""
    table = pd.read_csv(folder / "oof.csv", dtype={"image_id": str, "group": str})
    names = {"true_area_px": "truth_px", "area_px": "predicted_px"}
    return table.rename(columns=names).dropna(subset=["dice"])


def _areas_picture(per_image: pd.DataFrame, on_test: np.ndarray | None) -> Picture:
    """Areas of predicted masks, out of fold beside test."""
    areas = per_image["predicted_px"].to_numpy()
    return figures.mask_areas(areas[areas > 0], on_test)


def _method(
    scored: honest.HonestReport,
    last: honest.HonestReport,
    told: Sequence[str],
    past_known: bool,
) -> str:
    warning = "" if past_known else "NOT HONEST: what a member descends from is unknown. "
    optimism = scored.honest.dice - last.honest.dice
    return (
        f"{warning}{scored.method} A rule keeps a mask where at least its area (px of 1024²) "
        "exceeds top, and cuts it at bottom; where it has a label, an image whose label does not "
        "exceed that has no mask. Submitted with: "
        f"{'; '.join(told)}. "
        "Epochs were selected on the images that score them: the selected ones score "
        f"{optimism:+.4f} against the last weights, which bounds that optimism."
    )


def save_statistics(folder: Path, image_ids: Sequence[str], searched: Sequence[Stacked]) -> None:
    """Keep what the searches saw, one set of images a search, so that a report can repeat them."""
    arrays = {"image_id": np.array(image_ids, dtype=str)}
    for at, stats in enumerate(searched):
        arrays[_key("hist_all", at)] = stats.hist_all.astype(np.int32)
        arrays[_key("hist_true", at)] = stats.hist_true.astype(np.int32)
        arrays["n_px"] = stats.n_px
        if stats.has_labels:
            arrays[_key("label", at)] = stats.label
    with files.whole(folder / "oof_statistics.npz") as file:
        np.savez_compressed(file, **arrays)


def _surfaces(searches: Mapping[str, SearchResult]) -> tuple:
    """The surface of each search, under its member's name where there are several."""
    named = len(searches) > 1
    return tuple(
        part
        for name, one in searches.items()
        for part in ([f"{name}:"] * named + [figures.threshold_surface(one)])
    )


def _key(name: str, at: int) -> str:
    return name if at == 0 else f"{name}_{at}"


def _searches(folder: Path, document: dict) -> dict[str, SearchResult]:
    """The searches again, from the statistics that the thresholds stage kept; seconds."""
    made = document["searches"] if "searches" in document else {"": document["search"]}
    found = {}
    with np.load(folder / "oof_statistics.npz") as kept:
        n_px = kept["n_px"]
        for at, (name, one) in enumerate(made.items()):
            label = _key("label", at)
            stats = Stacked(
                kept[_key("hist_all", at)].astype(np.int64),
                kept[_key("hist_true", at)].astype(np.int64),
                n_px,
                np.ones(len(n_px), dtype=bool),
                kept.get(label),
            )
            swept = one.get("label_swept", False)
            found[name] = thresholds.search(stats, single=one["single"], label=swept)
    return found


def _logs(ensemble: Ensemble, roots: Sequence[Path]) -> dict[str, list[dict]]:
    found = {m.run: runs.find(roots, m.run) for m in ensemble.members}
    return {
        found[m.run][k].name: found[m.run][k].read_log() for m in ensemble.members for k in m.folds
    }


def _augmented(ensemble: Ensemble, roots: Sequence[Path], source: Source) -> Picture:
    """One image as the first member's training saw it."""
    # Here: the augmentations bring torch along, without which the thresholds are to start.
    from kernel_lib.stages import augmented

    return augmented.of_run(ensemble.members[0].run, roots, source)


def _test(folder: Path) -> honest.TestSummary | None:
    path = folder / "test.json"
    if not path.exists():
        return None
    return honest.TestSummary.from_json(json.loads(path.read_text(encoding="utf-8"))["summary"])


def _test_problems(folder: Path, test: honest.TestSummary) -> list[Section]:
    unreadable = json.loads((folder / "test.json").read_text(encoding="utf-8"))["unreadable"]
    lines = [*test.warnings, *(f"empty mask, unreadable image: {name}" for name in unreadable)]
    return [Section("Test images: what to know", lines)] if lines else []


def _test_areas(folder: Path) -> np.ndarray:
    """Areas of the submission's masks that are not empty, px of 1024²."""
    areas = np.array(json.loads((folder / "test.json").read_text(encoding="utf-8"))["area_px"])
    return areas[areas > 0]
