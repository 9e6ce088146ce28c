"""What the library itself stores, and wheels: equal to what was stored, or refused."""

from __future__ import annotations

import base64
import hashlib
import io
import random
import tempfile
import warnings
import zipfile
from functools import cache
from pathlib import Path, PurePosixPath

import numpy as np
import torch

from kernel_build import wheels
from kernel_lib import checkpoints
from kernel_lib.artifacts import filenames, maps
from kernel_lib.artifacts.lineage import Lineage
from kernel_lib.kaggle import packages
from kernel_lib.models import weights
from tools.fuzz.case import Case, Desk, Target
from tools.fuzz.mutate import damaged

META = {"run": "a", "fold": 0, "lineage": {"images": ["x"]}}
PAST = Lineage(images=("a", "b"), groups=("p",))
BOMB_BYTES = 100_000_000


def repacked(rng: random.Random, data: bytes) -> bytes:
    """Return an archive with a member damaged, renamed or bloated, its checksums right."""
    kind = rng.choice(("damage", "damage", "name", "bomb" if rng.random() < 0.02 else "name"))
    out = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(out, "w") as new:
        names = old.namelist()
        chosen = rng.choice(names)
        for name in names:
            info, content = zipfile.ZipInfo(name), old.read(name)
            if name == chosen and kind == "damage":
                content = damaged(rng, content, head=60)
            elif name == chosen and kind == "name":
                info.filename = rng.choice(("../out", "/out", "a/../../out", "", ".", "x\\..\\y",
                                            names[0], "é.png", "C:/x", "n" * 300))  # fmt: skip
                info.external_attr = rng.choice((0, 0o120777 << 16))
            elif name == chosen:
                info.compress_type, content = zipfile.ZIP_DEFLATED, b"\0" * BOMB_BYTES
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of a name twice
                new.writestr(info, content)
    return out.getvalue()


def _changed(rng: random.Random, data: bytes) -> tuple[bytes, bool]:
    """Return damaged bytes, and whether checksums still detect the change."""
    kind = rng.random()
    if kind < 0.05:
        return data, True
    if kind < 0.3:
        return repacked(rng, data), False
    if kind < 0.6:  # the list at the end
        cut = max(0, len(data) - 300)
        return data[:cut] + damaged(rng, data[cut:]), True
    return damaged(rng, data, head=400), True


# --- Maps -----------------------------------------------------------------------------------


@cache
def _archive() -> tuple[bytes, dict[str, np.ndarray], dict[str, float]]:
    noise = np.random.default_rng(0)
    levels = {f"1.2.{i}": noise.integers(0, 256, (8, 8), np.uint8) for i in range(3)}
    labels = {name: at / 3 for at, name in enumerate(levels)}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / filenames.OOF
        # The same number is the disagreement of the views.
        shown = ((i, maps.Prediction(levels[i], labels[i], labels[i])) for i in levels)
        maps.write(path, shown, META)
        return path.read_bytes(), levels, labels


def map_archive(desk: Desk) -> Case:
    original, levels, labels = _archive()
    data, noticed = _changed(desk.rng, original)
    path = desk.put(filenames.OOF, data)

    def attempt():
        archive = maps.Maps(path)
        tables = archive.label, archive.disagreement
        read = [(i, archive[i], [value(i) for value in tables]) for i in archive.ids]
        return read, archive.meta

    def wrong(result) -> str | None:
        read, meta = result
        for name, level_map, values in read:
            if (
                level_map.dtype != np.uint8
                or level_map.ndim != 2
                or not all(value is None or 0 <= value <= 1 for value in values)
            ):
                return f"{name}: {level_map.dtype} {level_map.shape}, label and views {values}"
            same = np.array_equal(level_map, levels[name]) and values == [labels[name]] * 2
            if noticed and not same:
                return f"another map, label or disagreement of {name}"
        if noticed and (len(read), meta) != (len(levels), META | {"images": 3}):
            return f"{len(read)} maps, {meta}"
        return None

    return Case(data, attempt, wrong)


# --- Wheels ---------------------------------------------------------------------------------


WHEEL, RECORD = "thing-1.0-py3-none-any.whl", "thing-1.0.dist-info/RECORD"


@cache
def _wheel() -> tuple[bytes, dict[str, bytes]]:
    files = {
        "thing/__init__.py": b"WORD = 1\n" * 20,
        "thing-1.0.dist-info/METADATA": b"Name: thing\nVersion: 1.0\n",
    }
    rows = []
    for name, content in files.items():
        digest = base64.urlsafe_b64encode(hashlib.sha256(content).digest()).decode()
        rows.append(f"{name},sha256={digest.rstrip('=')},{len(content)}\n")
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in (files | {RECORD: "".join(rows).encode()}).items():
            info = zipfile.ZipInfo(name)
            info.compress_type = zipfile.ZIP_DEFLATED
            archive.writestr(info, content)
    return out.getvalue(), files


def cached_wheel(desk: Desk) -> Case:
    """Return a wheel to carry: its files as they were, since its RECORD has their hashes."""
    original, files = _wheel()
    data, _ = _changed(desk.rng, original)
    path = desk.put(WHEEL, data)

    def wrong(result: wheels.Wheel) -> str | None:
        members = packages.members(WHEEL, result.content)
        members.pop(RECORD)
        return None if members == files else f"other files: {sorted(members)}"

    return Case(data, lambda: wheels.read(path, "thing", "1.0"), wrong)


def wheel(desk: Desk) -> Case:
    """Return a wheel's members in their folder and nothing beside it, whatever they are called."""
    data, _ = _changed(desk.rng, _wheel()[0])

    def attempt() -> tuple[dict[str, bytes], list[str]]:
        before, scratch = tempfile.tempdir, desk.folder / "a" / "b"
        scratch.mkdir(parents=True, exist_ok=True)
        tempfile.tempdir = str(scratch)
        try:
            folder = packages.unpack(WHEEL, data)
            files = {
                p.relative_to(folder).as_posix(): p.read_bytes()
                for p in folder.rglob("*")
                if p.is_file() and not p.is_symlink()
            }
        finally:
            tempfile.tempdir = before
            beside = _others(desk.folder)
            _clear(scratch)
        return files, beside

    def wrong(result) -> str | None:
        files, beside = result
        if beside:
            return f"written beside the folder: {beside}"
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            listed = {
                i.filename: archive.read(i) for i in archive.infolist() if i.filename[-1:] != "/"
            }
        return None if files == listed else f"{sorted(files)}, expected {sorted(listed)}"

    return Case(data, attempt, wrong)


def _others(folder: Path) -> list[str]:
    inside = PurePosixPath("a/b")
    return [
        str(p) for p in folder.rglob("*")
        if p.is_file() and inside not in PurePosixPath(p.relative_to(folder)).parents
        and p.parent == folder / "a"
    ]  # fmt: skip


def _clear(folder: Path) -> None:
    for path in sorted(folder.rglob("*"), reverse=True):
        path.unlink() if not path.is_dir() or path.is_symlink() else path.rmdir()


# --- Checkpoints and weights ----------------------------------------------------------------


@cache
def _saved() -> tuple[bytes, dict]:
    generator = torch.Generator().manual_seed(0)
    state = {
        "model": {"w": torch.rand(40, generator=generator), "n": torch.arange(3)},
        "ema": {"model": {"w": torch.rand(40, generator=generator)}, "decay": 0.999},
        "random": generator.get_state(),
        "epoch": 3,
        "text": "x",
    }
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / filenames.LAST
        checkpoints.save(path, state, PAST)
        return path.read_bytes(), state


def same(a, b) -> bool:
    """Return whether two states are equal to the last bit."""
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    return a == b


def checkpoint(desk: Desk) -> Case:
    original, state = _saved()
    data, noticed = _changed(desk.rng, original)
    path = desk.put(filenames.LAST, data)

    def attempt():
        return *checkpoints.load(path), checkpoints.digest(path)

    def wrong(result) -> str | None:
        loaded, past, _ = result
        if noticed and not (same(state, loaded) and past == PAST):
            return "another state or past than was saved"
        return None

    return Case(data, attempt, wrong)


@cache
def _weights() -> dict[str, bytes]:
    from safetensors.torch import save

    state = {"conv.weight": torch.arange(60.0).view(3, 20), "fc.bias": torch.ones(4)}
    new, old = io.BytesIO(), io.BytesIO()
    torch.save({"state_dict": state}, new)
    torch.save(state, old, _use_new_zipfile_serialization=False)
    return {".pth": new.getvalue(), ".pt": old.getvalue(), ".safetensors": save(state)}


def weights_file(desk: Desk) -> Case:
    """Return weights in three formats; of those without checksums only the form can be judged."""
    ending = desk.rng.choice((".pth", ".pt", ".safetensors"))
    original = _weights()[ending]
    if ending == ".pth":
        data, noticed = _changed(desk.rng, original)
    else:
        data, noticed = damaged(desk.rng, original, head=300), False
    path = desk.put(f"w{ending}", data)

    def wrong(state) -> str | None:
        if not all(isinstance(k, str) and isinstance(v, torch.Tensor) for k, v in state.items()):
            return "no table of tensors"
        if sum(v.numel() * v.element_size() for v in state.values()) > 10 * len(data):
            return "more numbers than the file holds"
        if noticed and not torch.equal(state["conv.weight"], torch.arange(60.0).view(3, 20)):
            return "other weights than were saved"
        return None

    return Case(data, lambda: weights.read_state(path), wrong)


TARGETS = {
    "maps": Target(map_archive, 0.04),
    "wheel": Target(wheel, 0.01),
    "wheel-cached": Target(cached_wheel, 0.01),
    "checkpoint": Target(checkpoint, 0.02),
    "weights": Target(weights_file, 0.02),
}
