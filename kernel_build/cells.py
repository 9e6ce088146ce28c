"""A notebook's text as a kernel shows it: a title that says what it is, nothing of a clone."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping

from kernel_build import metadata
from kernel_lib import experiment_file

LOCAL = "local"  # tag of a cell that is left out of kernels
_LEAVES = {
    "train": "`folds.csv`, and below `runs/` checkpoints, logs and predictions of held-out images",
    "thresholds": "below `ensembles/` the rule, its honest score and `report.html`",
    "inference": "below `ensembles/` the checked `submission.csv` and `report.html`",
}
_THEN = {
    "train": "where time ran out, a kernel with the same parameters that takes this one's output "
    "goes on; when every fold is trained, a thresholds kernel that takes the output of all",
    "thresholds": "an inference kernel that takes this output and that of the train kernels",
    "inference": "submit `submission.csv`",
}


def for_kernel(percent: str, stage: str, values: Mapping[str, object], meta: Mapping) -> str:
    """Return a notebook's percent text for a kernel with these parameters and metadata.

    It begins with a title cell, which goes on with the words of the notebook's own. Cells with the
    tag `local` are left out.
    """
    header, *chunks = re.split(r"(?m)^(?=# %%)", percent)
    kept = [chunk for chunk in chunks if LOCAL not in _tags(chunk)]
    words = ""
    if kept and kept[0].startswith("# %% [markdown]"):
        words = re.sub(r"(?m)\A.*\n(# # .*\n)?", "", kept.pop(0)).strip("\n")
    title = [f"# {stage.capitalize()}: {_subject(stage, values)}"]
    lines = [*(re.sub(r"^# ?", "", line) for line in words.split("\n")), "", *_facts(stage, meta)]
    first = "".join(f"# {line}".rstrip() + "\n" for line in [*title, *lines])
    return header + "".join([f"# %% [markdown]\n{first}\n", *kept])


def _subject(stage: str, values: Mapping[str, object]) -> str:
    """What the kernel works on: a run and its folds, or an ensemble."""
    if stage != "train":
        return str(values.get("ENSEMBLE") or values.get("RUNS") or "the runs that are attached")
    row = values.get("NAME") or experiment_file.trained(str(values.get("EXPERIMENT")))
    fold = values.get("FOLD")
    folds = "every fold" if fold is None else f"fold {fold} of {values.get('N_FOLDS')}"
    return f"{row}, seed {values.get('SEED')}, {folds}"


def _facts(stage: str, meta: Mapping) -> Iterator[str]:
    inputs = [name for key in metadata.SOURCES for name in meta[key]]
    yield f"- **Takes** {', '.join(f'`{_plain(name)}`' for name in inputs) or 'nothing'}"
    yield f"- **Leaves** in `/kaggle/working` {_LEAVES[stage]}"
    yield f"- **Then** {_THEN[stage]}"


def _plain(name: str) -> str:
    """A source without the placeholder of an owner who is not known."""
    return name.removeprefix(f"{metadata.PLACEHOLDER}/")


def _tags(chunk: str) -> list[str]:
    tags = re.search(r"\btags=(\[.*?\])", chunk.partition("\n")[0])
    return json.loads(tags[1]) if tags else []
