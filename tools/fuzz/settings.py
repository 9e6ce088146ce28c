"""Configurations: JSON and notebooks' namespaces to a plan, recipes, wherever they are read."""

from __future__ import annotations

import json
import math
import random
from functools import partial
from typing import Any

from kernel_lib import command_line, config
from kernel_lib.experiments import EXPERIMENTS
from kernel_lib.inference import recipes
from kernel_lib.kaggle import paths
from kernel_lib.plan import TrainPlan, plan_training
from tools.fuzz.case import Case, Desk, Target
from tools.fuzz.mutate import damaged, garbled

ROWS = tuple(EXPERIMENTS)
KINDS = ("TrainParameters", "ThresholdsParameters", "InferenceParameters")
WORDS = ("[", "]", "{", "}", '"', ",", ":", "null", "NaN", "-Infinity", "1e999", "\\u0000",
         "\\ud800", "true", "0", "-1", "[" * 2000, '{"a":' * 1000,
         "SIZE", '"SIZE": 64, ')  # fmt: skip


def odd_value(rng: random.Random) -> Any:
    """Return a plausible or an absurd value."""
    texts = ("", "x", "imagenet", "none", "\0", "x" * 300, "../x", "bce", "3*bce+dice", "nan*bce",
             "+", "1e999*dice", "hflip", "2026", "True", "\ud800", rng.choice(ROWS))  # fmt: skip
    numbers = (0, 1, -1, 2, 5, 32, 64, 512, 1024, 2**31, 2**63, 10**30, 10**400, 10**5000)
    floats = (0.0, 0.5, -1.0, 1e-300, 1e308, math.nan, math.inf, -math.inf)
    others = (None, True, False, [], {}, [1], {"a": 1}, b"x", (1,), object())
    return rng.choice(rng.choice((texts, texts, numbers, numbers, floats, others)))


def _wrong(result: config.Parameters, given: dict[str, Any]) -> str | None:
    """Return the first value that differs from the given one, or is NaN."""
    for name, value in result.model_dump().items():
        expected = given.get(name, type(result).model_fields[name].default)
        if value != expected or type(value) is bool is not type(expected):
            return f"{name} is {value!r}, given {expected!r}"[:200]
        if isinstance(value, float) and not math.isfinite(value):
            return f"{name} is {value!r}"
    return None


def _wrong_plan(result: TrainPlan, given: dict[str, Any]) -> str | None:
    if wrong := _wrong(result.parameters, given):
        return wrong
    if not 0 < len(result.run.encode()) < 256 or "/" in result.run or "\0" in result.run:
        return f"a run named {result.run!r}"[:200]
    row = result.experiment.model_dump()
    for name in ("epochs", "batch_size", "accumulate", "keep", "patience", "lr", "tta", "schedule"):
        if given.get(name) is not None and row[name] != given[name]:
            return f"{name} is {row[name]!r}, given {given[name]!r}"
    return None


def namespace(desk: Desk) -> Case:
    """Return a train notebook's namespace with up to five odd values, to the plan of its run."""
    rng = desk.rng
    fields = list(config.TrainParameters.model_fields)
    given = {rng.choice(fields): odd_value(rng) for _ in range(rng.randrange(6))}
    if rng.random() < 0.7:
        given["experiment"] = rng.choice(ROWS)
    names = {name.upper(): value for name, value in given.items()} | {"In": [], "_x": object}
    if rng.random() < 0.05:
        names[rng.choice(("SEEDS", "X" * 5000, "Ä", "epochs"))] = 1

    def attempt() -> TrainPlan:
        return plan_training(config.TrainParameters.from_namespace(names), EXPERIMENTS)

    listed = ", ".join(f"{name}: {config._shown(value)}" for name, value in given.items())
    data = listed.encode("utf-8", "backslashreplace")
    return Case(data, attempt, partial(_wrong_plan, given=given))


def parameters_file(desk: Desk) -> Case:
    """Return a JSON of parameters, as commands take it, damaged."""
    rng = desk.rng
    kind = rng.choice(KINDS)
    fields = list(getattr(config, kind).model_fields)
    given = {rng.choice(fields).upper(): odd_value(rng) for _ in range(rng.randrange(5))}
    data = _as_json(rng, given)
    path = desk.put("config.json", data)

    def wrong(result: config.Parameters) -> str | None:
        pairs = json.loads(data, object_pairs_hook=list)
        lower = [name.lower() for name, _ in pairs]
        if len(set(lower)) < len(lower):
            return "read, though a name stands twice"
        return _wrong(result, {k.lower(): v for k, v in json.loads(data).items()})

    return Case(data, lambda: command_line.read_parameters(path, kind), wrong)


def recipe(desk: Desk) -> Case:
    """Return a recipe's file with odd members and ways, damaged."""
    rng = desk.rng
    members = [
        rng.choice(({"run": f"r{at}"}, {"experiment": rng.choice(ROWS), "seed": rng.randrange(5)}))
        for at in range(rng.randrange(4))
    ]
    for member in members:
        if rng.random() < 0.2:
            member[rng.choice(("weight", "seed", "run", "experiment"))] = odd_value(rng)
    given = {"members": members, "combine": rng.choice(("mean", "vote", "member_vote"))}
    if rng.random() < 0.3:
        given[rng.choice(("choose", "at_least", "gate", "says", "x"))] = odd_value(rng)
    data = _as_json(rng, given)
    path = desk.put("recipe.json", data)

    def wrong(result: recipes.Recipe) -> str | None:
        values = json.loads(data)
        read = result.model_dump()
        for name, value in values.items():
            if name != "members" and read[name] != value:
                return f"{name} is {read[name]!r}, not {value!r}"
        given = [{k: v for k, v in m.items() if v is not None} for m in values["members"]]
        kept = [{k: m[k] for k in g} for m, g in zip(read["members"], given, strict=True)]
        return None if kept == given else f"members {kept}, not {given}"[:300]

    return Case(data, lambda: recipes.read(path), wrong)


def experiment(desk: Desk) -> Case:
    """Return a JSON of experiments of a user's own, damaged, to the plan of its run."""
    rng = desk.rng
    fields = list(config.Experiment.model_fields)
    rows = []
    for at in range(rng.choice((1, 1, 2, 3))):
        row: dict[str, Any] = {"name": f"r{at}"}
        for _ in range(rng.randrange(4)):
            row[rng.choice(fields)] = rng.choice((odd_value(rng), "r0", "r1", rng.choice(ROWS)))
        if rng.random() < 0.5:
            row[rng.choice(("parent", "weights", "gate"))] = rng.choice(("r0", "r1", *ROWS))
        rows.append(row)
    data = _as_json(rng, rows if len(rows) > 1 else rows[0])
    path = desk.put("mine.json", data)

    def attempt() -> TrainPlan:
        text = paths.experiment_text(str(path))
        return plan_training(config.TrainParameters.checked({"experiment": text}), EXPERIMENTS)

    def wrong(result: TrainPlan) -> str | None:
        values = json.loads(data)
        (row,) = values[-1:] if isinstance(values, list) else (values,)
        read = result.experiment.model_dump(mode="json")
        for name, value in row.items():
            runs = (f"{value}_seed{result.parameters.seed}",) if name in ("weights", "gate") else ()
            if read[name] not in (value, *runs):
                return f"{name} is {read[name]!r}, given {value!r}"[:200]
        return None

    return Case(data, attempt, wrong)


def _as_json(rng: random.Random, value: Any) -> bytes:
    try:
        text = json.dumps(value, default=lambda odd: None)
    except ValueError:  # numbers of too many digits
        text = "{}"
    if rng.random() < 0.3:
        text = garbled(rng, text, WORDS)
    data = text.encode("utf-8", "surrogatepass")
    return damaged(rng, data) if rng.random() < 0.2 else data


TARGETS = {
    "namespace": Target(namespace, 0.09),
    "experiment": Target(experiment, 0.03),
    "parameters": Target(parameters_file, 0.11),
    "recipe": Target(recipe, 0.06),
}
