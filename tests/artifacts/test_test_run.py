"""What is kept beside a submission comes back, or is refused by its stage."""

from __future__ import annotations

import json

import numpy as np
import pytest

from kernel_lib.artifacts.filenames import TEST_RUN
from kernel_lib.artifacts.test_run import TestRun
from kernel_lib.errors import InputError
from kernel_lib.postprocess.histograms import statistics
from kernel_lib.postprocess.nested_cv import compare_areas, score_rule

MASK = np.zeros((8, 8), np.uint8)
MASK[:4] = 255


def run() -> TestRun:
    stats = [statistics(MASK * (i % 2), MASK * (i % 2) > 0) for i in range(8)]
    report = score_rule(stats, [f"i{i}" for i in range(8)], [i // 4 for i in range(8)], None)
    areas = (0.0, 524288.0)
    return TestRun(compare_areas(np.array(areas), report), ("x: 1",), areas, ("x is in a/fold0",))


def test_it_comes_back(tmp_path):
    run().save(tmp_path)
    assert TestRun.load(tmp_path) == run()
    assert TestRun.load(tmp_path).areas.tolist() == [524288.0]


def test_there_is_none_before_inference_and_an_earlier_version_looked_for_no_leak(tmp_path):
    assert TestRun.load(tmp_path) is None
    run().save(tmp_path)
    document = json.loads((tmp_path / TEST_RUN).read_text())
    del document["trained_on"]
    (tmp_path / TEST_RUN).write_text(json.dumps(document))
    assert TestRun.load(tmp_path).trained_on == ()


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"summary": 3}'])
def test_a_damaged_file_is_named_with_its_stage(tmp_path, text):
    (tmp_path / TEST_RUN).write_text(text)
    with pytest.raises(InputError, match=rf"{TEST_RUN} is damaged .*inference stage"):
        TestRun.load(tmp_path)
