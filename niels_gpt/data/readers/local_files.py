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
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path

from pydantic_core import from_json

from niels_gpt.config import SourceCfg
from niels_gpt.data.hash_index import hash_file
from niels_gpt.data.readers.records import SECTION, Dialogue, Document, Message, cut_sections, join_lines
from niels_gpt.errors import DataError

MAX_PARAGRAPH = 1 << 20  # characters; a file without blank lines is not held in memory
MAX_LINE = 16 << 20  # bytes of a line of JSON with its end
FIRST_ROWS = 1000  # of each file of JSON lines, read to find out which kinds of row it holds

_ROW_HINT = 'a row is {"messages": [{"role", "content"}, ...]}, {"prompt", "completion"} or {"text"}'
_NOT_TEXT = re.compile("[\0\udc80-\udcff]")  # surrogateescape decodes bytes that are not UTF-8 to these
_log = logging.getLogger("niels_gpt")
Row = Document | Dialogue


def read_documents(cfg: SourceCfg) -> Iterator[Document]:
    """Yield the texts of `cfg.files`, in the order of their paths.

    DataError naming file and line if a file cannot be read, has no text or is not of `cfg.kind`.
    """
    if cfg.kind == "text":
        for path in find_files(cfg):
            yield from _read_text(path, cfg.documents)
    else:
        yield from (row for row in _read_rows(cfg) if isinstance(row, Document))


def read_dialogues(cfg: SourceCfg) -> Iterator[Dialogue]:
    """Yield the dialogues of JSON lines, in the order of their paths. DataError as for `read_documents`."""
    yield from (row for row in _read_rows(cfg) if isinstance(row, Dialogue))


def has_rows(cfg: SourceCfg, kind: type[Row]) -> bool:
    """Return whether any file of JSON lines has such a row among its FIRST_ROWS."""
    return any(isinstance(row, kind) for row in _read_rows(cfg, FIRST_ROWS))


def fingerprint(cfg: SourceCfg, sha256: Callable[[Path], str] = hash_file) -> str:
    """Return a hash that changes whenever `read_documents` or `read_dialogues` would yield something else.

    `sha256` returns the hash of a file, perhaps from an index.
    """
    hashes = []
    for path in find_files(cfg):
        with _open_regular(path):
            hashes.append(sha256(path))
    parts = [cfg.kind, cfg.documents if cfg.kind == "text" else cfg.on_bad_line, *sorted(hashes)]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def find_files(cfg: SourceCfg) -> list[Path]:
    """Return the files that paths and globs name, sorted, each real file once."""
    found: set[str] = set()
    for pattern in cfg.files:
        full = os.path.expanduser(pattern)
        # A name with brackets in it is a name first. "notes/**" matches the folders within too: they are left out.
        globbed = (path for path in glob.glob(full, recursive=True) if not os.path.isdir(path))
        matches = {full} if os.path.lexists(full) else set(filter(os.path.lexists, globbed))
        if not matches:
            hint = f"paths are relative to {Path.cwd()}; ** matches nested folders"
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
            raise DataError(f"{path}: not a regular file", hint)
        with path.open("rb") as file:
            yield file
    except OSError as error:
        reason = f"{path}: cannot be read ({error.strerror or error})"
        raise DataError(reason, "check the path and its permissions") from error


def _hash_text(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:32]


# --- plain text


def _read_text(path: Path, unit: str) -> Iterator[Document]:
    """Yield a file, in sections if it is long, or its paragraphs."""
    found = False
    if unit == "file":
        documents = cut_sections(_read_lines(path))
    else:
        paragraphs = filter(str.strip, join_lines(_read_lines(path), 0, MAX_PARAGRAPH))
        documents = (Document("", paragraph.rstrip().lstrip("\n")) for paragraph in paragraphs)
    for document in documents:
        found = True
        yield document
    if not found:
        raise DataError(f"{path}: has no text", "leave it out of data.files")


def _read_lines(path: Path) -> Iterator[str]:
    """Yield the lines of a UTF-8 file without BOM, line ends as LF, a long line in parts of SECTION."""
    with _open_regular(path) as file:
        text = io.TextIOWrapper(file, "utf-8-sig", errors="surrogateescape")
        number = 1
        while line := text.readline(SECTION):
            if _NOT_TEXT.search(line):
                message = f"{path}:{number}: not text in UTF-8"
                raise DataError(message, "save the file as UTF-8, or leave it out of data.files")
            number += line.endswith("\n")
            yield line


# --- JSON lines


def _read_rows(cfg: SourceCfg, limit: int | None = None) -> Iterator[Row]:
    """Yield the rows of all files, at most `limit` of each."""
    for path in find_files(cfg):
        yield from islice(_read_file_rows(path, skip=cfg.on_bad_line == "skip"), limit)


def _read_file_rows(path: Path, skip: bool) -> Iterator[Row]:
    """Yield the rows of a file; DataError at a bad line, unless `skip`: then count bad lines and log the first."""
    good = bad = 0
    first = ""
    for number, line in _read_json_lines(path):
        try:
            row = _parse_row(line)
        except ValueError as error:
            bad, first = bad + 1, first or f"{path}:{number}: {error}"
            if not skip:
                raise DataError(first, f"{_ROW_HINT}; fix the line, or set data.on_bad_line=skip") from error
            continue
        good += 1
        yield row
    if not good:
        raise DataError(f"{path}: all {bad} lines are bad; {first}" if bad else f"{path}: has no rows", _ROW_HINT)
    if bad:
        _log.warning("%s: skipped %d bad lines; the first is %s", path, bad, first)


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
        raise ValueError(f"longer than {MAX_LINE >> 20} MB")
    try:
        row = from_json(line.rstrip())  # refuses half surrogate pairs too
    except ValueError as error:
        raise ValueError(f"not JSON ({str(error).replace('line 1 column', 'byte')})") from error
    match row:
        case {"messages": [*turns]}:
            return _make_dialogue([_parse_message(turn) for turn in turns])
        case {"prompt": prompt, "completion": completion}:
            user = Message("user", _require_text(prompt, "prompt"))
            return _make_dialogue([user, Message("assistant", _require_text(completion, "completion"))])
        case {"text": text}:
            text = _require_text(text, "text")
            return Document("", text)
    raise ValueError("no list of messages, no prompt and completion, no text")


def _parse_message(turn: object) -> Message:
    match turn:
        case {"role": "system" | "user" | "assistant" as role, "content": content}:
            return Message(role, _require_text(content, "content"))
    raise ValueError("a message without a role of system, user or assistant, or without content")


def _make_dialogue(messages: list[Message]) -> Dialogue:
    """Return a dialogue named by its first question."""
    if any(message.role == "system" for message in messages[1:]):
        raise ValueError("a system message that is not the first")
    if all(message.role != "assistant" for message in messages):
        raise ValueError("no assistant message")
    question = next((message for message in messages if message.role == "user"), messages[0])
    return Dialogue(_hash_text(question.content), tuple(messages))


def _require_text(value: object, key: str) -> str:
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"{key} is not a string with text")
    return value
