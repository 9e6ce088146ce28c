"""The library's files as a kernel carries them: as raw literals, but for what kernels leave out."""

from __future__ import annotations

import ast
import hashlib
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from kernel_lib.errors import InputError
from kernel_lib.stages.table import STAGES

LIBRARY = "kernel_lib"
# Files and folders that only the command line and the notebook `explore` use.
LEFT_OUT = (
    "commands.py", "export", "reporting/mean_images.py", "stages/explore.py",
    "stages/explore_files.py", "stages/export.py", "stages/export_onnx.py",
    "stages/export_results.py", "stages/gather.py", "stages/gather_check.py",
    "stages/predict_files.py", "stages/predict_networks.py", "stages/predictors.py",
    "stages/release.py", "stages/score_all.py", "stages/statistics.py", "viewer",
)  # fmt: skip


@dataclass(frozen=True)
class Member:
    """A text file of the library: its path from the project's root, with slashes, and its text."""

    path: str
    text: str

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.text.encode("utf-8")).hexdigest()


def left_out(stage: str) -> tuple[str, ...]:
    """Return what a stage's kernel leaves out: the one rule of what a kernel carries."""
    others = (f"stages/{other}.py" for other in STAGES if other != stage)
    return (*LEFT_OUT, *others, *STAGES[stage].left_out)


def collect(root: Path, without: Iterable[str] = ()) -> list[Member]:
    """Return the files of the library, sub-packages and data files too, by path.

    Caches and hidden files stay out, and the files and folders `without`, given from the library's
    folder.

    Raises: InputError for a file that is not UTF-8, or a module that is not Python.
    """
    library, members = root / LIBRARY, []
    excluded = {library / path for path in without}
    for path in sorted(library.rglob("*")):
        parts = path.relative_to(library).parts
        if not path.is_file() or path.suffix == ".pyc" or excluded & {path, *path.parents}:
            continue
        if any(part.startswith(".") or part == "__pycache__" for part in parts):
            continue
        name = path.relative_to(root).as_posix()
        members.append(Member(name, read_text(path, name)))
        if path.suffix == ".py":
            _check_syntax(members[-1])
    if not any(member.path == f"{LIBRARY}/__init__.py" for member in members):
        raise InputError(f"{root} has no {LIBRARY}/__init__.py: build in the project's root")
    return members


def literal(path: str, text: str) -> str:
    """Return the text as a raw triple-quoted literal that gives back exactly it.

    Raises: InputError naming the file where neither kind of quotes can hold it.
    """
    # IPython cuts cells at all of these, and empties lines of blanks, before Python sees them.
    faults = {
        "[\x00\r\x0b\x0c\x1c\x1d\x1e\x85\u2028\u2029]": "a null or a line end other than \\n",
        r"(?<=\n)[^\S\n]+(?=\n)": "a line of blanks alone",
    }
    for pattern, fault in faults.items():
        if odd := re.search(pattern, text):
            raise InputError(
                f"{path}:{text[: odd.start()].count(chr(10)) + 1} holds {fault} "
                f"({odd[0]!a}), which no kernel can carry; leave it out or write an escape"
            )
    for quotes in ("'''", '"""'):
        candidate = f"r{quotes}{text}{quotes}"
        try:
            if quotes not in text and ast.literal_eval(candidate) == text:
                return candidate
        except SyntaxError:  # the text's end swallows or lengthens the closing quotes
            continue
    raise InputError(
        f"{path} cannot be embedded: a raw literal ends at three quotes, and the file holds both "
        "''' and \"\"\", or ends in a quote or a backslash; use one kind of triple quotes in it "
        "and end it with a new line"
    )


def read_text(path: Path, shown: str) -> str:
    """Return a text byte for byte, line ends as they are.

    Raises: InputError, which calls the file `shown`, for what is not UTF-8.
    """
    try:
        return path.read_bytes().decode("utf-8")
    except UnicodeDecodeError as error:
        raise InputError(
            f"{shown} is not UTF-8 at byte {error.start}, and a kernel carries text only; "
            "keep other files in a data set"
        ) from None


def _check_syntax(member: Member) -> None:
    try:
        ast.parse(member.text, member.path)
    except SyntaxError as error:
        raise InputError(f"{member.path}:{error.lineno} is not Python: {error.msg}") from None
