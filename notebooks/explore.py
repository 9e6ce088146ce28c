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
# A data folder as found, before anything is trained on it: what is there, what is wrong with it,
# and whether the masks lie on the lungs. Then the masks of an ensemble, where there is one.

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

DATA_DIR: Optional[str] = None  # None: Kaggle's mounts
WORK_DIR: Optional[str] = None  # where the ensemble is looked for
GROUPS: Optional[str] = None  # table of image and patient, such as nih_id.csv
MASKS_ARE: Optional[str] = None  # right or inverted, as for training
SAMPLE_IMAGES: int = 200  # files that are opened
SEED: int = 0  # of their draw
ENSEMBLE: Optional[str] = None  # whose masks are shown; None: no viewer
IDS: Optional[str] = None  # images in the viewer, comma-separated; None: the most telling
MAX_MB: float = 25.0  # of the viewer

# %% [markdown]
# Every name above is checked before anything is read.

# %%
from kernel_lib.config import ExploreParameters

parameters = ExploreParameters.from_namespace(globals())

# %% [markdown]
# Every row of the tables is read, and some of the files are opened. The counts should be those that
# the data's source gives, and nothing should be bad.

# %%
from kernel_lib.stages import explore

result = explore.run(parameters)

# %% [markdown]
# Kinds and sizes of the files that were opened: one row is the common case.

# %%
result.kinds

# %% [markdown]
# Files that cannot be read and labels that do not fit their image: the table should have no row.

# %%
print(result.faults())

# %% [markdown]
# The competition's masks have a median of 8,630 px of 1024², 5 % lie below 1,363 and 5 % above 45,772.

# %%
result.areas

# %% [markdown]
# Where a mask lies elsewhere than along a lung's rim, labels and images do not belong together, or
# the images have another size than their labels were drawn on.

# %%
result.masks

# %% [markdown]
# All masks at once: two clouds abreast on the lungs, as in the first picture, and not as in the
# last.

# %%
result.means

# %% [markdown]
# ## Masks of an ensemble
# Every image with its true mask and what the ensemble makes of it.

# %%
explore.viewer(parameters)
