"""The report's sections on calibration and referral, of every kind of ensemble, also old ones."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from kernel_lib.artifacts import fold_run, maps
from kernel_lib.artifacts.decision import Decision
from kernel_lib.config import ThresholdsParameters
from kernel_lib.postprocess import calibration, nested_cv, referral
from kernel_lib.postprocess.histograms import areas
from kernel_lib.reporting import certainty
from kernel_lib.reporting.report import Section
from kernel_lib.stages import report, report_certainty, report_images, thresholds
from kernel_lib.stages.report import ReportData
from tests.stages.place import Place, rewrite
from tests.stages.test_thresholds import make_run, table

pytestmark = pytest.mark.usefixtures("no_report")  # which takes seconds
TITLES = ["Calibration of the image-level probability", "When to ask a radiologist"]
BY_MAP = ["max_prob", "sum_prob"]


def searched(work: Path, **parameters) -> ReportData:
    given = {"work_dir": str(work), "bootstrap": 100} | parameters
    return thresholds.run(ThresholdsParameters(**given)).data


def titles(data: ReportData) -> list[str]:
    agreement = None
    if len(data.decision.ensemble.members) > 1:
        agreement = report_images.member_agreement(data)
    return [section.title for section in report_certainty.sections(data, agreement)]


def is_marked(section: Section) -> bool:
    return isinstance(section.body[0], str) and section.body[0] == report_certainty.NOT_HONEST


def scores_of(data: ReportData) -> list[str]:
    return [one.score for one in report_certainty.calibrated(data.per_image)]


def test_a_run_with_a_label_head_is_calibrated_by_it_and_by_its_map(tmp_path):
    make_run(tmp_path, "heads", label=True, label_weight=0.05)
    data = searched(tmp_path)
    assert titles(data) == TITLES
    assert scores_of(data) == ["label", *BY_MAP]
    label = report_certainty.calibrated(data.per_image)[0]
    drawn = table()
    truth = (drawn["area_px"] > 0).to_numpy()
    levels = [
        maps.quantise(data.maps[i.fold].label(i.image_id, (1.0,))) for i in drawn.itertuples()
    ]
    prob = np.array(levels) / 255
    assert label.before.brier == pytest.approx(np.mean((prob - truth) ** 2))
    groups = drawn["image_id"].to_numpy()
    after = calibration.cross_fitted("label", prob, truth, drawn["fold"].to_numpy(), groups)
    assert label.after.brier == pytest.approx(np.mean((after - truth) ** 2))
    found = report_certainty.referrals(data)
    assert found.measures == (
        *(certainty.entropy_by(score) for score in ("label", *BY_MAP)), certainty.MARGIN,
    )  # fmt: skip


def test_a_run_without_a_label_head_has_both_sections(tmp_path):
    make_run(tmp_path, "plain")
    data = searched(tmp_path)
    assert titles(data) == TITLES
    assert scores_of(data) == BY_MAP


@pytest.mark.parametrize(
    "how", [{}, {"choose": "greedy"}, {"combine": "member_vote"}, {"combine": "vote"},
            {"gate": "sum"}, {"combine": "member_union", "at_least": 2}],
)  # fmt: skip
def test_members_disagree_on_the_images_compared(tmp_path, how):
    make_run(tmp_path, "a", noise=60), make_run(tmp_path, "b", noise=120)
    data = searched(tmp_path, runs="a,b", ensemble="two", **how)
    assert titles(data) == TITLES
    if len(data.decision.ensemble.members) < 2:
        return
    agreement = report_images.member_agreement(data, most=10)
    found = report_certainty.referrals(data, agreement)
    assert certainty.DISAGREEMENT in found.measures
    assert len(found.dice_chosen) == len(agreement.image_ids) == 10
    rows = data.per_image.set_index("image_id").loc[list(agreement.image_ids)]
    assert found.dice_chosen[0] == pytest.approx(rows["dice"].mean())
    uncertain = 1 - agreement.dice[:, 0, 1]
    part = rows["part"].to_numpy()
    groups = rows.index.to_numpy()
    expected = referral.measure(
        rows["dice"].to_numpy(), part > 9, {"": np.tile(uncertain, (2, 1))}, part, groups
    )
    assert found.aurc[certainty.DISAGREEMENT] == pytest.approx(expected.aurc[""])


@pytest.mark.parametrize("folds", [(0, 1), (0,)])
def test_views_disagree_out_of_fold_where_all_images_have_several(tmp_path, folds):
    make_run(tmp_path, "plain", noise=130)
    apart = {i: n % 7 / 7 for n, i in enumerate(table()["image_id"])}
    for fold in folds:
        rewrite(fold_run.fold_folder(tmp_path, "plain", fold).oof, disagreement=apart.get)
    data = searched(tmp_path)
    rows = data.per_image
    known = rows["fold"].isin(folds)
    assert rows["view_disagreement"][known].tolist() == rows["image_id"][known].map(apart).tolist()
    assert rows["view_disagreement"][~known].isna().all()
    found = report_certainty.referrals(data)
    assert (certainty.VIEWS in found.measures) == known.all()
    if known.all():
        uncertain = np.tile(rows["view_disagreement"], (2, 1))
        part, groups = rows["part"].to_numpy(), rows["group"].to_numpy()
        dice, truth = rows["dice"].to_numpy(), (rows["truth_px"] > 0).to_numpy()
        expected = referral.measure(dice, truth, {"": uncertain}, part, groups)
        assert found.aurc[certainty.VIEWS] == expected.aurc[""]
        assert np.array_equal(found.dice[certainty.VIEWS], expected.dice[""])


def test_the_margin_is_of_the_rule_that_scored_the_image(tmp_path):
    make_run(tmp_path, "plain", noise=130)
    data = searched(tmp_path)
    part = data.per_image["part"].to_numpy()
    found = report_certainty._margins(data, part)
    (stats,) = data.statistics.searched
    for row, rule in zip(found, data.decision.scores.kept.rules, strict=True):
        assert ((row > 0) == (areas(stats, rule.triplet) > 0)).all()
        inside = part == rule.fold
        assert ((row > 0) == (data.per_image["predicted_px"] > 0))[inside].all()


def test_one_fold_is_cross_fitted_over_its_parts(tmp_path):
    make_run(tmp_path, "a", label=True, label_weight=0.05), make_run(tmp_path, "b", label=True)
    for run in "ab":
        (tmp_path / "runs" / run / "fold1").rename(tmp_path / f"fold1-{run}")
    data = searched(tmp_path, runs="a,b")
    assert data.per_image["part"].nunique() == nested_cv.N_SPLITS
    assert titles(data) == TITLES
    assert len(report_certainty.referrals(data).chosen) == nested_cv.N_SPLITS


@pytest.mark.parametrize(
    ("lacking", "scores", "shown"),
    [
        (["group"], [], []),
        (["max_prob"], ["label", "sum_prob"], TITLES),
        (["label", "max_prob", "sum_prob"], [], TITLES[1:]),
    ],
)
def test_what_an_old_ensemble_lacks_is_left_out(tmp_path, lacking, scores, shown):
    make_run(tmp_path, "heads", label=True, label_weight=0.05)
    folder = tmp_path / "ensembles" / "heads"
    searched(tmp_path)
    path = folder / "oof.csv"
    pd.read_csv(path).drop(columns=lacking).to_csv(path, index=False)
    data = report.load(folder, [tmp_path])
    assert scores_of(data) == scores
    assert titles(data) == shown


def test_images_of_which_some_have_no_label_are_not_calibrated_by_it(tmp_path):
    make_run(tmp_path, "heads", label=True, label_weight=0.05)
    data = searched(tmp_path)
    data.per_image.loc[3, "label"] = np.nan
    assert scores_of(data) == BY_MAP


def test_one_patient_alone_cannot_be_cross_fitted(tmp_path):
    make_run(tmp_path, "plain")
    data = searched(tmp_path)
    data.per_image["group"] = "p"
    assert titles(data) == []


def test_a_score_that_is_not_honest_is_called_so(tmp_path):
    make_run(tmp_path, "plain")
    data = searched(tmp_path)
    assert not any(is_marked(section) for section in report_certainty.sections(data))
    object.__setattr__(data.decision.scores, "kept_selected", True)
    assert all(is_marked(section) for section in report_certainty.sections(data))


def test_the_curve_for_new_images_is_kept_and_old_decisions_have_none(tmp_path):
    make_run(tmp_path, "heads", label=True, label_weight=0.05, noise=130)
    data = searched(tmp_path)
    curve = data.decision.calibration
    calibrations = report_certainty.calibrated(data.per_image)
    assert curve.score == calibration.best(calibrations).score
    values = data.per_image[curve.score].to_numpy()
    truth = (data.per_image["truth_px"] > 0).to_numpy()
    assert curve == calibration.fit(curve.score, values, truth)
    path = tmp_path / "ensembles" / "heads" / "thresholds.json"
    path.write_text(path.read_text().replace('"calibration"', '"unknown"'))
    assert Decision.load(path.parent).calibration is None


def test_the_report_of_the_phantoms_has_both_sections(phantom_run, phantoms):
    place = Place(phantom_run, phantoms)
    (folder,) = (place.root / "work" / "ensembles").iterdir()
    page = (folder / "report.html").read_text(encoding="utf-8")
    for title in TITLES:
        assert page.count(f"<h2>{title}</h2>") == 1
    assert f">{certainty.VIEWS}<" in page
    data = report.load(folder, [place.root / "work"])
    assert data.per_image["view_disagreement"].between(0, 1, inclusive="right").all()
    for section in report_certainty.sections(data):
        (picture,) = [part for part in section.body if hasattr(part, "png")]
        assert picture.png(dpi=40).startswith(b"\x89PNG")
