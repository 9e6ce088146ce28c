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
# # Train
# Prepare the radiographs, train one fold or all, and predict the images that were held out.
# `None` means: as the experiment's row says.

# %% [markdown] tags=["local"]
# Run it with `papermill notebooks/train.ipynb out.ipynb -p SIZE 1024`, or cell by cell.

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

EXPERIMENT: str = "UNetResNet34_512_v1"  # or a JSON file of your own
NAME: Optional[str] = None  # of the run; None: made of experiment and overrides
SEED: int = 3456
FOLD: Optional[int] = None  # None: every fold, one after the other
N_FOLDS: int = 5
DATA_DIR: Optional[str] = None  # None: Kaggle's mounts
WORK_DIR: Optional[str] = None  # None: /kaggle/working, or work/ in the project
CACHE_DIR: Optional[str] = None  # scratch for decoded images
GROUPS: Optional[str] = None  # table of image and patient, such as nih_id.csv
SIZE: Optional[int] = None
ENCODER: Optional[str] = None
WEIGHTS: Optional[str] = None  # imagenet, none, another row or run, or a file
WEIGHTS_DIR: Optional[str] = None
WEIGHTS_ARE: Optional[str] = None  # imagenet: a file whose hash nobody published is that
WITH_PARENTS: bool = False  # train first what the row starts from, and what gates it
PARENT_WEIGHTS: Optional[str] = None  # where the first of the parents starts
NIH_DIR: Optional[str] = None  # NIH ChestX-ray14, for the rows that learn from it
LOSS: Optional[str] = None  # names and weights, such as 3*bce+dice+4*focal
SAMPLING: Optional[str] = None  # all, nonempty, positive_share, hard
EPOCHS: Optional[int] = None
MIN_EPOCHS: Optional[int] = None  # nothing is kept as best before
PATIENCE: Optional[int] = None
BATCH_SIZE: Optional[int] = None
ACCUMULATE: Optional[int] = None  # batches an optimiser step
OPTIMIZER: Optional[str] = None  # sgd, adamw
LR: Optional[float] = None
SCHEDULE: Optional[str] = None  # cosine, poly, constant
AUGMENT: Optional[str] = None  # notes, flips, distortions, hflip, none
EMA_DECAY: Optional[float] = None
FREEZE_BATCH_NORM: Optional[bool] = None
MONITOR: Optional[str] = None  # epoch, dice, dice_half, dice_nonempty, dice_gated, auc, val_loss
KEEP: Optional[int] = None  # checkpoints whose predictions are averaged
TTA: Optional[str] = None  # none, hflip, vflip, flips, multiscale, or joined with +
MAX_HOURS: Optional[float] = None  # stop in time, all saved; run again to go on
SAVE_MINUTES: float = 10.0
ON_BAD_FILE: str = "stop"  # or skip
MASKS_ARE: Optional[str] = None  # right or inverted, where masks that look wrong are refused
DETERMINISTIC: bool = False
PRECISION: str = "auto"  # float32, float16, bfloat16
COMPILE: bool = False  # torch.compile: minutes at the start, faster steps on a GPU
DEVICE: str = "auto"
PROCESSES: Optional[int] = None  # None: one for each GPU
WORKERS: Optional[int] = None
THREADS: Optional[int] = None

# %% [markdown]
# Every name above is checked: one that is misspelt or ill-typed stops here, not after nine hours.

# %%
from kernel_lib.config import TrainParameters

parameters = TrainParameters.from_namespace(globals())

# %% [markdown]
# Training can be stopped anywhere; started again it goes on from there and ends the same.

# %%
from kernel_lib.reporting import figures
from kernel_lib.stages import train

result = train.run(parameters)

# %% [markdown]
# The loss should fall on both sides, and the kept epochs stand where held-out dice is highest.

# %%
figures.learning_curves(result.logs())

# %% [markdown]
# One image as training gets it in its first epochs: the mask must move along with what it covers,
# and a chest should still look like one.

# %%
from kernel_lib.stages import augmented

augmented.after_training(result.run, result.work, parameters.data_dir)
