"""The pinned sets satisfy the ranges of pyproject.toml, and name no registry."""

from __future__ import annotations

import tomllib

import pytest
from packaging.markers import default_environment
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

SETS = {
    "requirements.txt": ["3.11", "3.12", "3.13"],
    "requirements-kaggle.txt": ["3.12"],
    "requirements-kaggle-next.txt": ["3.13"],
}


def pins(text: str, python: str) -> dict[str, str]:
    """Version by package that a pinned set gives to Linux on x86_64 with this Python."""
    machine = {"sys_platform": "linux", "platform_machine": "x86_64"}
    version = {"python_version": python, "python_full_version": f"{python}.1"}
    environment = {**default_environment(), **machine, **version}
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    found = [Requirement(line) for line in lines]
    return {
        r.name: next(iter(r.specifier)).version
        for r in found
        if r.marker is None or r.marker.evaluate(environment)
    }


@pytest.mark.parametrize(
    ("file", "python"), [(file, python) for file, pythons in SETS.items() for python in pythons]
)
def test_a_pinned_set_satisfies_the_ranges(project_root, file, python):
    project = tomllib.loads((project_root / "pyproject.toml").read_text())["project"]
    pinned = pins((project_root / file).read_text(), python)
    needed = [Requirement(line) for line in project["dependencies"]]
    wrong = {
        r.name: pinned.get(r.name)
        for r in needed
        if r.name not in pinned or pinned[r.name] not in r.specifier
    }
    assert wrong == {}
    assert f"{python}.1" in SpecifierSet(project["requires-python"])


@pytest.mark.parametrize("file", SETS)
def test_a_pinned_set_names_no_registry(project_root, file):
    assert "://" not in (project_root / file).read_text()
