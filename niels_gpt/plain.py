"""Small files that others may have written, read as plain data: regular, bounded, refused with their place."""

import codecs
import json
import re
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic import ValidationError

DEEPEST = 200  # brackets within brackets
LONGEST = 80  # characters of a key that are shown


class Unreadable(ValueError):
    """Why a file cannot be used: which one, where in it, what is wrong."""


class Odd(Exception):
    """Something that Python's JSON lets pass: `reason` is one of two, `pattern` finds it in the text."""

    def __init__(self, reason: str, detail: str, pattern: str) -> None:
        super().__init__(f"{reason} ({detail})")
        self.reason, self.detail, self.pattern = reason, detail, pattern


def read_text(path: Path, most: int) -> str:
    """Return the UTF-8 text of a regular file of at most `most` bytes, without its BOM.

    Raises:
        Unreadable: it is something else.
    """
    try:
        if not stat.S_ISREG(path.stat().st_mode):  # asked before opening: a FIFO would wait for a writer
            raise Unreadable(f"{path}: not a regular file")
        with path.open("rb") as file:
            content = file.read(most + 1)
    except Unreadable:  # which is a ValueError, too
        raise
    except OSError as error:
        raise Unreadable(f"{path}: cannot be read ({error.strerror or error})") from error
    except ValueError:  # a NUL in the name
        raise Unreadable(f"{str(path)!r}: no file can have this name") from None
    if len(content) > most:
        raise Unreadable(f"{path}: larger than {most} bytes")
    return _decoded(path, content)


def _decoded(path: Path, content: bytes) -> str:
    text = content.removeprefix(codecs.BOM_UTF8)
    try:
        return text.decode("utf-8")
    except UnicodeDecodeError as error:
        line = text.count(b"\n", 0, error.start) + 1
        at = error.start + len(content) - len(text)
        raise Unreadable(f"{path}:{line}: not UTF-8 at byte {at}") from error


def read_json(path: Path, most: int) -> Any:
    """Return what a JSON file of at most `most` bytes says; no key is there twice, no number is nan or inf.

    Raises:
        Unreadable: it is something else.
    """
    text = read_text(path, most)
    if (line := _too_deep(text)) is not None:
        raise Unreadable(f"{path}:{line}: more than {DEEPEST} brackets within one another")
    try:
        return parse_json(text)
    except json.JSONDecodeError as error:
        raise Unreadable(f"{path}:{error.lineno}:{error.colno}: not JSON ({error.msg})") from error
    except Odd as odd:
        raise Unreadable(f"{path}:{_last_line(text, odd.pattern)}: {odd}") from None
    except ValueError as error:  # of a number with thousands of digits
        raise Unreadable(f"{path}:{_last_line(text, '[0-9]{1000}')}: not JSON ({error})") from error


def parse_json(text: str) -> Any:
    """Return what a JSON text says; no key is there twice in one object, no number is nan or inf.

    Raises:
        Odd: one of these is.
        ValueError: it is not JSON, or has a number with thousands of digits.
        RecursionError: its brackets are nested too deeply.
    """
    return json.loads(text, object_pairs_hook=_unique, parse_constant=_no_constant)


def first_fault(error: ValidationError, *within: str) -> tuple[str, str]:
    """Return where, as a dotted path below `within`, and what is the first thing that a schema refuses."""
    first = error.errors()[0]
    return ".".join([*within, *map(str, first["loc"])]), first["msg"]


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            quoted = json.dumps(key)
            raise Odd("a key twice in one object", f"{quoted:.{LONGEST}}", re.escape(quoted))
        found[key] = value
    return found


def _no_constant(name: str) -> Any:
    raise Odd("not JSON", f"{name} is not a JSON value", re.escape(name))


def _last_line(text: str, pattern: str) -> int:
    """Return the line in which a pattern is found last, the first line if it is written otherwise."""
    ends = [match.start() for match in re.finditer(pattern, text)]
    return text.count("\n", 0, ends[-1]) + 1 if ends else 1


def _too_deep(text: str) -> int | None:
    """Return the line in which brackets are nested too deeply, None if they are not; strings are passed over."""
    if text.count("[") + text.count("{") <= DEEPEST:
        return None
    depth = 0
    for bracket, at in _brackets(text):
        depth += 1 if bracket in "[{" else -1
        if depth > DEEPEST:
            return text.count("\n", 0, at) + 1
    return None


def _brackets(text: str) -> Iterator[tuple[str, int]]:
    for match in re.finditer(r'"(?:[^"\\]|\\.)*"?|[\[\]{}]', text, re.S):
        if match[0][0] != '"':
            yield match[0], match.start()
