"""Reports keep the form in which they lie in thresholds.json and test.json."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from kernel_lib.errors import InputError
from kernel_lib.postprocess.nested_cv_report import NestedCVReport, TestSummary

# As an earlier version wrote them.
WRITTEN = json.loads(Path(__file__).with_name("written.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize("name", WRITTEN)
def test_a_report_is_read_and_written_as_before(name: str) -> None:
    kind = TestSummary if "test" in name else NestedCVReport
    report = kind.from_json(WRITTEN[name])
    written = json.dumps(report.to_json(), indent=1, allow_nan=False)
    assert written == json.dumps(WRITTEN[name], indent=1)


@pytest.mark.parametrize("kind", [NestedCVReport, TestSummary])
@pytest.mark.parametrize("damaged", [None, [], "x", 3, {}, {"n_images": 3}])
def test_what_is_no_report_is_refused(kind: type, damaged: object) -> None:
    with pytest.raises(InputError, match=kind.__name__):
        kind.from_json(damaged)


@pytest.mark.parametrize(
    ("name", "wrong"),
    [
        ("unknown", 1),
        ("n_images", "24"),
        ("n_images", True),
        ("interval", [0.5]),
        ("missed", [{"low_px": 1}]),
        ("rules", [{"fold": 0}]),
        ("chosen", {"top": 2, "min_area_px": 1, "bottom": 0.5}),
        ("auc_label", "high"),
    ],
)
def test_a_damaged_field_is_named(name: str, wrong: object) -> None:
    with pytest.raises(InputError, match=rf"NestedCVReport .*\({name}"):
        NestedCVReport.from_json(WRITTEN["vote"] | {name: wrong})


def test_a_missing_field_is_named() -> None:
    values = {name: value for name, value in WRITTEN["vote"].items() if name != "honest"}
    with pytest.raises(InputError, match=r"NestedCVReport .*\(honest"):
        NestedCVReport.from_json(values)
