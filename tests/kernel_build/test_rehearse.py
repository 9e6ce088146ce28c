"""A rehearsal reports every rule that a kernel breaks, and passes one that breaks none."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from textwrap import dedent

import pytest
from click.testing import CliRunner
from nbformat import v4

from kernel_build import bundle, metadata, rehearse
from kernel_build.rehearsal import checks, sandbox, watch
from kernel_lib.errors import InputError
from kernel_lib.kaggle import quota
from kernel_lib.stages.table import STAGES

COMPETITION = "siim-acr-pneumothorax-segmentation"
LEVELS = [
    pytest.param(level, marks=pytest.mark.skipif(not works, reason=f"{level} is not possible here"))
    for level, works in (
        ("bwrap", sandbox.best_level() == "bwrap"),
        ("unshare", sandbox.works("unshare")),
        ("python", True),
    )
]


def kernel(folder: Path, code: str, **changes) -> Path:
    """A built kernel's folder with this code: a script, or a notebook of one cell for `.ipynb`."""
    built = folder / "build" / "a-kernel"
    built.mkdir(parents=True)
    meta = {
        "id": "me/a-kernel", "title": "A kernel", "code_file": "a-kernel.py", "language": "python",
        "kernel_type": "script", "is_private": True, "enable_gpu": False, "enable_tpu": False,
        "enable_internet": False, "dataset_sources": [], "competition_sources": [COMPETITION],
        "kernel_sources": [], "model_sources": [],
    } | changes  # fmt: skip
    code = dedent(code)
    if meta["code_file"].endswith(".ipynb"):
        spec = {"display_name": "Python 3", "language": "python", "name": "python3"}
        notebook = v4.new_notebook(cells=[v4.new_code_cell(code)], metadata={"kernelspec": spec})
        code = json.dumps(notebook)
    (built / meta["code_file"]).write_text(code)
    (built / metadata.FILE).write_text(json.dumps(meta))
    return built


@pytest.fixture
def data(tmp_path: Path) -> Path:
    folder = tmp_path / "data"
    folder.mkdir()
    (folder / "train-rle.csv").write_text("ImageId, EncodedPixels\n")
    return folder


def run(folder: Path, code: str, data: Path, seconds: float = 60, **how) -> dict[str, checks.Check]:
    level = how.pop("level", None)
    built = kernel(folder, code, **how)
    done = rehearse.run(built, folder / "out", data=data, seconds=seconds, level=level)
    return {check.name: check for check in done.checks}


def failed(results: dict[str, checks.Check]) -> set[str]:
    return {name for name, check in results.items() if not check.passed}


GOOD = dedent(f"""\
    import os
    from pathlib import Path

    data = Path(os.environ.get("KERNEL_LIB_MOUNTS", "/kaggle/input")) / "competitions/{COMPETITION}"
    assert (data / "train-rle.csv").read_text().startswith("ImageId")
    assert os.environ["KAGGLE_KERNEL_RUN_TYPE"] == "Batch"
    assert list(Path(".").iterdir()) in ([], [Path("__notebook__.ipynb")])
    Path("result.csv").write_text("written")
    """)


def good(more: str) -> str:
    """The code that keeps every rule, and more after it."""
    return GOOD + dedent(more)


@pytest.mark.parametrize("level", LEVELS)
def test_a_kernel_that_keeps_every_rule_passes(tmp_path: Path, data: Path, level: str):
    results = run(tmp_path, GOOD, data, level=level)
    assert failed(results) == set(), [str(c) for c in results.values()]
    assert (tmp_path / "out" / "working" / "result.csv").read_text() == "written"
    assert len(results) == 10


@pytest.mark.skipif(sandbox.best_level() != "bwrap", reason="bubblewrap is not possible here")
def test_with_bubblewrap_the_paths_are_kaggle_s(tmp_path: Path, data: Path, project_root: Path):
    code = f"""\
        from pathlib import Path

        assert Path.cwd() == Path("/kaggle/working")
        assert list(Path("/kaggle/input").rglob("*.csv"))[0].parts[3:5] == (
            "competitions", "{COMPETITION}")
        assert not Path("{project_root}/kernel_lib").exists()
        assert not Path("{tmp_path}").exists()
        Path("result.csv").write_text("written")
        """
    assert failed(run(tmp_path, code, data)) == set()


def test_a_write_that_python_does_not_see_is_found_afterwards(tmp_path: Path, data: Path):
    code = good("import subprocess\nsubprocess.run(['touch', str(data / 'new.csv')])")
    assert failed(run(tmp_path, code, data, level="python")) == {"inputs"}


@pytest.mark.parametrize("level", [level for level in LEVELS if level.values[0] != "python"])
def test_nothing_of_this_machine_s_network_can_be_reached(tmp_path: Path, data: Path, level: str):
    """Loopback is the namespace's own: what listens on this machine is not there."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = ("127.0.0.1", server.getsockname()[1])
        code = good(f"import socket\nsocket.create_connection({address}, timeout=5)")
        results = run(tmp_path, code, data, level=level)
        server.settimeout(0)
        with pytest.raises(BlockingIOError):
            server.accept()
    assert failed(results) == {"exit status", "log"}
    assert "ConnectionRefusedError" in results["log"].text


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize(
    ("code", "rule", "words"),
    [
        ('(data / "new.csv").write_text("x")', "inputs", "new.csv"),
        # The name is looked up first, which Python refuses before the system is asked.
        ('import urllib.request as r\n    r.urlopen("http://weights.invalid/x.pth", timeout=5)',
         "network", "tried to call weights.invalid"),
    ],
)  # fmt: skip
def test_what_is_refused_is_reported_even_where_the_kernel_hides_it(
    tmp_path: Path, data: Path, level: str, code: str, rule: str, words: str
):
    results = run(
        tmp_path, good(f"try:\n    {code}\nexcept OSError:\n    pass\n"), data, level=level
    )
    assert failed(results) == {rule}
    assert words in results[rule].text
    assert (data / "new.csv").exists() is (rule == "inputs" and level != "bwrap")


@pytest.mark.parametrize("level", LEVELS)
def test_the_project_cannot_be_used(tmp_path: Path, data: Path, level: str, project_root: Path):
    code = f'import sys\nsys.path.insert(0, "{project_root}")\nimport kernel_build.metadata\n'
    results = run(tmp_path, good(code), data, level=level)
    if level == "bwrap":
        assert failed(results) == {"exit status", "log"}
        assert "ModuleNotFoundError" in results["log"].text
    else:
        assert failed(results) == {"project"}


BROKEN = {
    "a status": ("raise SystemExit(3)", {"exit status"}, "3"),
    "an error": ("1 / 0", {"exit status", "log"}, "ZeroDivisionError: division by zero"),
    "a traceback and status 0": (
        "import traceback\ntry:\n    1 / 0\nexcept ZeroDivisionError:\n    traceback.print_exc()",
        {"log"},
        "a traceback at line 1: ZeroDivisionError",
    ),
    "litter": ('Path(".cache").mkdir()\nPath(".cache/x").write_text("")', {"litter"}, ".cache/x"),
    "a part of a file": ('Path("a.csv.part").write_text("")', {"litter"}, "a.csv.part"),
    "20 GB and a byte": (
        'with open("big.bin", "wb") as f:\n    f.truncate(20 * 10**9)',
        {"size"},
        "20.000 of 20 GB",
    ),
    "no end": ("import time\ntime.sleep(600)", {"exit status", "time"}, "stopped it"),
    "no output": ('Path("result.csv").unlink()', {"outputs"}, "0 files"),
}


@pytest.mark.parametrize("rule", BROKEN)
def test_each_rule_that_is_broken_is_one_failure(tmp_path: Path, data: Path, rule: str):
    code, expected, words = BROKEN[rule]
    results = run(tmp_path, good(code), data, seconds=2 if rule == "no end" else 60)
    assert failed(results) == expected, [str(c) for c in results.values()]
    assert any(words in results[name].text for name in expected)


def test_what_the_kernel_left_running_ends_with_it(tmp_path: Path, data: Path):
    """A session ends with all of its processes, and so does a rehearsal at the time limit."""
    code = good(
        """\
    import subprocess, sys, time
    child = "import sys, time; open('alive', 'w').write('x'); time.sleep(600)"
    process = subprocess.Popen([sys.executable, "-c", child])
    while not Path("alive").exists():
        time.sleep(0.01)
    Path("pid.csv").write_text(str(process.pid))
    """
    )
    run(tmp_path, code, data, level="python")
    pid = int((tmp_path / "out" / "working" / "pid.csv").read_text())
    status = Path(f"/proc/{pid}/stat")
    assert not status.exists() or ") Z " in status.read_text()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"enable_internet": True}, "enable_internet is not false"),
        ({"title": "Another"}, "becomes 'another'"),
    ],
)
def test_metadata_that_would_fail_on_kaggle_fail(tmp_path: Path, changes, words):
    built = kernel(tmp_path, "", **changes)
    meta, code_file = rehearse.read_kernel(built)
    check = checks.of_metadata(meta, built / code_file)
    assert not check.passed
    assert words in check.text


def test_code_of_a_megabyte_fails(tmp_path: Path):
    built = kernel(tmp_path, "#" * 999_999)
    meta, code_file = rehearse.read_kernel(built)
    assert checks.of_metadata(meta, built / code_file).passed
    (built / code_file).write_text("#" * 1_000_000)
    assert "refuses 1,000,000" in checks.of_metadata(meta, built / code_file).text


NOTEBOOK = {"code_file": "a-kernel.ipynb", "kernel_type": "notebook"}


def test_a_notebook_counts_as_it_is_sent(tmp_path: Path):
    """Every ü is six bytes in the JSON that is pushed."""
    built = kernel(tmp_path, "#" + "ü" * 160_000, **NOTEBOOK)
    meta, code_file = rehearse.read_kernel(built)
    file = built / code_file
    file.write_text(json.dumps(json.loads(file.read_text()), ensure_ascii=False))
    assert file.stat().st_size < 330_000
    assert checks.of_metadata(meta, file).text.startswith("valid; 960,")


@pytest.mark.parametrize("level", LEVELS[:1])
def test_a_notebook_is_run_in_place_and_its_page_is_made(tmp_path: Path, data: Path, level: str):
    results = run(tmp_path, GOOD, data, level=level, **NOTEBOOK)
    assert failed(results) == set(), [str(c) for c in results.values()]
    left = sorted(path.name for path in (tmp_path / "out" / "working").iterdir())
    assert left == ["__notebook__.ipynb", "__results__.html", "result.csv"]


@pytest.mark.slow
def test_a_notebook_s_failing_cell_fails_it(tmp_path: Path, data: Path):
    results = run(tmp_path, good("1 / 0"), data, **NOTEBOOK)
    assert failed(results) == {"exit status", "log"}
    assert "ZeroDivisionError" in results["log"].text


def test_an_error_among_a_notebook_s_outputs_is_found_without_a_traceback_in_the_log(
    tmp_path: Path,
):
    cell = {"cell_type": "code", "outputs": [{"output_type": "error", "ename": "KeyError"}]}
    notebook = tmp_path / "n.ipynb"
    notebook.write_text(json.dumps({"cells": [{"cell_type": "markdown"}, cell]}))
    assert checks.of_log("fine", notebook).text == "cell 2 of the notebook: KeyError"


FOLD = "runs/a/fold0"
BEGUN = ["folds.csv", f"{FOLD}/config.json", f"{FOLD}/log.jsonl", f"{FOLD}/last.pt"]


@pytest.mark.parametrize(
    ("stage", "files", "log", "words"),
    [
        ("train", BEGUN, "done", f"FAIL  outputs      {FOLD} has no oof.zip"),
        (
            "train",
            BEGUN,
            "saved; run the same command again to go on",
            f"pass  outputs      {FOLD}",
        ),
        ("train", [*BEGUN, f"{FOLD}/oof.zip"], "", "pass  outputs"),
        ("thresholds", ["ensembles/a/members.json"], "", "ensembles/*/thresholds.json"),
        (None, ["__results__.html"], "", "FAIL  outputs      0 files"),
    ],
)
def test_outputs_are_those_of_the_stage(stage: str | None, files: list, log: str, words: str):
    assert words in str(checks.of_outputs(files, STAGES.get(stage), log))


@pytest.mark.parametrize(
    ("name", "is_litter"),
    [("left_out.json", False), ("runs/a/fold0/best_epoch003.pt", False), ("train.ipynb", False),
     ("kernel_lib/x.py", True), ("runs/a/fold0/.last.pt.x.part", True), ("core", True),
     ("thresholds.ipynb", True)],
)  # fmt: skip
def test_litter_is_what_no_stage_writes(name: str, is_litter: bool):
    assert checks.of_litter(["folds.csv", name], STAGES["train"]).passed is not is_litter


@pytest.mark.parametrize(("kind", "stage"), [("script", "train"), ("notebook", "thresholds")])
def test_the_stage_is_read_from_what_the_build_writes(project: Path, kind: str, stage: str):
    code = bundle.build(project, stage, kind).code_file.read_text()
    assert bundle.stage_of(code) == STAGES[stage]
    assert bundle.stage_of("# train: something else") is None


def test_sources_are_mounted_where_kaggle_does(tmp_path: Path):
    meta = {"competition_sources": ["a"], "dataset_sources": ["me/b"], "kernel_sources": ["me/c"],
            "model_sources": ["me/nets/pyTorch/lite0/2"]}  # fmt: skip
    given = dict.fromkeys(("me/b", "me/c", "me/nets/pyTorch/lite0/2"), tmp_path)
    assert rehearse.mounts(meta, tmp_path, given) == {
        "competitions/a": tmp_path,
        "datasets/me/b": tmp_path,
        "notebooks/me/c": tmp_path,
        "models/me/nets/pytorch/lite0/2": tmp_path,  # the framework in small letters
    }
    versions = {"dataset_sources": ["me/b/4"], "kernel_sources": ["me/other/2"]}
    assert rehearse.mounts(versions, None, {"me/b/4": tmp_path, "me/other/2": tmp_path}) == {
        "datasets/me/b": tmp_path,
        "notebooks/me/other": tmp_path,
    }
    only = {"dataset_sources": ["me/b"]}
    assert rehearse.mounts(only, tmp_path, {}) == {"datasets/me/b": tmp_path}


def test_a_kernel_that_was_rehearsed_beside_it_is_found(tmp_path: Path, data: Path):
    built = kernel(tmp_path, GOOD, kernel_sources=["me/earlier", "me/other"])
    assert rehearse.rehearsed(built) == {}
    left = tmp_path / "build" / "rehearsals" / "earlier" / "working"
    left.mkdir(parents=True)
    (left / "x.csv").write_text("")
    assert rehearse.rehearsed(built) == {"me/earlier": left}
    arguments = [str(built), "--data", str(data)]
    done = CliRunner().invoke(rehearse.rehearse, arguments)
    assert "no folder for me/other" in done.output
    done = CliRunner().invoke(rehearse.rehearse, [*arguments, "--input", f"me/other={left}"])
    assert done.exit_code == 0, done.output


@pytest.mark.parametrize(
    ("data_given", "inputs", "words"),
    [
        (False, {}, "no folder for a, me/c"),
        (True, {}, "no folder for me/c"),
        (True, {"me/d": "."}, "--input me/d is not a source.*a, me/c"),
        (True, {"a": ".", "me/c": "."}, "--data stands for a competition or data set"),
        (True, {"me/c": "nowhere"}, "nowhere, given for me/c"),
    ],
)
def test_a_source_that_does_not_fit_is_named(tmp_path: Path, data_given, inputs, words):
    meta = {"competition_sources": ["a"], "kernel_sources": ["me/c"]}
    folders = {name: Path(folder) for name, folder in inputs.items()}
    with pytest.raises(InputError, match=words):
        rehearse.mounts(meta, tmp_path if data_given else None, folders)


def test_a_folder_of_something_else_is_not_emptied(tmp_path: Path, data: Path):
    out = tmp_path / "out"
    out.mkdir()
    (out / "thesis.tex").write_text("years")
    with pytest.raises(InputError, match="no rehearsal wrote"):
        run(tmp_path, GOOD, data)
    assert (out / "thesis.tex").read_text() == "years"


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("kernel-metadata.json", None, "give a folder that build_kernel.py wrote"),
        ("kernel-metadata.json", "{", "is not a kernel's metadata"),
        ("kernel-metadata.json", '{"code_file": "b.py"}', "b.py, which .* does not exist"),
        ("a-kernel.py", None, "a-kernel.py, which .* does not exist"),
    ],
)
def test_what_is_no_kernel_is_said_to_be_none(tmp_path: Path, name, content, words):
    built = kernel(tmp_path, "")
    (built / name).unlink()
    if content is not None:
        (built / name).write_text(content)
    with pytest.raises(InputError, match=words):
        rehearse.read_kernel(built)


def test_the_command_prints_a_line_each_and_its_status_says_whether_all_passed(
    tmp_path: Path, data: Path
):
    built = kernel(tmp_path, GOOD)
    arguments = [str(built), "--data", str(data), "--session-hours", "9", "--scale", "0.01"]
    done = CliRunner().invoke(rehearse.rehearse, arguments)
    assert done.exit_code == 0, done.output
    assert done.output.count("pass  ") == 10
    assert "of 324 s" in done.output
    assert "10 passed, 0 failed" in done.output
    out = tmp_path / "build" / "rehearsals" / "a-kernel"
    assert json.loads((out / "rehearsal.json").read_text())["kernel"] == "me/a-kernel"
    (built / "a-kernel.py").write_text("raise SystemExit(1)\n")
    done = CliRunner().invoke(rehearse.rehearse, arguments)
    assert done.exit_code == 1
    assert "FAIL  exit status  1" in done.output
    done = CliRunner().invoke(rehearse.rehearse, [*arguments, "--input", "me/x=."])
    assert "Error: --input me/x is not a source" in done.output


def test_what_the_caller_s_environment_holds_stays_outside(tmp_path: Path):
    place = sandbox.Place("bwrap", tmp_path, tmp_path, tmp_path, {}, tmp_path)
    caller = {"PATH": "/bin", "PYTHONPATH": "/project", "KAGGLE_KEY": "x", "OMP_NUM_THREADS": "1"}
    variables = sandbox.variables(place, caller)
    assert variables["PATH"].endswith(":/bin")
    kept = [variables.get(name) for name in (*list(caller)[1:], "KAGGLE_KERNEL_RUN_TYPE")]
    assert kept == ["/rehearsal", None, "1", "Batch"]


def test_the_watch_alone_starts_in_a_python_without_this_project(tmp_path: Path):
    """It is loaded at every start: an error in it would be an error of every process."""
    (tmp_path / "sitecustomize.py").write_text(Path(watch.__file__).read_text())
    settings = {"inputs": [str(tmp_path / "in")], "project": [], "allowed": []}
    (tmp_path / "watch.json").write_text(json.dumps(settings))
    (tmp_path / "in").mkdir()
    code = (
        "import os, socket, threading\n"
        "os.mkdir('in/a'); os.rename('in/a', 'in/b'); open('in/c', 'w').close(); open('d', 'w')\n"
        "fd = os.open('in/e', os.O_CREAT | os.O_WRONLY); os.close(fd); open('in/c').close()\n"
        "socket.getaddrinfo('localhost', 1); s = socket.socket(); s.bind(('', 0)); s.close()\n"
    )
    env = os.environ | {"PYTHONPATH": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=env, capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (0, "")
    lines = [json.loads(line) for line in (tmp_path / "seen.jsonl").read_text().splitlines()]
    assert [(x["kind"], x["what"]) for x in lines] == [
        ("input", f"in/{name}") for name in ("a", "a", "b", "c", "e")
    ]


def test_the_limit_is_kaggle_s():
    assert checks.of_size(quota.Usage(20 * 10**9, 12_000)).passed
    assert not checks.of_size(quota.Usage(20 * 10**9 + 1, 1)).passed
