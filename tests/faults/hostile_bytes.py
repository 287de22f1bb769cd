"""Hostile versions of good files: cut, damaged, in other encodings, with unexpected content."""

import json
import random
from collections.abc import Callable
from typing import Any

Damage = Callable[[bytes, random.Random], bytes]


def _put(what: bytes) -> Damage:
    def put(content: bytes, draw: random.Random) -> bytes:
        at = draw.randrange(len(content) + 1)
        return content[:at] + what + content[at:]

    return put


def _flip(content: bytes, draw: random.Random) -> bytes:
    damaged = bytearray(content or b" ")
    for _ in range(draw.randrange(1, 8)):
        damaged[draw.randrange(len(damaged))] ^= 1 << draw.randrange(8)
    return bytes(damaged)


def _repeat(content: bytes, draw: random.Random) -> bytes:
    start = draw.randrange(len(content) + 1)
    end = draw.randrange(start, len(content) + 1)
    return content[:end] + content[start:]


def _instead(old: bytes, new: bytes) -> Damage:
    """Replace one of the places in which `old` is found."""

    def replace(content: bytes, draw: random.Random) -> bytes:
        pieces = content.split(old)
        at = draw.randrange(max(1, len(pieces) - 1)) + 1
        return old.join(pieces[:at]) + (new if len(pieces) > 1 else b"") + old.join(pieces[at:])

    return replace


BYTES: dict[str, Damage] = {
    "cut": lambda content, draw: content[: draw.randrange(len(content) + 1)],
    "flipped bits": _flip,
    "repeated": _repeat,
    "noise": lambda content, draw: draw.randbytes(draw.randrange(200)),
    "empty": lambda content, draw: b"",
    "only whitespace": lambda content, draw: b" \n\t\r\n \n",
    "BOM": lambda content, draw: b"\xef\xbb\xbf" + content,
    "CRLF": lambda content, draw: content.replace(b"\n", b"\r\n"),
    "CR": lambda content, draw: content.replace(b"\n", b"\r"),
    "UTF-16": lambda content, draw: content.decode().encode("utf-16"),
    "Latin-1": _put(b"caf\xe9"),
    "NUL": _put(b"\0"),
    "surrogate": _put(b"\xed\xa0\x80"),
    "control": _put(b"\x1b[31m\x07\x7f"),
    "pickle": lambda content, draw: b"\x80\x04cos\nsystem\n(X\x05\x00\x00\x00touchtR.",
}
JSON: dict[str, Damage] = {
    "trailing comma": _instead(b"}", b",}"),
    "no comma": _instead(b",", b""),
    "single quotes": lambda content, draw: content.replace(b'"', b"'"),
    "comment": _put(b"// why\n"),
    "NaN": _instead(b":", b": NaN, "),
    "key twice": _instead(b"{", b'{"a": 1, "a": 2, '),
    "deep": lambda content, draw: b"[" * draw.choice([150, 5000, 100_000]) + content,
    "deep and whole": lambda content, draw: b'{"a":' * (n := draw.choice([600, 900, 3000])) + b"1" + b"}" * n,
    "huge number": _instead(b":", b": " + b"9" * 5000 + b", "),
    "huge exponent": _instead(b":", b": 1e999, "),
    "half a pair": _instead(b'"', b'"\\ud800'),
    "escaped NUL": _instead(b'"', b'"\\u0000'),
    "interpolation": _instead(b'"', b'"${oc.env:HF_TOKEN}'),
    "null": _instead(b'"', b'null, "'),
    "list for object": _instead(b"{", b"[{"),
    "tab": _put(b"\t"),
}
VALUES: list[Any] = [
    *(None, True, 0, -1, 1.5, 10**30, 1e300, "", "x", "../../x", "a\0b", "\ud800", "${oc.env:HF_TOKEN}", [], {}),
    *([[]], [None], {"_target_": "os.system"}, "x" * 10_000, ["x"] * 100, "\n", "😀"),
]


def other_value(content: Any, draw: random.Random) -> Any:
    """Return nested JSON in which something has another value, is gone, or is there under another name."""
    places = list(_places(content))
    if not places:
        return draw.choice(VALUES)
    parent, key = draw.choice(places)
    act = draw.randrange(4)
    if act == 0:
        del parent[key]
    elif act == 1 and isinstance(parent, dict):
        parent[draw.choice(["x", "", "B", "${x}", "_target_", "../x", "a\nb"])] = parent.pop(key)
    else:
        parent[key] = draw.choice(VALUES)
    return content


def _places(tree: Any) -> Any:
    for key, value in list(tree.items() if isinstance(tree, dict) else enumerate(tree)):
        yield tree, key
        if isinstance(value, dict | list):
            yield from _places(value)


def other_json(content: bytes, draw: random.Random) -> bytes:
    """Return a JSON file that says something else, and is JSON still."""
    return json.dumps(other_value(json.loads(content), draw)).encode()
