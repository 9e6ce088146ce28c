"""The configuration of a fold whose network was never trained."""

from __future__ import annotations

from kernel_lib.artifacts.fold_run import FoldConfig, FoldRun
from kernel_lib.config import Experiment


def write_config(folder: FoldRun, folds_digest: str = "d", *, seed: int = 1, **experiment) -> None:
    folder.write_config(
        FoldConfig(
            run=folder.run,
            fold=folder.fold,
            seed=seed,
            n_folds=2,
            folds_digest=folds_digest,
            experiment=Experiment(name=folder.run, **experiment),
        )
    )
