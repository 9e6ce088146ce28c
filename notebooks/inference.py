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
# Predict the test images with every fold, apply the post-processing rule that was chosen on held-out
# images, and write a submission that is checked against the sample.

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

ENSEMBLE: Optional[str] = None  # None: the only one in WORK_DIR
DATA_DIR: Optional[str] = None  # None: Kaggle's mounts
WORK_DIR: Optional[str] = None
CACHE_DIR: Optional[str] = None
SAMPLE: Optional[str] = None  # None: the sample submission in the data folder
OUTPUT: Optional[str] = None  # a name, to keep the results of another data set apart
TTA: Optional[str] = None  # None: as the experiments say
BATCH_SIZE: Optional[int] = None
PRECISION: str = "auto"
DEVICE: str = "auto"
PROCESSES: Optional[int] = None  # None: one per GPU
WORKERS: Optional[int] = None
THREADS: Optional[int] = None
ENGINE: str = "auto"  # on a CPU: onnxruntime if it is installed, else torch

# %% [markdown]
# A misspelt or ill-typed parameter stops the notebook here.

# %%
from kernel_lib.config import InferenceParameters

parameters = InferenceParameters.from_namespace(globals())

# %% [markdown]
# The submission has one row per image, in the sample's order; a mask is never split.

# %%
from kernel_lib.reporting import figures
from kernel_lib.stages import inference

result = inference.run(parameters)

# %% [markdown]
# The share of images with a mask should be as on the held-out images. Another share means that the
# test images differ, or that averaging the folds smoothed the probability maps.

# %%
figures.share_nonempty(result.honest, result.summary)

# %% [markdown]
# Masks of the submission over their images: they should lie along the lungs' edges.

# %%
from kernel_lib.stages import report_images

report_images.on_test(result.rles, result.source)

# %% [markdown] tags=["local"]
# The test images with their probability maps and masks.

# %% tags=["local"]
from kernel_lib.viewer.document import viewer_or_why

viewer_or_why(result.folder, test=True, data_dir=parameters.data_dir, roots=result.roots)
