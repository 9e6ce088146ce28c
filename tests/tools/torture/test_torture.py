"""A few rounds of `make torture`, with a fixed seed."""

from __future__ import annotations

import os
import re
import subprocess
import sys

import pytest

STAGES = ("prepare", "train", "predict", "thresholds", "inference", "gather")


@pytest.mark.slow
def test_every_stage_killed_or_out_of_disk_ends_the_same_once_it_may(project_root):
    only = [word for stage in STAGES for word in ("--only", stage)]
    done = subprocess.run(
        # A trial takes up to four kills, so that more than 5 x 4 come to every stage.
        [sys.executable, "-m", "tools.torture", "--kills=21", "--full-disk=6", "--seed=20", *only],
        cwd=project_root, capture_output=True, text=True, check=False,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    said = done.stdout[-6000:]
    assert done.returncode == 0, f"{said}\n{done.stderr[-3000:]}"
    nowhere = re.search("no full disks: .*", said)
    for fault in ("kills", *(() if nowhere else ("full disks",))):
        assert re.search(rf"\n\d+ {fault} in \d+ s: (\d+) of \1 ended the same", said), said
    for stage in STAGES:
        tried = re.findall(rf"\n{stage} +\d+ +[1-9]", said)
        assert len(tried) == (1 if nowhere else 2), f"no trial of {stage}: {said}"
    if nowhere:
        pytest.skip(nowhere[0])
