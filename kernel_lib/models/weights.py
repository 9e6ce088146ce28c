"""Load initial weights: ImageNet's (file, cache or download) or a checkpoint's.

Weights under timm's names are converted by timm's own loading code.

There is no silent fallback: an error lists the places searched.
"""

from __future__ import annotations

import logging
import re
import socket
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import IO, Any

import safetensors.torch
import timm
import torch
from segmentation_models_pytorch.encoders import get_encoder
from torch import nn

from kernel_lib import storage
from kernel_lib.errors import InputError
from kernel_lib.models import encoders, imagenet

_ON_KAGGLE = "(on Kaggle in a data set of `python build_kernel.py offline`)"
OFFER = "or train from scratch with -p WEIGHTS none"
_TIMEOUT_S = 20  # for a site that does not answer; torch itself would wait for ever
_FOLDER = 0x10  # attribute of a zip record
_FIRST_MARK = 1000

State = dict[str, torch.Tensor]


def load_imagenet(encoder: nn.Module, name: str, folders: Sequence[Path]) -> Path:
    """Fill an encoder with ImageNet weights and return the file they came from.

    The file may be torchvision's, timm's or segmentation-models-pytorch's, under a name that these
    publish (`imagenet.names`). It is sought in `folders`, in the caches of torch and of the Hugging
    Face Hub, and in an installed package; else the official file is downloaded and its hash
    checked. InputError without a file, and for one that is damaged or of another network.
    """
    torch_cache, hub_cache = imagenet.torch_cache(), imagenet.hub_cache()
    packaged = imagenet.packaged_file(name)
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
    elif package := imagenet.package_name(name):
        report += f", and the package {package} is not installed"
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
    # A torchvision DenseNet's file has the names of an older code: norm.1 is norm1.
    older = re.compile(r"(denselayer\d+\.(?:norm|relu|conv))\.([12])\.")
    state = {older.sub(r"\1\2.", k): v for k, v in read_state(path, own=False).items()}
    model = imagenet.timm_name(name)
    try:
        if model is not None:
            state = in_timm_order(state, model)
        needed = (k for k, v in encoder.state_dict().items() if v.is_floating_point())
        if name.startswith("tu-") and model is not None and not all(k in state for k in needed):
            state = converted(state, encoder, model)
    except Exception as error:  # timm's filters raise anything for a foreign file
        reason = " ".join(str(error).split())[:300]
        raise InputError(
            f"{path} is of another network than {name!r} ({reason}); give the file of the same "
            f"encoder, {OFFER}"
        ) from error
    _fill(encoder, state, path)


def read_state(path: Path, own: bool = True) -> State:
    """Return the tensors of a weights file or checkpoint without running code in it.

    InputError for any other file, or for a network of this package unless `own`.
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
            "so that its lineage is known, or move it away"
        )
    return state


def _stored(path: Path) -> tuple[Any, Mapping]:
    """Return the content of a file, and where its metadata is sought."""
    if path.suffix != ".safetensors":
        state = load_state(path)
        return state, state if isinstance(state, dict) else {}
    with safetensors.safe_open(path, "pt") as file:
        return safetensors.torch.load_file(path), file.metadata() or {}


def is_table(state: Any) -> bool:
    """Return whether an object maps names to tensors, as the state of a network does."""
    return isinstance(state, Mapping) and all(
        isinstance(name, str) and isinstance(value, torch.Tensor) for name, value in state.items()
    )


def load_state(path: Path) -> Any:
    """Return what torch saved in a file, on the CPU, without running code in it.

    Checks the checksums, which torch does not. Raises anything for a damaged or foreign file.
    """
    with path.open("rb") as file:
        if zipfile.is_zipfile(file):
            _check_sums(file)
    state = torch.load(path, map_location="cpu", weights_only=True)
    for tensor in _tensors(state):
        stored = tensor.layout is torch.strided and tensor.untyped_storage().nbytes()
        if tensor.is_meta or tensor.numel() * tensor.element_size() > stored:
            raise ValueError(f"a tensor of {tuple(tensor.shape)} holds less than it states")
    return state


def _check_sums(file: IO[bytes]) -> None:
    archive = storage.open_archive(file)
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
    """Fill a network from a checkpoint of it; InputError if the tensors of the two differ."""
    _fill(model, read_state(path), path)


def load_encoder(encoder: nn.Module, path: Path) -> None:
    """Load the encoder of another network's checkpoint; errors as in `load_model`."""
    state = read_state(path)
    own = {k.removeprefix("encoder."): v for k, v in state.items() if k.startswith("encoder.")}
    _fill(encoder, own, path)


def _fill(module: nn.Module, state: State, path: Path) -> None:
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


def converted(state: State, encoder: nn.Module, name: str) -> State:
    """Return the tensors of a file under the names of the encoder of that timm model.

    timm loads a file into its complete model, converts older names and other window sizes, then
    takes the part with the features. It ignores missing tensors silently. The same is therefore
    done a second time with numbers in place of the tensors, which show what came from where. The
    result lacks tensors that are not in the file, and contains those of blocks that timm's model
    lacks: they have no place in the encoder. RuntimeError for a tensor of another shape.
    """
    keys = list(state)
    marks = {
        key: torch.full(value.shape, float(mark)) if value.is_floating_point() else value
        for mark, (key, value) in enumerate(state.items(), start=_FIRST_MARK)
    }
    filled, marked = (_loaded(values, encoder, name) for values in (state, marks))
    result = {k: v for k, v in filled.items() if not torch.equal(v, marked[k])}
    ends = (v.flatten()[[0, -1]].tolist() for k, v in marked.items() if k in result and v.numel())
    indices = {round(end) - _FIRST_MARK for pair in ends for end in pair}
    used = {keys[i] for i in indices if 0 <= i < len(keys)}
    known = _timm_state(name).keys()
    blocks = {block for key in used for block in _blocks(key)}
    lists = {block.rsplit(".", 1)[0] for block in blocks}
    for key in state.keys() - used - known:
        # A deeper model of the same kind has more blocks beside the used ones.
        if any(b not in blocks and b.rsplit(".", 1)[0] in lists for b in _blocks(key)):
            result[f"model.{key}"] = state[key]
    return result


def in_timm_order(state: State, name: str) -> State:
    """Rename efficientnet_pytorch's tensors to timm's names; return other files unchanged.

    Both keep their tensors in the order in which the network uses them.
    """
    if "_conv_stem.weight" not in state:
        return state
    model = _timm_state(name)
    theirs, ours = ([k for k in s if not k.endswith("num_batches_tracked")] for s in (state, model))

    def kinds(tensors: State, keys: list[str]) -> list[tuple]:
        return [(key.rsplit(".", 1)[-1], tensors[key].shape) for key in keys]

    if kinds(state, theirs) != kinds(model, ours):
        raise RuntimeError(f"its tensors have other shapes than those of {name}")
    return {new: state[old] for new, old in zip(ours, theirs, strict=True)}


def _loaded(state: State, encoder: nn.Module, name: str) -> State:
    """Return the state of another encoder filled by timm, without using the random generator.

    Every call draws the same numbers, so that tensors left random are equal.
    """
    log = logging.getLogger("timm.models._builder")
    level = log.level
    log.setLevel(logging.ERROR)  # it warns about the missing classifier
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            twin = get_encoder(
                f"tu-{name}",
                weights=True,
                output_stride=encoder.output_stride,
                pretrained_cfg_overlay={"state_dict": dict(state)},
                **getattr(encoder, "timm_options", {}),
            )
    finally:
        log.setLevel(level)
    return {k: v for k, v in twin.state_dict().items() if v.is_floating_point()}


def _timm_state(name: str) -> State:
    """Return the names and shapes of timm's complete model, without values."""
    return encoders.on_meta(partial(timm.create_model, name)).state_dict()


def _blocks(key: str) -> Iterator[str]:
    """Yield the blocks that hold a tensor: stages.2 and stages.2.blocks.5 of …5.conv.weight."""
    for match in re.finditer(r"\.\d+(?=\.)", key):
        yield key[: match.end()]
