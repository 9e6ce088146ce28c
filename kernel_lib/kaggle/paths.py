"""Where things lie: alone knows where Kaggle mounts its inputs and what is kept of a session."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

from kernel_lib import experiment_file
from kernel_lib.data.layouts import (
    LABEL_FILES,
    LAYOUTS,
    NIH_LAYOUT,
    NIH_TABLES,
    SUFFIXES,
    label_rank,
    no_folder,
)
from kernel_lib.errors import InputError

COMPETITION = "siim-acr-pneumothorax-segmentation"
WEIGHT_ENDINGS = (".pth", ".pt", ".safetensors", ".bin")
INPUT = Path("/kaggle/input")
WORKING = Path("/kaggle/working")
# A folder with more sub-folders than this holds images by study, and no artefacts: looking into
# each of ten thousand folders of a network mount takes minutes.
_CROWDED = 200


def on_kaggle(working: Path = WORKING) -> bool:
    """Whether this process is a Kaggle session, where only the working folder is kept."""
    return bool(os.environ.get("KAGGLE_KERNEL_RUN_TYPE")) and working.is_dir()


def project_root() -> Path:
    """The clone that this library runs from, else the current folder (in a kernel: the output)."""
    root = Path(__file__).resolve().parents[2]
    return root if (root / "pyproject.toml").is_file() else Path.cwd()


def work_dir(value: str | None, working: Path = WORKING) -> Path:
    """The folder of all artefacts; not created here.

    A relative value is taken from the project's root, so that a notebook started in `notebooks/`
    and the command line agree. None: Kaggle's working folder there, else `work` in the project.
    """
    if value is not None:
        return from_root(value, "WORK_DIR")
    return working if on_kaggle(working) else project_root() / "work"


def cache_dir(value: str | None, working: Path = WORKING) -> Path:
    """The folder for scratch, outside the working folder; not created here."""
    if value is not None:
        return from_root(value, "CACHE_DIR")
    if on_kaggle(working):
        return Path(tempfile.gettempdir()) / "pneumothorax-cache"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "pneumothorax"


def data_dir(value: str | None, mounts: Path | None = None) -> Path:
    """The folder of radiographs and labels.

    None looks through Kaggle's mounts for one with a table of labels and images, the competition's
    own first, then data sets, then outputs of kernels. Raises InputError that says what was looked
    for, and names a mount with images.
    """
    if value is not None:
        return _existing(value, "DATA_DIR")
    mounts = _mounts(mounts)
    folders = sorted(_mounted(mounts), key=lambda folder: folder.name != COMPETITION)
    labelled = []
    for folder in folders:
        if any(map(_holds_labels, _below(folder, depth=3))):
            if _holds_images(folder):
                return folder
            labelled.append(folder)
    pictured = [folder for folder in folders if _holds_images(folder)]
    # Without a table it may still hold test images; the reader of tables says what is amiss.
    unlabelled = [f for f in pictured or folders if f.name == COMPETITION and any(f.iterdir())]
    for folder in unlabelled if pictured else [*labelled, *unlabelled]:
        return folder
    seen = ", ".join(str(folder) for folder in folders[:10]) or "nothing"
    raise InputError(
        f"no data: DATA_DIR is not set, and {mounts} holds {seen}. "
        + (f"If this is the data, -p DATA_DIR {pictured[0]}. " if pictured else "")
        + f"On Kaggle, attach the competition {COMPETITION} or a data set with its files; "
        f"elsewhere set DATA_DIR. {LAYOUTS}"
    )


def nih_dir(value: str | None, mounts: Path | None = None) -> Path:
    """The folder of NIH ChestX-ray14, for rows that are trained on it.

    None looks through Kaggle's mounts for its table of labels. Raises InputError with the mend.
    """
    if value is not None:
        return _existing(value, "NIH_DIR")
    mounts = _mounts(mounts)
    folders = _mounted(mounts)
    for folder in folders:
        for below in _below(folder, depth=3):
            if any((below / name).is_file() for name in NIH_TABLES):
                # The table may lie in a folder of its own beside the images.
                return folder
    seen = ", ".join(str(folder) for folder in folders[:10]) or "nothing"
    raise InputError(
        f"no NIH images: NIH_DIR is not set, and {mounts} holds {seen}. On Kaggle, attach a data "
        f"set of NIH ChestX-ray14; elsewhere -p NIH_DIR FOLDER. {NIH_LAYOUT}"
    )


def artefact_roots(work: Path, mounts: Path | None = None) -> list[Path]:
    """Folders in which earlier stages may have left artefacts, the working folder first.

    After it every mounted folder that holds `runs`, `ensembles` or `folds.csv`, itself or up to
    two levels down, in the order competitions, data sets, notebooks, others, each by name.
    """
    roots = [Path(work)]
    for mounted in _mounted(_mounts(mounts)):
        roots += artefacts_below(mounted)
    return list(dict.fromkeys(roots))


def artefacts_below(folder: Path) -> list[Path]:
    """The folder itself and those up to two levels down that hold artefacts, top down, by name."""
    return [below for below in _below(folder, depth=3) if _holds_artefacts(below)]


def weights_dirs(value: str | None, mounts: Path | None = None) -> list[Path]:
    """Return folders with files of pretrained weights: WEIGHTS_DIR's, then mounted ones, by name.

    Of WEIGHTS_DIR also those below it, down to a model in a copy of Hugging Face's cache. Mounted
    are data sets, then Kaggle's Models, of one version each. Checkpoints of this project's own
    runs are artefacts and not listed.

    Raises:
        InputError: WEIGHTS_DIR does not exist.
    """
    sources = _mounted(_mounts(mounts))
    found = []
    if value is not None:
        found.append(_existing(value, "WEIGHTS_DIR"))
        sources.insert(0, found[0])
    for source in sources:
        # Four levels: an older mount of a Model is model/framework/variation/version.
        found += [folder for folder in _below(source, depth=4) if _holds_weights(folder)]
    return list(dict.fromkeys(found))


def mounted_files(name: str, mounts: Path | None = None) -> list[Path]:
    """Every mounted file of that name, up to two levels down in its source, in a fixed order."""
    return [
        folder / name
        for mounted in _mounted(_mounts(mounts))
        for folder in _below(mounted, depth=3)
        if (folder / name).is_file()
    ]


def _mounts(given: Path | None) -> Path:
    """Where inputs are mounted; a rehearsal outside Kaggle sets KERNEL_LIB_MOUNTS."""
    return Path(given or os.environ.get("KERNEL_LIB_MOUNTS") or INPUT)


def _mounted(mounts: Path) -> list[Path]:
    """Every mounted source, in all the forms that Kaggle has used, in a fixed order."""
    # A Model: owner, model, framework, variation, version.
    forms = ("competitions/*", "datasets/*/*", "notebooks/*/*", "models/*/*/*/*/*")
    found = [folder for form in forms for folder in sorted(mounts.glob(form)) if folder.is_dir()]
    flat = [folder for folder in sorted(mounts.glob("*")) if folder.is_dir()]
    kinds = {form.split("/")[0] for form in forms}
    return found + [f for f in flat if f.name not in kinds]


def _below(folder: Path, depth: int) -> Iterator[Path]:
    """The folder itself and those below it, `depth` levels in all, top down and by name.

    What a run folder holds is the run's own; crowds of folders are images and are not entered.
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
    """Whether there is an image, however deep; the first one found ends the walk."""
    walked = os.walk(folder, followlinks=True)
    return any(name.lower().endswith(SUFFIXES) for _, _, names in walked for name in names)


def _holds_artefacts(folder: Path) -> bool:
    return (
        any((folder / n).is_dir() for n in ("runs", "ensembles"))
        or (folder / "folds.csv").is_file()
    )


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
    """Return an EXPERIMENT that travels: the JSON text of a file in the place of its path.

    Names and JSON text are returned as they are. Raises: InputError naming a file that is missing
        or holds no experiment.
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
    """The folder, or an InputError that names it, what is there instead, and the fix."""
    path = from_root(value, name)
    if path.is_dir():
        return path
    if path.exists():
        raise InputError(no_folder(path, name))
    there = next(parent for parent in path.parents if parent.is_dir())
    names = sorted(entry.name for entry in there.iterdir())
    shown = ", ".join(names[:10]) + (f" and {len(names) - 10} more" if len(names) > 10 else "")
    mend = "give the folder of the data, or run `make demo`" if name == "DATA_DIR" else "correct it"
    raise InputError(f"{name} {path} does not exist; {there} holds {shown or 'nothing'}; {mend}")
