"""A few rounds of `make torture`, with a fixed seed."""

from __future__ import annotations

import os
import re
import subprocess
import sys

import pytest

STAGES = ("prepare", "train", "predict", "thresholds", "inference", "gather")


@pytest.mark.slow
def test_every_stage_ends_by_itself_on_a_full_disk_and_the_same_once_there_is_room(project_root):
    only = [word for stage in STAGES for word in ("--only", stage)]
    done = subprocess.run(
        [sys.executable, "-m", "torture", "--full-disk", "6", "--seed", "20", *only],
        cwd=project_root, capture_output=True, text=True, check=False,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    said = done.stdout[-6000:]
    assert done.returncode == 0, f"{said}\n{done.stderr[-3000:]}"
    if nowhere := re.search("no full disks: .*", said):
        pytest.skip(nowhere[0])
    assert re.search(r"\n\d+ full disks in \d+ s: (\d+) of \1 ended the same", said), said
    for stage in STAGES:
        assert re.search(rf"\n{stage} +\d+ +[1-9]", said), f"no trial of {stage}: {said}"
