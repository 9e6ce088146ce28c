"""Join experiments and parameters: which run it is, with which numbers, and what it needs first."""

from __future__ import annotations

import math
import re
import shlex
from collections.abc import Mapping
from typing import Any

from pydantic import Field, ValidationError

from kernel_lib import experiment_file
from kernel_lib.config import Experiment, Frozen, TrainParameters, explain
from kernel_lib.errors import InputError
from kernel_lib.registry import lookup

# Parameters that override the experiment's field of the same name, in the order of the run's
# suffixes.
OVERRIDES = tuple(
    name
    for name in TrainParameters.model_fields
    if name in Experiment.model_fields.keys() - {"name"}
)
_SHORT = {"min_epochs": "min", "batch_size": "batch", "accumulate": "acc", "optimizer": "",
          "schedule": "", "encoder": "", "ema_decay": "ema", "freeze_batch_norm": "frozenbn",
          "weights": "from"}  # fmt: skip
RUN_NAME = re.compile(r"(?P<head>.+)_seed(?P<seed>\d+)")  # as `plan_training` names each run
LONGEST_NAME = 200  # a run is a folder, and file systems allow 255 bytes
# Experiments that differ in size only agree in these; what a larger size needs may differ.
_SYSTEM = (
    "network", "encoder", "weights", "images", "gate", "loss", "loss_options", "mask_loss_images",
    "label_weight", "side_weight", "sampling", "sampling_options",
)  # fmt: skip


class TrainPlan(Frozen):
    """A run: its name, its experiment with all overrides, its parameters, and what it needs."""

    run: str
    experiment: Experiment
    parameters: TrainParameters
    parent: TrainPlan | None = None  # the run whose weights it starts from
    gate: TrainPlan | None = None  # the classifier's run that gates its masks
    notes: tuple[str, ...] = Field((), strict=False)  # printed before it starts

    @property
    def experiment_name(self) -> str:
        """The name of the experiment that EXPERIMENT gives."""
        return experiment_file.trained(self.parameters.experiment)

    def needs(self) -> tuple[TrainPlan, ...]:
        """Return the runs that must be trained first, in order."""
        direct = [plan for plan in (self.parent, self.gate) if plan is not None]
        by_run = {needed.run: needed for plan in direct for needed in (*plan.needs(), plan)}
        return tuple(by_run.values())


def plan_training(parameters: TrainParameters, shipped: Mapping[str, Experiment]) -> TrainPlan:
    """Join parameters with the shipped experiments, or with those of EXPERIMENT as JSON text.

    An experiment that starts from another one starts from that one's run with the same seed and
    overrides, except WEIGHTS (where this run starts) and PARENT_WEIGHTS (where the first of its
    parents starts).

    Raises: InputError for an unknown experiment or impossible numbers.
    """
    own: dict[str, Experiment] = {}
    if experiment_file.is_json(parameters.experiment):
        own = experiment_file.check(parameters.experiment, shipped)
    known = {**shipped, **own}
    base = known[list(own)[-1]] if own else find_experiment(parameters.experiment, shipped)
    if parameters.parent_weights in known:  # the parents would start from it, too, without end
        raise InputError(
            f"PARENT_WEIGHTS {parameters.parent_weights} is an experiment: give a file, a run, "
            "imagenet or none; an experiment's parents are its own"
        )
    base, notes, own_size = _of_size(base, parameters.size, {} if own else shipped)
    overrides, more = _overrides(parameters, base)
    try:
        experiment = Experiment.model_validate(base.model_dump() | overrides)
    except ValidationError as error:
        raise InputError(explain(error, sorted(Experiment.model_fields))) from None
    # A SIZE that selects an experiment leaves its parents at their own sizes.
    theirs = parameters.model_copy(update={"size": None}) if own_size else parameters
    parent = gate = None
    if experiment.weights in known:
        parent = plan_training(_of_needed(experiment.weights, theirs, known, own), shipped)
        experiment = experiment.model_copy(update={"weights": parent.run})
    if experiment.gate is not None:
        gate = plan_training(_of_needed(experiment.gate, theirs, known, own), shipped)
        experiment = experiment.model_copy(update={"gate": gate.run})
    result = TrainPlan(
        run=_run_name(parameters, base, overrides, shipped),
        experiment=experiment,
        parameters=parameters,
        parent=parent,
        gate=gate,
        notes=(*notes, *more),
    )
    if any(other.run == result.run for other in result.needs()):
        raise InputError(
            f"NAME {parameters.name} is the name of a run that this one needs: choose another NAME"
        )
    return result


def _of_size(
    base: Experiment, size: int | None, shipped: Mapping[str, Experiment]
) -> tuple[Experiment, list[str], bool]:
    """Return the experiment for SIZE, what to print of it, and whether that size is its own.

    An experiment of the same system at that size is taken where `shipped` holds one: first the one
    of the same name with the size exchanged, then one that is written as a difference from this one
    or from its parent, or the parent itself.
    """
    if size is None or size == base.size:
        return base, [], True
    renamed = base.name.replace(f"_{base.size}_", f"_{size}_")
    family = {base.name, base.parent} - {None}
    for other in sorted(shipped.values(), key=lambda other: other.name != renamed):
        related = other.name == renamed or family & {other.name, other.parent}
        same = all(getattr(other, field) == getattr(base, field) for field in _SYSTEM)
        if related and other.size == size and same:
            return other, [f"SIZE {size} selects the experiment {other.name}"], True
    lack = f"no experiment {base.name} at {size} px: " if shipped else ""
    return base, [f"{lack}{base.name} with another size"], False


def _overrides(parameters: TrainParameters, base: Experiment) -> tuple[dict[str, Any], list[str]]:
    """Return the experiment's fields that the parameters change, and what to print of them."""
    given = {k: v for k in OVERRIDES if (v := getattr(parameters, k)) is not None}
    notes = []
    if "loss" in given:
        given["loss"] = _parse_loss(given["loss"])
    if "epochs" in given and "min_epochs" not in given:
        scaled = given["epochs"] * base.min_epochs // base.epochs
        given["min_epochs"] = min(given["epochs"] - 1, scaled)
        notes.append(
            f"EPOCHS {given['epochs']} without MIN_EPOCHS: min_epochs scaled from "
            f"{base.min_epochs} of {base.epochs} to {given['min_epochs']}"
        )
    changed = {k: v for k, v in given.items() if v != getattr(base, k)}
    return changed | base.options_reset_by(changed), notes


def _run_name(
    parameters: TrainParameters,
    base: Experiment,
    overrides: Mapping[str, Any],
    shipped: Mapping[str, Experiment],
) -> str:
    """Return the run's name, which shows what was given, not what one parameter implies."""
    name = parameters.name
    given = {
        k: v for k in OVERRIDES if k in overrides and (v := getattr(parameters, k)) is not None
    }
    if name in shipped and (name != base.name or given):
        raise InputError(
            f"NAME {name} is a shipped experiment, and this run differs from it: choose another "
            "NAME"
        )
    suffixes = "".join(f"_{suffix(field, value)}" for field, value in given.items())
    run = f"{name or base.name + suffixes}_seed{parameters.seed}"
    if len(run) > LONGEST_NAME:
        raise InputError(
            f"the run would be named {run[:60]}…, {len(run)} characters, at most {LONGEST_NAME}: "
            "name it with -p NAME SHORT, or override less (parents have names of their own)"
        )
    return run


def _of_needed(
    name: str,
    parameters: TrainParameters,
    known: Mapping[str, Experiment],
    own: Mapping[str, Experiment],
) -> TrainParameters:
    """Return the parameters of a run that another one needs: the same, for another experiment."""
    changes = {
        "experiment": (
            experiment_file.select(parameters.experiment, name, own) if name in own else name
        ),
        "name": None,
        "weights": None if known[name].weights in known else parameters.parent_weights,
        # These make the child what it is; the parent keeps its own.
        "loss": None,
        "sampling": None,
        "monitor": None,
    }
    return parameters.model_copy(update=changes)


def how_to_make(needed: TrainPlan) -> str:
    """Return the parameters of the command that trains a missing run."""
    parameters, defaults = needed.parameters, TrainParameters.model_fields
    given = {
        k: v
        for k in ("experiment", "seed", "fold", *OVERRIDES)
        if (v := getattr(parameters, k)) != defaults[k].default or k == "experiment"
    }
    words = " ".join(f"-p {k.upper()} {shlex.quote(str(v))}" for k, v in given.items())
    return f"train it first with {words}, or all of them with -p WITH_PARENTS True"


def find_experiment(name: str, known: Mapping[str, Experiment]) -> Experiment:
    """Return the experiment of that name; raise InputError with the nearest names otherwise."""
    return lookup("EXPERIMENT", name, known, "; -p EXPERIMENT also takes a JSON file of your own")


def suffix(field: str, value: Any) -> str:
    """Return how an override shows in a run's name: `epochs3`, `lr0.001`, `adamw`."""
    text = re.sub(r"[^A-Za-z0-9.+-]+", "-", str(value)).strip("-")
    return f"{_SHORT.get(field, field)}{text}"


def _parse_loss(text: str) -> dict[str, float]:
    """Return `3*bce+dice` as weights by name; raise InputError naming the wrong term."""
    weights: dict[str, float] = {}
    for term in text.split("+"):
        weight, star, name = term.rpartition("*")
        try:
            value = float(weight) if star else 1.0
        except ValueError:
            value = math.nan
        name = name.strip()
        if not math.isfinite(value) or not name or name in weights:
            raise InputError(
                f"LOSS {text!r}: cannot read {term!r}; write names with weights, each once, such "
                "as 3*bce+dice+4*focal"
            )
        weights[name] = value
    return weights
