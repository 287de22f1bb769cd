"""Random damage to the bytes of a file on a disk, by a seed."""

import random

PAGE = 4096
KINDS = ("flip", "directory", "truncate", "zero", "append", "swap")


def mutated(content: bytes, draw: random.Random, others: list[bytes]) -> tuple[str, bytes]:
    """Return the kind of damage, and the bytes after it; `others` are files that may have got this one's name."""
    kind = draw.choice(KINDS if others else KINDS[:-1])
    if kind in ("flip", "directory"):  # the directory of a zip file is at its end
        first = 0 if kind == "flip" else max(0, len(content) - PAGE)
        changed = bytearray(content)
        for _ in range(draw.choice((1, 1, 1, 8))):
            changed[draw.randrange(first, len(changed))] ^= 1 << draw.randrange(8)
        return kind, bytes(changed)
    if kind == "truncate":
        return kind, content[: draw.randrange(len(content))]
    if kind == "zero":
        start = draw.randrange(0, len(content), 512)
        length = min(draw.choice((512, PAGE)), len(content) - start)
        return kind, content[:start] + bytes(length) + content[start + length :]
    if kind == "append":
        return kind, content + draw.randbytes(draw.choice((1, 22, PAGE, 70_000)))
    return kind, draw.choice(others)
