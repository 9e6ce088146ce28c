"""The real Kaggle CLI against a server on loopback: what it sends of what was built here."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from kernel_build import bundle, check, metadata, names, offline

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        importlib.util.find_spec("kaggle") is None, reason="the Kaggle CLI is not installed"
    ),
]


class Kaggle(BaseHTTPRequestHandler):
    """Takes what the CLI sends, keeps it in `server.got`, and answers as Kaggle does."""

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        method = self.path.rpartition("/")[2]
        self.server.got.append((method, json.loads(body)))
        status, answer = self.answer(method)
        self.reply(status, json.dumps(answer).encode())

    def do_PUT(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.got.append(("upload", body))
        self.reply(200, b"")

    def answer(self, method: str) -> tuple[int, dict]:
        if method == "SaveKernel":
            return 200, {"ref": "me/x", "url": "http://localhost/me/x", "versionNumber": 1}
        if method == "GetDatasetStatus":
            return 404, {"code": 404, "message": "not there"}
        if method == "StartBlobUpload":
            number = sum(name == "StartBlobUpload" for name, _ in self.server.got)
            token = f"token-{number}"
            return 200, {"token": token, "createUrl": f"http://localhost/upload/{token}"}
        return 200, {"ref": "me/x", "url": "http://localhost/me/x", "status": "ok", "error": ""}

    def reply(self, status: int, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[ThreadingHTTPServer]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Kaggle) as server:
        server.got = []
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture
def kaggle(server: ThreadingHTTPServer, tmp_path: Path) -> Callable:
    """Runs the CLI; every address goes to the server, and what is encrypted goes nowhere."""
    env = {k: v for k, v in os.environ.items() if not k.upper().startswith("KAGGLE_")}
    env |= {
        "HOME": str(tmp_path / "home"),
        "KAGGLE_CONFIG_DIR": str(tmp_path / "home" / "kaggle"),
        "KAGGLE_API_ENVIRONMENT": "LOCALHOST",
        "KAGGLE_USERNAME": "me",
        "KAGGLE_KEY": "made-up",
        "http_proxy": f"http://127.0.0.1:{server.server_port}",
        "HTTPS_PROXY": "http://127.0.0.1:9",
        "no_proxy": "",
        "NO_PROXY": "",
    }

    def run(*arguments: str, cwd: Path = tmp_path) -> str:
        command = [sys.executable, "-m", "kaggle", *arguments]
        done = subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    return run


@pytest.mark.parametrize("kind", metadata.KINDS)
def test_a_built_kernel_arrives_as_it_was_built(
    project_root: Path, tmp_path: Path, server: ThreadingHTTPServer, kaggle: Callable, kind: str
):
    given = (("EXPERIMENT", "deeplabv3plus_supervision_resnet_1024_v1"), ("FOLD", "0"))
    run = "deeplabv3plus_supervision_resnet_1024_v1_seed3456"
    slug = names.slug("train", kind, run, 0)
    kernel = bundle.build(
        project_root,
        "train",
        kind,
        given=given,
        owner="me",
        out=tmp_path / "build",
        slug=slug,
        sources=metadata.Sources("else/siim-png", ("me/weights",), ("me/train-earlier",)),
    )
    assert check.check([kernel.folder]) == {kernel.folder: []}
    said = kaggle("kernels", "push", "-p", str(kernel.folder))
    assert "Kernel version 1 successfully pushed" in said
    assert "title does not resolve" not in said
    ((method, sent),) = server.got
    assert method == "SaveKernel"
    assert sent["slug"] == f"me/{slug}"
    assert sent["newTitle"].lower().replace(" ", "-") == slug
    assert (sent["language"], sent["kernelType"]) == ("python", kind)
    assert sent["datasetDataSources"] == ["else/siim-png", "me/weights"]
    assert sent["kernelDataSources"] == ["me/train-earlier"]
    assert not sent.get("competitionDataSources")
    assert sent["enableGpu"] is True
    assert sent["isPrivate"] is True
    assert not sent.get("enableInternet", True)
    assert sent["machineShape"] == "NvidiaTeslaT4"
    assert len(sent["text"].encode()) == kernel.size_bytes < 1_000_000
    built = kernel.code_file.read_text(encoding="utf-8")
    if kind == "script":
        assert sent["text"] == built
    else:
        arrived, cells = json.loads(sent["text"])["cells"], json.loads(built)["cells"]
        assert [c["source"] for c in arrived] == ["".join(c["source"]) for c in cells]


def test_the_root_pushes_the_default_training_kernel(
    project: Path, server: ThreadingHTTPServer, kaggle: Callable
):
    bundle.build(project, "train", "notebook", owner="me")
    metadata.fill_owner(project, "me")
    assert check.check([project]) == {project: []}
    kaggle("kernels", "push", cwd=project)
    ((_, sent),) = server.got
    assert sent["slug"] == "me/pneumothorax-train"
    assert sent["competitionDataSources"] == ["siim-acr-pneumothorax-segmentation"]


def test_thresholds_arrive_without_a_gpu(
    project: Path, server: ThreadingHTTPServer, kaggle: Callable
):
    kernel = bundle.build(project, "thresholds", "script", owner="me")
    kaggle("kernels", "push", "-p", str(kernel.folder))
    ((_, sent),) = server.got
    assert not sent.get("enableGpu")
    assert not sent.get("machineShape")
    assert not sent.get("enableInternet", True)
    assert sent["kernelDataSources"] == ["me/pneumothorax-train-script"]


def test_a_data_set_arrives_whole(
    tmp_path: Path, make_wheel: Callable, server: ThreadingHTTPServer, kaggle: Callable
):
    cache, folder = tmp_path / "cache", tmp_path / "set"
    wheel = make_wheel(cache / "kaggle", "thing", "1.0", {"thing.py": "X = 1\n"})
    contents = offline.Contents(wheels=["thing==1.0"])
    offline.write(folder, contents, owner="me", slug="some-things", cache=cache)
    kaggle("datasets", "create", "-p", str(folder))
    uploads = {body for name, body in server.got if name == "upload"}
    expected = {wheel.read_bytes(), (folder / "offline-manifest.json").read_bytes()}
    assert uploads == expected
    name, sent = server.got[-1]
    assert name == "CreateDataset"
    assert (sent["ownerSlug"], sent["slug"], sent["title"]) == ("me", "some-things", "Some things")
    assert sent["licenseName"] == "other"
    assert len(sent["files"]) == 2
