"""A notebook's text as a kernel shows it: with a title of its own, without cells for a clone."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping

from kernel_build import metadata
from kernel_lib import experiment_file
from kernel_lib.stages.table import STAGES

LOCAL = "local"  # tag of a cell that is left out of kernels


def for_kernel(percent: str, stage: str, values: Mapping[str, object], meta: Mapping) -> str:
    """Return a notebook's percent text for a kernel with these parameters and metadata.

    It begins with a title cell, in which the text of the notebook's own title follows. Cells with
    the tag `local` are left out.
    """
    header, *chunks = re.split(r"(?m)^(?=# %%)", percent)
    kept = [chunk for chunk in chunks if LOCAL not in _tags(chunk)]
    text = ""
    if kept and kept[0].startswith("# %% [markdown]"):
        text = re.sub(r"(?m)\A.*\n(# # .*\n)?", "", kept.pop(0)).strip("\n")
    title = [f"# {STAGES[stage].title}: {_subject(stage, values)}"]
    lines = [*(re.sub(r"^# ?", "", line) for line in text.split("\n")), "", *_facts(stage, meta)]
    first = "".join(f"# {line}".rstrip() + "\n" for line in [*title, *lines])
    return header + "".join([f"# %% [markdown]\n{first}\n", *kept])


def _subject(stage: str, values: Mapping[str, object]) -> str:
    """Return what the kernel works on: a run and its folds, or an ensemble."""
    if not STAGES[stage].per_fold:
        return str(values.get("ENSEMBLE") or values.get("RUNS") or "the runs that are attached")
    name = values.get("NAME") or experiment_file.trained(str(values.get("EXPERIMENT")))
    fold = values.get("FOLD")
    folds = "every fold" if fold is None else f"fold {fold} of {values.get('N_FOLDS')}"
    return f"{name}, seed {values.get('SEED')}, {folds}"


def _facts(stage: str, meta: Mapping) -> Iterator[str]:
    unowned = f"{metadata.PLACEHOLDER}/"
    inputs = [name.removeprefix(unowned) for key in metadata.SOURCES for name in meta[key]]
    yield f"- **Takes** {', '.join(f'`{name}`' for name in inputs) or 'nothing'}"
    yield f"- **Leaves** in `/kaggle/working` {STAGES[stage].leaves}"
    yield f"- **Then** {STAGES[stage].then}"


def _tags(chunk: str) -> list[str]:
    tags = re.search(r"\btags=(\[.*?\])", chunk.partition("\n")[0])
    return json.loads(tags[1]) if tags else []
