"""Read documents and dialogues from text files and JSON lines."""

import codecs
import glob
import hashlib
import io
import json
import logging
import os
import re
import stat
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any

from pydantic_core import from_json

from niels_gpt.config import SourceCfg
from niels_gpt.data.hash_index import hash_file
from niels_gpt.data.readers.records import ROLES, Dialogue, Document, Message
from niels_gpt.errors import DataError

PIECE = 16 << 10  # characters; a longer file is cut, so that one file can fill both splits
LONGEST_PARAGRAPH = 1 << 20  # characters; a file without blank lines is not held in memory
MAX_LINE = 16 << 20  # bytes of a line of JSON with its end
FIRST_ROWS = 1000  # of each file of JSON lines, read to find out which kinds of row it holds

_ROW_HINT = 'a row is {"messages": [{"role", "content"}, ...]}, {"prompt", "completion"} or {"text"}'
_NOT_TEXT = re.compile("[\0\udc80-\udcff]")  # surrogateescape decodes bytes that are not UTF-8 to these
_log = logging.getLogger("niels_gpt")
Row = Document | Dialogue


def read_documents(cfg: SourceCfg) -> Iterator[Document]:
    """Yield the texts of `cfg.files`, in the order of their paths.

    DataError naming file and place if a file cannot be read, has no text or is not of `cfg.kind`.
    """
    if cfg.kind == "text":
        for path in _resolve(cfg.files):
            yield from _read_text(path, cfg.documents)
    else:
        yield from (row for row in _read_rows(cfg) if isinstance(row, Document))


def read_dialogues(cfg: SourceCfg) -> Iterator[Dialogue]:
    """Yield the dialogues of JSON lines, in the order of their paths; plain text has none.

    DataError as for `read_documents`.
    """
    if cfg.kind == "jsonl":
        yield from (row for row in _read_rows(cfg) if isinstance(row, Dialogue))


def has_rows(cfg: SourceCfg, kind: type[Row]) -> bool:
    """Return whether any file of JSON lines has such a row among its FIRST_ROWS.

    DataError as for `read_documents`.
    """
    skip = cfg.on_bad_line == "skip"
    first_rows = (row for path in _resolve(cfg.files) for row in islice(_read_file_rows(path, skip), FIRST_ROWS))
    return any(isinstance(row, kind) for row in first_rows)


def fingerprint(cfg: SourceCfg, sha256: Callable[[Path], str] = hash_file) -> str:
    """Return a hash that changes whenever `read_documents` or `read_dialogues` would yield something else.

    `sha256` returns the hash of a file, perhaps from an index.
    """
    setting = cfg.documents if cfg.kind == "text" else cfg.on_bad_line
    parts: list[Any] = [cfg.kind, setting, PIECE, LONGEST_PARAGRAPH]
    for path in _resolve(cfg.files):
        with _open_regular(path):
            parts.append((_show_path(path), sha256(path)))
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


# --- paths


def _resolve(patterns: Iterable[str]) -> list[Path]:
    """Return the files that paths and globs name, sorted, each real file once."""
    found: set[str] = set()
    for pattern in patterns:
        full = os.path.expanduser(pattern)
        # A name with brackets in it is a name first. "notes/**" matches the folders within too: they are left out.
        globbed = (path for path in glob.glob(full, recursive=True) if not os.path.isdir(path))
        matches = {full} if os.path.lexists(full) else set(filter(os.path.lexists, globbed))
        if not matches:
            hint = f"paths are looked up from {Path.cwd()}; ** matches folders within folders"
            raise DataError(f"data.files: no file matches {pattern!r}", hint)
        found |= matches
    real = {os.path.realpath(path): path for path in sorted(found, reverse=True)}
    return sorted(Path(path) for path in real.values())


@contextmanager
def _open_regular(path: Path) -> Iterator[io.BufferedReader]:
    """Open a regular file; an OSError becomes a DataError that names the file."""
    try:
        # Checked before opening, because opening a FIFO would wait for a writer.
        if not stat.S_ISREG(path.stat().st_mode):
            hint = f"use '{path}/**' for all files in a folder" if path.is_dir() else "name a file"
            raise DataError(f"{_show_path(path)}: not a regular file", hint)
        with path.open("rb") as file:
            yield file
    except OSError as error:
        reason = f"{_show_path(path)}: cannot be read ({error.strerror or error})"
        raise DataError(reason, "check the path and its permissions") from error


def _show_path(path: Path) -> str:
    """Return the path as text; a file name need not be UTF-8."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def _hash_text(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:32]


# --- plain text


def _read_text(path: Path, cut: str) -> Iterator[Document]:
    """Yield a file, in pieces if it is long, or its paragraphs.

    A paragraph is named by its content, so that a repeated one stays in one split.
    """
    by_paragraph = cut == "blank_lines"
    pieces = _cut(_read_lines(path), *((0, LONGEST_PARAGRAPH) if by_paragraph else (PIECE, 2 * PIECE)))
    number = 0
    for number, piece in enumerate(filter(str.strip, pieces), 1):
        if by_paragraph:
            text = piece.rstrip().lstrip("\n")
            yield Document(_hash_text(text), text)
        else:
            yield Document(_show_path(path) if number == 1 else f"{_show_path(path)}#{number}", piece)
    if not number:
        raise DataError(f"{_show_path(path)}: has no text", "leave it out of data.files")


def _cut(lines: Iterable[str], least: int, most: int) -> Iterator[str]:
    """Join lines into pieces that end at the first blank line after `least` characters, or after `most`."""
    piece: list[str] = []
    size, at_start = 0, True
    for line in lines:
        blank = at_start and not line.strip()
        at_start = line.endswith("\n")  # a very long line comes in parts
        piece.append(line)
        size += len(line)
        if size >= most or (blank and size >= least):
            yield "".join(piece)
            piece, size = [], 0
    yield "".join(piece)


def _read_lines(path: Path) -> Iterator[str]:
    """Yield the lines of a UTF-8 file without BOM, line ends as LF, a long line in parts of PIECE."""
    with _open_regular(path) as file:
        if file.read(3) != codecs.BOM_UTF8:  # "utf-8-sig" would pass over one cut short
            file.seek(0)
        text = io.TextIOWrapper(file, "utf-8", errors="surrogateescape")
        while line := text.readline(PIECE):
            if _NOT_TEXT.search(line):
                raise _locate_bad_byte(path)
            yield line


def _locate_bad_byte(path: Path) -> DataError:
    """Return the error for a file that is not text; read again, because a text reader does not count bytes."""
    at, number, match = 0, 1, None
    with _open_regular(path) as file:
        text = io.TextIOWrapper(file, "utf-8", errors="surrogateescape", newline="")
        while not match and (part := text.readline(PIECE)):
            match = _NOT_TEXT.search(part)
            before = part[: match.start()] if match else part
            at, number = at + len(before.encode()), number + before.count("\n")
    what = "a NUL byte, so not text," if match and match[0] == "\0" else "not UTF-8"
    message = f"{_show_path(path)}: {what} at byte {at} (line {number})"
    return DataError(message, "save it as UTF-8, or leave it out of data.files")


# --- JSON lines


class _BadLine(Exception):
    """A line that cannot be used: `reason` is one of a few, `detail` is about this line."""

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(f"{reason} ({detail})" if detail else reason)
        self.reason = reason


def _read_rows(cfg: SourceCfg) -> Iterator[Row]:
    for path in _resolve(cfg.files):
        yield from _read_file_rows(path, skip=cfg.on_bad_line == "skip")


def _read_file_rows(path: Path, skip: bool) -> Iterator[Row]:
    """Yield the rows of a file. A bad line is an error, or with `skip` it is counted and logged at the end."""
    good, bad = 0, dict[str, list[int]]()
    for number, line in _read_json_lines(path):
        try:
            row = _parse_row(line)
        except _BadLine as error:
            if not skip:
                hint = "fix the line, or set data.on_bad_line=skip"
                raise DataError(f"{_show_path(path)}:{number}: {error}", hint) from error
            bad.setdefault(error.reason, []).append(number)
            continue
        good += 1
        yield row
    if good and bad:
        _log.warning("%s: skipped %s", _show_path(path), _summarize(bad))
    if not good:
        why = f"all lines are bad: {_summarize(bad)}" if bad else "has no rows"
        raise DataError(f"{_show_path(path)}: {why}", _ROW_HINT)


def _summarize(bad: dict[str, list[int]]) -> str:
    """Return "3 not JSON (lines 1, 2, 9)" for each reason, with the first five lines."""
    return "; ".join(
        f"{len(lines)} {reason} (line{'s' * (len(lines) > 1)} {', '.join(map(str, lines[:5]))}"
        f"{', ...' * (len(lines) > 5)})"
        for reason, lines in bad.items()
    )


def _read_json_lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """Yield (number, line) of the lines that are not blank; of one above MAX_LINE only the beginning."""
    with _open_regular(path) as file:
        number = 0
        while line := file.readline(MAX_LINE + 1):
            number += 1
            rest = line
            while len(rest) > MAX_LINE and not rest.endswith(b"\n"):
                rest = file.readline(MAX_LINE + 1)
            if number == 1:
                line = line.removeprefix(codecs.BOM_UTF8)
            if line.strip():
                yield number, line


def _parse_row(line: bytes) -> Row:
    """Return the document or dialogue of a line; only the keys of its kind are looked at."""
    if len(line) > MAX_LINE:
        raise _BadLine(f"longer than {MAX_LINE >> 20} MB")
    try:
        row = from_json(line)  # refuses half surrogate pairs too
    except ValueError as error:
        raise _BadLine("not JSON", str(error).replace("line 1 column", "byte")) from error
    if not isinstance(row, dict):
        raise _BadLine("not a JSON object")
    if "messages" in row:
        return _parse_dialogue(row["messages"])
    if "prompt" in row and "completion" in row:
        turns = (("user", "prompt"), ("assistant", "completion"))
        return _parse_dialogue([{"role": role, "content": row[key]} for role, key in turns])
    if "text" in row:
        text = _require_text(row["text"], "text")
        return Document(_hash_text(text), text)
    raise _BadLine("no messages, no prompt and completion, no text")


def _parse_dialogue(turns: object) -> Dialogue:
    """Return the dialogue of a list of {"role", "content"}, named by its first question."""
    if not isinstance(turns, list):
        raise _BadLine("messages is not a list")
    messages = tuple(map(_parse_message, turns))
    if any(message.role == "system" for message in messages[1:]):
        raise _BadLine("a system message that is not the first")
    if all(message.role != "assistant" for message in messages):
        raise _BadLine("no assistant message")
    question = next((message for message in messages if message.role == "user"), messages[0])
    return Dialogue(_hash_text(question.content), messages)


def _parse_message(turn: object) -> Message:
    if not isinstance(turn, dict):
        raise _BadLine("a message is not an object")
    for role in ROLES:
        if turn.get("role") == role:
            return Message(role, _require_text(turn.get("content"), "content"))
    raise _BadLine(f"a role other than {', '.join(ROLES)}", ascii(turn.get("role"))[:40])


def _require_text(value: object, key: str) -> str:
    if not isinstance(value, str):
        raise _BadLine(f"{key} is not a string")
    if not value.strip():
        raise _BadLine(f"{key} is empty")
    return value
