"""The stages that memory is measured of still run, and what is measured is there."""

from __future__ import annotations

import os
import re
import subprocess
import sys

import pytest

from tools.benchmarks import memory


@pytest.mark.skipif(not os.path.exists("/proc/self/smaps_rollup"), reason="only Linux has it")
def test_a_process_holds_memory_of_its_own_and_its_children_count():
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    try:
        seen = memory.sampled(os.getpid())
        assert child.pid in memory.descendants(os.getpid())
    finally:
        child.communicate(b"\n")
    assert 0 < seen["own"] < 1 << 40
    assert seen["record"] >= seen["files"] > 0
    assert seen["processes"] >= 2
    assert memory.fields(child.pid, "status") == {}


@pytest.mark.slow
def test_every_stage_runs(tmp_path):
    command = [sys.executable, "-m", "tools.benchmarks.memory", "--images", "20", "--size", "64"]
    done = subprocess.run([*command, "--root", str(tmp_path)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr + done.stdout
    assert len(re.findall(r"memory of .*, 20 images at 64: ", done.stdout)) == 4
