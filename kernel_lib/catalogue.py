"""The table of experiments: what each is, where it starts, the reference solution's score."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from kernel_lib.config import Experiment

HEAD = ("experiment", "what it is", "starts from", "public LB of the reference solution")


def as_markdown(experiments: Mapping[str, Experiment]) -> str:
    """Return the table as Markdown, in the registry's order."""
    lines = [HEAD, ("---",) * len(HEAD), *_cells(experiments)]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _cells(experiments: Mapping[str, Experiment]) -> Iterator[tuple[str, ...]]:
    for name, experiment in experiments.items():
        start = _start(experiment, experiments)
        yield f"`{name}`", experiment.says, start, experiment.leaderboard or "–"


def _start(experiment: Experiment, experiments: Mapping[str, Experiment]) -> str:
    """Return the initial weights, and the classifier that gates where there is one."""
    weights = experiment.weights
    names = {"imagenet": "ImageNet", "none": "scratch"}
    start = f"`{weights}`" if weights in experiments else names.get(weights, weights)
    return start + (f"; gated by `{experiment.gate}`" if experiment.gate else "")
