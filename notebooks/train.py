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
# Run it with `papermill notebooks/train.ipynb out.ipynb -p SIZE 1024`, or cell by cell.
# `None` means: as the experiment's row says.

# %%
import sys

sys.path += [".", ".."]  # the library, where this notebook is run from a clone

# %% tags=["parameters"]
EXPERIMENT: str = "UNetResNet34_512_v1"
SEED: int = 3456
FOLD: int | None = None  # None: every fold, one after the other
N_FOLDS: int = 5
DATA_DIR: str | None = None  # None: Kaggle's mounts
WORK_DIR: str | None = None  # None: /kaggle/working, or work/ in the project
CACHE_DIR: str | None = None  # scratch for decoded images
GROUPS: str | None = None  # table of image and patient, such as nih_id.csv
SIZE: int | None = None
ENCODER: str | None = None
WEIGHTS: str | None = None  # imagenet, none, another run, or a file
WEIGHTS_DIR: str | None = None
EPOCHS: int | None = None
MIN_EPOCHS: int | None = None  # nothing is kept as best before
PATIENCE: int | None = None
BATCH_SIZE: int | None = None
ACCUMULATE: int | None = None  # batches an optimiser step
OPTIMIZER: str | None = None  # sgd, adamw
LR: float | None = None
SCHEDULE: str | None = None  # cosine, poly, constant
AUGMENT: str | None = None  # notes, flips, none
EMA_DECAY: float | None = None
FREEZE_BATCH_NORM: bool | None = None
MONITOR: str | None = None  # dice, dice_half, dice_nonempty, val_loss
KEEP: int | None = None  # checkpoints whose predictions are averaged
TTA: str | None = None  # none, hflip
MAX_HOURS: float | None = None  # stop in time, all saved; run again to go on
SAVE_MINUTES: float = 10.0
ON_BAD_FILE: str = "stop"  # or skip
DETERMINISTIC: bool = False
PRECISION: str = "auto"  # float32, float16, bfloat16
DEVICE: str = "auto"
WORKERS: int | None = None
THREADS: int | None = None

# %% [markdown]
# Every name above is checked: one that is misspelt or ill-typed stops here, not after nine hours.

# %%
from kernel_lib.config import TrainParameters
from kernel_lib.stages import train
from kernel_lib.viz import figures

parameters = TrainParameters.from_namespace(globals())

# %% [markdown]
# Training can be stopped anywhere; the same command goes on from there and ends the same.

# %%
result = train.run(parameters)

# %% [markdown]
# The loss should fall on both sides, and the kept epochs stand where held-out dice is highest.

# %%
figures.learning_curves(result.logs())
