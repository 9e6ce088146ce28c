"""Convert weights under timm's names to those of an encoder, by timm's own loading code."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator, Mapping

import timm
import torch
from segmentation_models_pytorch.encoders import get_encoder
from torch import nn

State = dict[str, torch.Tensor]

_FIRST_MARK = 1000


def converted(state: State, encoder: nn.Module, name: str) -> State:
    """Return the tensors of a file under the names of the encoder of that timm model.

    timm loads a file into its complete model, converts older names and other window sizes, then
    takes the part with the features. It ignores missing tensors silently. The same is therefore
    done a second time with numbers in place of the tensors, which show what came from where. The
    result lacks tensors that are not in the file, and contains those of blocks that timm's model
    lacks: they have no place in the encoder.

    Raises:
        RuntimeError: a tensor has another shape.
    """
    state = in_timm_order(state, name)
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
    """Return the first PyTorch port of EfficientNet under timm's names; other files unchanged.

    Both keep their tensors in the order in which the network uses them.
    """
    if "_conv_stem.weight" not in state:
        return state
    model = _timm_state(name)
    theirs, ours = ([k for k in s if not k.endswith("num_batches_tracked")] for s in (state, model))
    if [_kind(state, k) for k in theirs] != [_kind(model, k) for k in ours]:
        raise RuntimeError(f"its tensors have other shapes than those of {name}")
    return {new: state[old] for new, old in zip(ours, theirs, strict=True)}


def in_torchvision_s_names(state: State) -> State:
    """Return the file of a torchvision DenseNet under the names of its code: norm.1 is norm1."""
    old = re.compile(r"(denselayer\d+\.(?:norm|relu|conv))\.([12])\.")
    return {old.sub(r"\1\2.", key): value for key, value in state.items()}


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
    """Return the names and shapes of timm's complete model; its values are meaningless."""
    with torch.random.fork_rng(devices=[]):
        try:
            with torch.device("meta"):
                return timm.create_model(name).state_dict()
        except (RuntimeError, NotImplementedError):  # some read values while being built
            return timm.create_model(name).state_dict()


def _kind(state: Mapping[str, torch.Tensor], key: str) -> tuple:
    return key.rsplit(".", 1)[-1], state[key].shape


def _blocks(key: str) -> Iterator[str]:
    """Yield the blocks that hold a tensor: stages.2 and stages.2.blocks.5 of …5.conv.weight."""
    for match in re.finditer(r"\.\d+(?=\.)", key):
        yield key[: match.end()]
