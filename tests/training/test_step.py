"""The compiled step trains the same network, under the same names."""

from __future__ import annotations

import pytest
import torch

from kernel_lib import checkpoints
from kernel_lib.training import step
from tests.training.test_loop import (
    StepsClock,
    assert_same,
    tiny,
    training,
    weights_of,
    without_times,
)


@pytest.fixture(autouse=True)
def _without_a_compiler(monkeypatch):
    """Trace the network as for any backend, and run it as it is: no C++ compiler is needed."""
    monkeypatch.setattr(step, "COMPILER", "aot_eager")
    yield
    torch.compiler.reset()


@pytest.mark.slow
def test_a_compiled_training_stops_resumes_and_ends_with_the_same_bits(tmp_path):
    """Of batches of 2 and a last one of 1, so that more than one graph is made."""
    experiment = tiny(batch_size=2, accumulate=1, epochs=3)
    assert training(tmp_path / "complete", experiment, compile=True).run()
    parts = training(tmp_path / "parts", experiment, StepsClock(5), compile=True)
    assert not parts.run()
    assert training(tmp_path / "parts", experiment, compile=True).run()
    assert_same(weights_of(tmp_path / "complete"), weights_of(tmp_path / "parts"))
    assert without_times(tmp_path / "complete") == without_times(tmp_path / "parts")


def test_compilation_is_used_and_changes_no_name_in_a_checkpoint(tmp_path):
    plain = training(tmp_path / "plain")
    compiled = training(tmp_path / "compiled", compile=True)
    assert compiled.model._compiled_call_impl is not None
    assert plain.model._compiled_call_impl is None
    assert compiled.ema.model._compiled_call_impl is None, "validation runs it as it is"
    compiled._save()
    state, _ = checkpoints.load(compiled.job.folder.last)
    assert state["model"].keys() == plain.model.state_dict().keys()
    # What began compiled goes on without, and the other way round.
    resumed = training(tmp_path / "compiled")
    assert resumed.run()
