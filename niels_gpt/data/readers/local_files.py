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
from itertools import chain, islice
from pathlib import Path
from typing import Any

from niels_gpt.config import SourceCfg
from niels_gpt.data.hash_index import file_sha256
from niels_gpt.data.readers.records import ROLES, Dialogue, Document, Message
from niels_gpt.errors import DataError

PIECE = 16 << 10  # characters; a longer file is cut, so that one file can fill both splits
LONGEST_PARAGRAPH = 1 << 20  # characters; a file without blank lines is not held in memory
MAX_LINE = 16 << 20  # bytes of a line of JSON with its end
FIRST_ROWS = 1000  # of each file of JSON lines: they tell what kinds of row it holds

_ROW_HINT = 'a row is {"messages": [{"role", "content"}, ...]}, {"prompt", "completion"} or {"text"}'
_NOT_TEXT = re.compile("[\0\udc80-\udcff]")  # as surrogateescape shows bytes that are not UTF-8
_log = logging.getLogger("niels_gpt")
Row = Document | Dialogue


def read_documents(cfg: SourceCfg) -> Iterator[Document]:
    """Yield the texts of `cfg.files`, in the order of their paths.

    DataError naming file and place if a file cannot be read, holds no text or is not what `cfg.kind` says.
    """
    if cfg.kind == "text":
        for path in _resolve(cfg.files):
            yield from _text_documents(path, cfg.documents)
    else:
        yield from (row for row in _rows(cfg) if isinstance(row, Document))


def read_dialogues(cfg: SourceCfg) -> Iterator[Dialogue]:
    """Yield the dialogues of JSON lines, in the order of their paths; plain text has none.

    DataError as for `read_documents`.
    """
    if cfg.kind == "jsonl":
        yield from (row for row in _rows(cfg) if isinstance(row, Dialogue))


def starts_with(cfg: SourceCfg, kind: type[Row]) -> bool:
    """Return whether any file of JSON lines has such a row among its FIRST_ROWS. DataError as for `read_documents`."""
    skip = cfg.on_bad_line == "skip"
    first_rows = (row for path in _resolve(cfg.files) for row in islice(_file_rows(path, skip), FIRST_ROWS))
    return any(isinstance(row, kind) for row in first_rows)


def fingerprint(cfg: SourceCfg, sha256: Callable[[Path], str] = file_sha256) -> str:
    """Return a hash that changes whenever `read_documents` or `read_dialogues` would yield something else.

    `sha256` returns the hash of a file, perhaps from an index.
    """
    setting = cfg.documents if cfg.kind == "text" else cfg.on_bad_line
    parts: list[Any] = [cfg.kind, setting, PIECE, LONGEST_PARAGRAPH]
    for path in _resolve(cfg.files):
        with _open(path):
            parts.append((_shown(path), sha256(path)))
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


# --- which files


def _resolve(patterns: Iterable[str]) -> list[Path]:
    """Return the files that paths and globs name, sorted, each real file once."""
    real = {os.path.realpath(path): path for path in sorted(_matches(patterns), reverse=True)}
    return sorted(Path(path) for path in real.values())


def _matches(patterns: Iterable[str]) -> set[str]:
    found: set[str] = set()
    for pattern in patterns:
        full = os.path.expanduser(pattern)
        if os.path.lexists(full):  # a name with brackets in it is a name first
            found.add(full)
            continue
        # "notes/**" also gives the folders within, which nobody means to read, and "notes/" if there is none.
        matches = glob.glob(full, recursive=True)
        files = {path for path in matches if os.path.lexists(path) and not os.path.isdir(path)}
        if not files:
            hint = f"paths are looked up from {Path.cwd()}; ** matches folders within folders"
            raise DataError(f"data.files: no file matches {pattern!r}", hint)
        found |= files
    return found


@contextmanager
def _open(path: Path) -> Iterator[io.BufferedReader]:
    """Open a regular file; whatever keeps it from being read becomes a DataError that names it."""
    try:
        # Asked before opening: to open a FIFO would wait for a writer.
        if not stat.S_ISREG(path.stat().st_mode):
            hint = f"use '{path}/**' for all files in a folder" if path.is_dir() else "name a file"
            raise DataError(f"{_shown(path)}: not a regular file", hint)
        with path.open("rb") as file:
            yield file
    except OSError as error:
        said = f"{_shown(path)}: cannot be read ({error.strerror or error})"
        raise DataError(said, "check the path and its permissions") from error


def _shown(path: Path) -> str:
    """Return the path as text; a file name need not be UTF-8."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def _content_name(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:32]


# --- plain text


def _text_documents(path: Path, cut: str) -> Iterator[Document]:
    found = False
    for name, text in _paragraphs(path) if cut == "blank_lines" else _pieces(path):
        found = True
        yield Document(name, text)
    if not found:
        raise DataError(f"{_shown(path)}: holds no text", "leave it out of data.files")


def _pieces(path: Path) -> Iterator[tuple[str, str]]:
    """Yield a file as (path, text), a long one as (path#0, text), (path#1, text) ...."""
    pieces = (piece for piece in _cut(_lines(path), PIECE, 2 * PIECE) if piece.strip())
    first, second = list(islice(pieces, 1)), list(islice(pieces, 1))
    if first and not second:
        yield _shown(path), first[0]
        return
    for i, piece in enumerate(chain(first, second, pieces)):
        yield f"{_shown(path)}#{i}", piece


def _paragraphs(path: Path) -> Iterator[tuple[str, str]]:
    """Yield what stands between blank lines, named by its content: a repeated one stays in one split."""
    for piece in _cut(_lines(path), 0, LONGEST_PARAGRAPH):
        if piece.strip():
            text = piece.rstrip().lstrip("\n")
            yield _content_name(text), text


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


def _lines(path: Path) -> Iterator[str]:
    """Yield the lines of a UTF-8 file without BOM, line ends as LF, a long line in parts of PIECE."""
    with _open(path) as file:
        if file.read(3) != codecs.BOM_UTF8:  # "utf-8-sig" would pass over one cut short
            file.seek(0)
        text = io.TextIOWrapper(file, "utf-8", errors="surrogateescape")
        while line := text.readline(PIECE):
            if _NOT_TEXT.search(line):
                raise _not_text(path)
            yield line


def _not_text(path: Path) -> DataError:
    """Say where a file stops being text: read again, for a text reader does not count bytes."""
    at, number, before, bad = 0, 1, "", ""
    with _open(path) as file:
        text = io.TextIOWrapper(file, "utf-8", errors="surrogateescape", newline="")
        while not bad and (part := text.readline(PIECE)):
            found = _NOT_TEXT.search(part)
            before, bad = (part[: found.start()], found[0]) if found else (part, "")
            at += len(before.encode())
            number += before.count("\n")
    what = "a NUL byte, so not text," if bad == "\0" else "not UTF-8"
    said = f"{_shown(path)}: {what} at byte {at} (line {number})"
    return DataError(said, "save it as UTF-8, or leave it out of data.files")


# --- JSON lines


class _BadLine(Exception):
    """Why a line cannot be used: `reason` is one of a few, `detail` is about this line."""

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(f"{reason} ({detail})" if detail else reason)
        self.reason = reason


def _rows(cfg: SourceCfg) -> Iterator[Row]:
    for path in _resolve(cfg.files):
        yield from _file_rows(path, skip=cfg.on_bad_line == "skip")


def _file_rows(path: Path, skip: bool) -> Iterator[Row]:
    """Yield the rows of a file. A bad line is an error, or with `skip` is counted and told of at the end."""
    good, bad = 0, dict[str, list[int]]()
    for number, line in _json_lines(path):
        try:
            row = _row(line)
        except _BadLine as error:
            if not skip:
                hint = "mend the line, or use data.on_bad_line=skip"
                raise DataError(f"{_shown(path)}:{number}: {error}", hint) from error
            bad.setdefault(error.reason, []).append(number)
            continue
        good += 1
        yield row
    if good and bad:
        _log.warning("%s: skipped %s", _shown(path), _summary(bad))
    if not good:
        why = f"all lines are bad: {_summary(bad)}" if bad else "holds no rows"
        raise DataError(f"{_shown(path)}: {why}", _ROW_HINT)


def _summary(bad: dict[str, list[int]]) -> str:
    """Return "3 not JSON (lines 1, 2, 9)" for each reason, with the first five lines."""
    return "; ".join(
        f"{len(lines)} {reason} (line{'s' * (len(lines) > 1)} {', '.join(map(str, lines[:5]))}"
        f"{', ...' * (len(lines) > 5)})"
        for reason, lines in bad.items()
    )


def _json_lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """Yield (number, line) of the lines that are not blank; of one above MAX_LINE only the beginning."""
    with _open(path) as file:
        number = 0
        while line := file.readline(MAX_LINE + 1):
            number += 1
            part = line
            while len(part) > MAX_LINE and not part.endswith(b"\n"):
                part = file.readline(MAX_LINE + 1)
            if number == 1:
                line = line.removeprefix(codecs.BOM_UTF8)
            if line.strip():
                yield number, line


def _row(line: bytes) -> Row:
    """Return what a line says; other keys than those of its kind are ignored. _BadLine if it says nothing."""
    row = _parse(line)
    if not isinstance(row, dict):
        raise _BadLine("not a JSON object")
    if "messages" in row:
        return _dialogue(row["messages"])
    if "prompt" in row and "completion" in row:
        turns = (("user", "prompt"), ("assistant", "completion"))
        return _dialogue([{"role": role, "content": row[key]} for role, key in turns])
    if "text" in row:
        text = _text(row["text"], "text")
        return Document(_content_name(text), text)
    raise _BadLine("no messages, no prompt and completion, no text")


def _parse(line: bytes) -> object:
    if len(line) > MAX_LINE:
        raise _BadLine(f"longer than {MAX_LINE >> 20} MB")
    try:
        return json.loads(line.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise _BadLine("not UTF-8", f"at byte {error.start} of the line") from error
    except RecursionError as error:
        raise _BadLine("nested too deeply") from error
    except ValueError as error:  # also of a number with thousands of digits
        raise _BadLine("not JSON", str(error)) from error


def _dialogue(turns: object) -> Dialogue:
    """Return the dialogue of a list of {"role", "content"}, named by its first question."""
    if not isinstance(turns, list):
        raise _BadLine("messages is not a list")
    messages = tuple(_message(turn) for turn in turns)
    if any(message.role == "system" for message in messages[1:]):
        raise _BadLine("a system message that is not the first")
    if all(message.role != "assistant" for message in messages):
        raise _BadLine("no assistant message")
    question = next((message for message in messages if message.role == "user"), messages[0])
    return Dialogue(_content_name(question.content), messages)


def _message(turn: object) -> Message:
    if not isinstance(turn, dict):
        raise _BadLine("a message is not an object")
    for role in ROLES:
        if turn.get("role") == role:
            return Message(role, _text(turn.get("content"), "content"))
    raise _BadLine(f"a role other than {', '.join(ROLES)}", ascii(turn.get("role"))[:40])


def _text(value: object, key: str) -> str:
    if not isinstance(value, str):
        raise _BadLine(f"{key} is not a string")
    if not value.strip():
        raise _BadLine(f"{key} is empty")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as error:
        raise _BadLine(f"{key} has half a surrogate pair", f"at character {error.start}") from error
    return value
