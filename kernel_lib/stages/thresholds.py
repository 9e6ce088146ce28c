"""Out-of-fold maps → every rule searched → the rule, and an honest score of it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from kernel_lib import files, runs
from kernel_lib.config import ThresholdsParameters
from kernel_lib.data import table
from kernel_lib.inference import ensemble as ensembles
from kernel_lib.inference.ensemble import Ensemble, OutOfFold
from kernel_lib.kaggle import paths
from kernel_lib.postprocess import honest, thresholds
from kernel_lib.stages import preparation, report, scores


@dataclass(frozen=True)
class ThresholdsResult:
    """The search, its honest report, and the folder that keeps them."""

    folder: Path
    search: thresholds.SearchResult
    honest: honest.HonestReport
    last: honest.HonestReport  # of the last EMA weights, which no label selected
    past_known: bool  # False: a member may have seen these images, and no score is honest

    def __str__(self) -> str:
        listed = scores.table(self.honest, self.last, self.past_known)
        return f"{scores.as_text(listed)}\nwritten: {self.folder / 'thresholds.json'}"


def run(parameters: ThresholdsParameters) -> ThresholdsResult:
    """Gather the runs' held-out maps, search every rule exactly, score it honestly.

    Needs neither GPU nor images. Raises InputError where a member saw an image that it would be
    scored on, and where the train stage has not finished a fold.
    """
    work = paths.work_dir(parameters.work_dir)
    roots = paths.artefact_roots(work)
    source = table.discover(paths.data_dir(parameters.data_dir)) if parameters.data_dir else None
    ensemble = Ensemble.gather(
        roots,
        runs.named(roots, parameters.runs),
        parameters.ensemble,
        combine=parameters.combine,
    )
    drawn = preparation.find_folds(roots, ensemble.folds_digest)
    allow = {"allow_unknown_past": parameters.allow_unknown_past}
    kept = ensembles.out_of_fold(ensemble, roots, drawn, **allow)
    last = ensembles.out_of_fold(ensemble, roots, drawn, last=True, **allow)
    search = thresholds.search(kept.stats, single=parameters.single, progress=True)
    reports = [_honest(part, parameters, found) for part, found in ((kept, search), (last, None))]
    folder = work / "ensembles" / ensemble.name
    _write(folder, ensemble, search, *reports, kept)
    result = ThresholdsResult(folder, search, *reports, past_known=kept.honest)
    report.write(folder, roots, source=source, search=search)
    print(result)
    return result


def _honest(
    part: OutOfFold, parameters: ThresholdsParameters, found: thresholds.SearchResult | None
) -> honest.HonestReport:
    groups = part.table["group"]
    return honest.honest(
        part.stats,
        part.table["image_id"].tolist(),
        part.table["fold"].tolist(),
        groups.tolist() if (groups != "").any() else None,
        single=parameters.single,
        n_bootstrap=parameters.bootstrap,
        result=found,
    )


def _write(
    folder: Path,
    ensemble: Ensemble,
    search: thresholds.SearchResult,
    kept: honest.HonestReport,
    last: honest.HonestReport,
    out_of_fold: OutOfFold,
) -> None:
    """members.json, what the search saw and scored, and last of all the rule."""
    for stale in ("thresholds.json", "test.json"):  # they speak of another search
        (folder / stale).unlink(missing_ok=True)
    ensemble.save(folder)
    with files.whole(folder / "oof.csv", "w", encoding="utf-8", newline="") as file:
        kept.per_image.to_csv(file, index=False)
    with files.whole(folder / "oof_statistics.npz") as file:
        np.savez_compressed(
            file,
            image_id=out_of_fold.table["image_id"].to_numpy(dtype=str),
            hist_all=out_of_fold.stats.hist_all.astype(np.int32),
            hist_true=out_of_fold.stats.hist_true.astype(np.int32),
            n_px=out_of_fold.stats.n_px,
        )
    files.write_json(
        folder / "thresholds.json",
        {
            "rule": search.chosen.to_json(),
            "search": search.to_json(),
            "past_known": out_of_fold.honest,
            "honest": kept.to_json(),
            "last": last.to_json(),
        },
    )
