"""The experiments as a Markdown table: what each is, where it starts, and its reported score."""

from __future__ import annotations

from collections.abc import Mapping

from kernel_lib.config import Experiment

HEAD = ("experiment", "what it is", "starts from", "public LB of the reference solution")


def as_markdown(experiments: Mapping[str, Experiment]) -> str:
    """Return a table with a line for each experiment, in the order of the registry."""
    lines = [HEAD, ("---",) * len(HEAD)]
    for experiment in experiments.values():
        start = _start(experiment, experiments)
        name, score = f"`{experiment.name}`", experiment.leaderboard or "–"
        lines.append((name, experiment.says, start, score))
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _start(experiment: Experiment, experiments: Mapping[str, Experiment]) -> str:
    """Return the initial weights of an experiment, and the classifier that gates it, if any."""
    weights, names = experiment.weights, {"imagenet": "ImageNet", "none": "scratch"}
    start = f"`{weights}`" if weights in experiments else names.get(weights, weights)
    return start + (f"; gated by `{experiment.gate}`" if experiment.gate else "")
