"""push_all.py against a kaggle command that plays every answer, the lying ones too."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

# Answers are taken from plays.json, by verb and kernel, one a call and the last one for ever;
# without one a push succeeds and a status is complete. Each call is written down.
FAKE = f"""\
#!{sys.executable}
import json, os, sys
from pathlib import Path

here = Path(os.environ["FAKE_KAGGLE"])
verb = sys.argv[2]
slug = Path(sys.argv[4]).name if verb == "push" else sys.argv[3].partition("/")[2]
with (here / "calls.txt").open("a") as file:
    file.write(f"{{verb}} {{slug}}{{' --no-run' * ('--no-run' in sys.argv)}}\\n")
plays = json.loads((here / "plays.json").read_text())
lines = plays.get(f"{{verb}} {{slug}}", [])
done = "saved without running.  See" if "--no-run" in sys.argv else "pushed.  Please check at"
default = {{"push": f"Kernel version 1 successfully {{done}} https://x", "logs": "",
           "status": f'me/{{slug}} has status "KernelWorkerStatus.COMPLETE"'}}[verb]
answer = lines[0] if lines else [default, 0]
if len(lines) > 1:
    plays[f"{{verb}} {{slug}}"] = lines[1:]
    (here / "plays.json").write_text(json.dumps(plays))
text, status = answer
if text == "Ctrl-C":
    os.kill(os.getppid(), 2)
print(text, file=sys.stderr if status else sys.stdout)
sys.exit(status)
"""
RUNNING = ['me/x has status "KernelWorkerStatus.RUNNING"', 0]
QUEUED = ['me/x has status "queued"', 0]
COMPLETE = ['me/x has status "complete"', 0]
ERROR = ['me/x has status "error"\nFailure message: "ValueError"', 0]
PUSHED = ["Kernel version 1 successfully pushed", 0]
REFUSED = ["Kernel push error: Notebook not found", 0]
BUSY = ["Kernel push error: Maximum batch GPU session count of 2 reached.", 0]
SAVED = ["Kernel version 1 successfully saved without running.  See https://x", 0]
INVALID = [
    "The following are not valid kernel sources and could not be added to the kernel: ['me/a']\n"
    "Kernel version 1 successfully pushed.  Please check progress at https://x",
    0,
]
NETWORK = ["HTTPSConnectionPool(host='api'): Max retries exceeded", 1]
UNKNOWN = ["403 - Forbidden - Permission 'kernels.get' was denied", 1]
# Words of 2.2.5; test_push.py holds them against the command line itself, where it is installed.
NO_ACCESS = ["Cannot access kernel 'me/x' (Permission 'kernels.get' was denied). The most …", 1]
NO_PUSH = ["some words\n\nYou don't have access to this resource.\nIf this is a …", 1]
NOBODY = ["401 - Unauthorized", 1]
NO_LOGIN = ["Authentication required to call the Kaggle API.\n\n    kaggle auth login\n", 1]


class World:
    """A folder of four kernels, a and b before c (no GPU), c before d, and the fake command."""

    def __init__(self, folder: Path, script: Path) -> None:
        self.folder, self.fake = folder / "graph", folder / "fake"
        self.folder.mkdir()
        self.fake.mkdir()
        shutil.copy(script, self.folder)
        command = self.fake / "kaggle"
        command.write_text(FAKE)
        command.chmod(0o755)
        self.kernels({"a": (), "b": (), "c": ("a", "b"), "d": ("c",)}, cpu="c")
        self.play({})

    def kernels(self, sources: dict[str, tuple[str, ...]], cpu: str = "") -> None:
        listed = [
            {"slug": s, "id": f"me/{s}", "sources": list(before), "gpu": s not in cpu}
            for s, before in sources.items()
        ]
        (self.folder / "graph.json").write_text(json.dumps({"kernels": listed}))

    def play(self, plays: dict[str, list]) -> None:
        (self.fake / "plays.json").write_text(json.dumps(plays))

    def run(self, *options: str, **env: str) -> subprocess.CompletedProcess:
        env = os.environ | {"PATH": f"{self.fake}:{os.environ['PATH']}"} | env
        env["FAKE_KAGGLE"] = str(self.fake)
        command = [sys.executable, str(self.folder / "push_all.py"), "--poll", "0"]
        command += options
        # In a background job Ctrl-C is ignored, and children inherit that.
        before = signal.signal(signal.SIGINT, signal.default_int_handler)
        try:
            return subprocess.run(command, env=env, capture_output=True, text=True, timeout=120)
        finally:
            signal.signal(signal.SIGINT, before)

    @property
    def calls(self) -> list[str]:
        file = self.fake / "calls.txt"
        return file.read_text().splitlines() if file.is_file() else []

    @property
    def pushed(self) -> str:
        return "".join(call.removeprefix("push ") for call in self.calls if call[:4] == "push")

    @property
    def state(self) -> dict[str, str]:
        return json.loads((self.folder / "push_state.json").read_text())


@pytest.fixture
def world(tmp_path: Path, project_root: Path) -> World:
    return World(tmp_path, project_root / "kernel_build" / "push_all.py")


def test_each_is_pushed_after_what_it_takes_and_all_end_complete(world: World):
    world.play({"status a": [QUEUED, RUNNING, COMPLETE]})
    done = world.run()
    assert done.returncode == 0, done.stderr
    assert world.pushed == "abcd"
    of_a = [at for at, call in enumerate(world.calls) if call == "status a"]
    assert world.calls.index("push c") > of_a[2]
    assert set(world.state.values()) == {"complete"}
    assert "all 4 kernels are complete" in done.stdout
    before = len(world.calls)
    assert world.run().returncode == 0
    assert len(world.calls) == before, "nothing is asked again"


def test_no_more_than_two_gpu_sessions_and_any_number_of_others(world: World):
    world.kernels(dict.fromkeys("abcdef", ()), cpu="ef")
    world.play({"status a": [RUNNING] * 3 + [COMPLETE], "status b": [RUNNING] * 2 + [ERROR]})
    assert world.run().returncode == 1
    # a and b run, so c and d wait, but not e and f; b fails, and nothing else begins.
    assert world.pushed == "abef"


def test_a_slot_that_is_free_is_taken(world: World):
    world.kernels(dict.fromkeys("abc", ()))
    world.play({"status a": [RUNNING, RUNNING, COMPLETE], "status b": [COMPLETE]})
    assert world.run().returncode == 0
    push_c, complete_a = world.calls.index("push c"), len(world.calls) - 1
    assert push_c < complete_a
    assert world.calls[:push_c].count("status a") == 1


@pytest.mark.parametrize(
    ("plays", "status", "words", "pushed", "after"),
    [
        # Refused with status 0, and again with a report of success.
        ({"push c": [REFUSED]}, 1, "stopped: c: Kernel push error: Notebook", "abc", "cd"),
        ({"push c": [INVALID]}, 1, "sources were refused, cancel the run on Kaggle", "abc", "cd"),
        ({"push c": [SAVED]}, 1, "stopped: c: only saved, it does not run", "abc", "cd"),
        ({"push a": [NO_PUSH]}, 1, "You don't have access", "a", "abcd"),
        ({"push a": [NOBODY]}, 1, "kaggle auth login: 401", "a", "abcd"),
        ({"push a": [NO_LOGIN]}, 1, "kaggle auth login: Authentication", "a", "abcd"),
        ({"status a": [ERROR]}, 1, "a is error on Kaggle: me/x has", "ab", "acd"),
        ({"status a": [ERROR]}, 1, "ValueError", "ab", "acd"),
        ({"status a": [NETWORK]}, 1, "no clear answer (10 of 10)", "ab", "cd"),
        # A login that ends while a kernel runs pushes it no second time.
        ({"status a": [NO_ACCESS]}, 1, "a was pushed, and Kaggle shows this login", "ab", "cd"),
        ({"status a": [["Ctrl-C", 0], COMPLETE]}, 130, "stopped; ", "ab", "cd"),
        ({"status a": [NETWORK, NETWORK, COMPLETE]}, 0, "", "abcd", ""),
        ({"push d": [NETWORK, NETWORK, PUSHED], "status d": [UNKNOWN, UNKNOWN, COMPLETE]}, 0, "",
         "abcddd", ""),
        # A push that arrived although its answer was lost.
        ({"push a": [NETWORK], "status a": [RUNNING, COMPLETE]}, 0, "", "abcd", ""),
        # Sessions of somebody else are waited for, longer than for the network.
        ({"push a": [BUSY] * 15 + [PUSHED]}, 0, "", 15 * "a" + "abcd", ""),
        ({"push a": [["Kernel version 401 successfully pushed.", 0]]}, 0, "", "abcd", ""),
        ({"push a": [["Kernel version successfully pushed.  See x", 0]]}, 0, "", "abcd", ""),
    ],
)  # fmt: skip
def test_an_answer_ends_it_or_not_and_a_new_start_goes_on_from_there(
    world: World, plays: dict, status: int, words: str, pushed: str, after: str
):
    world.play(plays)
    done = world.run()
    assert done.returncode == status, done.stderr
    assert words in done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    assert world.pushed == pushed
    world.play({})
    assert world.run().returncode == 0
    assert world.pushed == pushed + after


@pytest.mark.parametrize(
    ("answer", "pushes"), [(RUNNING, 0), (UNKNOWN, 1), (NO_ACCESS, 1), (ERROR, 1)]
)
def test_killed_while_pushing_it_asks_kaggle_whether_that_arrived(
    world: World, answer: list, pushes: int
):
    (world.folder / "push_state.json").write_text('{"a": "pushing"}')
    world.play({"status a": [answer, COMPLETE]})
    done = world.run()
    assert done.returncode == 0
    assert "no clear answer" not in done.stdout
    assert world.pushed.count("a") == pushes


def test_without_the_command_line_it_says_how_to_get_it(world: World):
    (world.fake / "kaggle").unlink()
    done = world.run(PATH=str(world.fake))
    assert done.returncode == 1
    assert "pip install kaggle" in done.stderr


def test_a_failed_kernel_s_last_lines_are_shown(world: World):
    """The log is a JSON list of pieces, which need not end with their lines."""
    texts = [
        *(f"line {i}\n" for i in range(30)),
        "half ",
        "a line\n",
        "\x1b[0;31mValueError\x1b[0m: x",
    ]
    pieces = [{"stream_name": "stderr", "time": 1.5, "data": text} for text in texts]
    world.play({"status a": [ERROR], "logs a": [["Warning: [old]\n" + json.dumps(pieces), 0]]})
    done = world.run()
    assert done.returncode == 1
    assert done.stderr.splitlines()[-22:] == [
        "its log, the last 20 of 32 lines:", *(f"  line {i}" for i in range(12, 30)),
        "  half a line", "  ValueError: x", "fix it and start this again",
    ]  # fmt: skip
    assert world.calls[-1] == "logs a"


@pytest.mark.parametrize(
    ("log", "words"),
    [
        (["", 0], "its log is empty"),
        (["[]", 0], "its log is empty"),
        (["[app] plain text\nand more", 0], "its log, all:\n  [app] plain text\n  and more\n"),
        (["[1]\n[{", 0], "its log, all:\n  [1]\n  [{\n"),
        (NETWORK, "its log could not be read: HTTPSConnectionPool"),
        (NO_LOGIN, "its log could not be read: the kaggle command line is not logged in"),
        (["usage: kaggle kernels\nkaggle kernels: error: invalid choice: 'logs'", 2],
         "invalid choice: 'logs'; pip install -U kaggle"),
    ],
)  # fmt: skip
def test_without_a_log_the_failure_is_reported_all_the_same(world: World, log: list, words: str):
    world.play({"status a": [ERROR], "logs a": [log]})
    done = world.run()
    assert done.returncode == 1
    assert "stopped: a is error on Kaggle: me/x has" in done.stderr
    assert words in done.stderr
    assert world.state["a"] == "failed"


def test_no_run_saves_what_has_not_run_and_waits_for_nothing(world: World):
    (world.folder / "push_state.json").write_text('{"a": "complete", "b": "failed"}')
    done = world.run("--no-run")
    assert done.returncode == 0, done.stderr
    assert world.calls == ["push b --no-run", "push c --no-run", "push d --no-run"]
    assert "a: complete, left as it is" in done.stdout
    assert world.state == {"a": "complete", "b": "failed"}
    assert world.run().returncode == 0
    assert world.pushed.endswith("bcd"), "saved kernels are still to be run"


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (PUSHED, "stopped: a: pushed, and it runs on Kaggle"),
        (REFUSED, "stopped: a: Kernel push error: Notebook not found"),
        (INVALID, "stopped: a: sources were refused: The following"),
        (BUSY, "stopped: a: Kaggle counts it as a session"),
        (NETWORK, "stopped: a: HTTPSConnectionPool"),
        (NO_LOGIN, "not logged in"),
        (["usage: kaggle\nkaggle: error: unrecognized arguments: --no-run", 2],
         "a: this kaggle has no --no-run, which 2.2.5 has: pip install -U kaggle"),
    ],
)  # fmt: skip
def test_a_save_that_fails_is_an_error(world: World, answer: list, words: str):
    world.play({"push a": [answer]})
    done = world.run("--no-run")
    assert done.returncode == 1
    assert words in done.stderr
    assert world.calls == ["push a --no-run"]
