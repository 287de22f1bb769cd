"""Derive the seed of a random draw from the numbers and words that identify it."""

from hashlib import blake2b


def derive_seed(*parts: int | str) -> int:
    """Return a 63-bit seed that is a function of `parts` alone, the same on every machine."""
    digest = blake2b("/".join(map(str, parts)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1
