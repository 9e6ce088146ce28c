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
# Combine the runs' predictions of held-out images, search for the best post-processing rule, and
# estimate its score by nested cross-validation. No GPU is needed.
#
# The rule works on a probability map. **Detection threshold** (`top`) and **minimum area**
# (`min_area_px`, in px of a 1024 × 1024 image): the image gets a mask only if at least so many pixels
# exceed `top`. **Mask threshold** (`bottom`): the mask is then all pixels above `bottom`.

# %% tags=["local"]
import os
import sys
from importlib.util import find_spec
from pathlib import Path

# Find the library in this notebook's clone, by the notebook's path in papermill's command line.
starter = f"/proc/{os.getppid()}/cmdline"
words = Path(starter).read_bytes().split(b"\0") if os.access(starter, os.R_OK) else []
paths = (globals().get("__file__", ""), *map(os.fsdecode, words))
sys.path += (os.path.abspath(f"{path}/../..") for path in paths if path.endswith((".ipynb", ".py")))
sys.path += [".", ".."]
if find_spec("kernel_lib") is None:
    sys.exit("kernel_lib is not found: start papermill in the clone, or with --cwd CLONE")

# %% tags=["parameters"]
from typing import Optional

RUNS: Optional[str] = None  # run names, comma-separated; None: the only run
ENSEMBLE: Optional[str] = None  # a name; without RUNS a recipe: notes_best, my/own.json
WORK_DIR: Optional[str] = None
DATA_DIR: Optional[str] = None  # only for images in the report
COMBINE: Optional[str] = None  # mean (the default), vote, member_vote, member_union
CHOOSE: Optional[str] = None  # greedy: members and weights of a mean; None: the recipe's, or none
AT_LEAST: Optional[int] = None  # minimum votes; None: the recipe's, or chosen
GATE: str = "auto"  # classifier gating: none, label, sum; auto: by recipe or experiments
SINGLE: bool = False  # one threshold and a minimum area, no separate bottom
BOOTSTRAP: int = 2000
ALLOW_UNKNOWN_PAST: bool = False

# %% [markdown]
# A misspelt or ill-typed parameter stops the notebook here.

# %%
from kernel_lib.config import ThresholdsParameters

parameters = ThresholdsParameters.from_namespace(globals())

# %% [markdown]
# Believe the nested cross-validated ("honest") score: each image is scored with a rule that was
# chosen on other folds. Below it: the rule, what gates it, and the image-level ROC AUC of each way to
# tell images with a mask from those without.

# %%
from kernel_lib.reporting import figures
from kernel_lib.stages import thresholds

result = thresholds.run(parameters)

# %% [markdown]
# The chosen rule should lie inside a plateau of good scores, not on an isolated peak.

# %%
figures.threshold_surface(result.search)

# %% [markdown]
# The rule of each fold, chosen on the other folds: they should be similar.

# %%
print(result.by_part().to_string(index=False))

# %% [markdown]
# The gain of the search over a threshold of 0.5; the score in sample overstates it.

# %%
figures.scores(result.scores.first, result.scores.first_is_honest)

# %% [markdown]
# Small masks are the hard ones: dice should rise with the area, with few large false negatives.

# %%
from kernel_lib.stages import report_images

figures.dice_against_area(result.per_image)

# %% [markdown]
# With several members: how similar their masks are. Members that always agree add nothing to each
# other.

# %%
members = report_images.member_agreement(result.data)
members.matrices()

# %% [markdown]
# Masks that more members agree on should be better: the bars should rise from left to right.

# %%
members.votes()

# %% [markdown] tags=["local"]
# Every held-out image, with sliders for the rule that update all scores. `ids=["…"]` embeds the
# images that you name; with a running kernel, `kernel_lib.viewer.document.picker` shows any image.

# %% tags=["local"]
from kernel_lib.viewer.document import viewer_or_why

viewer_or_why(result.folder, data_dir=parameters.data_dir)
