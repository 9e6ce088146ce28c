"""The stages that become kernels: a table for build, names, checks and command line.

To add one: `notebooks/<name>.py`, class `<Name>Parameters` in `config.py`, module
`stages/<name>.py` with `run` and `check`, an entry in `_ALL`.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from types import ModuleType
from typing import TYPE_CHECKING

from kernel_lib.artifacts import filenames

if TYPE_CHECKING:
    from kernel_lib.config import Parameters

OF_FOLD, OF_ENSEMBLE = f"{filenames.RUNS}/*/fold*", f"{filenames.ENSEMBLES}/*"
FOLD_FILES = tuple(
    f"{OF_FOLD}/{name}" for name in (filenames.CONFIG, filenames.LOG, filenames.LAST)
)


@dataclass(frozen=True)
class Stage:
    """A stage that becomes a kernel; its paths are patterns below the working folder.

    Attributes:
        name: Of its notebook, its module and its command.
        does: What it does, in the command line's help.
        takes: The stages whose kernels' outputs it reads.
        needs_gpu: Whether its kernel needs a GPU, and the packages of networks.
        short: Abbreviation in kernel names above 50 characters.
        leaves: What its kernel leaves, in Markdown.
        then: What to do next, in Markdown.
        outputs: Files that it must leave.
        artefacts: Files that it may leave.
        left_out: Files and folders of the library that its kernel does not carry, besides the
            modules of the other stages.
        per_fold: Whether a kernel trains one fold of a run; otherwise it works on an ensemble.
    """

    name: str
    does: str
    takes: tuple[str, ...]
    needs_gpu: bool
    short: str
    leaves: str
    then: str
    outputs: tuple[str, ...]
    artefacts: tuple[str, ...]
    left_out: tuple[str, ...]
    per_fold: bool = False

    # Both import lazily, so that --help does not wait for pydantic or torch.

    @property
    def parameters(self) -> type[Parameters]:
        """The parameters of its notebook."""
        return getattr(importlib.import_module("kernel_lib.config"), f"{self.title}Parameters")

    @property
    def module(self) -> ModuleType:
        """Its module: `run(parameters)`, and `check(parameters)` of what needs no data."""
        return importlib.import_module(f"kernel_lib.stages.{self.name}")

    @property
    def title(self) -> str:
        return self.name.capitalize()


_ALL = (
    Stage(
        name="train",
        does="Train an experiment and predict its held-out images",
        takes=(),
        needs_gpu=True,
        short="train",
        leaves="`folds.csv`, and below `runs/` checkpoints, logs and predictions of held-out "
        "images",
        then="if time ran out, a kernel with the same parameters and this output as input "
        "resumes; once every fold is trained, a thresholds kernel with all these outputs",
        outputs=(filenames.FOLDS, *FOLD_FILES),
        artefacts=(
            *FOLD_FILES, f"{OF_FOLD}/{filenames.BEST}*", f"{OF_FOLD}/{filenames.OOF}",
            f"{OF_FOLD}/{filenames.OOF_LAST}", filenames.FOLDS, filenames.LEFT_OUT, "nih_*.csv",
            "nih_*.json",
        ),
        left_out=(
            "artifacts/decision.py", "artifacts/ensemble.py", "artifacts/fold_statistics.py",
            "artifacts/oof.py", "artifacts/search_record.py", "artifacts/test_run.py",
            "data/metadata.py", "inference/engines.py", "inference/ensemble_maps.py",
            "inference/from_statistics.py", "inference/onnx_file.py", "inference/onnx_network.py",
            "inference/out_of_fold.py", "inference/recipes.py", "inference/weightings.py",
            "postprocess/calibration.py", "postprocess/nested_cv.py", "postprocess/referral.py",
            "postprocess/score_definitions.py", "postprocess/subgroups.py",
            "postprocess/submission.py", "postprocess/surface_distance.py", "postprocess/votes.py",
            "reporting/agreement.py", "reporting/certainty.py", "reporting/report.py",
            "stages/report.py", "stages/report_certainty.py", "stages/report_images.py",
            "stages/report_scores.py", "stages/scores.py",
        ),
        per_fold=True,
    ),
    Stage(
        name="thresholds",
        does="Search thresholds and score them out of fold",
        takes=("train",),
        needs_gpu=False,
        short="thr",
        leaves="in `ensembles/` the rule, its nested-CV score and `report.html`",
        then="an inference kernel that takes this output and that of the train kernels; to look at "
        "every image, download all of these into one folder and run `python -m kernel_lib view "
        "FOLDER/ensembles/NAME`",
        outputs=tuple(
            f"{OF_ENSEMBLE}/{name}"
            for name in (
                filenames.MEMBERS, filenames.THRESHOLDS, filenames.PER_IMAGE, filenames.REPORT,
            )
        ),
        artefacts=(f"{OF_ENSEMBLE}/*",),
        left_out=(
            "artifacts/model_facts.py", "checkpoints.py", "inference/engines.py",
            "inference/onnx_file.py", "inference/onnx_network.py", "inference/predictions.py",
            "models", "parallel/world.py", "released.py", "stages/initial_weights.py",
            "stages/nih.py", "stages/preparation.py", "training",
        ),
    ),
    Stage(
        name="inference",
        does="Predict the test images and write a submission",
        takes=("train", "thresholds"),
        needs_gpu=True,
        short="inf",
        leaves="below `ensembles/` the checked `submission.csv` and `report.html`",
        then="submit `submission.csv`; to look at its masks, download this output and run "
        "`python -m kernel_lib view FOLDER/ensembles/NAME --test`",
        outputs=(
            f"*{filenames.SUBMISSION}", f"{OF_ENSEMBLE}/{filenames.TEST_RUN}",
            f"{OF_ENSEMBLE}/{filenames.REPORT}",
        ),
        artefacts=(
            f"{OF_FOLD}/{filenames.TEST_MAPS}", f"{OF_ENSEMBLE}/*", filenames.SUBMISSION,
        ),
        left_out=(
            "artifacts/fold_statistics.py", "artifacts/search_record.py", "data/nih.py",
            "ensembles", "inference/from_statistics.py", "inference/out_of_fold.py",
            "inference/recipes.py", "inference/weightings.py", "models/losses.py",
            "stages/initial_weights.py", "stages/nih.py", "stages/preparation.py", "training",
        ),
    ),
)  # fmt: skip
STAGES = {stage.name: stage for stage in _ALL}
