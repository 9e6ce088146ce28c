"""Nothing that ships or serves it reads code from data: no pickle, no eval, no YAML."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
FOLDERS = ("kernel_lib", "kernel_build", "notebooks", "tools", "docs")
MODULES = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "marshal", "shelve", "yaml"}
CALLS = {"eval", "exec", "compile", "__import__"}


def sources() -> list[Path]:
    below = [path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py")]
    return sorted([*below, ROOT / "build_kernel.py"])


def faults(source: str) -> list[str]:
    """What in a source reads code from data, each with its line."""
    lines = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            names = [alias.name for alias in node.names]
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            if MODULES & {name.partition(".")[0] for name in names}:
                lines.append(f"{node.lineno}: imports {names}")
        elif isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            given = {word.arg: ast.unparse(word.value) for word in node.keywords}
            if called in CALLS:
                lines.append(f"{node.lineno}: calls {called}")
            elif called.endswith("torch.load") and given.get("weights_only") != "True":
                lines.append(f"{node.lineno}: torch.load without weights_only=True")
            elif given.get("allow_pickle", "False") != "False" or called.endswith("read_pickle"):
                lines.append(f"{node.lineno}: {called} takes pickles")
    return lines


@pytest.mark.parametrize(
    ("source", "fault"),
    [
        ("import pickle", "1: imports ['pickle']"),
        ("from yaml import load", "1: imports ['load', 'yaml']"),
        ("x = eval('1')", "1: calls eval"),
        ("model.eval()", None),
        ("import torch\ntorch.load(p)", "2: torch.load without weights_only=True"),
        ("torch.load(p, weights_only=False)", "1: torch.load without weights_only=True"),
        ("torch.load(p, weights_only=True)", None),
        ("np.load(p, allow_pickle=True)", "1: np.load takes pickles"),
        ("np.load(p)", None),
        ("re.compile('x')", None),
    ],
)
def test_what_is_a_fault(source, fault):
    assert faults(source) == ([] if fault is None else [fault])


@pytest.mark.parametrize("path", sources(), ids=lambda path: str(path.relative_to(ROOT)))
def test_a_file_reads_no_code_from_data(path):
    assert faults(path.read_text(encoding="utf-8")) == []
