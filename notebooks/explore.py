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
# # Explore
# Check a data folder before training on it: what it contains, what is wrong with it, and whether
# the masks lie on the lungs. Then view the masks of an ensemble, if you name one.

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

DATA_DIR: Optional[str] = None  # None: Kaggle's mounts
WORK_DIR: Optional[str] = None  # only to find the ensemble
GROUPS: Optional[str] = None  # table of image and patient ids, such as nih_id.csv
MASKS_ARE: Optional[str] = None  # right or inverted, as in training
SAMPLE_IMAGES: int = 200  # files to open
SEED: int = 0  # of their random choice
ENSEMBLE: Optional[str] = None  # whose masks to view; None: no viewer
IDS: Optional[str] = None  # of the viewer, comma-separated; None: the most informative
MAX_MB: float = 25.0  # size limit of the viewer

# %% [markdown]
# A misspelt or ill-typed parameter stops the notebook here.

# %%
from kernel_lib.config import ExploreParameters

parameters = ExploreParameters.from_namespace(globals())

# %% [markdown]
# All rows of the tables are read and some of the files are opened. The counts should match those
# of the data's source, and no file should be bad.

# %%
from kernel_lib.stages import explore

result = explore.run(parameters)

# %% [markdown]
# Kinds and sizes of the opened files: usually the table has one row.

# %%
result.kinds

# %% [markdown]
# Unreadable files, and labels that do not fit their image: the table should be empty.

# %%
print(result.faults())

# %% [markdown]
# For comparison, the competition's mask areas, in px of a 1024 × 1024 image: median 8,630; 5 % are
# below 1,363 and 5 % above 45,772.

# %%
result.areas

# %% [markdown]
# Masks should lie along a lung's edge. Elsewhere, labels and images do not belong together, or the
# labels were drawn at another size.

# %%
result.masks

# %% [markdown]
# The mean of all masks should show two clouds side by side on the lungs, as in the first picture,
# not as in the last.

# %%
result.means

# %% [markdown]
# ## Masks of an ensemble
# Every image with its ground truth and the ensemble's prediction.

# %%
explore.viewer(parameters)
