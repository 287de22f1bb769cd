"""What can happen to the bytes of a file on a disk, at random, by a seed."""

import random
from collections.abc import Callable

PAGE = 4096


def mutated(content: bytes, draw: random.Random, others: list[bytes]) -> tuple[str, bytes]:
    """Return what happened, and the bytes afterwards; `others` are files that may have got this one's name."""
    kind = draw.choice(list(KINDS)) if others else draw.choice([kind for kind in KINDS if kind != "swap"])
    return kind, KINDS[kind](content, draw, others)


def _flip(content: bytes, draw: random.Random, _: list[bytes]) -> bytes:
    return _flipped(content, draw, 0)


def _directory(content: bytes, draw: random.Random, _: list[bytes]) -> bytes:
    """Flip bits where a zip file has its directory, at the end."""
    return _flipped(content, draw, max(0, len(content) - PAGE))


def _flipped(content: bytes, draw: random.Random, first: int) -> bytes:
    changed = bytearray(content)
    for _ in range(draw.choice((1, 1, 1, 8))):
        changed[draw.randrange(first, len(changed))] ^= 1 << draw.randrange(8)
    return bytes(changed)


def _truncate(content: bytes, draw: random.Random, _: list[bytes]) -> bytes:
    return content[: draw.randrange(len(content))]


def _zero(content: bytes, draw: random.Random, _: list[bytes]) -> bytes:
    start = draw.randrange(0, len(content), 512)
    length = min(draw.choice((512, PAGE)), len(content) - start)
    return content[:start] + bytes(length) + content[start + length :]


def _append(content: bytes, draw: random.Random, _: list[bytes]) -> bytes:
    return content + draw.randbytes(draw.choice((1, 22, PAGE, 70_000)))


def _swap(_: bytes, draw: random.Random, others: list[bytes]) -> bytes:
    return draw.choice(others)


KINDS: dict[str, Callable[[bytes, random.Random, list[bytes]], bytes]] = {
    "flip": _flip,
    "directory": _directory,
    "truncate": _truncate,
    "zero": _zero,
    "append": _append,
    "swap": _swap,
}
