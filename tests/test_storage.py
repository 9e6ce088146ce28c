from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import stat
import subprocess
import sys
import zipfile
from contextlib import contextmanager, suppress

import pytest
import torch

from kernel_lib import storage
from kernel_lib.errors import InputError


def names(folder) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


def broken(context, error: type[BaseException], path=None) -> None:
    """Write in a context, then raise."""
    with context as place:
        if path is None:
            place.write("new")
        else:
            storage.write_text(place / path, "new")
        raise error


def test_the_file_is_there_when_it_is_complete_and_not_before(tmp_path):
    path = tmp_path / "deep" / "er" / "file.bin"
    before = os.umask(0o022)
    try:
        with storage.atomic_write(path) as file:
            file.write(b"one")
            assert not path.exists()
    finally:
        os.umask(before)
    assert path.read_bytes() == b"one"
    assert names(path.parent) == ["file.bin"]
    assert stat.S_IMODE(path.stat().st_mode) == 0o644, "for whoever may read the folder"


def test_text_is_utf8_with_plain_line_ends_and_json_has_no_nan(tmp_path):
    path = tmp_path / "file"
    storage.write_text(path, "α ≤ β\n")
    assert path.read_bytes() == "α ≤ β\n".encode()
    storage.write_json(path, {"a": [1, 2.5, None]})
    with pytest.raises(ValueError):
        storage.write_json(path, {"a": float("nan")})
    assert json.loads(path.read_text()) == {"a": [1, 2.5, None]}


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_an_exception_leaves_what_was_and_nothing_else(tmp_path, error):
    folder = tmp_path / "a"
    for name in ("old", "rule"):
        storage.write_text(folder / name, "old")
    for context, path in (
        (storage.atomic_write(folder / "rule", "w"), None),
        (storage.replace_files(folder, remove=["old"]), "rule"),
        (storage.atomic_folder(folder), "new"),
    ):
        with pytest.raises(error):
            broken(context, error, path)
        assert (names(folder), names(tmp_path)) == (["old", "rule"], ["a"])
        assert (folder / "rule").read_text() == "old"


def test_files_or_a_folder_take_the_place_of_others_when_all_is_written(tmp_path):
    folder = tmp_path / "a"
    for name in ("old", "rule"):
        storage.write_text(folder / name, "old")
    with storage.replace_files(folder, remove=["old"]) as aside:
        storage.write_text(aside / "rule", "new")
        assert names(folder) == ["old", "rule"]
    assert (names(folder), names(tmp_path)) == (["rule"], ["a"])
    assert (folder / "rule").read_text() == "new"
    with storage.atomic_folder(folder) as aside:
        storage.write_text(aside / "new", "new")
        assert names(folder) == ["rule"]
    assert (names(folder), names(tmp_path)) == (["new"], ["a"])


def test_tidy_restores_a_folder_that_a_killed_process_had_moved(tmp_path):
    folder = tmp_path / "a"
    for name in (".a.old", ".a.part"):
        storage.write_text(tmp_path / name / "file", name)
    storage.recover_folder(folder)
    assert (names(tmp_path), (folder / "file").read_text()) == (["a"], ".a.old")
    storage.write_text(tmp_path / ".a.old" / "file", "of before")
    storage.recover_folder(folder)
    assert (names(tmp_path), (folder / "file").read_text()) == (["a"], ".a.old")


# Other processes

HOLDS = """
import sys
from pathlib import Path
from kernel_lib import storage
with storage.folder_lock(Path(sys.argv[1])):
    print("held", flush=True)
    if len(sys.argv) > 2:
        import os
        if not os.fork():
            sys.stdin.read()
            os._exit(0)
    sys.stdin.read()
"""
WRITES = """
import sys
from pathlib import Path
from kernel_lib import storage
with storage.atomic_write(Path(sys.argv[1]), "w") as file:
    file.write("half")
    file.flush()
    print("held", flush=True)
    sys.stdin.read()
"""


@contextmanager
def other(script, *arguments):
    """A process that has come to where it holds something, and ends at the end of its input."""
    process = subprocess.Popen(
        [sys.executable, "-c", script, *map(str, arguments)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.stdin.close()
    process.wait()
    process.stdout.close()


def enter(folder) -> list[str]:
    with storage.folder_lock(folder):
        return names(folder.parent)


def test_a_second_process_is_refused_by_the_name_of_the_first(tmp_path):
    folder = tmp_path / "fold0"
    with other(HOLDS, folder) as process:
        with pytest.raises(InputError, match=rf"fold0 is being .* by process {process.pid} on "):
            enter(folder)
        with pytest.raises(InputError, match=r"since 20\d\d-.*-c .*import sys"):
            enter(folder)
        assert enter(tmp_path / "fold1") == [".fold0.lock", ".fold1.lock"], "a fold beside it"
        process.communicate("")
    assert names(tmp_path) == [], "nothing stays after a good end"
    assert enter(folder) == [".fold0.lock"]


@pytest.mark.parametrize("more", [[], ["with a child that ends later"]])
def test_a_killed_process_holds_nothing(tmp_path, more):
    with other(HOLDS, tmp_path / "fold0", *more) as process:
        process.send_signal(signal.SIGKILL)
        process.wait()
        if not more:
            assert names(tmp_path) == [".fold0.lock"]
        process.stdin.close()
        assert enter(tmp_path / "fold0") == [".fold0.lock"]
    assert names(tmp_path) == []


def test_the_next_write_removes_the_files_of_killed_processes_only(tmp_path):
    path = tmp_path / "last.pt"
    with other(WRITES, path) as process:
        storage.write_text(path, "first")
        assert len(names(tmp_path)) == 2, "another process is about to write it"
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert len(names(tmp_path)) == 2
        storage.write_text(path, "second")
    assert names(tmp_path) == ["last.pt"]
    assert path.read_text() == "second"


# A full disk


@pytest.fixture
def small_disk(disk):
    """A disk of a megabyte."""
    return disk("size=1m")


def by_bytes(file):
    for _ in range(300):
        file.write(bytes(10_000))


def by_torch(file):
    torch.save({"model": torch.zeros(750_000)}, file)


def by_zip(file):
    with zipfile.ZipFile(file, "w") as archive:
        for number in range(30):
            archive.writestr(str(number), bytes(100_000))


def by_text(file):
    file.write(b"x" * 3_000_000)


def save(path, write) -> None:
    with storage.atomic_write(path) as file:
        write(file)


@pytest.mark.parametrize("write", [by_bytes, by_torch, by_zip, by_text])
def test_a_full_disk_is_named_and_leaves_the_old_file(small_disk, write):
    path = small_disk / "last.pt"
    path.write_bytes(bytes(300_000))
    with pytest.raises(InputError, match=r"last.pt cannot be written: it needs 0\.\d MB or more"):
        save(path, write)
    assert path.read_bytes() == bytes(300_000)
    assert names(small_disk) == ["last.pt"]
    path.unlink()
    storage.write_text(path, "")
    assert path.read_text() == ""


def resize(disk, options: str) -> None:
    subprocess.run(["mount", "-o", f"remount,{options}", disk], check=True)


def fill(disk) -> None:
    with (disk / "rest").open("wb", buffering=0) as file, suppress(OSError):
        while file.write(bytes(4096)):
            pass


def rewrite_together(folder):
    with storage.replace_files(folder) as aside:
        storage.write_text(aside / "one", "new")
        storage.write_text(aside / "two", "x" * 100_000)


def copy(folder):
    with storage.atomic_folder(folder.with_name("copy")) as aside:
        shutil.copyfile(folder / "one", aside / "one")


@pytest.mark.parametrize("what", ["bytes", "files"])
@pytest.mark.parametrize("write", [rewrite_together, copy, enter])
def test_a_full_disk_is_named_whatever_is_to_be_written(small_disk, write, what):
    folder = small_disk / "a"
    storage.write_text(folder / "one", "old" * 3000)
    if what == "bytes":
        fill(small_disk)
    else:
        resize(small_disk, "nr_inodes=3")
    before = names(small_disk)
    with pytest.raises(
        InputError, match=r"cannot be written: .*its disk is full.*free some space"
    ) as it:
        write(folder)
    assert str(small_disk) in str(it.value)
    assert ("room for no other file" in str(it.value)) == (what == "files")
    assert (folder / "one").read_text() == "old" * 3000
    assert (names(small_disk), names(folder)) == (before, ["one"]), "nothing is left"
    (small_disk / "rest").unlink(missing_ok=True)
    resize(small_disk, "nr_inodes=100")
    write(folder)


def test_a_folder_that_cannot_be_written_is_refused_with_the_setting(small_disk):
    storage.write_text(small_disk / "old", "old")
    storage.check_writable(small_disk / "not" / "there", "WORK_DIR")
    assert names(small_disk) == ["old"]
    resize(small_disk, "ro")
    with pytest.raises(InputError, match=r"^WORK_DIR .*not/there cannot .*Read-only file system"):
        storage.check_writable(small_disk / "not" / "there", "WORK_DIR")
    for path in (small_disk / "new", small_disk / "deep" / "new", small_disk / "old" / "new"):
        with pytest.raises(InputError, match=rf"{path} cannot be written \("):
            storage.write_text(path, "new")


@pytest.mark.parametrize(
    ("below", "why"), [("", "Not a dir"), ("x", "Not a dir"), ("x/y", "Not a"), ("n" * 300, "Fil")]
)
def test_a_folder_that_no_disk_can_hold_is_refused_with_the_setting(tmp_path, below, why):
    (tmp_path / "file").touch()
    folder = tmp_path / "file" / below if len(below) < 5 else tmp_path / below
    for setting, option in (("WORK_DIR", "-p WORK_DIR"), ("--into", "--into")):
        refusal = rf"^{setting} {folder} cannot be written \({why}.*, or {option} another"
        with pytest.raises(InputError, match=refusal):
            storage.check_writable(folder, setting)
    assert names(tmp_path) == ["file"]


def test_a_folder_below_a_file_cannot_be_held(tmp_path):
    (tmp_path / "runs").touch()
    folder = tmp_path / "runs" / "one" / "fold0"
    with pytest.raises(InputError, match=f"{folder} cannot be written"):
        enter(folder)


def test_other_errors_are_no_full_disk():
    assert not storage.disk_full(OSError(errno.EIO, "broken"))
    assert not storage.disk_full(None)
