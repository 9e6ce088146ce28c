"""Ctrl-C to papermill, as a terminal sends it: the stage saves, and the terminal says so."""

from __future__ import annotations

import functools
import os
import signal
import subprocess
import sys
import time

import nbformat
import pytest

from kernel_lib import notebook

STAGE = """\
import signal
import subprocess
import sys
import time
from pathlib import Path

sys.path.insert(0, {root!r})
from kernel_lib.signals import Signals

with Signals().caught() as signals:
    leaves_signals = signal.signal(signal.SIGINT, signal.SIG_IGN)
    worker = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    signal.signal(signal.SIGINT, leaves_signals)
    with signals.{how}:
        Path("began").touch()
        while not signals.pending:
            time.sleep(0.01)
        worker.communicate(b"\\n")
        Path("saved").write_text(str(worker.returncode))
"""


@pytest.mark.parametrize("how", ["deferred()", "at_once()"])
def test_ctrl_c_to_papermill_saves_and_says_so(project_root, tmp_path, how):
    cells = [nbformat.v4.new_code_cell(STAGE.format(root=str(project_root), how=how))]
    python = {"display_name": "Python 3", "language": "python", "name": "python3"}
    written = nbformat.v4.new_notebook(cells=cells, metadata={"kernelspec": python})
    nbformat.write(written, tmp_path / "in.ipynb")
    papermill = subprocess.Popen(
        [sys.executable, "-m", "papermill", "in.ipynb", "out.ipynb", "--no-progress-bar"],
        cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
        start_new_session=True,
        # Ignored where the tests run in a shell's background, and inherited.
        preexec_fn=functools.partial(signal.signal, signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip
    while not (tmp_path / "began").exists():
        assert papermill.poll() is None, papermill.stderr.read()
        time.sleep(0.05)
    os.killpg(papermill.pid, signal.SIGINT)
    shown = papermill.communicate(timeout=300)[1]
    assert papermill.returncode == 1
    assert shown.count(f"\n{notebook.STOPPED}\n") == 1, shown
    assert "Error" not in shown
    assert "Traceback" not in shown
    if how == "deferred()":  # its worker was left alone
        assert (tmp_path / "saved").read_text() == "0"


def test_outside_a_notebook_nothing_is_changed():
    assert notebook.kernel() is None
    notebook.let_cells_end()
