"""What tests of whole stages share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch


@pytest.fixture(scope="module")
def apart(tmp_path_factory) -> Iterator[None]:
    """No mounts, and threads as before."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("KERNEL_LIB_MOUNTS", str(tmp_path_factory.mktemp("mounts")))
        before = torch.get_num_threads()
        yield
        torch.set_num_threads(before)
