# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Thresholds
# Gather what the runs predicted for images they never saw, search every rule, and score the choice
# honestly. No GPU is needed.

# %% tags=["local"]
import os
import sys
from importlib.util import find_spec
from pathlib import Path

# The library lies in this notebook's clone; what started the kernel, papermill, has its path.
starter = f"/proc/{os.getppid()}/cmdline"
words = Path(starter).read_bytes().split(b"\0") if os.access(starter, os.R_OK) else []
paths = (globals().get("__file__", ""), *map(os.fsdecode, words))
sys.path += (os.path.abspath(f"{path}/../..") for path in paths if path.endswith((".ipynb", ".py")))
sys.path += [".", ".."]
if find_spec("kernel_lib") is None:
    sys.exit("kernel_lib is not found: start papermill in the clone, or with --cwd CLONE")

# %% tags=["parameters"]
from typing import Optional

RUNS: Optional[str] = None  # run names, comma-separated; None: the only one
ENSEMBLE: Optional[str] = None  # its name; without RUNS a recipe: notes_best, my/own.json
WORK_DIR: Optional[str] = None
DATA_DIR: Optional[str] = None  # only for pictures in the report
COMBINE: Optional[str] = None  # mean (None without a recipe), vote, member_vote, member_union
CHOOSE: Optional[str] = None  # greedy: members and weights of a mean; None: the recipe's, or none
AT_LEAST: Optional[int] = None  # members that must agree; None: the recipe's, or chosen
GATE: str = "auto"  # none, label or sum: what empties an image; auto: as the recipe or the rows say
SINGLE: bool = False  # one threshold with one area, the notes' rule
BOOTSTRAP: int = 2000
ALLOW_UNKNOWN_PAST: bool = False

# %% [markdown]
# Every name above is checked before anything is read.

# %%
from kernel_lib.config import ThresholdsParameters

parameters = ThresholdsParameters.from_namespace(globals())

# %% [markdown]
# The honest row is the one to believe: each image is scored by what was chosen without it. Below
# it stand the rule with its label threshold, what gates, and how well each means tells images with
# a mask from those without.

# %%
from kernel_lib.reporting import figures
from kernel_lib.stages import thresholds

result = thresholds.run(parameters)

# %% [markdown]
# The chosen rule should lie inside the plateau, not on a lonely peak.

# %%
figures.threshold_surface(result.search)

# %% [markdown]
# What was chosen for each fold, on the other folds.

# %%
print(result.by_part().to_string(index=False))

# %% [markdown]
# What the search adds over probability > 0.5, and what it only seems to add.

# %%
figures.scores(result.scores.first, result.scores.first_is_honest)

# %% [markdown]
# Small masks are the hard ones: dice should rise with the area, and few large masks be missed.

# %%
from kernel_lib.stages import agreement

figures.dice_against_area(result.per_image)

# %% [markdown]
# Where several members speak: how alike their masks are. Members that all say the same gain nothing
# from each other.

# %%
members = agreement.of_folder(result.folder)
members.matrices()

# %% [markdown]
# Whether their votes tell more than one of them: the bars should climb from left to right.

# %%
members.votes()

# %% [markdown] tags=["local"]
# Every held-out image, with sliders for the rule: move them and see what it costs. `ids=["…"]` embeds
# the images that you name; with a running kernel `kernel_lib.viewer.picker.picker` shows any.

# %% tags=["local"]
from kernel_lib.viewer.document import viewer_or_why

viewer_or_why(result.folder, data_dir=parameters.data_dir)
