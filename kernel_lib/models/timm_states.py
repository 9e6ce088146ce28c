"""Weights under timm's names to those of an encoder, by timm's own way of loading them."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator, Mapping

import timm
import torch
from segmentation_models_pytorch.encoders import get_encoder
from torch import nn

State = dict[str, torch.Tensor]


def converted(state: State, encoder: nn.Module, name: str) -> State:
    """Return a file's tensors under the names that smp's encoder of that timm model has.

    timm loads the file into its whole model, with what it does for older names and other window
    sizes, before it takes the features' part of it. It leaves silently what it finds no tensor
    for: so the same is done with numbers in the tensors' place that tell which came from where.
    Tensors not found in the file are not in the result; those of blocks that timm's model lacks
    are, and have no place in the encoder.

    Raises:
        RuntimeError: a tensor has another shape.
    """
    state = in_timm_order(state, name)
    marks = {
        key: torch.full(value.shape, float(number)) if value.is_floating_point() else value
        for number, (key, value) in enumerate(state.items(), start=1000)
    }
    filled, marked = (_loaded(values, encoder, name) for values in (state, marks))
    found = {k: v for k, v in filled.items() if not torch.equal(v, marked[k])}
    ends = (v.flatten()[[0, -1]].tolist() for k, v in marked.items() if k in found and v.numel())
    keys = list(state)
    used = {keys[round(end) - 1000] for pair in ends for end in pair if _is_key(end, keys)}
    known = _timm_state(name).keys()
    blocks = {block for key in used for block in _blocks(key)}
    lists = {block.rsplit(".", 1)[0] for block in blocks}
    for key in state.keys() - used - known:
        # A deeper model of the same kind has further blocks beside those that were used.
        if any(b not in blocks and b.rsplit(".", 1)[0] in lists for b in _blocks(key)):
            found[f"model.{key}"] = state[key]
    return found


def in_timm_order(state: State, name: str) -> State:
    """Return the first port of EfficientNet to PyTorch under timm's names; others as they are.

    Both keep their tensors in the order in which the network uses them.
    """
    if "_conv_stem.weight" not in state:
        return state
    model = _timm_state(name)
    theirs, ours = ([k for k in s if not k.endswith("num_batches_tracked")] for s in (state, model))
    if [_form(state, k) for k in theirs] != [_form(model, k) for k in ours]:
        raise RuntimeError(f"its tensors have other shapes than those of {name}")
    return {new: state[old] for new, old in zip(ours, theirs, strict=True)}


def in_torchvision_s_names(state: State) -> State:
    """Return a DenseNet of torchvision's own file under the names of its code: norm.1 is norm1."""
    old = re.compile(r"(denselayer\d+\.(?:norm|relu|conv))\.([12])\.")
    return {old.sub(r"\1\2.", key): value for key, value in state.items()}


def _loaded(state: State, encoder: nn.Module, name: str) -> State:
    """Return the state of a second encoder that timm filled; the seed's numbers stay as they are.

    The first numbers drawn are the same in every call, so that what is left random is equal.
    """
    log = logging.getLogger("timm.models._builder")
    level = log.level
    log.setLevel(logging.ERROR)  # it warns of the classifier, which no encoder has
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
    """Return the names and shapes of timm's whole model; its numbers are none, or random."""
    with torch.random.fork_rng(devices=[]):
        try:
            with torch.device("meta"):
                return timm.create_model(name).state_dict()
        except (RuntimeError, NotImplementedError):  # some read values as they are built
            return timm.create_model(name).state_dict()


def _form(state: Mapping[str, torch.Tensor], key: str) -> tuple:
    return key.rsplit(".", 1)[-1], state[key].shape


def _is_key(number: float, keys: list[str]) -> bool:
    return 0 <= round(number) - 1000 < len(keys)


def _blocks(key: str) -> Iterator[str]:
    """Yield the blocks that a tensor lies in: stages.2.blocks.5.conv.weight in two."""
    for match in re.finditer(r"\.\d+(?=\.)", key):
        yield key[: match.end()]
