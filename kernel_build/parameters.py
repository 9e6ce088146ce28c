"""Parameters that a build bakes in: read as papermill reads them, and checked."""

from __future__ import annotations

import ast
import json
from collections.abc import Iterable

from kernel_build.boot import cells_of
from kernel_lib.config import parse_value
from kernel_lib.errors import InputError
from kernel_lib.kaggle import paths
from kernel_lib.registry import lookup

Value = str | int | float | bool | None
_TYPES = {"int": (int,), "float": (int, float), "str": (str,), "bool": (bool,)}


def declared(percent: str, notebook: str) -> dict[str, str]:
    """Return name and annotation of what the notebook's `parameters` cell sets, in its order.

    A name without an annotation has ''.

    Raises: InputError if there is no such cell.
    """
    names: dict[str, str] = {}
    for statement in _cell(percent, notebook).body:
        if isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name):
            names[statement.target.id] = ast.unparse(statement.annotation)
        elif isinstance(statement, ast.Assign):
            names |= {t.id: "" for t in statement.targets if isinstance(t, ast.Name)}
    return names


def defaults(percent: str, notebook: str) -> dict[str, Value]:
    """Return name and value of what the notebook's `parameters` cell sets to a literal."""
    return _set(_cell(percent, notebook))


def baked(code: str, kind: str, name: str) -> dict[str, Value]:
    """Return the parameters of a built kernel: its defaults, and over them what was baked in.

    `name` is the file's. Raises: InputError for code that is not Python.
    """
    try:
        if kind == "notebook":
            return _of_cells(json.loads(code)["cells"])
        values: dict[str, Value] = {}
        for node in ast.walk(ast.parse(code)):
            match node:
                case ast.Assign(targets=[ast.Name(id="kernel_notebook")], value=text):
                    values = _of_cells(cells_of(ast.literal_eval(text))) | values
                case ast.Assign(targets=[ast.Name(id="kernel_parameters")], value=ast.Dict() as d):
                    pairs = zip(d.keys, d.values, strict=True)
                    values |= {ast.literal_eval(k): _value(v) for k, v in pairs if _is_value(v)}
        return values
    except SyntaxError as error:
        raise InputError(f"{name}: line {error.lineno} is not Python: {error.msg}") from None


def _of_cells(cells: list[dict]) -> dict[str, Value]:
    values: dict[str, Value] = {}
    for cell in cells:
        if {"parameters", "injected-parameters"} & set(cell.get("metadata", {}).get("tags", [])):
            values |= _set(ast.parse("".join(cell["source"])))
    return values


def _set(cell: ast.Module) -> dict[str, Value]:
    """Return name and value of what a cell sets to a literal."""
    values: dict[str, Value] = {}
    for statement in cell.body:
        match statement:
            case ast.AnnAssign(target=ast.Name(id=name), value=value) if _is_value(value):
                values[name] = _value(value)
            case ast.Assign(targets=[ast.Name(id=name)], value=value) if _is_value(value):
                values[name] = _value(value)
    return values


def _is_value(node: ast.expr | None) -> bool:
    """Return whether an expression is a value as `literal` or a person writes it."""
    match node:
        case ast.UnaryOp(op=ast.USub(), operand=ast.Constant(value=int() | float())):
            return True
        case ast.Call(func=ast.Name(id="float"), args=[ast.Constant(value=str())], keywords=[]):
            return True
    return isinstance(node, ast.Constant)


def _value(node: ast.expr) -> Value:
    return float(node.args[0].value) if isinstance(node, ast.Call) else ast.literal_eval(node)


def read(percent: str, notebook: str, given: Iterable[tuple[str, str]]) -> dict[str, Value]:
    """Return the values to bake into a kernel, with an experiment's file as its text."""
    values = check(given, declared(percent, notebook), notebook)
    if "EXPERIMENT" in values:  # on Kaggle there is no file of it
        values["EXPERIMENT"] = paths.experiment_text(str(values["EXPERIMENT"]))
    return values


def check(given: Iterable[tuple[str, str]], names: dict[str, str], notebook: str) -> dict:
    """Return the values to bake in, in the order given; the last of a name counts.

    Raises: InputError for a name that the notebook does not have, and for a value that its
        annotation does not allow.
    """
    values: dict[str, Value] = {}
    for name, text in given:
        annotation = lookup(f"{notebook}: parameter", name, names)
        value = parse_value(text)
        if not _allowed(value, ast.parse(annotation or "object", mode="eval").body):
            raise InputError(
                f"-p {name} {text} gives {value!r}, a {type(value).__name__}, and {notebook} has "
                f"{name}: {annotation}; give a value of that type"
            )
        values[name] = value
    return values


def cell_source(values: dict[str, Value]) -> str:
    """Return the text of the injected cell, as `papermill --prepare-only` writes it."""
    return "# Parameters\n" + "".join(f"{name} = {literal(v)}\n" for name, v in values.items())


def literal(value: Value) -> str:
    """Return a value as Python source; infinities and NaN have no literal of their own."""
    text = repr(value)
    return f"float({text!r})" if text in ("inf", "-inf", "nan") else text


def _cell(percent: str, notebook: str) -> ast.Module:
    """Return the notebook's `parameters` cell, parsed; InputError if there is none."""
    tagged = [c for c in cells_of(percent) if "parameters" in c["metadata"].get("tags", [])]
    if len(tagged) != 1:
        raise InputError(
            f"{notebook} has {len(tagged)} cells tagged `parameters`, and a kernel needs one; "
            'mark it `# %% tags=["parameters"]`'
        )
    return ast.parse(tagged[0]["source"], notebook)


def _allowed(value: Value, annotation: ast.expr) -> bool:
    """Return whether an annotation allows a value; one that is not a simple type or union does."""
    match annotation:
        case ast.Constant(value=None):
            return value is None
        case ast.Subscript(value=ast.Name(id="Optional"), slice=inner):
            return value is None or _allowed(value, inner)
        case ast.Subscript(value=ast.Name(id="Union"), slice=ast.Tuple(elts=members)):
            return any(_allowed(value, member) for member in members)
        case ast.Name(id=name) if name in _TYPES:
            # True is an int to Python, and a SEED of True is a mistake.
            return isinstance(value, _TYPES[name]) and (name == "bool") == isinstance(value, bool)
        case ast.BinOp(left=left, op=ast.BitOr(), right=right):
            return _allowed(value, left) or _allowed(value, right)
        case ast.Subscript(value=ast.Name(id="Literal"), slice=choices):
            return value in ast.literal_eval(f"[{ast.unparse(choices).strip('()')}]")
        case ast.Name(id="list" | "dict" | "tuple") | ast.Subscript():
            return False  # -p gives none of these
    return True
