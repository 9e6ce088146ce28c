"""Everything an ensemble's folder knows, as one page to look at."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from kernel_lib import storage
from kernel_lib.artifacts import ensemble as ensembles
from kernel_lib.artifacts import fold_run
from kernel_lib.artifacts.ensemble import Ensemble, Scores
from kernel_lib.artifacts.left_out import LeftOut
from kernel_lib.data import folds
from kernel_lib.data.table import Source
from kernel_lib.inference.out_of_fold import check_predicted_by
from kernel_lib.postprocess import nested_cv, search
from kernel_lib.postprocess.histograms import Stacked
from kernel_lib.postprocess.search import SearchResult
from kernel_lib.postprocess.strategies import Choice
from kernel_lib.reporting import figures, report
from kernel_lib.reporting.picture import Picture
from kernel_lib.reporting.report import Section
from kernel_lib.stages import agreement, past, report_images, scores

# What is read of oof.csv, beside the images' ids.
_PER_IMAGE = {"fold": "int64", "part": "int64", "true_area_px": "float64", "area_px": "float64",
              "dice": "float64"}  # fmt: skip


@dataclass(frozen=True)
class Known:
    """What is known of an ensemble before the test images, all of it there and fitting together."""

    ensemble: Ensemble
    choice: Choice
    document: dict  # thresholds.json
    both: Scores
    among: Ensemble  # the members among which was chosen
    drawn: pd.DataFrame  # the folds file
    per_image: pd.DataFrame  # as `read_per_image` has it
    logs: dict[str, list[dict]]  # log.jsonl by run and fold
    left_out: list[str]
    scores: pd.DataFrame
    by_part: pd.DataFrame
    summary_lines: tuple[str, ...]  # the rule, weights, gate and image-level ROC AUC

    @property
    def scored(self) -> nested_cv.HonestReport:
        """The kept checkpoints' score."""
        return self.both.kept


def read(folder: Path, roots: Sequence[Path]) -> Known:
    """Everything the report says of an ensemble before the test images.

    Raises InputError naming the file, and the stage that makes it, where one of them is missing,
    damaged, or of another ensemble.
    """
    ensemble = Ensemble.load(folder)
    choice, document = ensembles.read_choice(folder)
    both = Scores.of(document)
    among = ensembles.candidates(ensemble, document)
    with ensembles.named_if_damaged(folder / "thresholds.json"):
        listed = scores.table(both)
        by_part = scores.chosen_by_part(among, both.kept)
        lines = tuple(scores.summary_lines(ensemble, choice, both))
    check_predicted_by(document, ensemble, roots)
    drawn = folds.find(roots, ensemble.folds_digest)
    per_image = read_per_image(folder)
    with ensembles.named_if_damaged(folder / "oof.csv"):
        fold = per_image["image_id"].map(drawn.set_index("image_id")["fold"])
        theirs = (fold == per_image["fold"]) & fold.isin(ensemble.folds)
        if not (theirs & per_image["part"].isin([rule.part for rule in both.kept.rules])).all():
            raise ValueError("its images or folds are not the ensemble's")
    for _ in _statistics(folder, document):
        pass
    return Known(
        ensemble=ensemble,
        choice=choice,
        document=document,
        both=both,
        among=among,
        drawn=drawn,
        per_image=per_image,
        logs=_logs(ensemble, roots),
        left_out=list(LeftOut.load(roots).lines),
        scores=listed,
        by_part=by_part,
        summary_lines=lines,
    )


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
    known = read(folder, roots)
    for name, lines in known.logs.items():
        if not lines:
            print(f"note: {name}/log.jsonl is missing: no learning curve; training again writes it")
    ensemble = known.ensemble
    meta = {
        "ensemble": ensemble.name,
        "members": ", ".join(f"{m.run} folds {list(m.folds)}" for m in ensemble.members),
        "combine": ensemble.combine,
    }
    meta |= dict(line.split(": ", 1) for line in known.summary_lines)
    target = folder / "report.html"
    found = _sections(known, folder, roots, source, searches)
    report.write_report(target, f"Ensemble {ensemble.name}", found, meta)
    return target


def sections(
    folder: Path,
    roots: Sequence[Path],
    source: Source | None = None,
    searches: Mapping[str, SearchResult] | None = None,
) -> list[Section]:
    """The report's sections in order; as `write`."""
    return _sections(read(folder, roots), folder, roots, source, searches)


def _sections(
    known: Known,
    folder: Path,
    roots: Sequence[Path],
    source: Source | None,
    searches: Mapping[str, SearchResult] | None,
) -> list[Section]:
    ensemble, scored, per_image = known.ensemble, known.scored, known.per_image
    searches = searches or _searches(folder, known.document)
    test = _test(folder)
    predicted = _test_areas(folder) if test is not None else None
    found = [
        Section("Scores", known.scores),
        Section("Score chart", figures.scores(known.both.first, known.both.first_is_honest)),
        Section('How the nested cross-validated ("honest") score was computed', _method(known)),
        Section("Rule chosen for each fold", known.by_part),
        Section("Learning curves", figures.learning_curves(known.logs)),
        Section("Thresholds", _surfaces(searches)),
        Section("Dice against area", figures.dice_against_area(per_image)),
        Section("False negatives by size", figures.false_negatives_by_size(per_image)),
        Section("Share of images with a mask", figures.share_nonempty(scored, test)),
        Section("Mask areas", _areas_picture(per_image, predicted)),
        Section("Folds", figures.folds(known.drawn)),
    ]
    if len(ensemble.members) > 1:
        alike = agreement.of_folder(folder, roots)
        if pictures := tuple(filter(None, (alike.matrices(), alike.votes()))):
            found.append(Section("Member agreement", pictures))
    if source is not None:
        found += report_images.out_of_fold(
            known.among, roots, source, known.drawn, per_image, scored
        )
        if test is not None:
            drawn = report_images.on_test(folder / "submission.csv", source)
            found.append(Section("Test images with a predicted mask", drawn))
        found.append(Section("Augmentations of one image", _augmented(ensemble, roots, source)))
    if known.left_out:
        found.append(Section("Excluded training images", known.left_out))
    if test is not None:
        found += _test_problems(folder, test)
    return found


def read_per_image(folder: Path) -> pd.DataFrame:
    """oof.csv as the figures want it: areas in px of 1024², dice by the honest rule.

    Raises InputError where it is missing, cut short or another table.
    """
    path = folder / "oof.csv"
    _, document = ensembles.read_choice(folder)
    with ensembles.named_if_damaged(path):
        content = path.read_bytes()
        if not content.endswith(b"\n"):
            raise ValueError("it ends within a row")
        table = pd.read_csv(
            io.BytesIO(content),
            usecols=["image_id", *_PER_IMAGE],
            dtype={"image_id": str} | _PER_IMAGE,
            # An image may be called NA.
            keep_default_na=False,
            na_values={name: [""] for name in _PER_IMAGE},
        )
        n = document["honest"]["n_images"]
        if len(table) != n:
            raise ValueError(f"it has {len(table)} images, thresholds.json {n}")
    names = {"true_area_px": "truth_px", "area_px": "predicted_px"}
    return table.rename(columns=names).dropna(subset=["dice"])


def _areas_picture(per_image: pd.DataFrame, on_test: np.ndarray | None) -> Picture:
    """Areas of predicted masks, out of fold beside test."""
    areas = per_image["predicted_px"].to_numpy()
    return figures.mask_areas(areas[areas > 0], on_test)


def _method(known: Known) -> str:
    both = known.both
    warning = "" if both.past_known else "NOT HONEST: what a member descends from is unknown. "
    selected = "No epoch was selected on labels of held-out images."
    if both.kept_selected:
        gap = both.kept.honest.dice - both.last.honest.dice
        selected = (
            "Epochs were, or may have been, selected on labels of these images: the selected "
            f"checkpoints score {gap:+.4f} against the last ones, which is the gain of the "
            "selection and its optimism."
        )
    if both.last_selected:
        selected += (
            " The last checkpoints are not free of it either: these labels stopped the training "
            "early, or selected the weights that it started from."
        )
    return (
        f"{warning}{known.scored.method} A mask is kept if at least the minimum area (px of 1024²) "
        "exceeds the detection threshold (top), and then covers what exceeds the mask threshold "
        "(bottom); with a classification threshold (label), an image whose probability does not "
        "exceed it has no mask. Rule of the submission: "
        f"{'; '.join(known.summary_lines)}. "
        f"{selected}"
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
    with storage.atomic_write(folder / "oof_statistics.npz") as file:
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
    made, found = ensembles.searches(document), {}
    for name, stats in _statistics(folder, document):
        swept = made[name].get("label_swept", False)
        found[name] = search.search(stats, single=made[name]["single"], label=swept)
    return found


def _statistics(folder: Path, document: dict) -> Iterator[tuple[str, Stacked]]:
    """What each search saw; InputError where it is missing, damaged or of other images."""
    path, n = folder / "oof_statistics.npz", document["honest"]["n_images"]
    with ensembles.named_if_damaged(path), np.load(path) as kept:
        n_px = _numbers(kept, "n_px", (n,))
        for at, (name, made) in enumerate(ensembles.searches(document).items()):
            label, hists = _key("label", at), (_key("hist_all", at), _key("hist_true", at))
            labelled = made.get("label_swept") or label in kept
            stats = Stacked(
                *(_numbers(kept, hist, (n, 256)).astype(np.int64) for hist in hists),
                n_px,
                np.ones(n, dtype=bool),
                _numbers(kept, label, (n,)) if labelled else None,
            )
            yield name, stats


def _numbers(kept: Mapping[str, np.ndarray], name: str, shape: tuple[int, ...]) -> np.ndarray:
    """Whole numbers of an archive, of that shape; another content raises."""
    if name not in kept:
        raise ValueError(f"it lacks {name}")
    numbers = kept[name]
    if numbers.shape != shape or numbers.dtype.kind not in "iu":
        raise ValueError(f"{name} is {numbers.dtype} {numbers.shape}, not of {shape[0]} images")
    return numbers


def _logs(ensemble: Ensemble, roots: Sequence[Path]) -> dict[str, list[dict]]:
    found = {m.run: fold_run.find(roots, m.run) for m in ensemble.members}
    # A fold that another member lacks takes no part in predicting, and need not be there.
    there = [found[m.run][k] for m in ensemble.members for k in m.folds if k in found[m.run]]
    return {folder.name: folder.read_log() for folder in there}


def _augmented(ensemble: Ensemble, roots: Sequence[Path], source: Source) -> Picture:
    """One image as the first member's training saw it."""
    # Here: the augmentations bring torch along, without which the thresholds are to start.
    from kernel_lib.stages import augmented

    return augmented.of_run(ensemble.members[0].run, roots, source)


def _test(folder: Path) -> nested_cv.TestSummary | None:
    path = folder / "test.json"
    if not path.exists():
        return None
    return nested_cv.TestSummary.from_json(json.loads(path.read_text(encoding="utf-8"))["summary"])


def _test_problems(folder: Path, test: nested_cv.TestSummary) -> list[Section]:
    noted = json.loads((folder / "test.json").read_text(encoding="utf-8"))
    trained_on = noted.get("trained_on", [])  # of an earlier version: not looked for
    lines = [*test.warnings, *([past.leak(trained_on)] if trained_on else []), *trained_on]
    lines += [f"empty mask, unreadable image: {name}" for name in noted["unreadable"]]
    return [Section("Notes on the test images", lines)] if lines else []


def _test_areas(folder: Path) -> np.ndarray:
    """Areas of the submission's masks that are not empty, px of 1024²."""
    areas = np.array(json.loads((folder / "test.json").read_text(encoding="utf-8"))["area_px"])
    return areas[areas > 0]
