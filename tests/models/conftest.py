"""What tests of weights share."""

from __future__ import annotations

import socket

import pytest
import torch


@pytest.fixture
def offline(tmp_path, monkeypatch) -> None:
    """Empty caches, and no way out: a test that would download fails."""

    def refuse(*args, **how):
        raise OSError("no internet in this test")

    for name in ("TORCH_HOME", "HF_HOME"):
        monkeypatch.setenv(name, str(tmp_path / name))
    monkeypatch.delenv("HF_HUB_CACHE", raising=False)
    monkeypatch.setattr(torch.hub, "download_url_to_file", refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)
