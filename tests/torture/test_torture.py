"""A few rounds of `make torture`, with a fixed seed."""

from __future__ import annotations

import os
import re
import subprocess
import sys

import pytest

pytestmark = pytest.mark.slow


def torture(project_root, *options: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "torture", *options], cwd=project_root, capture_output=True,
        text=True, env=os.environ | {"OMP_NUM_THREADS": "1"}, check=False,
    )  # fmt: skip
    assert done.returncode == 0, f"{done.stdout[-6000:]}\n{done.stderr[-3000:]}"
    return done.stdout


def test_every_stage_ends_by_itself_on_a_full_disk_and_the_same_once_there_is_room(project_root):
    said = torture(project_root, "--full-disk", "6", "--seed", "11")
    if nowhere := re.search("no full disks: .*", said):
        pytest.skip(nowhere[0])
    assert re.search(r"\n6 full disks in \d+ s: (\d+) of \1 ended the same", said), said[-2000:]
    for stage in ("prepare", "train", "predict", "thresholds", "inference", "train2"):
        assert re.search(rf"\n{stage} +\d+ +[1-9]", said), f"no trial of {stage}"
