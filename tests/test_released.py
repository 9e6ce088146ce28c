"""Released models: what is saved comes back, and what is damaged or foreign is named."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import safetensors.torch
import torch

from kernel_lib import checkpoints, released
from kernel_lib.artifacts.lineage import UNKNOWN, Lineage
from kernel_lib.config import Experiment
from kernel_lib.errors import InputError
from kernel_lib.models import networks
from kernel_lib.postprocess.triplet import Triplet
from kernel_lib.released import Released

ROW = Experiment(name="tiny", encoder="tu-test_efficientnet", decoder_channels=(16,) * 5, size=32)


@pytest.fixture
def small() -> Released:
    with torch.random.fork_rng():
        model = networks.build(ROW)
    return Released(
        name="small",
        experiment=ROW,
        rule=Triplet(0.6, 2000, 0.5, 0.3),
        gate="label",
        tta="hflip",
        lineage=Lineage(images=tuple(f"i{n:04d}" for n in range(2205)), ancestors=("parent",)),
        score={"honest": {"dice": 0.8}},
        licence="MIT",
        model=model,
    )


def rewritten(path: Path, metadata: dict[str, str | None], tensors=lambda state: state) -> Path:
    """The same file with other metadata, None leaving a name out, and other tensors."""
    with safetensors.safe_open(path, "pt") as file:
        state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        given = {k: v for k, v in (file.metadata() | metadata).items() if v is not None}
    safetensors.torch.save_file(tensors(state), path, given)
    return path


def test_what_is_saved_comes_back_in_half_precision(small, tmp_path):
    path = tmp_path / "models" / "small.safetensors"
    size = small.save(path)
    assert size == path.stat().st_size < released.MAX_BYTES
    found = Released.load(path)
    assert found == small
    for name, tensor in small.model.state_dict().items():
        there = found.model.state_dict()[name]
        expected = tensor.half().float() if tensor.is_floating_point() else tensor
        assert there.dtype == tensor.dtype
        assert torch.equal(there, expected), name
    assert checkpoints.lineage(path) == small.lineage


def test_bare_weights_are_no_released_model(small, tmp_path):
    path = tmp_path / "bare.safetensors"
    safetensors.torch.save_file({"w": torch.zeros(1)}, path)
    assert not released.is_released(path)
    assert checkpoints.lineage(path) == UNKNOWN
    with pytest.raises(InputError, match=r"bare.safetensors is no released model"):
        Released.load(path)


@pytest.mark.parametrize(
    ("metadata", "tensors", "pattern"),
    [
        ({"schema": "another"}, None, "no released model .* 'another'"),
        ({"rule": None}, None, "damaged .*lacks 'rule'"),
        ({"rule": "{}"}, None, "damaged"),
        ({"lineage": "[]"}, None, "damaged"),
        ({"score": "{"}, None, "damaged"),
        ({"gate": "perhaps"}, None, "damaged .*'perhaps'"),
        (
            {},
            lambda state: {k: v for k, v in state.items() if k != "head.logit.bias"},
            "logit.bias",
        ),
        ({}, lambda state: state | {"more": torch.zeros(1)}, "more"),
        ({}, lambda state: state | {"head.logit.bias": torch.zeros(2)}, "logit.bias"),
    ],
)
def test_a_damaged_file_is_named(small, tmp_path, metadata, tensors, pattern):
    path = tmp_path / "small.safetensors"
    small.save(path)
    rewritten(path, metadata, tensors or (lambda state: state))
    with pytest.raises(InputError, match=rf"(?s)small.safetensors is .*{pattern}"):
        Released.load(path)


def test_a_file_cut_short_or_missing_is_named(small, tmp_path):
    path = tmp_path / "small.safetensors"
    with pytest.raises(InputError, match=r"small.safetensors does not exist"):
        Released.load(path)
    small.save(path)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(InputError, match=r"small.safetensors is no readable model file"):
        Released.load(path)


def test_what_cannot_be_released_leaves_the_old_file(small, tmp_path, monkeypatch):
    path = tmp_path / "small.safetensors"
    small.save(path)
    before = path.read_bytes()
    monkeypatch.setattr(released, "MAX_BYTES", 1000)
    with pytest.raises(InputError, match=r"would have .* MB"):
        small.save(path)
    monkeypatch.undo()
    with torch.no_grad():
        small.model.head.logit.bias.fill_(1e6)
    with pytest.raises(InputError, match=r"head.logit.bias .* beyond float16"):
        replace(small, name="large").save(path)
    assert path.read_bytes() == before


def test_a_model_is_found_by_name_or_as_the_only_one(tmp_path):
    with pytest.raises(InputError, match="no released model"):
        released.find(tmp_path, None)
    (tmp_path / "a.safetensors").touch()
    assert released.find(tmp_path, None) == released.find(tmp_path, "a")
    (tmp_path / "b.safetensors").touch()
    for name in (None, "c"):
        with pytest.raises(InputError, match="a, b"):
            released.find(tmp_path, name)
