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
# # Inference
# Predict the test images with every fold, apply the rule that was chosen out of fold, and write a
# submission that is checked against the sample.

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

ENSEMBLE: Optional[str] = None  # None: the only one there is
DATA_DIR: Optional[str] = None  # None: Kaggle's mounts
WORK_DIR: Optional[str] = None
CACHE_DIR: Optional[str] = None
SAMPLE: Optional[str] = None  # None: the sample submission beside the data
OUTPUT: Optional[str] = None  # a name: beside an earlier data set's results, not over them
TTA: Optional[str] = None  # None: as the runs' rows say
BATCH_SIZE: Optional[int] = None
PRECISION: str = "auto"
DEVICE: str = "auto"
PROCESSES: Optional[int] = None  # None: one for each GPU
WORKERS: Optional[int] = None
THREADS: Optional[int] = None

# %% [markdown]
# Every name above is checked before anything is read.

# %%
from kernel_lib.config import InferenceParameters

parameters = InferenceParameters.from_namespace(globals())

# %% [markdown]
# One row an image, in the sample's order; masks are never split.

# %%
from kernel_lib.reporting import figures
from kernel_lib.stages import inference

result = inference.run(parameters)

# %% [markdown]
# Test masks should look like those out of fold: a different share means different images, or maps
# smoothed by averaging folds.

# %%
figures.share_nonempty(result.honest, result.summary)

# %% [markdown]
# Masks that went into the submission, over their images: they should lie on the lungs.

# %%
from kernel_lib.stages import report_images

report_images.on_test(result.submission, result.source)

# %% [markdown] tags=["local"]
# The test images, their maps and masks, to look through.

# %% tags=["local"]
from kernel_lib.viewer.document import viewer_or_why

viewer_or_why(result.folder, test=True, data_dir=parameters.data_dir, roots=result.roots)
