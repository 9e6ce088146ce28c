"""The library's files as a kernel carries them: what its stage needs, in order, as raw literals."""

from __future__ import annotations

import ast
import hashlib
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from kernel_lib.errors import InputError

LIBRARY = "kernel_lib"
_MAIN = f"{LIBRARY}.__main__"


@dataclass(frozen=True)
class Member:
    """One text file of the library: its path from the project's root, with slashes, and content."""

    path: str
    text: str

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.text.encode("utf-8")).hexdigest()


def collect(root: Path) -> list[Member]:
    """Every file of the library, sub-packages and data files too, by path.

    Only what tools leave behind stays out: caches and hidden files. Raises InputError for a file
    that is not UTF-8.
    """
    members = []
    for path in sorted((root / LIBRARY).rglob("*")):
        relative = path.relative_to(root)
        if not path.is_file() or path.suffix == ".pyc":
            continue
        if any(part.startswith(".") or part == "__pycache__" for part in relative.parts):
            continue
        members.append(Member(relative.as_posix(), read_text(path, relative.as_posix())))
    if not any(member.path == f"{LIBRARY}/__init__.py" for member in members):
        raise InputError(f"{root} has no {LIBRARY}/__init__.py: build in the project's root")
    return members


def needed(members: list[Member], starts: Iterable[Member]) -> list[Member]:
    """What a kernel whose own code is `starts` can use of the library; Kaggle takes only 1 MB.

    Modules: those that `starts` import, with all that these import, at their top or inside
    functions. The command line comes along, since a training's ranks are started by it, but of its
    commands only those whose modules travel anyway. Data files: one that modules name goes where
    one of these modules goes; the others always.
    """
    modules = {_module(m.path): m for m in members if m.path.endswith(".py")}
    found: set[str] = set()
    waiting = {LIBRARY, *(name for start in starts for name in _imports(start, ""))}
    if _MAIN in modules:
        waiting |= {_MAIN, *_imports(modules[_MAIN], _MAIN, inside_functions=False)}
    while waiting:
        name = waiting.pop()
        waiting |= {name.rpartition(".")[0]} - found - {""}
        if name in modules and name not in found:
            found.add(name)
            waiting |= _imports(modules[name], name) - found if name != _MAIN else set()
    left_out = {path for name in modules.keys() - found for path in _named(modules[name], members)}
    kept = {path for name in found for path in _named(modules[name], members)}
    kept |= {modules[name].path for name in found}
    return [
        member
        for member in members
        if member.path in kept or not (member.path.endswith(".py") or member.path in left_out)
    ]


def ordered(members: list[Member]) -> list[Member]:
    """Modules with what they import before them, then data files; ties and cycles by path."""
    modules = {_module(m.path): m for m in members if m.path.endswith(".py")}
    done: dict[str, Member] = {}
    entered = set()

    def visit(name: str) -> None:
        if name in entered:
            return
        entered.add(name)
        for imported in sorted(_imports(modules[name], name) & modules.keys()):
            visit(imported)
        done[name] = modules[name]

    for name in sorted(modules):
        visit(name)
    data = [member for member in members if not member.path.endswith(".py")]
    return [*done.values(), *sorted(data, key=lambda member: member.path)]


def literal(path: str, text: str) -> str:
    """The text as a raw triple-quoted literal that gives back exactly it.

    Raises InputError naming the file where neither kind of quotes can hold it.
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
    """A text byte for byte, line ends as they are; InputError for what is not UTF-8."""
    try:
        return path.read_bytes().decode("utf-8")
    except UnicodeDecodeError as error:
        raise InputError(
            f"{shown} is not UTF-8 at byte {error.start}, and a kernel carries text only; "
            "keep other files in a data set"
        ) from None


def _module(path: str) -> str:
    return path.removesuffix(".py").removesuffix("/__init__").replace("/", ".")


def _named(module: Member, members: list[Member]) -> Iterator[str]:
    """Paths of the data files whose names stand in a module's texts."""
    for member in members:
        name = member.path.rpartition("/")[2]
        if name.endswith(".py") or name not in module.text:  # in: a hundred times as fast
            continue
        if re.search(rf"(?<![\w.-]){re.escape(name)}\b", module.text):
            yield member.path


def _imports(member: Member, name: str, *, inside_functions: bool = True) -> set[str]:
    """Names of modules that a module may import: at its top, and inside functions."""
    package = name if member.path.endswith("/__init__.py") else name.rpartition(".")[0]
    try:
        tree = ast.parse(member.text, member.path)
    except SyntaxError as error:
        raise InputError(f"{member.path}:{error.lineno} is not Python: {error.msg}") from None
    found = set()
    for node in _statements(tree) if inside_functions else tree.body:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            parents = package.split(".")[: len(package.split(".")) - node.level + 1]
            base = ".".join([*parents, node.module or ""] if node.level else [node.module or ""])
            base = base.strip(".")
            found |= {base} | {f"{base}.{alias.name}" for alias in node.names}
    return found


def _statements(tree: ast.Module) -> Iterator[ast.stmt]:
    """Every statement at any depth, without looking into expressions, which hold none."""
    waiting: list[ast.AST] = [tree]
    while waiting:
        for node in ast.iter_child_nodes(waiting.pop()):
            if isinstance(node, ast.stmt):
                yield node
            if isinstance(node, ast.stmt | ast.excepthandler | ast.match_case):
                waiting.append(node)
