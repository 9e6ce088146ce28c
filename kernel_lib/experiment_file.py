"""A user's own experiments as JSON, each a difference from another experiment.

The JSON is an object with the fields of `Experiment`, or a list of such objects that may refer to
each other by `parent`, `weights` or `gate`; the last is trained. EXPERIMENT takes the text or the
path of a `.json` file; `kernel_lib.kaggle.paths.experiment_text` replaces a path by its text, which
is passed to other processes and to Kaggle.
"""

from __future__ import annotations

import graphlib
import json
import re
from collections.abc import Iterable, Mapping
from typing import Any

from pydantic import ValidationError

from kernel_lib.config import LONGEST_JSON, Experiment, explain, unique
from kernel_lib.errors import InputError
from kernel_lib.registry import lookup

_EXAMPLE = '{"name": "mine", "parent": "UNetResNet34_512_v1", "lr": 0.01}'
STARTS = ("imagenet", "none")  # values of `weights` that are no names
_PROSE = {"says", "leaderboard", "parent"}


def is_json(experiment: str) -> bool:
    """Return whether EXPERIMENT is JSON text, not the name of an experiment or a path."""
    return experiment.lstrip().startswith(("{", "["))


def trained(experiment: str) -> str:
    """Return the name of the experiment that EXPERIMENT trains, a name or JSON text."""
    return list(read(experiment))[-1] if is_json(experiment) else experiment


def read(text: str) -> dict[str, dict[str, Any]]:
    """Return the objects of a JSON text by name, unchecked.

    Raises: InputError for invalid JSON, JSON without an experiment, or a missing or repeated name.
    """
    try:
        values = json.loads(text, object_pairs_hook=unique, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        why = "nested too deeply" if isinstance(error, RecursionError) else error
        raise InputError(f"EXPERIMENT is not valid JSON: {why}; write {_EXAMPLE}") from None
    listed = values if isinstance(values, list) else [values]
    if not listed or not all(isinstance(fields, dict) for fields in listed):
        raise InputError(f"EXPERIMENT is JSON without an experiment; write {_EXAMPLE}, or a list")
    by_name: dict[str, dict[str, Any]] = {}
    for number, fields in enumerate(listed, 1):
        name = fields.get("name")
        if not isinstance(name, str) or not name:
            which = f" {number} of {len(listed)}" if len(listed) > 1 else ""
            raise InputError(f'EXPERIMENT{which} has no name: add "name", as in {_EXAMPLE}')
        if name in STARTS:
            raise InputError(f"EXPERIMENT name {name!r} is a value of weights; choose another")
        if name in by_name:
            raise InputError(f"EXPERIMENT {name} occurs twice in the list; name each once")
        by_name[name] = fields
    return by_name


def write(objects: Iterable[Mapping[str, Any]]) -> str:
    """Return objects as the JSON text of an EXPERIMENT; the last is trained."""
    listed = list(objects)
    text = json.dumps(listed if len(listed) > 1 else listed[0], ensure_ascii=False)
    if len(text) > LONGEST_JSON:
        raise InputError(f"EXPERIMENT has {len(text):,} characters, at most {LONGEST_JSON:,}")
    return text


def check(text: str, shipped: Mapping[str, Experiment]) -> dict[str, Experiment]:
    """Return the experiments of a JSON text by name; the last is trained.

    Raises: InputError for an unknown field, a wrong value, an unknown parent or gate, a cycle, the
        name of another shipped experiment, or a size in a name that is not the experiment's.
    """
    given = read(text)
    parents = {}
    for name, fields in given.items():
        parent = parents[name] = fields.get("parent")
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
    for name, experiment in own.items():
        if experiment.gate is not None:
            gate = lookup(f"EXPERIMENT {name}: gate", experiment.gate, known)
            if not gate.label_weight:
                raise InputError(
                    f"EXPERIMENT {name}: gate {gate.name} predicts no label (its label_weight is 0)"
                )
    _order({name: [e.weights, e.gate] for name, e in own.items()}, "weights or gate")
    return {name: own[name] for name in given}


def select(text: str, name: str, own: Mapping[str, Experiment]) -> str:
    """Return the JSON text that trains `name`, with the experiments that it refers to.

    `own` holds the checked experiments of `text`.
    """
    given = read(text)
    needed: set[str | None] = set()
    waiting: list[str | None] = [name]
    while waiting:
        current = waiting.pop()
        if current in own and current not in needed:
            needed.add(current)
            waiting += [own[current].parent, own[current].weights, own[current].gate]
    return write([given[n] for n in given if n in needed and n != name] + [given[name]])


def _experiment(fields: Mapping[str, Any], parent: Experiment | None) -> Experiment:
    """Return the experiment that differs in `fields` from its parent, else from the defaults."""
    values = dict(fields)
    if parent is not None:
        inherited = parent.model_dump() | {"says": "", "leaderboard": None}
        values = inherited | parent.options_reset_by(fields) | values
    try:
        return Experiment.model_validate(values)
    except ValidationError as error:
        faults = explain(error, sorted(Experiment.model_fields), "field", str)
        raise InputError(f"EXPERIMENT {fields['name']}: {faults}") from None


def _check_name(experiment: Experiment, shipped: Mapping[str, Experiment]) -> None:
    name, size = experiment.name, experiment.size
    ours = shipped.get(name)
    if ours and ours.model_dump(exclude=_PROSE) != experiment.model_dump(exclude=_PROSE):
        raise InputError(
            f"EXPERIMENT {name} is the name of a shipped experiment that differs from it; choose "
            "another name"
        )
    # Other numbers, such as a version or a year, cannot be sizes.
    numbers = [int(number) for number in re.findall(r"_(\d{2,4})(?=_|$)", name)]
    wrong = [n for n in numbers if 32 <= n <= 2048 and n % 32 == 0 and n != size]
    if wrong:
        raise InputError(
            f"EXPERIMENT {name} has {wrong[0]} in its name, but its size is {size}; write "
            f'"size": {wrong[0]}, or another name'
        )


def _order(refers: Mapping[str, Iterable[str | None]], by: str) -> list[str]:
    """Return names, each after those that it refers to; raise InputError for a cycle."""
    graph = {name: [other for other in to if other in refers] for name, to in refers.items()}
    try:
        return list(graphlib.TopologicalSorter(graph).static_order())
    except graphlib.CycleError as error:
        cycle = " → ".join(reversed(error.args[1]))
        raise InputError(f"EXPERIMENT {cycle}: a cycle by {by}; remove one of them") from None


def _no_constant(text: str) -> float:
    raise ValueError(f"{text} is not a finite number")
