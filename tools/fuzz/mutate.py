"""Damage: bytes and texts changed as transfers, editors and ill will change them."""

from __future__ import annotations

import random
import struct
from collections.abc import Sequence

EDGES = (0, 1, 2, 127, 128, 255, 256, 32767, 32768, 65535, 2**31 - 1, 2**31, 2**32 - 1, 2**63 - 1)


def damaged(rng: random.Random, data: bytes, other: bytes = b"", *, head: int = 0) -> bytes:
    """Return bytes with one to six changes, half of them within the first `head` bytes if given."""
    changed = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 3, 6))):
        reach = min(head, len(changed)) if head and rng.random() < 0.5 else len(changed)
        _change(rng, changed, rng.randrange(reach) if reach else 0, other)
    return bytes(changed)


def _change(rng: random.Random, data: bytearray, at: int, other: bytes) -> None:
    kind = rng.randrange(8)
    length = min(rng.choice((1, 2, 4, 8, 64, 1024)), len(data))
    if not data or kind == 0:
        data[at:at] = rng.randbytes(rng.choice((1, 2, 4, 16)))
    elif kind == 1:
        data[at] ^= 1 << rng.randrange(8)
    elif kind == 2:
        data[at] = rng.randrange(256)
    elif kind == 3:
        del data[at : at + length]
    elif kind == 4:
        del data[at:]
    elif kind == 5:
        data[at:at] = data[at : at + length]
    elif kind == 6:
        form = rng.choice(("<H", ">H", "<I", ">I", "<Q"))
        bits = 8 * struct.calcsize(form)
        value = struct.pack(form, rng.choice(EDGES) % (1 << bits))
        data[at : at + len(value)] = value
    else:
        start = rng.randrange(len(other)) if other else 0
        data[at : at + length] = other[start : start + length] or b"\x00" * length


def garbled(rng: random.Random, text: str, words: Sequence[str]) -> str:
    """Return a text with one to four changes: words inserted, pieces removed or doubled."""
    for _ in range(rng.choice((1, 1, 2, 4))):
        at = rng.randrange(len(text) + 1)
        kind = rng.randrange(5)
        end = at + rng.choice((1, 1, 2, 5, 20))
        if kind <= 1:
            text = text[:at] + rng.choice(words) + text[at:]
        elif kind == 2:
            text = text[:at] + text[end:]
        elif kind == 3:
            text = text[:at] + text[at:end] + text[at:]
        else:
            text = text[:at] + rng.choice(words) + text[end:]
    return text
