"""RLE texts: what parses must be what a pixel-by-pixel reading of the competition's words gives."""

from __future__ import annotations

import numpy as np

from kernel_lib.data import rle
from tools.fuzz.case import Case, Desk, Target
from tools.fuzz.mutate import garbled

WORDS = (" ", "  ", "-", "-1", "0", "1", "9", "99999999999999999999", "4294967296", "2147483648",
         ".", "1e3", "+1", "\t", "\n", "\x00", "\u00a0", "\u0663", "nan", ",", "\x0b")  # fmt: skip


def naive(text: str, shape: tuple[int, int]) -> np.ndarray | None:
    """Return the mask (H, W) of an RLE, number by number; None of an invalid one."""
    height, width = shape
    pixels = bytearray(height * width)
    if text.strip() in ("", "-1"):
        return np.frombuffer(pixels, np.uint8).reshape(width, height).T
    tokens = text.split()
    if len(tokens) % 2 or not all(token.isascii() and token.isdigit() for token in tokens):
        return None
    position = 0
    for gap, length in zip(tokens[::2], tokens[1::2], strict=True):
        position += int(gap)
        if int(length) < 1 or position + int(length) > len(pixels):
            return None
        pixels[position : position + int(length)] = b"\x01" * int(length)
        position += int(length)
    return np.frombuffer(pixels, np.uint8).reshape(width, height).T


def decode(text: str, shape: tuple[int, int]) -> Case:
    """Return the case of a text that is decoded into an image of this shape."""

    def wrong(mask: np.ndarray) -> str | None:
        expected = naive(text, shape)
        if expected is None:
            return "read, though it describes no mask"
        if not np.array_equal(mask, expected):
            return f"{int(mask.sum())} px, expected {int(expected.sum())}"
        runs = rle.parse(text, shape)
        if rle.encode(mask) != rle.to_string(runs) or rle.area(runs) != int(expected.sum()):
            return "runs and mask disagree"
        return None

    data = f"{shape}\n{text}".encode("utf-8", "surrogatepass")
    return Case(data, lambda: rle.decode(text, shape), wrong)


def from_random(desk: Desk) -> Case:
    """Return the case of an RLE of a small image, sometimes an invalid one."""
    rng = desk.rng
    shape = rng.randint(1, 12), rng.randint(1, 12)
    numbers = [rng.choice((0, 1, 2, 3, 5, 9)) for _ in range(2 * rng.randrange(8))]
    text = " ".join(map(str, numbers))
    if rng.random() < 0.5:
        text = garbled(rng, text, WORDS)
    return decode(text, shape)


def from_real(desk: Desk) -> Case:
    """Return the case of a real RLE, changed, in an image of the competition's size."""
    text = desk.rng.choice(desk.corpus.rles)
    return decode(garbled(desk.rng, text, WORDS), (1024, 1024))


TARGETS = {"rle": Target(from_random, 0.30), "rle-real": Target(from_real, 0.02)}
