"""Folders: Kaggle's mounts and what it keeps of a session are known to this module only."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

from kernel_lib import experiment_file
from kernel_lib.artifacts.filenames import ENSEMBLES, FOLDS, RUNS
from kernel_lib.competition import (
    COMPETITION,
    LABEL_FILES,
    LAYOUTS,
    NIH_LAYOUT,
    NIH_TABLES,
    SUFFIXES,
    label_rank,
    no_folder,
)
from kernel_lib.errors import InputError

WEIGHT_ENDINGS = (".pth", ".pt", ".safetensors", ".bin")
INPUT = Path("/kaggle/input")
WORKING = Path("/kaggle/working")
# A folder with more sub-folders than this holds images by study, and no artefacts: to look into
# ten thousand folders of a network mount takes minutes.
_CROWDED = 200


def on_kaggle() -> bool:
    """Return whether this is a Kaggle session, which keeps only the working folder."""
    return bool(os.environ.get("KAGGLE_KERNEL_RUN_TYPE")) and WORKING.is_dir()


def project_root() -> Path:
    """Return the clone of this library, or the current folder (in a kernel, the output)."""
    root = Path(__file__).resolve().parents[2]
    return root if (root / "pyproject.toml").is_file() else Path.cwd()


def work_dir(value: str | None) -> Path:
    """Return the folder of all artefacts, which is not created.

    A relative value starts from the project's root, so that a notebook in `notebooks/` and the
    command line agree. None is Kaggle's working folder, or elsewhere `work` in the project.
    """
    if value is not None:
        return from_root(value, "WORK_DIR")
    return WORKING if on_kaggle() else project_root() / "work"


def cache_dir(value: str | None) -> Path:
    """Return the scratch folder, outside the working folder, which is not created."""
    if value is not None:
        return from_root(value, "CACHE_DIR")
    if on_kaggle():
        return Path(tempfile.gettempdir()) / "pneumothorax-cache"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "pneumothorax"


def data_dir(value: str | None) -> Path:
    """Return the folder of radiographs and labels.

    None takes the first of Kaggle's mounts with images and a table of labels: the competition's own
    first, then data sets, then outputs of kernels.

    Raises: InputError where there is none; the message lists the mounts, and names one with images.
    """
    if value is not None:
        return _existing(value, "DATA_DIR")
    folders = sorted(_mounted(), key=lambda folder: folder.name != COMPETITION.slug)
    labelled = []
    for folder in folders:
        if any(map(_holds_labels, _below(folder))):
            if _holds_images(folder):
                return folder
            labelled.append(folder)
    pictured = [folder for folder in folders if _holds_images(folder)]
    # Without a table it may hold test images; the reader of tables reports what is missing.
    unlabelled = [f for f in pictured or folders if f.name == COMPETITION.slug and any(f.iterdir())]
    for folder in unlabelled if pictured else [*labelled, *unlabelled]:
        return folder
    raise InputError(
        f"no data: DATA_DIR is not set, and {_listed(folders)}. "
        + (f"If this is the data, -p DATA_DIR {pictured[0]}. " if pictured else "")
        + f"On Kaggle, attach the competition {COMPETITION.slug} or a data set with its files; "
        f"elsewhere set DATA_DIR. {LAYOUTS}"
    )


def nih_dir(value: str | None) -> Path:
    """Return the folder of NIH ChestX-ray14, for experiments that are trained on it.

    None looks through Kaggle's mounts for its table of labels.

    Raises: InputError where there is none, with the fix.
    """
    if value is not None:
        return _existing(value, "NIH_DIR")
    folders = _mounted()
    for folder in folders:  # the images may lie beside the table's own folder
        if any((below / name).is_file() for below in _below(folder) for name in NIH_TABLES):
            return folder
    raise InputError(
        f"no NIH images: NIH_DIR is not set, and {_listed(folders)}. On Kaggle, attach a data "
        f"set of NIH ChestX-ray14; elsewhere -p NIH_DIR FOLDER. {NIH_LAYOUT}"
    )


def artefact_roots(work: Path) -> list[Path]:
    """Return the working folder, then all mounted folders with artefacts of earlier stages.

    They hold `runs`, `ensembles` or `folds.csv`, at most two levels down in a mount; in the order
    competitions, data sets, notebooks, others, each by name.
    """
    mounted = (folder for source in _mounted() for folder in artefacts_below(source))
    return list(dict.fromkeys([Path(work), *mounted]))


def artefacts_below(folder: Path) -> list[Path]:
    """Return the folders with artefacts, at most two levels down, top down and by name."""
    return [
        below
        for below in _below(folder)
        if (below / RUNS).is_dir() or (below / ENSEMBLES).is_dir() or (below / FOLDS).is_file()
    ]


def weights_dirs(value: str | None) -> list[Path]:
    """Return folders with files of pretrained weights: WEIGHTS_DIR's, then mounted ones, by name.

    WEIGHTS_DIR's are searched as deep as a copy of Hugging Face's cache is. Mounted are data sets,
    then Kaggle's Models, of one version each. Checkpoints of this project's runs are not listed.

    Raises: InputError where WEIGHTS_DIR does not exist.
    """
    given = [] if value is None else [_existing(value, "WEIGHTS_DIR")]
    folders = list(given)
    for source in [*given, *_mounted()]:
        # Four levels: an older mount of a Model is model/framework/variation/version.
        folders += filter(_holds_weights, _below(source, depth=4))
    return list(dict.fromkeys(folders))


def mounted_files(name: str) -> list[Path]:
    """Return every mounted file of that name, at most two levels down, in a fixed order."""
    files = [folder / name for mounted in _mounted() for folder in _below(mounted)]
    return [file for file in files if file.is_file()]


def _mounts() -> Path:
    """Return where inputs are mounted; a rehearsal outside Kaggle sets KERNEL_LIB_MOUNTS."""
    return Path(os.environ.get("KERNEL_LIB_MOUNTS") or INPUT)


def _listed(folders: list[Path]) -> str:
    return f"{_mounts()} holds {', '.join(map(str, folders[:10])) or 'nothing'}"


def _mounted() -> list[Path]:
    """Return every mounted source, in all forms that Kaggle has used, in a fixed order."""
    mounts = _mounts()
    # A Model: owner, model, framework, variation, version.
    forms = ("competitions/*", "datasets/*/*", "notebooks/*/*", "models/*/*/*/*/*")
    kinds = {form.split("/")[0] for form in forms}
    nested = [folder for form in forms for folder in sorted(mounts.glob(form))]
    flat = [folder for folder in sorted(mounts.glob("*")) if folder.name not in kinds]
    return [folder for folder in nested + flat if folder.is_dir()]


def _below(folder: Path, depth: int = 3) -> Iterator[Path]:
    """Yield the folder and those below it, `depth` levels in all, top down and by name.

    Runs, ensembles and crowds of folders, which are images, are not entered.
    """
    yield folder
    if depth <= 1:
        return
    # scandir knows folders from files without asking the mount for each of ten thousand images.
    with os.scandir(folder) as entries:
        inner = sorted(entry.name for entry in entries if entry.is_dir())
    if len(inner) > _CROWDED:
        return
    for name in inner:
        if name not in ("runs", "ensembles"):
            yield from _below(folder / name, depth - 1)


def _holds_labels(folder: Path) -> bool:
    with os.scandir(folder) as entries:
        tables = (e for e in entries if ".csv" in e.name.lower() and e.is_file())
        return any(label_rank(table.name) < len(LABEL_FILES) for table in tables)


def _holds_images(folder: Path) -> bool:
    """Return whether there is an image, however deep."""
    walked = os.walk(folder, followlinks=True)
    return any(name.lower().endswith(SUFFIXES) for _, _, names in walked for name in names)


def _holds_weights(folder: Path) -> bool:
    with os.scandir(folder) as entries:
        return any(e.name.endswith(WEIGHT_ENDINGS) and e.is_file() for e in entries)


def models_dir() -> Path:
    """Return the folder of released models, at the top of the clone; it need not exist."""
    return project_root() / "models"


def from_root(value: str, name: str = "the path") -> Path:
    """Return a path as given, a relative one from the project's root; InputError if it is empty."""
    if not value.strip():
        raise InputError(f"{name} is empty: give it, or leave it out; is a variable unset?")
    return project_root() / Path(value).expanduser()


def experiment_text(value: str) -> str:
    """Return an EXPERIMENT that other machines can read: for a path the JSON text of its file.

    Names and JSON text are returned as they are.

    Raises: InputError where the file is missing or holds no experiment.
    """
    if experiment_file.is_json(value) or not value.endswith(".json"):
        return value
    path = from_root(value)
    try:
        return experiment_file.write(experiment_file.read(path.read_text("utf-8")).values())
    except FileNotFoundError:
        raise InputError(f"EXPERIMENT {path} does not exist") from None
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"EXPERIMENT {path} cannot be read ({error})") from None
    except InputError as error:
        raise InputError(f"{path}: {error}") from None


def _existing(value: str, name: str) -> Path:
    """Return the folder, or raise InputError with what lies in its place, and the fix."""
    path = from_root(value, name)
    if path.is_dir():
        return path
    if path.exists():
        raise InputError(no_folder(path, name))
    existing = next(parent for parent in path.parents if parent.is_dir())
    names = sorted(entry.name for entry in existing.iterdir())
    shown = ", ".join(names[:10]) + (f" and {len(names) - 10} more" if len(names) > 10 else "")
    fix = "give the folder of the data, or run `make demo`" if name == "DATA_DIR" else "correct it"
    raise InputError(f"{name} {path} does not exist; {existing} holds {shown or 'nothing'}; {fix}")
