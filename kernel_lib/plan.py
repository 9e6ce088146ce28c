"""Rows and parameters joined: which run it is, with which numbers, and what it needs first."""

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

# What a parameter of the same name overrides in the row, in the order of the run's suffixes.
OVERRIDES = (
    "size", "encoder", "weights", "loss", "sampling", "epochs", "min_epochs", "patience",
    "batch_size", "accumulate", "optimizer", "lr", "schedule", "augment", "ema_decay",
    "freeze_batch_norm", "monitor", "keep", "tta",
)  # fmt: skip
_SHORT = {"min_epochs": "min", "batch_size": "batch", "accumulate": "acc", "optimizer": "",
          "schedule": "", "encoder": "", "ema_decay": "ema", "freeze_batch_norm": "frozenbn",
          "weights": "from"}  # fmt: skip
RUN_NAME = re.compile(r"(?P<head>.+)_seed(?P<seed>\d+)")  # as `plan` names each run
LONGEST_NAME = 200  # a run is a folder, and file systems end at 255 bytes
# Rows of one system at several sizes agree in these; what a larger size needs may differ.
_SYSTEM = (
    "network", "encoder", "weights", "images", "gate", "loss", "loss_options", "mask_loss_images",
    "label_weight", "side_weight", "sampling", "sampling_options",
)  # fmt: skip


class TrainPlan(Frozen):
    """A run that is decided: its name, its row with all overrides, and its parameters."""

    run: str
    experiment: Experiment
    parameters: TrainParameters
    parent: TrainPlan | None = None  # the run that it starts from, where a row names one
    gate: TrainPlan | None = None  # the classifier's run whose label gates its masks
    says: tuple[str, ...] = Field((), strict=False)  # what a person should know before it starts

    @property
    def row(self) -> str:
        """The name of the experiment that EXPERIMENT gives."""
        return experiment_file.trained(self.parameters.experiment)

    def needs(self) -> tuple[TrainPlan, ...]:
        """Runs that are to be there first, in the order in which they are trained."""
        direct = [p for p in (self.parent, self.gate) if p is not None]
        by_run = {n.run: n for p in direct for n in (*p.needs(), p)}
        return tuple(by_run.values())


def plan(parameters: TrainParameters, rows: Mapping[str, Experiment]) -> TrainPlan:
    """Join parameters and rows. Raises InputError for an unknown row or impossible numbers.

    `rows` are the shipped experiments; EXPERIMENT may be a JSON text with others.
    A row that starts from another row starts from that row's run with the same seed and the same
    overrides (but WEIGHTS, which says where this run starts, and PARENT_WEIGHTS, where the first of
    its parents does).
    """
    own: dict[str, Experiment] = {}
    if experiment_file.is_json(parameters.experiment):
        own = experiment_file.check(parameters.experiment, rows)
    shipped, rows = rows, {**rows, **own}
    row = rows[list(own)[-1]] if own else find_row(parameters.experiment, rows)
    if parameters.parent_weights in rows:  # which would start from itself, without end
        raise InputError(
            f"PARENT_WEIGHTS {parameters.parent_weights} is a row: give a file, a run, imagenet or "
            "none; the rows that a row starts from are its own"
        )
    given = {k: v for k in OVERRIDES if (v := getattr(parameters, k)) is not None}
    says: list[str] = []
    own_size = True
    if "size" in given and given["size"] != row.size:
        row, own_size = (row, False) if own else _row_of_size(row, given["size"], shipped)
        if own_size:
            says.append(f"SIZE {given['size']} selects the row {row.name}")
        else:
            whose = "" if own else f"the notes have no {row.name} at {given['size']}: "
            says.append(f"{whose}{row.name} with another size")
    if "loss" in given:
        given["loss"] = _parse_loss(given["loss"])
    if "epochs" in given and "min_epochs" not in given:
        scaled = scaled_min_epochs(row, given["epochs"])
        says.append(
            f"EPOCHS {given['epochs']} given alone: min_epochs scaled from {row.min_epochs} of "
            f"{row.epochs} to {scaled}"
        )
        given["min_epochs"] = scaled
    changes = {k: v for k, v in given.items() if v != getattr(row, k)}
    # Options belong to the names that they were written for.
    changes |= {f"{k}_options": {} for k in ("loss", "sampling") if k in changes}
    try:
        experiment = Experiment.model_validate(row.model_dump() | changes)
    except ValidationError as error:
        raise InputError(explain(error, sorted(Experiment.model_fields))) from None
    # A size that selected a row says nothing of its parents' sizes.
    theirs = parameters.model_copy(update={"size": None if own_size else parameters.size})
    parent = gate = None
    if experiment.weights in rows:
        parent = plan(_of_needed(experiment.weights, theirs, rows, own), shipped)
        experiment = experiment.model_copy(update={"weights": parent.run})
    if experiment.gate is not None:
        gate = plan(_of_needed(experiment.gate, theirs, rows, own), shipped)
        experiment = experiment.model_copy(update={"gate": gate.run})
    # As a person gave them; what a parameter implies for another shows in no name.
    named = {k: v for k in OVERRIDES if k in changes and (v := getattr(parameters, k)) is not None}
    name = parameters.name
    if name in shipped and (name != row.name or named):
        raise InputError(
            f"NAME {name} is a shipped experiment, and this run is another: choose another NAME"
        )
    suffixes = "".join(f"_{suffix(k, v)}" for k, v in named.items())
    run = f"{name or row.name + suffixes}_seed{parameters.seed}"
    if len(run) > LONGEST_NAME:
        raise InputError(
            f"the run would be named {run[:60]}…, {len(run)} characters, at most {LONGEST_NAME}: "
            "name it with -p NAME SHORT, or override less (parents have names of their own)"
        )
    decided = TrainPlan(
        run=run,
        experiment=experiment,
        parameters=parameters,
        parent=parent,
        gate=gate,
        says=tuple(says),
    )
    if any(one.run == run for one in decided.needs()):
        raise InputError(f"NAME {name} is that of a run that this one needs: choose another NAME")
    return decided


def _of_needed(
    name: str,
    parameters: TrainParameters,
    rows: Mapping[str, Experiment],
    own: Mapping[str, Experiment],
) -> TrainParameters:
    """Return the parameters of a run that another one needs: the same, for another row."""
    changes = {
        "experiment": (
            experiment_file.select(parameters.experiment, name, own) if name in own else name
        ),
        "name": None,
        "weights": None if rows[name].weights in rows else parameters.parent_weights,
        # These make the child what it is; the parent is what its own row says.
        "loss": None,
        "sampling": None,
        "monitor": None,
    }
    return parameters.model_copy(update=changes)


def how_to_make(needed: TrainPlan) -> str:
    """The words of a command that trains what is missing."""
    parameters, defaults = needed.parameters, TrainParameters.model_fields
    given = {
        k: v
        for k in ("experiment", "seed", "fold", *OVERRIDES)
        if (v := getattr(parameters, k)) != defaults[k].default or k == "experiment"
    }
    words = " ".join(f"-p {k.upper()} {shlex.quote(str(v))}" for k, v in given.items())
    return f"train it first with {words}, or all of them with -p WITH_PARENTS True"


def scaled_min_epochs(row: Experiment, epochs: int) -> int:
    """The row's share of epochs in which nothing is kept, for another number of epochs."""
    return min(epochs - 1, math.floor(epochs * row.min_epochs / row.epochs))


def find_row(name: str, rows: Mapping[str, Experiment]) -> Experiment:
    """The row of that name; InputError with the nearest names otherwise."""
    return lookup("EXPERIMENT", name, rows, "; -p EXPERIMENT also takes a JSON file of your own")


def suffix(field: str, value: Any) -> str:
    """How an override shows in a run's name: `epochs3`, `lr0.001`, `adamw`."""
    text = re.sub(r"[^A-Za-z0-9.+-]+", "-", str(value)).strip("-")
    return f"{_SHORT.get(field, field)}{text}"


def _parse_loss(text: str) -> dict[str, float]:
    """`3*bce+dice` as weights by name; InputError naming the term that is none."""
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
                f"LOSS {text!r}: {term!r} is no term; write names with weights, each once, such as "
                "3*bce+dice+4*focal"
            )
        weights[name] = value
    return weights


def _row_of_size(
    row: Experiment, size: int, rows: Mapping[str, Experiment]
) -> tuple[Experiment, bool]:
    """The notes' row of the same system at another size, and whether there is one.

    The same name with the size exchanged comes first, then a row that was written as a difference
    from this one or from its parent, or the parent itself. A row that starts elsewhere, or learns
    otherwise, is another system.
    """
    renamed = row.name.replace(f"_{row.size}_", f"_{size}_")
    family = {row.name, row.parent} - {None}
    related = sorted(rows.values(), key=lambda other: other.name != renamed)
    for other in related:
        if other.name != renamed and not family & {other.name, other.parent}:
            continue
        if other.size == size and all(getattr(other, k) == getattr(row, k) for k in _SYSTEM):
            return other, True
    return row, False
