"""The library where a Windows has no `fcntl`, `resource` or `os.fork`."""

from __future__ import annotations

import subprocess
import sys

IMPORTED = """
import importlib, os, pkgutil, sys
from pathlib import Path
sys.modules.update(fcntl=None, resource=None)
for missing in ("fork", "statvfs", "pread", "pwrite"):
    delattr(os, missing)
import kernel_lib
for module in pkgutil.walk_packages(kernel_lib.__path__, "kernel_lib."):
    importlib.import_module(module.name)
from kernel_lib import engine, storage
path = Path(sys.argv[1]) / "runs" / "last.pt"
with storage.folder_lock(path.parent), storage.folder_lock(path.parent, wait=True):
    for text in ("first", "second"):
        storage.write_text(path, text)
print(path.read_text(), [left.name for left in path.parent.parent.rglob("*")])
print(engine.peak_memory(engine.torch.device("cpu"))["memory_mb"] >= 0)
"""


def test_every_module_is_imported_and_files_are_written(project_root, tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", IMPORTED, tmp_path], cwd=project_root, capture_output=True, text=True
    )
    assert done.stdout == "second ['runs', 'last.pt']\nTrue\n", done.stderr[-3000:]
