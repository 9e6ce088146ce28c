"""Experiments of a user's own: JSON rows, each a difference from a shipped experiment.

The JSON is an object with the fields of `Experiment`, or a list of such objects that refer to each
other by `parent`, `weights` or `gate`, of which the last is trained. EXPERIMENT takes the text
itself or the path of a `.json` file; `kernel_lib.kaggle.paths.experiment_text` replaces a path by
its text, which travels to other processes and to Kaggle.
"""

from __future__ import annotations

import graphlib
import json
import re
from collections.abc import Iterable, Mapping
from typing import Any

from pydantic import ValidationError

from kernel_lib.config import LONGEST_JSON, Experiment, explain
from kernel_lib.errors import InputError
from kernel_lib.registry import lookup

_ONE = '{"name": "mine", "parent": "UNetResNet34_512_v1", "lr": 0.01}'
STARTS = ("imagenet", "none")  # what `weights` may be beside names
_PROSE = {"says", "leaderboard", "parent"}


def is_json(experiment: str) -> bool:
    """Return whether EXPERIMENT is JSON text, not the name of an experiment or a path."""
    return experiment.lstrip().startswith(("{", "["))


def trained(experiment: str) -> str:
    """Return the name of the experiment that EXPERIMENT trains, a name or JSON text."""
    return list(read(experiment))[-1] if is_json(experiment) else experiment


def read(text: str) -> dict[str, dict[str, Any]]:
    """Return the rows of a JSON text by name, as given.

    Raises: InputError where it is not JSON, holds no rows, or a row has no name of its own.
    """
    try:
        values = json.loads(text, object_pairs_hook=_once, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        why = "nested too deep" if isinstance(error, RecursionError) else error
        raise InputError(f"EXPERIMENT is not JSON that can be used: {why}; write {_ONE}") from None
    rows = values if isinstance(values, list) else [values]
    if not rows or not all(isinstance(row, dict) for row in rows):
        raise InputError(f"EXPERIMENT is JSON without an experiment; write {_ONE}, or a list")
    by_name: dict[str, dict[str, Any]] = {}
    for number, row in enumerate(rows, 1):
        name = row.get("name")
        if not isinstance(name, str) or not name:
            which = f" {number} of {len(rows)}" if len(rows) > 1 else ""
            raise InputError(f'EXPERIMENT{which} has no name: add "name", as in {_ONE}')
        if name in STARTS:
            raise InputError(f"EXPERIMENT name {name!r} is a value of weights; choose another")
        if name in by_name:
            raise InputError(f"EXPERIMENT {name} stands twice in the list; name each once")
        by_name[name] = row
    return by_name


def write(rows: Iterable[Mapping[str, Any]]) -> str:
    """Return rows as the JSON text of an EXPERIMENT, of which the last is trained."""
    listed = list(rows)
    text = json.dumps(listed if len(listed) > 1 else listed[0], ensure_ascii=False)
    if len(text) > LONGEST_JSON:
        raise InputError(
            f"EXPERIMENT is JSON of {len(text):,} characters, at most {LONGEST_JSON:,}"
        )
    return text


def check(text: str, shipped: Mapping[str, Experiment]) -> dict[str, Experiment]:
    """Return the experiments of a JSON text by name, the one that is trained last.

    Raises: InputError for an unknown field, a wrong value, an unknown parent or gate, a cycle, a
        name that a shipped experiment has, or a size in a name that is not the experiment's.
    """
    given = read(text)
    parents = {}
    for name, row in given.items():
        parent = parents[name] = row.get("parent")
        if parent is not None and not isinstance(parent, str):
            raise InputError(f"EXPERIMENT {name}: parent = {parent!r}: give an experiment's name")
        if parent is not None:
            lookup(f"EXPERIMENT {name}: parent", parent, {**given, **shipped})
    own: dict[str, Experiment] = {}
    for name in _order({name: [parent] for name, parent in parents.items()}, "parent"):
        parent = own.get(parents[name]) or shipped.get(parents[name])
        own[name] = _experiment(given[name], parent)
        _check_name(own[name], shipped)
    known = {**shipped, **own}
    for name, row in own.items():
        if row.gate is not None:
            gate = lookup(f"EXPERIMENT {name}: gate", row.gate, known)
            if not gate.label_weight:
                raise InputError(
                    f"EXPERIMENT {name}: gate {row.gate} predicts no label (its label_weight is 0)"
                )
    _order({name: [row.weights, row.gate] for name, row in own.items()}, "weights or gate")
    return {name: own[name] for name in given}


def select(text: str, name: str, own: Mapping[str, Experiment]) -> str:
    """Return the JSON text that trains `name`: its row, after those that it refers to.

    `own` holds the checked experiments of `text`.
    """
    given = read(text)
    found: set[str | None] = set()
    waiting: list[str | None] = [name]
    while waiting:
        one = waiting.pop()
        if one in own and one not in found:
            found.add(one)
            waiting += [own[one].parent, own[one].weights, own[one].gate]
    return write([given[n] for n in given if n in found and n != name] + [given[name]])


def _experiment(row: Mapping[str, Any], parent: Experiment | None) -> Experiment:
    """Return the experiment of a row that differs from its parent, else from the defaults."""
    values = dict(row)
    if parent is not None:
        # As with overrides, options belong to the names that they were written for.
        options = {
            f"{key}_options": {}
            for key in ("loss", "sampling")
            if key in row and row[key] != getattr(parent, key)
        }
        values = parent.model_dump() | {"says": "", "leaderboard": None} | options | values
    try:
        return Experiment.model_validate(values)
    except ValidationError as error:
        faults = explain(error, sorted(Experiment.model_fields), "field", str)
        raise InputError(f"EXPERIMENT {row['name']}: {faults}") from None


def _check_name(row: Experiment, shipped: Mapping[str, Experiment]) -> None:
    ours = shipped.get(row.name)
    if ours is not None and ours.model_dump(exclude=_PROSE) != row.model_dump(exclude=_PROSE):
        raise InputError(
            f"EXPERIMENT {row.name} is the name of a shipped experiment with another content; "
            "choose another name"
        )
    # Other numbers, such as a version or a year, can be no size.
    sizes = [int(number) for number in re.findall(r"_(\d{2,4})(?=_|$)", row.name)]
    wrong = [s for s in sizes if 32 <= s <= 2048 and s % 32 == 0 and s != row.size]
    if wrong:
        raise InputError(
            f"EXPERIMENT {row.name} has {wrong[0]} in its name, and its size is {row.size}; write "
            f'"size": {wrong[0]}, or another name'
        )


def _order(refers: Mapping[str, Iterable[str | None]], by: str) -> list[str]:
    """Return names after those that they refer to; InputError where they refer in a circle."""
    among = {name: [other for other in to if other in refers] for name, to in refers.items()}
    try:
        return list(graphlib.TopologicalSorter(among).static_order())
    except graphlib.CycleError as error:
        circle = " → ".join(reversed(error.args[1]))
        raise InputError(f"EXPERIMENT {circle}: a circle by {by}; remove one of them") from None


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    names = [name for name, _ in pairs]
    if twice := [name for name in names if names.count(name) > 1]:
        raise ValueError(f"it holds {twice[0][:100]} twice")
    return dict(pairs)


def _no_constant(text: str) -> float:
    raise ValueError(f"{text} is no finite number")
