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
# Prepare the radiographs, train one fold or all of them, and predict the held-out images.
# A parameter that is `None` keeps the experiment's value.

# %% [markdown] tags=["local"]
# Run it with `papermill notebooks/train.ipynb out.ipynb -p SIZE 1024`, or cell by cell.

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

EXPERIMENT: str = "UNetResNet34_512_v1"  # a name, or a JSON file of your own
NAME: Optional[str] = None  # of the run; None: made from experiment and overrides
SEED: int = 3456
FOLD: Optional[int] = None  # None: all folds, one after the other
N_FOLDS: int = 5
DATA_DIR: Optional[str] = None  # None: Kaggle's mounts
WORK_DIR: Optional[str] = None  # None: /kaggle/working, or work/ in the project
CACHE_DIR: Optional[str] = None  # scratch folder for decoded images
GROUPS: Optional[str] = None  # table of image and patient ids, such as nih_id.csv
SIZE: Optional[int] = None
ENCODER: Optional[str] = None
WEIGHTS: Optional[str] = None  # imagenet, none, an experiment, a run or a file
WEIGHTS_DIR: Optional[str] = None
WEIGHTS_ARE: Optional[str] = None  # imagenet: what a weights file of unknown hash holds
WITH_PARENTS: bool = False  # first train the runs that this one starts from or is gated by
PARENT_WEIGHTS: Optional[str] = None  # initial weights of the first parent
NIH_DIR: Optional[str] = None  # NIH ChestX-ray14, for experiments that train on it
LOSS: Optional[str] = None  # names and weights, such as 3*bce+dice+4*focal
SAMPLING: Optional[str] = None  # all, nonempty, positive_share, hard
EPOCHS: Optional[int] = None
MIN_EPOCHS: Optional[int] = None  # epochs before the first that may be kept as best
PATIENCE: Optional[int] = None
BATCH_SIZE: Optional[int] = None
ACCUMULATE: Optional[int] = None  # batches per optimiser step
OPTIMIZER: Optional[str] = None  # sgd, adamw
LR: Optional[float] = None
SCHEDULE: Optional[str] = None  # cosine, poly, constant
AUGMENT: Optional[str] = None  # notes, flips, distortions, hflip, none
EMA_DECAY: Optional[float] = None
FREEZE_BATCH_NORM: Optional[bool] = None
MONITOR: Optional[str] = None  # epoch, dice, dice_half, dice_nonempty, dice_gated, auc, val_loss
KEEP: Optional[int] = None  # checkpoints whose predictions are averaged
TTA: Optional[str] = None  # none, hflip, vflip, flips, multiscale; join with +
MAX_HOURS: Optional[float] = None  # stop before, with everything saved; run again to continue
SAVE_MINUTES: float = 10.0
ON_BAD_FILE: str = "stop"  # or skip
MASKS_ARE: Optional[str] = None  # right or inverted: how to read masks that look wrong
DETERMINISTIC: bool = False
PRECISION: str = "auto"  # float32, float16, bfloat16
COMPILE: bool = False  # torch.compile: minutes at the start, faster steps on a GPU
DEVICE: str = "auto"
PROCESSES: Optional[int] = None  # None: one per GPU
WORKERS: Optional[int] = None
THREADS: Optional[int] = None

# %% [markdown]
# A misspelt or ill-typed parameter stops the notebook here, not after nine hours.

# %%
from kernel_lib.config import TrainParameters

parameters = TrainParameters.from_namespace(globals())

# %% [markdown]
# Training can be stopped at any time; run again, it continues and ends with the same result.

# %%
from kernel_lib.reporting import figures
from kernel_lib.stages import train

result = train.run(parameters)

# %% [markdown]
# Training and validation loss should both fall, and held-out dice should be high at the kept epochs.

# %%
figures.learning_curves(result.logs())

# %% [markdown]
# One image as augmented in the first epochs: the mask must move with the pneumothorax that it covers,
# and the chest should still look like a chest.

# %%
from kernel_lib.stages import augmented

augmented.after_training(result.run, result.work, parameters.data_dir)
