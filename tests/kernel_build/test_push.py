"""The real Kaggle CLI against a server on loopback: what it sends, and how its answers are read."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from kernel_build import account, bundle, check, metadata, names, offline

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        importlib.util.find_spec("kaggle") is None, reason="the Kaggle CLI is not installed"
    ),
]


PUSHED = (200, {"ref": "me/x", "url": "http://localhost/me/x", "versionNumber": 1})
COMPLETE = (200, {"status": "COMPLETE"})


class Kaggle(BaseHTTPRequestHandler):
    """Takes what the CLI sends, keeps it in `server.got`, and answers as Kaggle does.

    Where `server.plays` has answers for a method, they are given one a call, the last one for ever.
    """

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
        if plays := self.server.plays.get(method):
            return plays.pop(0) if len(plays) > 1 else plays[0]
        if method == "SaveKernel":
            return PUSHED
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
        server.got, server.plays = [], {}
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture
def environ(server: ThreadingHTTPServer, tmp_path: Path) -> dict[str, str]:
    """Of the CLI: every address goes to the server, and what is encrypted goes nowhere."""
    env = {k: v for k, v in os.environ.items() if not k.upper().startswith("KAGGLE_")}
    return env | {
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


@pytest.fixture
def kaggle(environ: dict[str, str], tmp_path: Path) -> Callable:
    """Runs the CLI and returns what it prints."""

    def run(*arguments: str, cwd: Path = tmp_path) -> str:
        command = [sys.executable, "-m", "kaggle", *arguments]
        done = subprocess.run(command, cwd=cwd, env=environ, capture_output=True, text=True)
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
    sources = metadata.Sources(
        "else/siim-png", ("me/weights",), ("me/train-earlier",), ("me/nets/pyTorch/x.1/2",)
    )
    kernel = bundle.build(
        project_root, "train", kind, given=given, owner="me", out=tmp_path / "build", slug=slug,
        inputs=bundle.Inputs(sources),
    )  # fmt: skip
    assert check.check([kernel.folder]) == {kernel.folder: []}
    printed = kaggle("kernels", "push", "-p", str(kernel.folder))
    assert "Kernel version 1 successfully pushed" in printed
    assert "title does not resolve" not in printed
    ((method, sent),) = server.got
    assert method == "SaveKernel"
    expected = {
        "slug": f"me/{slug}", "language": "python", "kernelType": kind,
        "datasetDataSources": ["else/siim-png", "me/weights"],
        "kernelDataSources": ["me/train-earlier"], "modelDataSources": ["me/nets/pyTorch/x.1/2"],
        "enableGpu": True, "isPrivate": True, "machineShape": "NvidiaTeslaT4",
    }  # fmt: skip
    assert sent | expected == sent
    assert sent["newTitle"].lower().replace(" ", "-") == slug
    assert not sent.get("competitionDataSources")
    assert not sent.get("enableInternet", True)
    assert len(sent["text"].encode()) == kernel.size_bytes < 1_000_000
    built = kernel.code_file.read_text(encoding="utf-8")
    if kind == "script":
        assert sent["text"] == built
    else:
        arrived, cells = json.loads(sent["text"])["cells"], json.loads(built)["cells"]
        assert [c["source"] for c in arrived] == ["".join(c["source"]) for c in cells]


def test_the_root_pushes_the_default_training_kernel(project: Path, server, kaggle: Callable):
    cell = '# %% [markdown]\n# # Title\n\n# %% tags=["parameters"]\nWEIGHTS: str = "none"\n'
    (project / "notebooks" / "train.py").write_text(cell)
    bundle.build(project, "train", "notebook", owner="me")
    metadata.fill_owner(project, "me")
    assert check.check([project]) == {project: []}
    kaggle("kernels", "push", cwd=project)
    ((_, sent),) = server.got
    assert sent["slug"] == "me/pneumothorax-train"
    assert sent["competitionDataSources"] == ["siim-acr-pneumothorax-segmentation"]


def test_thresholds_arrive_without_a_gpu(project: Path, server, kaggle: Callable):
    kernel = bundle.build(project, "thresholds", "script", owner="me")
    kaggle("kernels", "push", "-p", str(kernel.folder))
    ((_, sent),) = server.got
    assert (sent.get("enableGpu", False), sent.get("machineShape", "")) == (False, "")
    assert not sent.get("enableInternet", True)
    assert sent["kernelDataSources"] == ["me/pneumothorax-train-script"]


def test_a_data_set_arrives_complete(
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


@pytest.fixture
def graph(tmp_path: Path, project_root: Path) -> Path:
    """A folder of two kernels, the second after the first, and the script that pushes them."""
    folder = tmp_path / "graph"
    kernels = {"kernel-a": [], "kernel-b": ["kernel-a"]}
    for slug in kernels:
        (folder / slug).mkdir(parents=True)
        (folder / slug / "code.py").write_text("")
        meta = {"id": f"me/{slug}", "title": slug, "code_file": "code.py", "language": "python"}
        text = json.dumps(meta | {"kernel_type": "script"})
        (folder / slug / "kernel-metadata.json").write_text(text)
    listed = [
        {"slug": slug, "id": f"me/{slug}", "sources": sources, "gpu": True}
        for slug, sources in kernels.items()
    ]
    (folder / "graph.json").write_text(json.dumps({"kernels": listed}))
    shutil.copy(project_root / "kernel_build" / "push_all.py", folder)
    return folder


def test_a_missing_boolean_is_sent_as_the_check_says(
    graph: Path, server: ThreadingHTTPServer, kaggle: Callable
):
    kaggle("kernels", "push", "-p", str(graph / "kernel-a"))
    ((_, sent),) = server.got
    names = {key: key.split("_")[0] + key.split("_")[1].title() for key in metadata.BOOLEANS}
    assert {key: sent[name] for key, name in names.items()} == metadata.BOOLEANS


def push_all(folder: Path, environ: dict[str, str], *options: str) -> subprocess.CompletedProcess:
    command = [sys.executable, str(folder / "push_all.py"), "--poll", "0", *options]
    command += ["--kaggle", f"{sys.executable} -m kaggle"]
    return subprocess.run(command, env=environ, capture_output=True, text=True, timeout=300)


def test_push_all_reads_what_the_command_line_says(
    graph: Path, environ: dict[str, str], server: ThreadingHTTPServer
):
    (graph / "push_state.json").write_text('{"kernel-a": "pushing"}')
    busy = (200, {"error": "Maximum batch GPU session count of 2 reached."})
    running = [(200, {"status": status}) for status in ("QUEUED", "NEW_SCRIPT", "RUNNING")]
    server.plays = {
        "SaveKernel": [busy, (500, {"message": "down"}), PUSHED],
        # Not there, so it is pushed; not there after a push without an answer, so again.
        "GetKernelSessionStatus": [(403, {}), (404, {}), *running, COMPLETE],
    }
    done = push_all(graph, environ)
    assert done.returncode == 0, done.stdout + done.stderr
    assert [method for method, _ in server.got].count("SaveKernel") == 4
    assert done.stdout.count("no clear answer") == 1
    assert "all 2 kernels are complete" in done.stdout


@pytest.mark.parametrize(
    ("method", "answer", "words"),
    [
        ("SaveKernel", (200, {"error": "Notebook not found"}), "push error: Notebook not found"),
        ("SaveKernel", (401, {}), "not logged in"),
        ("SaveKernel", (403, {}), "403 Client Error|You don't have access"),
        ("SaveKernel", (200, PUSHED[1] | {"invalidKernelSources": ["me/x"]}), "sources were"),
        ("GetKernelSessionStatus", (200, {"status": "CANCEL_ACKNOWLEDGED"}), "cancel_acknowledged"),
        ("GetKernelSessionStatus", (200, {"status": "ERROR", "failureMessage": "out of memory"}),
         'Failure message: "out of memory"'),
    ],
)  # fmt: skip
def test_push_all_stops_at_what_the_command_line_reports(
    graph: Path, environ: dict[str, str], server, method: str, answer: tuple[int, dict], words: str
):
    server.plays = {method: [answer]}
    done = push_all(graph, environ)
    assert done.returncode == 1
    assert re.search(words, done.stderr)
    assert [name for name, _ in server.got].count("SaveKernel") == 1


def test_push_all_shows_the_log_as_the_command_line_prints_it(
    graph: Path, environ: dict[str, str], server: ThreadingHTTPServer
):
    pieces = [{"stream_name": "stdout", "time": 1.0, "data": f"line {i}\n"} for i in range(30)]
    server.plays = {
        "GetKernelSessionStatus": [(200, {"status": "ERROR"})],
        "ListKernelSessionOutput": [(200, {"log": json.dumps(pieces)})],
    }
    done = push_all(graph, environ)
    assert done.returncode == 1
    assert "its log, the last 20 of 30 lines:\n  line 10\n" in done.stderr
    assert "  line 29\nfix it and start this again" in done.stderr


def test_push_all_saves_without_running(graph: Path, environ: dict[str, str], server):
    done = push_all(graph, environ, "--no-run")
    assert done.returncode == 0, done.stdout + done.stderr
    sent = [(method, body["slug"], body["kernelExecutionType"]) for method, body in server.got]
    assert sent == [("SaveKernel", f"me/kernel-{name}", "QUICK_SAVE") for name in "ab"]


@pytest.fixture
def own_kaggle(tmp_path: Path, environ: dict[str, str], monkeypatch) -> None:
    """Let this process find a `kaggle` that is the command line, with the server as Kaggle."""
    command = tmp_path / "bin" / "kaggle"
    command.parent.mkdir()
    command.write_text(f"#!{sys.executable}\nfrom kaggle.cli import main\nmain()\n")
    command.chmod(0o755)
    for name in os.environ:
        if name.upper().startswith("KAGGLE_"):
            monkeypatch.delenv(name)
    for name, value in (environ | {"PATH": str(command.parent)}).items():
        monkeypatch.setenv(name, value)


def test_the_quota_is_read_as_the_command_line_prints_it(own_kaggle, server):
    """Durations are seconds of protobuf's JSON form."""
    hours = {"timeUsed": "11520s", "totalTimeAllowed": "108000s"}
    answer = {"quotaRefreshTime": "2026-11-28T00:00:00Z", "gpuQuota": hours}
    server.plays = {"GetAcceleratorQuotaStatistics": [(200, answer)]}
    week = account.week()
    assert (week.left, week.total) == (26.8, 30)
    assert week.ends == datetime(2026, 11, 28, tzinfo=UTC)
    server.plays = {"GetAcceleratorQuotaStatistics": [(200, {})]}
    assert "No quota information available" in account.week().line


def test_without_a_login_the_quota_is_assumed(own_kaggle, monkeypatch):
    monkeypatch.delenv("KAGGLE_KEY")
    week = account.week()
    assert (week.left, week.total) == (30, 30)
    assert "kaggle auth login" in week.line
